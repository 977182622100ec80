from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image as Pictures
from PIL import ImageDraw

from training.draw import Augmentation, AugmentConfig, DrawRules, draw_sample
from training.seeds import Purpose, random_numbers

SUBJECTS = [
    {"original": ["0.original.0.png"], "cross_clip": ["0.cross_clip.0.png", "0.cross_clip.1.png"]},
    {"original": ["1.original.0.png"]},
    {"original": ["2.original.0.png"], "moved": ["2.moved.0.png"]},
    {"moved": ["3.moved.0.png"]},
]
RULES = DrawRules(kinds={"original": 1, "cross_clip": 3, "moved": 1}, max_references=3, centre=False, shuffle=True)
ALL = AugmentConfig(flip=1, rotate=1, scale=1, colour=1)


def within(times: int, share: float, of: int) -> bool:
    """Within five standard deviations of a binomial."""
    return abs(times - of * share) < 5 * (of * share * (1 - share)) ** 0.5


@given(seed=st.integers(-(2**70), 2**70), position=st.integers(0, 2**50))
def test_follows_from_seed_and_position(seed: int, position: int) -> None:
    assert draw_sample(SUBJECTS, RULES, seed, position) == draw_sample(SUBJECTS, RULES, seed, position)


def test_is_fixed_for_all_time() -> None:
    """A run of an older version must go on with the same draws."""
    draw = draw_sample(SUBJECTS, replace(RULES, augment=ALL), 17, 4)
    assert draw.pictures == ("0.cross_clip.1.png", "2.original.0.png", "1.original.0.png")
    assert (round(draw.place, 6), draw.keep_text) == (0.518734, True)
    assert round(draw.augmentations[0].degrees, 6) == -2.443567


@given(seed=st.integers(0, 1000), position=st.integers(0, 1000))
def test_one_rule_changes_no_draw_of_another(seed: int, position: int) -> None:
    plain = draw_sample(SUBJECTS, RULES, seed, position)
    changed = draw_sample(SUBJECTS, replace(RULES, augment=ALL, text_dropout=1), seed, position)
    assert (changed.pictures, changed.place) == (plain.pictures, plain.place)
    in_order = draw_sample(SUBJECTS, replace(RULES, shuffle=False), seed, position)
    assert in_order.pictures == tuple(sorted(plain.pictures))
    assert in_order.place == plain.place


def test_weights_of_kinds() -> None:
    drawn = Counter(name for position in range(4000) for name in draw_sample(SUBJECTS, RULES, 0, position).pictures)
    assert drawn["1.original.0.png"] == 4000
    assert "3.moved.0.png" not in drawn, "one more than the most"
    for name, share in {
        "0.original.0.png": 1 / 4,
        "0.cross_clip.0.png": 3 / 8,
        "0.cross_clip.1.png": 3 / 8,
        "2.original.0.png": 1 / 2,
        "2.moved.0.png": 1 / 2,
    }.items():
        assert within(drawn[name], share, 4000)


def test_orders_and_places_are_even() -> None:
    draws = [draw_sample(SUBJECTS, RULES, 3, position) for position in range(3000)]
    orders = Counter(tuple(name[0] for name in draw.pictures) for draw in draws)
    assert set(orders) == set(permutations("012"))
    assert all(within(times, 1 / 6, 3000) for times in orders.values())
    assert all(
        within(int(times), 1 / 10, 3000) for times in np.histogram([draw.place for draw in draws], 10, (0, 1))[0]
    )


def test_purposes_share_no_random_numbers() -> None:
    first = {random_numbers(purpose, 0, number).random() for purpose in Purpose for number in range(100)}
    assert len(first) == 100 * len(Purpose)


@given(position=st.integers(0, 10_000))
def test_augmentations_keep_within_their_bounds(position: int) -> None:
    config = AugmentConfig(rotate=1, rotate_degrees=7, scale=1, scale_by=0.3, colour=1, colour_by=0.1)
    for one in draw_sample(SUBJECTS, replace(RULES, augment=config), 0, position).augmentations:
        assert not one.flip
        assert abs(one.degrees) <= 7
        assert 0.7 <= one.scale <= 1.3
        assert 0.9 <= one.gamma <= 1.1
        assert 0.9 <= one.saturation <= 1.1


def test_augmentations_have_their_probabilities() -> None:
    config = AugmentConfig(flip=0.2, rotate=0.5, scale=0.1, colour=0.8)
    drawn = [
        one
        for position in range(1000)
        for one in draw_sample(SUBJECTS, replace(RULES, augment=config), 1, position).augmentations
    ]
    plain = Augmentation()
    for name, share in {"flip": 0.2, "degrees": 0.5, "scale": 0.1, "gamma": 0.8, "saturation": 0.8}.items():
        assert within(sum(getattr(one, name) != getattr(plain, name) for one in drawn), share, len(drawn))


class TestApply:
    @pytest.fixture
    def picture(self) -> Pictures.Image:
        """A red and a blue half on white."""
        picture = Pictures.new("RGB", (60, 40), "white")
        ImageDraw.Draw(picture).rectangle((10, 10, 29, 29), fill=(180, 40, 30))
        ImageDraw.Draw(picture).rectangle((30, 10, 49, 29), fill=(30, 60, 170))
        return picture

    def test_nothing(self, picture: Pictures.Image) -> None:
        assert np.array_equal(np.array(Augmentation().apply(picture)), np.array(picture))

    def test_flip(self, picture: Pictures.Image) -> None:
        assert np.array_equal(np.array(Augmentation(flip=True).apply(picture)), np.array(picture)[:, ::-1])

    @pytest.mark.parametrize("degrees", [-30, 8, 90])
    def test_rotation_loses_nothing(self, picture: Pictures.Image, degrees: float) -> None:
        turned = np.array(Augmentation(degrees=degrees).apply(picture)).astype(int)
        assert (turned[[0, -1]] == 255).all()
        ink, turned_ink = ((255 - image.astype(int)).sum() for image in (np.array(picture), turned))
        assert abs(turned_ink / ink - 1) < 0.03

    def test_scale(self, picture: Pictures.Image) -> None:
        small, large = (np.array(Augmentation(scale=scale).apply(picture)) for scale in (0.5, 2))
        assert small.shape == (80, 120, 3)
        assert np.array_equal(small[20:60, 30:90], np.array(picture))
        assert (small[:20] == 255).all()
        assert np.array_equal(large, np.array(picture)[10:30, 15:45])

    @given(gamma=st.floats(0.5, 1.5), saturation=st.floats(0.5, 1.5))
    def test_white_stays_white(self, gamma: float, saturation: float) -> None:
        white = Pictures.new("RGB", (4, 4), "white")
        assert (np.array(Augmentation(gamma=gamma, saturation=saturation).apply(white)) == 255).all()

    def test_colour(self, picture: Pictures.Image) -> None:
        red = np.array(picture)[20, 20].astype(int)
        dark, grey = (
            np.array(Augmentation(**change).apply(picture))[20, 20].astype(int)
            for change in ({"gamma": 1.3}, {"saturation": 0.5})
        )
        assert (dark < red).all()
        assert np.ptp(grey) == pytest.approx(np.ptp(red) / 2, abs=1)
