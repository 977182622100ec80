import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from training.picture import letterbox

RED = (200, 30, 40)


def flat(width: int, height: int) -> Image.Image:
    return Image.new("RGB", (width, height), RED)


def test_a_wide_picture_gets_white_above_and_below() -> None:
    canvas = letterbox(flat(40, 10), 32, 64)
    assert canvas.shape == (32, 64, 3)
    assert canvas.dtype == np.uint8
    assert (canvas[:8] == 255).all()
    assert (canvas[24:] == 255).all()
    assert (canvas[8:24] == RED).all()


def test_a_high_picture_gets_white_left_and_right() -> None:
    canvas = letterbox(flat(10, 40), 64, 32)
    assert (canvas[:, 8:24] == RED).all()
    assert (np.delete(canvas, np.s_[8:24], axis=1) == 255).all()


@given(width=st.integers(1, 300), height=st.integers(1, 300))
def test_the_whole_picture_is_there_in_its_aspect_ratio(width: int, height: int) -> None:
    canvas = letterbox(flat(width, height), 48, 80)
    rows, columns = (np.flatnonzero((canvas != 255).any(axis=(axis, 2))) for axis in (1, 0))
    assert len(rows) == 48 or len(columns) == 80
    assert len(rows) == pytest.approx(min(48, 80 * height / width), abs=1)
    assert len(columns) == pytest.approx(min(80, 48 * width / height), abs=1)
    assert abs(rows[0] - (47 - rows[-1])) <= 1
    assert abs(columns[0] - (79 - columns[-1])) <= 1


def test_a_picture_of_the_canvas_size_stays_as_it_is() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (24, 40, 3), dtype=np.uint8)
    assert (letterbox(Image.fromarray(picture), 24, 40) == picture).all()


def test_lanczos_is_what_shrinks_it() -> None:
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (96, 160, 3), dtype=np.uint8))
    assert (letterbox(picture, 24, 40) == np.asarray(picture.resize((40, 24), Image.Resampling.LANCZOS))).all()


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "1-bit key"])
def test_what_is_transparent_becomes_white(mode: str) -> None:
    if mode == "1-bit key":  # PNG's transparent colour.
        picture = Image.new("RGB", (8, 8), (0, 0, 0))
        picture.info["transparency"] = (0, 0, 0)
    else:
        picture = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
        picture.paste((0, 0, 0, 255), (0, 0, 4, 8))
        picture = picture if mode == "RGBA" else picture.convert(mode)
        assert (letterbox(picture, 8, 8)[:, :4] == 0).all()
    assert (letterbox(picture, 8, 8)[:, 4:] == 255).all()


def test_half_transparent_is_half_white() -> None:
    assert letterbox(Image.new("RGBA", (8, 8), (0, 0, 0, 128)), 8, 8)[0, 0].tolist() == [127, 127, 127]


def test_sixteen_bits_of_grey_are_scaled_not_clipped() -> None:
    file = io.BytesIO()
    Image.fromarray(np.full((8, 8), 40_000, np.uint16)).save(file, "PNG")
    assert (letterbox(Image.open(file), 8, 8) == 40_000 >> 8).all()


def test_grey_and_cmyk_become_rgb() -> None:
    assert (letterbox(Image.new("L", (8, 8), 77), 8, 8) == 77).all()
    assert (letterbox(Image.new("CMYK", (8, 8), (0, 0, 0, 0)), 8, 8) == 255).all()


def test_a_photograph_is_turned_as_its_camera_was_held() -> None:
    picture, file = flat(40, 20), io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6  # Turn a quarter clockwise to show.
    picture.save(file, "PNG", exif=exif)
    canvas = letterbox(Image.open(file), 40, 40)
    assert (canvas[:, 10:30] == RED).all()
    assert (canvas[:, :10] == 255).all()
