"""Do the bounds that `s2v calibrate` proposes pair anybody with somebody else? Measured on people told apart by eye.

Real clips are curated, the bounds are proposed from the tracks alone, and then held against every two people of
different clips: tests/stages/real_people.csv says who is who. A pair is *false* if a rule takes two people for one,
*found* if it takes one person for one. The rule of configs/cpu.yaml is held against the same pairs.
"""

from __future__ import annotations

import argparse
import csv
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
from _measure import show, show_machine, silent

from curation.calibration.bounds import Finding, propose
from curation.config import Config, load_config
from curation.engine import SerialExecutor, run_steps
from curation.workspace import Workspace
from stages.calibration import roc
from stages.ingest import list_inputs
from stages.pair import IdentityRule
from stages.records import Clip, Source, Subject

ROOT = Path(__file__).resolve().parent.parent
PEOPLE = ROOT / "tests" / "stages" / "real_people.csv"
STEPS = ("ingest", "split", "annotate", "select")
LOOSE = ("models.text=null", "select.clip.off=true", "select.clip.duplicate_distance=0", "select.subject.off=true")
"""Whoever shows a face shall stay: bounds must hold for small and blurred people too."""
SURE = 0.7
BOUNDS = (0.5, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85)
START_S, NEAR = 0.2, 0.1
"""How far a clip's start, and a box's centre in shares of the frame, may lie from what was written down."""


@dataclass(frozen=True, slots=True, eq=False)
class Person:
    """A subject whose person is known."""

    subject_id: str
    person: str
    clip_id: str
    face: float
    vector: np.ndarray


@dataclass(frozen=True, slots=True)
class Judged:
    """Every two people of different clips: who is who, and what they are compared by."""

    cosines: np.ndarray
    faces: np.ndarray
    same: np.ndarray

    def row(self, name: str, bound: float, min_face: float, most: float = 1.0) -> list[str]:
        """What a rule makes of them."""
        sure = self.faces >= SURE
        taken = (self.cosines >= bound) & (self.cosines <= most) & (self.faces >= min_face)
        false, found = int((taken & ~self.same).sum()), taken & self.same
        return [
            *(name, f"{bound:g}", f"{min_face:g}", str(int(taken.sum())), str(false)),
            f"{found.sum() / max(1, taken.sum()):.1%}" if taken.any() else "",
            f"{int((found & sure).sum())} of {int((self.same & sure).sum())}",
            f"{int(found.sum())} of {int(self.same.sum())}",
        ]


def curate(clips: Path, config: Config, folder: Path) -> Workspace:
    """Curate the clips that the list of people names, in this process."""
    names = sorted({row["file"] for row in labels(PEOPLE)})
    workspace = Workspace.open(folder, create=True)
    videos = list_inputs([str(clips / name) for name in names])
    run_steps(STEPS, config, workspace, SerialExecutor(), silent(), videos=videos)
    return workspace


def labels(file: Path) -> list[dict[str, str]]:
    """Rows of the list of people."""
    with file.open(newline="") as lines:
        return list(csv.DictReader(lines))


def known_people(workspace: Workspace, rows: Sequence[dict[str, str]]) -> tuple[list[Person], int]:
    """The subjects with a face whose person is known, and how many more of the people named have no subject."""
    names = {source.video_id: source.uri.rsplit("/", 1)[-1] for source in workspace.records(Source)}
    clips = {clip.clip_id: clip for clip in workspace.records(Clip)}
    subjects = [subject for subject in workspace.records(Subject) if subject.category == "person"]
    people, lost = [], 0
    for row in rows:
        at = np.array([float(row["x"]), float(row["y"])])
        here = [
            (float(np.abs(centre(subject) - at).max()), subject)
            for subject in subjects
            if names[clips[subject.clip_id].video_id] == row["file"]
            and abs(clips[subject.clip_id].start_s - float(row["start_s"])) < START_S
        ]
        distance, subject = min(here, key=lambda one: one[0], default=(1.0, None))
        if subject is None or distance > NEAR:
            lost += 1
        elif subject.face_embedding is not None and row["person"] != "?":
            vector = np.asarray(subject.face_embedding)
            vector /= np.linalg.norm(vector)
            people.append(Person(subject.subject_id, row["person"], subject.clip_id, subject.face, vector))
    return people, lost


def centre(subject: Subject) -> np.ndarray:
    """Of the box in the best frame, in shares of the frame."""
    x0, y0, x1, y1 = subject.frames[subject.best].box
    return np.array([(x0 + x1) / 2 / subject.frame_width, (y0 + y1) / 2 / subject.frame_height])


