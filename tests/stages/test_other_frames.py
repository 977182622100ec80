from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from subject_rows import Row, frame, subject

from stages.other_frames import OtherFrameConfig, other_frames, quality


def taken(*frames: Row, best: int = 0, count: int = 9, **options: Any) -> list[int]:
    return other_frames(subject("a", frames=frames, best=best), OtherFrameConfig(count=count, **options))


def facing(score: float = 0.8, pitch: float = 0.0, yaw: float = 0.0, roll: float = 0.0, **changes: Any) -> Row:
    return frame(face=score, face_pose=[pitch, yaw, roll], **changes)


def test_the_most_different_frame_comes_first() -> None:
    assert taken(frame(bits=3), frame(bits=20), frame(bits=9)) == [1, 2]
    assert taken(frame(bits=3), frame(bits=20), frame(bits=9), best=1) == [0, 2]
    # In what was embedded, too.
    assert taken(frame(10), frame(60), frame(0), frame(20), best=2) == [1, 3, 0]


def test_then_comes_what_differs_from_all_that_were_taken() -> None:
    # The second is nearly as far from the best one as the first, but the same as that.
    assert taken(frame(bits=0), frame(bits=20), frame(bits=19), frame(bits=8), count=2) == [1, 3]


def test_of_those_that_differ_alike_the_first_comes_first() -> None:
    assert taken(frame(0), frame(30), frame(30), frame(0)) == [1, 2, 3]


@pytest.mark.parametrize(
    ("changes", "differs"), [({"bits": 6}, True), ({"shape": 7}, True), ({"area": 0.2}, True), ({}, False)]
)
def test_a_frame_differs_by_its_hash_its_shape_and_its_size(changes: dict[str, Any], differs: bool) -> None:
    found = taken(frame(shape=1), frame(**{"shape": 1, **changes}), frame(1, shape=1))
    assert found == ([1, 2] if differs else [2, 1])


def test_of_frames_that_differ_alike_the_better_one_comes_first() -> None:
    assert taken(frame(), frame(bits=9, border=0.3), frame(bits=9)) == [2, 1]


@pytest.mark.parametrize(
    "spoilt",
    [{"sharpness": 5.0}, {"border": 0.6}, {"mask_score": 0.4}],
    ids=["blurred", "cut off", "poor mask"],
)
def test_a_frame_that_is_much_worse_than_the_best_one_is_not_taken(spoilt: dict[str, Any]) -> None:
    assert taken(frame(), frame(90, bits=24, **spoilt), frame(bits=1)) == [2]
    # Where the best one is no better, it is as good as any.
    assert taken(frame(**spoilt), frame(90, bits=24, **spoilt)) == [1]


def test_a_back_of_a_head_is_no_reference_of_a_face() -> None:
    assert taken(facing(), frame(90, bits=24), facing(bits=1)) == [2]
    assert taken(facing(), facing(0.3, bits=24), facing(bits=1)) == [2]
    # Who was seen from behind all the time is known by the back.
    assert taken(frame(), frame(bits=9), facing(bits=3)) == [1, 2]


@pytest.mark.parametrize(
    ("turn", "is_taken"),
    [({"yaw": 50}, True), ({"yaw": -70}, False), ({"pitch": 70}, False), ({"roll": 70}, True), ({"yaw": 130}, False)],
)
def test_a_face_must_look_at_the_camera(turn: dict[str, float], is_taken: bool) -> None:
    assert taken(facing(), facing(bits=9, **turn)) == ([1] if is_taken else [])


def test_where_nothing_is_told_of_the_pose_a_face_is_a_face() -> None:
    assert taken(facing(), frame(bits=9, face=0.8)) == [1]


def test_the_count_and_the_least_quality_are_kept() -> None:
    frames = [frame(bits=bits, mask_score=score) for bits, score in ((0, 1.0), (5, 0.9), (9, 0.6), (12, 0.3))]
    assert [len(taken(*frames, count=count, min_quality=0)) for count in range(5)] == [0, 1, 2, 3, 3]
    assert sorted(taken(*frames, min_quality=0.6)) == [1, 2]
    assert taken(*frames, min_quality=0.61) == [1]
    assert taken(frame()) == []


shares = st.floats(0, 1, allow_subnormal=False, width=32)
frames_of_any_quality = st.builds(
    frame,
    st.floats(0, 90),
    sharpness=st.floats(0, 900, allow_subnormal=False, width=32),
    border=shares,
    mask_score=shares,
    face=shares,
    face_pose=st.none() | st.lists(st.floats(-180, 180), min_size=3, max_size=3),
    bits=st.integers(0, 30),
    area=shares,
)
qualities = st.sampled_from([0.0, 0.3, 0.7])


@settings(deadline=None, max_examples=60)
@given(frames_of_any_quality, frames_of_any_quality)
def test_quality_is_a_share_of_the_best_frame_s(one: Row, best: Row) -> None:
    assert 0 <= quality(one, best) <= 1
    assert quality(best, best) == pytest.approx(1)


@settings(deadline=None, max_examples=40)
@given(
    st.lists(frames_of_any_quality, min_size=1, max_size=6),
    st.data(),
    st.integers(0, 4),
    st.sampled_from([0, 0.3, 0.7]),
)
def test_only_good_frames_are_taken_and_as_many_as_there_are(
    frames: list[Row], data: st.DataObject, count: int, least: float
) -> None:
    best = data.draw(st.integers(0, len(frames) - 1))
    found = taken(*frames, best=best, count=count, min_quality=least)
    good = {number for number, each in enumerate(frames) if number != best and quality(each, frames[best]) >= least}
    assert set(found) <= good
    assert len(set(found)) == len(found) == min(count, len(good))
