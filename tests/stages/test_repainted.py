from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from planted import BLUE, GREEN, RED, disc, over, subject, texture
from skimage import data

from models.masks import box_iou, box_of
from models.protocols import Box, Detection, Image, Mask
from stages.repainted import halo, laid_over, new_share, second_subject, subject_change

SHAPE = (160, 140)


def grown(mask: Mask, pixels: float) -> Mask:
    """The mask with all that lies within so many pixels of it; without, where the number is negative."""
    side = mask if pixels < 0 else ~mask
    distance = cv2.distanceTransform(side.astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    return np.asarray(distance > -pixels if pixels < 0 else distance <= pixels)


def repainted(before: Image, kept: Mask, colour: tuple[int, int, int] = BLUE) -> Image:
    """The picture with all that is not kept painted anew."""
    picture = texture(*before.shape[:2], colour, 3)
    picture[kept] = before[kept]
    return picture


class TestSubjectChange:
    def test_is_nothing_where_the_subject_was_kept(self) -> None:
        before, mask = subject(SHAPE)
        assert subject_change(repainted(before, mask), before, mask) == 0

    def test_is_the_distance_in_lab_of_its_own_pixels(self) -> None:
        before, mask = np.full((*SHAPE, 3), 119, np.uint8), subject(SHAPE)[1]
        lighter = before.copy()
        lighter[mask] = 144  # L of 50 and of 60.
        assert subject_change(lighter, before, mask) == pytest.approx(9.7, abs=0.5)
        half = before.copy()
        half[:80][mask[:80]] = 144
        share = mask[:80].sum() / mask.sum()
        assert subject_change(half, before, mask) == pytest.approx(share * subject_change(lighter, before, mask))

    def test_a_subject_in_another_colour_has_changed_and_nobody_has_not(self) -> None:
        before, mask = subject(SHAPE)
        assert subject_change(subject(SHAPE, front=BLUE)[0], before, mask) > 50
        assert subject_change(before, before, np.zeros(SHAPE, bool)) == 0


class TestNewShare:
    def test_is_all_or_nothing_where_all_or_nothing_was_painted(self) -> None:
        before, mask = subject(SHAPE)
        assert new_share(repainted(before, mask), before, mask) == pytest.approx(1, abs=0.01)
        assert new_share(before, before, mask) == 0

    @pytest.mark.parametrize("share", [0.25, 0.5, 0.75])
    def test_is_the_part_of_the_background_that_was_painted(self, share: float) -> None:
        before, mask = subject(SHAPE)
        kept = mask.copy()
        kept[: round((1 - share) * SHAPE[0])] = True
        background = ~mask
        expected = (background & ~kept).sum() / background.sum()
        assert new_share(repainted(before, kept), before, mask) == pytest.approx(expected, abs=0.01)

    def test_what_one_does_not_see_is_not_new(self) -> None:
        before, mask = subject(SHAPE)
        encoded = cv2.imdecode(cv2.imencode(".jpg", before[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 90])[1], 1)[..., ::-1]
        assert new_share(np.ascontiguousarray(encoded), before, mask) < 0.1

    def test_what_the_subject_does_counts_nothing(self) -> None:
        before, mask = subject(SHAPE)
        blue = before.copy()
        blue[mask] = BLUE
        assert new_share(blue, before, mask) == 0
        assert new_share(blue, before, np.ones(SHAPE, bool)) == 1


class TestHalo:
    def test_a_rim_of_the_old_background_is_found(self) -> None:
        before, mask = subject(SHAPE)
        # The ring is from one to three pixels away from the subject: whole, half of it, and none.
        whole, half, none = (halo(repainted(before, grown(mask, pixels)), before, mask) for pixels in (4.0, 2.0, 0.0))
        assert whole > 0.95
        assert 0.3 < half < 0.7
        assert none < 0.05

    @pytest.mark.parametrize("radius", [20, 40, 60])
    def test_the_ring_grows_with_the_subject(self, radius: int) -> None:
        before, mask = subject((300, 300), (150, 150), radius)
        width = max(3.0, 0.03 * 2 * radius)
        assert halo(repainted(before, grown(mask, width)), before, mask) > 0.9

    def test_what_is_left_everywhere_is_no_rim(self) -> None:
        before, mask = subject(SHAPE)
        assert halo(before, before, mask) == 0
        # Half of the old background, all over.
        kept = np.random.default_rng(0).random(SHAPE) < 0.5
        assert halo(repainted(before, mask | kept), before, mask) < 0.1

    def test_what_is_left_further_out_is_no_rim(self) -> None:
        before, mask = subject(SHAPE)
        assert halo(repainted(before, mask | ~grown(mask, 8)), before, mask) == 0

    def test_what_is_left_further_out_hides_no_rim(self) -> None:
        before, mask = subject(SHAPE)
        assert halo(repainted(before, grown(mask, 4) | ~grown(mask, 14)), before, mask) > 0.95

    def test_a_mask_without_a_ring_or_without_anything_beyond_has_none(self) -> None:
        before = subject(SHAPE)[0]
        assert halo(before, before, np.zeros(SHAPE, bool)) == 0
        assert halo(before, before, np.ones(SHAPE, bool)) == 0
        assert halo(before, before, grown(np.ones(SHAPE, bool), 0)) == 0
        filling = np.ones(SHAPE, bool)
        filling[:, -3:] = False
        assert halo(before, before, filling) == 0

    @settings(deadline=None, max_examples=20)
    @given(st.integers(0, 99), st.floats(0, 12), st.integers(8, 60))
    def test_is_in_its_range(self, seed: int, pixels: float, radius: int) -> None:
        before, mask = subject(SHAPE, radius=radius)
        picture = repainted(before, grown(mask, pixels))
        assert 0 <= halo(picture, before, mask) <= 1
        assert 0 <= new_share(picture, before, mask) <= 1


OWN = (40.0, 40.0, 140.0, 240.0)


def found(*boxes: tuple[Box, float]) -> list[Detection]:
    return [Detection("dog", box, score) for box, score in boxes]


class TestSecondSubject:
    @pytest.mark.parametrize(
        "box",
        [
            OWN,
            (45, 50, 150, 250),  # The same, found a little off.
            (60, 50, 120, 100),  # A part of it, such as its head.
            (30, 30, 150, 260),  # It and a little around it.
            (300, 100, 310, 120),  # Far behind it.
            (120, 60, 150, 80),  # What it holds out, mostly before it.
        ],
    )
    def test_what_is_itself_or_a_part_of_it_or_very_small_is_none(self, box: Box) -> None:
        assert second_subject(found((box, 0.9)), OWN) == 0

    @pytest.mark.parametrize(
        "box",
        [
            (150, 40, 250, 240),  # Beside it.
            (110, 40, 210, 240),  # Half behind it.
            (300, 100, 340, 150),  # A smaller one.
            (0, 0, 640, 480),  # All over the picture.
        ],
    )
    def test_one_that_stands_beside_it_is(self, box: Box) -> None:
        assert box_iou(box, OWN) < 0.5
        assert second_subject(found((OWN, 0.95), (box, 0.6)), OWN) == 0.6

    def test_the_surest_of_them_counts(self) -> None:
        beside = [((200.0 + 10 * n, 40.0, 300.0 + 10 * n, 240.0), score) for n, score in enumerate((0.2, 0.7, 0.4))]
        assert second_subject(found(*beside), OWN) == 0.7
        assert second_subject([], OWN) == 0


class TestLaidOver:
    @pytest.mark.parametrize(
        ("centre", "radius", "shape"), [((70, 80), 40, SHAPE), ((200, 60), 20, (160, 300)), ((90, 90), 80, (200, 200))]
    )
    def test_the_subject_comes_to_lie_where_the_mask_is(
        self, centre: tuple[float, float], radius: int, shape: tuple[int, int]
    ) -> None:
        before, before_mask = subject(SHAPE)
        mask = disc(shape, centre, radius, 1) > 0.5
        moved = laid_over(before, before_mask, mask)
        assert moved.shape == (*shape, 3)
        inside, around = grown(mask, -4), grown(mask, 14) & ~grown(mask, 6)
        assert np.abs(moved[inside].mean(axis=0) - RED).max() < 8
        assert np.abs(moved[around].mean(axis=0) - GREEN).max() < 12

    def test_a_place_of_another_shape_stretches_it(self) -> None:
        before, before_mask = subject(SHAPE)
        mask = np.zeros((100, 300), bool)
        mask[40:60, 50:250] = True
        moved = laid_over(before, before_mask, mask)
        red = (moved[..., 0] > 120) & (moved[..., 1] < 110)
        x0, y0, x1, y1 = box_of(red)
        assert (x0, y0, x1, y1) == pytest.approx((50, 40, 250, 60), abs=4)

    def test_what_the_picture_does_not_reach_repeats_its_edge(self) -> None:
        before, before_mask = subject(SHAPE)
        mask = disc((160, 600), (300, 80), 40, 1) > 0.5
        assert np.abs(laid_over(before, before_mask, mask)[:, [0, -1]].mean(axis=(0, 1)) - GREEN).max() < 20

    def test_a_picture_on_its_own_mask_stays_as_it_is(self) -> None:
        before, mask = subject(SHAPE)
        assert np.array_equal(laid_over(before, mask, mask), before)


def test_a_rim_that_a_swapped_subject_brought_along_is_found_on_real_pictures() -> None:
    """A coffee cup with some of its table before a cat, and one without."""
    table = np.asarray(data.coffee()[:, :600])
    cup = np.zeros(table.shape[:2], bool)
    cup[90:290, 170:420] = disc((200, 250), (125, 100), 96, 1) > 0.5
    scene = np.asarray(cv2.resize(data.cat(), (600, 400)))
    clean, rimmed = (over((mask * 1.0), table, scene) for mask in (cup, grown(cup, 0.03 * 192)))
    assert halo(clean, laid_over(table, cup, cup), cup) < 0.1
    assert halo(rimmed, laid_over(table, cup, cup), cup) > 0.7
