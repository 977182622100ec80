"""Masks without a network: GrabCut (Rother, Kolmogorov, Blake 2004), seeded with the detector's prior or box."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from models.protocols import Box, Detection, Image, Keyframe, Mask, Segmentation
from models.registry import BackendConfig

SMALLEST = 4
"""Shortest side, in working pixels, of an image or a box that can be cut at all."""


class GrabCut:
    """A segmenter that separates two colour mixtures inside and around a box.

    It needs a subject whose colours differ from what surrounds it. The score is the product of two numbers: the
    agreement of what was asked for with what came out (intersection over union of prior and mask, or, without a
    prior, of the box and the mask's own box) and :func:`outline_contrast`, which is low where the mask leaked into
    the scene up to the end of the unsure belt. Measured on real clips, four
    keyframes each, sorted by looking at their contact sheets (10th percentile, median, 90th): 12 clips whose masks are
    mostly clean .56, .73, .85; 13 whose masks mostly leak or keep a fragment .24, .42, .58. A clean cut of the wrong
    thing, such as a shop sign, scores high.
    """

    class Config(BackendConfig):
        """Options of ``backend: grabcut``."""

        backend: Literal["grabcut"] = "grabcut"
        side: int = Field(default=320, ge=32)
        """Longer side, in pixels, at which the colours are cut."""
        refine_side: int = Field(default=1280, ge=32)
        """Longer side, in pixels, at which the outline is drawn along the picture's edges."""
        iterations: int = Field(default=4, ge=1)
        """Rounds of fitting the colour mixtures and cutting."""
        core: float = Field(default=0.3, gt=0, lt=1)
        """Prior pixels deeper than this share of its greatest depth are certainly the subject."""
        margin: float = Field(default=0.06, gt=0)
        """Width of the unsure belt around the prior, as a share of the longer side; beyond it all is background."""

    def __init__(self, config: Config, root: Path) -> None:
        self.config = config

    def segment(
        self, clips: Sequence[Sequence[Keyframe]], detections: Sequence[Sequence[Sequence[Detection]]]
    ) -> list[list[list[Segmentation]]]:
        """One segmentation per detection, per keyframe, per clip; the mask has the size of the keyframe.

        A detection with nothing to cut (an image or box of a few pixels) gets an empty mask and score 0.
        """
        return [
            [
                [self._cut(keyframe.image, detection) for detection in found]
                for keyframe, found in zip(clip, per_keyframe, strict=True)
            ]
            for clip, per_keyframe in zip(clips, detections, strict=True)
        ]

    def _cut(self, image: Image, detection: Detection) -> Segmentation:
        import cv2

        height, width = image.shape[:2]
        small = fit(image, self.config.side)
        scale = np.array([small.shape[1] / width, small.shape[0] / height] * 2)
        box = _pixels(np.asarray(detection.box) * scale, small.shape[:2])
        nothing = Segmentation(np.zeros((height, width), dtype=bool), 0.0)
        if min(small.shape[:2]) < SMALLEST or min(box[2] - box[0], box[3] - box[1]) < SMALLEST:
            return nothing

        prior = None if detection.prior is None else _resize_mask(detection.prior, (small.shape[1], small.shape[0]))
        if prior is not None and prior.any():
            labels = self._seed_from_prior(prior)
        else:
            prior, labels = None, _seed_from_box(box, small.shape[:2])
        if not (np.isin(labels, (cv2.GC_BGD, cv2.GC_PR_BGD)).any() and np.isin(labels, (1, 3)).any()):
            return nothing

        cv2.setRNGSeed(0)  # its k-means draws from the thread's generator: same input, same mask, whatever ran before
        models = np.zeros((2, 1, 65))
        cv2.grabCut(small, labels, None, models[0], models[1], self.config.iterations, cv2.GC_INIT_WITH_MASK)
        mask = fill_holes(largest_component((labels == cv2.GC_FGD) | (labels == cv2.GC_PR_FGD)))
        if not mask.any():
            return nothing
        if prior is None:
            score = _iou_of_boxes(box, mask)
        else:
            score = float(np.count_nonzero(mask & prior) / np.count_nonzero(mask | prior))
        return Segmentation(self._refine(image, mask), score * outline_contrast(small, mask))

    def _seed_from_prior(self, prior: Mask) -> npt.NDArray[np.uint8]:
        """GrabCut's labels: the prior's core is subject, the prior may be, a belt around it may not be."""
        import cv2

        depth = cv2.distanceTransform(np.pad(prior, 1).astype(np.uint8), cv2.DIST_L2, 3)[1:-1, 1:-1]
        distance = cv2.distanceTransform((~prior).astype(np.uint8), cv2.DIST_L2, 3)
        labels = np.full(prior.shape, cv2.GC_BGD, dtype=np.uint8)
        labels[distance <= max(2.0, self.config.margin * max(prior.shape))] = cv2.GC_PR_BGD
        labels[prior] = cv2.GC_PR_FGD
        labels[prior & (depth >= self.config.core * depth.max())] = cv2.GC_FGD
        return labels

    def _refine(self, image: Image, mask: Mask) -> Mask:
        """The mask at the image's size, its outline moved onto the picture's edges."""
        import cv2

        guide = fit(image, min(self.config.refine_side, max(image.shape[:2])))
        soft = fast_guided_filter(guide, mask.astype(np.float32))
        if guide.shape != image.shape:
            soft = cv2.resize(soft, (image.shape[1], image.shape[0]), interpolation=cv2.INTER_LINEAR)
        return fill_holes(largest_component(soft > 0.5))


def outline_contrast(image: Image, mask: Mask) -> float:
    """How well the outline is an edge of the picture, in [0, 1]: the mean over the outline of the Lab distance between
    the colours just inside and just outside, saturating at 20. Where the image ends there is no outline.
    """
    import cv2

    lab = cv2.cvtColor(image.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)
    inside = mask.astype(np.float32)
    outline = cv2.morphologyEx(mask.astype(np.uint8), cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8)) > 0
    if not outline.any():
        return 0.0

    def mean(weight: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        total = cv2.boxFilter(weight, -1, (7, 7), normalize=False)[..., None]
        colour: npt.NDArray[np.float32] = cv2.boxFilter(lab * weight[..., None], -1, (7, 7), normalize=False)
        means: npt.NDArray[np.float32] = (colour / np.maximum(total, 1e-3))[outline]
        return means

    distance = np.linalg.norm(mean(inside) - mean(1 - inside), axis=-1)
    return float(np.minimum(distance / 20, 1).mean())


def fast_guided_filter(
    guide: Image, mask: npt.NDArray[np.float32], radius: int = 3, epsilon: float = 2e-4
) -> npt.NDArray[np.float32]:
    """Upsample ``mask`` to the size of ``guide`` along the guide's colour edges; values about [0, 1].

    The fast guided filter (He and Sun 2015, arXiv:1505.00996): the mask is a locally linear function of the three
    colours; the function is fitted at the mask's size, in windows of ``2 * radius + 1``, and applied at the guide's.
    """
    import cv2

    height, width = mask.shape
    low = cv2.resize(guide, (width, height), interpolation=cv2.INTER_AREA).astype(np.float32) / 255
    window = (2 * radius + 1, 2 * radius + 1)

    def mean(values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        blurred: npt.NDArray[np.float32] = cv2.blur(np.ascontiguousarray(values), window, borderType=cv2.BORDER_REFLECT)
        return blurred

    mean_low, mean_mask = mean(low), mean(mask)
    covariance = np.empty((height, width, 3, 3), dtype=np.float32)
    for i in range(3):
        for j in range(i, 3):
            covariance[..., i, j] = mean(low[..., i] * low[..., j]) - mean_low[..., i] * mean_low[..., j]
            covariance[..., j, i] = covariance[..., i, j]
    covariance += np.eye(3, dtype=np.float32) * epsilon
    cross = mean(low * mask[..., None]) - mean_low * mean_mask[..., None]
    slope = np.linalg.solve(covariance, cross[..., None])[..., 0]
    offset = mean_mask - (slope * mean_low).sum(axis=-1)
    size = (guide.shape[1], guide.shape[0])
    slope = cv2.resize(mean(slope), size, interpolation=cv2.INTER_LINEAR)
    offset = cv2.resize(mean(offset), size, interpolation=cv2.INTER_LINEAR)
    result: npt.NDArray[np.float32] = np.einsum("hwc,hwc->hw", slope, guide.astype(np.float32) / 255) + offset
    return result


def fit(image: Image, side: int) -> Image:
    """The image scaled so that its longer side is ``side`` pixels."""
    import cv2

    height, width = image.shape[:2]
    scale = side / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    resized: Image = cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    return resized


def largest_component(mask: Mask, weight: npt.NDArray[np.float32] | None = None) -> Mask:
    """The connected piece (eight neighbours) with the most pixels, or with the greatest sum of ``weight``."""
    import cv2

    count, labels = cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)
    if count <= 2:
        return mask
    weights = None if weight is None else weight.ravel()
    sums = np.bincount(labels.ravel(), weights=weights, minlength=count)
    largest: Mask = labels == 1 + int(sums[1:].argmax())
    return largest


def fill_holes(mask: Mask, share: float = 0.02) -> Mask:
    """The mask without enclosed holes smaller than ``share`` of its area; larger ones (a crooked arm) stay open."""
    import cv2

    _, labels, stats, _ = cv2.connectedComponentsWithStats((~mask).astype(np.uint8), connectivity=4)
    height, width = mask.shape
    enclosed = (
        (stats[:, cv2.CC_STAT_LEFT] > 0)
        & (stats[:, cv2.CC_STAT_TOP] > 0)
        & (stats[:, cv2.CC_STAT_LEFT] + stats[:, cv2.CC_STAT_WIDTH] < width)
        & (stats[:, cv2.CC_STAT_TOP] + stats[:, cv2.CC_STAT_HEIGHT] < height)
    )
    small = enclosed & (stats[:, cv2.CC_STAT_AREA] <= share * np.count_nonzero(mask))
    small[0] = False  # label 0 is the mask itself
    filled: Mask = mask | small[labels]
    return filled


def _pixels(box: npt.NDArray[np.float64], shape: tuple[int, ...]) -> tuple[int, int, int, int]:
    """The box in whole pixels, inside the image."""
    height, width = shape
    x0, y0, x1, y1 = box
    return (
        int(np.clip(np.floor(x0), 0, width)),
        int(np.clip(np.floor(y0), 0, height)),
        int(np.clip(np.ceil(x1), 0, width)),
        int(np.clip(np.ceil(y1), 0, height)),
    )


def _seed_from_box(box: tuple[int, int, int, int], shape: tuple[int, ...]) -> npt.NDArray[np.uint8]:
    """GrabCut's labels for a plain box: what is outside is background, what is inside may be the subject.

    A box that fills the image leaves no background to learn from: the image's upper corners stand in for it.
    """
    import cv2

    labels = np.full(shape, cv2.GC_BGD, dtype=np.uint8)
    x0, y0, x1, y1 = box
    labels[y0:y1, x0:x1] = cv2.GC_PR_FGD
    if np.count_nonzero(labels == cv2.GC_BGD) < 0.02 * labels.size:
        corner = (max(1, shape[0] // 5), max(1, shape[1] // 8))
        labels[: corner[0], : corner[1]] = cv2.GC_PR_BGD
        labels[: corner[0], -corner[1] :] = cv2.GC_PR_BGD
    return labels


def _resize_mask(mask: Mask, size: tuple[int, int]) -> Mask:
    import cv2

    resized: Mask = cv2.resize(mask.astype(np.float32), size, interpolation=cv2.INTER_AREA) > 0.5
    return resized


def _iou_of_boxes(box: tuple[int, int, int, int], mask: Mask) -> float:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    other: Box = (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
    overlap = max(0, min(box[2], other[2]) - max(box[0], other[0])) * max(
        0, min(box[3], other[3]) - max(box[1], other[1])
    )
    union = (box[2] - box[0]) * (box[3] - box[1]) + (other[2] - other[0]) * (other[3] - other[1]) - overlap
    return float(overlap / union)
