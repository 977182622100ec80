from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from planted import BLUE, GREEN, RED, deep_inside, disc, excess, over, subject, texture

from models.protocols import Image
from stages.matte import guided, matte

SHAPE = (160, 140)


def test_deep_inside_and_far_outside_nothing_changes() -> None:
    picture, mask = subject()
    alpha, colours = matte(picture, mask, band=0.06)
    inside, outside = deep_inside(mask, 5), deep_inside(~mask, 5)
    assert inside.any()
    assert outside.any()
    assert (alpha[inside] == 1).all()
    assert (alpha[outside] == 0).all()
    assert np.array_equal(colours[inside | outside], picture[inside | outside])
    assert ((alpha > 0) & (alpha < 1)).any()


@pytest.mark.parametrize("soft", [3, 5, 8])
def test_alpha_follows_a_soft_edge(soft: float) -> None:
    true = disc(SHAPE, (70, 80), 40, soft)
    picture = over(true, texture(*SHAPE, RED, 1), texture(*SHAPE, GREEN, 2))
    alpha, _ = matte(picture, true > 0.5, band=0.06)
    edge = (true > 0) & (true < 1)
    error, hard = np.abs(alpha - true)[edge].mean(), np.abs((true > 0.5) - true)[edge].mean()
    assert error < 0.5 * hard


def test_a_mask_that_is_off_is_moved_towards_the_edge() -> None:
    true = disc(SHAPE, (70, 80), 40, 2)
    picture = over(true, texture(*SHAPE, RED, 1, 6), texture(*SHAPE, GREEN, 2, 6))
    for radius in (38, 42):
        given_mask = disc(SHAPE, (70, 80), radius, 2) > 0.5
        alpha, _ = matte(picture, given_mask, band=0.06)
        assert np.abs(alpha - true).sum() < 0.85 * np.abs(given_mask - true).sum()


def test_no_old_background_bleeds_into_the_edge() -> None:
    true = disc(SHAPE, (70, 80), 40, 6)
    subject_alone, room = texture(*SHAPE, RED, 1), texture(*SHAPE, BLUE, 3)
    picture = over(true, subject_alone, texture(*SHAPE, GREEN, 2))
    mask = true > 0.5
    alpha, colours = matte(picture, mask, band=0.06)
    moved, wanted = over(alpha.astype(np.float64), colours, room), over(true, subject_alone, room)
    pasted = np.where(mask[..., None], picture, room)
    edge = (true > 0) & (true < 1)

    def error(result: Image) -> float:
        return float(np.abs(result.astype(float) - wanted)[edge].mean())

    assert error(moved) < 0.5 * error(pasted)
    # Green is the old background's alone.
    green, before = (
        np.clip(result[..., 1].astype(float) - wanted[..., 1], 0, 255)[edge].mean() for result in (moved, pasted)
    )
    assert before > 10
    assert green < 0.45 * before


def test_the_colours_in_the_band_are_the_subjects_own() -> None:
    picture, mask = subject(soft=6)
    alpha, colours = matte(picture, mask, band=0.06)
    # At the faint end there is hardly anything to tell the colour by, nor any weight on it.
    seen = (alpha > 0.3) & (alpha < 1)
    assert seen.sum() > 300
    assert np.median(excess(colours, 0)[seen]) > 100
    assert (excess(colours, 1)[seen] > 0).mean() < 0.02
    assert (excess(picture, 1)[seen] > 0).mean() > 0.1


def test_what_the_pictures_edge_cuts_off_stays_solid() -> None:
    picture, mask = subject(centre=(70, 150))
    alpha, colours = matte(picture, mask, band=0.06)
    middle = np.s_[-4:, 55:85]
    assert (alpha[middle] == 1).all()
    assert np.array_equal(colours[middle], picture[middle])


def test_without_a_band_the_edge_is_hard() -> None:
    picture, mask = subject()
    alpha, colours = matte(picture, mask, band=0)
    assert np.array_equal(alpha, mask.astype(np.float32))
    assert np.array_equal(colours, picture)
    assert colours is not picture


