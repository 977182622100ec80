"""The bounds on faces, held against real people: three of them, four clips each, told apart by their files' names."""

from __future__ import annotations

import io
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from statistics import median
from typing import Any

import pytest
from rich.console import Console

from curation.calibration.bounds import propose
from curation.config import Config, load_config
from curation.engine import SerialExecutor, run_steps
from curation.progress import Progress
from curation.steps import proved_references
from curation.vectors import compared_subjects
from curation.workspace import Workspace
from stages.config import CONFIG_FOLDER
from stages.ingest import list_inputs
from stages.pair import Crowd, Individual, cross_pairs, same_subjects
from stages.records import Clip, Source, Subject, Verdict

SHARED = Path(__file__).resolve().parents[3] / "shared"
SIGNS = {
    "A": ("again", "brother", "help", "no"),
    "B": ("book", "learn", "school", "walk"),
    "C": ("bird", "please", "sorry", "thanks"),
}
FAST = (
    *("models.shots=null", "split.by=stride", "models.text=null", "models.segmenter={backend: grabcut}"),
    *("annotate.look.keyframes=3", "annotate.look.max_side=480", "select.clip.off=true", "select.subject.off=true"),
    *("references.other_frame.count=0", "references.augmented.count=0"),
)


@dataclass(frozen=True)
class Signers:
    workspace: Workspace
    config: Config
    person_of: dict[str, str]
    """By subject: A, B or C."""

    def crowd(self, *, apart: bool) -> tuple[Crowd, dict[str, str]]:
        """All that show a face, as a run would compare them, and the video of each clip."""
        videos = {clip.clip_id: clip.video_id for clip in self.workspace.records(Clip)}
        crowd = Crowd(self.config.references.cross_clip.rules, videos, apart=apart)
        for row in compared_subjects(self.workspace, set(self.person_of), frames=False):
            crowd.add(row, Individual.of(row))
        return crowd, videos


@pytest.fixture(scope="module")
def signers(tmp_path_factory: pytest.TempPathFactory) -> Signers:
    if not SHARED.is_dir():
        pytest.skip(f"no clips and weights: {SHARED} does not exist")
    config = load_config(CONFIG_FOLDER / "cpu.yaml", [f"models.root={SHARED / 'weights'}", *FAST])
    workspace = Workspace.open(tmp_path_factory.mktemp("signers") / "workspace", create=True)
    files = [str(SHARED / "clips" / f"asl_person{who}_{sign}.mkv") for who, signs in SIGNS.items() for sign in signs]
    progress = Progress(Console(file=io.StringIO()))
    steps = ("ingest", "split", "annotate", "select")
    run_steps(steps, config, workspace, SerialExecutor(), progress, videos=list_inputs(files))
    names = {source.video_id: Path(source.uri).stem for source in workspace.records(Source)}
    videos = {clip.clip_id: names[clip.video_id] for clip in workspace.records(Clip)}
    people = {
        subject.subject_id: videos[subject.clip_id].removeprefix("asl_person")[0]
        for subject in workspace.records(Subject)
        if subject.face_embedding is not None
    }
    return Signers(workspace, config, people)


@pytest.fixture(scope="module")
def pictured(signers: Signers) -> list[dict[str, Any]]:
    """Their references, with what was measured of each."""
    progress = Progress(Console(file=io.StringIO()))
    run_steps(("references", "verify"), signers.config, signers.workspace, SerialExecutor(), progress)
    verdicts = {verdict.id: verdict.keep for verdict in signers.workspace.records(Verdict)}
    return [{**row, "keep": verdicts[row["reference_id"]]} for row in proved_references(signers.workspace)]


def true_pairs(people: dict[str, str]) -> set[frozenset[str]]:
    return {frozenset(pair) for pair in combinations(people, 2) if people[pair[0]] == people[pair[1]]}


class TestShippedBounds:
    def test_link_nobody_with_somebody_else_and_most_people_with_themselves(self, signers) -> None:
        assert len(signers.person_of) == 12
        found = {frozenset(pair) for pair in same_subjects(signers.crowd(apart=False)[0])}
        true = true_pairs(signers.person_of)
        assert found <= true
        assert len(found) >= 0.8 * len(true)

    def test_give_nobody_the_picture_of_somebody_else(self, signers) -> None:
        pairs = list(cross_pairs(*signers.crowd(apart=True), 2))
        assert all(
            signers.person_of[target.subject_id] == signers.person_of[source.subject_id] for target, source in pairs
        )
        assert len({target.subject_id for target, _ in pairs}) >= 10


class TestCalibratedBounds:
    def test_from_labels_link_only_and_most_of_those_who_are_one(self, signers, tmp_path) -> None:
        """The labels of half of the pairs, and the bound held against the other half."""
        pairs = sorted(sorted(pair) for pair in combinations(signers.person_of, 2))
        file = tmp_path / "pairs.csv"
        rows = [f"{a},{b},{int(signers.person_of[a] == signers.person_of[b])}" for a, b in pairs[::2]]
        file.write_text("\n".join(["a,b,same", *rows]))
        rule = propose(signers.workspace, file, 0.001, across=False).rules()["person"]
        everyone = compared_subjects(signers.workspace, set(signers.person_of), frames=False)
        vectors = {row["subject_id"]: row["face_embedding"].copy() for row in everyone}
        taken = {frozenset((a, b)) for a, b in pairs[1::2] if vectors[a] @ vectors[b] >= rule["min"]}
        true = true_pairs(signers.person_of) & {frozenset(pair) for pair in pairs[1::2]}
        assert taken <= true
        assert len(taken) >= 0.8 * len(true)


class TestPaintedPictures:
    def test_of_another_background_keep_every_pixel_of_the_person(self, pictured) -> None:
        painted = [row for row in pictured if row["kind"] == "inpainted" and row["keep"]]
        assert len(painted) >= 6
        for row in painted:
            assert row["subject_change"] == 0
            assert row["background_change"] >= 0.5
            assert row["identity_by"] == "face"
        assert median(row["identity_similarity"] for row in painted) >= 0.8

    def test_in_another_s_place_show_the_one_and_not_the_other(self, pictured, signers) -> None:
        swapped = [row for row in pictured if row["kind"] == "swapped" and row["keep"]]
        assert len(swapped) >= 6
        assert any(
            signers.person_of[row["scene_subject_id"]] != signers.person_of[row["subject_id"]] for row in swapped
        )
        assert median(row["identity_similarity"] for row in swapped) >= 0.75
        assert median(row["identity_similarity"] - row["rival_similarity"] for row in swapped) >= 0.2
        assert max(row["revealed"] for row in swapped) <= 0.15
        assert max(row["halo"] for row in swapped) <= 0.1
