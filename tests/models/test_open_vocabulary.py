import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from models.open_vocabulary import DEFAULT_WORDS, SAME_BOX_IOU, OpenVocabularyConfig, corners, distinct
from models.protocols import Detection
from models.vocabulary import CATEGORIES, VOCABULARY

SIZE = (40, 60)


def test_the_default_words_are_names_of_the_vocabulary_and_cover_its_categories():
    assert set(VOCABULARY) >= set(DEFAULT_WORDS)
    assert {VOCABULARY[word].category for word in DEFAULT_WORDS} == set(CATEGORIES)
    assert len(set(DEFAULT_WORDS)) == len(DEFAULT_WORDS)


@pytest.mark.parametrize("words", [[], ["dog", ""], ["dog", " . "]])
def test_default_words_that_ask_for_nothing_are_refused(words):
    with pytest.raises(ValidationError, match="default_words"):
        OpenVocabularyConfig(backend="any", model="any/any", default_words=words)


def test_boxes_about_their_centres_become_corners_in_pixels():
    boxes = corners(np.array([[0.5, 0.5, 1, 1], [0.25, 0.75, 0.5, 0.25]], np.float32), 60, 40)

    assert boxes.tolist() == [[0, 0, 60, 40], [0, 25, 30, 35]]
    assert boxes.dtype == np.float32


def test_boxes_are_clipped_to_the_image():
    assert distinct([Detection("dog", (-5, -5, 70, 20), 0.5)], SIZE, 0.5) == [Detection("dog", (0, 0, 60, 20), 0.5)]


@pytest.mark.parametrize(
    "box",
    [(10, 10, 10.5, 30), (10, 10, 30, 10.5), (60, 0, 80, 40), (59.5, 0, 80, 40), (30, 30, 20, 20), (np.nan, 0, 9, 9)],
    ids=["narrow", "low", "outside", "all but outside", "inside out", "nowhere"],
)
def test_boxes_of_less_than_a_pixel_in_the_image_are_dropped(box):
    assert distinct([Detection("dog", box, 0.9)], SIZE, 0.5) == []


def test_of_overlapping_boxes_of_a_word_the_better_one_stays():
    worse, better = Detection("dog", (0, 0, 20, 20), 0.4), Detection("dog", (2, 0, 20, 20), 0.8)

    assert distinct([worse, better], SIZE, 0.5) == [better]
    assert distinct([worse, better], SIZE, 0.95) == [better, worse]


def test_boxes_of_different_words_may_overlap():
    rider, horse = Detection("person", (0, 0, 20, 20), 0.4), Detection("horse", (4, 0, 20, 20), 0.8)

    assert distinct([rider, horse], SIZE, 0.5) == [horse, rider]


def test_a_box_that_two_words_claim_goes_to_the_better_one():
    man, person = Detection("man", (0, 0, 30, 20), 0.4), Detection("person", (0.5, 0, 30, 20), 0.8)

    assert distinct([man, person], SIZE, 1) == [person]


def test_a_dropped_box_drops_no_others():
    chain = [Detection("dog", (x, 0, x + 10, 10), 0.9 - x / 100) for x in (0, 3, 6)]

    assert distinct(chain, SIZE, 0.5) == [chain[0], chain[2]]


def test_an_image_without_boxes_gives_none():
    assert distinct([], SIZE, 0.5) == []


places = st.floats(-20, 80, width=32)
found_anywhere = st.lists(
    st.builds(
        Detection,
        st.sampled_from(["dog", "hot dog", "cat"]),
        st.tuples(places, places, places, places),
        st.floats(0, 1),
    ),
    max_size=12,
)


@given(found_anywhere, st.floats(0, 1))
def test_what_is_kept_is_inside_sorted_and_apart(found, nms_iou):
    kept = distinct(found, SIZE, nms_iou)

    assert [one.score for one in kept] == sorted((one.score for one in kept), reverse=True)
    for index, one in enumerate(kept):
        x0, y0, x1, y1 = one.box
        assert 0 <= x0 <= x1 - 1 <= 59
        assert 0 <= y0 <= y1 - 1 <= 39
        for other in kept[:index]:
            assert _iou(one.box, other.box) <= (nms_iou if one.word == other.word else SAME_BOX_IOU) + 1e-5
    assert distinct(kept, SIZE, nms_iou) == kept


@given(found_anywhere)
def test_the_best_box_in_the_image_always_stays(found):
    kept = distinct(found, SIZE, 0.5)
    apart = [distinct([one], SIZE, 0.5) for one in found]

    assert max((alone[0].score for alone in apart if alone), default=None) == (kept[0].score if kept else None)


def _iou(one, other):
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    shared = max(width, 0) * max(height, 0)
    areas = [(x1 - x0) * (y1 - y0) for x0, y0, x1, y1 in (one, other)]
    return shared / (sum(areas) - shared)
