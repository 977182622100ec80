"""From what the user names (files, folders, globs, URIs, manifests) to one `Source` per video.

Listing looks at names, sizes and dates only and runs in the driver; reading the files is `IngestStage`, which runs in
workers.
"""

from __future__ import annotations

import csv
import glob
import hashlib
import io
import json
import os
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, cast
from urllib.parse import urlsplit

import fsspec
import pyarrow as pa
from pyarrow import parquet

from models.errors import UserError
from stages.media import local_copy, local_path, probe
from stages.records import Source

VIDEO_EXTENSIONS = frozenset(
    {
        ".3g2", ".3gp", ".asf", ".avi", ".divx", ".dv", ".f4v", ".flv", ".gxf", ".m2ts",
        ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts", ".mxf", ".nut", ".ogm",
        ".ogv", ".qt", ".rm", ".rmvb", ".ts", ".vob", ".webm", ".wmv"
    }
)  # fmt: skip
"""Names that count as videos in folders and globs. A file that is named itself may be called anything."""

MANIFEST_EXTENSIONS = frozenset({".jsonl", ".csv", ".parquet"})

_COLUMNS = ("uri", "caption", "licence", "license", "source")
_SIDECAR_BYTES = 64 * 1024
_MISSING = -1
_VERSION_KEYS = ("ETag", "etag", "md5Hash", "mtime", "LastModified", "last_modified", "updated", "modified", "created")


class InputError(UserError, ValueError):
    """Nothing can be made of an input; the message names it and says why."""


@dataclass(frozen=True, slots=True)
class InputVideo:
    """A video that was found or listed, not opened yet."""

    uri: str
    """An absolute path (a percent-encoded ``file://`` URI where the name is not UTF-8), or a remote URI."""
    size: int
    """Bytes; -1 where a manifest lists a file that is not there."""
    version: str
    """Whatever changes when the file is replaced: its time of change in nanoseconds, or the store's tag."""
    caption: str | None
    caption_source: str | None
    """``manifest``, ``sidecar`` or nothing."""
    licence: str | None
    origin: str | None
    """Where the file was got from: ``source`` of the manifest or sidecar."""

    @property
    def source_id(self) -> str:
        """16 hex digits that change with the file and with what is said about it."""
        facts = [self.uri, self.size, self.version, self.caption, self.licence, self.origin]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class _Notes:
    """What is said about a video."""

    caption: str | None = None
    licence: str | None = None
    origin: str | None = None

    @classmethod
    def of(cls, entry: Mapping[str, Any]) -> _Notes:
        return cls(
            caption=_text(entry.get("caption")),
            licence=_text(entry.get("licence")) or _text(entry.get("license")),
            origin=_text(entry.get("source")),
        )


class IngestStage:
    """Reads a video once for its hash and once for its facts."""

    def __init__(self, fingerprint: str) -> None:
        self.fingerprint = fingerprint

    def run(self, video: InputVideo) -> Source:
        """Raises ``OSError`` for a file that cannot be read, `media.UnreadableVideo` for one that is no video."""
        if video.size == _MISSING:
            raise FileNotFoundError(f"listed in a manifest, but not there: {video.uri}")
        with local_copy(video.uri) as path:
            with path.open("rb") as file:
                video_id = hashlib.file_digest(file, "sha256").hexdigest()[:16]
            facts = probe(path)
            return Source(
                source_id=video.source_id,
                uri=video.uri,
                video_id=video_id,
                bytes=path.stat().st_size,
                container=facts.container,
                codec=facts.codec,
                width=facts.width,
                height=facts.height,
                rotation=facts.rotation,
                fps=facts.fps,
                frames=facts.frames,
                frames_announced=facts.frames_announced,
                duration_s=facts.duration_s,
                audio_streams=facts.audio_streams,
                caption=video.caption,
                caption_source=video.caption_source,
                licence=video.licence,
                origin=video.origin,
                fingerprint=self.fingerprint,
            )


@dataclass(frozen=True, slots=True)
class _File:
    uri: str
    size: int
    version: str


