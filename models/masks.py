"""How far masks and boxes overlap, for backends that must tell one subject from another."""

from __future__ import annotations

import numpy as np

from models.protocols import Box, Mask


def box_around(mask: Mask) -> Box:
    """Smallest box that holds the mask.

    Raises:
        ValueError: if the mask is empty.
    """
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        raise ValueError("an empty mask has no box")
    return float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)


def overlap_of_boxes(a: Box, b: Box) -> float:
    """Intersection over union, in [0, 1]; 0 if both are empty."""
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    common = max(width, 0.0) * max(height, 0.0)
    union = sum(max(x1 - x0, 0.0) * max(y1 - y0, 0.0) for x0, y0, x1, y1 in (a, b)) - common
    return common / union if union > 0 else 0.0


def overlap_of_masks(a: Mask, b: Mask) -> float:
    """Intersection over union, in [0, 1]; 0 if both are empty."""
    union = np.count_nonzero(a | b)
    return np.count_nonzero(a & b) / union if union else 0.0
