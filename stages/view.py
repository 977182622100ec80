"""What the annotating stages pass to one another: a clip and the frames of it that are looked at."""

from __future__ import annotations

from dataclasses import dataclass

from models.protocols import Keyframe
from stages.records import Clip, Source


@dataclass(frozen=True, slots=True)
class ClipView:
    """A clip, the video it is from, and its decoded keyframes in order of time (at least one)."""

    clip: Clip
    source: Source
    keyframes: list[Keyframe]
