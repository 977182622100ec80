import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from models.box_prompts import segment_boxes, segmentations
from models.protocols import Detection, Keyframe, Segmentation

PICTURE = np.zeros((2, 2, 3), np.uint8)
MASK = np.zeros((2, 2), bool)


def numbered(counts):
    """Clips whose frames have as many detections as ``counts`` says; every box has a number of its own."""
    number = iter(range(1000))
    keyframes = [[Keyframe(0.0, PICTURE, PICTURE) for _ in clip] for clip in counts]
    detections = [[[Detection("thing", (next(number), 0, 1, 1), 1.0) for _ in range(n)] for n in c] for c in counts]
    return keyframes, detections


@given(
    counts=st.lists(st.lists(st.integers(0, 3), max_size=4), max_size=4),
    batch=st.integers(1, 5),
)
def test_every_detection_gets_its_own_mask_in_full_batches_of_frames_with_detections(counts, batch):
    keyframes, detections = numbered(counts)
    batches = []

    def segment_frames(images, boxes):
        batches.append(len(images))
        assert len(images) == len(boxes)
        assert all(boxes)
        return [[Segmentation(MASK, box[0]) for box in of_image] for of_image in boxes]

    found = segment_boxes(keyframes, detections, batch, segment_frames)

    assert [[[s.score for s in frame] for frame in clip] for clip in found] == [
        [[d.box[0] for d in frame] for frame in clip] for clip in detections
    ]
    assert sum(batches) == sum(n > 0 for clip in counts for n in clip)
    assert all(size == batch for size in batches[:-1])


@pytest.mark.parametrize("detections", [[], [[]], [[[], []]]])
def test_detections_must_match_the_keyframes(detections):
    keyframes, _ = numbered([[1]])

    with pytest.raises(ValueError, match="zip"):
        segment_boxes(keyframes, detections, 8, lambda images, boxes: [])


def test_a_network_that_forgets_a_frame_is_an_error():
    with pytest.raises(ValueError, match="zip"):
        segment_boxes(*numbered([[1, 1]]), 8, lambda images, boxes: [[Segmentation(MASK, 1.0)]])


def test_scores_stay_between_0_and_1_and_masks_are_numpy():
    masks = torch.tensor([[[True, False]], [[False, False]], [[True, True]]])

    found = segmentations(iter(masks), torch.tensor([-0.1, 0.25, 1.2], dtype=torch.bfloat16))

    assert [one.score for one in found] == [0.0, 0.25, 1.0]
    assert all(type(one.score) is float for one in found)
    assert [one.mask.tolist() for one in found] == masks.tolist()
    assert all(one.mask.dtype == np.bool_ for one in found)
