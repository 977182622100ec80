"""Tiny networks that find saturated discs, note whatever they are asked, and fail where a test tells them to.

Registered under the name ``fake`` by the fixture ``fakes``. Everything is deterministic, and nothing is shared between
tests: the fixture forgets what was noted.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

import cv2
import numpy as np

from models.protocols import Detection, FillRequest, Image, Keyframe, Mask, Segmentation, TextRegion, Vector
from models.registry import BackendConfig

SEEN: dict[str, list[list[object]]] = defaultdict(list)
"""Per task, one list of items for each call. A clip is named by :func:`name_of` its first keyframe. What the detector
is asked of a single picture, whether it holds a second subject, stands under :data:`SECOND`."""

SECOND = "second subject"
CROWD = "a crowd"
"""A prompt at which the inpainter paints discs of its own into the background."""

POISON: dict[str, set[str]] = defaultdict(set)
"""Per task, the items on which it raises."""


class CursedError(RuntimeError):
    """What a fake raises on a poisoned item."""


def name_of(image: Image) -> str:
    return hashlib.sha256(image.tobytes()).hexdigest()[:12]


def calls() -> dict[str, int]:
    """How often each task was asked about anything: a call with nothing in it costs nothing."""
    return {task: count for task, batches in SEEN.items() if (count := sum(map(bool, batches)))}


def given(task: str) -> list[object]:
    """All that a task was given, over all calls."""
    return [item for batch in SEEN[task] for item in batch]


def forget() -> None:
    SEEN.clear()
    POISON.clear()


def _note(task: str, items: Sequence[object]) -> None:
    SEEN[task].append(list(items))
    for item in items:
        if item in POISON[task]:
            raise CursedError(f"{task} cannot bear {item}")


def colourful(image: Image) -> Mask:
    """Where the discs are: everything else in the synthetic videos is grey."""
    mask = cv2.inRange(cv2.cvtColor(image, cv2.COLOR_RGB2HSV), (0, 128, 20), (180, 255, 255))
    return cv2.morphologyEx(mask, cv2.MORPH_OPEN, np.ones((7, 7), np.uint8)) > 0


class Fake:
    class Config(BackendConfig):
        backend: str = "fake"
        strength: int = 1

    def __init__(self, config: BackendConfig, root: Path) -> None:
        self.config = config


class Shots(Fake):
    """Sees no cut."""

    frame_size = (32, 24)

    def transitions(self, frames: Iterable[Image]) -> Vector:
        first, count = "", 0
        for image in frames:
            first = first or name_of(image)
            count += 1
        _note("shots", [first])
        return np.zeros(count, np.float32)


class Text(Fake):
    """Sees no text."""

    def spot(self, images: Sequence[Image]) -> list[list[TextRegion]]:
        _note("text", [name_of(image) for image in images])
        return [[] for _ in images]


class Discs(Fake):
    class_free = False

    def detect(
        self, clips: Sequence[Sequence[Keyframe]], words: Sequence[Sequence[str]]
    ) -> list[list[list[Detection]]]:
        for task, alone in (("detector", False), (SECOND, True)):
            _note(task, [name_of(clip[0].image) for clip in clips if (len(clip) == 1) is alone])
        return [
            [_discs(keyframe.image, asked or ["subject"]) for keyframe in clip]
            for clip, asked in zip(clips, words, strict=True)
        ]


def _discs(image: Image, words: Sequence[str]) -> list[Detection]:
    _, _, parts, _ = cv2.connectedComponentsWithStats(colourful(image).astype(np.uint8))
    found = sorted((part for part in parts[1:].tolist() if part[4] > 400), key=lambda part: -part[4])
    return [
        Detection(words[number % len(words)], (float(x), float(y), float(x + width), float(y + height)), 0.9)
        for number, (x, y, width, height, _) in enumerate(found)
    ]


class Masks(Fake):
    def segment(
        self, clips: Sequence[Sequence[Keyframe]], detections: Sequence[Sequence[Sequence[Detection]]]
    ) -> list[list[list[Segmentation]]]:
        _note("segmenter", [name_of(clip[0].image) for clip in clips])
        return [
            [
                [Segmentation(_inside(keyframe.image, detection), 0.95) for detection in found]
                for keyframe, found in zip(clip, frames, strict=True)
            ]
            for clip, frames in zip(clips, detections, strict=True)
        ]


def _inside(image: Image, detection: Detection) -> Mask:
    x0, y0, x1, y1 = (int(value) for value in detection.box)
    mask = np.zeros(image.shape[:2], bool)
    mask[y0:y1, x0:x1] = colourful(image)[y0:y1, x0:x1]
    return mask


class Hues(Fake):
    """A histogram of twelve hues: discs of one colour are one individual."""

    def embed(self, images: Sequence[Image], masks: Sequence[Mask]) -> list[Vector]:
        _note("embedder", [name_of(image) for image in images])
        vectors = []
        for image, mask in zip(images, masks, strict=True):
            hue = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)[..., 0][mask]
            histogram = np.bincount(((hue.astype(int) + 8) % 180) // 15, minlength=12).astype(np.float32) + 1e-3
            vectors.append(histogram / np.linalg.norm(histogram))
        return vectors


class Noise(Fake):
    """Paints coarse grey noise, of the seed that it is given."""

    def fill(self, requests: Sequence[FillRequest]) -> list[Image]:
        _note("inpainter", [request.prompt for request in requests])
        pictures = []
        for request in requests:
            height, width = request.image.shape[:2]
            coarse = np.random.default_rng(request.seed).integers(0, 256, (height // 16 + 1, width // 16 + 1))
            noise = cv2.resize(coarse.astype(np.uint8), (width, height), interpolation=cv2.INTER_NEAREST)
            noise = np.repeat(noise[..., None], 3, axis=2)
            if CROWD in request.prompt:
                cv2.circle(noise, (20, 20), 18, (30, 190, 50), -1)
            pictures.append(np.where(request.mask[..., None], noise, request.image))
        return pictures


TASKS = {"shots": Shots, "text": Text, "detector": Discs, "segmenter": Masks, "embedder": Hues, "inpainter": Noise}
