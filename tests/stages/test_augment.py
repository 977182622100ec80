from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from planted import GREEN, deep_inside, excess, over, subject, texture
from pydantic import ValidationError

from models.masks import box_of
from models.protocols import Image, Mask
from stages.augment import AugmentConfig, augment
from stages.measure import picture_difference

STILL: dict[str, Any] = {
    **dict.fromkeys(("flip", "max_rotation", "max_perspective", "min_difference"), 0),
    **dict.fromkeys(("max_brightness", "max_contrast", "max_saturation", "max_hue"), 0),
    **dict.fromkeys(("min_scale", "max_scale", "min_crop"), 1),
}
"""Nothing changes."""


def config(**changes: Any) -> AugmentConfig:
    return AugmentConfig(**{**STILL, **changes})


def figure(bottom: bool = False) -> tuple[Image, Mask]:
    """A textured body with a bright head at its upper left, before a green background; or its bust."""
    height, width = 200, 180
    mask = np.zeros((height, width), np.uint8)
    cv2.ellipse(mask, (95, 130), (45, 55), 0, 0, 360, 1, -1)
    cv2.circle(mask, (70, 60), 24, 1, -1)
    share = cv2.GaussianBlur(mask.astype(np.float32), (0, 0), 1.2)
    front = texture(height, width, (150, 60, 60), 1, 25)
    front[:86] = texture(86, width, (220, 170, 60), 4, 15)
    crop = over(share.astype(np.float64), front, texture(height, width, GREEN, 2))
    return (crop[:150], share[:150] > 0.5) if bottom else (crop, share > 0.5)


def plain() -> Image:
    return augment(*figure(), config(), 0)[0]


def test_without_any_change_it_is_the_subject_on_white() -> None:
    crop, mask = figure()
    picture, where = augment(crop, mask, config(), 0)
    x0, y0, x1, y1 = box_of(where)
    a0, b0, a1, b1 = box_of(mask)
    assert abs((x1 - x0) - (a1 - a0)) <= 2
    assert abs((y1 - y0) - (b1 - b0)) <= 2
    moved = cv2.warpAffine(crop, np.array([[1.0, 0, x0 - a0], [0, 1, y0 - b0]]), where.shape[::-1])
    inside = deep_inside(where, 4)
    assert np.abs(picture[inside].astype(int) - moved[inside]).mean() < 6


@pytest.mark.parametrize("seed", range(6))
def test_white_stays_white_and_the_mask_moves_along(seed: int) -> None:
    crop, mask = figure()
    picture, where = augment(crop, mask, AugmentConfig(), seed)
    assert where.shape == picture.shape[:2]
    far = deep_inside(~where, 6)
    assert far.any()
    assert (picture[far] == 255).all()
    coloured = picture.min(axis=2) < 180
    assert (coloured & where).sum() / (coloured | where).sum() > 0.96


@pytest.mark.parametrize("seed", range(6))
def test_nothing_of_the_old_background_is_left(seed: int) -> None:
    picture, _ = augment(*figure(), AugmentConfig(), seed)
    assert (excess(figure()[0], 1) > 60).mean() > 0.3
    assert (excess(picture, 1) > 25).mean() < 0.001


def test_the_seed_decides() -> None:
    pictures = [augment(*figure(), AugmentConfig(), seed) for seed in (5, 5, 6)]
    assert np.array_equal(pictures[0][0], pictures[1][0])
    assert np.array_equal(pictures[0][1], pictures[1][1])
    assert pictures[0][0].shape != pictures[2][0].shape or (pictures[0][0] != pictures[2][0]).any()


def test_every_picture_differs_visibly() -> None:
    crop, mask = figure()
    before = plain()
    differences = [picture_difference(augment(crop, mask, AugmentConfig(), seed)[0], before) for seed in range(20)]
    assert min(differences) >= AugmentConfig().min_difference
    # Without being asked to, some would not.
    free = AugmentConfig(flip=0, max_rotation=3, max_perspective=0.01, min_crop=0.9, min_difference=0)
    assert min(picture_difference(augment(crop, mask, free, seed)[0], before) for seed in range(10)) < 0.12


def test_what_cannot_differ_enough_differs_as_much_as_it_can() -> None:
    crop, mask = figure()
    little = {"max_rotation": 6, "min_difference": 1.0}
    best, once = (
        [picture_difference(augment(crop, mask, config(**little, draws=draws), seed)[0], plain()) for seed in range(6)]
        for draws in (8, 1)
    )
    assert np.mean(best) > np.mean(once)


