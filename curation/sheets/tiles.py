"""Tiles: pictures that are pasted together into larger ones, so that no text, however long or odd, leaves its place."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from itertools import islice
from math import ceil

import cv2
import numpy as np
from PIL import Image as PILImage
from PIL import ImageDraw, ImageFont, ImageOps

from models.protocols import Image, Mask
from stages.picture import decode_png

Tile = PILImage.Image
Colour = tuple[int, int, int]
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

PAGE, MARGIN, GAP = 1600, 32, 16
PICTURE = (432, 300)
"""Width of the first column, and the most height of a picture in it."""
ABOUT = 288
"""Width of the second column."""
CELL, CELL_GAP, CELLS = 124, 8, 6
"""Side of a reference, distance to the next, and how many stand side by side in the third column."""
DETAILS = CELLS * CELL + (CELLS - 1) * CELL_GAP
BORDER = 3

WHITE, INK, QUIET, LINE, GREY = (255, 255, 255), (28, 30, 34), (110, 114, 122), (222, 224, 228), (205, 207, 210)
PALE, AMBER, RED = (242, 243, 245), (150, 95, 0), (200, 32, 32)
SUBJECT_COLOURS: tuple[Colour, ...] = (
    (31, 105, 225),
    (222, 92, 0),
    (24, 140, 52),
    (190, 36, 140),
    (116, 72, 208),
    (0, 138, 152),
    (164, 118, 0),
    (120, 70, 40),
)
SPLIT_COLOURS: dict[str, Colour] = {"train": (70, 80, 95), "val": (116, 72, 208)}

SMALL, NORMAL, LARGE = 13, 15, 28
FONTS = (
    "",
    "DejaVuSans.ttf",
    "NotoSansCJK-Regular.ttc",
    "wqy-zenhei.ttc",
    "PingFang.ttc",
    "msyh.ttc",
    "Arial Unicode.ttf",
)
"""Pillow's own font has few letters beyond English; the others are used where installed, for text that it lacks."""
NO_CHARACTER = "\U0010fffe"
THINNEST = 2
"""Width of a letter in pixels. What cannot fit by it is not measured: a megabyte of caption costs what a page does."""


