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
    "fingerprint",
)
"""What subjects are compared by."""


def compared_subjects(workspace: Workspace, kept: set[str], *, frames: bool) -> Iterator[dict[str, Any]]:
    """Rows of these subjects with what they are compared by, a few at a time.

    ``face_embedding`` and ``image_embedding`` are 64-bit arrays ``(embedding,)`` or nothing, and so is the only value
    of each frame, ``image_embedding``, where ``frames`` asks for them. Arrays share the memory of what was read with
    them: copy those that are to stay.
    """
    for batch in workspace.batches(Subject, (*COMPARED, *(["frames"] if frames else []))):
        columns: dict[str, Sequence[Any]] = {
            name: vectors(batch[name]) if name.endswith("_embedding") else batch[name].to_pylist() for name in COMPARED
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
    embeddings = iter(vectors(pc.struct_field(lists.flatten(), "image_embedding")))
    return [
        [{"image_embedding": next(embeddings)} for _ in range(count)] for count in lists.value_lengths().to_pylist()
    ]
