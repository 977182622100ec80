from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import lance
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from curation.workspace import ROWS_PER_DELETE, Workspace, WorkspaceError
from models.errors import UserError
from stages.records import RECORDS, Encoding, Failure, Subject, Verdict

HOSTILE = [
    "it's",
    "''",
    "'; DROP TABLE verdicts; --",
    'a"b',
    "a\\",
    "a\\'b",
    "[red]",
    "%",
    "_",
    "",
    " ",
    "\n",
    "ü\u202e🐼",
    "x" * 9000,
]


def verdict(name: str) -> Verdict:
    return Verdict(id=name, kind="clip", keep=False, reasons=["dark"])


@pytest.fixture
def filled(empty: Workspace) -> Workspace:
    empty.append([verdict(name) for name in HOSTILE])
    return empty


class TestOpen:
    def test_makes_every_table_empty(self, empty) -> None:
        for record in RECORDS.values():
            assert empty.table(record).schema == record.schema()
            assert empty.table(record).count_rows() == 0

    def test_again_changes_nothing(self, filled) -> None:
        again = Workspace.open(filled.uri, create=True)
        assert again == filled
        assert again.column(Verdict, "id") == HOSTILE
        assert again.table(Verdict).version == filled.table(Verdict).version

    def test_what_is_no_workspace(self, tmp_path) -> None:
        with pytest.raises(WorkspaceError, match=r"nowhere is no workspace.*s2v curate"):
            Workspace.open(tmp_path / "nowhere")
        assert not (tmp_path / "nowhere").exists()

    def test_finishes_a_workspace_that_was_being_made(self, empty, tmp_path) -> None:
        shutil.rmtree(empty.path("tables", "failures.lance"))
        shutil.rmtree(empty.path("tables", "clips.lance", "_versions"))
        again = Workspace.open(empty.uri, create=True)
        assert all(again.table(record).count_rows() == 0 for record in RECORDS.values())

    @pytest.mark.parametrize("create", [True, False])
    def test_tables_of_another_version(self, empty, create) -> None:
        schema = pa.schema([*Failure.schema().remove(0), pa.field("mood", pa.string())])
        lance.write_dataset(schema.empty_table(), empty.path("tables", "failures.lance"), mode="overwrite")
        with pytest.raises(WorkspaceError, match="another version") as error:
            Workspace.open(empty.uri, create=create)
        assert "unknown: ['mood'], missing: ['failure_id']" in str(error.value)
        assert "--workspace" in str(error.value)

    def test_tables_of_other_types(self, empty) -> None:
        fields = [field.with_type(pa.int64()) if field.name == "step" else field for field in Failure.schema()]
        lance.write_dataset(pa.schema(fields).empty_table(), empty.path("tables", "failures.lance"), mode="overwrite")
        with pytest.raises(WorkspaceError, match="types changed"):
            Workspace.open(empty.uri, create=True)

    def test_a_table_that_is_not_there(self, empty) -> None:
        shutil.rmtree(empty.path("tables", "failures.lance"))
        with pytest.raises(UserError, match="failures"):
            Workspace.open(empty.uri)

    def test_a_file_in_the_way(self, tmp_path) -> None:
        (tmp_path / "file").write_text("mine")
        with pytest.raises(UserError, match="file"):
            Workspace.open(tmp_path / "file", create=True)
        assert (tmp_path / "file").read_text() == "mine"

    def test_home_and_relative_paths(self, tmp_path, monkeypatch) -> None:
        monkeypatch.setenv("HOME", str(tmp_path))
        monkeypatch.chdir(tmp_path)
        assert Workspace.open("~/w", create=True) == Workspace.open("./x/../w") == Workspace.open(tmp_path / "w")

    @pytest.mark.parametrize("name", ["with space", "[red]", "it's", "ünïcode 🐼", "100%", "a#b?c"])
    def test_odd_names(self, tmp_path, name) -> None:
        workspace = Workspace.open(tmp_path / name, create=True)
        workspace.append([verdict("a")])
        assert Workspace.open(tmp_path / name).column(Verdict, "id") == ["a"]
        with workspace.writing("shards", "a.txt") as file:
            file.write_text("b")
        assert (tmp_path / name / "shards" / "a.txt").read_text() == "b"


