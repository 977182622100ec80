"""Copies of a picture as they come about on the way of a video: for measuring how unlike a mere copy can look."""

from __future__ import annotations

from typing import cast

import cv2
import numpy as np

from models.protocols import Image

_QUALITY = 30
_LUMA = 30
_CROP = 0.05


def copies(image: Image) -> dict[str, Image]:
    """Five copies by name: JPEG at quality 30, 30 steps of luma brighter and darker, scaled to half and back, and cut
    to 95 % of each side around its middle.
    """
    height, width = image.shape[:2]
    encoded = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])[1]
    half = cv2.resize(image, (max(1, width // 2), max(1, height // 2)), interpolation=cv2.INTER_AREA)
    down, right = round(height * _CROP / 2), round(width * _CROP / 2)
    return {
        "JPEG": cast(Image, cv2.imdecode(encoded, cv2.IMREAD_COLOR)),
        "brighter": _lit(image, _LUMA),
        "darker": _lit(image, -_LUMA),
        "scaled": cast(Image, cv2.resize(half, (width, height), interpolation=cv2.INTER_LINEAR)),
        "cropped": image[down : height - down, right : width - right],
    }


def _lit(image: Image, steps: int) -> Image:
    return np.clip(image.astype(np.int16) + steps, 0, 255).astype(np.uint8)
