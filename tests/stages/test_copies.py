from __future__ import annotations

import numpy as np
import pytest

from stages.copies import copies
from stages.measure import picture_difference


@pytest.fixture
def picture() -> np.ndarray:
    """Smooth and colourful, 90 x 121."""
    noise = np.random.default_rng(0).normal(size=(90, 121, 3))
    smooth = np.cumsum(np.cumsum(noise, axis=0), axis=1)
    return np.clip(128 + smooth, 0, 255).astype(np.uint8)


class TestCopies:
    def test_keep_the_size_but_where_they_are_cut(self, picture) -> None:
        shapes = {name: copy.shape for name, copy in copies(picture).items()}
        assert shapes.pop("cropped") == (90 - 2 * 2, 121 - 2 * 3, 3)
        assert set(shapes.values()) == {picture.shape}
        assert len(shapes) == 4

    def test_none_is_the_picture_itself(self, picture) -> None:
        made = copies(picture)
        assert all(copy.shape != picture.shape or (copy != picture).any() for copy in made.values())
        assert all(copy.dtype == np.uint8 for copy in made.values())

    def test_light_changes_by_thirty_steps_and_no_further_than_white_or_black(self) -> None:
        made = copies(np.array([[[0, 100, 250]]], np.uint8))
        assert made["brighter"][0, 0].tolist() == [30, 130, 255]
        assert made["darker"][0, 0].tolist() == [0, 70, 220]

    def test_colours_stay_in_their_order(self, picture) -> None:
        red = np.zeros((64, 64, 3), np.uint8)
        red[..., 0] = 200
        for name, copy in copies(red).items():
            assert copy[..., 0].mean() > copy[..., 2].mean() + 100, name

    def test_differ_less_than_another_picture_does(self, picture) -> None:
        furthest = max(picture_difference(picture, copy) for copy in copies(picture).values())
        assert furthest < picture_difference(picture, picture[:, ::-1].copy())

    def test_a_picture_of_one_pixel_has_copies_too(self) -> None:
        assert all(copy.size for copy in copies(np.full((1, 1, 3), 9, np.uint8)).values())