class TestRows:
    def test_come_back_as_they_were(self, empty) -> None:
        rows = [
            Encoding("id", bytes(range(256)) * 5000, 2, 4, 6, 8.5, "print"),
            Encoding("other", b"", 0, 0, 0, 0.0, ""),
        ]
        empty.append(rows)
        assert empty.records(Encoding) == rows
        assert empty.records(Encoding, where="clip_id = 'other'") == rows[1:]
        assert empty.read(Encoding, ["fps", "clip_id"]).column_names == ["fps", "clip_id"]

    def test_fragments_are_no_rows_until_committed(self, empty) -> None:
        first, second = (empty.write_fragments(Verdict, [verdict(name)]) for name in "ab")
        assert empty.table(Verdict).count_rows() == 0
        before = empty.table(Verdict).version
        empty.commit(Verdict, [second, first])
        assert sorted(empty.column(Verdict, "id")) == ["a", "b"]
        assert empty.table(Verdict).version == before + 1, "one step"

    def test_nothing_to_commit_makes_no_version(self, empty) -> None:
        before = empty.table(Verdict).version
        empty.commit(Verdict, [])
        empty.append([])
        assert empty.delete(Verdict, "id", []) == 0
        assert empty.table(Verdict).version == before

    def test_are_replaced_in_one_step(self, filled) -> None:
        before = filled.table(Verdict).version
        filled.replace(Verdict, [verdict("only")])
        assert filled.column(Verdict, "id") == ["only"]
        assert filled.table(Verdict).version == before + 1
        filled.replace(Verdict, [])
        assert filled.table(Verdict).count_rows() == 0
        assert filled.table(Verdict).schema == Verdict.schema()

    def test_are_taken_by_the_ids_of_a_version(self, filled) -> None:
        dataset = filled.table(Verdict)
        found = dataset.to_table(columns=["id"], with_row_id=True)
        where = dict(zip(found["id"].to_pylist(), found["_rowid"].to_pylist(), strict=True))
        filled.delete(Verdict, "id", ["it's"])
        (row,) = filled.take(Verdict, [where["it's"]], dataset.version)
        assert row == verdict("it's")

    def test_are_located_by_their_keys(self, workspace) -> None:
        keys = workspace.column(Subject, "subject_id")[::-1]
        keys.append(keys[0])
        found, version = workspace.locate(Subject, keys)
        taken = workspace.take(Subject, found["_rowid"].to_pylist(), version)
        assert [row.subject_id for row in taken] == keys
        assert found["fingerprint"].to_pylist() == [row.fingerprint for row in taken]
        (row,) = workspace.take_rows(Subject, found["_rowid"].to_pylist()[:1], version, ["word", "area"])
        assert row == {"word": taken[0].word, "area": taken[0].area}
        with pytest.raises(KeyError, match="subjects: no row nobody"):
            workspace.locate(Subject, [keys[0], "nobody"])
        assert workspace.locate(Subject, [])[0].num_rows == 0

    def test_come_one_by_one_as_they_stand(self, workspace, monkeypatch) -> None:
        monkeypatch.setattr("curation.workspace.ROWS_PER_BATCH", 2)
        for record in (Subject, Verdict):
            assert list(workspace.rows(record)) == workspace.read(record).to_pylist()
        passed = workspace.read(Verdict, ["id"], "keep").to_pylist()
        assert list(workspace.rows(Verdict, ["id"], "keep")) == passed != []


