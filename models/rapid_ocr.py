"""Where text is written, by the detection half of RapidOCR (PP-OCR's DB network, Liao et al., arXiv:1911.08947)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
from pydantic import Field

from models.onnx_session import open_session
from models.protocols import Image, TextRegion, Vector
from models.registry import BackendConfig

UNIT = 32
"""The network halves its input five times: both sides are multiples of this."""


class RapidOCR:
    """Text regions without their wording. The network ships with the ``rapidocr`` package.

    Only the network and the decoding of its output are used, not ``rapidocr.RapidOCR``: that class logs to the
    terminal, may download, cuts out every region for a recogniser, and returns boxes and scores in different orders.
    """

    class Config(BackendConfig):
        """Options of ``backend: rapidocr``."""

        packages = ("rapidocr",)

        backend: Literal["rapidocr"] = "rapidocr"
        """Name of this backend."""
        min_score: float = Field(0.6, ge=0, le=1)
        """Mean text probability inside a region from which on it is reported."""
        long_side: int = Field(960, ge=UNIT)
        """Longest side in pixels that an image is resized to; time grows with its square."""

    def __init__(self, config: RapidOCR.Config, root: Path) -> None:
        import rapidocr
        from rapidocr.ch_ppocr_det.utils import DBPostProcess

        folder = Path(rapidocr.__file__).with_name("models")
        networks = sorted(folder.glob("*_det_*.onnx"))
        if not networks:
            raise FileNotFoundError(f"the rapidocr package ships no text detection network in {folder}")
        self._long_side = config.long_side
        self._session = open_session(networks[0])
        self._input = self._session.get_inputs()[0].name
        # The values of rapidocr's own config.yaml.
        self._decode = DBPostProcess(
            thresh=0.3, box_thresh=config.min_score, unclip_ratio=1.6, use_dilation=True, score_mode="fast"
        )

    def spot(self, images: Sequence[Image]) -> list[list[TextRegion]]:
        """Text regions per image, corners clockwise from the top left; none for an image without pixels."""
        return [self._spot(image) if image.size else [] for image in images]

    def _spot(self, image: Image) -> list[TextRegion]:
        probabilities = self._session.run(None, {self._input: self._blob(image)})[0]
        boxes, scores = self._decode(probabilities, image.shape[:2])
        return [
            TextRegion(corners=np.asarray(box, np.float32), score=float(np.clip(score, 0, 1)))
            for box, score in zip(boxes, scores, strict=True)
        ]

    def _blob(self, image: Image) -> Vector:
        """Network input of shape ``(1, 3, height, width)``: BGR in [-1, 1]."""
        height, width = image.shape[:2]
        scale = self._long_side / max(height, width)
        size = [max(UNIT, round(side * scale / UNIT) * UNIT) for side in (width, height)]
        bgr = cv2.resize(image, size)[:, :, ::-1].astype(np.float32)
        blob: Vector = np.ascontiguousarray((bgr / 127.5 - 1.0).transpose(2, 0, 1)[None])
        return blob
