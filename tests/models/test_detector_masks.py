from pathlib import Path

import numpy as np
import pytest

from models.detector_masks import DetectorMasks
from models.protocols import Detection, Segmenter, Tracker
from models.registry import backend_config, build


@pytest.fixture(scope="module")
def segmenter():
    return build("segmenter", backend_config("segmenter", {"backend": "detector_masks"}), Path("nowhere"))


def detection(shape, score=0.5, word="dog"):
    mask = np.zeros(shape, np.bool_)
    mask[1:3, 1:4] = True
    return Detection(word, (1, 1, 4, 3), score, mask)


def test_it_is_a_segmenter_and_no_tracker(segmenter):
    assert isinstance(segmenter, DetectorMasks)
    assert isinstance(segmenter, Segmenter)
    assert not isinstance(segmenter, Tracker)


def test_every_detection_gets_its_own_mask_and_score_in_order(segmenter, blank_keyframe):
    clips = [[blank_keyframe(8, 9), blank_keyframe(8, 9)], [], [blank_keyframe(5, 6)]]
    found = [[[detection((8, 9), 0.25), detection((8, 9), 0.75)], []], [], [[detection((5, 6), 1.0)]]]

    result = segmenter.segment(clips, found)

    assert [[len(in_frame) for in_frame in clip] for clip in result] == [[2, 0], [], [1]]
    pairs = [
        (made, given)
        for made_clip, given_clip in zip(result, found, strict=True)
        for made_frame, given_frame in zip(made_clip, given_clip, strict=True)
        for made, given in zip(made_frame, given_frame, strict=True)
    ]
    assert all(made.mask is given.prior and made.score == given.score for made, given in pairs)


def test_no_clips_give_no_masks(segmenter):
    assert segmenter.segment([], []) == []


def test_a_detection_without_a_mask_says_what_to_combine(segmenter, blank_keyframe):
    with pytest.raises(ValueError, match=r"'cat' a box and no mask.*sam3.*models\.segmenter.*sam2_video"):
        segmenter.segment([[blank_keyframe(8, 9)]], [[[detection((8, 9)), Detection("cat", (0, 0, 2, 2), 0.9)]]])


def test_a_mask_of_another_size_than_its_image_is_refused(segmenter, blank_keyframe):
    with pytest.raises(ValueError, match=r"'dog' has the shape \(9, 8\).*\(8, 9\)"):
        segmenter.segment([[blank_keyframe(8, 9)]], [[[detection((9, 8))]]])


@pytest.mark.parametrize("found", [[], [[]], [[[], []]]])
def test_detections_must_match_the_keyframes(segmenter, blank_keyframe, found):
    with pytest.raises(ValueError, match="zip"):
        segmenter.segment([[blank_keyframe(8, 9)]], found)
