"""The masks that the detector has found itself, for detectors that segment as well."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from models.protocols import Detection, Image, Keyframe, Segmentation
from models.registry import BackendConfig


class DetectorMasks:
    """Takes every detection's ``prior`` for its mask, and the detection's score for the mask's."""

    class Config(BackendConfig):
        """Options of ``backend: detector_masks``."""

        backend: Literal["detector_masks"] = "detector_masks"
        """Name of this backend."""

    def __init__(self, config: DetectorMasks.Config, root: Path) -> None:
        pass

    def segment(
        self, clips: Sequence[Sequence[Keyframe]], detections: Sequence[Sequence[Sequence[Detection]]]
    ) -> list[list[list[Segmentation]]]:
        """One segmentation per detection.

        Raises:
            ValueError: if a detection comes without a mask, or with one that has not the image's size; if detections
                and keyframes do not match in number.
        """
        return [
            [
                [_segmentation(keyframe.image, detection) for detection in found]
                for keyframe, found in zip(keyframes, per_frame, strict=True)
            ]
            for keyframes, per_frame in zip(clips, detections, strict=True)
        ]


def _segmentation(image: Image, detection: Detection) -> Segmentation:
    if detection.prior is None:
        raise ValueError(
            f"detector_masks: the detector gave {detection.word!r} a box and no mask. Combine this segmenter with a "
            "detector that finds masks (sam3, motion_saliency), or set models.segmenter to one that makes them from "
            "boxes (sam2, sam2_video, sam)."
        )
    if detection.prior.shape != image.shape[:2]:
        raise ValueError(
            f"detector_masks: the mask of {detection.word!r} has the shape {detection.prior.shape}, "
            f"its image {image.shape[:2]}"
        )
    return Segmentation(detection.prior, detection.score)
