"""How differently two pictures show a subject, told from a few stored numbers: pose, surroundings, size, hash, time.

A :class:`Look` is what is kept of a picture for that. Two of them are compared without decoding anything, so millions
can be; `stages.measure.picture_difference` looks at the pictures themselves.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import cv2
import numpy as np
import numpy.typing as npt

from models.protocols import Image, Mask
from stages.measure import area, centred, lab, perceptual_hash
from stages.records import SubjectFrame

_GRID = 8
_SHAPE_WINDOW = 0.5
"""Share of `centred`'s canvas, in its middle, that the grid covers: a subject of usual shape fills most of it."""
_PLACES = 3
_LAB = 60.0
"""Distance of two colours that counts as a whole one, as in `picture_difference`."""
_BITS = 24.0
"""Differing bits of two hashes from which pictures have nothing in common: unrelated ones differ in about 32."""


@dataclass(frozen=True, slots=True)
class Look:
    """How a picture shows a subject."""

    phash: int
    """64-bit perceptual hash, as a signed integer."""
    shape: int
    """`shape_bits` of the mask."""
    area: float
    """Share of the frame inside the mask; [0, 1]."""
    surroundings: npt.NDArray[np.float32]
    """`surroundings` of picture and mask."""
    time: float | None = None
    """Seconds from the start of the video; nothing for what was painted."""

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> Look:
        """That of a subject or of one of its frames, by the columns of these names."""
        return cls(row["phash"], row["shape"], row["area"], np.asarray(row["surroundings"], np.float32), row["time"])

    @classmethod
    def of_frame(cls, frame: SubjectFrame) -> Look:
        """That of a frame's record."""
        return cls(frame.phash, frame.shape, frame.area, np.asarray(frame.surroundings, np.float32), frame.time)

    @classmethod
    def of_picture(cls, picture: Image, mask: Mask) -> Look:
        """That of a picture that was made: its size is that in the picture."""
        return cls(perceptual_hash(picture), shape_bits(mask), area(mask), np.array(surroundings(picture, mask)))


@dataclass(frozen=True, slots=True)
class Difference:
    """What differs between two looks."""

    pose: float
    """One minus the IoU of both shapes; [0, 1]."""
    background: float
    """Mean distance of the colours around both, lightness relative to each picture's own; [0, 1]."""
    scale: float
    """Octaves between their sizes: 1 is twice the width and height."""
    hash: int
    """Bits of 64 that differ."""
    seconds: float | None
    """Between both, where they are of one video."""

    @property
    def overall(self) -> float:
        """Mean of pose, background, size (whole from one octave on) and hash (whole from 24 bits on); [0, 1]."""
        return (self.pose + self.background + min(1.0, self.scale) + min(1.0, self.hash / _BITS)) / 4


def difference(a: Look, b: Look, *, same_video: bool) -> Difference:
    """What differs between two looks; symmetric."""
    bits = (np.array([a.shape, b.shape, a.phash, b.phash], np.int64)).view(np.uint64)
    either = int(np.bitwise_count(bits[0] | bits[1]))
    both = int(np.bitwise_count(bits[0] & bits[1]))
    timed = same_video and a.time is not None and b.time is not None
    return Difference(
        pose=1 - both / either if either else 0.0,
        background=surroundings_distance(a.surroundings, b.surroundings),
        scale=abs(float(np.log2(max(a.area, 1e-6)) - np.log2(max(b.area, 1e-6)))) / 2,
        hash=int(np.bitwise_count(bits[2] ^ bits[3])),
        seconds=abs(cast(float, a.time) - cast(float, b.time)) if timed else None,
    )


def shape_bits(mask: Mask) -> int:
    """The mask's shape in 64 bits, as a signed integer: which cells of an 8 x 8 grid it mostly fills.

    The mask is first centred and brought to one size (`stages.measure.centred`). 0 for an empty mask.
    """
    whole = centred(mask).astype(np.float32)
    rim = round(len(whole) * (1 - _SHAPE_WINDOW) / 2)
    window = whole[rim : len(whole) - rim, rim : len(whole) - rim]
    cells = cv2.resize(window, (_GRID, _GRID), interpolation=cv2.INTER_AREA) >= 0.5
    return int.from_bytes(np.packbits(cells).tobytes(), "big", signed=True)


def surroundings(picture: Image, mask: Mask) -> list[float]:
    """Mean colours in Lab of what is not the subject, in the outer 8 of 3 x 3 places of the picture; 24 numbers.

    L in [0, 100]. A place that the subject fills has the mean of the whole background; where there is no background at
    all, everything is 0.
    """
    size = (16 * _PLACES, 16 * _PLACES)
    small = lab(cv2.resize(picture, size, interpolation=cv2.INTER_AREA))
    weight = cv2.resize((~mask).astype(np.float32), size, interpolation=cv2.INTER_AREA)
    weight *= weight > 0.99  # What lies on the edge is mixed with the subject's colours.
    if not weight.any():
        return [0.0] * (3 * (_PLACES**2 - 1))
    mean = (small * weight[..., None]).sum(axis=(0, 1)) / weight.sum()
    sums = cv2.resize(small * weight[..., None], (_PLACES, _PLACES), interpolation=cv2.INTER_AREA)
    shares = cv2.resize(weight, (_PLACES, _PLACES), interpolation=cv2.INTER_AREA)[..., None]
    colours = np.where(shares > 0.02, sums / np.maximum(shares, 1e-6), mean).reshape(-1, 3)
    return cast(list[float], np.delete(colours, _PLACES**2 // 2, axis=0).ravel().astype(float).tolist())


def surroundings_distance(a: Sequence[float] | npt.NDArray[Any], b: Sequence[float] | npt.NDArray[Any]) -> float:
    """Mean distance of two `surroundings`, each place's cut off at 60 and divided by it; [0, 1].

    Lightness counts relative to each one's mean: exposure is no difference.
    """
    first, second = (np.asarray(values, np.float64).reshape(-1, 3) for values in (a, b))
    apart = (first - [first[:, 0].mean(), 0, 0]) - (second - [second[:, 0].mean(), 0, 0])
    return float(np.minimum(np.linalg.norm(apart, axis=1) / _LAB, 1).mean())
