from pathlib import Path

import cv2
import numpy as np
import pytest

from models.motion_saliency import MotionSaliency, otsu, residual_motion
from models.protocols import Keyframe


@pytest.fixture(scope="module")
def detector() -> MotionSaliency:
    return MotionSaliency(MotionSaliency.Config(), Path())


def textured(height, width, seed, colour=(128, 128, 128), contrast=60.0):
    noise = np.random.default_rng(seed).normal(0, 1, (height, width, 1)).astype(np.float32)
    noise = cv2.GaussianBlur(noise, (0, 0), 2.5)[..., None]
    return np.clip(np.array(colour) + contrast * noise / noise.std(), 0, 255).astype(np.uint8)


def disc(height, width, centre, radius):
    mask = np.zeros((height, width), np.uint8)
    cv2.circle(mask, centre, radius, 1, -1)
    return mask > 0


def scene(shift_of_disc, shift_of_camera, *, colour=(128, 128, 128), size=(360, 640)):
    """A textured disc before a textured scene, a moment later both shifted by pixels; and the disc's mask."""
    height, width = size
    wide = textured(height + 80, width + 80, 1)
    skin = textured(height + 80, width + 80, 2, colour)

    def view(disc_at, camera_at):
        image = wide[40 - camera_at[1] :, 40 - camera_at[0] :][:height, :width].copy()
        mask = disc(height, width, (280 + disc_at[0], 180 + disc_at[1]), 80)
        image[mask] = skin[40 - disc_at[1] :, 40 - disc_at[0] :][:height, :width][mask]
        return image, mask

    first, mask = view((0, 0), (0, 0))
    return Keyframe(0.0, first, view(shift_of_disc, shift_of_camera)[0]), mask


def iou(a, b):
    return (a & b).sum() / (a | b).sum()


def only(found):
    assert len(found) == 1
    return found[0]


def test_a_disc_of_the_scenes_own_colours_is_found_by_its_motion(detector):
    keyframe, mask = scene((12, 0), (-6, 3))

    found = only(detector.detect([[keyframe]], [["ball", "scene"]])[0][0])

    assert iou(found.prior, mask) >= 0.8
    assert np.abs(np.array(found.box) - (200, 100, 361, 261)).max() < 25
    assert found.word == "ball"
    assert 0 < found.score <= 1


def test_without_motion_that_disc_is_not_found(detector):
    keyframe, mask = scene((0, 0), (0, 0))

    found = detector.detect([[keyframe]], [["ball"]])[0][0]

    assert not found or iou(found[0].prior, mask) < 0.5


def test_a_disc_of_another_colour_is_found_in_a_still_picture(detector):
    keyframe, mask = scene((0, 0), (0, 0), colour=(230, 90, 20))
    still = Keyframe(0.0, keyframe.image, keyframe.image.copy())

    found = only(detector.detect([[still]], [[]])[0][0])

    assert iou(found.prior, mask) >= 0.8
    assert found.word == "subject"


def test_a_clear_subject_scores_higher_than_noise(detector):
    clear, _ = scene((12, 0), (0, 0), colour=(230, 90, 20))
    noise = textured(360, 640, 3)

    good = only(detector.detect([[clear]], [[]])[0][0]).score
    bad = detector.detect([[Keyframe(0.0, noise, noise)]], [[]])[0][0]

    assert good > 0.7
    assert not bad or bad[0].score < 0.5


def test_black_bars_are_not_the_scene(detector):
    keyframe, mask = scene((12, 0), (0, 0), colour=(230, 90, 20))
    barred = np.zeros((360, 1000, 3), np.uint8)
    barred_later, barred_mask = barred.copy(), np.zeros((360, 1000), bool)
    for target, source in ((barred, keyframe.image), (barred_later, keyframe.neighbour), (barred_mask, mask)):
        target[:, 180:820] = source

    found = only(detector.detect([[Keyframe(0.0, barred, barred_later)]], [[]])[0][0])

    assert iou(found.prior, barred_mask) >= 0.75


def test_the_camera_alone_is_no_motion():
    wide = textured(200, 340, 5)
    image, later = wide[10:190, 10:330], wide[14:194, 3:323]

    still = residual_motion(np.ascontiguousarray(image), np.ascontiguousarray(image))
    panned = residual_motion(np.ascontiguousarray(image), np.ascontiguousarray(later))

    assert not still.any()
    assert np.median(panned) < 0.05
    assert panned.mean() < 0.1


def test_otsu_separates_two_classes_and_no_flat_map():
    two = np.zeros((10, 10), np.float32)
    two[:, 7:] = 0.8

    threshold, separability = otsu(two)

    assert 0 < threshold < 0.8
    assert separability == pytest.approx(1)
    assert otsu(np.full((10, 10), 0.3, np.float32))[1] == 0


@pytest.mark.parametrize("shape", [(1, 1), (3, 500), (500, 3), (20, 320), (24, 320), (37, 53)])
@pytest.mark.parametrize("content", ["black", "noise"])
def test_odd_sizes_do_not_crash(detector, shape, content):
    image = np.zeros((*shape, 3), np.uint8)
    if content == "noise":
        image = np.random.default_rng(0).integers(0, 255, image.shape, dtype=np.uint8)

    found = detector.detect([[Keyframe(0.0, image, image[::-1].copy())]], [["dog"]])[0][0]

    assert len(found) <= 1
    assert not (content == "black" and found)
    assert all(detection.prior.shape == shape and detection.prior.any() for detection in found)


def test_an_empty_clip_has_no_detections(detector):
    assert detector.detect([[], []], [["dog"], []]) == [[], []]


def test_clips_and_words_must_match(detector):
    with pytest.raises(ValueError, match="zip"):
        detector.detect([[]], [])


def test_a_batch_equals_one_by_one(detector):
    clips = [
        [scene((12, 0), (-6, 3))[0], scene((9, 4), (0, 0))[0]],
        [scene((0, 8), (2, 0), colour=(20, 90, 200), size=(300, 420))[0]],
    ]
    words = [["ball"], []]

    together = detector.detect(clips, words)
    cv2.setRNGSeed(99)  # what ran before must not matter
    alone = [detector.detect([clip], [word])[0] for clip, word in zip(clips, words, strict=True)]

    for a, b in zip(sum(together, []), sum(alone, []), strict=True):  # noqa: RUF017
        assert (only(a).word, only(a).box, only(a).score) == (only(b).word, only(b).box, only(b).score)
        assert np.array_equal(only(a).prior, only(b).prior)


@pytest.mark.parametrize(
    ("name", "index", "box"),
    [
        ("koala_echidna.mp4", 40, (0, 125, 1085, 560)),
        ("davis_bear.mp4", 20, (108, 212, 462, 410)),
        ("mdn_rabbit_vp8.webm", 199, (112, 45, 195, 139)),
    ],
)
def test_real_subjects_are_where_they_are(detector, frame, name, index, box):
    keyframe = Keyframe(0.0, frame(name, index), frame(name, index + 4))

    found = only(detector.detect([[keyframe]], [["it"]])[0][0])

    x0, y0, x1, y1 = found.box
    overlap = max(0, min(x1, box[2]) - max(x0, box[0])) * max(0, min(y1, box[3]) - max(y0, box[1]))
    union = (x1 - x0) * (y1 - y0) + (box[2] - box[0]) * (box[3] - box[1]) - overlap
    assert overlap / union > 0.75
    assert found.score > 0.5
