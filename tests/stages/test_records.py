from __future__ import annotations

import types
import typing
from dataclasses import fields, is_dataclass
from io import BytesIO
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from blank import blank
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.records import (
    RECORDS,
    Annotation,
    Failure,
    Proof,
    Record,
    Reference,
    Score,
    Subject,
    SubjectFrame,
    Verdict,
)

ALL = sorted(RECORDS.values(), key=lambda record: record.table)
by_table = pytest.mark.parametrize("record", ALL, ids=lambda record: record.table)

SCALARS: dict[Any, tuple[st.SearchStrategy[Any], pa.DataType]] = {
    str: (st.text(max_size=8), pa.string()),
    int: (st.integers(-(2**63), 2**63 - 1), pa.int64()),
    float: (st.floats(allow_nan=False), pa.float64()),
    bool: (st.booleans(), pa.bool_()),
    bytes: (st.binary(max_size=8), pa.large_binary()),
}


def values(hint: Any) -> st.SearchStrategy[Any]:
    if isinstance(hint, types.UnionType):
        return st.one_of(*(st.none() if part is type(None) else values(part) for part in typing.get_args(hint)))
    if typing.get_origin(hint) is list:
        return st.lists(values(*typing.get_args(hint)), max_size=3)
    return rows(hint) if is_dataclass(hint) else SCALARS[hint][0]


def rows(cls: Any) -> st.SearchStrategy[Any]:
    hints = typing.get_type_hints(cls)
    return st.builds(cls, **{field.name: values(hints[field.name]) for field in fields(cls)})


def column(hint: Any) -> tuple[pa.DataType, bool]:
    """Type and nullability that a hint stands for."""
    if isinstance(hint, types.UnionType):
        return column(next(part for part in typing.get_args(hint) if part is not type(None)))[0], True
    if typing.get_origin(hint) is list:
        return pa.list_(column(*typing.get_args(hint))[0]), False
    if is_dataclass(hint):
        hints = typing.get_type_hints(hint)
        return pa.struct([pa.field(field.name, *column(hints[field.name])) for field in fields(hint)]), False
    return SCALARS[hint][1], False


def stored(table: pa.Table) -> pa.Table:
    """The table after a way through bytes, as on a disk."""
    sink = BytesIO()
    pq.write_table(table, sink)
    return pq.read_table(BytesIO(sink.getvalue()))


@by_table
@settings(deadline=None, max_examples=25)
@given(data=st.data())
def test_rows_come_back_from_arrow_as_they_were(record: type[Record], data: st.DataObject) -> None:
    written = data.draw(st.lists(rows(record), max_size=3))
    table = record.to_table(written)
    assert table.schema == record.schema()
    assert [record.from_row(row) for row in table.to_pylist()] == written


@settings(deadline=None, max_examples=10)
@given(st.lists(rows(Subject), min_size=1, max_size=3))
def test_rows_come_back_from_files_as_they_were(written: list[Subject]) -> None:
    read = stored(Subject.to_table(written)).to_pylist()
    assert [Subject.from_row(row) for row in read] == written


@by_table
def test_the_schema_is_what_the_dataclass_says(record: type[Record]) -> None:
    hints = typing.get_type_hints(record)
    expected = [pa.field(field.name, *column(hints[field.name])) for field in fields(typing.cast(Any, record))]
    assert list(record.schema()) == expected


@by_table
def test_class_variables_are_no_columns_and_the_key_is_one(record: type[Record]) -> None:
    assert {"table", "key"}.isdisjoint(record.schema().names)
    assert record.schema().field(record.key) == pa.field(record.key, pa.string(), nullable=False)


@by_table
def test_no_rows_make_an_empty_table(record: type[Record]) -> None:
    table = record.to_table([])
    assert table.num_rows == 0
    assert table.schema == record.schema()


def test_tables_are_listed_under_their_names() -> None:
    assert {name: record.table for name, record in RECORDS.items()} == {name: name for name in RECORDS}
    assert {record.table for record in Record.__subclasses__()} == set(RECORDS)


def test_schemas_that_are_written_down() -> None:
    assert Verdict.schema() == pa.schema(
        [
            pa.field("id", pa.string(), False),
            pa.field("kind", pa.string(), False),
            pa.field("keep", pa.bool_(), False),
            pa.field("reasons", pa.list_(pa.string()), False),
        ]
    )
    assert Score.schema().field("phashes").type == pa.list_(pa.int64())
    assert Reference.schema().field("image").type == pa.large_binary()
    frames = Subject.schema().field("frames")
    assert not frames.nullable
    struct = frames.type.value_type
    assert [struct.field(number).name for number in range(struct.num_fields)] == [
        field.name for field in fields(SubjectFrame)
    ]
    assert struct.field("face_embedding") == pa.field("face_embedding", pa.list_(pa.float64()), True)
    assert struct.field("image_embedding") == pa.field("image_embedding", pa.list_(pa.float64()), False)
    assert struct.field("image_text") == pa.field("image_text", pa.float64(), True)
    assert struct.field("phash") == pa.field("phash", pa.int64(), False)


def test_a_reference_and_its_proof_can_be_joined_without_a_column_of_one_hiding_the_other_s() -> None:
    assert set(Reference.schema().names) & set(Proof.schema().names) == {"reference_id", "fingerprint"}


def test_a_look_has_the_same_columns_in_a_subject_and_in_its_frames() -> None:
    struct = Subject.schema().field("frames").type.value_type
    frame = {struct.field(number).name: struct.field(number) for number in range(struct.num_fields)}
    for name in ("time", "box", "crop_box", "area", "phash", "shape", "surroundings"):
        assert frame[name] == Subject.schema().field(name)


def test_nothing_and_empty_are_told_apart() -> None:
    frames = [
        blank(SubjectFrame, box=[-1.5], face_embedding=None, image_text=None, phash=-(2**63)),
        blank(SubjectFrame, crop_box=[-1], face_embedding=[], image_text=0.0, phash=2**63 - 1, mask="é"),
    ]
    subject = blank(Subject, word="狗 🐕", frames=frames, crops=[b"", b"\0"], face_embedding=None, instance=-1)

    (back,) = (Subject.from_row(row) for row in stored(Subject.to_table([subject])).to_pylist())

    assert back == subject
    assert back.frames[0].face_embedding is None
    assert back.frames[1].face_embedding == []
    assert isinstance(back.frames[0], SubjectFrame)


def test_rows_keep_their_order() -> None:
    written = [blank(Annotation, clip_id=str(number)) for number in (3, 1, 2)]
    assert Annotation.to_table(written)["clip_id"].to_pylist() == ["3", "1", "2"]


def test_a_row_that_lacks_a_column_is_an_error() -> None:
    (row,) = Failure.to_table([blank(Failure, message="m")]).to_pylist()
    del row["message"]
    with pytest.raises(KeyError, match="message"):
        Failure.from_row(row)


def test_more_columns_than_the_record_has_are_passed_over() -> None:
    verdict = Verdict("i", "clip", True, [])
    (row,) = Verdict.to_table([verdict]).to_pylist()
    assert Verdict.from_row({**row, "_rowid": 7}) == verdict
