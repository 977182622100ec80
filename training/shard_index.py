"""What the index of a folder of shards says of its samples, kept as columns: it holds for millions."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import fsspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from curation.shards import INDEX_SCHEMA
from models.errors import UserError
from training.layout import Bucket, frames_at, nearest_bucket
from training.shard_reader import Span

VIDEO, TEXT = "mp4", "txt"
"""Extensions of the members that every sample has."""
_MOST_PIXELS = 1 << 20
"""More than any side of a video."""
_PICTURE = re.compile(r"(\d{1,6})\.(\w+)\.(\d+)\.png")


class DataError(UserError, ValueError):
    """Data that cannot be trained on; the message says what is wrong with it and what to do."""


class PictureName(NamedTuple):
    """What a member's extension ``{subject}.{kind}.{n}.png`` says."""

    subject: int
    kind: str
    number: int


@dataclass(frozen=True, slots=True)
class Sample:
    """One row of the index."""

    key: str
    shard: str
    caption: str
    fps: float
    frames: int
    members: Mapping[str, Span]
    """By extension."""

    def span(self, extension: str) -> Span:
        """Where a member's bytes lie; a span of nothing where there is no such member."""
        return self.members.get(extension, Span(self.shard, 0, 0))

    def pictures(self, kinds: Mapping[str, float]) -> list[dict[str, list[str]]]:
        """For each subject that has any, largest subject first: its pictures' extensions by kind.

        Kinds without a weight above 0 are left out.
        """
        subjects: dict[int, dict[str, list[str]]] = {}
        named = ((picture, extension) for extension in self.members if (picture := picture_name(extension)))
        for picture, extension in sorted(named):
            if kinds.get(picture.kind, 0) > 0:
                subjects.setdefault(picture.subject, {}).setdefault(picture.kind, []).append(extension)
        return list(subjects.values())


@lru_cache(maxsize=4096)
def picture_name(extension: str) -> PictureName | None:
    """The parts of a member's extension; nothing for members that are no pictures."""
    found = _PICTURE.fullmatch(extension)
    return PictureName(int(found[1]), found[2], int(found[3])) if found else None


