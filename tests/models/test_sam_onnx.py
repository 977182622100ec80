import cv2
import numpy as np
import pytest

from models.protocols import Detection
from models.registry import MissingWeightsError, build
from models.sam_onnx import SamOnnx, _blob

BEAR = Detection("bear", (97, 225, 480, 469), 0.9)
MAN = Detection("man", (635, 54, 870, 676), 0.9)
PORSCHE = Detection("car", (162, 122, 465, 345), 0.9)
BYSTANDER = Detection("man", (114, 102, 145, 196), 0.9)


@pytest.fixture(scope="module")
def segmenter(weights):
    return build("segmenter", SamOnnx.Config(), weights)


@pytest.fixture(scope="module")
def segmented(segmenter, keyframe):
    """Three clips in one call: one of them without a detection."""
    clips = [
        [keyframe("davis_bear.mp4", 40)],
        [keyframe("davis_bear.mp4", 40), keyframe("panda_man_porsche.mp4", 90)],
        [keyframe("sam2_juggle.mp4", 100)],
    ]
    return segmenter.segment(clips, [[[BEAR]], [[], [PORSCHE, BYSTANDER]], [[MAN]]])


def test_one_mask_per_detection_at_the_size_of_the_image(segmented):
    assert [[len(found) for found in clip] for clip in segmented] == [[1], [0, 2], [1]]
    masks = [result.mask for clip in segmented for found in clip for result in found]
    assert [mask.shape for mask in masks] == [(480, 854), (360, 640), (360, 640), (720, 1280)]
    assert all(mask.dtype == np.bool_ for mask in masks)
    assert all(0.8 < result.score <= 1 for clip in segmented for found in clip for result in found)


@pytest.mark.parametrize(
    ("place", "detection", "fill"),
    [
        ((0, 0, 0), BEAR, (0.5, 0.75)),
        ((1, 1, 0), PORSCHE, (0.6, 0.85)),
        ((1, 1, 1), BYSTANDER, (0.45, 0.8)),
        ((2, 0, 0), MAN, (0.4, 0.6)),
    ],
)
def test_masks_fill_their_boxes_as_the_shapes_do(segmented, place, detection, fill):
    mask = segmented[place[0]][place[1]][place[2]].mask
    x0, y0, x1, y1 = map(round, detection.box)
    inside = mask[y0:y1, x0:x1].sum()

    assert fill[0] < inside / ((x1 - x0) * (y1 - y0)) < fill[1]
    assert inside / mask.sum() > 0.93


def test_masks_hold_the_subject_and_not_its_surroundings(segmented):
    bear, porsche, man = (segmented[i][j][0].mask for i, j in [(0, 0), (1, 1), (2, 0)])

    assert bear[300, 300]
    assert not bear[280, 120]
    assert not bear[100, 600]
    assert porsche[230, 300]
    assert not porsche[340, 200]
    assert man[200, 760]
    assert man[100, 775]
    assert not man[550, 650]
    assert not man[300, 1000]


def test_the_box_chooses_the_subject(segmented):
    car, man = (result.mask for result in segmented[1][1])

    assert not (car & man).any()


def test_an_image_without_detections_is_not_encoded(segmenter, keyframe, monkeypatch):
    monkeypatch.setattr(segmenter, "_encoder", None)

    assert segmenter.segment([[keyframe("davis_bear.mp4", 40)]], [[[]]]) == [[[]]]
    with pytest.raises(AttributeError):
        segmenter.segment([[keyframe("davis_bear.mp4", 40)]], [[[BEAR]]])


def test_the_encoder_gets_a_normalised_image_in_a_corner():
    blob = _blob(np.full((300, 200, 3), (255, 0, 128), np.uint8))

    assert blob.shape == (1, 3, 1024, 1024)
    assert np.allclose(blob[0, :, 1023, 682], [(255 - 123.675) / 58.395, -116.28 / 57.12, (128 - 103.53) / 57.375])
    assert not blob[0, :, :, 683:].any()


def test_a_portrait_image_gives_a_portrait_mask(segmenter, blank_keyframe):
    keyframe = blank_keyframe(300, 200)
    cv2.circle(keyframe.image, (120, 200), 50, (220, 30, 30), -1)

    result = segmenter.segment([[keyframe]], [[[Detection("ball", (69, 149, 172, 252), 1.0)]]])[0][0][0]

    truth = np.zeros((300, 200), np.uint8)
    cv2.circle(truth, (120, 200), 50, 1, -1)
    assert (result.mask & (truth > 0)).sum() / (result.mask | (truth > 0)).sum() > 0.95


def test_a_tiny_image_gets_a_mask(segmenter, blank_keyframe):
    assert segmenter.segment([[blank_keyframe(3, 2)]], [[[Detection("dot", (0, 0, 2, 3), 1.0)]]])[0][0][
        0
    ].mask.shape == (3, 2)


def test_detections_must_match_the_keyframes(segmenter, blank_keyframe):
    with pytest.raises(ValueError, match="zip"):
        segmenter.segment([[blank_keyframe(8, 8)]], [[]])


def test_a_missing_network_is_named(tmp_path):
    with pytest.raises(MissingWeightsError, match=r"encoder\.onnx"):
        build("segmenter", SamOnnx.Config(), tmp_path)
