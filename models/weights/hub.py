"""Fetches repositories of the model hub into ``models.root``. The only module that talks to the hub.

Files come into a folder of their own first, ``.fetching`` under ``models.root``, are compared there with the checksums
that the hub gives, and only then move to where backends look: what a backend finds is whole. A fetch that was
interrupted goes on with the files that it had not finished; a file that had come in part comes anew.
"""

from __future__ import annotations

import errno
import hashlib
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from models.errors import UserError
from models.registry import RECORD, Repository
from models.weights.catalogue import COMMIT, place, repository_entry
from models.weights.stored import (
    Record,
    StoredFile,
    faults,
    fits,
    read_records,
    replace_text,
    sha256_of,
    unmet,
    write_record,
)

FETCHING = ".fetching"
"""Folder under ``models.root`` for what is under way."""


class HubError(UserError):
    """A repository could not be fetched; the message says why and what to do."""


class Locked(BaseModel):
    """What a lock file says of a repository."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    commit: str = Field(pattern=f"^{COMMIT.pattern}$")
    """To fetch."""
    files: dict[str, str]
    """SHA-256 by path inside the repository."""


@dataclass(frozen=True, slots=True)
class Fetched:
    """What a fetch did."""

    record: Record
    """What now lies there."""
    downloaded: tuple[str, ...] = ()
    """Paths inside the repository that came over the network, in order."""
    removed: tuple[str, ...] = ()
    """Paths of an earlier commit that this one does not have."""


@dataclass(frozen=True, slots=True)
class _HubFile:
    path: str
    size: int
    sha256: str | None
    """Of a file in large file storage."""
    blob: str | None
    """Git's SHA-1 of any other file."""


@dataclass(frozen=True, slots=True)
class _Listing:
    commit: str
    licence: str | None
    files: tuple[_HubFile, ...]


@dataclass(slots=True)
class _Plan:
    """Which files are there already, with their SHA-256, and which have to come."""

    kept: dict[str, StoredFile] = field(default_factory=dict)
    missing: list[_HubFile] = field(default_factory=list)


def fetch(
    repository: Repository,
    root: Path,
    *,
    locked: Locked | None = None,
    rehash: bool = False,
    endpoint: str | None = None,
) -> Fetched:
    """Bring the files of a repository to where its backends look, and record them there.

    The commit is that of the lock, else the repository's own ``revision``, else the one that the catalogue pins, else
    the one that an earlier fetch recorded, else what ``main`` is now. Where all files lie as recorded for a known
    commit, the hub is not asked.

    Args:
        repository: its name, the files wanted, and where they go.
        root: `models.root`.
        locked: commit and sums that decide.
        rehash: read the files that are there and compare them with their record, instead of their sizes alone.
        endpoint: address of the hub; without one `HF_ENDPOINT`, or the public hub.

    Raises:
        HubError: if it cannot be had: unknown, gated, no network, a full disk, a checksum that differs, or files in the
            way that no fetch wrote.
    """
    folder = _folder(repository, root)
    record = read_records(folder).get(repository.name)
    revision = _revision(repository, record, locked)
    if record is not None and _complete(repository, record, revision, folder, locked, rehash):
        return Fetched(record)
    staging = root / FETCHING / repository.name.replace("/", "--")
    with _explained(repository, folder, revision), _alone(staging, repository):
        listing = _list(repository, revision, endpoint)
        _agree(repository, listing, locked)
        plan = _plan(repository, listing, record, folder, rehash)
        _check_space(plan.missing, staging, root)
        came = _download(repository, listing.commit, plan.missing, staging, endpoint)
        _check_sums(repository, {**plan.kept, **came}, locked)
        for path in came:
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (staging / path).replace(folder / path)
        removed = _remove_stale(repository, listing, record, folder)
        record = _recorded(repository, listing, record, {**plan.kept, **came})
        write_record(folder, repository.name, record)
        shutil.rmtree(staging, ignore_errors=True)
    return Fetched(record, tuple(sorted(came)), tuple(removed))


