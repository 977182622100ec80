"""What became of a subject and its background when the background was painted anew: measured against the old picture.

All pictures are RGB of one size, masks say where the subject is in both.
"""

from __future__ import annotations

from typing import cast

import cv2
import numpy as np
import numpy.typing as npt

from models.masks import box_iou, box_of
from models.protocols import Box, Detection, Image, Mask
from stages.measure import lab

_Floats = npt.NDArray[np.float32]

_SAME = 6.0
"""Distance in Lab up to which a pixel is still the old one: a little more than what one just sees."""
_RING = 0.03
"""Width of the ring around the subject, as a share of its box's longer side; its inner third is the subject's edge."""
_OWN = 0.5
"""Share of a found box inside the subject's own from which on it is the subject, or a part of it."""
_SMALLEST = 0.05
"""Boxes that are smaller than this share of the subject's are no second subject, but something far behind it."""


def subject_change(picture: Image, before: Image, mask: Mask) -> float:
    """Mean distance in Lab of the subject's pixels from those that they were; 0 where each was kept, or for no mask."""
    return float(_distance(picture, before)[mask].mean()) if mask.any() else 0.0


def new_share(picture: Image, before: Image, mask: Mask) -> float:
    """Share of the background that is not what it was; [0, 1], 1 where there is no background."""
    outside = ~mask
    return 1 - float(_kept(picture, before)[outside].mean()) if outside.any() else 1.0


def halo(picture: Image, before: Image, mask: Mask) -> float:
    """How much more of the old background is left in a ring around the subject than just beyond it; [0, 1].

    A mask that is too wide, or an inpainter that shies away from its edge, carries a rim of the old scene into the new
    one. What is alike by chance, as one wall is like another, is so beyond the ring too, and does not count.
    """
    if not mask.any():
        return 0.0
    x0, y0, x1, y1 = box_of(mask)
    distance = cv2.distanceTransform((~mask).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    width = max(3.0, _RING * max(x1 - x0, y1 - y0))
    ring = (distance > width / 3) & (distance <= width)
    beyond = (distance > 2 * width) & (distance <= 4 * width)
    if not ring.any() or not beyond.any():
        return 0.0
    kept = _kept(picture, before)
    return max(0.0, float(kept[ring].mean()) - float(kept[beyond].mean()))


def second_subject(found: list[Detection], own: Box) -> float:
    """Score of the surest of the found subjects that is not the one in the box ``own``; [0, 1], 0 if there is none.

    What overlaps with it for the most part is itself, or a part of it, and what is very small stands far behind it.
    """
    others = [detection for detection in found if not _is_own(detection.box, own)]
    return max((float(detection.score) for detection in others), default=0.0)


def laid_over(before: Image, before_mask: Mask, mask: Mask) -> Image:
    """A picture moved and scaled so that its subject's box lies on that of another mask, in that one's size.

    What the picture does not reach repeats its edge.
    """
    x0, y0, x1, y1 = box_of(before_mask)
    u0, v0, u1, v1 = box_of(mask)
    across, down = (u1 - u0) / (x1 - x0), (v1 - v0) / (y1 - y0)
    move = np.array([[across, 0, u0 - across * x0], [0, down, v0 - down * y0]])
    size = (mask.shape[1], mask.shape[0])
    return cast(Image, cv2.warpAffine(before, move, size, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE))


def _is_own(box: Box, own: Box) -> bool:
    width, height = min(box[2], own[2]) - max(box[0], own[0]), min(box[3], own[3]) - max(box[1], own[1])
    shared = max(0.0, width) * max(0.0, height)
    size = _area(box)
    return box_iou(box, own) >= _OWN or size < _SMALLEST * _area(own) or shared >= _OWN * size


def _area(box: Box) -> float:
    return max(0.0, box[2] - box[0]) * max(0.0, box[3] - box[1])


def _kept(picture: Image, before: Image) -> npt.NDArray[np.bool_]:
    return _distance(picture, before) <= _SAME


def _distance(picture: Image, before: Image) -> _Floats:
    return cast(_Floats, np.linalg.norm(lab(picture) - lab(before), axis=2))
