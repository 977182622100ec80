"""What lies under ``models.root``: which files of a repository are there, and whether they are what was fetched.

A fetch leaves a record beside the files, :data:`models.registry.RECORD`. Files that were copied there by hand have
none, and are as good; only whose they are cannot be told. Nothing here touches the network.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from enum import StrEnum
from fnmatch import fnmatchcase
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from models.errors import UserError
from models.registry import RECORD, BackendConfig, Repository
from models.weights.catalogue import COMMIT, UNKNOWN, Terms, own_files, place, repositories, terms

WEIGHTS = (".safetensors", ".onnx", ".pth", ".pt", ".bin")
"""Endings of files of weights."""
SHA256 = r"^[0-9a-f]{64}$"


class StoredFile(BaseModel):
    """A file as it was when it was fetched and found right."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    size: int = Field(ge=0)
    """In bytes."""
    sha256: str = Field(pattern=SHA256)
    """Of its bytes."""


class Record(BaseModel):
    """What was fetched of one repository."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    commit: str = Field(pattern=f"^{COMMIT.pattern}$")
    """Of the repository."""
    licence: str | None = None
    """What the repository's card called its licence."""
    patterns: tuple[str, ...]
    """All files of the commit that fit one of these are there."""
    files: dict[str, StoredFile]
    """By path inside the repository."""


class State(StrEnum):
    """How the files of a repository stand."""

    VERIFIED = "verified"
    """All there, and as they were fetched."""
    UNVERIFIED = "unverified"
    """There, but nothing says that they are complete and right: copied by hand, or fetched for something else."""
    CHANGED = "changed"
    """Not as they were fetched."""
    MISSING = "missing"


class Standing(BaseModel):
    """How the files of a repository stand, and how much they are."""

    model_config = ConfigDict(frozen=True)

    state: State
    detail: str = ""
    """Which file or pattern inside the folder is missing or changed, or what cannot be told."""
    size: int = 0
    """Bytes on disk."""


_RECORDS = TypeAdapter(dict[str, Record])


