"""A stand-in for CLIP: colours, texture and coarse layout of what is inside a mask, without a network."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from models.protocols import Image, Mask, Vector
from models.registry import BackendConfig

Values = npt.NDArray[np.float32]


class ColourTexture:
    """An embedder that tells things apart by their colours, and says nothing about what they are.

    Cosines measured on 145 masks, as GrabCut cut them, of 26 subjects of real clips (5th percentile, median, 95th):
    same clip, another moment .76, .95, .99; same person and clothes, another clip .71, .90, .99; scaled to .4 to .9,
    brightened or dimmed by up to a third and mirrored .75, .94, .98; different subjects .06, .37, .71. At .85, 77 % of
    the same and 0.2 % of the different pairs pass, at .75 91 % and 3 %. Two frames an eighth of a second apart, in the
    same mask, come to .96 to 1. It goes by clothes, not by persons, and hardly tells black from grey: two men so
    dressed come to .75.
    """

    class Config(BackendConfig):
        """Options of ``backend: colour_texture``."""

        backend: Literal["colour_texture"] = "colour_texture"
        size: int = Field(default=96, ge=16)
        """Subjects are scaled to ``size ** 2`` pixels inside the mask, so that distance does not change the texture."""
        colour: float = Field(default=1.0, ge=0)
        """Weight of the histogram of hue and chroma (Lab's a and b)."""
        lightness: float = Field(default=0.4, ge=0)
        """Weight of the histogram of lightness relative to the subject's mean, half of which is taken off."""
        texture: float = Field(default=0.25, ge=0)
        """Weight of the local binary patterns and gradient orientations."""
        layout: float = Field(default=0.4, ge=0)
        """Weight of the mean colours of the parts from top to bottom and from the middle outwards."""

    def __init__(self, config: Config, root: Path) -> None:
        self.config = config

    def embed(self, images: Sequence[Image], masks: Sequence[Mask]) -> list[Vector]:
        """Unit vectors of one length; an empty mask gives the unit vector along the first axis."""
        return [self._embed(image, mask) for image, mask in zip(images, masks, strict=True)]

    def _embed(self, image: Image, mask: Mask) -> Vector:
        import cv2

        if not mask.any():
            nothing: Vector = np.zeros(LENGTH, dtype=np.float32)
            nothing[0] = 1
            return nothing
        image, inside = _scaled_crop(image, mask, self.config.size)
        lab = cv2.cvtColor(image.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)
        grey = np.ascontiguousarray(lab[..., 0])
        blocks = (
            self.config.colour * _unit(colour_histogram(lab, inside)),
            self.config.lightness * _unit(lightness_histogram(grey, inside)),
            self.config.texture / TEXTURE_SPREAD * texture_histograms(grey, inside),
            self.config.layout * _unit(layout(lab, inside)),
        )
        return _unit(np.concatenate(blocks))


def colour_histogram(lab: Values, inside: Mask) -> Values:
    """Hellinger histogram of Lab's a and b, soft (bilinear) bins, 13 by 13, finer near grey.

    Chroma is compressed as its square root: +-128 lie at the ends, +-8 a quarter of the way there. The mean of the
    block is taken off, so that two histograms without a common bin are at a cosine of about zero, not above.
    """
    bins = 13
    chroma = lab[inside][:, 1:]
    length = np.linalg.norm(chroma, axis=1, keepdims=True)
    place = chroma / np.sqrt(np.maximum(length, 6.0) * 100)  # linear inside a chroma of 6: there it is noise
    position = np.clip((place + 1) * (bins - 1) / 2, 0, bins - 1.001)
    low = position.astype(np.int64)
    part = position - low
    counts = np.zeros(bins * bins)
    for da in (0, 1):
        for db in (0, 1):
            weight = np.abs(1 - da - part[:, 0]) * np.abs(1 - db - part[:, 1])
            counts += np.bincount((low[:, 0] + da) * bins + low[:, 1] + db, weights=weight, minlength=bins * bins)
    return _centred(counts)


def lightness_histogram(grey: Values, inside: Mask) -> Values:
    """Hellinger histogram of lightness, 12 soft bins.

    Half of the difference between the mean and mid-grey is taken off: a dimmed subject stays near, and black and white
    ones stay apart.
    """
    bins = 12
    values = grey[inside]
    position = np.clip((values - 0.5 * (values.mean() - 50)) / 100 * (bins - 1), 0, bins - 1.001)
    low = position.astype(np.int64)
    part = position - low
    counts = np.zeros(bins)
    counts += np.bincount(low, weights=1 - part, minlength=bins)
    counts += np.bincount(low + 1, weights=part, minlength=bins)
    return _centred(counts)


def texture_histograms(grey: Values, inside: Mask) -> Values:
    """Uniform local binary patterns (Ojala et al. 2002) and unsigned gradient orientations, each at two scales.

    Per scale 10 pattern bins and 10 orientation bins (9 of 20 degrees, one for flat pixels), Hellinger, minus the mean
    of real subjects.
    """
    import cv2

    parts = []
    for scale in range(2):
        if scale:
            size = (max(3, grey.shape[1] // 2), max(3, grey.shape[0] // 2))
            grey = cv2.resize(grey, size, interpolation=cv2.INTER_AREA)
            inside = cv2.resize(inside.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST) > 0
        deep = cv2.erode(inside.astype(np.uint8), np.ones((3, 3), np.uint8), borderValue=0) > 0
        if not deep.any():
            parts.append(TEXTURE_MEAN[20 * scale : 20 * scale + 20])
            continue
        patterns = np.bincount(binary_patterns(grey)[deep], minlength=10)[:10]
        along_x, along_y = (cv2.Sobel(grey, cv2.CV_32F, dx, 1 - dx, scale=1 / 8)[deep] for dx in (1, 0))
        strength = np.hypot(along_x, along_y)
        angle = (np.arctan2(along_y, along_x) / np.pi * 9).astype(np.float64) % 9
        low = np.minimum(angle.astype(np.int64), 8)
        part, weight = angle - low, np.minimum(strength, 20)
        edges = np.bincount(low, weights=weight * (1 - part), minlength=9)
        edges += np.bincount((low + 1) % 9, weights=weight * part, minlength=9)
        flat = float((strength < 1).mean())
        edges = np.append(edges / max(float(edges.sum()), 1e-6) * (1 - flat), flat)
        parts.append(np.sqrt(np.concatenate([patterns / max(patterns.sum(), 1), edges])))
    texture: Values = (np.concatenate(parts) - TEXTURE_MEAN).astype(np.float32)
    return texture


def binary_patterns(grey: Values) -> npt.NDArray[np.int64]:
    """The number of brighter neighbours of each pixel, 0 to 8, if they form one arc, else 9; noise counts as equal."""
    padded = np.pad(grey, 1, mode="edge")
    height, width = grey.shape
    circle = ((0, 0), (0, 1), (0, 2), (1, 2), (2, 2), (2, 1), (2, 0), (1, 0))
    brighter = np.stack([padded[y : y + height, x : x + width] > grey + 1 for y, x in circle])
    changes = (brighter != np.roll(brighter, 1, axis=0)).sum(axis=0)
    codes: npt.NDArray[np.int64] = np.where(changes <= 2, brighter.sum(axis=0), 9)
    return codes


def layout(lab: Values, inside: Mask) -> Values:
    """Mean Lab colour of five bands from top to bottom, each split into its middle and its flanks, times their area.

    The flanks' left and right are one: a mirrored subject stays the same.
    """
    height, width = inside.shape
    y, x = np.nonzero(inside)
    band = np.minimum(y * 5 // height, 4)
    flank = np.abs(2 * x + 1 - width) * 2 > width
    cell = band * 2 + flank
    area = np.bincount(cell, minlength=10).astype(np.float64)
    colours = lab[inside].astype(np.float64)
    colours[:, 0] = (colours[:, 0] - 0.5 * (colours[:, 0].mean() - 50) - 50) * 0.7
    sums = np.stack([np.bincount(cell, weights=colours[:, i], minlength=10) for i in range(3)], axis=1)
    means = sums / np.maximum(area, 1)[:, None] * np.sqrt(area / area.sum())[:, None]
    flat: Values = means.ravel().astype(np.float32)
    return flat


def _scaled_crop(image: Image, mask: Mask, size: int) -> tuple[Image, Mask]:
    """The mask's box, scaled so that the mask has about ``size ** 2`` pixels (never more than ``4 * size`` a side)."""
    import cv2

    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    box = (slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
    image, mask = np.ascontiguousarray(image[box]), mask[box]
    height, width = mask.shape
    scale = min(size / np.sqrt(np.count_nonzero(mask)), 4 * size / max(height, width))
    shape = (max(3, round(width * scale)), max(3, round(height * scale)))
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    # The background must not bleed in when the picture shrinks: weigh by the mask.
    share = cv2.resize(mask.astype(np.float32), shape, interpolation=method)
    masked = cv2.resize(image.astype(np.float32) * mask[..., None], shape, interpolation=method)
    scaled = np.clip(masked / np.maximum(share, 1e-3)[..., None], 0, 255).astype(np.uint8)
    inside = share > 0.5
    if not inside.any():
        inside = share >= share.max()
    return scaled, inside


def _centred(counts: npt.NDArray[np.float64]) -> Values:
    root = np.sqrt(counts / max(float(counts.sum()), 1e-9))
    centred: Values = (root - root.mean()).astype(np.float32)
    return centred


def _unit(vector: Values) -> Vector:
    length = float(np.linalg.norm(vector))
    return vector if length == 0 else (vector / length).astype(np.float32)


TEXTURE_MEAN: Values = np.concatenate(
    [
        [0.526, 0.344, 0.326, 0.441, 0.362, 0.167, 0.118, 0.129, 0.067, 0.284],
        [0.303, 0.270, 0.242, 0.252, 0.288, 0.288, 0.241, 0.236, 0.263, 0.566],
        [0.414, 0.336, 0.330, 0.440, 0.400, 0.215, 0.159, 0.170, 0.086, 0.346],
        [0.332, 0.304, 0.278, 0.285, 0.311, 0.306, 0.266, 0.263, 0.291, 0.423],
    ]
).astype(np.float32)
"""Mean of the texture histograms of real subjects, before centring: 40 numbers."""

TEXTURE_SPREAD = 0.38
"""Root mean square length of the centred texture block: a subject of usual texture gets a short one, not a unit one."""

LENGTH = 13 * 13 + 12 + 40 + 30
"""Numbers in an embedding."""
