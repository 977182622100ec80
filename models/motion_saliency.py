"""Class-free subject discovery: what moves against the camera, or stands out from the colours at the border.

No network and no weights. It finds one subject per keyframe and cannot know what it is: a stand-in for a detector that
understands words, good enough where a clip shows one subject before a scene.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from models.grabcut import fill_holes, fit, largest_component
from models.protocols import Detection, Image, Keyframe, Mask
from models.registry import BackendConfig

Map = npt.NDArray[np.float32]
"""Shape ``(height, width)``, values in [0, 1] unless said otherwise, at the working size."""

SMALLEST = 16
"""Shortest side, in working pixels, on which motion and border colours mean anything."""

FLOW_SMALLEST = 64
"""OpenCV's DIS flow reads out of bounds (a crash) on images of less than about 32 pixels: pad up to this."""


class MotionSaliency:
    """A detector of at most one subject per keyframe, under the first of the clip's words (``subject`` if it has none).

    Two maps, at 320 pixels: the optical flow (DIS, Kroeger et al. 2016, arXiv:1603.03590) that an affine camera motion
    does not explain, half this keyframe's and half the mean of the clip; and the Lab distance to the clusters of the
    border's colours, times a centre prior. Where the clip moves, colour counts near the motion only. A colour model of
    the result lowers what looks like the rest of the frame. Then Otsu's threshold and the heaviest component.

    The score is Otsu's separability, the between-class share of the map's variance, stretched so that .5, less than a
    map without two classes has (a Gaussian has .64), becomes 0 and two flat classes become 1. A keyframe whose map is
    flat, or whose shorter side is under 16 pixels at working size, has no detection.
    """

    class_free = True

    class Config(BackendConfig):
        """Options of ``backend: motion_saliency``."""

        backend: Literal["motion_saliency"] = "motion_saliency"
        side: int = Field(default=320, ge=64)
        """Longer side, in pixels, at which everything is computed."""
        clusters: int = Field(default=6, ge=1)
        """Number of colours that describe the border."""
        smallest: float = Field(default=0.002, ge=0, lt=1)
        """Subjects under this share of the frame are not reported."""

    def __init__(self, config: Config, root: Path) -> None:
        self.config = config

    def detect(
        self, clips: Sequence[Sequence[Keyframe]], words: Sequence[Sequence[str]]
    ) -> list[list[list[Detection]]]:
        """At most one detection per keyframe: box and prior in the keyframe's pixels, score in [0, 1]."""
        return [
            self._detect_in_clip(clip, clip_words[0] if clip_words else "subject")
            for clip, clip_words in zip(clips, words, strict=True)
        ]

    def _detect_in_clip(self, clip: Sequence[Keyframe], word: str) -> list[list[Detection]]:
        images = [fit(keyframe.image, self.config.side) for keyframe in clip]
        motions = [
            residual_motion(image, fit(keyframe.neighbour, self.config.side))
            for image, keyframe in zip(images, clip, strict=True)
        ]
        found = []
        for keyframe, image, motion in zip(clip, images, motions, strict=True):
            mean = np.mean([other for other in motions if other.shape == motion.shape], axis=0, dtype=np.float32)
            found.append(self._detect_in_frame(keyframe.image, image, 0.5 * motion + 0.5 * mean, word))
        return found

    def _detect_in_frame(self, full: Image, image: Image, motion: Map, word: str) -> list[Detection]:
        import cv2

        if min(image.shape[:2]) < SMALLEST:
            return []
        rows, columns = without_bars(image)
        inner = np.ascontiguousarray(image[rows, columns])
        evidence = np.zeros(image.shape[:2], dtype=np.float32)
        evidence[rows, columns] = combine(
            inner, motion[rows, columns], border_contrast(inner, self.config.clusters), centre_prior(*inner.shape[:2])
        )
        threshold, separability = otsu(evidence[rows, columns])
        if separability == 0:
            return []
        kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (9, 9))
        core = largest_component(evidence > threshold, evidence).astype(np.uint8)
        mask = fill_holes(largest_component(cv2.morphologyEx(core, cv2.MORPH_CLOSE, kernel) > 0), share=0.2)
        if np.count_nonzero(mask) < max(1.0, self.config.smallest * mask.size):
            return []
        size = (full.shape[1], full.shape[0])
        prior: Mask = cv2.resize(mask.astype(np.float32), size, interpolation=cv2.INTER_LINEAR) > 0.5
        if not prior.any():
            return []
        y, x = np.flatnonzero(prior.any(axis=1)), np.flatnonzero(prior.any(axis=0))
        box = (float(x[0]), float(y[0]), float(x[-1] + 1), float(y[-1] + 1))
        return [Detection(word, box, float(np.clip((separability - 0.5) / 0.5, 0, 1)), prior)]


