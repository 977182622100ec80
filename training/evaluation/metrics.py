"""The metrics: each takes what one video shows to a few numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from models.protocols import (
    AestheticScorer,
    Box,
    Detection,
    Detector,
    Face,
    FaceAnalyser,
    Image,
    ImageEmbedder,
    ImageTextScorer,
    Mask,
    Segmenter,
    Vector,
)
from stages.copy_score import copy_scores
from stages.measure import motion_magnitude
from training.evaluation.items import Reference, Shown

Values = dict[str, float]
"""What a metric found, under the names in the report. The first one is its main value."""


class NotMeasurable(ValueError):  # noqa: N818
    """This video gives the metric nothing to measure; the message says what is missing."""


class Metric(Protocol):
    """Measures one thing of one video."""

    def measure(self, shown: Shown) -> Values:
        """Its numbers.

        Raises:
            NotMeasurable: if the video or its references lack what it needs.
        """
        ...


class FaceSim:
    """Whether the people keep their faces.

    ``facesim``, in [0, 1]: the mean over the frames of the positive part of the cosine between the largest face in the
    frame and the face of the reference (its largest). A frame without a face counts 0. If several references have a
    face, as many of the frame's largest faces are given to them one to one, so that the sum of the cosines is greatest,
    and the mean is over frames and those references. ``face_frames``: the share of frames with any face.
    """

    def __init__(self, faces: FaceAnalyser) -> None:
        self._faces = faces

    def measure(self, shown: Shown) -> Values:
        found = self._faces.faces([reference.image for reference in _references(shown)])
        own = [_largest(faces)[0].embedding for faces in found if faces]
        if not own:
            raise NotMeasurable("no face in any reference")
        frames = self._faces.faces(shown.images)
        scores = [
            _matched(np.maximum(_cosines(own, [face.embedding for face in _largest(faces)[: len(own)]]), 0))
            for faces in frames
        ]
        return {
            "facesim": float(sum(score.sum() for score in scores) / (len(own) * len(frames))),
            "face_frames": sum(bool(faces) for faces in frames) / len(frames),
        }


class SubjS:
    """Whether the subjects are there and look like their references.

    The detector looks in every frame for the references' words. What it finds is embedded (inside the segmenter's mask
    if there is one, else the whole box), and given to the references of that word one to one so that the sum of the
    cosines is greatest; a reference without a word may get anything that the detector knows. ``subj_s_sum`` is the sum
    of these cosines over frames and references, a miss counting 0; ``subj_s``, in [-1, 1], is that sum divided by their
    number, so that it does not grow with either. ``subjects_found``: the share of frames and references that are no
    miss.
    """

    def __init__(self, detector: Detector, embedder: ImageEmbedder, segmenter: Segmenter | None) -> None:
        self._detector = detector
        self._embedder = embedder
        self._segmenter = segmenter

    def measure(self, shown: Shown) -> Values:
        references = _references(shown)
        own = self._embedder.embed(
            [reference.image for reference in references], [reference.subject for reference in references]
        )
        words = [reference.file.word for reference in references]
        matches: list[float] = []
        for asked in ([word for word in dict.fromkeys(words) if word], []):
            wanted = [number for number, word in enumerate(words) if bool(word) == bool(asked)]
            if wanted:
                matches.extend(self._matches(shown, asked, [words[n] for n in wanted], [own[n] for n in wanted]))
        pairs = len(references) * len(shown.frames)
        return {
            "subj_s": float(sum(matches) / pairs),
            "subj_s_sum": float(sum(matches)),
            "subjects_found": len(matches) / pairs,
        }

    def _matches(self, shown: Shown, asked: Sequence[str], words: Sequence[str], own: Sequence[Vector]) -> list[float]:
        """Cosines of the references that were found, over all the frames."""
        (found,) = self._detector.detect([shown.frames], [asked])
        masks = self._masks(shown, found)
        matches: list[float] = []
        for image, detections, inside in zip(shown.images, found, masks, strict=True):
            seen = [number for number, mask in enumerate(inside) if mask.any()]
            vectors = self._embedder.embed([image] * len(seen), [inside[number] for number in seen])
            named = [detections[number].word for number in seen]
            for word in dict.fromkeys(words):
                rows = [vector for vector, other in zip(own, words, strict=True) if other == word]
                columns = [vector for vector, name in zip(vectors, named, strict=True) if name == word or not word]
                matches.extend(_matched(_cosines(rows, columns)).tolist())
        return matches

    def _masks(self, shown: Shown, found: Sequence[Sequence[Detection]]) -> list[list[Mask]]:
        if self._segmenter is None:
            return [
                [_inside(detection.box, image) for detection in detections]
                for image, detections in zip(shown.images, found, strict=True)
            ]
        (segmented,) = self._segmenter.segment([shown.frames], [found])
        return [[segmentation.mask for segmentation in frame] for frame in segmented]


class ImageText:
    """``image_text``, in [-1, 1]: the mean over the frames of the cosine between the frame and the prompt."""

    def __init__(self, scorer: ImageTextScorer) -> None:
        self._scorer = scorer

    def measure(self, shown: Shown) -> Values:
        if not shown.prompt:
            raise NotMeasurable("no prompt")
        scores = self._scorer.similarity(shown.images, [shown.prompt] * len(shown.frames))
        return {"image_text": float(np.mean(scores))}


class Aesthetic:
    """``aesthetic``, about 1 to 10: the mean of the frames' scores."""

    def __init__(self, scorer: AestheticScorer) -> None:
        self._scorer = scorer

    def measure(self, shown: Shown) -> Values:
        return {"aesthetic": float(np.mean(self._scorer.aesthetic(shown.images)))}


