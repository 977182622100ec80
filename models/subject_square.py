"""The picture of a subject alone that networks which embed pictures look at."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from models.protocols import Image, Mask


def subject_square(image: Image, mask: Mask, colour: Sequence[float]) -> Image:
    """The box around a mask, padded to a square, with everything outside the mask in one colour.

    Args:
        image: RGB.
        mask: of the image's size; what is true is kept as it is.
        colour: RGB in [0, 255]. A network's mean colour becomes about zero in its normalisation.

    Returns:
        Shape ``(side, side, 3)``, the subject in the middle; a single pixel of the colour if the mask is empty.

    Raises:
        ValueError: if the mask has another size than the image.
    """
    if mask.shape != image.shape[:2]:
        raise ValueError(f"a mask of {mask.shape} does not belong to an image of {image.shape[:2]}")
    fill = np.clip(np.rint(colour), 0, 255).astype(np.uint8)
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not rows.size:
        return np.full((1, 1, 3), fill)
    inside = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    crop = image[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    height, width = inside.shape
    side = max(height, width)
    square = np.full((side, side, 3), fill)
    top, left = (side - height) // 2, (side - width) // 2
    square[top : top + height, left : left + width][inside] = crop[inside]
    return square
