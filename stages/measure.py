"""Numbers about pictures and masks: pure functions, each with its formula, unit and range.

Pictures and masks are as in :mod:`models.protocols`: RGB ``uint8`` of shape ``(height, width, 3)``, ``bool`` of
shape ``(height, width)``. None of these functions judges; thresholds belong to whoever reads the numbers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast

import cv2
import imagehash
import numpy as np
import numpy.typing as npt
from PIL import Image as PILImage
from pycocotools import mask as coco

from models.masks import box_of, mask_iou
from models.protocols import Image, Mask

_Plane = npt.NDArray[np.uint8]
_Floats = npt.NDArray[np.float32]

_SUBJECT_LINES = 256

_STATIC_LINES = 180
_STATIC_CHANGE = 5
"""Steps of luma that recompression alone moves a still pixel by, after averaging to ``_STATIC_LINES`` lines."""

_BAR_BLACK = 28
"""Brightest luma of a black bar: studio black is 16, compression rings a little above it."""
_BAR_RIPPLE = 10
_BAR_RIPPLE_COLOURED = 4
"""Steps of luma that a bar's pixels may lie off its level. Less if it is not black: skies and walls are nearly even."""
_BAR_SPECKS = 0.01
"""Share of a line that may lie further off and still be a bar."""
_BAR_EDGE = 0.4
"""Share of the line just inside the bar that must lie off: a picture begins all along its edge, a dark scene not."""

_FLOW_SIDE = 256
_FLOW_STEP_S = 1 / 24

_OUTLINE_SIDE = 256
_STRAIGHT_RUN = 0.16
"""Shortest straight run, as a share of the longer side of the outline's box.

On masks cut from 72 real shots without a network, 12 % still found runs on most good ones (hair, sleeves, roofs). At
16 % good masks of living things stay below 0.2; those that follow a box or a bar reach 0.3 to 0.6, and so do bottles
and trucks, which are straight."""

_ALIGN_SIDE = 192
_ALIGN_AREA = _ALIGN_SIDE**2 / 16

_PICTURE_SIDE = 128
_PICTURE_CELLS = 8
_PICTURE_BINS = 9
_PICTURE_LAB = 60.0
_PICTURE_FAINT = 2000.0
"""Sum of a cell's gradients (Sobel, 256 pixels: one step of luma in each) below which it counts as even."""


def luma(image: Image) -> _Plane:
    """Luma ``0.299 R + 0.587 G + 0.114 B`` (BT.601), rounded; ``(height, width)`` in [0, 255]."""
    return cast(_Plane, cv2.cvtColor(image, cv2.COLOR_RGB2GRAY))


def lab(image: Image) -> _Floats:
    """CIELAB of an RGB picture, ``(height, width, 3)``: lightness in [0, 100], then a and b, 0 for grey."""
    return cast(_Floats, cv2.cvtColor(image.astype(np.float32) / 255, cv2.COLOR_RGB2LAB))


def brightness(image: Image, mask: Mask | None = None) -> float:
    """Mean luma, of the pixels inside the mask if there is one; [0, 255], 0 for an empty mask."""
    plane = luma(image)
    values = plane if mask is None else plane[mask]
    return float(values.mean()) if values.size else 0.0


def sharpness(image: Image, lines: int, mask: Mask | None = None) -> float:
    """Variance of the Laplacian of luma after scaling the picture to ``lines`` lines; from 0, no upper bound.

    Scaling makes pictures of different sizes comparable: what was too small to hold detail comes out as blurred.
    Inside a mask, the mask is first eroded so that the step at its own edge does not count.
    """
    height, width = image.shape[:2]
    size = (max(1, round(width * lines / height)), lines)
    shrinks = lines < height
    plane = cv2.resize(luma(image), size, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC)
    edges = cv2.Laplacian(plane, cv2.CV_32F)
    if mask is None:
        return float(edges.var())
    inside = cv2.resize(mask.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST)
    # Enlarging spreads the step at the mask's edge over two of the picture's own pixels, the Laplacian over one more.
    around = 2 * math.ceil(2 * max(1.0, lines / height)) + 1
    inside = cv2.erode(inside, np.ones((around, around), np.uint8), borderValue=1)
    values = edges[inside > 0]
    return float(values.var()) if values.size else 0.0


def subject_sharpness(image: Image, mask: Mask) -> float:
    """`sharpness` inside the mask, the mask's own box scaled to 256 lines; 0 for an empty mask.

    The box, not the picture around it: one subject gives one number, whatever margin it was cut out with.
    """
    if not mask.any():
        return 0.0
    x0, y0, x1, y1 = box_of(mask)
    return sharpness(image[y0:y1, x0:x1], _SUBJECT_LINES, mask[y0:y1, x0:x1])


