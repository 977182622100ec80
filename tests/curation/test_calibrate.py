from __future__ import annotations

import io
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import cv2
import numpy as np
import pytest
import yaml
from rich.console import Console

from curation.calibration import bounds
from curation.calibration.bounds import NothingToCalibrateError, Proposal, propose, show, snippet
from curation.calibration.labelled_pairs import LabelError
from curation.calibration.plot import draw
from curation.calibration.seen_pairs import different_across, read_tracked, tracked_different, tracked_same
from curation.workspace import Workspace
from stages.pair import CrossClipConfig
from stages.picture import encode_png
from stages.records import RECORDS, Clip, Subject, Verdict
from stages.select import ReferenceThresholds
from training.cli import main

STEADY = 0.95
"""Cosine of any two frames of one planted subject."""
DIM = 64
PICTURE = cv2.resize(np.random.default_rng(0).integers(0, 256, (6, 5, 3), np.uint8), (40, 48))
LEFT, RIGHT = [10.0, 10.0, 60.0, 90.0], [80.0, 10.0, 130.0, 90.0]


@pytest.fixture(autouse=True)
def few_crops(monkeypatch: pytest.MonkeyPatch) -> None:
    """One crop shows as much of the command as two hundred do."""
    monkeypatch.setattr(bounds, "CROPS", 2)


@pytest.fixture
def plant(empty: Workspace, finished) -> Callable[..., list[str]]:
    """``plant(cosines, ...)``: a video per cosine with two people who have it; ids of the subjects.

    The first of each video are one individual, unless all are to be ``strangers``.
    """
    model = Workspace.open(finished.folder).records(Subject)[0]
    cut = Workspace.open(finished.folder).records(Clip)[0]
    numbers = itertools.count()

    def run(
        cosines: Sequence[float],
        *,
        times: Sequence[float] = (0.0, 1.0, 3.0),
        shifted: float = 0.0,
        faces: Sequence[float] = (0.9, 0.8),
        words: Sequence[str] = ("man", "woman"),
        category: str = "person",
        boxes: Sequence[Sequence[float]] = (LEFT, RIGHT),
        passes: bool = True,
        strangers: bool = False,
    ) -> list[str]:
        clips, subjects = [], []
        for cosine in cosines:
            number = next(numbers)
            clip = f"c{number:03d}"
            clips.append(replace(cut, clip_id=clip, video_id=f"v{number:03d}"))
            turn = np.linalg.qr(np.random.default_rng(number).normal(size=(DIM, DIM)))[0] if strangers else np.eye(DIM)
            # Means of frames are shorter than frames, so that those of two subjects are more alike.
            apart = cosine * (1 + (len(times) - 1) * STEADY) / len(times)
            for place in (0, 1):
                vectors = [_vector(apart, place, order) @ turn for order in range(len(times))]
                mean = (np.mean(vectors, axis=0) / np.linalg.norm(np.mean(vectors, axis=0))).tolist()
                frames = [
                    replace(
                        model.frames[0],
                        time=time + shifted * place,
                        box=list(boxes[place]),
                        face=faces[place],
                        face_embedding=vector.tolist() if category == "person" else None,
                        image_embedding=vector.tolist(),
                    )
                    for time, vector in zip(times, vectors, strict=True)
                ]
                subject = replace(
                    model,
                    **{"subject_id": f"s{number:03d}{'ab'[place]}", "clip_id": clip, "word": words[place]},
                    **{"category": category, "best": 0, "frames": frames, "face": faces[place]},
                    **{"crops": [encode_png(PICTURE)] * len(frames), "image_embedding": mean},
                    **{"face_embedding": mean if category == "person" else None},
                )
                subjects.append(subject)
        empty.append(clips)
        empty.append(subjects)
        empty.append([Verdict(subject.subject_id, "subject", passes, []) for subject in subjects])
        return [subject.subject_id for subject in subjects]

    return run


def _vector(cosine: float, place: int, order: int) -> np.ndarray:
    """Of two subjects: any two frames of one have the cosine `STEADY`, any two of both together ``cosine``."""
    vector = np.zeros(DIM)
    vector[0], vector[1] = (1.0, 0.0) if place == 0 else (cosine / STEADY, math.sqrt(1 - (cosine / STEADY) ** 2))
    vector *= math.sqrt(STEADY)
    vector[2 + 16 * place + order] = math.sqrt(1 - STEADY)
    return vector