def judge(people: Iterable[Person]) -> Judged:
    """Compare every two of different clips."""
    pairs = [(a, b) for a, b in combinations(people, 2) if a.clip_id != b.clip_id]
    return Judged(
        cosines=np.array([float(a.vector @ b.vector) for a, b in pairs]),
        faces=np.array([min(a.face, b.face) for a, b in pairs]),
        same=np.array([a.person == b.person for a, b in pairs]),
    )


def show_spread(judged: Judged) -> None:
    """How far same and different lie apart, by how sure the faces are."""
    rows = []
    for bound in (0.0, 0.5, 0.6, 0.7, 0.8):
        sure = judged.faces >= bound
        same, different = judged.cosines[sure & judged.same], judged.cosines[sure & ~judged.same]
        if len(same) and len(different):
            rate, at = roc(same, different, np.ones(len(same)), np.ones(len(different))).equal_error
            low, middle = np.percentile(same, 5), np.percentile(same, 50)
            rows.append(
                [f"{bound:g}", *map(str, (len(same), len(different))), f"{rate:.2%} at {at:.2f}"]
                + [f"{value:.2f}" for value in (same.min(), low, middle, different.max())]
            )
    show(
        "faces of people of different clips",
        ["faces from", "same", "different", "equal error", "least same", "5 %", "median", "largest different"],
        rows,
    )


def proposed(workspace: Workspace, file: Path | None, rate: float) -> Finding | None:
    """What calibration says of people's faces."""
    findings = propose(workspace, file, rate, across=False).findings
    return next((one for one in findings if (one.category, one.by) == ("person", "face")), None)


def rows_of(name: str, finding: Finding | None, judged: Judged) -> list[list[str]]:
    """Of the rule that is proposed, if one is; why not is told."""
    if finding is None or finding.calibration.min is None:
        print(f"{name}: no bound: {finding.calibration.why if finding else 'no faces'}")
        return []
    bounds = finding.calibration.min, finding.min_face
    return [judged.row(name, *bounds), judged.row("  up to max", *bounds, finding.max or 1)]


def write_labels(people: Sequence[Person], file: Path) -> Path:
    """Every two of these people, as `s2v calibrate --pairs` reads them."""
    lines = [f"{a.subject_id},{b.subject_id},{int(a.person == b.person)}" for a, b in combinations(people, 2)]
    file.write_text("\n".join(["a,b,same", *lines]))
    return file


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--clips", type=Path, default=ROOT.parent / "shared" / "clips", help="folder of the clips")
    parser.add_argument("--models-root", type=Path, default=ROOT.parent / "shared" / "weights")
    parser.add_argument("--workspace", type=Path, help="where the clips are curated already, or shall be and stay")
    parser.add_argument("--far", type=float, default=1e-4, help="false-accept rate asked for")
    options = parser.parse_args()
    show_machine()
    config = load_config(ROOT / "configs" / "cpu.yaml", [f"models.root={options.models_root}", *LOOSE])
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.workspace or Path(temporary) / "workspace"
        done = (folder / "tables").exists()
        workspace = Workspace.open(folder) if done else curate(options.clips, config, folder)
        people, lost = known_people(workspace, labels(PEOPLE))
        print(f"{len(people)} subjects with a face, {len({one.person for one in people})} people; {lost} not found")
        judged = judge(people)
        show_spread(judged)
        rows = rows_of("from the tracks", proposed(workspace, None, options.far), judged)
        names = sorted({one.person for one in people})
        for half in (0, 1):
            # Labels of one half of the people, held against the others: nobody is in both.
            mine = [one for one in people if names.index(one.person) % 2 == half]
            others = judge(one for one in people if one not in mine)
            finding = proposed(workspace, write_labels(mine, Path(temporary) / "pairs.csv"), options.far)
            rows += rows_of("from labels of the others", finding, others)
        shipped = config.references.cross_clip.rules["person"]
        assert isinstance(shipped, IdentityRule)
        rows.append(judged.row("configs/cpu.yaml", shipped.min, shipped.min_face, shipped.max))
        rows += [
            judged.row("", bound, min_face)
            for min_face in (0.0, SURE)
            for bound in (0.5, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85)
        ]
    show(
        "rules, and the pairs of people that they make",
        ["rule", "min", "faces from", "pairs", "false", "precision", "found, sure faces", "found, any face"],
        rows,
    )


if __name__ == "__main__":
    main()