class TestDelete:
    @pytest.mark.parametrize("name", HOSTILE)
    def test_only_what_is_named(self, filled, name) -> None:
        assert filled.delete(Verdict, "id", [name]) == 1
        assert filled.column(Verdict, "id") == [other for other in HOSTILE if other != name]

    def test_counts_rows_that_were_there(self, filled) -> None:
        assert filled.delete(Verdict, "id", ["it's", "it's", "nowhere"]) == 1
        assert filled.delete(Verdict, "kind", ["clip"]) == len(HOSTILE) - 1

    def test_more_than_one_statement_holds(self, empty) -> None:
        names = [f"{number:06d}" for number in range(2 * ROWS_PER_DELETE + 3)]
        empty.append([verdict(name) for name in names])
        assert empty.delete(Verdict, "id", names[1:]) == len(names) - 1
        assert empty.column(Verdict, "id") == names[:1]

    @settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(st.sets(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")), min_size=1, max_size=8))
    def test_any_text(self, empty, names) -> None:
        gone, *stay = sorted(names)
        empty.replace(Verdict, [verdict(name) for name in sorted(names)])
        assert empty.delete(Verdict, "id", [gone]) == 1
        assert empty.column(Verdict, "id") == stay


class TestTidy:
    def test_keeps_rows_and_drops_files(self, filled) -> None:
        for number in range(5):
            filled.append([verdict(f"more-{number}")])
        filled.delete(Verdict, "id", ["more-2"])
        lost = filled.write_fragments(Verdict, [verdict("never committed")])
        assert lost
        rows = sorted(filled.records(Verdict), key=lambda row: row.id)
        filled.tidy()
        assert sorted(filled.records(Verdict), key=lambda row: row.id) == rows
        assert len(filled.table(Verdict).get_fragments()) == 1
        assert len(list(Path(filled.path("tables", "verdicts.lance", "data")).iterdir())) == 1

    def test_again_makes_no_version(self, filled) -> None:
        filled.tidy()
        versions = {record: filled.table(record).version for record in RECORDS.values()}
        filled.tidy()
        assert {record: filled.table(record).version for record in RECORDS.values()} == versions


class TestWriting:
    def test_whole_or_not_at_all(self, empty) -> None:
        with empty.writing("shards", "a.txt") as file:
            file.write_text("old")
        target = Path(empty.path("shards", "a.txt"))

        def fail() -> None:
            with empty.writing("shards", "a.txt") as file:
                file.write_text("half")
                assert target.read_text() == "old"
                raise RuntimeError

        with pytest.raises(RuntimeError):
            fail()
        assert target.read_text() == "old"
        assert list(target.parent.iterdir()) == [target]


HOLDER = """
import sys
from curation.workspace import Workspace
with Workspace(sys.argv[1]).locked():
    print("held", flush=True)
    sys.stdin.read()
"""


class TestLock:
    @pytest.fixture
    def holder(self, empty):
        """Another process that holds the workspace."""
        process = subprocess.Popen(
            [sys.executable, "-c", HOLDER, empty.uri], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()
        process.communicate()

    def test_refuses_a_second_run_and_lets_go_when_the_first_dies(self, empty, holder) -> None:
        with pytest.raises(WorkspaceError) as error, empty.locked():
            pytest.fail("two runs at once")
        assert f"process {holder.pid}" in str(error.value)
        assert empty.uri in str(error.value)
        assert empty.column(Verdict, "id") == [], "reading needs no lock"
        holder.kill()
        holder.wait()
        with empty.locked():
            pass

    def test_can_be_taken_again(self, empty) -> None:
        for _ in range(2):
            with empty.locked():
                pass


def test_an_object_store_is_not_locked_by_a_file() -> None:
    workspace = Workspace("s3://bucket/prefix/")
    assert not workspace.is_local
    assert workspace.path("shards", "a.tar") == "s3://bucket/prefix/shards/a.tar"
    with workspace.locked():
        pass


def test_uris_work_like_paths(tmp_path) -> None:
    workspace = Workspace.open((tmp_path / "w").as_uri(), create=True)
    workspace.append([verdict("a")])
    with workspace.writing("shards", "a.txt") as file:
        file.write_text("b")
    assert (tmp_path / "w" / "shards" / "a.txt").read_text() == "b"
    assert Workspace.open(tmp_path / "w").records(Verdict) == [verdict("a")]


def test_pandas_stays_out_until_a_frame_is_asked_for() -> None:
    code = """
import sys
import curation.workspace
import pyarrow
pyarrow.array([1])
assert "pandas" not in sys.modules, "imported"
assert pyarrow.table({"a": [1]}).to_pandas()["a"].sum() == 1
"""
    subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], check=True, timeout=120)
