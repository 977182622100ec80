"""Videos into clips: find the shots, trim what belongs to a transition, cut what is too long."""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field, model_validator

from models.protocols import Image, ShotDetector, Vector
from stages.config import Section
from stages.media import UnreadableVideo, local_copy, stream_frames
from stages.records import Clip, Source

Times = npt.NDArray[np.float64]


class SplitConfig(Section):
    """How videos are cut into clips."""

    by: Literal["shots", "stride"] = "shots"
    """`shots` looks for cuts with `models.shots`; `stride` cuts every `max_s` seconds without decoding."""
    threshold: float = Field(0.4, gt=0, lt=1)
    """A frame whose transition probability reaches this belongs to a cut, fade or dissolve."""
    trim_frames: int = Field(3, ge=0)
    """Frames also cut away on each side of a transition."""
    fade_luma: float = Field(16, ge=0, le=255)
    """Frames darker than this at a shot's ends are a fade and are trimmed; mean luma in [0, 255]."""
    min_s: float = Field(2.0, gt=0)
    """Stretches shorter than this (seconds) are recorded as dropped."""
    max_s: float = Field(10.0, gt=0)
    """Shots longer than this (seconds) are cut into equal clips."""
    span_s: float = Field(600, gt=0)
    """Longer videos are searched in parts of this many seconds, in parallel."""

    @model_validator(mode="after")
    def _ordered(self) -> SplitConfig:
        if self.max_s < 2 * self.min_s:
            raise ValueError(
                f"max_s ({self.max_s}) must be at least twice min_s ({self.min_s}), or shots cannot be cut evenly"
            )
        if self.span_s < 2 * self.max_s:
            raise ValueError(f"span_s ({self.span_s}) must be at least twice max_s ({self.max_s})")
        return self


@dataclass(frozen=True, slots=True)
class Span:
    """A part of a video that is searched for shots in one go; ``end_s`` may lie past the video's end."""

    span_id: str
    source: Source
    start_s: float
    end_s: float


@dataclass(frozen=True, slots=True)
class Stretch:
    """Frames ``[start, end)`` of a span, and why they are not used, if they are not."""

    start: int
    end: int
    shot: int
    dropped: str | None


def spans(source: Source, config: SplitConfig) -> list[Span]:
    """Cut a video into equal spans of at most ``span_s`` seconds."""
    count = max(1, math.ceil(source.duration_s / config.span_s))
    length = source.duration_s / count
    return [
        Span(
            f"{source.video_id}-{number:04d}",
            source,
            number * length,
            (number + 1) * length if number + 1 < count else math.inf,
        )
        for number in range(count)
    ]


def stretches(transition: Vector, luma: Vector, times: Times, config: SplitConfig) -> list[Stretch]:
    """Cut a span into clips, given each frame's transition probability, mean luma and time.

    Every frame belongs to exactly one stretch, so that what was dropped can be counted.

    Args:
        transition: shape ``(frames,)`` in [0, 1].
        luma: shape ``(frames,)`` in [0, 255].
        times: seconds at which each frame is shown, and last the end: shape ``(frames + 1,)``, increasing.
        config: thresholds and lengths.
    """
    frames = len(transition)
    cut = transition >= config.threshold
    edges = [0, *(np.flatnonzero(np.diff(cut.astype(np.int8))) + 1).tolist(), frames]
    result: list[Stretch] = []
    shot = 0
    for start, end in itertools.pairwise(edges):
        if start == end:
            continue
        if cut[start]:
            result.append(Stretch(start, end, shot, "transition"))
            continue
        first = start + (config.trim_frames if start > 0 else 0)
        last = end - (config.trim_frames if end < frames else 0)
        if first >= last:
            result.append(Stretch(start, end, shot, "too_short"))
            shot += 1
            continue
        lit = (first + np.flatnonzero(luma[first:last] >= config.fade_luma)).tolist()
        if lit:
            # Dark from end to end is no fade: such a shot goes on, and its brightness score speaks for itself.
            first, last = lit[0], lit[-1] + 1
        if first > start:
            result.append(Stretch(start, first, shot, "transition"))
        result.extend(_clips(first, last, shot, times, config))
        if last < end:
            result.append(Stretch(last, end, shot, "transition"))
        shot += 1
    return result


