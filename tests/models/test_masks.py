import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.masks import box_around, overlap_of_boxes, overlap_of_masks

SIDE = 12


def filled(box):
    mask = np.zeros((SIDE, SIDE), np.bool_)
    x0, y0, x1, y1 = box
    mask[y0:y1, x0:x1] = True
    return mask


spans = st.tuples(st.integers(0, SIDE - 1), st.integers(1, SIDE)).map(lambda span: (span[0], max(span[1], span[0] + 1)))
boxes = st.tuples(spans, spans).map(lambda both: (both[0][0], both[1][0], both[0][1], both[1][1]))


@given(boxes)
def test_the_box_around_a_rectangle_is_the_rectangle(box):
    assert box_around(filled(box)) == box


@given(boxes, boxes)
def test_boxes_and_the_masks_that_fill_them_overlap_alike(a, b):
    assert overlap_of_boxes(a, b) == overlap_of_boxes(b, a) == pytest.approx(overlap_of_masks(filled(a), filled(b)))


def test_a_box_reaches_from_the_first_to_the_last_pixel_of_scattered_ones():
    mask = np.zeros((5, 9), np.bool_)
    mask[1, 7] = mask[3, 2] = True

    assert box_around(mask) == (2.0, 1.0, 8.0, 4.0)


def test_nothing_overlaps_with_nothing():
    empty = np.zeros((4, 4), np.bool_)

    assert overlap_of_masks(empty, empty) == 0
    assert overlap_of_boxes((1, 1, 1, 1), (1, 1, 1, 1)) == 0


def test_an_inverted_box_is_empty():
    assert overlap_of_boxes((8, 8, 2, 2), (0, 0, 10, 10)) == 0


def test_an_empty_mask_has_no_box():
    with pytest.raises(ValueError, match="empty"):
        box_around(np.zeros((4, 4), np.bool_))
