from __future__ import annotations

import csv
from functools import cache
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from models.protocols import Image, Keyframe, Mask
from stages.measure import (
    aligned_iou,
    area,
    border_contact,
    brightness,
    decode_rle,
    encode_rle,
    fragments,
    letterbox_share,
    luma,
    motion_magnitude,
    perceptual_hash,
    picture_difference,
    sharpness,
    static_share,
    straightness,
    subject_sharpness,
)
from stages.media import probe, read_keyframes

CLIPS = Path(__file__).parents[2].parent / "shared" / "clips"
needs_clips = pytest.mark.skipif(not CLIPS.is_dir(), reason="the real clips (../shared/clips) are not on this machine")

masks = arrays.arrays(np.bool_, st.tuples(st.integers(1, 24), st.integers(1, 24)))
mask_pairs = st.tuples(st.integers(1, 16), st.integers(1, 16)).flatmap(
    lambda shape: st.tuples(arrays.arrays(np.bool_, shape), arrays.arrays(np.bool_, shape))
)
hashes = st.integers(-(2**63), 2**63 - 1)
images = arrays.arrays(np.uint8, st.tuples(st.integers(8, 40), st.integers(8, 40), st.just(3)))


@cache
def keyframes(name: str, count: int = 6) -> list[Keyframe]:
    path = CLIPS / name
    seconds = probe(path).duration_s
    times = [(number + 0.5) * seconds / count for number in range(count)]
    return read_keyframes(path, times, 1 / 24, 480)


def pictures(name: str) -> list[Image]:
    return [keyframe.image for keyframe in keyframes(name)]


