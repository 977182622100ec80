from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.grabcut import GrabCut, fill_holes, largest_component, outline_contrast
from models.motion_saliency import MotionSaliency
from models.protocols import Detection, Keyframe


@pytest.fixture(scope="module")
def segmenter() -> GrabCut:
    return GrabCut(GrabCut.Config(), Path())


def disc(height, width, centre, radius):
    mask = np.zeros((height, width), np.uint8)
    cv2.circle(mask, centre, radius, 1, -1)
    return mask > 0


@pytest.fixture(scope="module")
def scene():
    """A striped orange disc on mottled green, and the disc's mask."""
    rng = np.random.default_rng(0)
    green = np.clip(rng.normal((70, 130, 60), 15, (360, 640, 3)), 0, 255)
    stripes = np.where(np.arange(640)[None, :, None] // 9 % 2, (220, 120, 30), (180, 60, 40))
    mask = disc(360, 640, (300, 200), 90)
    image = np.where(mask[..., None], stripes + rng.normal(0, 10, (360, 640, 3)), green)
    return np.clip(cv2.GaussianBlur(image, (0, 0), 0.8), 0, 255).astype(np.uint8), mask


def segment_one(segmenter, image, detection):
    return segmenter.segment([[Keyframe(0.0, image, image)]], [[[detection]]])[0][0][0]


def iou(a, b):
    return (a & b).sum() / (a | b).sum()


BOX = (205.0, 105.0, 395.0, 295.0)


def test_a_plain_box_gives_the_shape_in_it(segmenter, scene):
    image, mask = scene

    result = segment_one(segmenter, image, Detection("ball", BOX, 1.0))

    assert result.mask.dtype == bool
    assert iou(result.mask, mask) > 0.97
    assert result.score > 0.85


@pytest.mark.parametrize("prior", [disc(360, 640, (290, 205), 70), disc(360, 640, (305, 195), 104)])
def test_a_rough_prior_is_corrected(segmenter, scene, prior):
    image, mask = scene

    result = segment_one(segmenter, image, Detection("ball", BOX, 1.0, prior))

    assert iou(prior, mask) < 0.8
    assert iou(result.mask, mask) > 0.97
    assert 0.5 < result.score < iou(prior, mask) + 0.05


def test_a_prior_on_nothing_scores_low(segmenter):
    grass = np.clip(np.random.default_rng(1).normal((70, 130, 60), 15, (360, 640, 3)), 0, 255).astype(np.uint8)

    result = segment_one(segmenter, grass, Detection("ball", BOX, 1.0, disc(360, 640, (300, 200), 90)))

    assert result.score < 0.35


def test_a_box_that_fills_the_image_still_has_a_background(segmenter, scene):
    image, mask = scene

    result = segment_one(segmenter, image, Detection("ball", (0, 0, 640, 360), 1.0))

    assert iou(result.mask, mask) > 0.9


def test_the_mask_is_as_fine_as_the_picture(segmenter, scene):
    image, _ = scene
    large = cv2.resize(image, (1920, 1080), interpolation=cv2.INTER_CUBIC)
    truth = disc(1080, 1920, (901, 601), 271)

    result = segment_one(segmenter, large, Detection("ball", tuple(3 * x for x in BOX), 1.0))

    assert result.mask.shape == (1080, 1920)
    edge = cv2.morphologyEx(result.mask.astype(np.uint8), cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8)) > 0
    distance = cv2.distanceTransform(1 - cv2.Canny(truth.astype(np.uint8) * 255, 50, 150) // 255, cv2.DIST_L2, 5)
    assert distance[edge].mean() < 3  # half a pixel of the 320 at which it was cut
    assert iou(result.mask, truth) > 0.97


@pytest.mark.parametrize("shape", [(1, 1), (3, 500), (500, 3), (41, 37)])
@pytest.mark.parametrize("with_prior", [False, True])
def test_odd_sizes_do_not_crash(segmenter, shape, with_prior):
    black = np.zeros((*shape, 3), np.uint8)
    prior = np.ones(shape, bool) if with_prior else None

    result = segment_one(segmenter, black, Detection("dot", (0, 0, shape[1], shape[0]), 1.0, prior))

    assert result.mask.shape == shape
    assert 0 <= result.score <= 1


@pytest.mark.parametrize("box", [(700, 10, 720, 30), (-50, -50, -10, -10), (100, 100, 100, 200), (100, 100, 102, 101)])
def test_a_box_without_pixels_has_an_empty_mask(segmenter, scene, box):
    result = segment_one(segmenter, scene[0], Detection("ball", box, 1.0))

    assert not result.mask.any()
    assert result.score == 0


def test_an_empty_prior_counts_as_none(segmenter, scene):
    image, mask = scene

    result = segment_one(segmenter, image, Detection("ball", BOX, 1.0, np.zeros_like(mask)))

    assert iou(result.mask, mask) > 0.97


def test_a_batch_equals_one_by_one_whatever_ran_before(segmenter, scene):
    image, _ = scene
    small = np.ascontiguousarray(image[50:350, 100:500])
    clips = [[Keyframe(0.0, image, image)], [Keyframe(0.0, small, small)]]
    detections = [
        [[Detection("ball", BOX, 1.0), Detection("ball", BOX, 1.0, disc(360, 640, (290, 205), 70))]],
        [[Detection("ball", (105, 55, 295, 245), 1.0)]],
    ]

    together = segmenter.segment(clips, detections)
    for seed in (1, 2):
        cv2.setRNGSeed(seed)
        alone = [segmenter.segment([c], [d])[0] for c, d in reversed(list(zip(clips, detections, strict=True)))][::-1]
        assert [len(keyframe) for clip in alone for keyframe in clip] == [2, 1]
        for a, b in zip(together[0][0] + together[1][0], alone[0][0] + alone[1][0], strict=True):
            assert a.score == b.score
            assert np.array_equal(a.mask, b.mask)


def test_largest_component_by_size_and_by_weight():
    mask = np.zeros((10, 20), bool)
    mask[1:3, 1:3] = True
    mask[5:9, 10:18] = True
    weight = np.where(np.arange(20) < 8, 100.0, 1.0).astype(np.float32) * np.ones((10, 1), np.float32)

    assert largest_component(mask).sum() == 32
    assert largest_component(mask, weight).sum() == 4
    assert not largest_component(np.zeros((4, 4), bool)).any()


def test_small_holes_are_filled_and_open_or_large_ones_are_not():
    mask = np.ones((100, 100), bool)
    mask[0] = mask[-1] = mask[:, 0] = mask[:, -1] = False
    mask[20:25, 20:25] = False
    mask[40:80, 40:80] = False

    filled = fill_holes(mask)

    assert filled[20:25, 20:25].all()
    assert not filled[40:80, 40:80].any()
    assert not filled[0].any()


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 30), st.integers(1, 30), st.floats(0.1, 0.9))
def test_filling_only_adds_and_choosing_only_removes(seed, height, width, share):
    mask = np.random.default_rng(seed).random((height, width)) < share

    assert (fill_holes(mask) >= mask).all()
    assert (largest_component(mask) <= mask).all()


