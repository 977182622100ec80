from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import pytest
from blank import blank
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from models.protocols import Image, Mask
from stages.difference import (
    Difference,
    Look,
    difference,
    shape_bits,
    surroundings,
    surroundings_distance,
)
from stages.measure import area, perceptual_hash
from stages.records import SubjectFrame

SIDE = 96
INT64 = st.integers(-(2**63), 2**63 - 1)
PLACES = [(0, 0), (0, 1), (0, 2), (1, 0), (1, 2), (2, 0), (2, 1), (2, 2)]
"""Row and column of each third of a picture that `surroundings` tells of."""


def ellipse(height: int, width: int, y: float = 0.5, x: float = 0.5, down: float = 0.3, across: float = 0.15) -> Mask:
    """An ellipse by its centre and half axes, as shares of the picture's sides."""
    rows, columns = np.indices((height, width)) + 0.5
    inside: Mask = ((rows / height - y) / down) ** 2 + ((columns / width - x) / across) ** 2 <= 1
    return inside


def noise(seed: int, side: int = SIDE) -> Image:
    cells = np.random.default_rng(seed).integers(0, 256, (side // 8, side // 8, 3), dtype=np.uint8)
    return np.asarray(cv2.resize(cells, (side, side), interpolation=cv2.INTER_CUBIC))


colours = arrays.arrays(np.float32, 24, elements=st.floats(-80, 80, width=32))
looks = st.builds(
    Look,
    INT64,
    INT64,
    st.floats(0, 1),
    colours,
    st.none() | st.floats(0, 1e4),
)


def bits(value: int, other: int = 0) -> int:
    return ((value ^ other) & (2**64 - 1)).bit_count()


class TestDifference:
    @settings(deadline=None, max_examples=50)
    @given(looks, looks, st.booleans())
    def test_is_symmetric_and_in_its_ranges(self, a: Look, b: Look, same_video: bool) -> None:
        apart = difference(a, b, same_video=same_video)
        assert apart == difference(b, a, same_video=same_video)
        assert 0 <= apart.pose <= 1
        assert 0 <= apart.background <= 1
        assert 0 <= apart.scale <= 10
        assert apart.hash == bits(a.phash, b.phash)
        assert 0 <= apart.overall <= 1

    @settings(deadline=None, max_examples=50)
    @given(looks)
    def test_is_nothing_between_a_look_and_itself(self, a: Look) -> None:
        apart = difference(a, a, same_video=True)
        assert apart == Difference(0, 0, 0, 0, None if a.time is None else 0.0)
        assert apart.overall == 0

    @settings(deadline=None, max_examples=50)
    @given(looks, looks, st.sampled_from(["phash", "shape", "area", "surroundings", "time"]))
    def test_each_part_moves_with_what_it_is_about_alone(self, a: Look, b: Look, what: str) -> None:
        about = {
            "phash": "hash",
            "shape": "pose",
            "area": "scale",
            "surroundings": "background",
            "time": "seconds",
        }
        a, b = replace(a, time=1.0), replace(b, time=4.0)
        still, moved = (difference(a, other, same_video=True) for other in (a, replace(a, **{what: getattr(b, what)})))
        for name in about.values():
            if name != about[what]:
                assert getattr(moved, name) == getattr(still, name)

    def test_of_shapes_is_what_they_do_not_share(self) -> None:
        look = Look(0, 0b1111, 0.1, np.zeros(24, np.float32))
        assert difference(look, replace(look, shape=0b0011), same_video=False).pose == 0.5
        assert difference(look, replace(look, shape=0b110000), same_video=False).pose == 1
        assert difference(look, replace(look, shape=0), same_video=False).pose == 1
        # The highest bit is a sign where they are stored.
        assert difference(replace(look, shape=-(2**63)), replace(look, shape=-1), same_video=False).pose == 63 / 64

    def test_of_sizes_is_in_octaves_of_width_and_height(self) -> None:
        look = Look(0, 0, 0.04, np.zeros(24, np.float32))
        assert difference(look, replace(look, area=0.16), same_video=False).scale == pytest.approx(1)
        assert difference(look, replace(look, area=0.01), same_video=False).scale == pytest.approx(1)
        assert difference(look, replace(look, area=0.08), same_video=False).scale == pytest.approx(0.5)

    def test_of_times_is_told_within_a_video_and_where_there_are_any(self) -> None:
        look = Look(0, 0, 0.1, np.zeros(24, np.float32), 2.0)
        other = replace(look, time=5.5)
        assert difference(look, other, same_video=True).seconds == 3.5
        assert difference(look, other, same_video=False).seconds is None
        assert difference(look, replace(look, time=None), same_video=True).seconds is None

    def test_overall_is_the_mean_of_parts_that_are_whole_from_a_bound_on(self) -> None:
        assert Difference(0.4, 0.2, 0.5, 12, None).overall == pytest.approx((0.4 + 0.2 + 0.5 + 0.5) / 4)
        assert Difference(1, 1, 9, 64, 0).overall == 1
        assert Difference(0, 0, 1, 24, None).overall == Difference(0, 0, 7, 60, None).overall == 0.5


class TestLook:
    def test_of_a_picture_is_made_of_it_and_its_mask(self) -> None:
        picture, mask = noise(1), ellipse(SIDE, SIDE)
        look = Look.of_picture(picture, mask)
        assert (look.phash, look.shape, look.area) == (perceptual_hash(picture), shape_bits(mask), area(mask))
        assert look.surroundings.tolist() == surroundings(picture, mask)
        assert look.time is None

    def test_of_a_frame_s_record_is_that_of_its_row(self) -> None:
        told = {"phash": -7, "shape": -9, "area": 0.25, "surroundings": [float(n) for n in range(24)], "time": 3.5}
        row, record = Look.of(told), Look.of_frame(blank(SubjectFrame, **told))
        for look in (row, record):
            assert (look.phash, look.shape, look.area, look.time) == (-7, -9, 0.25, 3.5)
            assert look.surroundings.tolist() == told["surroundings"]

    def test_of_two_pictures_differ_by_what_was_changed(self) -> None:
        """A subject that turns, walks off, comes nearer or goes somewhere else."""
        picture, mask = noise(1), ellipse(SIDE, SIDE)
        own = Look.of_picture(picture, mask)
        lying = difference(own, Look.of_picture(picture, ellipse(SIDE, SIDE, down=0.15, across=0.3)), same_video=False)
        assert lying.pose > 0.3
        assert (lying.scale, lying.hash) == (pytest.approx(0, abs=0.05), 0)
        near = difference(own, Look.of_picture(picture, ellipse(SIDE, SIDE, down=0.45, across=0.22)), same_video=False)
        assert near.pose < 0.1
        assert near.scale == pytest.approx(np.log2(1.5), abs=0.1)
        away = difference(own, Look.of_picture(noise(2), mask), same_video=False)
        assert (away.pose, away.scale) == (0, 0)
        assert away.background > 0.15
        assert away.hash > 10


class TestShapeBits:
    @settings(deadline=None, max_examples=40)
    @given(st.floats(0.08, 0.25), st.floats(0.08, 0.25), st.integers(-40, 40), st.integers(-30, 30))
    def test_moving_a_mask_changes_nothing(self, down: float, across: float, right: int, lower: int) -> None:
        mask = ellipse(120, 160, down=down, across=across)
        moved = np.zeros_like(mask)
        rows, columns = np.nonzero(mask)
        inside = (rows + lower >= 0) & (rows + lower < 120) & (columns + right >= 0) & (columns + right < 160)
        moved[rows[inside] + lower, columns[inside] + right] = True
        assert inside.all()
        assert shape_bits(moved) == shape_bits(mask)

    @settings(deadline=None, max_examples=40)
    @given(st.floats(0.15, 0.4), st.floats(0.15, 0.4), st.floats(0, 180), st.integers(2, 5))
    def test_scaling_a_mask_changes_next_to_nothing(self, down: float, across: float, turn: float, times: int) -> None:
        upright = ellipse(120, 120, down=down, across=across).astype(np.uint8)
        turned = cv2.warpAffine(upright, cv2.getRotationMatrix2D((60, 60), turn, 1), (120, 120)) > 0
        larger = np.kron(turned, np.ones((times, times), bool))
        # Cells that are about half full may go either way.
        assert bits(shape_bits(turned), shape_bits(larger)) <= 4

    def test_shapes_are_told_apart(self) -> None:
        standing, lying = ellipse(120, 120, across=0.1), ellipse(120, 120, down=0.1, across=0.3)
        assert bits(shape_bits(standing), shape_bits(lying)) > 12
        assert bits(shape_bits(standing), shape_bits(ellipse(120, 120, across=0.11))) <= 4
        # A figure and its mirror image.
        left = standing | ellipse(120, 120, y=0.3, x=0.3, down=0.1, across=0.25)
        assert bits(shape_bits(left), shape_bits(left[:, ::-1])) > 4

    def test_bits_are_the_cells_of_the_grid_row_by_row(self) -> None:
        square = np.zeros((100, 100), bool)
        square[20:80, 20:80] = True
        # A square fills the middle four by four cells of eight by eight.
        row = 0b00111100
        assert shape_bits(square) == int.from_bytes(bytes([0, 0, row, row, row, row, 0, 0]), "big", signed=True)
        assert shape_bits(np.zeros((9, 9), bool)) == 0

    @settings(deadline=None, max_examples=40)
    @given(arrays.arrays(bool, st.tuples(st.integers(1, 30), st.integers(1, 30))))
    def test_any_mask_has_64_bits_with_a_sign(self, mask: Mask) -> None:
        assert -(2**63) <= shape_bits(mask) < 2**63


def thirds(picture: Image, mask: Mask) -> dict[tuple[int, int], list[float]]:
    numbers = surroundings(picture, mask)
    return {place: numbers[3 * number : 3 * number + 3] for number, place in enumerate(PLACES)}


class TestSurroundings:
    @settings(deadline=None, max_examples=40)
    @given(st.integers(0, 99), st.integers(0, 99), st.floats(0.1, 0.6), st.floats(0.1, 0.6), st.booleans())
    def test_the_subject_s_own_pixels_do_not_matter(
        self, scene: int, other: int, down: float, across: float, is_noise: bool
    ) -> None:
        mask = ellipse(SIDE, SIDE, down=down, across=across)
        picture = noise(scene)
        repainted = picture.copy()
        repainted[mask] = noise(other)[mask] if is_noise else 255
        assert surroundings(repainted, mask) == pytest.approx(surroundings(picture, mask), abs=1e-3)

    def test_are_the_colours_of_the_outer_thirds_in_lab(self) -> None:
        picture = np.full((SIDE, SIDE, 3), 128, np.uint8)
        third = SIDE // 3
        picture[:third, :third] = (255, 0, 0)
        picture[2 * third :, third : 2 * third] = (0, 0, 255)
        picture[third : 2 * third, third : 2 * third] = (0, 255, 0)  # The middle is not told of.
        told = thirds(picture, np.zeros((SIDE, SIDE), bool))
        assert told[0, 0] == pytest.approx([53.2, 80.1, 67.2], abs=0.3)
        assert told[2, 1] == pytest.approx([32.3, 79.2, -107.9], abs=0.3)
        for place in set(PLACES) - {(0, 0), (2, 1)}:
            assert told[place] == pytest.approx([53.6, 0, 0], abs=0.3)

    def test_where_the_subject_fills_a_place_the_whole_background_stands_in(self) -> None:
        picture = np.full((SIDE, SIDE, 3), 128, np.uint8)
        mask = np.zeros((SIDE, SIDE), bool)
        mask[:, : SIDE // 3] = True
        picture[mask] = (255, 0, 0)
        told = thirds(picture, mask)
        assert told[0, 0] == pytest.approx(told[0, 2], abs=0.01)

    def test_a_subject_that_fills_all_leaves_nothing(self) -> None:
        assert surroundings(noise(1), np.ones((SIDE, SIDE), bool)) == [0.0] * 24

    def test_the_size_of_the_picture_hardly_matters(self) -> None:
        small, large = (
            surroundings(np.asarray(cv2.resize(noise(3), (side, side), interpolation=cv2.INTER_CUBIC)), mask)
            for side in (SIDE, 5 * SIDE)
            for mask in [ellipse(side, side)]
        )
        assert surroundings_distance(small, large) < 0.03

    @settings(deadline=None, max_examples=50)
    @given(colours, colours)
    def test_their_distance_is_symmetric_and_cut_off_at_one(self, a: np.ndarray, b: np.ndarray) -> None:
        assert surroundings_distance(a, b) == surroundings_distance(b, a)
        assert 0 <= surroundings_distance(a, b) <= 1
        assert surroundings_distance(a, a) == 0

    @settings(deadline=None, max_examples=50)
    @given(colours, st.floats(-50, 50))
    def test_exposure_is_no_distance(self, a: np.ndarray, steps: float) -> None:
        lighter = a.reshape(-1, 3) + np.array([steps, 0, 0])
        assert surroundings_distance(a, lighter) == pytest.approx(0, abs=1e-5)

    def test_their_distance_is_in_sixtieths_of_lab(self) -> None:
        grey = np.zeros(24)
        red = np.tile([0.0, 30, 0], 8)
        assert surroundings_distance(grey, red) == pytest.approx(0.5)
        assert surroundings_distance(grey, 10 * red) == 1
        one = grey.copy()
        one[1] = 60
        assert surroundings_distance(grey, one) == pytest.approx(1 / 8)
