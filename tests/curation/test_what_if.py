from __future__ import annotations

import io
import re
from typing import Any

import pytest
from counting_backends import calls
from rich.console import Console

from curation.config import Config, select_with
from curation.shards import read_index
from curation.what_if import show_what_if
from curation.workspace import Workspace
from stages.records import RECORDS, Score, Verdict


def told(workspace: Workspace, config: Config, *overrides: str) -> tuple[dict[str, tuple[int, int]], str]:
    """``(now, then)`` by name, and the whole text."""
    console = Console(file=io.StringIO(), width=200)
    show_what_if(workspace, config, select_with(config, overrides), console)
    text = console.file.getvalue()
    rows = re.findall(r"^\W*(\w[\w :]*?) +│ +(\d+) │ +(\d+) │", text, re.MULTILINE)
    return {name: (int(now), int(then)) for name, now, then in rows}, text


def counted(workspace: Workspace) -> dict[str, int]:
    """What a run left: how much passes, and how many samples there are."""
    verdicts = workspace.records(Verdict)
    kept = {
        f"{kind}s": sum(row.keep for row in verdicts if row.kind == kind) for kind in ("clip", "subject", "reference")
    }
    return {**kept, "samples": len(read_index(workspace.path("shards")))}


def as_changes(overrides: tuple[str, ...]) -> dict[str, Any]:
    return {f"select.{key}": float(value) for key, value in (override.split("=") for override in overrides)}


CASES = {
    "as it is": (),
    "brighter clips": ("clip.min_brightness=118",),
    "no clip": ("clip.min_brightness=255",),
    "no duplicates at all": ("clip.duplicate_distance=7.9",),
    "larger subjects": ("subject.min_area=0.13755",),
    "no subject": ("subject.min_short_side=400",),
    "sharper references": ("reference.min_sharpness=40",),
    "no reference": ("reference.min_sharpness=10000",),
    "of everything a little": ("clip.min_brightness=115", "subject.min_sharpness=36", "reference.min_sharpness=47"),
}


class TestEquals:
    @pytest.mark.parametrize("overrides", CASES.values(), ids=CASES)
    def test_what_a_run_yields(self, workspace, config, configure, curate, overrides) -> None:
        now = counted(workspace)
        rows, _ = told(workspace, config, *overrides)
        assert {name: rows[name][0] for name in now} == now
        curate(workspace, configure(as_changes(overrides)), [])
        then = counted(workspace)
        assert {name: rows[name][1] for name in then} == then

    def test_what_a_run_yields_when_thresholds_are_loosened_again(self, workspace, config, configure, curate) -> None:
        """Subjects that were dropped are still there; their references are made anew."""
        strict = configure({"select.subject.min_area": 0.13755})
        curate(workspace, strict, [])
        assert counted(workspace)["samples"] < 4
        rows, _ = told(workspace, strict, "subject.min_area=0.03")
        curate(workspace, config, [])
        after = counted(workspace)
        for name in ("clips", "subjects", "samples"):
            assert rows[name][1] == after[name]


class TestTells:
    def test_which_reasons_change(self, workspace, config) -> None:
        rows, _ = told(workspace, config, "clip.min_brightness=255")
        assert rows["dropped as clip: dark"] == (1, 5)
        assert rows["dropped as subject: clip"] == (0, 5)

    def test_nothing_that_stays(self, workspace, config) -> None:
        rows, text = told(workspace, config)
        assert set(rows) == {"clips", "subjects", "references", "samples"}
        assert "unseen" not in text
        assert "have not been shown" not in text

    def test_of_clips_that_no_model_has_seen(self, workspace, config) -> None:
        rows, text = told(workspace, config, "clip.min_brightness=0")
        assert rows["clips"] == (4, 5)
        assert rows["samples"] == (4, 4)
        assert "1 clips that would pass have not been shown" in " ".join(text.split())

    def test_of_an_empty_workspace(self, empty, config) -> None:
        rows, _ = told(empty, config, "clip.min_brightness=0")
        assert set(rows.values()) == {(0, 0)}

    def test_without_changing_anything(self, workspace, config) -> None:
        before = {record: workspace.table(record).version for record in RECORDS.values()}
        verdicts = workspace.records(Verdict)
        told(workspace, config, "clip.min_brightness=255", "subject.min_area=1")
        assert {record: workspace.table(record).version for record in RECORDS.values()} == before
        assert workspace.records(Verdict) == verdicts
        assert calls() == {}

    def test_from_the_stored_scores(self, workspace, config, table_of) -> None:
        for row in table_of(workspace, Score).values():
            rows, _ = told(workspace, config, f"clip.min_brightness={row['brightness']}")
            expected = sum(other["brightness"] >= row["brightness"] for other in table_of(workspace, Score).values())
            assert rows["clips"][1] == expected
