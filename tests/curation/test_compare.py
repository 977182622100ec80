from __future__ import annotations

import io
import shutil
from pathlib import Path

import pytest
from rich.console import Console

from curation.compare import Comparison, compare, show_comparison
from curation.workspace import Workspace
from stages.records import Reference, Verdict


@pytest.fixture
def other(finished, tmp_path) -> Workspace:
    """A second copy of the first run's workspace."""
    return Workspace.open(shutil.copytree(finished.folder, tmp_path / "other"))


@pytest.fixture
def stricter(other, configure, curate) -> Workspace:
    """The same videos, but without other frames and with a higher bound on brightness."""
    changes = {"references.other_frame.count": 0, "select.reference.min_brightness": 90, "mixture.max_per_identity": 2}
    curate(other, configure(changes))
    return other


def printed(found: Comparison, width: int = 200) -> str:
    console = Console(file=io.StringIO(), width=width)
    show_comparison(found, ["one", "[red]other[/]"], console)
    return console.file.getvalue()


def cells(text: str, name: str) -> list[str]:
    (line,) = (line for line in text.splitlines() if line.startswith("│") and line.split("│")[1].strip() == name)
    return [cell.strip() for cell in line.split("│")[2:-1]]


def test_every_level_is_told_for_both(workspace, stricter) -> None:
    found = compare(workspace, stricter)
    levels = {one.name: (one, other) for one, other in found.levels}
    assert {"inputs", "clips", "subjects", "references", "original", "other_frame"} <= levels.keys()
    for name, (one, other) in levels.items():
        assert one.name == other.name == name
    assert levels["clips"][0].kept == levels["clips"][1].kept == 4
    frames, none = levels["other_frame"]
    assert (frames.found, none.found) == (10, 0)
    assert frames.kept
    count = {w: w.table(Reference).count_rows() for w in (workspace, stricter)}
    assert levels["references"][0].found - levels["references"][1].found == count[workspace] - count[stricter] == 10


def test_reasons_are_told_where_they_differ(workspace, stricter) -> None:
    reasons = {row.name: (row.one, row.other) for row in compare(workspace, stricter).reasons}
    dark = [row for row in stricter.rows(Verdict, ["kind", "reasons"]) if "dark" in row["reasons"]]
    number = sum(row["kind"] == "reference" for row in dark)
    of_kinds = [counts for name, counts in reasons.items() if name.endswith(": dark") and name != "clips: dark"]
    assert {one for one, _ in of_kinds} == {0}
    assert sum(other for _, other in of_kinds) == number > 0
    assert "clips: dark" not in reasons
    assert "inputs: duplicate" not in reasons


def test_the_keys_that_differ_are_told(workspace, stricter) -> None:
    config = {row.name: (row.one, row.other) for row in compare(workspace, stricter).config}
    assert config == {
        "references.other_frame.count": ("2", "0"),
        "select.reference.min_brightness": ("25.0", "90.0"),
        "mixture.max_per_identity": ("null", "2"),
    }


def test_medians_are_those_of_accepted_references(workspace, stricter, table_of) -> None:
    medians = {row.name: (row.one, row.other) for row in compare(workspace, stricter).medians}
    assert "other_frame: difference" in medians
    assert medians["other_frame: difference"][1] is None
    assert medians["original: identity"][0] == pytest.approx(1, abs=0.02)
    assert 0 < medians["cross_clip: difference"][0] < 1


def test_samples_hours_and_the_mixture(workspace, stricter) -> None:
    found = compare(workspace, stricter)
    totals = {row.name: (row.one, row.other) for row in found.totals}
    assert sum(totals[f"samples for {split}"][0] for split in ("train", "val")) == 4
    assert totals["hours in samples"][0] > totals["hours in samples"][1] > 0
    shares = {row.name: (row.one, row.other) for row in found.shares}
    assert shares["kinds: other_frame"][0] > 0
    assert not shares["kinds: other_frame"][1]
    assert shares["samples with the most frequent individual"][0] == 0.75


def test_what_is_printed(workspace, stricter) -> None:
    text = printed(compare(workspace, stricter))
    assert "2: [red]other[/]" in text
    assert cells(text, "clips") == ["5", "5", "4", "4", "80.0%", "80.0%", ""]
    assert cells(text, "other_frame")[:2] == ["10", "0"]
    assert cells(text, "references.other_frame.count") == ["2", "0", ""]
    assert cells(text, "mixture.max_per_identity") == ["null", "2", ""]
    assert "kinds: other_frame" in text


def test_a_workspace_beside_itself(workspace, other) -> None:
    found = compare(workspace, other)
    assert found.reasons == found.config == []
    assert all((one.found, one.kept, one.reasons) == (two.found, two.kept, two.reasons) for one, two in found.levels)
    for rows in (found.totals, found.shares, found.medians):
        assert all(row.one == row.other for row in rows)
    text = printed(found)
    assert "no key of the config differs" in text
    assert cells(text, "subjects")[-1] == ""


def test_a_workspace_that_holds_nothing_yet(workspace, empty) -> None:
    found = compare(workspace, empty)
    assert found.config == [], "there is no manifest that tells one"
    text = printed(found)
    assert cells(text, "clips") == ["5", "0", "4", "0", "80.0%", "", "-4"]
    assert printed(compare(empty, empty))


def test_the_command(workspace, other, capsys, monkeypatch) -> None:
    from training.cli import main

    monkeypatch.setenv("COLUMNS", "200")
    assert main(["stats", "--compare", workspace.uri, other.uri]) == 0
    out = capsys.readouterr().out
    assert f"1: {workspace.uri}" in out
    assert f"2: {other.uri}" in out
    assert "references" in out
    assert main(["stats", "--compare", workspace.uri, str(Path(other.uri) / "nowhere")]) == 2