def list_inputs(inputs: Sequence[str]) -> list[InputVideo]:
    """Find the videos behind ``inputs``, each once, sorted by URI. Opens manifests and sidecars, but no video.

    An input is a file, a folder (searched to the bottom, by extension; hidden files are left out), a glob (``**`` goes
    down folders), the same behind any URI that fsspec knows (over HTTP: files only), or a manifest: ``.jsonl``,
    ``.csv`` or ``.parquet`` with a column ``uri`` (relative ones start at the manifest's folder) and, if you like,
    ``caption``, ``licence`` and ``source``.

    What a manifest does not say is taken from ``name.json`` (the same keys) and ``name.txt`` (a caption) beside the
    video, of which 64 KiB are read; a ``name.json`` that is no JSON object is no sidecar. Where two inputs name the
    same video, a manifest's row wins, the first of several.

    Raises `InputError` for an input that does not exist or holds no video and for a manifest that cannot be read. A
    manifest's row without a file is no error here: its ``size`` is -1 and ingesting it fails.
    """
    listings = _Listings()
    found: dict[str, tuple[_File, _Notes | None]] = {}
    for item in inputs:
        empty = True
        for file, notes in _expand(item, listings):
            empty = False
            if file.uri not in found or (notes is not None and found[file.uri][1] is None):
                found[file.uri] = file, notes
        if empty:
            raise InputError(f"no videos in {item}")
    return [_input_video(file, notes or _Notes(), listings) for _, (file, notes) in sorted(found.items())]


def _input_video(file: _File, manifest: _Notes, listings: _Listings) -> InputVideo:
    sidecar = _Notes() if file.size == _MISSING else _sidecar(file.uri, listings)
    caption = manifest.caption or sidecar.caption
    return InputVideo(
        uri=file.uri,
        size=file.size,
        version=file.version,
        caption=caption,
        caption_source=None if caption is None else "manifest" if manifest.caption else "sidecar",
        licence=manifest.licence or sidecar.licence,
        origin=manifest.origin or sidecar.origin,
    )


def _expand(item: str, listings: _Listings) -> Iterator[tuple[_File, _Notes | None]]:
    """The files behind one input, with what a manifest says about them."""
    wanted = MANIFEST_EXTENSIONS if _extension(item) in MANIFEST_EXTENSIONS else VIDEO_EXTENSIONS
    path = local_path(item)
    for file in _expand_remote(item, wanted) if path is None else _expand_local(path, wanted):
        if wanted is MANIFEST_EXTENSIONS:
            yield from _manifest(file.uri, listings)
        else:
            yield file, None


def _expand_local(path: Path, wanted: frozenset[str]) -> Iterator[_File]:
    name = _absolute(path)
    if Path(name).is_dir():
        names: Iterable[str] = _walk(name, wanted)
    elif Path(name).exists():
        names = [name]
    elif glob.has_magic(name):
        matches = glob.glob(name, recursive=True)  # noqa: PTH207 - Path.glob knows no absolute patterns
        inside = {file for match in matches if Path(match).is_dir() for file in _walk(match, wanted)}
        names = sorted(inside.union(m for m in matches if _extension(m) in wanted and Path(m).is_file()))
    else:
        raise InputError(f"input does not exist: {path}")
    for file in names:
        if (entry := _local_file(file)) is None:
            raise InputError(f"neither a file nor a folder: {file}")
        yield entry


def _expand_remote(uri: str, wanted: frozenset[str]) -> Iterator[_File]:
    filesystem, path = _filesystem(uri)
    try:
        if _over_http(uri) or (filesystem.exists(path) and not filesystem.isdir(path)):
            yield _remote_file(uri, filesystem.info(path))
            return
        if not filesystem.isdir(path) and not glob.has_magic(path):
            raise FileNotFoundError(uri)
        entries = filesystem.find(path, detail=True) if filesystem.isdir(path) else filesystem.glob(path, detail=True)
    except OSError as error:
        raise InputError(f"input does not exist or cannot be read: {uri} ({error})") from error
    for name, info in sorted(entries.items()):
        hidden = any(part.startswith(".") for part in PurePosixPath(name.removeprefix(path)).parts)
        if info.get("type") != "directory" and _extension(name) in wanted and not hidden:
            yield _remote_file("::".join([filesystem.unstrip_protocol(name), *_split(uri)[1]]), info)


