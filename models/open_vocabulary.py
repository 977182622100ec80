"""What detectors that take any words share: what they ask for when nobody gives words, and which boxes they keep."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import numpy as np
import numpy.typing as npt
from pydantic import Field

from models.protocols import Detection, Vector
from models.torch_device import HubConfig

DEFAULT_WORDS = (
    "person", "dog", "cat", "horse", "cow", "elephant", "bear", "monkey", "bird", "fish", "car", "truck", "bus",
    "motorcycle", "bicycle", "boat", "airplane", "train", "flower", "potted plant", "ball", "toy", "doll", "robot",
    "bottle", "cup", "cake", "guitar", "laptop", "phone", "chair",
)  # fmt: skip
"""Common words of every category of the vocabulary. All are names in it, so that their category is known."""

SAME_BOX_IOU = 0.9
"""Boxes of different words that overlap more than this are one box that both words claim."""


class OpenVocabularyConfig(HubConfig):
    """Base of the configs of detectors that take any words."""

    nms_iou: float = Field(0.6, ge=0, le=1)
    """Of two boxes of the same word that overlap more than this the weaker one is dropped."""
    default_words: Annotated[tuple[Annotated[str, Field(pattern=r"\w")], ...], Field(min_length=1)] = DEFAULT_WORDS
    """What a clip without words is searched for: the network takes any word and has no list of its own."""


def detections(words: Sequence[str], best: npt.NDArray[np.intp], scores: Vector, boxes: Vector) -> list[Detection]:
    """One detection per box of ``boxes``, of shape ``(n, 4)``; ``best`` is the index of its word, ``(n,)``."""
    found = zip(best.tolist(), scores.tolist(), boxes.tolist(), strict=True)
    return [Detection(words[index], tuple(box), min(score, 1.0)) for index, score, box in found]


def corners(centred: Vector, width: float, height: float) -> Vector:
    """Boxes ``(x, y, width, height)`` in [0, 1] about their centres as ``(x0, y0, x1, y1)`` in pixels, ``(n, 4)``."""
    centres, halves = centred[:, :2], centred[:, 2:] / 2
    scale = np.array([width, height, width, height], np.float32)
    boxes: Vector = np.concatenate([centres - halves, centres + halves], axis=1) * scale
    return boxes


def distinct(found: Sequence[Detection], size: tuple[int, ...], nms_iou: float) -> list[Detection]:
    """The best detections of an image, best first, each once and inside the image.

    A box is dropped if less than a pixel of it lies inside, if a better box of its word overlaps it by more than
    ``nms_iou``, or if a better one of another word is the same box (:data:`SAME_BOX_IOU`). Between equals the first
    wins.

    Args:
        found: boxes in pixels, which may reach beyond the image.
        size: height and width of the image.
        nms_iou: largest overlap, as intersection over union, of two boxes of a word.
    """
    height, width = size[:2]
    limits = np.array([width, height, width, height], np.float32)
    boxes = np.array([one.box for one in found], np.float32).reshape(-1, 4).clip(0, limits)
    words = np.array([one.word for one in found])
    open_ = (boxes[:, 2:] - boxes[:, :2] >= 1).all(axis=1)
    kept = []
    for index in np.argsort([-one.score for one in found], kind="stable"):
        if open_[index]:
            kept.append(Detection(found[index].word, tuple(boxes[index].tolist()), found[index].score))
            open_ &= _overlap(boxes[index], boxes) <= np.where(words == words[index], nms_iou, SAME_BOX_IOU)
    return kept


def _overlap(box: Vector, others: Vector) -> Vector:
    """Intersection over union of a box with others, of shape ``(n,)``."""
    shared = (np.minimum(box[2:], others[:, 2:]) - np.maximum(box[:2], others[:, :2])).clip(0).prod(axis=1)
    areas = (others[:, 2:] - others[:, :2]).prod(axis=1)
    overlap: Vector = shared / np.maximum((box[2:] - box[:2]).prod() + areas - shared, 1e-9)
    return overlap
