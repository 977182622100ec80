from __future__ import annotations

import io
import shutil
from collections import Counter
from pathlib import Path

import pytest
from rich.console import Console

from curation.progress import Progress
from curation.stats import Level, collect, show, show_failures
from curation.steps import proved_references
from curation.workspace import Workspace
from stages.records import Failure, Verdict

HOSTILE = ["[red]", "[/red]", "[bold]x[/]", "[/]", "\\[red]", "a\\", "[link=file:///etc]x", ":warning:", "[[", "]"]


def printed(function, *arguments, width: int = 300) -> str:
    console = Console(file=io.StringIO(), width=width, force_terminal=True)
    function(*arguments, console)
    return console.file.getvalue()


def plain(text: str) -> str:
    """Without the colours that rich itself puts in."""
    import re

    return re.sub(r"\x1b\[[0-9;]*m", "", text)


@pytest.fixture
def levels(workspace) -> dict[str, Level]:
    return {level.name: level for level in collect(workspace).levels}


class TestCollect:
    def test_inputs(self, levels) -> None:
        inputs = levels["inputs"]
        assert (inputs.found, inputs.kept) == (7, 5)
        assert inputs.reasons == {"UnreadableVideo": 1, "duplicate": 1}

    def test_clips(self, levels) -> None:
        clips = levels["clips"]
        assert (clips.found, clips.kept, clips.reasons) == (5, 4, Counter(dark=1))

    def test_subjects_and_references(self, levels) -> None:
        assert (levels["clips with a subject"].found, levels["clips with a subject"].kept) == (4, 4)
        assert (levels["subjects"].found, levels["subjects"].kept) == (5, 5)
        assert (levels["references"].found, levels["references"].kept) == (26, 26)

    def test_kinds(self, workspace) -> None:
        kinds = {level.name: level.found for level in collect(workspace).kinds}
        assert kinds == {"original": 5, "other_frame": 10, "cross_clip": 6, "inpainted": 5}

    def test_medians_are_those_of_what_passed(self, workspace) -> None:
        found = collect(workspace).medians
        assert list(found) == ["original", "other_frame", "cross_clip", "inpainted"]
        of_kind = [row for row in proved_references(workspace) if row["kind"] == "cross_clip"]
        middle = sorted(row["context_difference"] for row in of_kind)[len(of_kind) // 2]
        assert found["cross_clip"]["context_difference"] == pytest.approx(middle, rel=0.2)
        assert "copy_risk" not in found["original"]
        (header,) = [
            line
            for line in plain(printed(show, collect(workspace), workspace)).splitlines()
            if line.startswith("┃ medians ")
        ]
        assert header.index("identity") < header.index("difference") < header.index("copy")
        workspace.replace(Verdict, [])
        assert collect(workspace).medians == {}

    def test_every_loss_has_a_reason(self, levels) -> None:
        for level in levels.values():
            assert level.found - level.kept <= sum(level.reasons.values()), level
            assert level.kept <= level.found

    def test_samples_hours_and_shards(self, workspace) -> None:
        stats = collect(workspace)
        assert sum(stats.samples.values()) == 4
        assert stats.hours["read"] * 3600 == pytest.approx(16.5, abs=0.2)
        assert stats.hours["in samples"] * 3600 == pytest.approx(13.5)
        assert sum(shard["samples"] for shard in stats.shards) == 4
        assert stats.failures == 1
        assert stats.licences == {"not stated": 5}

    def test_failures_of_other_steps_are_told(self, workspace) -> None:
        workspace.append([Failure("id", "annotate/ground", "clip", "uri", "ValueError", "bad", "f")])
        stats = collect(workspace)
        reasons = Counter()
        for level in stats.levels:
            reasons += level.reasons
        assert reasons["failed in annotate/ground"] == 1
        assert stats.failures == 2

    def test_an_empty_workspace(self, empty) -> None:
        stats = collect(empty)
        assert all((level.found, level.kept) == (0, 0) for level in stats.levels)
        assert stats.samples == {}
        assert "Funnel" in plain(printed(show, stats, empty))

    def test_a_run_that_stopped_after_each_step(self, empty, config, videos, curate) -> None:
        inputs = [videos / "a.mp4", videos / "dark.mp4", videos / "torn.mp4"]
        for step in ("ingest", "split", "annotate", "select", "references", "verify", "encode"):
            curate(empty, config, inputs, steps=[step])
            stats = collect(empty)
            assert stats.levels[0].found == 3
            for level in stats.levels:
                assert level.found - level.kept <= sum(level.reasons.values()), (step, level)
            assert plain(printed(show, stats, empty))


class TestShow:
    def test_tells_the_funnel(self, workspace) -> None:
        text = plain(printed(show, collect(workspace), workspace))
        for part in ("dark 1", "UnreadableVideo 1", "cross_clip", "4 samples", "1 failure:", "s2v failures"):
            assert part in text
        for shard in collect(workspace).shards:
            assert workspace.path("shards", shard["file"]) in text

    @pytest.mark.parametrize("name", ["[red]ws[/red]", "[/]", "a\\[b", "a[/b]"])
    def test_a_workspace_with_markup_in_its_name(self, finished, tmp_path, name) -> None:
        workspace = Workspace.open(shutil.copytree(finished.folder, tmp_path / name))
        text = plain(printed(show, collect(workspace), workspace))
        assert f"Funnelof{workspace.uri}" in "".join(text.split()), "wrapped, but whole"
        assert f"s2v failures --workspace {workspace.uri}" in text


class TestShowFailures:
    def test_none(self, empty) -> None:
        assert plain(printed(show_failures, empty)).strip() == "no failures"

    def test_tells_step_place_error_and_message(self, workspace, videos) -> None:
        text = plain(printed(show_failures, workspace))
        for part in ("ingest", str(videos / "torn.mp4"), "UnreadableVideo", "moov"):
            assert part in text

    @pytest.mark.parametrize("text", HOSTILE)
    def test_prints_markup_as_it_stands(self, empty, text) -> None:
        where, message = f"/videos/{text}.mp4", f"cannot open <{text}>"
        empty.append([Failure("id", "ingest", "item", where, "ValueError", message, "f")])
        shown = plain(printed(show_failures, empty))
        assert where in shown
        assert message in shown

    def test_prints_nothing_that_steers_the_terminal(self, empty) -> None:
        empty.append([Failure("id", "ingest", "i", "\x1b]0;owned\x07", "E", "\x1b[2J\x9b31m\r\u202efoo\0", "f")])
        shown = plain(printed(show_failures, empty))
        assert not {"\x1b", "\x07", "\x9b", "\r", "\u202e", "\0"} & set(shown)
        assert "owned" in shown

    def test_long_messages_are_there_to_the_end(self, empty) -> None:
        empty.append([Failure("id", "ingest", "i", "u" * 300, "E", "word " * 200 + "end", "f")])
        shown = plain(printed(show_failures, empty, width=80))
        assert "end" in shown
        assert max(map(len, shown.splitlines())) <= 80


class TestHostileRun:
    def test_from_names_and_captions_to_the_screen(self, empty, config, videos, tmp_path, curate) -> None:
        folder = tmp_path / "[blink]"
        folder.mkdir()
        for number, text in enumerate(["[red]", "[bold]x["]):
            shutil.copy(videos / f"{'ad'[number]}.mp4", folder / f"{text}.mp4")
            (folder / f"{text}.txt").write_text(f"A cat {text} \x1b[2J")
        (folder / "[green].mp4").write_bytes(b"no video")
        curate(empty, config, [folder])
        assert len(collect(empty).shards) >= 1
        assert str(folder / "[green].mp4") in plain(printed(show_failures, empty))


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_says_what_is_done(terminal) -> None:
    console = Console(file=io.StringIO(), width=120, force_terminal=terminal)
    progress = Progress(console)
    with progress.step("annotate", 3, 30.0) as advance:
        advance(2, 0, 20.0)
        advance(1, 1, 10.0)
    progress.passed("pack", 0)
    text = plain(console.file.getvalue())
    assert "3/3" in text
    assert "1 failed" in text
    assert "nothing to do" in text
    assert Path(__file__).exists()
