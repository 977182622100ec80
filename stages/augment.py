"""The same picture of a subject, moved, cropped and recoloured: what a reference may differ in without a network."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, cast

import cv2
import numpy as np
import numpy.typing as npt
from pydantic import Field

from models.masks import box_of, cut_edges
from models.protocols import Image, Mask
from stages.config import Section
from stages.matte import matte
from stages.measure import picture_difference

_Floats = npt.NDArray[np.float32]
_Matrix = npt.NDArray[np.float64]

_MARGIN = 0.04
"""White around the subject, as a share of the longer side of its box."""
_CROPS = 12
"""Windows drawn until one keeps enough of the subject."""


class AugmentConfig(Section):
    """How far an augmented picture may go from the subject's own. All draws are uniform."""

    flip: float = Field(0.5, ge=0, le=1)
    """How often the picture is mirrored. 0 where writing matters."""
    max_rotation: float = Field(20.0, ge=0, le=45)
    """Largest turn, in degrees, to either side."""
    min_scale: float = Field(0.8, gt=0, le=1)
    """Smallest size, relative to the subject's own."""
    max_scale: float = Field(1.0, ge=1, le=2)
    """Largest size, relative to the subject's own."""
    max_perspective: float = Field(0.05, ge=0, le=0.25)
    """How far a corner of the picture may be pulled in, as a share of its side."""
    min_crop: float = Field(0.67, gt=0, le=1)
    """Smallest share of the picture's area that is cut out of it."""
    min_kept: float = Field(0.67, gt=0, le=1)
    """Least share of the subject's pixels that cropping leaves."""
    max_brightness: float = Field(0.2, ge=0, lt=1)
    """Largest relative change of brightness."""
    max_contrast: float = Field(0.2, ge=0, lt=1)
    """Largest relative change of contrast."""
    max_saturation: float = Field(0.25, ge=0, lt=1)
    """Largest relative change of saturation."""
    max_hue: float = Field(6.0, ge=0, le=180)
    """Largest turn of the hue, in degrees."""
    edge: float = Field(0.01, ge=0, le=0.1)
    """Half the width of the band in which the subject's outline is softened, as a share of the longer side of its
    box."""
    min_difference: float = Field(0.12, ge=0, le=1)
    """Least difference between the picture and the subject's own on white (`picture_difference`): draws that fall short
    of it are drawn again."""
    draws: int = Field(12, ge=1)
    """Most draws; the one that differs most is taken where none differs enough."""


@dataclass(frozen=True, slots=True)
class _Draw:
    """One way to augment."""

    flip: bool
    rotation: float
    scale: float
    corners: _Matrix
    """How far each corner is pulled in, as shares of the sides; ``(4, 2)``."""
    brightness: float
    contrast: float
    saturation: float
    hue: float


def augment(crop: Image, mask: Mask, config: AugmentConfig, seed: int) -> tuple[Image, Mask]:
    """The subject of a crop on white, augmented, and where in that picture it is.

    Recoloured, mirrored, seen a little from the side, turned, scaled and cropped; what a crop's lower edge cut off ends
    at the lower edge again. White stays 255. The same seed gives the same picture.

    Raises ``ValueError`` for an empty mask.
    """
    rng = np.random.default_rng(seed)
    x0, y0, x1, y1 = box_of(mask)
    pad = max(1, round(max(_MARGIN, config.edge) * max(x1 - x0, y1 - y0)))
    alpha, colours = matte(crop, mask, band=config.edge)
    # Beyond the crop there is only white: where it cuts the subject off, the picture does, too.
    whole = np.dstack([alpha, colours.astype(np.float32) / 255]).astype(np.float32)
    near = np.s_[max(0, y0 - pad) : y1 + pad, max(0, x0 - pad) : x1 + pad]
    subject = whole[near]
    stands_on_edge = cut_edges((x0, y0, x1, y1), mask.shape[1], mask.shape[0])[3]
    before = _on_white(_weighed(subject))
    best: tuple[float, Image, Mask] | None = None
    for _ in range(config.draws):
        draw = _drawn(config, rng)
        moved, floor = _moved(_weighed(_recoloured(subject, draw)), draw)
        layer = _window(moved, floor if stands_on_edge else len(moved), config, rng)
        picture = _on_white(layer)
        difference = picture_difference(picture, before)
        if best is None or difference > best[0]:
            # Of something thin, shrunk, no pixel may be whole.
            best = difference, picture, layer[..., 0] > 0.5 * layer[..., 0].max()
        if difference >= config.min_difference:
            break
    assert best is not None
    return best[1:]


def _drawn(config: AugmentConfig, rng: np.random.Generator) -> _Draw:
    return _Draw(
        flip=bool(rng.random() < config.flip),
        rotation=rng.uniform(-config.max_rotation, config.max_rotation),
        scale=rng.uniform(config.min_scale, config.max_scale),
        corners=rng.uniform(0, config.max_perspective, (4, 2)),
        brightness=1 + rng.uniform(-config.max_brightness, config.max_brightness),
        contrast=1 + rng.uniform(-config.max_contrast, config.max_contrast),
        saturation=1 + rng.uniform(-config.max_saturation, config.max_saturation),
        hue=math.radians(rng.uniform(-config.max_hue, config.max_hue)),
    )


