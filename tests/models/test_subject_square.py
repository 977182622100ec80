import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from models.subject_square import subject_square

GREY = (10.4, 20.5, 254.6)
FILL = (10, 20, 255)


def test_the_subject_is_in_the_middle_of_a_square_of_the_colour():
    image = np.arange(6 * 8 * 3, dtype=np.uint8).reshape(6, 8, 3)
    mask = np.zeros((6, 8), bool)
    mask[2, 1:6] = True
    mask[3, 3] = True

    square = subject_square(image, mask, GREY)

    assert square.shape == (5, 5, 3)
    assert np.array_equal(square[1], image[2, 1:6])
    assert np.array_equal(square[2, 2], image[3, 3])
    assert (square[2, [0, 1, 3, 4]] == FILL).all()
    assert (square[[0, 3, 4]] == FILL).all()


def test_an_empty_mask_is_a_pixel_of_the_colour():
    assert subject_square(np.zeros((4, 5, 3), np.uint8), np.zeros((4, 5), bool), GREY).tolist() == [[list(FILL)]]
    assert subject_square(np.zeros((0, 5, 3), np.uint8), np.zeros((0, 5), bool), GREY).tolist() == [[list(FILL)]]


def test_a_mask_of_another_size_is_refused():
    with pytest.raises(ValueError, match="does not belong"):
        subject_square(np.zeros((4, 5, 3), np.uint8), np.ones((5, 4), bool), GREY)


@given(
    st.tuples(st.integers(1, 9), st.integers(1, 9)).flatmap(
        lambda size: st.tuples(arrays(np.uint8, (*size, 3)), arrays(np.bool_, size), arrays(np.uint8, (*size, 3)))
    )
)
def test_all_of_the_subject_and_nothing_else_is_kept(drawn):
    image, mask, other = drawn
    before = image.copy()

    square = subject_square(image, mask, (1, 2, 3))

    assert square.shape[0] == square.shape[1]
    kept = sorted(map(tuple, image[mask].tolist()))
    fill = square.shape[0] ** 2 - len(kept)
    assert sorted(map(tuple, square.reshape(-1, 3).tolist())) == sorted(kept + [(1, 2, 3)] * fill)
    elsewhere = np.where(mask[..., None], image, other)
    assert np.array_equal(subject_square(elsewhere, mask, (1, 2, 3)), square)
    assert np.array_equal(image, before)
