import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.grabcut import GrabCut
from models.motion_saliency import MotionSaliency
from models.protocols import FillRequest, Keyframe
from models.quilting import Quilting, quilt


@pytest.fixture(scope="module")
def inpainter() -> Quilting:
    return Quilting(Quilting.Config(), Path())


def noise(height, width, seed, mean, deviation=25.0):
    values = cv2.GaussianBlur(np.random.default_rng(seed).normal(0, 1, (height, width)).astype(np.float32), (0, 0), 1.5)
    return np.clip(np.array(mean) + deviation * values[..., None] / values.std(), 0, 255).astype(np.uint8)


def landscape(height=240, width=320):
    """Blue sky over green grass with a pole on the left, a red disc in the middle; and the disc's mask."""
    image = noise(height, width, 0, (90, 150, 220), 10)
    image[height // 2 :] = noise(height - height // 2, width, 1, (60, 140, 50))
    image[:, 30:40] = (240, 240, 240)
    disc = np.zeros((height, width), np.uint8)
    cv2.circle(disc, (width // 2, height // 2), 40, 1, -1)
    image[disc > 0] = noise(height, width, 2, (210, 30, 30))[disc > 0]
    return image, disc > 0


def fill_one(inpainter, image, mask, seed=0):
    return inpainter.fill([FillRequest(image, mask, "", seed)])[0]


def reddish(pixels):
    pixels = pixels.astype(int)
    return (pixels[..., 0] > pixels[..., 1] + 60) & (pixels[..., 0] > pixels[..., 2] + 60)


def sharpness(image, where):
    return float(np.abs(cv2.Laplacian(image, cv2.CV_32F))[where].mean())


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_new_surroundings_keep_the_subject_and_lose_its_ghost(inpainter, seed):
    image, subject = landscape()

    filled = fill_one(inpainter, image, ~subject, seed)

    assert np.array_equal(filled[subject], image[subject])
    beyond = cv2.dilate(subject.astype(np.uint8), np.ones((7, 7), np.uint8)) == 0
    assert reddish(image[subject]).mean() > 0.9
    assert reddish(filled[beyond]).mean() < 0.002


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_new_surroundings_are_another_scene_of_the_same_materials(inpainter, seed):
    image, subject = landscape()

    filled = fill_one(inpainter, image, ~subject, seed)

    assert np.abs(filled[~subject].astype(int) - image[~subject]).mean() > 10
    assert not np.array_equal(filled[:, 30:40], image[:, 30:40])
    assert 0.6 < sharpness(filled, ~subject) / sharpness(image, ~subject) < 1.6
    sky, grass = filled[:60].reshape(-1, 3).mean(axis=0), filled[-60:].reshape(-1, 3).mean(axis=0)
    assert sky.argmax() == 2
    assert grass.argmax() == 1


def test_the_subject_blends_into_its_new_surroundings(inpainter):
    image, subject = landscape()

    filled = fill_one(inpainter, image, ~subject, 1)

    grown = cv2.dilate(subject.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
    wider = cv2.dilate(subject.astype(np.uint8), np.ones((13, 13), np.uint8)) > 0
    first, further = (filled[ring].astype(float).mean(axis=0) for ring in (grown & ~subject, wider & ~grown))
    inside = filled[subject].astype(float).mean(axis=0)
    share = float(((first - further) * (inside - further)).sum() / ((inside - further) ** 2).sum())
    assert 0.1 < share < 0.6


def test_the_seed_decides(inpainter):
    image, subject = landscape()

    once, again, other = (fill_one(inpainter, image, ~subject, seed) for seed in (5, 5, 6))

    assert np.array_equal(once, again)
    assert np.abs(once.astype(int) - other).mean() > 3


def test_a_removed_object_is_gone_and_its_border_invisible(inpainter):
    image, subject = landscape()
    mask = cv2.dilate(subject.astype(np.uint8), np.ones((5, 5), np.uint8)) > 0

    filled = fill_one(inpainter, image, mask)

    assert np.array_equal(filled[~mask], image[~mask])
    assert reddish(filled).mean() < 0.001
    upper, lower = mask.copy(), mask.copy()
    upper[110:] = False
    lower[:130] = False
    assert filled[upper].mean(axis=0).argmax() == 2
    assert filled[lower].mean(axis=0).argmax() == 1
    assert 0.5 < sharpness(filled, mask) / sharpness(image, ~mask) < 1.5
    steps = np.abs(np.diff(filled.astype(float), axis=1)).mean(axis=2)
    across = mask[:, 1:] != mask[:, :-1]
    assert steps[across].mean() < 1.5 * steps[~mask[:, 1:] & ~mask[:, :-1]].mean()


def test_what_the_mask_means_is_decided_by_its_share(inpainter):
    image, _ = landscape()
    small, frame, most = (np.zeros(image.shape[:2], bool) for _ in range(3))
    small[100:140, 100:160] = True
    frame[:] = True
    frame[10:-10, 10:-10] = False
    most[:, :200] = True

    close = np.ones(image.shape[:2], bool)  # A bust that fills its crop: the lower edge cuts it off.
    close[:40] = close[:, :40] = close[:, -40:] = False

    assert close.mean() > 0.5
    assert not inpainter._is_surroundings(close)
    assert inpainter._is_surroundings(~close)
    assert not inpainter._is_surroundings(small)
    assert inpainter._is_surroundings(frame)
    assert inpainter._is_surroundings(most)


def test_quilting_copies_only_usable_pixels():
    exemplar = noise(120, 160, 3, (120, 120, 120), 20).astype(np.float32)
    usable = np.ones((120, 160), bool)
    exemplar[:, 100:] += 100
    usable[:, 100:] = False
    known = np.zeros((120, 160), bool)
    known[:, :40] = True
    rng = np.random.default_rng(0)

    painted = quilt(exemplar, known, wanted=np.ones_like(known), exemplar=exemplar, usable=usable, side=32, rng=rng)

    assert np.abs(painted[:, 60:].mean() - exemplar[usable].mean()) < 10
    assert painted.max() <= exemplar[usable].max() + 10


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 48), st.integers(1, 48), st.floats(0, 1), st.booleans(), st.integers(0, 2**31))
def test_unmasked_pixels_are_never_touched(height, width, share, blobs, seed):
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    field = rng.random((height, width)).astype(np.float32)
    mask = (cv2.GaussianBlur(field, (0, 0), 3) if blobs else field) < share
    before = image.copy()

    filled = fill_one(Quilting(Quilting.Config(), Path()), image, mask, seed)

    assert filled.shape == image.shape
    assert filled.dtype == np.uint8
    assert np.array_equal(image, before)
    assert np.array_equal(filled[~mask], image[~mask])


@pytest.mark.parametrize("shape", [(1, 1), (3, 500), (500, 3), (2, 2), (70, 90)])
@pytest.mark.parametrize("share", [0, 1])
def test_odd_sizes_do_not_crash(inpainter, shape, share):
    black = np.zeros((*shape, 3), np.uint8)

    filled = fill_one(inpainter, black, np.full(shape, bool(share)))

    assert filled.shape == black.shape
    assert not filled.any()


def test_nothing_to_paint_gives_an_equal_copy(inpainter):
    image, subject = landscape()

    filled = fill_one(inpainter, image, np.zeros_like(subject))

    assert np.array_equal(filled, image)
    assert filled is not image


def test_a_batch_equals_one_by_one(inpainter):
    image, subject = landscape()
    requests = [
        FillRequest(image, ~subject, "", 1),
        FillRequest(image, subject, "", 2),
        FillRequest(image[20:200, 10:300].copy(), ~subject[20:200, 10:300], "a beach", 1),
    ]

    together = inpainter.fill(requests)
    cv2.setRNGSeed(7)
    alone = [inpainter.fill([request])[0] for request in reversed(requests)][::-1]

    assert all(np.array_equal(a, b) for a, b in zip(together, alone, strict=True))


@pytest.mark.parametrize(
    ("name", "index"), [("koala_echidna.mp4", 40), ("davis_bear.mp4", 20), ("mdn_rabbit_vp8.webm", 199)]
)
def test_real_subjects_get_new_surroundings(inpainter, frame, name, index):
    keyframe = Keyframe(0.0, frame(name, index), frame(name, index + 4))
    found = MotionSaliency(MotionSaliency.Config(), Path()).detect([[keyframe]], [[]])
    subject = GrabCut(GrabCut.Config(), Path()).segment([[keyframe]], found)[0][0][0].mask
    scale = 512 / max(subject.shape)
    image = cv2.resize(keyframe.image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    subject = cv2.resize(subject.astype(np.float32), image.shape[1::-1]) > 0.5

    start = time.process_time()
    filled = fill_one(inpainter, image, ~subject, 3)
    seconds = time.process_time() - start

    assert np.array_equal(filled[subject], image[subject])
    assert np.abs(filled[~subject].astype(int) - image[~subject]).mean() > 8
    assert 0.4 < sharpness(filled, ~subject) / sharpness(image, ~subject) < 2
    assert seconds < 10  # about 0.5; the bound only catches a loop that does not end