def merged(repositories: Iterable[Repository]) -> list[Repository]:
    """One repository per name and folder, with the files that all who named it want.

    Raises:
        HubError: if two want different revisions in one folder.
    """
    found: dict[tuple[str, str | None], Repository] = {}
    for repository in repositories:
        key = repository.name, repository.folder
        other = found.get(key)
        if other is None:
            found[key] = repository
            continue
        revisions = {each.revision for each in (other, repository)} - {None}
        if len(revisions) > 1:
            raise HubError(
                f"{repository.name} is wanted at {' and at '.join(sorted(map(str, revisions)))}: "
                "give the backends that read it one `revision`"
            )
        files = tuple(dict.fromkeys([*other.files, *repository.files]))
        found[key] = Repository(repository.name, files, next(iter(revisions), None), repository.folder)
    return list(found.values())


_LOCKS = TypeAdapter(dict[str, Locked])
LOCK_HEAD = (
    "# Commits and SHA-256 sums of fetched weights: `s2v models fetch --lock FILE` fetches these and no others.\n"
)


def read_lock(file: Path) -> dict[str, Locked]:
    """What a lock file says, by repository; empty if there is no such file.

    Raises:
        HubError: if it is there and is no lock file.
    """
    try:
        locks = _LOCKS.validate_python(yaml.safe_load(file.read_text(encoding="utf-8")) or {})
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError, ValidationError) as error:
        raise HubError(f"{file} cannot be read as a lock file: {error}") from None
    for name, locked in locks.items():
        for path, sha256 in locked.files.items():
            if len(sha256) != 64:
                raise HubError(f"{file}: the sum of {name}/{path} is no SHA-256")
    return locks


def write_lock(file: Path, locks: Mapping[str, Locked]) -> None:
    """Write a lock file, whole or not at all."""
    plain = {name: locks[name].model_dump(mode="json") for name in sorted(locks)}
    replace_text(file, LOCK_HEAD + yaml.safe_dump(plain, sort_keys=True, allow_unicode=True, width=200))


def locked_as(record: Record, before: Locked | None) -> Locked:
    """The lock of what was fetched, together with what was locked of the same repository before."""
    files = {path: stored.sha256 for path, stored in record.files.items()}
    return Locked(commit=record.commit, files={**(before.files if before is not None else {}), **files})


def _folder(repository: Repository, root: Path) -> Path:
    inside = PurePosixPath(repository.folder or repository.name)
    if inside.is_absolute() or ".." in inside.parts:
        raise HubError(f"{repository.name}: {inside} is no folder under `models.root`")
    return place(repository, root)


def _revision(repository: Repository, record: Record | None, locked: Locked | None) -> str:
    if locked is not None:
        return locked.commit
    if repository.revision is not None:
        return repository.revision
    entry = repository_entry(repository.name)
    if entry is not None and entry.revision is not None:
        return entry.revision
    return record.commit if record is not None else "main"


def _complete(
    repository: Repository, record: Record, revision: str, folder: Path, locked: Locked | None, rehash: bool
) -> bool:
    if revision != record.commit or not set(repository.files) <= set(record.patterns):
        return False
    stored = {path: each.sha256 for path, each in record.files.items()}
    if locked is not None and any(stored.get(path, sha256) != sha256 for path, sha256 in locked.files.items()):
        return False
    return not faults(folder, record, repository.files, rehash=rehash)


def _list(repository: Repository, revision: str, endpoint: str | None) -> _Listing:
    from huggingface_hub import HfApi

    info = HfApi(endpoint=endpoint).model_info(repository.name, revision=revision, files_metadata=True)
    commit = info.sha or ""
    if not COMMIT.fullmatch(commit) or (COMMIT.fullmatch(revision) and revision != commit):
        raise HubError(f"{repository.name}: the hub answered for {commit or 'no commit'} when asked for {revision}")
    names = [sibling.rfilename for sibling in info.siblings or []]
    if unsafe := [name for name in names if not _is_inside(name)]:
        raise HubError(f"{repository.name} lists {unsafe[0]!r}, which lies outside its folder: nothing was fetched")
    files = tuple(
        _HubFile(
            path=sibling.rfilename,
            size=sibling.size or 0,
            sha256=sibling.lfs.sha256 if sibling.lfs is not None else None,
            blob=sibling.blob_id,
        )
        for sibling in info.siblings or []
        if fits(sibling.rfilename, repository.files) and sibling.rfilename != RECORD
    )
    lacking = unmet(repository.files, [file.path for file in files])
    if not files or lacking:
        wanted = ", ".join(lacking or repository.files)
        raise HubError(f"{repository.name} at {commit[:8]} holds no {wanted}: is it the model that the backend reads?")
    if unchecked := [file.path for file in files if file.sha256 is None and file.blob is None]:
        raise HubError(f"{repository.name}: the hub gives no checksum of {unchecked[0]}")
    return _Listing(commit, _card_licence(info.card_data), files)


