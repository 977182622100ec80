"""Rows of ``subjects`` as pairs are planned from them: embeddings are angles, and what differs is told in bits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

Row = dict[str, Any]


def at(degrees: float) -> list[float]:
    """A unit vector: the cosine of two of them is that of the angle between them."""
    return [float(np.cos(np.radians(degrees))), float(np.sin(np.radians(degrees)))]


def look(bits: int = 0, *, shape: int = 0, area: float = 0.05, time: float = 0.0) -> Row:
    """How a picture shows a subject. Two differ overall by a 96th per bit between them, up to 24 bits."""
    return {"phash": (1 << bits) - 1, "shape": shape, "area": area, "surroundings": [0.0] * 24, "time": time}


def frame(degrees: float = 0.0, **changes: Any) -> Row:
    """A kept frame that is as good as any."""
    numbers = {"sharpness": 100.0, "border": 0.0, "mask_score": 0.9, "face": 0.0, "face_pose": None}
    named = {name: changes.pop(name) for name in list(changes) if name in ("bits", "shape", "area", "time")}
    return {"image_embedding": at(degrees), **look(named.pop("bits", 0), **named), **numbers, **changes}


def subject(
    name: str,
    degrees: float = 0.0,
    *,
    clip: str | None = None,
    category: str = "object",
    word: str = "cup",
    face: float | None = None,
    frames: Sequence[Row] = (),
    best: int = 0,
    bits: int = 0,
    content: str = "shown",
    fingerprint: str = "fp",
    **changes: Any,
) -> Row:
    return {
        "subject_id": name,
        "clip_id": clip or f"clip-{name}",
        "category": category,
        "word": word,
        "image_embedding": at(degrees),
        "face_embedding": None if face is None else at(face),
        "face": 0.0 if face is None else 0.8,
        "frames": list(frames) or [frame(0), frame(10, bits=2), frame(40, bits=8)],
        "best": best,
        "content": content,
        "fingerprint": fingerprint,
        "frame_width": 640,
        "frame_height": 480,
        "box": [200.0, 100.0, 300.0, 300.0],
        "crop_box": [150, 50, 350, 350],
        **look(bits),
        **changes,
    }


def person(name: str, face: float | None, **changes: Any) -> Row:
    return subject(name, category="person", **{"word": "woman", **changes}, face=face)


def videos_of(subjects: Sequence[Row], named: Mapping[str, str] | None = None) -> dict[str, str]:
    """Each clip in a video of its own, but for those of the subjects named."""
    return {row["clip_id"]: (named or {}).get(row["subject_id"], f"video-{row['subject_id']}") for row in subjects}


def rule(by: str = "image", low: float = 0.5, high: float = 0.95, **changes: Any) -> dict[str, Any]:
    return {"by": by, "min": low, "max": high, **changes}
