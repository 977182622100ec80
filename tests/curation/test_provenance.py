from __future__ import annotations

import io
import shutil

import pytest
from rich.console import Console

from curation.provenance import show_row, trace
from stages.records import RECORDS, Annotation, Clip, Failure, Reference, Score, Source, Subject, Verdict


def printed(workspace, wanted: str) -> str:
    console = Console(file=io.StringIO(), width=400)
    assert show_row(workspace, wanted, console)
    return console.file.getvalue()


class TestTrace:
    def test_a_pair_reaches_both_its_videos(self, workspace, table_of, video_names) -> None:
        references, subjects, clips = (table_of(workspace, record) for record in (Reference, Subject, Clip))
        names = video_names(workspace)
        for wanted, row in references.items():
            chain = list(trace(workspace, wanted))
            assert chain[0] == (Reference, row)
            assert (Verdict, workspace.read(Verdict, where=f"id = '{wanted}'").to_pylist()[0]) in chain
            found = {
                record: [entry for kind, entry in chain if kind is record]
                for record in (Subject, Clip, Score, Annotation)
            }
            wanted_subjects = list(dict.fromkeys([row["subject_id"], row["source_subject_id"]]))
            assert [entry["subject_id"] for entry in found[Subject]] == wanted_subjects
            wanted_clips = [subjects[subject]["clip_id"] for subject in wanted_subjects]
            for record in (Clip, Score, Annotation):
                assert [entry["clip_id"] for entry in found[record]] == wanted_clips
            sources = [entry["video_id"] for kind, entry in chain if kind is Source]
            assert sources == [clips[clip]["video_id"] for clip in wanted_clips]
            if row["kind"] == "cross_clip":
                assert len({names[video] for video in sources}) == 2

    def test_the_file_is_the_one_that_was_decoded(self, workspace, table_of, videos) -> None:
        """Of several copies, the first by name."""
        (copied,) = (
            row["video_id"] for row in table_of(workspace, Source).values() if row["uri"] == str(videos / "z_copy.mp4")
        )
        (clip,) = (row["clip_id"] for row in table_of(workspace, Clip).values() if row["video_id"] == copied)
        assert [row["uri"] for kind, row in trace(workspace, clip) if kind is Source] == [str(videos / "a.mp4")]
        both = [row["uri"] for kind, row in trace(workspace, copied)]
        assert sorted(both) == [str(videos / "a.mp4"), str(videos / "z_copy.mp4")]

    @pytest.mark.parametrize("record", [Source, Clip, Subject, Reference, Failure], ids=lambda record: record.table)
    def test_every_id_is_found(self, workspace, table_of, record) -> None:
        for wanted, row in table_of(workspace, record).items():
            assert (record, row) in list(trace(workspace, wanted))

    def test_a_dropped_clip_tells_its_verdict(self, workspace, table_of) -> None:
        (dark,) = (row["id"] for row in table_of(workspace, Verdict).values() if row["reasons"] == ["dark"])
        assert [row["reasons"] for kind, row in trace(workspace, dark) if kind is Verdict] == [["dark"]]

    @pytest.mark.parametrize("wanted", ["", "nothing", "' OR '1' = '1", "it's", "%", "\\", "x" * 5000, "[red]"])
    def test_what_is_not_there(self, workspace, wanted) -> None:
        assert list(trace(workspace, wanted)) == []


class TestShow:
    def test_leads_from_a_reference_to_the_video(self, workspace, table_of, videos) -> None:
        wanted, row = next(
            (key, row) for key, row in table_of(workspace, Reference).items() if row["kind"] == "cross_clip"
        )
        text = printed(workspace, wanted)
        for part in ("references", "subjects", "clips", "scores", "annotations", "sources", str(videos), "A cat rolls"):
            assert part in text
        assert f"method: {row['method']}" in text
        assert f"image: {len(row['image'])} bytes" in text
        assert "kind: cross_clip" in text

    def test_every_row_can_be_shown(self, workspace, table_of) -> None:
        for record in RECORDS.values():
            wanted = next(iter(table_of(workspace, record)))
            assert wanted in printed(workspace, wanted)

    @pytest.mark.parametrize("wanted", ["nothing", "[/red]", "[bold]"])
    def test_says_what_is_not_there(self, workspace, wanted) -> None:
        console = Console(file=io.StringIO(), width=400)
        assert not show_row(workspace, wanted, console)
        assert f"'{wanted}'" in console.file.getvalue()
        assert workspace.uri in console.file.getvalue()

    def test_prints_hostile_text_as_it_stands(self, empty, config, videos, tmp_path, curate, table_of) -> None:
        path = tmp_path / "[red]\\[b.mp4"
        shutil.copy(videos / "a.mp4", path)
        caption = "A cat [/red] [bold] \\[x] \\ \x1b[2J \u202e :cat: " + "long " * 50
        path.with_suffix(".txt").write_text(caption)
        curate(empty, config, [path], steps=["ingest", "split", "annotate"])
        (clip,) = table_of(empty, Clip)
        text = printed(empty, clip)
        assert f"uri: {path}" in text
        assert "caption: A cat [/red] [bold] \\[x] \\ ?[2J ? :cat: long" in text
        assert "..." in text
        assert not {"\x1b", "\u202e"} & set(text)