class ShardIndex:
    """The samples of one split, in the order of the index. Takes the memory of the parquet file's columns."""

    def __init__(self, rows: pa.Table, kinds: Sequence[str]) -> None:
        self._rows = rows
        self.kinds = tuple(kinds)
        """Kinds of pictures that there are, in any split."""

    @classmethod
    def read(cls, shards: str, split: str) -> ShardIndex:
        """Read the index beside the shards at that path or URI.

        Raises:
            DataError: if there is no such folder or index, if it is none, or if it has no sample of that split.
        """
        rows = _read_rows(shards)
        kinds = {picture.kind for name in _extensions(rows) if (picture := picture_name(name))}
        chosen = rows.filter(pc.equal(rows["split"], split))
        if not len(chosen):
            there = ", ".join(sorted(name or "none" for name in pc.unique(rows["split"]).to_pylist()))
            raise DataError(f"{shards} has no samples of the split {split!r}; its splits: {there or 'none'}")
        return cls(chosen, sorted(kinds))

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, row: int) -> Sample:
        column = {
            name: self._rows[name][row].as_py() for name in ("key", "shard", "caption", "fps", "frames", "members")
        }
        return Sample(
            key=column["key"],
            shard=column["shard"],
            caption=column["caption"] or "",
            fps=column["fps"],
            frames=column["frames"],
            members={
                member["extension"]: Span(column["shard"], member["offset"], member["size"])
                for member in column["members"]
            },
        )

    def shards(self) -> list[str]:
        """Names of the shards that hold the samples."""
        return sorted(pc.unique(self._rows["shard"]).to_pylist())

    def rows_of(self, shard: str) -> list[int]:
        """Numbers of the samples in a shard."""
        rows: list[int] = np.flatnonzero(_numpy(pc.equal(self._rows["shard"], shard))).tolist()
        return rows

    def without_caption(self) -> npt.NDArray[np.bool_]:
        """(samples,) which have none, or one of white space."""
        bare = pc.utf8_trim_whitespace(pc.fill_null(self._rows["caption"], ""))
        return _numpy(pc.equal(bare, ""))

    def frames_at(self, fps: float) -> npt.NDArray[np.int64]:
        """(samples,) frames of each video once it is shown at that rate."""
        rate = self._numbers("fps")
        return frames_at(self._numbers("frames"), np.where(rate > 0, rate, np.inf), fps)

    def buckets(self, buckets: Sequence[Bucket], fps: float, skip: int) -> npt.NDArray[np.int16]:
        """(samples,) number of each sample's :func:`~training.layout.nearest_bucket`; -1 where it is too short for all.

        ``skip`` frames are left out at each end.
        """
        longest = max(bucket.frames for bucket in buckets)
        room = np.clip(self.frames_at(fps) - 2 * skip, 0, longest)
        width, height = (np.clip(self._numbers(name), 0, _MOST_PIXELS).astype(np.int64) for name in ("width", "height"))
        # Millions of videos have a few sizes and lengths: these are looked at one by one.
        sizes, which = np.unique((room * _MOST_PIXELS + width) * _MOST_PIXELS + height, return_inverse=True)
        chosen = [
            nearest_bucket(size // _MOST_PIXELS % _MOST_PIXELS, size % _MOST_PIXELS, size // _MOST_PIXELS**2, buckets)
            for size in sizes.tolist()
        ]
        return np.array(chosen, np.int16)[which]

    def subjects_with(self, kinds: Mapping[str, float]) -> npt.NDArray[np.int64]:
        """(samples,) subjects of each that have a picture of a kind with a weight above 0."""
        counts = [np.zeros(0, np.int64)]
        for batch in self._rows.select(["members"]).to_batches():
            members = batch.column("members")
            extensions = pc.struct_field(members.flatten(), "extension").dictionary_encode()
            names = [picture_name(name) for name in extensions.dictionary.to_pylist()]
            subjects = [name.subject if name and kinds.get(name.kind, 0) > 0 else -1 for name in names]
            numbers, codes = np.unique(np.array(subjects, np.int64), return_inverse=True)
            seen = np.zeros((len(batch), len(numbers)), bool)
            if len(names):
                seen[_numpy(pc.list_parent_indices(members)), codes[_numpy(extensions.indices)]] = True
            counts.append(seen[:, numbers >= 0].sum(axis=1))
        return np.concatenate(counts)

    def _numbers(self, name: str) -> npt.NDArray[np.float64]:
        return _numpy(pc.cast(pc.fill_null(self._rows[name], 0), pa.float64()))


def _read_rows(shards: str) -> pa.Table:
    filesystem, root = fsspec.core.url_to_fs(shards)
    path = f"{root}/index.parquet"
    if not filesystem.exists(path):
        if not filesystem.exists(root):
            raise DataError(f"there is no folder {shards}; shards are made by `s2v curate`, in its workspace's shards/")
        raise DataError(f"{shards} has no index.parquet: it is no folder of shards, or nothing was packed yet")
    try:
        with filesystem.open(path, "rb") as file:
            table = pq.read_table(file)
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{shards}/index.parquet cannot be read: {error}; pack the shards again") from error
    missing = [name for name in INDEX_SCHEMA.names if name not in table.column_names]
    if missing:
        raise DataError(f"{shards}/index.parquet has no column {', '.join(missing)}; pack the shards again")
    try:
        return table.select(INDEX_SCHEMA.names).cast(INDEX_SCHEMA)
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError) as error:
        raise DataError(
            f"{shards}/index.parquet has a column of another type: {error}; pack the shards again"
        ) from error


def _extensions(rows: pa.Table) -> set[str]:
    batches = (batch.column("members").flatten() for batch in rows.select(["members"]).to_batches())
    return {name for members in batches for name in pc.unique(pc.struct_field(members, "extension")).to_pylist()}


def _numpy(column: Any) -> npt.NDArray[Any]:
    return np.asarray(column.to_numpy(zero_copy_only=False) if isinstance(column, pa.Array) else column.to_numpy())
