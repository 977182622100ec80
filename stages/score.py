"""Scores a clip as a whole, from its keyframes: numbers only, no verdict."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import cv2
import numpy as np
from pydantic import Field

from models.protocols import AestheticScorer, Image, Keyframe, SafetyScorer, TextRegion, TextSpotter
from stages.config import Section
from stages.measure import brightness, letterbox_share, motion_magnitude, perceptual_hash, sharpness, static_share
from stages.records import Score
from stages.view import ClipView

_LINES = 360
"""Height at which sharpness is measured; part of the column's definition."""
_CLOCK_S = 0.001
"""Containers round their clocks to a millisecond."""
_LINE_HEIGHT = 0.15
"""Tallest line of text, as a share of the frame's shorter side: subtitles and captions of real clips reach 0.09."""


class ScoreConfig(Section):
    """How clips are scored."""

    text_frames: int = Field(3, ge=1)
    """Keyframes per clip that are searched for text, spread evenly: text stays on screen longer than that."""
    judged_frames: int = Field(3, ge=1)
    """Keyframes per clip that the aesthetic and safety models see, spread evenly."""


class ScoreStage:
    """Clips in, one `Score` each out. Without ``text``, ``text_area`` is 0; what no model scores is left out."""

    def __init__(
        self,
        config: ScoreConfig,
        fingerprint: str,
        text: TextSpotter | None = None,
        aesthetic: AestheticScorer | None = None,
        safety: SafetyScorer | None = None,
    ) -> None:
        self._config = config
        self._text = text
        self._aesthetic = aesthetic
        self._safety = safety
        self._fingerprint = fingerprint

    def run(self, views: Sequence[ClipView]) -> list[Score]:
        """One score per view, in order; each model is asked once, with the pictures of all the views."""
        shown = [self._chosen(view, self._config.judged_frames) for view in views]
        liked: list[float | None] = [None for _ in views]
        nude: list[float | None] = [None for _ in views]
        if self._aesthetic is not None:
            liked = [float(np.mean(scores)) for scores in _per_view(self._aesthetic.aesthetic, shown)]
        if self._safety is not None:
            nude = [max(scores) for scores in _per_view(self._safety.nudity, shown)]
        judged = zip(views, self._text_areas(views), liked, nude, strict=True)
        return [self._score(*parts) for parts in judged]

    def _score(self, view: ClipView, text_area: float, aesthetic: float | None, nudity: float | None) -> Score:
        images = [keyframe.image for keyframe in view.keyframes]
        neighbours = [keyframe.neighbour for keyframe in view.keyframes]
        return Score(
            clip_id=view.clip.clip_id,
            motion=self._motion(view),
            brightness=float(np.mean([brightness(image) for image in images])),
            sharpness=float(np.median([sharpness(image, _LINES) for image in images])),
            text_area=text_area,
            border=letterbox_share(images),
            static=static_share([*images, *neighbours]),
            aesthetic=aesthetic,
            nudity=nudity,
            phashes=[perceptual_hash(image) for image in images],
            fingerprint=self._fingerprint,
        )

    def _motion(self, view: ClipView) -> float:
        motions = []
        for keyframe in view.keyframes:
            interval_s = _interval(keyframe, view.source.fps)
            if interval_s > 0:
                motions.append(motion_magnitude(keyframe.image, keyframe.neighbour, interval_s))
        return float(np.mean(motions)) if motions else 0.0

    def _text_areas(self, views: Sequence[ClipView]) -> list[float]:
        if self._text is None:
            return [0.0 for _ in views]
        chosen = [self._chosen(view, self._config.text_frames) for view in views]
        found = iter(self._text.spot([image for images in chosen for image in images]))
        return [max(text_share(next(found), image.shape[0], image.shape[1]) for image in images) for images in chosen]

    def _chosen(self, view: ClipView, count: int) -> list[Image]:
        return [view.keyframes[index].image for index in _spread(len(view.keyframes), count)]


def _per_view(
    judge: Callable[[Sequence[Image]], list[float]], shown: Sequence[Sequence[Image]]
) -> Iterator[list[float]]:
    """Scores of each view's pictures, from one call for all."""
    scores = iter(judge([image for images in shown for image in images]))
    return ([next(scores) for _ in images] for images in shown)


def text_share(regions: Sequence[TextRegion], height: int, width: int) -> float:
    """Share of a frame inside text regions, where they overlap counted once; [0, 1].

    Regions whose shorter side exceeds 15 % of the frame's are left out: text laid over a video is not that tall, but
    text detectors take blurred walls and plain floors for one (measured: up to the whole frame, at scores of 0.8).
    """
    canvas = np.zeros((height, width), np.uint8)
    for region in regions:
        if _line_height(region) <= _LINE_HEIGHT * min(height, width):
            # One by one: fillPoly takes overlapping polygons of a single call for holes.
            cv2.fillPoly(canvas, [np.rint(region.corners).astype(np.int32)], 1)
    return float(canvas.mean())


def _line_height(region: TextRegion) -> float:
    sides = np.linalg.norm(region.corners - np.roll(region.corners, -1, axis=0), axis=1)
    return float(min(sides[0] + sides[2], sides[1] + sides[3]) / 2)


def _interval(keyframe: Keyframe, fps: float) -> float:
    """Seconds between the frames that the keyframe and its neighbour are; 0 if they are one frame.

    A whole number of frames: at 30 frames a second, 1/24 s later is the next one or the one after it, depending on
    where the time falls. Slower videos show the same frame or the next one.
    """
    if keyframe.neighbour_s * fps < 1:
        return 0.0 if np.array_equal(keyframe.image, keyframe.neighbour) else 1 / fps
    instants = (keyframe.time, keyframe.time + keyframe.neighbour_s)
    first, second = (math.floor((instant + _CLOCK_S) * fps) for instant in instants)
    return (second - first) / fps


def _spread(count: int, wanted: int) -> list[int]:
    """Up to ``wanted`` different indices below ``count``, evenly spread and away from the ends where possible."""
    wanted = min(count, wanted)
    return [int((2 * place + 1) * count / (2 * wanted)) for place in range(wanted)]
