from itertools import combinations
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.colour_texture import LENGTH, ColourTexture, binary_patterns
from models.grabcut import GrabCut
from models.motion_saliency import MotionSaliency
from models.protocols import Keyframe


@pytest.fixture(scope="module")
def embedder() -> ColourTexture:
    return ColourTexture(ColourTexture.Config(), Path())


def ellipse(height, width):
    mask = np.zeros((height, width), np.uint8)
    cv2.ellipse(mask, (width // 2, height // 2), (width // 3, round(height / 2.4)), 0, 0, 360, 1, -1)
    return mask > 0


@pytest.fixture(scope="module")
def photos():
    data = pytest.importorskip("skimage.data", reason="scikit-image's photos are not installed")
    images = [data.astronaut(), data.chelsea(), data.coffee(), data.rocket()]
    return images, [ellipse(*image.shape[:2]) for image in images]


def cosine(embedder, image, mask, other_image, other_mask):
    a, b = embedder.embed([image, other_image], [mask, other_mask])
    return float(a @ b)


def resized(image, mask, scale):
    image = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    return image, cv2.resize(mask.astype(np.float32), image.shape[1::-1]) > 0.5


def test_vectors_have_one_length_and_unit_norm(embedder, photos):
    vectors = embedder.embed(*photos)

    assert {vector.shape for vector in vectors} == {(LENGTH,)}
    assert {vector.dtype for vector in vectors} == {np.dtype(np.float32)}
    assert np.allclose([np.linalg.norm(vector) for vector in vectors], 1, atol=1e-5)


@pytest.mark.parametrize("which", range(4))
@pytest.mark.parametrize("scale", [0.4, 0.7, 1.5])
def test_the_same_thing_at_another_size_is_the_same(embedder, photos, which, scale):
    image, mask = photos[0][which], photos[1][which]

    assert cosine(embedder, image, mask, *resized(image, mask, scale)) > 0.95


@pytest.mark.parametrize("which", range(4))
@pytest.mark.parametrize(("gamma", "gain"), [(0.8, 1.0), (1.25, 1.0), (1.0, 0.75)])
def test_the_same_thing_in_another_light_is_the_same(embedder, photos, which, gamma, gain):
    image, mask = photos[0][which], photos[1][which]
    lit = np.clip((image / 255) ** gamma * gain * 255, 0, 255).astype(np.uint8)

    assert cosine(embedder, image, mask, lit, mask) > 0.85


@pytest.mark.parametrize("which", range(4))
def test_a_mirrored_thing_is_the_same(embedder, photos, which):
    image, mask = photos[0][which], photos[1][which]

    assert cosine(embedder, image, mask, image[:, ::-1].copy(), mask[:, ::-1].copy()) > 0.9


def test_different_things_are_apart(embedder, photos):
    vectors = embedder.embed(*photos)

    assert max(float(a @ b) for a, b in combinations(vectors, 2)) < 0.7


def test_only_the_pixels_inside_the_mask_count(embedder, photos):
    image, mask = photos[0][0], photos[1][0]
    elsewhere = image.copy()
    elsewhere[~mask] = np.random.default_rng(0).integers(0, 255, elsewhere[~mask].shape)

    assert cosine(embedder, image, mask, elsewhere, mask) > 0.999
    assert cosine(embedder, image, ~mask, elsewhere, ~mask) < 0.8


def test_colour_texture_and_layout_each_count():
    colours = np.full((60, 60, 3), (200, 40, 40), np.uint8), np.full((60, 60, 3), (40, 40, 200), np.uint8)
    stripes = np.where(np.arange(60) // 3 % 2, 200, 60).astype(np.uint8)
    textures = tuple(np.repeat(np.ascontiguousarray(x)[..., None], 3, axis=2) for x in np.meshgrid(stripes, stripes))
    flag = np.concatenate([colours[0][:30], colours[1][:30]])
    everything = np.ones((60, 60), bool)
    pairs = {"colour": colours, "texture": textures, "layout": (flag, flag[::-1].copy())}

    for name, (a, b) in pairs.items():
        weights = {"colour": 0.0, "lightness": 0.0, "texture": 0.0, "layout": 0.0, name: 1.0}
        without = {"colour": 1.0, "lightness": 1.0, "texture": 1.0, "layout": 1.0, name: 0.0}
        with_it = ColourTexture(ColourTexture.Config(**weights), Path())
        assert cosine(with_it, a, everything, a, everything) == pytest.approx(1, abs=1e-4), name
        assert cosine(with_it, a, everything, b, everything) < 0.7, name
        if name != "colour":  # the layout's colours change with it
            assert cosine(ColourTexture(ColourTexture.Config(**without), Path()), a, everything, b, everything) > 0.85


def test_binary_patterns_count_the_brighter_arc():
    flat = np.full((5, 5), 50, np.float32)
    spot = flat.copy()
    spot[2, 2] = 0
    corners = flat.copy()
    corners[1, 1] = corners[3, 3] = 90

    assert (binary_patterns(flat) == 0).all()
    assert binary_patterns(spot)[2, 2] == 8
    assert binary_patterns(corners)[2, 2] == 9


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 60), st.integers(1, 60), st.floats(0, 1), st.integers(0, 2**31))
def test_any_picture_and_mask_give_a_finite_unit_vector(height, width, share, seed):
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    mask = rng.random((height, width)) < share

    vector = ColourTexture(ColourTexture.Config(), Path()).embed([image], [mask])[0]

    assert np.isfinite(vector).all()
    assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("shape", [(1, 1), (3, 500), (500, 3), (64, 64)])
def test_black_pictures_do_not_crash(embedder, shape):
    vector = embedder.embed([np.zeros((*shape, 3), np.uint8)], [np.ones(shape, bool)])[0]

    assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-4)