def _clips(first: int, last: int, shot: int, times: Times, config: SplitConfig) -> Iterator[Stretch]:
    seconds = times[last] - times[first]
    half_frame = float(np.median(np.diff(times[first : last + 1]))) / 2
    if seconds < config.min_s - half_frame:
        yield Stretch(first, last, shot, "too_short")
        return
    count = max(1, math.ceil((seconds - half_frame) / config.max_s))
    wanted = times[first] + seconds * np.arange(1, count) / count
    # At a variable rate, one long frame may reach over several of the wanted bounds: they fall together at its end.
    bounds = {first, *(np.searchsorted(times[first:last], wanted - half_frame) + first).tolist(), last}
    for start, end in itertools.pairwise(sorted(bounds)):
        long_enough = times[end] - times[start] >= config.min_s - half_frame
        yield Stretch(start, end, shot, None if long_enough else "too_short")


def clip_id(video_id: str, start_frame: int, end_frame: int) -> str:
    """Id of a clip: the same frames of the same bytes have the same id, whoever cuts them."""
    return hashlib.sha256(f"{video_id}:{start_frame}:{end_frame}".encode()).hexdigest()[:16]


class SplitStage:
    """Cuts spans of videos into clips."""

    def __init__(self, config: SplitConfig, detector: ShotDetector | None, fingerprint: str) -> None:
        self.config = config
        self.detector = detector
        self.fingerprint = fingerprint

    def run(self, span: Span) -> list[Clip]:
        """All stretches of a span, used and dropped, in order of time; at least one.

        Raises:
            UnreadableVideo: if not one frame of the span can be decoded.
        """
        clips = self._by_stride(span) if self.config.by == "stride" else self._by_shots(span)
        # What is dropped may be shorter than an average frame; it would share its range, and so its id, with others.
        return [clip for clip in clips if clip.end_frame > clip.start_frame or not clip.dropped] or clips[:1]

    def _by_shots(self, span: Span) -> list[Clip]:
        if self.detector is None:
            return self._by_stride(span)
        with local_copy(span.source.uri) as path:
            transition, luma, times = self._watch(path, span, self.detector)
        return [
            self._clip(span, times[stretch.start], times[stretch.end], stretch.shot, stretch.dropped)
            for stretch in stretches(transition, luma, times, self.config)
        ]

    def _watch(self, path: Path, span: Span, detector: ShotDetector) -> tuple[Vector, Vector, Times]:
        luma: list[float] = []
        times: list[float] = []

        def frames() -> Iterator[Image]:
            for time, image in stream_frames(path, span.start_s, span.end_s, detector.frame_size):
                times.append(time)
                luma.append(float(image.mean()))
                yield image

        transition = detector.transitions(frames())
        if not times:
            raise UnreadableVideo(f"{span.source.uri}: no frame could be decoded from {span.start_s:.1f} s on")
        end = min(times[-1] + 1 / span.source.fps, max(span.end_s, times[-1]))
        return transition, np.asarray(luma, np.float32), np.asarray([*times, end])

    def _by_stride(self, span: Span) -> list[Clip]:
        end = min(span.end_s, span.source.duration_s)
        bounds = [*np.arange(span.start_s, end - 0.5 / span.source.fps, self.config.max_s).tolist(), end]
        return [
            self._clip(span, start, stop, 0, None if stop - start >= self.config.min_s else "too_short")
            for start, stop in itertools.pairwise(bounds)
        ]

    def _clip(self, span: Span, start_s: float, end_s: float, shot: int, dropped: str | None) -> Clip:
        fps = span.source.fps
        start_frame, end_frame = round(start_s * fps), round(end_s * fps)
        if start_frame == end_frame:
            # In a very slow video even seconds may be less than an average frame: no range, and so no id of its own.
            dropped = dropped or "too_short"
        return Clip(
            clip_id=clip_id(span.source.video_id, start_frame, end_frame),
            video_id=span.source.video_id,
            span_id=span.span_id,
            start_frame=start_frame,
            end_frame=end_frame,
            start_s=float(start_s),
            end_s=float(end_s),
            shot=shot,
            dropped=dropped,
            fingerprint=self.fingerprint,
        )