def noise(height: int = 120, width: int = 160, seed: int = 0, cell: int = 4) -> Image:
    coarse = np.random.default_rng(seed).integers(40, 215, (height // cell, width // cell, 3)).astype(np.uint8)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)


def grey(level: int, height: int = 120, width: int = 160) -> Image:
    return np.full((height, width, 3), level, np.uint8)


def disc(height: int = 120, width: int = 160, centre: tuple[float, float] = (80, 60), radius: float = 30) -> Mask:
    rows, columns = np.indices((height, width))
    return np.hypot(columns - centre[0], rows - centre[1]) <= radius


def rectangle(height: int, width: int, box: tuple[int, int, int, int]) -> Mask:
    mask = np.zeros((height, width), bool)
    mask[box[1] : box[3], box[0] : box[2]] = True
    return mask


# Pictures


def test_luma_is_bt601_of_rgb_and_not_of_bgr() -> None:
    assert luma(np.full((1, 1, 3), (255, 0, 0), np.uint8)).item() == 76
    assert luma(np.full((1, 1, 3), (0, 0, 255), np.uint8)).item() == 29


def test_brightness_counts_the_pixels_inside_the_mask_only() -> None:
    image = grey(20)
    image[:, 80:] = 200
    assert brightness(image) == 110
    assert brightness(image, rectangle(120, 160, (80, 0, 160, 120))) == 200
    assert brightness(image, np.zeros((120, 160), bool)) == 0


def test_sharpness_falls_with_blur_and_is_zero_on_an_even_picture() -> None:
    values = [sharpness(image, 120) for image in (noise(), *(cv2.GaussianBlur(noise(), (0, 0), s) for s in (1, 2, 4)))]
    assert values == sorted(values, reverse=True)
    assert values[0] > 10 * values[-1]
    assert sharpness(grey(90), 120) == 0


def test_a_small_picture_of_a_scene_is_less_sharp_than_a_large_one() -> None:
    large = noise(480, 640)
    small = cv2.resize(large, (80, 60), interpolation=cv2.INTER_AREA)
    assert sharpness(small, 360) < sharpness(large, 360) / 5


def test_the_edge_of_the_mask_is_no_detail() -> None:
    image, mask = grey(20), disc()
    image[mask] = 220
    assert sharpness(image, 120) > 100
    assert sharpness(image, 120, mask) < 1
    assert sharpness(image, 240, mask) < 1


def test_sharpness_of_a_mask_too_thin_to_look_inside_is_zero() -> None:
    assert sharpness(noise(), 120, rectangle(120, 160, (40, 10, 42, 100))) == 0
    assert sharpness(noise(), 120, np.zeros((120, 160), bool)) == 0


def test_subject_sharpness_does_not_depend_on_the_margin_around_the_subject() -> None:
    image, mask = noise(200, 200), disc(200, 200, (100, 100), 40)
    whole = subject_sharpness(image, mask)
    assert whole > 0
    assert subject_sharpness(image[40:160, 50:150], mask[40:160, 50:150]) == whole
    assert subject_sharpness(image, np.zeros_like(mask)) == 0


@settings(max_examples=30, deadline=None)
@given(images)
def test_perceptual_hash_fits_a_signed_64_bit_column(image: Image) -> None:
    assert -(2**63) <= perceptual_hash(image) < 2**63


def test_perceptual_hashes_of_copies_are_near_and_of_others_far() -> None:
    image = noise(seed=1)
    copy = cv2.resize(image, (320, 240))
    own, near, far = (np.int64(perceptual_hash(picture)).view(np.uint64) for picture in (image, copy, noise(seed=2)))
    assert np.bitwise_count(own ^ near) <= 4
    assert np.bitwise_count(own ^ far) > 16


# Masks


@given(masks)
def test_area_is_a_share(mask: Mask) -> None:
    assert area(mask) == pytest.approx(mask.sum() / mask.size)


@given(masks)
def test_border_contact_is_a_share(mask: Mask) -> None:
    assert 0 <= border_contact(mask) <= 1


def test_border_contact_grows_as_the_frame_cuts_the_subject() -> None:
    inside, cut, more = (disc(centre=(80, y)) for y in (60, 105, 120))
    assert border_contact(inside) == 0
    assert 0 < border_contact(cut) < border_contact(more) < 1
    assert border_contact(np.ones((120, 160), bool)) == 1
    assert border_contact(np.zeros((120, 160), bool)) == 0


def test_a_mask_that_stops_a_pixel_before_the_edge_touches_it() -> None:
    assert border_contact(rectangle(400, 400, (100, 1, 200, 300))) == pytest.approx(0.125, abs=0.01)


def test_fragments_counts_parts_that_matter() -> None:
    mask = disc(centre=(40, 60), radius=20) | disc(centre=(120, 60), radius=20)
    assert fragments(mask) == 2
    mask[0, 0] = True
    assert fragments(mask) == 2
    assert fragments(np.zeros((9, 9), bool)) == 0


@settings(deadline=None)
@given(masks)
def test_straightness_is_a_share(mask: Mask) -> None:
    assert 0 <= straightness(mask) <= 1


def test_boxes_are_straight_and_round_things_are_not() -> None:
    assert straightness(rectangle(240, 320, (60, 50, 200, 190))) > 0.97
    assert straightness(disc(240, 320, (150, 120), 80)) < 0.3
    # A subject in a box is half and half.
    half = disc(240, 320, (150, 120), 80) | rectangle(240, 320, (150, 40, 230, 200))
    assert 0.4 < straightness(half) < 0.8


def test_straightness_does_not_depend_on_resolution() -> None:
    fine = disc(960, 1280, (600, 480), 320) | rectangle(960, 1280, (600, 160, 920, 800))
    coarse = cv2.resize(fine.astype(np.uint8), (160, 120), interpolation=cv2.INTER_NEAREST) > 0
    assert straightness(coarse) == pytest.approx(straightness(fine), abs=0.1)


def test_the_edge_of_the_frame_is_not_held_against_a_mask() -> None:
    cut = disc(240, 320, (160, 240), 90)
    assert border_contact(cut) > 0.25
    assert straightness(cut) < 0.3
    assert straightness(np.ones((240, 320), bool)) == 0


@settings(deadline=None, max_examples=50)
@given(
    st.floats(40, 120), st.floats(40, 120), st.floats(12, 30), st.floats(40, 120), st.floats(40, 120), st.floats(12, 30)
)
def test_aligned_iou_ignores_place_and_size(
    x: float, y: float, radius: float, other_x: float, other_y: float, other_radius: float
) -> None:
    a, b = disc(160, 160, (x, y), radius), disc(160, 160, (other_x, other_y), other_radius)
    assert aligned_iou(a, b) > 0.88
    assert aligned_iou(a, b) == aligned_iou(b, a)


def test_aligned_iou_sees_another_shape() -> None:
    lying, standing = rectangle(200, 200, (20, 90, 180, 110)), rectangle(200, 200, (90, 20, 110, 180))
    assert aligned_iou(lying, standing) < 0.15
    assert aligned_iou(lying, lying) == 1
    assert aligned_iou(lying, np.zeros((200, 200), bool)) == 0


@given(masks)
def test_rle_round_trip(mask: Mask) -> None:
    counts = encode_rle(mask)
    assert counts.isascii()
    decoded = decode_rle(counts, *mask.shape)
    assert decoded.dtype == np.bool_
    assert np.array_equal(decoded, mask)


# Clips


def barred(top: int, bottom: int, left: int, right: int, level: int = 16) -> list[Image]:
    frames = [noise(seed=seed) for seed in range(3)]
    for frame in frames:
        frame[:top] = frame[120 - bottom :] = level
        frame[:, :left] = frame[:, 160 - right :] = level
    return frames


@pytest.mark.parametrize("sides", [(0, 0, 0, 0), (15, 15, 0, 0), (0, 0, 30, 30), (10, 10, 20, 20), (12, 0, 0, 0)])
@pytest.mark.parametrize("level", [0, 16, 250])
def test_letterbox_share_is_the_area_of_the_bars(sides: tuple[int, int, int, int], level: int) -> None:
    top, bottom, left, right = sides
    expected = 1 - (120 - top - bottom) * (160 - left - right) / (120 * 160)
    assert letterbox_share(barred(*sides, level)) == pytest.approx(expected, abs=0.02)


def test_a_dark_scene_is_no_bar() -> None:
    frames = [grey(4) for _ in range(3)]
    for shift, frame in enumerate(frames):
        frame[disc(centre=(70 + 5 * shift, 60))] = 180
    assert letterbox_share(frames) == 0
    assert letterbox_share([grey(0)] * 3) == 0


def test_a_strip_that_is_black_only_for_a_while_is_no_bar() -> None:
    frames = barred(20, 20, 0, 0)
    frames[1] = noise(seed=9)
    assert letterbox_share(frames) == 0


def test_static_share_is_the_share_that_never_changes() -> None:
    frames = [noise(seed=7).copy() for _ in range(4)]
    assert static_share(frames) == 1
    for seed, frame in enumerate(frames):
        frame[:, 40:] = noise(seed=seed)[:, 40:]
    assert static_share(frames) == pytest.approx(0.25, abs=0.05)


def test_motion_is_the_shift_over_the_diagonal_and_the_time() -> None:
    wide = noise(240, 330, cell=12)
    before, after = wide[:, :320], wide[:, 3:323]
    thousandths = 1000 * 3 / np.hypot(240, 320)
    assert motion_magnitude(before, after, 1 / 24) == pytest.approx(thousandths, rel=0.15)
    assert motion_magnitude(before, after, 1 / 12) == pytest.approx(thousandths / 2, rel=0.15)
    assert motion_magnitude(before, before, 1 / 24) < 0.05


def test_opposite_motions_do_not_cancel() -> None:
    wide = noise(240, 330, cell=12)
    before = wide[:, 3:323]
    after = np.vstack([wide[:120, :320], wide[120:, 6:326]])
    assert motion_magnitude(before, after, 1 / 24) == pytest.approx(1000 * 3 / np.hypot(240, 320), rel=0.2)


@pytest.mark.parametrize("shape", [(8, 8), (2, 200), (300, 4)])
def test_tiny_and_narrow_pictures_are_measured_too(shape: tuple[int, int]) -> None:
    image = np.random.default_rng(0).integers(0, 255, (*shape, 3)).astype(np.uint8)
    assert np.isfinite(motion_magnitude(image, image, 0.04))
    assert np.isfinite(sharpness(image, 360))
    assert 0 <= letterbox_share([image]) <= 1
    assert static_share([image, image]) == 1
    assert picture_difference(image, image) == pytest.approx(0, abs=1e-5)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 99), st.integers(0, 99), st.integers(8, 60), st.integers(8, 60))
