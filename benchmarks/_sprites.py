"""A subject-to-video task that a tiny network learns on a CPU: every sprite in the place that the caption gives it.

A sample has two references, each with one sprite in its middle, and a caption such as "first right second left". Its
video shows the sprites in these places, sinking a little from frame to frame, with nothing else on white. Sprites,
their order and their places are drawn independently, so that only the references' positions in the sequence tell which
of them is the first.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

Split = Literal["train", "held out"]
Pixels = npt.NDArray[np.uint8]

ORDINALS = ("first", "second")
PLACES = ("left", "right")
SUBJECTS = len(PLACES)
SIDE = 6
CELL = 8
FRAMES = 2
STEP = (CELL - SIDE) // (FRAMES - 1)
HEIGHT, WIDTH = CELL, CELL * SUBJECTS
WHITE = 255

CONFUSED_BY_CHANCE = 1 - 1 / SUBJECTS

_ROWS, _COLUMNS = np.mgrid[:SIDE, :SIDE] - (SIDE - 1) / 2
_SHAPES = np.stack(
    [
        _ROWS**2 + _COLUMNS**2 < (SIDE / 2) ** 2,
        np.abs(_ROWS) + np.abs(_COLUMNS) <= SIDE / 2,
        np.maximum(np.abs(_ROWS), np.abs(_COLUMNS)) < SIDE / 2 - 1,
        np.minimum(np.abs(_ROWS), np.abs(_COLUMNS)) < SIDE / 4,
        np.abs(_COLUMNS) <= (_ROWS + SIDE / 2) / 2,
    ]
)
_PATTERNS = np.stack([_ROWS < 0, _COLUMNS < 0, _ROWS * _COLUMNS < 0, _ROWS**2 + _COLUMNS**2 < 5, _ROWS < _COLUMNS])


@dataclass(frozen=True, slots=True)
class Sprites:
    """Samples of the task; ``asked[b, p]`` is the reference of sample ``b`` that belongs into place ``p``."""

    video: Pixels
    """(B, T, H, W, 3)."""
    references: Pixels
    """(B, n, H, W, 3)."""
    captions: tuple[str, ...]
    sprites: Pixels
    """(B, n, side, side, 3): the references without what is around them."""
    asked: npt.NDArray[np.int64]
    """(B, places)."""


@dataclass(frozen=True, slots=True)
class Score:
    """How well videos show what was asked for."""

    confusion: float
    """Share of the places where another reference's sprite is nearer than the one asked for."""
    error: float
    """Root mean square of the difference to the right video where sprites are, in pixel values of 0 to 255."""


def draw_sprites(generator: np.random.Generator, count: int, split: Split) -> Sprites:
    """Draw ``count`` samples. The two splits have no combination of shape and pattern in common."""
    sprites = _sprites(generator, count, split)
    asked = generator.permuted(np.tile(np.arange(SUBJECTS), (count, 1)), axis=1)
    references = np.full((count, SUBJECTS, HEIGHT, WIDTH, 3), WHITE, np.uint8)
    top, left = (HEIGHT - SIDE) // 2, (WIDTH - SIDE) // 2
    references[:, :, top : top + SIDE, left : left + SIDE] = sprites
    return Sprites(
        video=compose(np.take_along_axis(sprites, asked[..., None, None, None], axis=1)),
        references=references,
        captions=tuple(
            " ".join(f"{ORDINALS[subject]} {PLACES[place]}" for subject, place in enumerate(np.argsort(places)))
            for places in asked
        ),
        sprites=sprites,
        asked=asked,
    )


def compose(sprites: Pixels) -> Pixels:
    """The videos (B, T, H, W, 3) with these sprites (B, places, side, side, 3) in their places."""
    video = np.full((len(sprites), FRAMES, HEIGHT, WIDTH, 3), WHITE, np.uint8)
    for frame, place, box in _boxes():
        video[:, frame, *box] = sprites[:, place]
    return video


def score(videos: Pixels, samples: Sprites) -> Score:
    """Compare videos (B, T, H, W, 3) with what the samples asked for."""
    shown = _cut_out(videos)
    candidates = samples.sprites.astype(np.float64)[:, None, None]
    differences = np.square(shown[:, :, :, None] - candidates).mean(axis=(1, 4, 5, 6))
    wanted = np.take_along_axis(differences, samples.asked[..., None], axis=2)
    return Score(
        confusion=float((differences.argmin(axis=2) != samples.asked).mean()), error=float(np.sqrt(wanted.mean()))
    )


def _cut_out(videos: Pixels) -> npt.NDArray[np.float64]:
    """What is where sprites should be, (B, T, places, side, side, 3)."""
    shown = np.empty((len(videos), FRAMES, SUBJECTS, SIDE, SIDE, 3))
    for frame, place, box in _boxes():
        shown[:, frame, place] = videos[:, frame, *box]
    return shown


def _boxes() -> Iterator[tuple[int, int, tuple[slice, slice]]]:
    """Rows and columns of every sprite in every frame, by frame and place."""
    for frame in range(FRAMES):
        for place in range(SUBJECTS):
            top, left = frame * STEP, place * CELL + (CELL - SIDE) // 2
            yield frame, place, (slice(top, top + SIDE), slice(left, left + SIDE))


def _sprites(generator: np.random.Generator, count: int, split: Split) -> Pixels:
    """Shapes of two colours (B, n, side, side, 3); the first colours of a sample are far apart in hue."""
    looks = [
        (shape, pattern)
        for shape in range(len(_SHAPES))
        for pattern in range(len(_PATTERNS))
        if ((shape - pattern) % len(_PATTERNS) == 0) == (split == "held out")
    ]
    shape, pattern = np.array(looks)[generator.integers(len(looks), size=(count, SUBJECTS))].transpose(2, 0, 1)
    spread = generator.permuted(np.tile(np.arange(SUBJECTS) / SUBJECTS, (count, 1)), axis=1)
    hue = generator.random((count, 1)) + spread + generator.uniform(-0.08, 0.08, (count, SUBJECTS))
    first = _colour(hue, generator.uniform(0.6, 1.0, hue.shape))
    second = _colour(generator.random(hue.shape), generator.uniform(0.2, 0.6, hue.shape))
    inside = np.where(_PATTERNS[pattern][..., None], first[:, :, None, None], second[:, :, None, None])
    return np.where(_SHAPES[shape][..., None], inside, WHITE).round().astype(np.uint8)


def _colour(hue: npt.NDArray[np.float64], value: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Saturated colours (..., 3) of 0 to 255 by hue in turns and value in [0, 1]."""
    distance = np.abs((hue[..., None] - np.arange(3) / 3 + 0.5) % 1 - 0.5) * 6
    return 255 * value[..., None] * np.clip(2 - distance, 0, 1)
