"""Which shape every sample is brought to."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from pydantic import PositiveInt


class Bucket(NamedTuple):
    """A size that videos are brought to: frames, and pixels."""

    frames: PositiveInt
    height: PositiveInt
    width: PositiveInt


@dataclass(frozen=True, slots=True)
class Layout:
    """Shapes of the samples of an index, by row, and how their videos are brought to them."""

    buckets: tuple[Bucket, ...]
    fps: float
    """Frames per second of what the model sees."""
    skip: int
    """Frames left out at both ends of every video."""
    bucket_of: npt.NDArray[np.int16]
    """Number of the bucket; -1 where the sample is left out."""
    references_of: npt.NDArray[np.int16]
    """Number of references."""

    @property
    def groups(self) -> npt.NDArray[np.int64]:
        """Equal for samples of one shape; -1 where the sample is left out."""
        most = int(self.references_of.max(initial=0)) + 1
        return np.where(self.bucket_of < 0, -1, self.bucket_of.astype(np.int64) * most + self.references_of)

    def bucket(self, row: int) -> Bucket:
        """That of a sample which is not left out."""
        return self.buckets[int(self.bucket_of[row])]

    @property
    def shapes(self) -> dict[tuple[Bucket, int], int]:
        """Samples by bucket and number of references."""
        there = self.bucket_of >= 0
        pairs = np.stack([self.bucket_of[there], self.references_of[there]], axis=1)
        found, counts = np.unique(pairs, axis=0, return_counts=True)
        return {
            (self.buckets[bucket], references): counted
            for (bucket, references), counted in zip(found.tolist(), counts.tolist(), strict=True)
        }


def nearest_bucket(width: int, height: int, room: int, buckets: Sequence[Bucket]) -> int:
    """The number of the bucket for a video of that size with ``room`` frames to choose from, or -1.

    Of the buckets whose frames fit: that of the nearest aspect ratio (least |log| of the quotient), of those the
    longest, of those the one nearest in area.
    """
    if not width or not height:
        return -1

    def distance(number: int) -> tuple[float, int, float]:
        bucket = buckets[number]
        aspect = abs(math.log(width * bucket.height / (height * bucket.width)))
        area = abs(math.log(width * height / (bucket.width * bucket.height)))
        return round(aspect, 9), -bucket.frames, round(area, 9)

    fitting = (number for number, bucket in enumerate(buckets) if bucket.frames <= room)
    return min(fitting, key=distance, default=-1)


def frames_at(frames: Any, recorded_fps: Any, fps: float) -> npt.NDArray[np.int64]:
    """Frames of a video of ``frames`` frames, recorded at ``recorded_fps``, once it is shown at ``fps``.

    Frame n is the one displayed at n / fps, so that there is one for every n with n / fps < frames / recorded_fps.
    """
    exact = np.asarray(frames, np.float64) * fps / np.asarray(recorded_fps, np.float64)
    return np.asarray(np.ceil(exact - 1e-6), np.int64)


def window_start(frames_there: int, frames: int, skip: int, place: float) -> int:
    """The first of ``frames`` frames that lie between the ``skip`` frames left out at both ends of a video.

    ``place`` in [0, 1) chooses evenly among all that are possible, 0.5 the middle one.
    """
    return skip + math.floor(place * (frames_there - 2 * skip - frames + 1))