def test_a_batch_equals_one_by_one(embedder, photos):
    together = embedder.embed(*photos)

    for i in reversed(range(4)):
        assert np.array_equal(embedder.embed([photos[0][i]], [photos[1][i]])[0], together[i])


def test_images_and_masks_must_match(embedder):
    with pytest.raises(ValueError, match="zip"):
        embedder.embed([np.zeros((4, 4, 3), np.uint8)], [])


def test_people_in_their_clothes_are_told_apart(embedder, frame):
    clips = {
        "A": ("asl_personA_again.mkv", "asl_personA_help.mkv"),
        "B": ("asl_personB_book.mkv", "asl_personB_walk.mkv"),
        "C": ("asl_personC_bird.mkv", "asl_personC_thanks.mkv"),
    }
    jersey = np.zeros((480, 640), bool)
    jersey[210:350, 255:385] = True  # the chest: all three stand in the same place
    names = [name for pair in clips.values() for name in pair]

    vectors = embedder.embed([frame(name, 5) for name in names], [jersey] * len(names))

    same = [float(vectors[i] @ vectors[i + 1]) for i in (0, 2, 4)]
    other = [float(vectors[i] @ vectors[j]) for i, j in combinations(range(6), 2) if i // 2 != j // 2]
    assert min(same) > max(other)
    assert min(same) > 0.75


def test_found_subjects_of_one_clip_are_nearer_than_those_of_others(embedder, frame):
    detector, segmenter = MotionSaliency(MotionSaliency.Config(), Path()), GrabCut(GrabCut.Config(), Path())
    clips = [
        [Keyframe(0.0, frame(name, i), frame(name, i + 4)) for i in indices]
        for name, indices in [
            ("koala_echidna.mp4", (20, 80)),
            ("davis_bear.mp4", (20, 50)),
            ("mdn_rabbit_vp8.webm", (120, 199)),
        ]
    ]
    masks = [one[0].mask for clip in segmenter.segment(clips, detector.detect(clips, [[]] * 3)) for one in clip]

    vectors = embedder.embed([keyframe.image for clip in clips for keyframe in clip], masks)

    same = [float(vectors[i] @ vectors[i + 1]) for i in (0, 2, 4)]
    other = [float(vectors[i] @ vectors[j]) for i, j in combinations(range(6), 2) if i // 2 != j // 2]
    assert min(same) > 0.75
    assert max(other) < 0.75
    assert min(same) > max(other)