def spread(count: int, mean: float = 0.2, deviation: float = 0.1) -> list[float]:
    """Cosines whose Fisher transforms have exactly this mean and deviation."""
    steps = np.linspace(-1, 1, count)
    return np.tanh(mean + deviation * steps / steps.std(ddof=1)).tolist()


def told(proposal: Proposal) -> str:
    console = Console(file=io.StringIO(), width=200)
    show(proposal, console)
    return console.file.getvalue()


def found(proposal: Proposal, category: str, by: str):
    return next(one for one in proposal.findings if (one.category, one.by) == (category, by))


class TestPairsOfTracks:
    def test_same_are_both_halves_of_a_track_weighed_by_the_seconds_between_them(self, plant, empty) -> None:
        plant([0.3], times=(0.0, 1.0, 3.0))
        plant([0.3], times=(0.0, 1.0))
        pairs = tracked_same(read_tracked(empty), "face")
        assert pairs.weights.tolist() == [2, 2, 1, 1]
        # One frame with the mean of two, and with one other.
        assert pairs.scores == pytest.approx([2 * STEADY / math.sqrt(2 + 2 * STEADY)] * 2 + [STEADY] * 2)
        assert pairs.faces.tolist() == [0.9, 0.8, 0.9, 0.8]
        assert (pairs.subjects[:, 0] == pairs.subjects[:, 1]).all()

    def test_a_subject_kept_once_has_no_halves(self, plant, empty) -> None:
        plant([0.3], times=(1.0,))
        assert len(tracked_same(read_tracked(empty), "face")) == 0

    def test_different_are_two_subjects_of_one_keyframe_compared_as_cross_clip_does(self, plant, empty) -> None:
        plant([0.3, 0.5])
        pairs = tracked_different(read_tracked(empty), "face")
        assert pairs.scores == pytest.approx([0.3, 0.5])
        assert pairs.weights.tolist() == [1, 1]
        assert pairs.faces.tolist() == [0.8, 0.8]
        assert pairs.independent == 2

    def test_subjects_seen_at_other_times_may_be_one(self, plant, empty) -> None:
        plant([0.3], shifted=0.5)
        assert len(tracked_different(read_tracked(empty), "face")) == 0

    def test_by_looks_only_things_of_one_word_are_different(self, plant, empty) -> None:
        plant([0.3], words=("cat", "dog"), category="animal")
        assert len(tracked_different(read_tracked(empty), "image")) == 0
        plant([0.4], words=("cat", "cat"), category="animal")
        assert tracked_different(read_tracked(empty), "image").scores == pytest.approx(0.4)

    def test_by_looks_a_thing_inside_another_may_be_the_same(self, plant, empty) -> None:
        plant([0.3], words=("cat", "cat"), category="animal", boxes=(LEFT, [20.0, 20.0, 50.0, 60.0]))
        assert len(tracked_different(read_tracked(empty), "image")) == 0

    def test_subjects_of_different_videos_are_different_only_if_asked(self, plant, empty) -> None:
        plant([0.3, 0.5])
        subjects = read_tracked(empty)
        across = different_across(subjects, "face", 0)
        assert len(across) == 4
        assert len(propose(empty, None, 1e-4, across=True).findings[0].different) == 2 + 4
        assert len(propose(empty, None, 1e-4, across=False).findings[0].different) == 2

    def test_what_did_not_pass_says_nothing(self, plant, empty) -> None:
        plant([0.3], passes=False)
        assert read_tracked(empty) == []
        with pytest.raises(NothingToCalibrateError, match="no subject that passed"):
            propose(empty, None, 1e-4, across=False)