def _walk(folder: str, wanted: frozenset[str]) -> Iterator[str]:
    """Files in a folder and all below. Links to folders are followed, but no folder is entered twice."""
    seen = set()
    folders, links = [folder], list[str]()
    while folders or links:
        here = folders.pop() if folders else links.pop()
        try:
            state = os.stat(here)  # noqa: PTH116
            if (state.st_dev, state.st_ino) in seen:
                continue
            seen.add((state.st_dev, state.st_ino))
            with os.scandir(here) as entries:
                inside = sorted(entries, key=lambda entry: entry.name)
        except OSError as error:
            raise InputError(f"folder cannot be read: {here} ({error})") from error
        for entry in inside:
            if entry.name.startswith("."):
                continue
            if entry.is_dir(follow_symlinks=False):
                folders.append(entry.path)
            elif entry.is_symlink() and os.path.isdir(entry.path):  # noqa: PTH112 - false, not an error, for a loop
                links.append(entry.path)
            elif _extension(entry.name) in wanted and os.path.isfile(entry.path):  # noqa: PTH113
                yield entry.path


def _local_file(path: str) -> _File | None:
    try:
        state = os.stat(path)  # noqa: PTH116
    except (OSError, ValueError):  # ValueError: a null byte.
        return None
    if not stat.S_ISREG(state.st_mode):  # A pipe or a device would be read for ever.
        return None
    return _File(_local_uri(path), state.st_size, str(state.st_mtime_ns))


def _remote_file(uri: str, info: Mapping[str, Any]) -> _File:
    version = next((str(info[key]) for key in _VERSION_KEYS if info.get(key) is not None), "")
    return _File(uri, int(info.get("size") or 0), version)


def _local_uri(path: str) -> str:
    """The path itself, unless its bytes are no text: tables hold UTF-8 only."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return Path(path).as_uri()
    return path


def _manifest(manifest: str, listings: _Listings) -> Iterator[tuple[_File, _Notes]]:
    """Its rows as files; ``manifest`` is an absolute path or a URI."""
    address, chain = _split(manifest)
    try:
        here = local_path(manifest)
        with fsspec.open(manifest, "rb") if here is None else here.open("rb") as file:
            for number, row in _rows(file, manifest):
                uri = row.get("uri")
                if not isinstance(uri, str) or not uri.strip():
                    raise InputError(f"{manifest}, row {number}: no uri")
                uri = uri.strip()
                path = local_path(uri)
                if path is not None and here is not None:
                    uri = _absolute(here.parent / path.expanduser())
                elif path is not None and not path.is_absolute():
                    uri = "::".join([f"{address.rpartition('/')[0]}/{uri}", *chain])
                yield listings.file(uri), _Notes.of(row)
    except OSError as error:
        raise InputError(f"manifest cannot be read: {manifest} ({error})") from error


def _rows(file: BinaryIO, manifest: str) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Numbered rows of a manifest: lines of text, rows of Parquet, from 1 on."""
    number = 0
    try:
        match _extension(manifest):
            case ".jsonl":
                for number, line in enumerate(file, 1):
                    if line.strip():
                        row = json.loads(line.decode("utf-8-sig"))
                        if not isinstance(row, dict):
                            raise ValueError("not a JSON object")
                        yield number, row
            case ".csv":
                reader = csv.DictReader(io.TextIOWrapper(file, "utf-8-sig", newline=""))
                _require_uri(reader.fieldnames or [])
                for row in reader:
                    number = reader.line_num
                    yield number, row
            case _:
                table = parquet.ParquetFile(file)
                _require_uri(table.schema_arrow.names)
                columns = [name for name in table.schema_arrow.names if name in _COLUMNS]
                for batch in table.iter_batches(columns=columns):
                    for row in batch.to_pylist():
                        number += 1
                        yield number, row
    except InputError as error:
        raise InputError(f"{manifest}: {error}") from None
    except (ValueError, RecursionError, csv.Error, pa.ArrowException) as error:
        raise InputError(f"{manifest}, row {number}: {error}") from error