def perceptual_hash(image: Image) -> int:
    """64-bit DCT hash (``imagehash.phash``) as a signed integer: near copies differ in few bits,
    unrelated pictures in about 32.
    """
    bits = imagehash.phash(PILImage.fromarray(image)).hash
    return int.from_bytes(np.packbits(bits).tobytes(), "big", signed=True)


def area(mask: Mask) -> float:
    """Share of the frame inside the mask; [0, 1]."""
    return float(mask.mean())


def border_contact(mask: Mask) -> float:
    """Share of the mask's outline that lies on the frame's edge; [0, 1], 0 for an empty mask.

    The outline is the mask's pixels with a neighbour outside of it. On the edge means within half a per cent of the
    frame's shorter side: many segmenters stop a pixel or two before it.
    """
    outline = _outline(mask)
    total = int(np.count_nonzero(outline))
    if not total:
        return 0.0
    near = max(1, round(0.005 * min(mask.shape)))
    inner = int(np.count_nonzero(outline[near:-near, near:-near]))
    return (total - inner) / total


def fragments(mask: Mask) -> int:
    """Connected parts (8 neighbours) that each hold at least 1 % of the mask; 0 for an empty mask."""
    _, _, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    areas = stats[1:, cv2.CC_STAT_AREA]
    return int(np.count_nonzero(areas >= 0.01 * areas.sum())) if areas.size else 0


def straightness(mask: Mask) -> float:
    """Share of the mask's outline in long horizontal or vertical runs, outside the frame's edge; [0, 1].

    A segmentation that failed follows the box that it was given. The outline of the largest part is drawn with its
    box's longer side at 256 pixels. A point counts if it lies in a run of at least 16 % of that side that stays within
    one pixel of a horizontal or vertical line. What lies on the frame's edge counts neither above nor below: that is
    `border_contact`. 0 for an empty mask.
    """
    contour, edges = _scaled_outline(mask)
    if contour is None:
        return 0.0
    on_edge = np.zeros(len(contour), bool)
    for axis, value in edges:
        on_edge |= np.abs(contour[:, axis] - value) <= 1
    counted = int(np.count_nonzero(~on_edge))
    if not counted:
        return 0.0
    straight = _in_straight_run(contour[:, 0]) | _in_straight_run(contour[:, 1])
    return int(np.count_nonzero(straight & ~on_edge)) / counted


def aligned_iou(a: Mask, b: Mask) -> float:
    """IoU of two masks after moving their centres of mass onto each other and scaling both to one area; [0, 1].

    High where the same shape was found twice, wherever it went and however near it came. 0 if either is empty.
    """
    return mask_iou(centred(a), centred(b))


def centred(mask: Mask) -> Mask:
    """The mask's shape alone: its centre of mass in the middle of a square canvas, its area a sixteenth of that.

    `aligned_iou` compares these; they are for whoever compares one mask with many. Empty stays empty.
    """
    if not mask.any():
        return np.zeros((_ALIGN_SIDE, _ALIGN_SIDE), bool)
    x0, y0, x1, y1 = box_of(mask)
    part = mask[y0:y1, x0:x1].astype(np.uint8)
    rows, columns = np.nonzero(part)
    scale = float(np.sqrt(_ALIGN_AREA / len(rows)))
    middle = (_ALIGN_SIDE - 1) / 2
    shift = np.array(
        [[scale, 0, middle - scale * columns.mean()], [0, scale, middle - scale * rows.mean()]], np.float64
    )
    return cast(Mask, cv2.warpAffine(part, shift, (_ALIGN_SIDE, _ALIGN_SIDE), flags=cv2.INTER_NEAREST) > 0)


def encode_rle(mask: Mask) -> str:
    """COCO's compressed run-length encoding of a mask: the ``counts`` string, ASCII."""
    encoded = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
    return cast(str, encoded["counts"].decode("ascii"))


def decode_rle(counts: str, height: int, width: int) -> Mask:
    """The mask of ``(height, width)`` that `encode_rle` made ``counts`` of."""
    decoded = coco.decode({"counts": counts.encode("ascii"), "size": [height, width]})
    return cast(Mask, decoded.astype(bool))