def read_records(folder: Path) -> dict[str, Record]:
    """The records in a folder by repository; empty where nothing was fetched.

    Raises:
        UserError: if the file is not what a fetch writes.
    """
    try:
        return _RECORDS.validate_json((folder / RECORD).read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except ValidationError as error:
        raise UserError(f"{folder / RECORD} is no record of a fetch: {error.errors()[0]['msg']}; remove it") from None


def write_record(folder: Path, name: str, record: Record) -> None:
    """Put the record of a repository beside those of others; whole or not at all."""
    records = {**read_records(folder), name: record}
    plain = {key: records[key].model_dump(mode="json", exclude_none=True) for key in sorted(records)}
    replace_text(folder / RECORD, json.dumps(plain, indent=1, sort_keys=True) + "\n")


def replace_text(path: Path, text: str) -> None:
    """Write a text file, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    whole = path.with_name(f".{path.name}.{os.getpid()}")
    whole.write_text(text, encoding="utf-8")
    whole.replace(path)


def fits(path: str, patterns: Iterable[str]) -> bool:
    """Whether a path inside a repository fits one of the patterns; ``*`` goes through folders, as on the hub."""
    return any(fnmatchcase(path, pattern) for pattern in patterns)


def unmet(patterns: Iterable[str], paths: Iterable[str]) -> list[str]:
    """Patterns that must fit some path and fit none: names of single files, and patterns of weights.

    Of the others a repository may have none, such as a chat template.
    """
    paths = list(paths)
    needed = [pattern for pattern in patterns if not any(map(pattern.count, "*?[")) or pattern.endswith(WEIGHTS)]
    return [pattern for pattern in needed if not any(fits(path, [pattern]) for path in paths)]


def sha256_of(path: Path) -> str:
    """SHA-256 of a file in hexadecimal."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def standing(repository: Repository, config: BackendConfig, root: Path, *, rehash: bool = False) -> Standing:
    """How the files stand that a backend reads of a repository.

    Args:
        repository: of the backend.
        config: of the backend.
        root: `models.root`.
        rehash: read every file and compare its SHA-256, instead of its size alone.
    """
    folder = place(repository, root)
    record = read_records(folder).get(repository.name)
    if record is not None and not set(repository.files) <= set(record.patterns):
        record = None
    there = _there(folder, repository.files, record)
    size = sum((folder / path).stat().st_size for path in there)
    if not there:
        return Standing(state=State.MISSING)
    absent = unmet(repository.files, there)
    absent += [str(path.relative_to(folder)) for path in _inside(config.weights(root), folder) if not path.exists()]
    if absent:
        return Standing(state=State.MISSING, detail=absent[0], size=size)
    if record is None:
        return Standing(state=State.UNVERIFIED, detail="no record of a fetch", size=size)
    if bad := faults(folder, record, repository.files, rehash=rehash):
        gone = [path for path in bad if not (folder / path).is_file()]
        state = State.MISSING if gone else State.CHANGED
        return Standing(state=state, detail=(gone or bad)[0], size=size)
    asked = repository.revision
    if asked is not None and COMMIT.fullmatch(asked) and asked != record.commit:
        return Standing(state=State.UNVERIFIED, detail=f"fetched at {record.commit[:8]}, not {asked[:8]}", size=size)
    return Standing(state=State.VERIFIED, size=size)


def faults(folder: Path, record: Record, patterns: Iterable[str], *, rehash: bool = False) -> list[str]:
    """Recorded files that fit the patterns and are gone or changed."""
    wanted = [path for path in record.files if fits(path, patterns)]
    return [path for path in wanted if not _as_recorded(folder / path, record.files[path], rehash)]


def provenance(chosen: Mapping[str, BackendConfig], root: Path) -> list[dict[str, Any]]:
    """What a run's results were made with, for the record of the results.

    Returns:
        Per task ``{"task", "backend", "weights": [{"repository", "revision", "licence", "commercial"}]}``. The revision
        is the commit on disk or the package's version, nothing where that is not recorded; ``commercial`` is nothing
        where it is unknown.
    """
    return [
        {"task": task, "backend": config.backend, "weights": _weights(config, root)} for task, config in chosen.items()
    ]


def installed(package: str) -> str | None:
    """The version of a Python package, if it is installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _weights(config: BackendConfig, root: Path) -> list[dict[str, Any]]:
    records = {
        repository.name: read_records(place(repository, root)).get(repository.name)
        for repository in repositories(config)
    }
    own = {str(path) for path in own_files(config, Path())}
    found = []
    for term in terms(config):
        record = records.get(term.source)
        packaged = term.source not in records and term.source not in own
        revision = installed(term.source) if packaged else record.commit if record else None
        found.append(
            {
                "repository": term.source,
                "revision": revision,
                "licence": _licence(term, record),
                "commercial": term.commercial,
            }
        )
    return found


def _licence(term: Terms, record: Record | None) -> str:
    told = record.licence if record is not None else None
    return told if told is not None and term.licence == UNKNOWN else term.licence


def _there(folder: Path, patterns: Iterable[str], record: Record | None) -> list[str]:
    patterns = list(patterns)
    if record is not None:
        return [path for path in record.files if fits(path, patterns) and (folder / path).is_file()]
    paths = (path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if path.is_file())
    return [path for path in paths if path != RECORD and fits(path, patterns)]


def _inside(paths: Iterable[Path], folder: Path) -> list[Path]:
    return [path for path in paths if path.is_relative_to(folder)]


def _as_recorded(path: Path, stored: StoredFile, rehash: bool) -> bool:
    if not path.is_file() or path.stat().st_size != stored.size:
        return False
    return not rehash or sha256_of(path) == stored.sha256
