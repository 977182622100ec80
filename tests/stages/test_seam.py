from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.seam import seamless


def planes(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(0, 255, (*shape, 3)).astype(np.float32)


def middle(height: int, width: int) -> np.ndarray:
    where = np.zeros((height, width), bool)
    where[2:-2, 2:-2] = True
    return where


def test_what_differs_by_a_constant_goes_on_without_a_seam() -> None:
    guide = planes(12, 15)
    where = middle(12, 15)
    picture = np.where(where[..., None], 0, guide + 30).astype(np.float32)
    assert seamless(picture, guide, np.ones_like(where), where) == pytest.approx(guide + 30, abs=0.01)


def test_between_two_levels_lies_a_ramp_and_the_pictures_edge_holds_nothing() -> None:
    picture = np.zeros((5, 11, 3), np.float32)
    picture[:, -1] = 100
    where = np.zeros((5, 11), bool)
    where[:, 1:-1] = True
    solved = seamless(picture, np.zeros_like(picture), np.ones_like(where), where)
    assert solved == pytest.approx(np.broadcast_to(np.linspace(0, 100, 11)[:, None], picture.shape), abs=0.01)


def test_where_the_guide_tells_nothing_its_values_play_no_part() -> None:
    where = middle(9, 9)
    known = np.ones_like(where)
    known[:, :4] = False
    guide = planes(9, 9)
    other = np.where(known[..., None], guide, planes(9, 9, seed=1))
    picture = planes(9, 9, seed=2)
    assert np.array_equal(seamless(picture, guide, known, where), seamless(picture, other, known, where))


def test_a_picture_that_nothing_holds_keeps_its_level() -> None:
    picture, guide = planes(6, 7), planes(6, 7, seed=1)
    where = np.ones((6, 7), bool)
    solved = seamless(picture, guide, where, where)
    assert solved.mean(axis=(0, 1)) == pytest.approx(picture.mean(axis=(0, 1)), abs=0.1)
    assert np.diff(solved, axis=1) == pytest.approx(np.diff(guide, axis=1), abs=0.1)


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.floats(0, 1), st.integers(0, 2**31))
def test_outside_nothing_changes_and_a_pictures_own_gradients_change_nothing(
    height: int, width: int, share: float, seed: int
) -> None:
    picture = planes(height, width, seed=seed)
    where = np.random.default_rng(seed).random((height, width)) < share
    everything = np.ones_like(where)
    assert seamless(picture, picture, everything, where) == pytest.approx(picture, abs=0.01)
    other = seamless(picture, planes(height, width, seed=seed + 1), everything, where)
    assert np.array_equal(other[~where], picture[~where])