class Motion:
    """``motion``, from 0: the mean length of the optical flow from a frame to the video's next one.

    In thousandths of the frame's diagonal per 1/24 s (see :func:`stages.measure.motion_magnitude`), so that videos of
    any size and frame rate compare.
    """

    def measure(self, shown: Shown) -> Values:
        pairs = [frame for frame in shown.frames if frame.neighbour_s > 0]
        if not pairs:
            raise NotMeasurable("a single frame has no motion")
        flows = [motion_magnitude(frame.image, frame.neighbour, frame.neighbour_s) for frame in pairs]
        return {"motion": float(np.mean(flows))}


class CopyScore:
    """How much of the references was pasted into the video instead of being shown anew.

    ``copy_score``, in [0, 1], lower is better: the mean of :func:`stages.copy_score.copy_score` over some of the frames
    and all references. ``copy_score_max``: the largest of them.
    """

    def __init__(self, frames: int) -> None:
        self._frames = frames

    def measure(self, shown: Shown) -> Values:
        places = np.linspace(0, len(shown.frames) - 1, min(self._frames, len(shown.frames))).round().astype(int)
        scores = copy_scores(
            [(reference.image, reference.subject) for reference in _references(shown)],
            [shown.images[place] for place in places],
        )
        return {"copy_score": float(scores.mean()), "copy_score_max": float(scores.max())}


def _references(shown: Shown) -> tuple[Reference, ...]:
    if not shown.references:
        raise NotMeasurable("no references")
    return shown.references


def _largest(faces: Sequence[Face]) -> list[Face]:
    """The faces, the largest first."""
    return sorted(faces, key=lambda face: (face.box[0] - face.box[2]) * (face.box[3] - face.box[1]))


def _cosines(rows: Sequence[Vector], columns: Sequence[Vector]) -> npt.NDArray[np.float64]:
    """Of unit vectors; ``(rows, columns)``."""
    if not columns:
        return np.zeros((len(rows), 0))
    return np.asarray(rows, np.float64) @ np.asarray(columns, np.float64).T


def _matched(cosines: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The cosines of the one-to-one pairs of rows and columns that have the greatest sum."""
    from scipy.optimize import linear_sum_assignment

    rows, columns = linear_sum_assignment(cosines, maximize=True)
    chosen: npt.NDArray[np.float64] = cosines[rows, columns]
    return chosen


def _inside(box: Box, image: Image) -> Mask:
    mask = np.zeros(image.shape[:2], bool)
    x0, y0, x1, y1 = (max(0, round(edge)) for edge in box)
    mask[y0:y1, x0:x1] = True
    return mask