def residual_motion(image: Image, neighbour: Image) -> Map:
    """How surely each pixel moves otherwise than the camera; zeros where the two frames are equal.

    The camera is an affine motion fitted to the flow by RANSAC. A residual counts only across a brightness gradient:
    flow inside a flat wall is made up by the smoothness term and drags the wall along with whatever moves before it.
    What the border shows (parallax, noise) is subtracted.
    """
    import cv2

    height, width = image.shape[:2]
    if np.array_equal(image, neighbour):
        return np.zeros((height, width), dtype=np.float32)
    padding = (0, max(0, FLOW_SMALLEST - height), 0, max(0, FLOW_SMALLEST - width), cv2.BORDER_REPLICATE)
    grey, later = (cv2.cvtColor(cv2.copyMakeBorder(x, *padding), cv2.COLOR_RGB2GRAY) for x in (image, neighbour))
    dis: Any = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_FAST)
    flow = dis.calc(grey, later, None)[:height, :width]
    grey = grey[:height, :width]

    y, x = (grid.ravel() for grid in np.mgrid[0:height:8, 0:width:8])
    points = np.stack([x, y], axis=1).astype(np.float32)
    cv2.setRNGSeed(0)
    affine, _ = cv2.estimateAffine2D(points, points + flow[y, x], ransacReprojThreshold=1.0, maxIters=500)
    if affine is None:  # too few points, or all on a line
        affine = np.eye(2, 3)
    ys, xs = np.mgrid[:height, :width].astype(np.float32)
    camera = np.stack(
        [m[0] * xs + m[1] * ys + m[2] - position for m, position in zip(affine, (xs, ys), strict=True)], axis=-1
    ).astype(np.float32)
    residual = flow - camera
    length = np.linalg.norm(residual, axis=-1)
    # A fast camera bends the picture beyond an affine motion: allow for 15 % of its speed.
    moving = 1 - np.exp(-length / (1.5 + 0.22 * np.linalg.norm(camera, axis=-1).mean()))

    along_x, along_y = (cv2.Sobel(grey, cv2.CV_32F, dx, 1 - dx, scale=1 / 8) for dx in (1, 0))
    gradient = np.abs(along_x * residual[..., 0] + along_y * residual[..., 1]) / (length + 1e-3)
    weight = np.minimum(gradient, 20).astype(np.float32)
    seen = _blur(weight * moving, 5) / (_blur(weight, 5) + 1)
    base = float(np.percentile(seen[_border(height, width)], 60))
    result: Map = np.clip((seen - base) / max(1 - base, 0.3), 0, 1).astype(np.float32)
    return result


def border_contrast(image: Image, clusters: int) -> Map:
    """Lab distance of each pixel to the nearest colour of the border, not yet scaled."""
    import cv2

    height, width = image.shape[:2]
    lab = cv2.cvtColor(_blur(image.astype(np.float32) / 255, 1.5), cv2.COLOR_RGB2LAB)
    lab[..., 0] *= 0.7  # a shadow is not another thing
    samples = np.ascontiguousarray(lab[_border(height, width)])
    count = min(clusters, len(samples))
    cv2.setRNGSeed(0)
    _, labels, centres = cv2.kmeans(samples, count, None, (3, 20, 0.5), 2, cv2.KMEANS_PP_CENTERS)
    labels = labels.ravel()
    distance = np.full((height, width), np.inf, dtype=np.float32)
    for k in range(count):
        members = samples[labels == k]
        if len(members) < 0.03 * len(samples):  # a subject that touches the border, not the scene
            continue
        spread = np.sqrt(((members - centres[k]) ** 2).sum(axis=1).mean())
        away = np.linalg.norm(lab - centres[k], axis=-1) - 0.5 * spread
        rare = 1.5 if len(members) < 0.08 * len(samples) else 1.0
        distance = np.minimum(distance, (np.maximum(away, 0) * rare).astype(np.float32))
    return distance