def _recoloured(subject: _Floats, draw: _Draw) -> _Floats:
    """Alpha and colours in [0, 1], ``(height, width, 4)``, with other colours."""
    alpha, colours = subject[..., 0], subject[..., 1:]
    lab: Any = cv2.cvtColor(np.ascontiguousarray(colours), cv2.COLOR_RGB2LAB)
    middle = float((lab[..., 0] * alpha).sum() / alpha.sum())
    lab[..., 0] = np.clip(((lab[..., 0] - middle) * draw.contrast + middle) * draw.brightness, 0, 100)
    turn = draw.saturation * np.array([[np.cos(draw.hue), -np.sin(draw.hue)], [np.sin(draw.hue), np.cos(draw.hue)]])
    lab[..., 1:] = lab[..., 1:] @ turn.T.astype(np.float32)
    rgb = np.clip(cv2.cvtColor(lab, cv2.COLOR_LAB2RGB), 0, 1)
    return np.dstack([alpha, rgb]).astype(np.float32)


def _weighed(subject: _Floats) -> _Floats:
    """Alpha, and colours times alpha: what may be moved without the background bleeding into the edge."""
    return np.dstack([subject[..., 0], subject[..., 1:] * subject[..., :1]]).astype(np.float32)


def _moved(layer: _Floats, draw: _Draw) -> tuple[_Floats, int]:
    """The layer mirrored, turned, scaled and tilted, on a canvas that holds all of it.

    With the row of the canvas above which nothing is missing that the picture's lower edge cut off.
    """
    height, width = layer.shape[:2]
    square = np.array([[0, 0], [1, 0], [1, 1], [0, 1]], np.float64)
    inwards = draw.corners * np.array([[1, 1], [-1, 1], [-1, -1], [1, -1]])
    tilted = (square + inwards - 0.5) * [width, height]
    if draw.flip:
        tilted[:, 0] *= -1
    angle = math.radians(draw.rotation)
    turn = draw.scale * np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    corners = (square * [width, height]).astype(np.float32)
    matrix = cv2.getPerspectiveTransform(corners, (tilted @ turn.T).astype(np.float32)).astype(np.float64)
    # The canvas is the box of the subject, not of the corners of the picture: no white is gained by turning.
    rows, columns = np.nonzero(layer[..., 0])
    hull = cv2.convexHull(np.stack([columns, rows], axis=1).astype(np.int32))
    seen = cv2.perspectiveTransform(hull.astype(np.float64), matrix)[:, 0]
    low, high = seen.min(axis=0), seen.max(axis=0)
    pad = _MARGIN * float((high - low).max()) + 1
    shift = np.array([[1, 0, pad - low[0]], [0, 1, pad - low[1]], [0, 0, 1]])
    size = tuple(math.ceil(side) for side in high - low + 2 * pad)
    moved = cv2.warpPerspective(_blurred(layer, draw.scale), shift @ matrix, size, flags=cv2.INTER_LINEAR)
    lowest = columns[rows == rows.max()]
    ends = np.array([[[lowest.min(), rows.max()]], [[lowest.max(), rows.max()]]], np.float64)
    floor = float(cv2.perspectiveTransform(ends, shift @ matrix)[:, 0, 1].min())
    return cast(_Floats, moved), max(1, math.floor(floor))


def _blurred(layer: _Floats, scale: float) -> _Floats:
    """Without the detail that a smaller picture cannot hold."""
    if scale >= 1:
        return layer
    return cast(_Floats, cv2.GaussianBlur(layer, (0, 0), 0.4 * math.sqrt(1 / scale**2 - 1) + 1e-3))


def _window(layer: _Floats, floor: int, config: AugmentConfig, rng: np.random.Generator) -> _Floats:
    """A part of the layer that keeps enough of the subject; all of it if none of the windows drawn does.

    Taken from the top, which is what individuals are told by: heads, not feet. It ends above ``floor`` if possible.
    """
    total = float(layer[..., 0].sum())
    if float(layer[:floor, :, 0].sum()) >= config.min_kept * total:
        layer = layer[:floor]
    height, width = layer.shape[:2]
    for _ in range(_CROPS):
        area, shape = rng.uniform(config.min_crop, 1), rng.uniform(config.min_crop, 1 / config.min_crop)
        across = min(width, max(1, round(width * min(1.0, math.sqrt(area * shape)))))
        down = min(height, max(1, round(height * min(1.0, area * width / across))))
        x = int(rng.integers(width - across + 1))
        part = layer[:down, x : x + across]
        if float(part[..., 0].sum()) >= config.min_kept * total:
            return part
    return layer


def _on_white(layer: _Floats) -> Image:
    picture = layer[..., 1:] + (1 - layer[..., :1])
    return cast(Image, np.rint(np.clip(picture, 0, 1) * 255).astype(np.uint8))
