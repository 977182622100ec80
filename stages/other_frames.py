"""Which of a subject's kept frames make good references beside its best one: good ones that differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from pydantic import Field

from stages.config import Section
from stages.difference import Look, difference

Row = Mapping[str, Any]


class OtherFrameConfig(Section):
    """References from another moment of the target's own clip."""

    count: int = Field(2, ge=0)
    """Most pictures per subject; 0 turns the kind off."""
    min_quality: float = Field(0.5, ge=0, le=1)
    """Least quality of a frame as a share of the best frame's: in sharpness, completeness, mask, and face if the best
    shows one; the worst of them counts."""


def other_frames(subject: Row, config: OtherFrameConfig) -> list[int]:
    """Numbers of the frames to take, the first choice first.

    Of the frames that are good enough, the one that differs most from the best frame comes first; then, again and
    again, the one that differs most from all those taken. Quality is a factor, so that of two frames that differ alike
    the better one wins.

    Args:
        subject: ``best`` and ``frames``, each frame with the columns of a `stages.records.SubjectFrame` that quality
            and difference are made of.
        config: how many and how good.
    """
    frames, best = subject["frames"], subject["best"]
    qualities = [quality(frame, frames[best]) for frame in frames]
    left = [number for number in range(len(frames)) if number != best and qualities[number] >= config.min_quality]
    taken = [best]
    while left and len(taken) <= config.count:
        gains = {
            number: qualities[number] * min(_difference(frames[number], frames[other]) for other in taken)
            for number in left
        }
        chosen = max(left, key=lambda number: (round(gains[number], 6), -number))
        taken.append(chosen)
        left.remove(chosen)
    return taken[1:]


def quality(frame: Row, best: Row) -> float:
    """How well a frame shows its subject, compared with the best one; [0, 1], the worst of the parts.

    One fault spoils a reference, however good the rest is. The parts are sharpness (logarithmic: past a point, more
    detail is noise), the share of the outline inside of the frame, the segmenter's score, and, where the best frame
    shows a face, the face's score times how far it looks into the camera: a back of a head is no reference of a person
    who can be seen.
    """
    parts = [
        _share(np.log1p(frame["sharpness"]), np.log1p(best["sharpness"])),
        _share(1 - frame["border"], 1 - best["border"]),
        _share(frame["mask_score"], best["mask_score"]),
    ]
    if best["face"] > 0:
        parts.append(_share(frame["face"] * _facing(frame["face_pose"]), best["face"] * _facing(best["face_pose"])))
    return min(parts)


def _share(value: float, of: float) -> float:
    return 1.0 if of <= 0 else float(np.clip(value / of, 0, 1))


def _facing(pose: Sequence[float] | None) -> float:
    """1 for a face that looks into the camera, 0 for one in profile; 1 where the face model does not tell."""
    return 1.0 if pose is None else float(np.clip(np.cos(np.deg2rad(max(abs(pose[0]), abs(pose[1])))), 0, 1))


def _difference(a: Row, b: Row) -> float:
    """Mean of how differently two frames show the subject and how far apart its looks lie; [0, 1]."""
    look = 1 - float(np.dot(a["image_embedding"], b["image_embedding"]))
    return (difference(Look.of(a), Look.of(b), same_video=True).overall + min(1.0, max(0.0, look))) / 2
