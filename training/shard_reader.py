"""Members of shards, read by where the index says that their bytes lie: from a disk or from object storage."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import fsspec
from fsspec.utils import merge_offset_ranges

MAX_GAP = 64 * 1024
"""Bytes between two members of one shard up to which both come with one read: a request costs more than these."""
MAX_BLOCK = 64 * 1024 * 1024
"""Most bytes of such a read."""
OPEN_FILES = 64
"""Most shards that a reader keeps open."""


class Span(NamedTuple):
    """Bytes ``[offset, offset + size)`` of a file."""

    file: str
    """Name of the file beside the index."""
    offset: int
    size: int


class CorruptMemberError(ValueError):
    """Something that the index promises cannot be had. ``reason`` is a class of such cases, for counting."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


class SpanReader:
    """Reads spans of the files of one folder. Survives being forked or pickled into a loader's worker."""

    def __init__(self, uri: str) -> None:
        """``uri``: a local path, or whatever fsspec understands."""
        self._uri = uri
        self._open: OrderedDict[str, int] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        return {"_uri": self._uri, "_open": OrderedDict()}

    def read(self, spans: Sequence[Span]) -> list[bytes | CorruptMemberError]:
        """The bytes of each span, or why they cannot be had; neighbours in a file are read in one go.

        Reasons: ``no shard``, ``shard too short``, ``shard unreadable``.
        """
        # Object storage has clients that do not survive a fork: made here, in the process that reads.
        filesystem, root = fsspec.core.url_to_fs(self._uri)
        blocks = _merged(spans)
        if _is_local(filesystem):
            data = [self._pread(Path(root), block) for block in blocks]
        else:
            data = filesystem.cat_ranges(
                [f"{root}/{block.file}" for block in blocks],
                [block.offset for block in blocks],
                [block.offset + block.size for block in blocks],
                on_error="return",
            )
        return [_part(span, *_around(span, blocks, data)) for span in spans]

    def close(self) -> None:
        """Close the files that are open."""
        while self._open:
            os.close(self._open.popitem()[1])

    def __del__(self) -> None:
        self.close()

    def _pread(self, root: Path, block: Span) -> bytes | Exception:
        try:
            descriptor = self._descriptor(root, block.file)
            parts = []
            offset, end = block.offset, block.offset + block.size
            while offset < end and (part := os.pread(descriptor, end - offset, offset)):
                parts.append(part)
                offset += len(part)
        except OSError as error:
            return error
        return b"".join(parts)

    def _descriptor(self, root: Path, file: str) -> int:
        if file not in self._open:
            if len(self._open) >= OPEN_FILES:
                os.close(self._open.popitem(last=False)[1])
            self._open[file] = os.open(root / file, os.O_RDONLY)
        self._open.move_to_end(file)
        return self._open[file]


def _is_local(filesystem: Any) -> bool:
    protocol = filesystem.protocol
    return "file" in ((protocol,) if isinstance(protocol, str) else protocol)


def _merged(spans: Sequence[Span]) -> list[Span]:
    paths, starts, ends = merge_offset_ranges(
        [span.file for span in spans],
        [span.offset for span in spans],
        [span.offset + span.size for span in spans],
        max_gap=MAX_GAP,
        max_block=MAX_BLOCK,
    )
    return [Span(path, start, end - start) for path, start, end in zip(paths, starts, ends, strict=True)]


def _around(span: Span, blocks: Sequence[Span], data: Sequence[bytes | Exception]) -> tuple[Span, bytes | Exception]:
    """The block that holds a span, and what was read of it."""
    return next(
        (block, read)
        for block, read in zip(blocks, data, strict=True)
        if block.file == span.file
        and block.offset <= span.offset
        and span.offset + span.size <= block.offset + block.size
    )


def _part(span: Span, block: Span, data: bytes | Exception) -> bytes | CorruptMemberError:
    if isinstance(data, FileNotFoundError):
        return CorruptMemberError("no shard", span.file)
    if isinstance(data, Exception):
        return CorruptMemberError("shard unreadable", f"{span.file}: {data}")
    start = span.offset - block.offset
    part = data[start : start + span.size]
    if len(part) < span.size:
        return CorruptMemberError(
            "shard too short", f"{span.file} ends before byte {span.offset + span.size}, which its index names"
        )
    return part
