"""How much of a frame is a copy of a reference: can the reference be pasted onto the frame so that it fits?

Classical image alignment, without a network: local features (SIFT, Lowe 2004) propose where the reference may lie in
the frame, enhanced correlation (ECC, Evangelidis and Psarakis 2008) moves it into place, and what is then seen in the
frame under each part of the subject is compared with that part.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import cv2
import numpy as np
import numpy.typing as npt

from models.masks import box_of
from models.protocols import Image, Mask
from stages.measure import luma

_Plane = npt.NDArray[np.uint8]
_Floats = npt.NDArray[np.float32]
_Matrix = npt.NDArray[np.float64]

_REFERENCE_SIDE = 320
_FRAME_SIDE = 512
"""Longer sides, in pixels, at which features are looked for: less, and small subjects lose theirs."""
_FEATURES = 1200
_RATIO = 0.8
"""Nearest over second nearest distance up to which a match counts (Lowe's)."""
_INLIER_PIXELS = 5.0
_FEWEST_MATCHES = 4
_SCALES = (1 / 12, 12.0)
"""Scale of an alignment of the two scaled pictures; what lies outside is an accident."""
_STRETCH = 1.6
"""Largest ratio of the two axes of an alignment."""

_COMPARE_SIDE = 160
_SMALLEST_SIDE = 20
_WINDOW = 3.0
"""Sigma in pixels of the windows in which reference and frame are correlated."""
_NOISE = 3.0
"""Steps of luma: contrast that recompression alone makes."""
_STRONG = 40.0
"""Steps of luma: contrast from which on a window weighs no more."""
_WHITE = 250


@dataclass(frozen=True, slots=True)
class _Features:
    plane: _Plane
    """Luma, scaled down."""
    inside: Mask
    points: _Floats
    descriptors: _Floats | None


def copy_score(reference: Image, frame: Image, mask: Mask | None = None) -> float:
    """How well an aligned copy of the reference's subject explains what the frame shows; [0, 1].

    The copy may be moved, scaled, turned and slightly sheared, but not mirrored. In windows of a few pixels, all over
    the subject, the correlation of the copy's luma with the frame's is taken, so that brightness and contrast do not
    count. The score is their mean, weighted by the copy's own contrast in each window; what falls outside of the frame
    counts 0.

    ``mask`` is where the reference shows its subject; without one, it is all that is not white background (see
    `subject_on_white`). What offers nothing to align gives 0: subjects without texture, or smaller than some 40 pixels.
    So a high score proves a copy, and a low one only makes it unlikely.

    Medians on masked subjects of 20 real clips: pasted into another clip (scaled to .35 to .9 of its height, turned by
    up to 30 degrees, brightened or dimmed by a third, blurred, JPEG at quality 50) .91; same clip 0.2 s later .74, 1 s
    later .46, half the clip later .03; other clips 0 (at most .07 of 190 pairs).

    Raises:
        ValueError: if the mask has not the reference's size.
    """
    return float(copy_scores([(reference, mask)], [frame])[0, 0])


def copy_scores(references: Sequence[tuple[Image, Mask | None]], frames: Sequence[Image]) -> npt.NDArray[np.float64]:
    """`copy_score` of every reference (with its mask) in every frame, shape ``(references, frames)``.

    Features of each picture are found once, which is most of the work.
    """
    sources = [_reference_features(*reference) for reference in references]
    targets = [_frame_features(frame) for frame in frames]
    scores = [[_score(source, target) for target in targets] for source in sources]
    return np.asarray(scores, np.float64).reshape(len(sources), len(targets))


def subject_on_white(image: Image) -> Mask:
    """What is not white background: all pixels but the white ones that hang together with the picture's edge.

    All of the picture if it has no such background, or nothing else.
    """
    white = (image >= _WHITE).all(axis=2).astype(np.uint8)
    framed = cv2.copyMakeBorder(white, 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=1)
    cv2.floodFill(framed, None, (0, 0), 2)
    subject = framed[1:-1, 1:-1] != 2
    return cast(Mask, subject) if subject.any() else np.ones(image.shape[:2], bool)


def _reference_features(image: Image, mask: Mask | None) -> _Features:
    inside = subject_on_white(image) if mask is None else mask
    if inside.shape != image.shape[:2]:
        raise ValueError(f"a mask of {inside.shape} for a reference of {image.shape[:2]}")
    if not inside.any():
        return _Features(np.zeros((1, 1), np.uint8), np.zeros((1, 1), bool), np.zeros((0, 2), np.float32), None)
    x0, y0, x1, y1 = box_of(inside)
    return _features(image[y0:y1, x0:x1], inside[y0:y1, x0:x1], _REFERENCE_SIDE)


def _frame_features(image: Image) -> _Features:
    return _features(image, np.ones(image.shape[:2], bool), _FRAME_SIDE)


def _features(image: Image, inside: Mask, side: int) -> _Features:
    height, width = inside.shape
    scale = min(1.0, side / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    plane = cv2.resize(luma(image), size, interpolation=cv2.INTER_AREA)
    small = cv2.resize(inside.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST)
    sift = cv2.SIFT.create(_FEATURES, contrastThreshold=0.02)
    keypoints, descriptors = sift.detectAndCompute(plane, small)
    points = np.asarray([keypoint.pt for keypoint in keypoints], np.float32).reshape(-1, 2)
    return _Features(plane, small > 0, points, descriptors)


def _score(reference: _Features, frame: _Features) -> float:
    alignment = _align(reference, frame)
    return 0.0 if alignment is None else _agreement(reference, frame, alignment)


def _align(reference: _Features, frame: _Features) -> _Matrix | None:
    """The similarity from pixels of the reference to pixels of the frame that most matches agree on, if any do."""
    if reference.descriptors is None or frame.descriptors is None or len(frame.points) < 2:
        return None
    matches = cv2.BFMatcher(cv2.NORM_L2).knnMatch(reference.descriptors, frame.descriptors, k=2)
    good = [first for first, second in matches if first.distance < _RATIO * second.distance]
    if len(good) < _FEWEST_MATCHES:
        return None
    source = reference.points[[match.queryIdx for match in good]]
    target = frame.points[[match.trainIdx for match in good]]
    matrix, inliers = cv2.estimateAffinePartial2D(
        source, target, method=cv2.RANSAC, ransacReprojThreshold=_INLIER_PIXELS, maxIters=2000, confidence=0.995
    )
    if matrix is None or int(inliers.sum()) < _FEWEST_MATCHES or not _plausible(matrix):
        return None
    return cast(_Matrix, matrix)


def _plausible(matrix: _Matrix) -> bool:
    long, short = np.linalg.svd(matrix[:, :2], compute_uv=False)
    return bool(short >= _SCALES[0] and long <= _SCALES[1] and long <= _STRETCH * short)


def _agreement(reference: _Features, frame: _Features, matrix: _Matrix) -> float:
    """Mean local correlation under an alignment, at the resolution of the coarser of the two pictures; [0, 1]."""
    scale = float(np.sqrt(abs(np.linalg.det(matrix[:, :2]))))
    longest = max(reference.plane.shape)
    shrink = min(1.0, scale, _COMPARE_SIDE / longest)
    if shrink * longest < _SMALLEST_SIDE:
        return 0.0
    template, inside = _resized(reference.plane, shrink), _resized(reference.inside.astype(np.float32), shrink) > 0.5
    picture = _resized(frame.plane, min(1.0, shrink / scale))
    # The same alignment between the two scaled pictures.
    own, theirs = _scaling(template.shape, reference.plane.shape), _scaling(frame.plane.shape, picture.shape)
    coarse = (theirs @ np.vstack([matrix, [0, 0, 1]]) @ own)[:2]
    fine = _refined(template, inside, picture, coarse)
    best = max(_correlation(template, inside, picture, candidate) for candidate in (coarse, fine))
    return min(1.0, max(0.0, best))


def _scaling(before: tuple[int, ...], after: tuple[int, ...]) -> _Matrix:
    """Coordinates of pixels' centres in a picture of one shape to those in the same picture scaled to another."""
    across, down = after[1] / before[1], after[0] / before[0]
    return np.array([[across, 0, (across - 1) / 2], [0, down, (down - 1) / 2], [0, 0, 1]])


def _refined(template: _Plane, inside: Mask, picture: _Plane, matrix: _Matrix) -> _Matrix:
    """The alignment moved to where the two correlate most; as it was if that leads nowhere."""
    criteria = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, 30, 1e-4)
    try:
        _, moved = cv2.findTransformECCWithMask(
            template,
            picture,
            inside.astype(np.uint8) * 255,
            None,
            matrix.astype(np.float32),
            cv2.MOTION_AFFINE,
            criteria,
            5,
        )
    except cv2.error:  # It does not converge, or left the picture.
        return matrix
    return moved.astype(np.float64) if _plausible(moved) else matrix


def _correlation(template: _Plane, inside: Mask, picture: _Plane, matrix: _Matrix) -> float:
    """Mean correlation in windows between the template and what of the picture the matrix puts under it; [-1, 1]."""
    size = (template.shape[1], template.shape[0])
    how = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    own = template.astype(np.float32)
    seen = cv2.warpAffine(picture, matrix, size, flags=how).astype(np.float32)
    covered = cv2.warpAffine(np.ones(picture.shape, np.float32), matrix, size, flags=how) > 0.99
    both = inside & covered
    own_mean, seen_mean = _windowed(own, both), _windowed(seen, both)
    shared = _windowed(own * seen, both) - own_mean * seen_mean
    contrasts = _contrast(own, both), _contrast(seen, both)
    correlation = shared / np.maximum(contrasts[0], _NOISE) / np.maximum(contrasts[1], _NOISE)
    # Capped, or a few hard edges would be the whole subject.
    weights = np.minimum(_contrast(own, inside), _STRONG) * inside
    total = float(weights.sum())
    return float((correlation * weights * both).sum()) / total if total > 0 else 0.0


def _contrast(values: _Floats, where: Mask) -> _Floats:
    """Standard deviation in a window around each pixel."""
    variance = _windowed(values**2, where) - _windowed(values, where) ** 2
    return cast(_Floats, np.sqrt(np.maximum(variance, 0)))


def _windowed(values: _Floats, where: Mask) -> _Floats:
    """Mean in a Gaussian window around each pixel, of the pixels in ``where`` alone."""
    share = where.astype(np.float32)
    sums, weights = (
        cv2.GaussianBlur(plane, (0, 0), _WINDOW, borderType=cv2.BORDER_CONSTANT) for plane in (values * share, share)
    )
    return cast(_Floats, sums / np.maximum(weights, 1e-3))


def _resized(plane: Any, scale: float) -> Any:
    size = (max(1, round(plane.shape[1] * scale)), max(1, round(plane.shape[0] * scale)))
    return cv2.resize(plane, size, interpolation=cv2.INTER_AREA)
