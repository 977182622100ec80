"""A new background around a subject that stays: what to ask of an inpainter, and what to make of its answer."""

from __future__ import annotations

from typing import cast

import cv2
import numpy as np
import numpy.typing as npt
from pydantic import Field

from models.masks import box_of
from models.protocols import FillRequest, Image, Mask
from stages.config import Section
from stages.matte import matte


class RepaintConfig(Section):
    """How a subject's edge meets the background that is painted around it."""

    dilate: float = Field(0.0, ge=0, le=0.2)
    """Width of the old background that is kept around the subject, as a share of the longer side of its box."""
    feather: float = Field(1.0, ge=0, le=1)
    """Share of that width, from its outer end, over which it fades into what was painted."""
    edge: float = Field(0.01, ge=0, le=0.1)
    """Half the width of the band in which the subject's outline is softened, as a share of the longer side of its box:
    hair and fur beyond the mask come along, without the background between them. 0 cuts along the mask."""


def repaint_request(crop: Image, mask: Mask, config: RepaintConfig, prompt: str, seed: int) -> FillRequest:
    """What an inpainter is to paint: all but the subject, and what is kept around it in full.

    Raises ``ValueError`` for an empty mask.
    """
    kept = mask | (_distance(mask) <= _solid(mask, config))
    return FillRequest(image=crop, mask=~kept, prompt=prompt, seed=seed)


def repaint_compose(painted: Image, crop: Image, mask: Mask, config: RepaintConfig) -> Image:
    """The subject before its new background; inside the mask the crop's own pixels, bit for bit.

    ``painted`` is the inpainter's answer to `repaint_request` of the same crop, mask and config.
    Raises ``ValueError`` for an empty mask.
    """
    distance, solid, width = _distance(mask), _solid(mask, config), config.dilate * _longer_side(mask)
    old = np.clip((width - distance) / max(width - solid, 1e-6), 0, 1)[..., None] if width > 0 else 0.0
    scene = old * crop + (1 - old) * painted
    alpha, colours = matte(crop, mask, band=config.edge)
    share = alpha[..., None]
    picture = np.rint(share * colours + (1 - share) * scene).astype(np.uint8)
    picture[mask] = crop[mask]
    return picture


def _longer_side(mask: Mask) -> int:
    x0, y0, x1, y1 = box_of(mask)
    return max(x1 - x0, y1 - y0)


def _solid(mask: Mask, config: RepaintConfig) -> float:
    """Distance from the mask in pixels up to which the old background is kept in full."""
    return config.dilate * (1 - config.feather) * _longer_side(mask)


def _distance(mask: Mask) -> npt.NDArray[np.float32]:
    """Distance of each pixel to the mask in pixels; 0 inside."""
    outside = (~mask).astype(np.uint8)
    return cast(npt.NDArray[np.float32], cv2.distanceTransform(outside, cv2.DIST_L2, cv2.DIST_MASK_PRECISE))
