from __future__ import annotations

import os
import pickle
from pathlib import Path

import fsspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from training import shard_reader
from training.shard_reader import CorruptMemberError, Span, SpanReader

CONTENT = {"a.tar": bytes(range(256)) * 1000, "b.tar": os.urandom(300_000)}
SPANS = st.lists(
    st.builds(Span, st.sampled_from(sorted(CONTENT)), st.integers(0, 255_000), st.integers(0, 900)), max_size=12
)


def open_files() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


@pytest.fixture(scope="module", params=["local", "memory"])
def folder(request, tmp_path_factory: pytest.TempPathFactory):
    """The same two files on a disk and in fsspec's memory."""
    uri = str(tmp_path_factory.mktemp("spans")) if request.param == "local" else "memory://spans"
    filesystem, root = fsspec.core.url_to_fs(uri)
    for name, data in CONTENT.items():
        filesystem.pipe_file(f"{root}/{name}", data)
    yield uri
    if request.param == "memory":
        filesystem.rm(root, recursive=True)


@given(spans=SPANS)
def test_reads_what_is_there(folder, spans) -> None:
    assert SpanReader(folder).read(spans) == [CONTENT[file][start : start + size] for file, start, size in spans]


def test_reads_neighbours_in_one_go_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.tar").write_bytes(bytes(1_000_000))
    reads = []

    def pread(descriptor: int, size: int, offset: int) -> bytes:
        reads.append((offset, size))
        return original(descriptor, size, offset)

    original = os.pread
    monkeypatch.setattr(os, "pread", pread)
    SpanReader(str(tmp_path)).read([Span("a.tar", 900_000, 10), Span("a.tar", 512, 100), Span("a.tar", 2048, 50)])
    assert sorted(reads) == [(512, 2048 + 50 - 512), (900_000, 10)]


def test_says_what_cannot_be_had(folder) -> None:
    whole, beyond, across, missing = SpanReader(folder).read(
        [Span("b.tar", 299_000, 500), Span("b.tar", 10**9, 5), Span("b.tar", 299_990, 20), Span("c.tar", 0, 5)]
    )
    assert whole == CONTENT["b.tar"][299_000:299_500]
    assert [error.reason for error in (beyond, across, missing)] == ["shard too short", "shard too short", "no shard"]
    assert "b.tar" in across.detail


def test_a_part_of_a_block_is_of_use(folder) -> None:
    """A torn end takes only the members that it held."""
    first, second = SpanReader(folder).read([Span("b.tar", 299_000, 100), Span("b.tar", 299_900, 200)])
    assert first == CONTENT["b.tar"][299_000:299_100]
    assert isinstance(second, CorruptMemberError)


def test_what_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "a.tar").mkdir()
    (error,) = SpanReader(str(tmp_path)).read([Span("a.tar", 0, 5)])
    assert error.reason == "shard unreadable"


def test_a_shard_that_is_replaced_is_read_as_it_was(tmp_path: Path) -> None:
    """Packing again renames new shards over those that the index of a run in progress knows."""
    (tmp_path / "a.tar").write_bytes(b"old")
    reader = SpanReader(str(tmp_path))
    assert reader.read([Span("a.tar", 0, 3)]) == [b"old"]
    (tmp_path / "new").write_bytes(b"new")
    (tmp_path / "new").rename(tmp_path / "a.tar")
    assert reader.read([Span("a.tar", 0, 3)]) == [b"old"]


def test_keeps_few_files_open_and_closes_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard_reader, "OPEN_FILES", 3)
    for number in range(9):
        (tmp_path / f"{number}.tar").write_bytes(b"x")
    before = open_files()
    reader = SpanReader(str(tmp_path))
    for _ in range(2):
        assert reader.read([Span(f"{number}.tar", 0, 1) for number in range(9)]) == [b"x"] * 9
        assert open_files() == before + 3
    reader.close()
    assert open_files() == before


def test_can_be_sent_to_another_process(folder) -> None:
    reader = SpanReader(folder)
    reader.read([Span("a.tar", 0, 5)])
    copy = pickle.loads(pickle.dumps(reader))
    reader.close()
    assert copy.read([Span("a.tar", 5, 5)]) == [CONTENT["a.tar"][5:10]]