def test_picture_difference_is_symmetric_and_zero_for_identical_pictures(
    seed: int, other: int, height: int, width: int
) -> None:
    a, b = noise(height, width, seed), noise(width, height, other)
    assert 0 <= picture_difference(a, b) <= 1
    assert picture_difference(a, b) == pytest.approx(picture_difference(b, a), abs=1e-6)
    assert picture_difference(a, a) == pytest.approx(0, abs=1e-5)


def test_plain_pictures_differ_by_colour_alone() -> None:
    assert picture_difference(grey(80), grey(80)) == 0
    assert picture_difference(grey(80), grey(120)) < 0.001
    assert picture_difference(np.full((60, 60, 3), (200, 30, 30), np.uint8), grey(80, 60, 60)) > 0.2


# Real clips


@needs_clips
def test_bars_of_real_clips() -> None:
    assert letterbox_share(pictures("panda_car_letterbox.mp4")) == pytest.approx(0.23, abs=0.02)
    assert letterbox_share(pictures("panda_skate_pillarbox.mp4")) == pytest.approx(0.43, abs=0.02)
    for name in ("panda_woman_headset_dark.mp4", "panda_comedian.mp4", "panda_dolphins.mp4", "panda_bw_film.mp4"):
        assert letterbox_share(pictures(name)) == 0, name


