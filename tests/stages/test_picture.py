from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from models.protocols import Image, Mask
from stages.picture import cut_out, decode_png, encode_png


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
    out = cut_out(crop, disc(), feather=feather)
    assert tuple(out[out.shape[0] // 2, out.shape[1] // 2]) == (200, 0, 0)
    # Only mixtures of the subject's red and white: no green above either.
    assert np.all(out[..., 0] >= 200)
    assert np.array_equal(out[..., 1], out[..., 2])


def test_cut_out_is_the_mask_s_box_and_its_margin() -> None:
    mask = np.zeros((60, 80), bool)
    mask[10:30, 20:70] = True
    crop = np.zeros((60, 80, 3), np.uint8)
    assert cut_out(crop, mask, margin=0).shape == (20, 50, 3)
    framed = cut_out(crop, mask, margin=0.1, feather=0)
    assert framed.shape == (30, 60, 3)
    assert np.all(framed[:5] == 255)
    assert np.all(framed[5:25, 5:55] == 0)


def test_an_empty_mask_cannot_be_cut_out() -> None:
    with pytest.raises(ValueError, match="empty"):
        cut_out(np.zeros((4, 4, 3), np.uint8), np.zeros((4, 4), bool))