def _is_inside(name: str) -> bool:
    path = PurePosixPath(name)
    return (
        bool(path.parts)
        and not path.is_absolute()
        and ".." not in path.parts
        and not any(character in name for character in "\\:\0")
    )


def _card_licence(card: Any) -> str | None:
    licence = card.get("license") if card is not None else None
    name = card.get("license_name") if card is not None else None
    told = name if licence in (None, "other") and name else licence
    return str(told) if told else None


def _agree(repository: Repository, listing: _Listing, locked: Locked | None) -> None:
    if locked is None:
        return
    for file in listing.files:
        wanted = locked.files.get(file.path)
        if wanted is not None and file.sha256 is not None and wanted != file.sha256:
            raise HubError(
                f"{repository.name}/{file.path}: the hub has {file.sha256[:12]}..., the lock file says "
                f"{wanted[:12]}...: one of them is wrong"
            )
    there = {file.path for file in listing.files}
    if gone := sorted(path for path in locked.files if fits(path, repository.files) and path not in there):
        raise HubError(f"{repository.name} at {locked.commit[:8]} holds no {gone[0]}, which the lock file names")


def _plan(repository: Repository, listing: _Listing, record: Record | None, folder: Path, rehash: bool) -> _Plan:
    plan, in_the_way = _Plan(), []
    recorded = record.files if record is not None else {}
    for file in listing.files:
        target = folder / file.path
        stored = recorded.get(file.path)
        if not target.exists():
            plan.missing.append(file)
            continue
        same_commit = record is not None and record.commit == listing.commit
        known = stored is not None and (same_commit or stored.sha256 == file.sha256)
        if stored is not None and known and not rehash and target.stat().st_size == stored.size:
            plan.kept[file.path] = stored
        elif target.is_file() and (kept := _checked(target, file)) is not None:
            plan.kept[file.path] = kept
        elif stored is not None:
            plan.missing.append(file)
        else:
            in_the_way.append(target)
    if in_the_way:
        raise HubError(
            f"{in_the_way[0]} is there, is not what {repository.name} has at {listing.commit[:8]}, and no fetch wrote "
            "it: move it away to fetch, or leave the repository as it is"
        )
    return plan


def _checked(path: Path, file: _HubFile) -> StoredFile | None:
    """Size and SHA-256 of a file on disk if it is the one that the hub lists."""
    size = path.stat().st_size
    if size != file.size and file.sha256 is not None:
        return None
    sha256 = sha256_of(path)
    right = sha256 == file.sha256 if file.sha256 is not None else _blob_sha1(path, size) == file.blob
    return StoredFile(size=size, sha256=sha256) if right else None


def _blob_sha1(path: Path, size: int) -> str:
    """What git calls the file: SHA-1 of a header with its size, and its bytes."""
    digest = hashlib.sha1(f"blob {size}\0".encode(), usedforsecurity=False)
    with path.open("rb") as handle:
        while block := handle.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _check_space(files: Sequence[_HubFile], staging: Path, root: Path) -> None:
    here = sum((staging / file.path).stat().st_size for file in files if (staging / file.path).is_file())
    needed = sum(file.size for file in files) - here
    free = shutil.disk_usage(root).free
    if needed > free:
        raise HubError(
            f"{needed / 1e9:.1f} GB are to come and {root} has {free / 1e9:.1f} GB free: make room, or point "
            "`models.root` at a larger disk"
        )


def _download(
    repository: Repository, commit: str, files: Sequence[_HubFile], staging: Path, endpoint: str | None
) -> dict[str, StoredFile]:
    """Fetch files into the staging folder; only those whose checksum is right stay there.

    Raises:
        HubError: naming those whose checksum is not, once all others are there.
    """
    from huggingface_hub import hf_hub_download

    def download(file: _HubFile) -> StoredFile | None:
        path = staging / file.path
        if path.is_file() and (stored := _checked(path, file)) is not None:
            return stored
        path.unlink(missing_ok=True)
        hf_hub_download(repository.name, file.path, revision=commit, local_dir=staging, endpoint=endpoint)
        stored = _checked(path, file)
        if stored is None:
            path.unlink()
        return stored

    came = {file.path: download(file) for file in files}
    if wrong := sorted(path for path, stored in came.items() if stored is None):
        raise HubError(
            f"{repository.name}: the checksum of {', '.join(wrong)} is not the one that the hub gives; what came was "
            "removed. Fetch again"
        )
    return {path: stored for path, stored in came.items() if stored is not None}


