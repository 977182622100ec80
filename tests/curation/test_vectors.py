from __future__ import annotations

import numpy as np
import pyarrow as pa

from curation.steps import kept_ids
from curation.vectors import COMPARED, compared_subjects, vectors
from stages.records import Subject


def test_lists_become_arrays_with_gaps_where_nothing_is() -> None:
    column = pa.array([[9.0], None, [1.0, 2.0], [], [3.0]], pa.list_(pa.float64()))
    for part in (column, column[1:], column[1:4], column[:0]):
        found = vectors(part)
        assert [value if value is None else value.tolist() for value in found] == part.to_pylist()
    assert all(value.dtype == np.float64 for value in vectors(column) if value is not None)


def plain(value: object) -> object:
    return value.tolist() if isinstance(value, np.ndarray) else value


def test_subjects_are_what_the_table_holds(workspace, table_of) -> None:
    table, kept = table_of(workspace, Subject), kept_ids(workspace, "subject")
    with_frames = list(compared_subjects(workspace, kept, frames=True))
    assert {row["subject_id"] for row in with_frames} == kept
    for row in with_frames:
        stored = table[row["subject_id"]]
        assert {name: plain(row[name]) for name in COMPARED} == {name: stored[name] for name in COMPARED}
        assert isinstance(row["image_embedding"], np.ndarray)
        assert [plain(frame["image_embedding"]) for frame in row["frames"]] == [
            frame["image_embedding"] for frame in stored["frames"]
        ]
    (first, *_) = compared_subjects(workspace, kept, frames=False)
    assert set(first) == set(COMPARED)
    assert list(compared_subjects(workspace, set(), frames=True)) == []
