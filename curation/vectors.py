"""Subjects with their embeddings as arrays: as Python lists, a thousand subjects would take a hundred megabytes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from curation.workspace import Workspace
from stages.records import Subject

COMPARED = (
    "subject_id",
    "clip_id",
    "word",
    "category",
    "best",
    "face",
    "face_embedding",
    "image_embedding",
    "area",
    "time",
    "box",
    "crop_box",
    "frame_width",
    "frame_height",
    "phash",
    "shape",
    "surroundings",
    "content",
    "fingerprint",
)
"""What subjects are compared by."""
FRAME = (
    *("time", "area", "phash", "shape", "surroundings", "image_embedding"),
    *("sharpness", "border", "mask_score", "face", "face_pose"),
)
"""What their frames are compared by."""
VECTORS = ("face_embedding", "image_embedding", "surroundings", "face_pose")


def compared_subjects(workspace: Workspace, kept: set[str], *, frames: bool) -> Iterator[dict[str, Any]]:
    """Rows of these subjects with what they are compared by, a few at a time; of their frames where ``frames`` asks.

    Embeddings, surroundings and poses are 64-bit arrays, or nothing. They share the memory of what was read with them:
    copy those that are to stay.
    """
    for batch in workspace.batches(Subject, (*COMPARED, *(["frames"] if frames else []))):
        columns: dict[str, Sequence[Any]] = {
            name: vectors(batch[name]) if name in VECTORS else batch[name].to_pylist() for name in COMPARED
        }
        if frames:
            columns["frames"] = _frames(batch["frames"])
        for values in zip(*columns.values(), strict=True):
            row = dict(zip(columns, values, strict=True))
            if row["subject_id"] in kept:
                yield row


def vectors(lists: pa.ListArray) -> list[npt.NDArray[np.float64] | None]:
    """The lists of a column as arrays that share its memory."""
    lengths = lists.value_lengths().fill_null(0).to_numpy(zero_copy_only=False)
    ends = np.cumsum(lengths)
    values = lists.flatten().to_numpy(zero_copy_only=False)
    return [
        values[start:end] if is_there else None
        for start, end, is_there in zip(ends - lengths, ends, lists.is_valid().to_pylist(), strict=True)
    ]


def _frames(lists: pa.ListArray) -> list[list[dict[str, Any]]]:
    flat = lists.flatten()
    columns = {name: pc.struct_field(flat, name) for name in FRAME}
    values = [vectors(column) if name in VECTORS else column.to_pylist() for name, column in columns.items()]
    rows = (dict(zip(FRAME, row, strict=True)) for row in zip(*values, strict=True))
    return [[next(rows) for _ in range(count)] for count in lists.value_lengths().to_pylist()]