def test_an_empty_mask_is_refused() -> None:
    picture, mask = subject()
    with pytest.raises(ValueError, match="empty"):
        matte(picture, np.zeros_like(mask), band=0.01)


def test_threads_make_no_difference() -> None:
    picture, mask = subject((400, 300), (150, 200), 120)
    threads = cv2.getNumThreads()
    results = []
    try:
        for count in (1, 2, 7):
            cv2.setNumThreads(count)
            results.append(matte(picture, mask, band=0.03))
    finally:
        cv2.setNumThreads(threads)
    for alpha, colours in results[1:]:
        assert np.array_equal(alpha, results[0][0])
        assert np.array_equal(colours, results[0][1])


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.floats(0.1, 0.9), st.floats(0, 0.3), st.integers(0, 2**31))
def test_any_mask_gives_shares_and_colours(height: int, width: int, share: float, band: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    picture = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    mask = cv2.GaussianBlur(rng.random((height, width)).astype(np.float32), (0, 0), 2) < share
    mask[height // 2, width // 2] = True
    before = picture.copy()

    alpha, colours = matte(picture, mask, band=band)

    assert alpha.shape == mask.shape
    assert alpha.dtype == np.float32
    assert ((alpha >= 0) & (alpha <= 1)).all()
    assert colours.shape == picture.shape
    assert colours.dtype == np.uint8
    sure = (alpha == 0) | (alpha == 1)
    assert np.array_equal(colours[sure], picture[sure])
    assert np.array_equal(picture, before)


def explained(
    guide: npt.NDArray[np.float32], values: npt.NDArray[np.float32], radius: int, smooth: float
) -> npt.NDArray[np.float64]:
    """The guided filter as its definition says: one ridge regression per window, beyond the edge the mirror image."""
    wide = np.pad(guide.astype(np.float64), ((2 * radius,) * 2, (2 * radius,) * 2, (0, 0)), mode="reflect")
    deep = np.pad(values.astype(np.float64), 2 * radius, mode="reflect")
    height, width = values.shape
    side = 2 * radius + 1
    lines = np.zeros((height + 2 * radius, width + 2 * radius, 4))
    for y, x in np.ndindex(lines.shape[:2]):
        colours, targets = wide[y : y + side, x : x + side].reshape(-1, 3), deep[y : y + side, x : x + side].ravel()
        centred = colours - colours.mean(axis=0)
        system = centred.T @ centred / len(targets) + smooth * np.eye(3)
        slope = np.linalg.solve(system, centred.T @ (targets - targets.mean()) / len(targets))
        lines[y, x] = [*slope, targets.mean() - slope @ colours.mean(axis=0)]
    result = np.zeros(values.shape)
    for y, x in np.ndindex(height, width):
        slopes = lines[y : y + side, x : x + side].reshape(-1, 4).mean(axis=0)
        result[y, x] = slopes[:3] @ guide[y, x] + slopes[3]
    return result


@pytest.mark.parametrize("smooth", [1e-4, 1e-2])
def test_the_guided_filter_is_a_regression_in_every_window(smooth: float) -> None:
    rng = np.random.default_rng(3)
    guide = cv2.GaussianBlur(rng.random((14, 17, 3)).astype(np.float32), (0, 0), 1)
    values = (rng.random((14, 17)) < 0.5).astype(np.float32)
    wanted = explained(guide, values, 2, smooth)
    # At the edge the definition mirrors the slopes with the picture; the filter mirrors the means of the windows.
    inner = np.s_[2:-2, 2:-2]
    assert np.abs(guided(guide, values, 2, smooth) - wanted)[inner].max() < 1e-4


def test_equal_values_stay_equal() -> None:
    guide = np.random.default_rng(0).random((20, 20, 3)).astype(np.float32)
    for value in (0.0, 1.0):
        assert np.allclose(guided(guide, np.full((20, 20), value, np.float32), 3, 1e-4), value, atol=1e-6)
