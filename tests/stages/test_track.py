from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.protocols import Detection, Mask, Segmentation, Vector
from stages.track import Candidate, Track, link, suppress

HEIGHT, WIDTH = 90, 160
RED, BLUE = (1.0, 0.0, 0.0), (0.0, 0.0, 1.0)


def ellipse(x: float, y: float, width: float, height: float) -> Mask:
    rows, columns = np.indices((HEIGHT, WIDTH))
    return ((columns - x) / width * 2) ** 2 + ((rows - y) / height * 2) ** 2 <= 1


def vector(*values: float) -> Vector:
    array = np.array(values, np.float32)
    return array / np.float32(np.linalg.norm(array))


def candidate(
    x: float,
    y: float = 45,
    size: float = 30,
    *,
    word: str = "person",
    look: tuple[float, ...] = RED,
    score: float = 0.9,
) -> Candidate:
    box = (x - size / 2, y - size / 2, x + size / 2, y + size / 2)
    mask = ellipse(x, y, size, size)
    return Candidate(Detection(word, box, score), Segmentation(mask, 0.9), vector(*look))


def contents(frames: list[list[Candidate]], tracks: list[Track]) -> set[tuple[tuple[int, float], ...]]:
    """Tracks by what is in them rather than by indices."""
    return {
        tuple((keyframe, frames[keyframe][index].detection.box[0]) for keyframe, index in track.members)
        for track in tracks
    }


def kept(candidates: list[Candidate]) -> list[int]:
    return suppress([item.detection for item in candidates], [item.segmentation for item in candidates])


def test_a_subject_that_moves_is_one_track() -> None:
    frames = [[candidate(20 + 12 * number)] for number in range(8)]
    tracks = link(frames)
    assert [track.indices for track in tracks] == [(0,) * 8]
    assert tracks[0].word == "person"


def test_two_that_walk_side_by_side_stay_apart() -> None:
    frames = [[candidate(20 + 10 * number, 25), candidate(20 + 10 * number, 65)] for number in range(6)]
    assert {track.indices for track in link(frames)} == {(0,) * 6, (1,) * 6}


def test_appearance_tells_apart_who_passes_whom() -> None:
    frames = [[candidate(50 + 10 * number), candidate(110 - 10 * number, look=BLUE)] for number in range(7)]
    # In the middle, at x = 80, one hides the other.
    frames[3] = [candidate(80)]
    by_look = {track.indices for track in link(frames)}
    assert by_look == {(0, 0, 0, 0, 0, 0, 0), (1, 1, 1, None, 1, 1, 1)}


def test_a_gap_of_one_keyframe_is_bridged_and_a_gap_of_two_is_not() -> None:
    frames = [[candidate(40)], [], [candidate(44)], [], [], [candidate(48)]]
    assert [track.indices for track in link(frames)] == [
        (0, None, 0, None, None, None),
        (None, None, None, None, None, 0),
    ]


def test_another_subject_elsewhere_starts_a_track_of_its_own() -> None:
    frames = [[candidate(20)], [candidate(140, look=BLUE)]]
    assert len(link(frames)) == 2
    # Not even a twin is the same when it is that far away.
    assert len(link([[candidate(20)], [candidate(140)]])) == 2


def followed(x: float, instance: int) -> Candidate:
    plain = candidate(x)
    return replace(plain, detection=replace(plain.detection, instance=instance))


def test_what_a_network_has_followed_is_one_track_however_far_it_jumps_and_however_long_it_is_gone() -> None:
    frames = [[followed(20, 1)], [], [], [], [followed(140, 1), followed(20, 2)], [candidate(20)]]
    assert sorted(track.indices for track in link(frames) if track.indices[0] is not None) == [
        (0, None, None, None, 0, None)
    ]
    # Who was not followed is nobody who was.
    assert len(link(frames)) == 3


def test_words_are_not_mixed() -> None:
    frames = [[candidate(40)], [candidate(40, word="dog")]]
    assert sorted((track.word, track.indices) for track in link(frames)) == [
        ("dog", (None, 0)),
        ("person", (0, None)),
    ]


def test_nothing_gives_nothing() -> None:
    assert link([]) == []
    assert link([[], []]) == []
    assert suppress([], []) == []


scenes = st.lists(
    st.lists(
        st.builds(
            candidate,
            st.floats(20, 140),
            st.floats(20, 70),
            st.floats(10, 40),
            word=st.sampled_from(["person", "dog"]),
            look=st.tuples(*(st.floats(0.1, 1),) * 3),
            score=st.floats(0, 1),
        ),
        max_size=4,
        unique_by=lambda item: item.detection.box[0],
    ),
    max_size=4,
)


@settings(max_examples=60, deadline=None)
@given(scenes)
def test_every_candidate_is_in_exactly_one_track_of_its_word(frames: list[list[Candidate]]) -> None:
    tracks = link(frames)
    members = [member for track in tracks for member in track.members]
    assert sorted(members) == [
        (keyframe, index) for keyframe, frame in enumerate(frames) for index in range(len(frame))
    ]
    for track in tracks:
        assert len(track.indices) == len(frames)
        assert {frames[keyframe][index].detection.word for keyframe, index in track.members} == {track.word}


@settings(max_examples=60, deadline=None)
@given(scenes, st.randoms(use_true_random=False))
def test_the_order_of_candidates_does_not_matter(frames: list[list[Candidate]], chance: random.Random) -> None:
    shuffled = [chance.sample(frame, len(frame)) for frame in frames]
    assert contents(frames, link(frames)) == contents(shuffled, link(shuffled))


@pytest.mark.parametrize("words", [("person", "person"), ("truck", "car")])
def test_of_two_masks_of_one_thing_the_better_score_stays(words: tuple[str, str]) -> None:
    a, b = candidate(50, word=words[0], score=0.5), candidate(50.5, word=words[1], score=0.8)
    assert kept([a, b]) == [1]
    assert kept([b, a]) == [0]


def test_things_that_overlap_a_little_both_stay() -> None:
    assert kept([candidate(50), candidate(62), candidate(120)]) == [0, 1, 2]


def test_empty_masks_are_dropped() -> None:
    empty = Candidate(Detection("cat", (0, 0, 9, 9), 1.0), Segmentation(np.zeros((HEIGHT, WIDTH), bool), 0), vector(1))
    assert kept([empty, candidate(50)]) == [1]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.builds(candidate, st.floats(40, 60), st.just(45), st.floats(20, 40), score=st.floats(0, 1)), max_size=6)
)
def test_what_stays_has_no_duplicates_and_what_goes_had_a_better_one(candidates: list[Candidate]) -> None:
    from models.masks import mask_iou

    staying = kept(candidates)
    for place, index in enumerate(staying):
        assert all(mask_iou(candidates[index].mask, candidates[other].mask) <= 0.8 for other in staying[:place])
    for index in set(range(len(candidates))) - set(staying):
        assert any(
            mask_iou(candidates[index].mask, candidates[other].mask) > 0.8
            and candidates[other].detection.score >= candidates[index].detection.score
            for other in staying
        )