def with_masks(picture: Tile, masks: Iterable[tuple[Mask, Colour]], *, opacity: float) -> Tile:
    """The picture with tinted and outlined masks, which may be of another resolution."""
    canvas = np.asarray(picture).copy()
    for mask, colour in masks:
        # Pillow's resize averages: a fine mask shrinks without a ragged edge.
        scaled = PILImage.fromarray(mask.astype(np.uint8) * 255).resize(picture.size, PILImage.Resampling.BILINEAR)
        inside = np.asarray(scaled) > 127
        canvas[inside] = np.rint(canvas[inside] * (1 - opacity) + np.array(colour) * opacity).astype(np.uint8)
        contours, _ = cv2.findContours(inside.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
        # White under the colour, for a background that has the same.
        cv2.drawContours(canvas, contours, -1, WHITE, 4, cv2.LINE_AA)
        cv2.drawContours(canvas, contours, -1, colour, 2, cv2.LINE_AA)
    return PILImage.fromarray(canvas)


def label_subjects(frame: Tile, labels: Iterable[tuple[Mask, Colour, str]]) -> None:
    """Write each word at the top of its mask, below the words that are there already."""
    taken: list[tuple[int, int, int, int]] = []
    for mask, colour, word in labels:
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        if not rows.size:
            continue
        name = pill(word, colour, most=frame.width // 2)
        x = min(int(columns[0] * frame.width / mask.shape[1]), frame.width - name.width)
        y = min(int(rows[0] * frame.height / mask.shape[0]), frame.height - name.height)
        for left, top, right, bottom in sorted(taken, key=lambda box: box[1]):
            if x < right and left < x + name.width and y < bottom and top < y + name.height:
                y = bottom
        frame.paste(name, (x, y))
        taken.append((x, y, x + name.width, y + name.height))


def thumbnail(png: bytes, side: int, colour: Colour) -> Tile:
    """A PNG in the middle of a square with a border; bytes that are no picture leave a tile that says so."""
    inner = side - 2 * BORDER
    try:
        picture = fit(decode_png(png), (inner, inner))
    except ValueError:
        picture = missing_tile("not readable", (inner, inner))
    return squared(picture, side, colour)


def squared(picture: Tile, side: int, colour: Colour) -> Tile:
    """The picture in the middle of a square with a border."""
    tile = PILImage.new("RGB", (side, side), colour)
    tile.paste(PALE, (BORDER, BORDER, side - BORDER, side - BORDER))
    tile.paste(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
    return tile


def missing_tile(text: str, size: tuple[int, int], detail: str = "") -> Tile:
    """A grey tile that says what should be here."""
    tile = PILImage.new("RGB", size, GREY)
    words = [text_tile(line, size[0] - 16, colour=INK, fill=GREY, centred=True) for line in (text, detail) if line]
    told = below(words, fill=GREY)
    tile.paste(told, ((size[0] - told.width) // 2, (size[1] - told.height) // 2))
    return tile


def fit(image: Image, box: tuple[int, int]) -> Tile:
    """The whole picture as large as the box allows."""
    return ImageOps.contain(PILImage.fromarray(image), box)


def row_tile(picture: Tile, about: Tile, details: Tile) -> Tile:
    """The three columns of a row side by side."""
    height = max(picture.height, about.height, details.height)
    row = PILImage.new("RGB", (PAGE - 2 * MARGIN, height), WHITE)
    row.paste(PALE, (0, 0, PICTURE[0], picture.height))
    row.paste(picture, ((PICTURE[0] - picture.width) // 2, 0))
    row.paste(about, (PICTURE[0] + GAP, 0))
    row.paste(details, (PICTURE[0] + ABOUT + 2 * GAP, 0))
    return row


def page(header: Tile, rows: Iterable[Tile]) -> Tile:
    """A header and rows below it, with lines between them."""
    line = PILImage.new("RGB", (PAGE - 2 * MARGIN, 1), LINE)
    content = below([header, *(tile for row in rows for tile in (line, row))], gap=GAP)
    whole = PILImage.new("RGB", (PAGE, content.height + 2 * MARGIN), WHITE)
    whole.paste(content, (MARGIN, MARGIN))
    return whole


def below(tiles: Sequence[Tile], *, gap: int = 0, fill: Colour = WHITE) -> Tile:
    """Tiles below one another, at the left."""
    height = sum(tile.height for tile in tiles) + gap * (len(tiles) - 1)
    whole = PILImage.new("RGB", (max(tile.width for tile in tiles), height), fill)
    y = 0
    for tile in tiles:
        whole.paste(tile, (0, y))
        y += tile.height + gap
    return whole


def beside(tiles: Sequence[Tile], *, gap: int) -> Tile:
    """Tiles side by side, at the top."""
    return flow(tiles, sum(tile.width for tile in tiles) + gap * (len(tiles) - 1), gap)


def flow(tiles: Sequence[Tile], width: int, gap: int, line_gap: int | None = None) -> Tile:
    """Tiles side by side, in as many lines as the width makes of them."""
    places: list[tuple[int, int]] = []
    x = y = bottom = 0
    for tile in tiles:
        if x > 0 and x + tile.width > width:
            x, y = 0, bottom + (gap if line_gap is None else line_gap)
        places.append((x, y))
        x, bottom = x + tile.width + gap, max(bottom, y + tile.height)
    whole = PILImage.new("RGB", (width, bottom), WHITE)
    for tile, place in zip(tiles, places, strict=True):
        whole.paste(tile, place)
    return whole


def pill(text: str, colour: Colour, most: int = ABOUT) -> Tile:
    """White words on a colour, as wide as they are."""
    font = _font(text, SMALL)
    (line,) = _wrapped(text, font, most - 12, 1)
    words = text_tile(line, max(1, round(font.getlength(line))), colour=WHITE, fill=colour)
    tile = PILImage.new("RGB", (words.width + 12, words.height), colour)
    tile.paste(words, (6, 0))
    return tile


def text_tile(
    text: str,
    width: int,
    *,
    size: int = SMALL,
    colour: Colour = INK,
    lines: int = 1,
    fill: Colour = WHITE,
    centred: bool = False,
) -> Tile:
    """Words in at most so many lines of a width; what is more is cut off with an ellipsis."""
    font = _font(text, size)
    written = _wrapped(text, font, width, lines)
    height = round(1.35 * size)
    tile = PILImage.new("RGB", (width, height * len(written)), fill)
    draw = ImageDraw.Draw(tile)
    x, anchor = (width // 2, "ms") if centred else (0, "ls")
    for number, line in enumerate(written):
        # Placed by the baseline, which fonts share; their heights differ.
        draw.text((x, number * height + round(1.02 * size)), line, fill=colour, font=font, anchor=anchor)
    return tile


def _wrapped(text: str, font: Font, width: int, most: int) -> list[str]:
    """Lines of at most ``width`` pixels, at least one and at most ``most``."""
    limit = most * width // THINNEST
    lines = list(islice(_lines(_printable(text[:limit]).split(), font, width), most + 1)) or [""]
    if len(lines) > most or len(text) > limit:
        lines = lines[:most]
        while lines[-1] and font.getlength(lines[-1] + "…") > width:
            lines[-1] = lines[-1][:-1]
        lines[-1] += "…"
    return lines


def _lines(words: Iterable[str], font: Font, width: int) -> Iterator[str]:
    line = ""
    for word in words:
        for part in _parts(word, font, width):
            longer = f"{line} {part}" if line else part
            if line and font.getlength(longer) > width:
                yield line
                longer = part
            line = longer
    if line:
        yield line


def _parts(word: str, font: Font, width: int) -> Iterator[str]:
    """The word, cut where it is wider than a line: languages without spaces, and what is no language."""
    while word:
        # Never a part without a letter, however narrow the line.
        end = max(1, bisect_right(range(1, len(word) + 1), width, key=lambda count: ceil(font.getlength(word[:count]))))
        yield word[:end]
        word = word[end:]


def _printable(text: str) -> str:
    # Control characters, line breaks, marks of direction and the like would draw boxes or turn the line around.
    return "".join(letter if letter.isprintable() else " " for letter in text)


def _font(text: str, size: int) -> Font:
    """The first font that has all the letters; if none has, the one that lacks fewest."""
    letters = sorted(set(_printable(text[:PAGE])))
    return _sized(min(_installed(), key=lambda name: sum(not _has(name, letter) for letter in letters)), size)


@cache
def _installed() -> tuple[str, ...]:
    found = []
    for name in FONTS:
        try:
            _sized(name, SMALL)
        except OSError:
            continue
        found.append(name)
    return tuple(found)


@cache
def _sized(name: str, size: int) -> Font:
    return ImageFont.truetype(name, size) if name else ImageFont.load_default(size=size)


@cache
def _has(name: str, letter: str) -> bool:
    """Whether a font has a letter of its own: what it lacks is drawn like a character that does not exist."""
    font = _sized(name, SMALL)
    return letter == " " or bytes(font.getmask(letter)) != bytes(font.getmask(NO_CHARACTER))