def test_an_outline_on_an_edge_has_contrast_and_one_beside_it_has_less(scene):
    image, mask = scene

    assert outline_contrast(image, mask) > 0.9
    assert outline_contrast(image, np.roll(mask, 250, axis=1)) < 0.5 < outline_contrast(image, np.roll(mask, 2, axis=1))


@pytest.mark.parametrize(
    ("name", "indices", "box", "inside", "outside"),
    [
        ("koala_echidna.mp4", (40,), (0, 125, 1085, 560), [(500, 350), (150, 400)], [(1200, 300), (100, 100)]),
        ("davis_bear.mp4", (20,), (108, 212, 462, 410), [(250, 280), (420, 370)], [(600, 300), (300, 150)]),
        (
            "asl_personA_again.mkv",
            (11, 30, 50, 65),
            (170, 50, 470, 480),
            [(320, 110), (330, 300)],
            [(100, 100), (560, 200)],
        ),
    ],
)
def test_real_subjects_are_cut_out(segmenter, frame, name, indices, box, inside, outside):
    clip = [Keyframe(0.0, frame(name, i), frame(name, i + 4)) for i in indices]
    found = MotionSaliency(MotionSaliency.Config(), Path()).detect([clip], [["it"]])

    best = max((one[0] for one in segmenter.segment([clip], found)[0]), key=lambda result: result.score)

    rows, columns = np.flatnonzero(best.mask.any(axis=1)), np.flatnonzero(best.mask.any(axis=0))
    x0, y0, x1, y1 = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
    overlap = max(0, min(x1, box[2]) - max(x0, box[0])) * max(0, min(y1, box[3]) - max(y0, box[1]))
    union = (x1 - x0) * (y1 - y0) + (box[2] - box[0]) * (box[3] - box[1]) - overlap
    assert overlap / union > 0.8
    assert all(best.mask[y, x] for x, y in inside)
    assert not any(best.mask[y, x] for x, y in outside)
    assert best.score > 0.55
