"""What the segmenters share that ask a network for the mask inside a box."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from models.protocols import Box, Detection, Image, Keyframe, Segmentation

FrameSegmenter = Callable[[Sequence[Image], Sequence[Sequence[Box]]], Sequence[list[Segmentation]]]
"""Masks of a micro-batch: images and, per image, its boxes (at least one) in; per image, one mask per box out."""


class BoxSegmenter(ABC):
    """A :class:`models.protocols.Segmenter` that segments frames in micro-batches of ``batch``."""

    def __init__(self, batch: int) -> None:
        self._batch = batch

    def segment(
        self, clips: Sequence[Sequence[Keyframe]], detections: Sequence[Sequence[Sequence[Detection]]]
    ) -> list[list[list[Segmentation]]]:
        """One segmentation per detection, at the image's size; the score is the network's own prediction of its
        mask's IoU.

        Raises:
            ValueError: if detections and keyframes do not match in number.
        """
        return segment_boxes(clips, detections, self._batch, self._segment_frames)

    @abstractmethod
    def _segment_frames(self, images: Sequence[Image], boxes: Sequence[Sequence[Box]]) -> list[list[Segmentation]]:
        """As :data:`FrameSegmenter`."""


def segment_boxes(
    clips: Sequence[Sequence[Keyframe]],
    detections: Sequence[Sequence[Sequence[Detection]]],
    batch: int,
    segment_frames: FrameSegmenter,
) -> list[list[list[Segmentation]]]:
    """What :meth:`models.protocols.Segmenter.segment` gives, from frames of all clips in micro-batches of ``batch``.

    A frame without detections never reaches ``segment_frames``.

    Raises:
        ValueError: if detections and keyframes do not match in number.
    """
    results: list[list[list[Segmentation]]] = []
    waiting: list[tuple[list[Segmentation], Image, list[Box]]] = []
    for keyframes, per_frame in zip(clips, detections, strict=True):
        results.append([])
        for keyframe, found in zip(keyframes, per_frame, strict=True):
            frame: list[Segmentation] = []
            results[-1].append(frame)
            if found:
                waiting.append((frame, keyframe.image, [detection.box for detection in found]))
    for start in range(0, len(waiting), batch):
        frames, images, boxes = zip(*waiting[start : start + batch], strict=True)
        for frame, segmentations in zip(frames, segment_frames(images, boxes), strict=True):
            frame.extend(segmentations)
    return results


def segmentations(masks: Iterable[Any], ious: Any) -> list[Segmentation]:
    """Boolean mask tensors ``(height, width)``, taken one by one, and their predicted IoUs ``(masks,)``.

    A predicted IoU is a regression that may leave [0, 1]; the score does not.
    """
    scores = np.clip(ious.float().cpu().numpy(), 0.0, 1.0)
    return [
        Segmentation(mask=mask.cpu().numpy(), score=float(score)) for mask, score in zip(masks, scores, strict=True)
    ]
