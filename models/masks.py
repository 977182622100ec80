"""Boxes around masks, and how far masks and boxes overlap."""

from __future__ import annotations

import numpy as np

from models.protocols import Box, Mask


def box_of(mask: Mask) -> tuple[int, int, int, int]:
    """Smallest box around the mask, ``(x0, y0, x1, y1)`` in pixels with exclusive ends.

    Raises ``ValueError`` for an empty mask.
    """
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not rows.size:
        raise ValueError("an empty mask has no box")
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def cut_edges(box: Box, width: int, height: int) -> tuple[bool, bool, bool, bool]:
    """By which edges of a picture of ``(width, height)`` what lies in the box is cut off: left, top, right, lower.

    On the edge means within half a per cent of the picture's shorter side: many segmenters stop a pixel or two before.
    """
    x0, y0, x1, y1 = box
    near = max(1.0, 0.005 * min(width, height))
    return bool(x0 <= near), bool(y0 <= near), bool(x1 >= width - near), bool(y1 >= height - near)


def mask_iou(a: Mask, b: Mask) -> float:
    """Intersection over union of two masks of one shape; [0, 1], 0 where both are empty."""
    union = int(np.count_nonzero(a | b))
    return float(np.count_nonzero(a & b) / union) if union else 0.0


def box_iou(a: Box, b: Box) -> float:
    """Intersection over union of two boxes; [0, 1], 0 where both are empty; an inverted box is empty."""
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    shared = max(width, 0.0) * max(height, 0.0)
    union = sum(max(x1 - x0, 0.0) * max(y1 - y0, 0.0) for x0, y0, x1, y1 in (a, b)) - shared
    return shared / union if union > 0 else 0.0