def centre_prior(height: int, width: int) -> Map:
    """A Gaussian around the middle of the frame, a little below its centre."""
    y, x = np.mgrid[:height, :width]
    across = (x - (width - 1) / 2) / (0.36 * width)
    down = (y - 0.55 * (height - 1)) / (0.43 * height)
    prior: Map = np.exp(-(across**2 + down**2) / 2).astype(np.float32)
    return prior


def combine(image: Image, motion: Map, contrast: Map, centre: Map) -> Map:
    """Evidence for the subject from both maps, then from the colours that they agree on."""
    contrast = (contrast * centre).astype(np.float32)
    contrast = np.clip(contrast / max(float(np.percentile(contrast, 98)), 20.0), 0, 1)
    motion = (motion * (0.4 + 0.6 * np.sqrt(centre))).astype(
        np.float32
    )  # what moves at the edge is often the edge, or a logo
    peak = float(np.percentile(motion, 99.5))
    trust = min(peak / 0.4, 1.0)
    moving = np.clip(motion / max(peak, 0.2), 0, 1)
    near = _blur(moving, 0.075 * max(image.shape[:2]))
    near /= max(float(near.max()), 0.05)
    gate = (1 - trust) + trust * (0.3 + 0.7 * near)
    evidence = _blur(np.clip(0.6 * trust * moving + 0.6 * contrast * gate, 0, 1), 2)
    evidence = np.clip(evidence / max(float(np.percentile(evidence, 99.5)), 0.15), 0, 1)
    return _blur(evidence * (0.4 + 0.6 * _blur(colour_posterior(image, evidence), 2)), 2)


def colour_posterior(image: Image, evidence: Map) -> Map:
    """Probability of "subject" given a pixel's colour alone, from Lab histograms of 16 bins an axis."""
    import cv2
    from scipy.ndimage import gaussian_filter

    lab = (cv2.cvtColor(image, cv2.COLOR_RGB2LAB) >> 4).astype(np.int64)
    index = (lab[..., 0] * 16 + lab[..., 1]) * 16 + lab[..., 2]

    def density(weight: Map) -> npt.NDArray[np.float64]:
        counts = np.bincount(index.ravel(), weights=weight.ravel(), minlength=16**3).reshape(16, 16, 16)
        smooth: npt.NDArray[np.float64] = gaussian_filter(counts, 0.7).ravel() / max(float(weight.sum()), 1e-6)
        return smooth

    subject, scene = density(evidence), density((1 - evidence) ** 2)
    posterior: Map = (subject / (subject + scene + 1e-9))[index].astype(np.float32)
    return posterior


def otsu(values: Map) -> tuple[float, float]:
    """Otsu's threshold (1979) and its separability: between-class variance over total variance, 0 for a flat map."""
    import cv2

    levels = np.clip(values * 255, 0, 255).astype(np.uint8)
    threshold, _ = cv2.threshold(levels, 0, 255, cv2.THRESH_OTSU)
    above = levels > threshold
    share = float(above.mean())
    if share in (0.0, 1.0):
        return float(threshold) / 255, 0.0
    gap = float(levels[above].mean() - levels[~above].mean())
    return float(threshold + 0.5) / 255, share * (1 - share) * gap**2 / float(levels.var())


def _border(height: int, width: int) -> Mask:
    """Top and sides, but only the corners of the bottom: people and things stand there."""
    thick = max(2, round(0.05 * min(height, width)))
    border = np.zeros((height, width), dtype=bool)
    border[:thick] = border[:, :thick] = border[:, -thick:] = True
    border[-thick:, : width // 4] = border[-thick:, -(width // 4) :] = True
    return border


def without_bars(image: Image) -> tuple[slice, slice]:
    """Rows and columns of the picture inside black bars; everything if that would be less than 40 % of a side."""
    bright = image.max(axis=2)
    spans = []
    for axis in (1, 0):
        lit = np.flatnonzero(np.percentile(bright, 98, axis=axis) > 24)
        if len(lit) < max(SMALLEST, 0.4 * bright.shape[1 - axis]):
            return slice(None), slice(None)
        spans.append(slice(int(lit[0]), int(lit[-1]) + 1))
    return spans[0], spans[1]


def _blur(values: npt.NDArray[np.floating], sigma: float) -> Map:
    import cv2

    blurred: Map = cv2.GaussianBlur(values.astype(np.float32), (0, 0), sigma)
    return blurred
