import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from models.masks import box_iou, box_of, mask_iou

SIDE = 12


def filled(box):
    mask = np.zeros((SIDE, SIDE), np.bool_)
    x0, y0, x1, y1 = box
    mask[y0:y1, x0:x1] = True
    return mask


spans = st.tuples(st.integers(0, SIDE - 1), st.integers(1, SIDE)).map(lambda span: (span[0], max(span[1], span[0] + 1)))
boxes = st.tuples(spans, spans).map(lambda both: (both[0][0], both[1][0], both[0][1], both[1][1]))


@given(boxes)
def test_the_box_of_a_rectangle_is_the_rectangle(box):
    assert box_of(filled(box)) == box


@given(boxes, boxes)
def test_boxes_and_the_masks_that_fill_them_overlap_alike(a, b):
    assert box_iou(a, b) == box_iou(b, a) == pytest.approx(mask_iou(filled(a), filled(b)))


def test_a_box_reaches_from_the_first_to_the_last_pixel_of_scattered_ones():
    mask = np.zeros((5, 9), np.bool_)
    mask[1, 7] = mask[3, 2] = True

    assert box_of(mask) == (2.0, 1.0, 8.0, 4.0)


def test_nothing_overlaps_with_nothing():
    empty = np.zeros((4, 4), np.bool_)

    assert mask_iou(empty, empty) == 0
    assert box_iou((1, 1, 1, 1), (1, 1, 1, 1)) == 0


def test_an_inverted_box_is_empty():
    assert box_iou((8, 8, 2, 2), (0, 0, 10, 10)) == 0


def test_an_empty_mask_has_no_box():
    with pytest.raises(ValueError, match="empty"):
        box_of(np.zeros((4, 4), np.bool_))


masks = arrays(np.bool_, st.tuples(st.integers(1, 9), st.integers(1, 9)))


@given(masks)
def test_the_box_holds_all_of_the_mask_and_no_empty_side(mask):
    assume(mask.any())
    x0, y0, x1, y1 = box_of(mask)
    part = mask[y0:y1, x0:x1]

    assert part.sum() == mask.sum()
    assert part[0].any()
    assert part[-1].any()
    assert part[:, 0].any()
    assert part[:, -1].any()


@given(arrays(np.bool_, (2, 5, 7)))
def test_masks_overlap_alike_both_ways_and_wholly_only_if_equal(pair):
    a, b = pair

    assert 0 <= mask_iou(a, b) <= 1
    assert mask_iou(a, b) == mask_iou(b, a)
    assert mask_iou(a, a) == float(a.any())
    assert (mask_iou(a, b) == 1) == (bool(a.any()) and np.array_equal(a, b))
