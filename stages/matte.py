"""Soft edges of hard masks, and the colours of a subject without the background that shines through its edge."""

from __future__ import annotations

from typing import cast

import cv2
import numpy as np
import numpy.typing as npt

from models.masks import box_of
from models.protocols import Image, Mask

_Floats = npt.NDArray[np.float32]

_SMOOTH = 1e-4
"""Variance of colours in [0, 1] below which a window counts as flat: a hundredth of the range."""
_EQUAL = 1e-6
"""Variance below which values in [0, 1] are all the same, but for rounding."""
_UNSURE = 0.1
"""Alpha that stands for none, and its distance from one that stands for all: filtered masks never quite end."""


def matte(image: Image, mask: Mask, *, band: float) -> tuple[_Floats, Image]:
    """How much of each pixel is the subject, and the subject's own colour there.

    Only pixels within ``band`` of the mask's outline are unsure: there alpha is the mask, filtered with the picture as
    the guide (`guided`). The picture's own edge is no outline: what is cut off by it stays solid. Colours in the band
    are estimated by blur fusion (Forte 2021, *Approximate fast foreground colour estimation*), in two passes.

    Args:
        image: the picture.
        mask: where in it the subject is.
        band: half the width of the unsure band, as a share of the longer side of the mask's box; 0 for a hard edge.

    Returns:
        Alpha ``(height, width)`` in [0, 1], exactly 1 deep inside and 0 far outside of the mask; and RGB of the
        picture's shape, the picture's own bit for bit where alpha is 0 or 1.

    Raises:
        ValueError: for an empty mask.
    """
    x0, y0, x1, y1 = box_of(mask)
    radius = round(band * max(x1 - x0, y1 - y0))
    alpha = mask.astype(np.float32)
    if radius < 1 or mask.all():
        return alpha, image.copy()
    reach = 4 * radius + 1
    near = np.s_[max(0, y0 - reach) : y1 + reach, max(0, x0 - reach) : x1 + reach]
    pixels = image[near].astype(np.float32) / np.float32(255)
    soft = guided(pixels, alpha[near], radius, _SMOOTH)
    soft = np.clip((soft - _UNSURE) / (1 - 2 * _UNSURE), 0, 1)
    alpha[near] = np.where(_distance_to_outline(mask[near]) <= radius, soft, alpha[near])
    colours = image.copy()
    between = (alpha[near] > 0) & (alpha[near] < 1)
    estimated = _own_colours(pixels, alpha[near], radius)
    colours[near][between] = np.rint(255 * estimated[between]).astype(np.uint8)
    return alpha, colours


def guided(guide: _Floats, values: _Floats, radius: int, smooth: float) -> _Floats:
    """Guided filter (He, Sun and Tang 2010) with a colour guide: values that follow the guide's edges.

    In every window of ``2 * radius + 1`` pixels the values are explained as a linear function of the guide's colour,
    by least squares with ``smooth`` on the slopes; a pixel gets the mean of what its windows say.

    Args:
        guide: shape ``(height, width, 3)``, in [0, 1].
        values: shape ``(height, width)``.
        radius: of the windows, in pixels.
        smooth: the variance of the guide's colours that is not to be followed.
    """
    size = (2 * radius + 1, 2 * radius + 1)

    def mean(planes: _Floats) -> _Floats:
        return cast(_Floats, cv2.boxFilter(planes, -1, size))

    # Where all values of a window are equal there is nothing to explain: the slopes are 0.
    level = mean(values)
    mixed = np.abs(mean(values * values) - level * level) > _EQUAL
    means = mean(guide)
    centres = means[mixed].astype(np.float64)
    shared = mean(guide * values[..., None])[mixed] - centres * level[mixed][:, None]
    spread = np.empty((len(centres), 3, 3))
    for i, j in ((0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (2, 2)):
        spread[:, i, j] = mean(guide[..., i] * guide[..., j])[mixed] - centres[:, i] * centres[:, j]
        spread[:, j, i] = spread[:, i, j]
    slopes = np.zeros_like(guide)
    slopes[mixed] = np.linalg.solve(spread + smooth * np.eye(3), shared[..., None])[..., 0]
    offsets = level - np.einsum("ijk,ijk->ij", slopes, means)
    return cast(_Floats, np.einsum("ijk,ijk->ij", mean(slopes), guide) + mean(offsets))


def _distance_to_outline(mask: Mask) -> _Floats:
    """Distance of each pixel to the nearest one on the other side of the mask's outline, in pixels."""
    inside, outside = (
        cv2.distanceTransform(side.astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE) for side in (mask, ~mask)
    )
    return cast(_Floats, np.where(mask, inside, outside))


def _own_colours(pixels: _Floats, alpha: _Floats, radius: int) -> _Floats:
    """The foreground of ``pixels = alpha * foreground + (1 - alpha) * background``; in [0, 1]."""
    share = alpha[..., None]
    foreground = background = pixels
    # Widely first, for pixels that see no sure ones nearby; then closely, for detail.
    for reach in (4 * radius, radius):
        own, rest = _mean_of(foreground, alpha, reach), _mean_of(background, 1 - alpha, reach)
        foreground = np.clip(own + share * (pixels - share * own - (1 - share) * rest), 0, 1)
        background = rest
    return foreground


def _mean_of(colours: _Floats, weights: _Floats, reach: int) -> _Floats:
    size = (2 * reach + 1, 2 * reach + 1)
    sums = cv2.blur(colours * weights[..., None], size)
    return cast(_Floats, sums / np.maximum(cv2.blur(weights, size), 1e-4)[..., None])
