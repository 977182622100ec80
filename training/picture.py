"""Reference images as the model sees them: whole, on a white canvas of the video's size."""

from __future__ import annotations

from typing import cast

import numpy as np
from PIL import Image as Pictures
from PIL import ImageOps

from models.protocols import Image

_WHITE = (255, 255, 255)


def letterbox(image: Pictures.Image, height: int, width: int) -> Image:
    """Fit a picture into ``height`` x ``width`` pixels, aspect ratio kept (LANCZOS, also enlarged), centred on white.

    Transparent parts become white; a photograph is turned the way its camera was held (EXIF). Returns (H, W, 3) uint8
    RGB. Sampling and training share it, so that a network meets the same references in both.
    """
    opaque = _on_white(ImageOps.exif_transpose(image))
    scale = min(width / opaque.width, height / opaque.height)
    size = (max(1, round(opaque.width * scale)), max(1, round(opaque.height * scale)))
    canvas = Pictures.new("RGB", (width, height), _WHITE)
    canvas.paste(opaque.resize(size, Pictures.Resampling.LANCZOS), ((width - size[0]) // 2, (height - size[1]) // 2))
    return cast(Image, np.array(canvas))


def _on_white(image: Pictures.Image) -> Pictures.Image:
    if image.mode.startswith("I"):  # 16 bits of grey, which Pillow would clip at 255 instead of scaling.
        return Pictures.fromarray((np.asarray(image).astype(np.uint32) >> 8).astype(np.uint8)).convert("RGB")
    if not image.has_transparency_data:
        return image.convert("RGB")
    coloured = image.convert("RGBA")
    white = Pictures.new("RGBA", coloured.size, (*_WHITE, 255))
    return Pictures.alpha_composite(white, coloured).convert("RGB")
