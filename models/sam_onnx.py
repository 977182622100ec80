"""Masks from boxes by Segment Anything (Kirillov et al., arXiv:2304.02643) as a pair of ONNX files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np

from models.onnx_session import open_session
from models.protocols import Box, Detection, Image, Keyframe, Segmentation, Vector
from models.registry import BackendConfig

SIDE = 1024
MEAN = np.array([123.675, 116.28, 103.53], np.float32)
STD = np.array([58.395, 57.12, 57.375], np.float32)
BOX_LABELS = np.array([[2, 3]], np.float32)
"""Labels of a box's top left and bottom right corner among the decoder's point prompts."""


class SamOnnx:
    """One mask per detection; an image without detections costs nothing."""

    class Config(BackendConfig):
        """Options of ``backend: sam_onnx``."""

        backend: Literal["sam_onnx"] = "sam_onnx"
        """Name of this backend."""
        encoder: str = "sam/encoder.onnx"
        """Image encoder under ``models.root``: 1x3x1024x1024 to 1x256x64x64."""
        decoder: str = "sam/decoder.onnx"
        """Mask decoder under ``models.root``, with the inputs of SAM's own ONNX export."""

        def weights(self, root: Path) -> list[Path]:
            """Encoder and decoder."""
            return [root / self.encoder, root / self.decoder]

    def __init__(self, config: SamOnnx.Config, root: Path) -> None:
        self._encoder = open_session(root / config.encoder)
        self._decoder = open_session(root / config.decoder)
        self._input = self._encoder.get_inputs()[0].name

    def segment(
        self, clips: Sequence[Sequence[Keyframe]], detections: Sequence[Sequence[Sequence[Detection]]]
    ) -> list[list[list[Segmentation]]]:
        """One segmentation per detection, at the image's size; the score is SAM's own prediction of its mask's IoU.

        Raises:
            ValueError: if detections and keyframes do not match in number.
        """
        return [
            [self._segment(keyframe.image, found) for keyframe, found in zip(keyframes, per_frame, strict=True)]
            for keyframes, per_frame in zip(clips, detections, strict=True)
        ]

    def _segment(self, image: Image, detections: Sequence[Detection]) -> list[Segmentation]:
        if not detections:
            return []
        embedding = self._encoder.run(None, {self._input: _blob(image)})[0]
        return [self._mask(embedding, image.shape[:2], detection.box) for detection in detections]

    def _mask(self, embedding: Any, size: tuple[int, ...], box: Box) -> Segmentation:
        masks, ious, _ = self._decoder.run(
            ["masks", "iou_predictions", "low_res_masks"],
            {
                "image_embeddings": embedding,
                "point_coords": np.array(box, np.float32).reshape(1, 2, 2) * (SIDE / max(size)),
                "point_labels": BOX_LABELS,
                "mask_input": np.zeros((1, 1, 256, 256), np.float32),
                "has_mask_input": np.zeros(1, np.float32),
                "orig_im_size": np.array(size, np.float32),
            },
        )
        best = int(ious[0].argmax())
        return Segmentation(mask=masks[0, best] > 0, score=float(np.clip(ious[0, best], 0.0, 1.0)))


def _blob(image: Image) -> Vector:
    """Encoder input of shape ``(1, 3, 1024, 1024)``: normalised RGB, zeros below and to the right."""
    height, width = image.shape[:2]
    scale = SIDE / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    resized = cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    blob = np.zeros((1, 3, SIDE, SIDE), np.float32)
    blob[0, :, : size[1], : size[0]] = ((resized - MEAN) / STD).transpose(2, 0, 1)
    return blob