def test_cropping_leaves_two_thirds_of_the_subject_and_its_top() -> None:
    crop, mask = figure()
    lost = []
    for seed in range(12):
        picture, where = augment(crop, mask, config(min_crop=0.4), seed)
        assert picture.size < plain().size
        assert not where[0].any()  # The head is whole.
        lost.append(1 - where.sum() / mask.sum())
    assert 0.2 < max(lost) <= 0.34


def test_turning_and_scaling_lose_nothing() -> None:
    crop, mask = figure()
    for seed in range(6):
        picture, where = augment(crop, mask, config(max_rotation=20, max_perspective=0, min_scale=0.8), seed)
        assert 0.62 * mask.sum() < where.sum() < 1.02 * mask.sum()
        assert not np.concatenate([where[0], where[-1], where[:, 0], where[:, -1]]).any()
        assert 0.6 < max(picture.shape) / max(plain().shape) < 1.3


def test_a_flip_mirrors() -> None:
    picture, where = augment(*figure(), config(flip=1), 0)
    before = plain()
    mirrored = before[:, ::-1]
    height, width = min(picture.shape[0], before.shape[0]), min(picture.shape[1], before.shape[1])

    def error(other: Image) -> float:
        return float(np.abs(picture[:height, :width].astype(int) - other[:height, :width]).mean())

    assert error(mirrored) < 0.3 * error(before)
    assert where[: where.shape[0] // 4, where.shape[1] // 2 :].sum() > where[: where.shape[0] // 4].sum() / 2


def test_a_turned_bust_ends_at_the_lower_edge() -> None:
    crop, mask = figure(bottom=True)
    assert mask[-1].any()
    for seed in range(8):
        _, where = augment(crop, mask, config(max_rotation=15), seed)
        last = np.flatnonzero(where[-2])
        # From one side of the body to the other, without a corner of white below.
        assert len(last) > 0.7 * np.ptp(np.flatnonzero(mask[-1]))
        assert where.sum() > 0.66 * mask.sum()


@pytest.mark.parametrize(
    ("name", "most"), [("max_brightness", 0.3), ("max_contrast", 0.4), ("max_saturation", 0.4), ("max_hue", 20)]
)
def test_colours_change_by_what_is_allowed(name: str, most: float) -> None:
    crop, mask = figure()
    _, where = augment(crop, mask, config(), 0)
    inside = deep_inside(where, 4)
    lab = [
        cv2.cvtColor(augment(crop, mask, config(**{name: most}), seed)[0].astype(np.float32) / 255, cv2.COLOR_RGB2LAB)[
            inside
        ]
        for seed in range(12)
    ]
    own = cv2.cvtColor(plain().astype(np.float32) / 255, cv2.COLOR_RGB2LAB)[inside]

    def measured(colours: Any) -> float:
        if name == "max_brightness":
            return float(colours[:, 0].mean() / own[:, 0].mean()) - 1
        if name == "max_contrast":
            return float(colours[:, 0].std() / own[:, 0].std()) - 1
        if name == "max_saturation":
            return float(np.hypot(*colours[:, 1:].T).mean() / np.hypot(*own[:, 1:].T).mean()) - 1
        turned = np.arctan2(*colours[:, :0:-1].T) - np.arctan2(*own[:, :0:-1].T)
        return float(np.degrees(np.median(turned)))

    changes = [measured(colours) for colours in lab]
    assert max(map(abs, changes)) <= 1.1 * most
    assert max(changes) - min(changes) > 0.8 * most
    assert min(changes) < 0 < max(changes)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.floats(0.1, 0.9), st.integers(0, 2**31))
def test_any_subject_gives_a_picture(height: int, width: int, share: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    crop = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    mask = cv2.GaussianBlur(rng.random((height, width)).astype(np.float32), (0, 0), 2) < share
    mask[height // 2, width // 2] = True
    before = crop.copy()

    picture, where = augment(crop, mask, AugmentConfig(), seed)

    assert picture.dtype == np.uint8
    assert picture.shape == (*where.shape, 3)
    assert where.any()
    assert np.array_equal(crop, before)


def test_an_empty_mask_is_refused() -> None:
    crop, mask = subject()
    with pytest.raises(ValueError, match="empty"):
        augment(crop, np.zeros_like(mask), AugmentConfig(), 0)


@pytest.mark.parametrize("raw", [{"flip": 2}, {"min_crop": 0}, {"max_rotation": -1}, {"twist": 1}])
def test_ranges_that_make_no_sense_are_refused(raw: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        AugmentConfig.model_validate(raw)