def letterbox_share(images: Sequence[Image]) -> float:
    """Share of the frame in bars at its edges, above and below as well as left and right; [0, 1].

    A line of pixels belongs to a bar if it is of one level, black or not, all along and in all the pictures. A bar
    ends where the picture begins along most of the line at once; where dark turns to bright only here and there, it is
    a dark scene and no bar. Pictures of one size; those of a single level throughout give 0.
    """
    brightest = np.max([luma(image) for image in images], axis=0)
    darkest = np.min([luma(image) for image in images], axis=0)
    height, width = brightest.shape
    top = _bar(brightest, darkest)
    bottom = _bar(brightest[::-1], darkest[::-1])
    # The bars above and below would darken every column: look for the others between them.
    brightest, darkest = brightest[top : height - bottom].T, darkest[top : height - bottom].T
    left = _bar(brightest, darkest)
    right = _bar(brightest[::-1], darkest[::-1])
    return float(1 - (height - top - bottom) * (width - left - right) / (height * width))


def static_share(images: Sequence[Image]) -> float:
    """Share of pixels whose luma stays within 5 steps over all the pictures, seen at 180 lines; [0, 1].

    Averaging down first keeps noise and recompression from counting as change. Pictures of one size; 1 for a single
    one.
    """
    height, width = images[0].shape[:2]
    size = (max(1, round(width * _STATIC_LINES / height)), _STATIC_LINES)
    planes = [cv2.resize(luma(image), size, interpolation=cv2.INTER_AREA) for image in images]
    change = np.max(planes, axis=0).astype(np.int16) - np.min(planes, axis=0)
    return float((change <= _STATIC_CHANGE).mean())


def motion_magnitude(image: Image, neighbour: Image, interval_s: float) -> float:
    """Mean length of the optical flow in thousandths of the frame's diagonal per 1/24 s; from 0.

    DIS flow at 256 pixels. The length is taken per pixel before the mean: opposite motions must not cancel.
    ``interval_s`` is the time between the two pictures.
    """
    height, width = image.shape[:2]
    scale = _FLOW_SIDE / max(height, width)
    # Narrower than a few of its patches, DIS has nothing to match.
    size = (max(32, round(width * scale)), max(32, round(height * scale)))
    before, after = (cv2.resize(luma(picture), size, interpolation=cv2.INTER_AREA) for picture in (image, neighbour))
    flow = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_FAST).calc(before, after, None)
    per_interval = np.linalg.norm(flow, axis=2).mean() / np.hypot(*size) * 1000
    return float(per_interval * _FLOW_STEP_S / interval_s)


def picture_difference(a: Image, b: Image) -> float:
    """How unlike two pictures are as pictures (pose, layout, background), whatever they show; [0, 1].

    Both are scaled into a square. Mean of two distances over a grid of 8 x 8 cells: the mean distance of the cells'
    colours in Lab, cut off at 60 (lightness relative to the picture's own mean, since exposure is no difference), and
    one minus the cosine of the cells' histograms of gradient directions. 0 for identical pictures; symmetric.

    Median (95th percentile) on real clips: JPEG at quality 30 .004 (.01), 30 steps of luma brighter .007 (.02), next
    frame .006 (.05), an eighth of the clip later .035 (.20), its start and its end .12 (.34), cropped by 15 % on each
    side .20 (.32), mirrored .27 (.39); two clips of one person standing in the same room .05 (.07), of two persons
    there .16 (.21); pictures of different clips .42 (.54), never below .23.
    """
    first, second = _fitted(a), _fitted(b)
    colours = np.linalg.norm(_lab_grid(first) - _lab_grid(second), axis=2)
    layout = 1 - float(_gradients(first) @ _gradients(second))
    difference = (float(np.minimum(colours / _PICTURE_LAB, 1).mean()) + layout) / 2
    return min(1.0, max(0.0, difference))


def _outline(mask: Mask) -> Mask:
    inner = cv2.erode(
        mask.astype(np.uint8),
        cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3)),
        borderType=cv2.BORDER_CONSTANT,
        borderValue=0,
    )
    return cast(Mask, mask & (inner == 0))


