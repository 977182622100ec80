"""Trials of whole backends are in tests/curation/test_models_command.py; here is what they refuse."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

from models import trial
from models.protocols import ClipCaption, Detection, Segmentation
from models.registry import BACKENDS, BackendConfig
from models.trial import TRIALS, TrialError, run_apart, run_trial

MASK = np.ones((trial.HEIGHT, trial.WIDTH), bool)
GOOD = Segmentation(MASK, 0.9)


class Canned:
    """Answers every call with what the test gave it."""

    class Config(BackendConfig):
        backend: Literal["canned"] = "canned"

    frame_size = (48, 27)

    def __init__(self, answers: Any, root: Path | None = None) -> None:
        self.answers = answers

    def _answer(self, *_: object) -> Any:
        return self.answers

    transitions = spot = aesthetic = nudity = caption = detect = faces = embed = similarity = fill = edit = _answer


class CannedSegmenter(Canned):
    segment = Canned._answer


class CannedTracker(Canned):
    track = Canned._answer


def ball(instance: int | None = None, box: tuple[float, ...] = (0, 0, 9, 9)) -> Detection:
    return Detection("ball", box, 0.9, instance=instance)  # type: ignore[arg-type]


PICTURE = trial._scene().image

WRONG: dict[str, tuple[str, Any, str]] = {
    "one probability too few": ("shots", np.zeros(trial.SHOT_FRAMES - 1), "one probability per frame"),
    "a logit": ("shots", np.full(trial.SHOT_FRAMES, 3.0), r"in \[0, 1\]"),
    "an answer too many": ("text", [[], []], "one answer"),
    "no text region": ("text", [["A SIGN"]], "text regions"),
    "no number": ("aesthetic", [float("nan")], "finite"),
    "more than certain": ("safety", [1.2], r"in \[0, 1\]"),
    "an empty caption": ("captioner", [ClipCaption(" ", ())], "a caption"),
    "a frame too few": ("detector", [[[]]], "each keyframe"),
    "a box outside": ("detector", [[[ball(box=(0, 0, 999, 9))], []]], "inside the picture"),
    "a vector of length 2": ("embedder", [np.array([2.0, 0.0])], "length 1"),
    "a logit for a cosine": ("image_text", [27.5], "cosine"),
    "a smaller picture": ("inpainter", [PICTURE[:9, :9]], "same size"),
    "another subject": ("inpainter", [255 - PICTURE], "subject stays"),
    "a grey picture": ("editor", [PICTURE[..., 0]], "RGB"),
}


@pytest.mark.parametrize(("task", "answer", "says"), WRONG.values(), ids=WRONG)
def test_an_answer_of_another_form_is_refused(task: str, answer: Any, says: str) -> None:
    with pytest.raises(TrialError, match=says):
        TRIALS[task](Canned(answer))


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        ([[[GOOD], []]], "one mask per detection"),
        ([[[Segmentation(MASK[:9], 0.9)], [GOOD]]], "picture's size"),
        ([[[Segmentation(MASK.astype(np.uint8), 0.9)], [GOOD]]], "masks"),  # type: ignore[arg-type]
        ([[[Segmentation(MASK, 7.0)], [GOOD]]], "scores"),
    ],
)
def test_a_mask_of_another_form_is_refused(answer: Any, says: str) -> None:
    with pytest.raises(TrialError, match=says):
        TRIALS["segmenter"](CannedSegmenter(answer))


def test_a_tracker_is_tried_by_what_it_follows() -> None:
    TRIALS["segmenter"](CannedTracker([[[(ball(0), GOOD), (ball(1), GOOD)], []]]))
    with pytest.raises(TrialError, match="an instance"):
        TRIALS["segmenter"](CannedTracker([[[(ball(None), GOOD)], []]]))


def test_every_task_has_a_trial() -> None:
    assert set(TRIALS) == set(BACKENDS)


def test_a_trial_measures(tmp_path: Path) -> None:
    from models.grabcut import GrabCut

    found = run_trial("segmenter", GrabCut.Config(), tmp_path)
    assert found.device == "cpu"
    assert found.load_s >= 0
    assert found.call_s > 0
    assert 0.01 < found.memory_gb < 100


def test_a_trial_of_its_own_process_tells_what_failed_there(tmp_path: Path) -> None:
    from models.sam_onnx import SamOnnx

    with pytest.raises(TrialError, match=r"encoder\.onnx does not exist"):
        run_apart("segmenter", SamOnnx.Config(), tmp_path)
    for name in ("encoder", "decoder"):
        (tmp_path / f"{name}.onnx").write_bytes(b"no network")
    broken = SamOnnx.Config(encoder="encoder.onnx", decoder="decoder.onnx")
    with pytest.raises(TrialError, match=r"\w+: .*encoder\.onnx"):
        run_apart("segmenter", broken, tmp_path)


def test_a_process_that_dies_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from models.grabcut import GrabCut

    script = tmp_path / "python"
    monkeypatch.setattr(trial.sys, "executable", str(script))
    for body, says in (("kill -9 $$", "was killed"), ("echo out of cheese >&2; exit 3", "ended with 3: out of cheese")):
        script.write_text(f"#!/bin/sh\n{body}\n")
        script.chmod(0o755)
        with pytest.raises(TrialError, match=says):
            run_apart("segmenter", GrabCut.Config(), tmp_path)