def _check_sums(repository: Repository, came: Mapping[str, StoredFile], locked: Locked | None) -> None:
    for path, stored in came.items():
        wanted = locked.files.get(path, stored.sha256) if locked is not None else stored.sha256
        if wanted != stored.sha256:
            raise HubError(
                f"{repository.name}/{path} has the SHA-256 {stored.sha256[:12]}..., and the lock file says "
                f"{wanted[:12]}...: it was not put in place"
            )


def _remove_stale(repository: Repository, listing: _Listing, record: Record | None, folder: Path) -> list[str]:
    """Remove what an earlier commit had and this one has not: a loader would take it for a part of the model."""
    if record is None or record.commit == listing.commit:
        return []
    there = {file.path for file in listing.files}
    stale = [path for path in record.files if path not in there and fits(path, repository.files)]
    for path in stale:
        (folder / path).unlink(missing_ok=True)
    return stale


def _recorded(
    repository: Repository, listing: _Listing, before: Record | None, files: Mapping[str, StoredFile]
) -> Record:
    same = before is not None and before.commit == listing.commit
    patterns, others = (before.patterns, before.files) if before is not None and same else ((), {})
    return Record(
        commit=listing.commit,
        licence=listing.licence,
        patterns=tuple(sorted({*patterns, *repository.files})),
        files=dict(sorted({**others, **files}.items())),
    )


@contextmanager
def _alone(staging: Path, repository: Repository) -> Iterator[None]:
    """Keeps other fetches of the same repository out; the lock ends with the process."""
    from filelock import FileLock, Timeout

    staging.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(staging.with_name(f"{staging.name}.lock"), timeout=0):
            # What the hub's client left of files that came in part.
            shutil.rmtree(staging / ".cache", ignore_errors=True)
            yield
    except Timeout:
        raise HubError(f"{repository.name} is being fetched by another process into {staging.parent.parent}") from None


@contextmanager
def _explained(repository: Repository, folder: Path, revision: str) -> Iterator[None]:
    """Turns what the hub's client raises into what the user can do about it."""
    from huggingface_hub import errors, get_token

    name, page = repository.name, f"https://huggingface.co/{repository.name}"
    by_hand = f"or copy the repository's files by hand to {folder}"
    try:
        yield
    except errors.GatedRepoError as error:
        account = (
            "the account of your token has no access yet: ask for it on that page"
            if get_token()
            else "then set HF_TOKEN to a token of the account that accepted (huggingface.co/settings/tokens)"
        )
        raise HubError(f"{name} is gated. Accept its terms on {page}; {account}; {by_hand}") from error
    except errors.RevisionNotFoundError as error:
        raise HubError(f"{name} has no revision {revision!r} on the hub") from error
    except errors.RepositoryNotFoundError as error:
        raise HubError(
            f"the hub knows no repository {name}, or it is private and HF_TOKEN gives no access. If it is a folder of "
            f"your own, copy it to {folder}"
        ) from error
    except errors.OfflineModeIsEnabled as error:
        raise HubError(f"{name}: HF_HUB_OFFLINE is set. Unset it, {by_hand}") from error
    except errors.HfHubHTTPError as error:
        raise HubError(f"{name}: {_http_reason(error, page)}; {by_hand}") from error
    except (errors.HTTPError, errors.LocalEntryNotFoundError) as error:
        raise HubError(
            f"{name}: the hub cannot be reached ({_first_line(error)}). Look at the network, {by_hand}"
        ) from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise HubError(
                f"{name}: the disk of {folder} is full. Make room, or point `models.root` at a larger disk; files that "
                "came whole are kept"
            ) from error
        raise HubError(f"{name}: {_first_line(error)}. Run the same command again to go on") from error
    except RuntimeError as error:
        # What the hub's storage client raises.
        raise HubError(f"{name}: {_first_line(error)}. Run the same command again to go on") from error


def _http_reason(error: Any, page: str) -> str:
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status in (401, 403):
        return f"the hub refuses ({status}). Accept its terms on {page} and set HF_TOKEN to a token of that account"
    if status == 429:
        return "the hub wants fewer requests (429). Wait some minutes and run the same command again"
    return f"the hub fails ({status or _first_line(error)}). Run the same command again later"


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