def _require_uri(columns: Sequence[str]) -> None:
    if "uri" not in columns:
        raise InputError(f"no column uri among {', '.join(columns) or 'none'}")


class _Listings:
    """What is known about files beside one another: a remote folder is asked for once, not once per file."""

    def __init__(self) -> None:
        self._folders: dict[str, dict[str, Mapping[str, Any]]] = {}

    def file(self, uri: str) -> _File:
        """The file behind an address; its size is -1 if there is none."""
        if (path := local_path(uri)) is not None:
            return _local_file(str(path)) or _File(_local_uri(str(path)), _MISSING, "")
        info = self._info(uri)
        return _File(uri, _MISSING, "") if info is None else _remote_file(uri, info)

    def beside(self, uri: str, extension: str) -> bytes | None:
        """The start of the file with another extension beside this one, if there is such a file."""
        if (path := local_path(uri)) is not None:
            sidecar = path.with_suffix(extension)
            if not sidecar.is_file():
                return None
            with sidecar.open("rb") as file:
                return file.read(_SIDECAR_BYTES)
        address, chain = _split(uri)
        sidecar_uri = "::".join([address.removesuffix(PurePosixPath(address).suffix) + extension, *chain])
        if _over_http(uri) or self._info(sidecar_uri) is None:
            return None
        with fsspec.open(sidecar_uri, "rb") as file:
            return bytes(file.read(_SIDECAR_BYTES))

    def _info(self, uri: str) -> Mapping[str, Any] | None:
        filesystem, path = _filesystem(uri)
        parent, _, name = path.rpartition("/")
        folder = "::".join([_split(uri)[0].rpartition("/")[0], *_split(uri)[1]])
        try:
            if _over_http(uri):  # A web server lists nothing.
                return cast(Mapping[str, Any], filesystem.info(path))
            if folder not in self._folders:
                entries = filesystem.ls(parent, detail=True)
                self._folders[folder] = {PurePosixPath(entry["name"]).name: entry for entry in entries}
        except FileNotFoundError:
            self._folders.setdefault(folder, {})
        except OSError as error:
            raise InputError(f"cannot be looked up: {uri} ({error})") from error
        return self._folders[folder].get(name)


def _sidecar(uri: str, listings: _Listings) -> _Notes:
    try:
        entry = json.loads(_decode(listings.beside(uri, ".json") or b"{}"))
        notes = _Notes.of(entry) if isinstance(entry, dict) else _Notes()
    except (ValueError, RecursionError):  # Some other program's, or cut off.
        notes = _Notes()
    return replace(notes, caption=notes.caption or _text(_decode(listings.beside(uri, ".txt") or b"")))


def _decode(data: bytes) -> str:
    return data.decode("utf-8-sig", errors="replace")


def _text(value: object) -> str | None:
    """A value as text that a table can hold; nothing if it is empty or no text."""
    if not isinstance(value, str):
        return None
    return value.encode(errors="replace").decode().strip() or None


def _split(uri: str) -> tuple[str, list[str]]:
    """The address itself and what fsspec is to open on the way to it (``zip://a.mp4`` and ``s3://bucket/b.zip``)."""
    if local_path(uri) is not None:
        return uri, []
    address, *chain = uri.split("::")
    return address, chain


def _extension(uri: str) -> str:
    """In lower case, with its dot."""
    return PurePosixPath(urlsplit(uri).path if _over_http(uri) else _split(uri)[0]).suffix.lower()


def _absolute(path: Path) -> str:
    return os.path.abspath(path.expanduser())  # noqa: PTH100 - Path.absolute keeps "..", which hides duplicates


def _over_http(uri: str) -> bool:
    return uri.startswith(("http://", "https://"))


def _filesystem(uri: str) -> tuple[Any, str]:
    try:
        filesystem, path = fsspec.core.url_to_fs(uri)
    except (ImportError, ValueError) as error:
        raise InputError(f"{uri}: {error}") from error
    return filesystem, str(path)