class TestProposal:
    def test_bound_is_that_of_the_planted_cosines(self, plant, empty) -> None:
        plant(spread(20))
        one = found(propose(empty, None, 1e-4, across=False), "person", "face")
        assert one.calibration.tail is not None
        assert one.calibration.tail.mean == pytest.approx(0.2, abs=1e-6)
        assert one.calibration.tail.deviation == pytest.approx(0.1, abs=1e-6)
        assert one.calibration.independent == 20
        exact = one.calibration.tail.bound(1e-4)
        assert exact <= one.calibration.min < exact + 0.01
        assert one.calibration.false_reject == 0

    def test_is_yaml_that_the_config_takes(self, plant, empty) -> None:
        plant(spread(20))
        plant(spread(20, 0.5), words=("cup", "cup"), category="object")
        plant(spread(20, 0.5), words=("cat", "cat"), category="animal")
        proposal = propose(empty, None, 1e-4, across=False)
        raw = yaml.safe_load("\n".join(snippet(proposal)))
        rules = CrossClipConfig.model_validate(raw["references"]["cross_clip"]).rules
        assert {name: (rule.by, rule.scope) for name, rule in rules.items()} == {
            "person": ("face", "anywhere"),
            "object": ("image", "same_video"),
            "animal": ("image", "same_video"),
        }
        assert rules["person"].min == found(proposal, "person", "face").calibration.min
        least = ReferenceThresholds.model_validate(raw["select"]["reference"]).min_difference
        assert least.keys() == ReferenceThresholds().min_difference.keys()
        assert all(least[kind] >= value for kind, value in ReferenceThresholds().min_difference.items())
        assert min(least.values()) >= proposal.copies.bound

    def test_things_without_life_may_be_paired_anywhere_where_other_videos_were_measured(self, plant, empty) -> None:
        plant(spread(20), words=("cup", "cup"), category="object", strangers=True)
        plant(spread(20), words=("cat", "cat"), category="animal", strangers=True)
        rules = propose(empty, None, 0.01, across=True).rules()
        assert "scope" not in rules["object"]
        assert rules["animal"]["scope"] == "same_video"

    def test_few_pairs_make_no_bound_but_a_reason(self, plant, empty) -> None:
        plant(spread(5))
        proposal = propose(empty, None, 1e-4, across=False)
        assert proposal.rules() == {}
        text = " ".join(told(proposal).split())
        assert "person by face: no bound: only 5 independent different pairs" in text
        raw = yaml.safe_load("\n".join(snippet(proposal)))
        assert raw["references"]["cross_clip"]["rules"] == {}
        assert "# person by face: only 5 independent different pairs" in "\n".join(snippet(proposal))

    def test_people_are_not_known_by_their_looks(self, plant, empty) -> None:
        plant(spread(20), words=("man", "man"))
        proposal = propose(empty, None, 1e-4, across=False)
        assert found(proposal, "person", "image").calibration.min is not None
        assert proposal.rules()["person"]["by"] == "face"

    def test_faces_that_look_like_anybody_are_left_out(self, plant, empty) -> None:
        plant(spread(20))
        plant(spread(20, 0.9, 0.4), faces=(0.55, 0.9))
        proposal = propose(empty, None, 1e-4, across=False)
        one = found(proposal, "person", "face")
        assert one.min_face == 0.6
        assert len(one.different) == 20
        assert proposal.rules()["person"]["min_face"] == 0.6
        assert "what unsure faces do" in told(proposal)

    def test_bound_against_copies_comes_from_neighbouring_frames(self, plant, empty) -> None:
        plant(spread(20), times=(0.0, 0.4, 0.9, 1.3))
        proposal = propose(empty, None, 1e-4, across=False)
        one = found(proposal, "person", "face")
        # Of 3 distances only 0.4 counts: 0.5 is not less than half a second, and the last two lie 0.4 apart again.
        assert one.neighbours == 80
        assert one.max == pytest.approx(STEADY, abs=1e-3)
        assert proposal.rules()["person"]["max"] == one.max

    def test_without_neighbouring_frames_there_is_no_bound_against_copies(self, plant, empty) -> None:
        plant(spread(20))
        proposal = propose(empty, None, 1e-4, across=False)
        assert found(proposal, "person", "face").max is None
        assert proposal.rules()["person"]["max"] == 1.0
        assert "# no max: only 0 neighbouring frames" in "\n".join(snippet(proposal))

    def test_copies_of_the_crops_are_measured(self, plant, empty) -> None:
        plant([0.2])
        measured = propose(empty, None, 1e-4, across=False).copies
        assert measured.crops == 2
        assert set(measured.by_copy) == {"JPEG", "brighter", "darker", "scaled", "cropped"}
        assert measured.bound is not None
        assert max(measured.by_copy.values()) <= measured.bound + 0.01 < 0.2

    def test_does_not_depend_on_the_order_of_the_rows(self, plant, empty) -> None:
        plant(spread(12))
        before = told(propose(empty, None, 1e-4, across=True))
        rows = empty.records(Subject)
        empty.replace(Subject, rows[::-1])
        assert told(propose(empty, None, 1e-4, across=True)) == before


