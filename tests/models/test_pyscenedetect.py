from pathlib import Path

import numpy as np
import pytest

from models.pyscenedetect import PySceneDetect


def build(**options):
    return PySceneDetect(PySceneDetect.Config(**options), Path("unused"))


@pytest.mark.parametrize("method", ["adaptive", "content"])
def test_marks_the_last_frame_before_a_hard_cut(frames, method):
    detector = build(method=method)

    probabilities = detector.transitions(frames("panda_blue_pickup_multishot.mp4", detector.frame_size))

    assert probabilities.shape == (258,)
    assert np.flatnonzero(probabilities).tolist() == [79, 146, 213]
    assert set(probabilities.tolist()) == {0.0, 1.0}


def test_adaptive_withstands_motion_that_content_takes_for_a_cut(frames):
    name, size = "daft_singer_192x144.mp4", build().frame_size
    cuts = {60, 73, 158, 223, 239, 263, 283}

    adaptive = set(np.flatnonzero(build().transitions(frames(name, size))))
    content = set(np.flatnonzero(build(method="content").transitions(frames(name, size))))

    assert cuts <= adaptive
    assert cuts <= content
    assert len(adaptive - cuts) < len(content - cuts)


def test_thresholds_decide():
    images = [np.full((36, 64, 3), level, np.uint8) for level in [80] * 10 + [140] * 10]

    def cuts(**options):
        return np.flatnonzero(build(**options).transitions(images)).tolist()

    assert cuts(method="content", content_threshold=15) == [9]
    assert cuts(method="content", content_threshold=60) == []
    assert cuts(method="adaptive", min_content=15) == [9]
    assert cuts(method="adaptive", min_content=60) == []


def test_every_short_shot_is_reported():
    images = [np.full((36, 64, 3), 40 + 160 * (index // 6 % 2), np.uint8) for index in range(30)]

    assert np.flatnonzero(build(method="content").transitions(images)).tolist() == [5, 11, 17, 23]


def test_no_frames_give_no_probabilities():
    assert build().transitions(iter([])).shape == (0,)


def test_refuses_other_frames():
    with pytest.raises(ValueError, match="uint8 RGB"):
        build().transitions([np.zeros((36, 64), np.uint8)])
