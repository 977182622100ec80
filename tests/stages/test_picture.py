from __future__ import annotations

import cv2
import numpy as np
import pytest
from blank import blank
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from models.masks import box_of
from models.protocols import Image, Mask
from stages.measure import encode_rle
from stages.picture import cut_out, decode_png, encode_png, foreground, subject_crop
from stages.records import Subject, SubjectFrame


def disc(size: int = 60, radius: float = 20) -> Mask:
    rows, columns = np.indices((size, size))
    return np.hypot(rows - size / 2, columns - size / 2) <= radius


@settings(deadline=None)
@given(arrays.arrays(np.uint8, st.tuples(st.integers(1, 20), st.integers(1, 20), st.just(3))))
def test_png_round_trip(image: Image) -> None:
    assert np.array_equal(decode_png(encode_png(image)), image)


def test_png_is_rgb() -> None:
    from io import BytesIO

    from PIL import Image as PILImage

    data = encode_png(np.full((2, 2, 3), (250, 10, 30), np.uint8))
    assert PILImage.open(BytesIO(data)).convert("RGB").getpixel((0, 0)) == (250, 10, 30)


@pytest.mark.parametrize("data", [b"", b"no picture"])
def test_what_is_no_picture_is_an_error(data: bytes) -> None:
    with pytest.raises(ValueError, match="not a picture"):
        decode_png(data)


@pytest.mark.parametrize("feather", [0.0, 1.0, 3.0])
def test_cut_out_shows_the_subject_and_nothing_of_its_background(feather: float) -> None:
    crop = np.full((60, 60, 3), (0, 200, 0), np.uint8)
    crop[disc()] = (200, 0, 0)
    out, inside = cut_out(crop, disc(), feather=feather)
    assert tuple(out[out.shape[0] // 2, out.shape[1] // 2]) == (200, 0, 0)
    # Only mixtures of the subject's red and white: no green above either.
    assert np.all(out[..., 0] >= 200)
    assert np.array_equal(out[..., 1], out[..., 2])
    assert np.all(out[~inside] == 255)


def test_cut_out_is_the_mask_s_box_and_its_margin() -> None:
    mask = np.zeros((60, 80), bool)
    mask[10:30, 20:70] = True
    crop = np.zeros((60, 80, 3), np.uint8)
    assert cut_out(crop, mask, margin=0)[0].shape == (20, 50, 3)
    framed, inside = cut_out(crop, mask, margin=0.1, feather=0)
    assert framed.shape == (30, 60, 3)
    assert np.all(framed[:5] == 255)
    assert np.all(framed[5:25, 5:55] == 0)
    assert np.array_equal(inside, framed[..., 0] == 0)


@settings(deadline=None, max_examples=40)
@given(arrays.arrays(bool, st.tuples(st.integers(1, 20), st.integers(1, 20))).filter(np.any), st.floats(0, 0.3))
def test_the_mask_of_a_cut_out_is_the_mask_moved(mask: Mask, margin: float) -> None:
    out, inside = cut_out(np.zeros((*mask.shape, 3), np.uint8), mask, margin=margin)
    assert out.shape[:2] == inside.shape
    (x0, y0, x1, y1), (u0, v0, u1, v1) = box_of(mask), box_of(inside)
    assert np.array_equal(inside[v0:v1, u0:u1], mask[y0:y1, x0:x1])
    # In the middle.
    assert (u0, v0) == (inside.shape[1] - u1, inside.shape[0] - v1)


def test_an_empty_mask_cannot_be_cut_out() -> None:
    with pytest.raises(ValueError, match="empty"):
        cut_out(np.zeros((4, 4, 3), np.uint8), np.zeros((4, 4), bool))


def on_white(mask: Mask, colour: int = 90) -> Image:
    picture = np.full((*mask.shape, 3), 255, np.uint8)
    picture[mask] = colour
    return picture


def test_the_foreground_is_what_stands_on_white() -> None:
    assert np.array_equal(foreground(on_white(disc())), disc())
    # White that the subject encloses is a part of it: a shirt, an eye.
    ring = disc() & ~disc(radius=10)
    assert np.array_equal(foreground(on_white(ring)), disc())


def test_the_foreground_may_touch_two_sides_and_white_need_not_be_pure() -> None:
    bust = np.zeros((60, 60), bool)
    bust[20:, 30:] = True
    grey = on_white(bust)
    grey[~bust] = 255 - 12
    assert np.array_equal(foreground(grey), bust)
    grey[~bust] = 255 - 13
    assert foreground(grey).all()


def test_without_white_around_it_or_with_nothing_else_all_is_foreground() -> None:
    scene = on_white(disc())
    scene[:, [0, -1]] = scene[[0, -1]] = 90
    assert foreground(scene).all()
    assert foreground(np.full((9, 7, 3), 255, np.uint8)).all()


def stored(mask: Mask, crop_box: list[int], side: int) -> Subject:
    """A subject with one frame whose picture tells columns by red and rows by green, its crop ``side`` pixels wide."""
    rows, columns = np.indices(mask.shape)
    image = np.dstack([2 * columns, 2 * rows, np.zeros_like(rows)]).astype(np.uint8)
    x0, y0, x1, y1 = crop_box
    crop = cv2.resize(image[y0:y1, x0:x1], (side, side), interpolation=cv2.INTER_AREA)
    frame = blank(SubjectFrame, mask=encode_rle(mask), crop_box=crop_box)
    size = {"frame_height": mask.shape[0], "frame_width": mask.shape[1]}
    return blank(Subject, frames=[blank(SubjectFrame), frame], crops=[b"", encode_png(crop)], **size)


@pytest.mark.parametrize("side", [40, 20])
def test_a_subject_s_crop_and_its_mask_fit_together(side: int) -> None:
    mask = np.zeros((60, 80), bool)
    mask[24:32, 30:50] = True
    crop, inside = subject_crop(stored(mask, [20, 10, 60, 50], side), 1)
    assert crop.shape[:2] == inside.shape == (side, side)
    scale = side / 40
    assert box_of(inside) == (10 * scale, 14 * scale, 30 * scale, 22 * scale)
    x0, y0, x1, y1 = box_of(inside)
    assert crop[y0:y1, x0:x1, 0].mean() == pytest.approx(2 * 39.5, abs=0.6)
    assert crop[y0:y1, x0:x1, 1].mean() == pytest.approx(2 * 27.5, abs=0.6)