def _scaled_outline(mask: Mask) -> tuple[npt.NDArray[np.int32] | None, list[tuple[int, int]]]:
    """Outline of the largest part, points ``(x, y)`` one pixel apart, and the lines of it that are the frame's edge."""
    if not mask.any():
        return None, []
    x0, y0, x1, y1 = box_of(mask)
    scale = _OUTLINE_SIDE / max(x1 - x0, y1 - y0)
    size = (max(1, round((x1 - x0) * scale)), max(1, round((y1 - y0) * scale)))
    # Smoothed, so that enlarging a coarse mask does not make steps of its pixels.
    part = cv2.resize(
        mask[y0:y1, x0:x1].astype(np.float32), size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    )
    contours, _ = cv2.findContours((part >= 0.5).astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    if not contours:
        return None, []
    near = max(1, round(0.005 * min(mask.shape)))
    height, width = mask.shape
    sides = [
        (x0 <= near, 0, 0),
        (y0 <= near, 1, 0),
        (x1 >= width - near, 0, size[0] - 1),
        (y1 >= height - near, 1, size[1] - 1),
    ]
    edges = [(axis, value) for touches, axis, value in sides if touches]
    return max(contours, key=len)[:, 0, :], edges


def _in_straight_run(coordinate: npt.NDArray[np.int32]) -> npt.NDArray[np.bool_]:
    """Which points of a closed outline lie in a long run along which this coordinate stays within one step."""
    from scipy.ndimage import maximum_filter1d, minimum_filter1d  # Slow to import; few workers measure outlines.

    length = round(_STRAIGHT_RUN * _OUTLINE_SIDE) | 1
    if len(coordinate) < length:
        return np.zeros(len(coordinate), bool)
    spread = maximum_filter1d(coordinate, length, mode="wrap") - minimum_filter1d(coordinate, length, mode="wrap")
    middles = spread <= 1
    return cast(npt.NDArray[np.bool_], maximum_filter1d(middles.astype(np.uint8), length, mode="wrap") > 0)


def _bar(brightest: _Plane, darkest: _Plane) -> int:
    """Number of lines from the first one on that are a bar."""
    level = float(np.median(brightest[0]))
    ripple = _BAR_RIPPLE if level <= _BAR_BLACK else _BAR_RIPPLE_COLOURED
    off = ((brightest > level + ripple) | (darkest < level - ripple)).mean(axis=1)
    picture = np.flatnonzero(off > _BAR_SPECKS)
    if not picture.size:
        return 0
    first = int(picture[0])
    # Scaling and compression spread the edge over a few lines.
    edge = off[first : first + max(3, len(off) // 60)]
    return first if float(edge.max()) >= _BAR_EDGE else 0


def _fitted(image: Image) -> Image:
    """The picture with its longer side at ``_PICTURE_SIDE`` pixels."""
    height, width = image.shape[:2]
    scale = _PICTURE_SIDE / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return cast(Image, cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR))


def _squared(plane: _Floats) -> _Floats:
    """The plane in the middle of a square of zeros: nothing, and no edge, outside of the picture."""
    down, right = _PICTURE_SIDE - plane.shape[0], _PICTURE_SIDE - plane.shape[1]
    around = (down // 2, down - down // 2, right // 2, right - right // 2)
    return cast(_Floats, cv2.copyMakeBorder(plane, *around, cv2.BORDER_CONSTANT, value=0))


def _lab_grid(small: Image) -> _Floats:
    """Mean colour of each cell in CIELAB, lightness relative to the picture's mean; ``(cells, cells, 3)``."""
    colours = lab(small)
    colours[..., 0] -= colours[..., 0].mean()
    return cast(_Floats, cv2.resize(_squared(colours), (_PICTURE_CELLS, _PICTURE_CELLS), interpolation=cv2.INTER_AREA))


def _gradients(small: Image) -> _Floats:
    """Histograms of unsigned gradient directions per cell, as one vector of unit length."""
    plane = cv2.GaussianBlur(luma(small), (3, 3), 0).astype(np.float32)
    dx, dy = (_squared(cv2.Sobel(plane, cv2.CV_32F, *order)) for order in ((1, 0), (0, 1)))
    bins = (np.arctan2(dy, dx) % np.pi / np.pi * _PICTURE_BINS).astype(np.intp) % _PICTURE_BINS
    rows, columns = np.indices(dx.shape) * _PICTURE_CELLS // _PICTURE_SIDE
    cells = (rows * _PICTURE_CELLS + columns) * _PICTURE_BINS + bins
    size = _PICTURE_CELLS**2 * _PICTURE_BINS
    counts: Any = np.bincount(cells.ravel(), weights=np.hypot(dx, dy).ravel(), minlength=size)
    grid = counts.reshape(_PICTURE_CELLS, _PICTURE_CELLS, _PICTURE_BINS).astype(np.float32)
    # Each cell on its own scale (softly), or one strong edge would be the whole layout, and noise that of a plain wall.
    grid /= np.sqrt((grid**2).sum(axis=2, keepdims=True)) + 0.05 * grid.sum(axis=2).max() + _PICTURE_FAINT
    # One more, constant component: two pictures without any edges are alike.
    vector = np.append(grid, np.float32(0.2))
    return cast(_Floats, vector / np.linalg.norm(vector))