@needs_clips
@pytest.mark.parametrize("name", ["panda_woman_headset_dark.mp4", "panda_goalkeeper.mp4", "panda_bw_film.mp4"])
def test_brightness_agrees_with_the_mean_over_all_frames(name: str) -> None:
    with (CLIPS / "index.csv").open() as file:
        expected = next(float(row["luma_mean"]) for row in csv.DictReader(file) if row["file"] == name)
    assert np.mean([brightness(image) for image in pictures(name)]) == pytest.approx(expected, abs=4)


@needs_clips
def test_real_clips_that_stand_still_and_that_move() -> None:
    def share(name: str) -> float:
        return static_share([picture for key in keyframes(name) for picture in (key.image, key.neighbour)])

    def motion(name: str) -> float:
        return float(np.mean([motion_magnitude(key.image, key.neighbour, 1 / 24) for key in keyframes(name)]))

    assert share("panda_nes_game.mp4") > 0.8
    assert share("asl_personC_milk.mkv") < 0.8
    assert share("panda_goalkeeper.mp4") < 0.05
    assert motion("panda_nes_game.mp4") < 0.1 < motion("asl_personC_milk.mkv") < 2 < motion("panda_goalkeeper.mp4")
    assert motion("panda_kid_ball_60fps.mp4") > 25


@needs_clips
def test_real_clips_without_detail_are_less_sharp() -> None:
    def median(name: str) -> float:
        return float(np.median([sharpness(image, 360) for image in pictures(name)]))

    blurred = max(median(name) for name in ("panda_bw_film.mp4", "decord_pancake_240p.mkv", "daft_singer_192x144.mp4"))
    clear = min(median(name) for name in ("asl_personB_book.mkv", "panda_goalkeeper.mp4", "panda_herbs_subtitle.mp4"))
    assert blurred < 40 < 100 < clear
    # Within a clip, the frames that the moving camera blurs.
    store = [sharpness(image, 360) for image in pictures("panda_shelf_motion_blur.mp4")]
    assert min(store) < max(store) / 3


@needs_clips
def test_picture_difference_ranks_copies_moments_and_other_clips() -> None:
    names = ("panda_goalkeeper.mp4", "panda_comedian.mp4", "asl_personA_yes.mkv", "panda_bw_film.mp4")
    for name, other in zip(names, names[1:] + names[:1], strict=True):
        first = pictures(name)[1]
        encoded = cv2.imdecode(cv2.imencode(".jpg", first, [cv2.IMWRITE_JPEG_QUALITY, 30])[1], cv2.IMREAD_COLOR)
        brighter = np.clip(first.astype(np.int16) + 30, 0, 255).astype(np.uint8)
        assert picture_difference(first, encoded) < 0.02
        assert picture_difference(first, brighter) < 0.04
        assert picture_difference(first, keyframes(name)[1].neighbour) < 0.08
        assert picture_difference(first, pictures(other)[1]) > 0.25
    pose = pictures("asl_personA_yes.mkv")
    assert 0.02 < picture_difference(pose[0], pose[3]) < 0.25