class TestLabels:
    def test_enough_same_pairs_take_the_place_of_the_tracks(self, plant, empty, tmp_path) -> None:
        ids = plant(spread(20))
        file = tmp_path / "pairs.csv"
        rows = [f"{a},{b},same" for a, b in itertools.pairwise(ids[:24:2])] + [f"{ids[0]},{ids[3]},different"]
        file.write_text("a,b,same\n" + "\n".join(rows))
        one = found(propose(empty, file, 0.01, across=False), "person", "face")
        assert one.calibration.same == 11
        assert one.calibration.different == 20 + 1
        assert one.same.scores == pytest.approx(1)

    def test_may_name_subjects_that_did_not_pass(self, plant, empty, tmp_path) -> None:
        plant(spread(10))
        a, b = plant([0.4], passes=False)
        file = tmp_path / "pairs.csv"
        file.write_text(f"a,b,same\n{a},{b},0\n")
        one = found(propose(empty, file, 0.01, across=False), "person", "face")
        assert one.calibration.different == 10 + 1

    def test_are_right_where_the_tracks_say_otherwise(self, plant, empty, tmp_path) -> None:
        """Two tracks of one keyframe that are one person, found twice."""
        a, b, *_ = plant(spread(20))
        file = tmp_path / "pairs.csv"
        file.write_text(f"a,b,same\n{a},{b},1\n")
        one = found(propose(empty, file, 0.01, across=False), "person", "face")
        assert (one.calibration.same, one.calibration.different) == (40 + 1, 19)

    def test_of_unknown_subjects_are_refused(self, plant, empty, tmp_path) -> None:
        plant([0.2])
        (tmp_path / "pairs.csv").write_text("a,b,same\ns000a,nobody,0\n")
        with pytest.raises(LabelError, match="line 2: b: there is no subject 'nobody'"):
            propose(empty, tmp_path / "pairs.csv", 0.01, across=False)


class TestCommand:
    def test_prints_and_draws_and_changes_nothing(self, workspace, tmp_path, capsys) -> None:
        before = {record: workspace.table(record).version for record in RECORDS.values()}
        file = tmp_path / "plots" / "of mine.png"
        assert main(["calibrate", "--workspace", workspace.uri, "-o", str(file)]) == 0
        out = capsys.readouterr().out
        assert "animal" in out
        raw = yaml.safe_load(out[out.index("references:") :])
        assert raw["references"]["cross_clip"]["rules"] == {}
        assert cv2.imread(str(file)).std() > 1
        assert {record: workspace.table(record).version for record in RECORDS.values()} == before

    def test_refuses_a_rate_that_is_none(self, workspace, tmp_path, capsys) -> None:
        for rate in ("0", "0.5", "-1"):
            assert main(["calibrate", "--workspace", workspace.uri, f"--far={rate}"]) == 2
            assert "--far" in capsys.readouterr().err

    def test_says_what_is_wrong_with_the_labels(self, workspace, tmp_path, capsys) -> None:
        assert main(["calibrate", "--workspace", workspace.uri, "--pairs", str(tmp_path / "no.csv")]) == 2
        assert "no.csv cannot be read" in capsys.readouterr().err

    def test_the_plot_has_a_row_for_each_category_and_embedding(self, plant, empty, tmp_path) -> None:
        plant(spread(20))
        draw(propose(empty, None, 1e-4, across=False), tmp_path / "one.png")
        plant(spread(20), words=("cat", "cat"), category="animal")
        draw(propose(empty, None, 1e-4, across=False), tmp_path / "two.png")
        heights = [cv2.imread(str(tmp_path / name)).shape[0] for name in ("one.png", "two.png")]
        assert heights[1] * 2 == pytest.approx(heights[0] * 3, abs=6)
