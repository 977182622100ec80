from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from models.protocols import Box, Detection, Face, Image, Keyframe, Mask, Segmentation, Vector
from training.evaluation.items import Reference, ReferenceFile, Shown
from training.evaluation.metrics import (
    Aesthetic,
    CopyScore,
    FaceSim,
    ImageText,
    Motion,
    NotMeasurable,
    SubjS,
)

ANN, BOB, EVE = (np.eye(3, dtype=np.float32)[n] for n in range(3))
SIZE = 40


def picture(number: int) -> Image:
    """A picture that says which one it is."""
    return np.full((SIZE, SIZE, 3), number, np.uint8)


def reference(number: int, word: str = "") -> Reference:
    return Reference(ReferenceFile(Path(f"{number}.png"), word), picture(number), np.ones((SIZE, SIZE), bool))


def shown(frames: Sequence[int], references: Sequence[Reference] = (), prompt: str = "") -> Shown:
    keyframes = tuple(Keyframe(number / 8, picture(n), picture(n), 1 / 8) for number, n in enumerate(frames))
    return Shown(keyframes, prompt, tuple(references))


def face(embedding: Vector, side: float = 10.0) -> Face:
    return Face((0.0, 0.0, side, side), 0.9, np.zeros((5, 2), np.float32), embedding)


def towards(a: Vector, b: Vector, cosine: float) -> Vector:
    mixed: Vector = (cosine * a + math.sqrt(1 - cosine**2) * b).astype(np.float32)
    return mixed


class Faces:
    """The faces of each picture by its number."""

    def __init__(self, known: dict[int, list[Face]]) -> None:
        self.known = known

    def faces(self, images: Sequence[Image]) -> list[list[Face]]:
        return [self.known[int(image[0, 0, 0])] for image in images]


class Detector:
    """Boxes of each word in each picture by its number."""

    def __init__(self, known: dict[int, dict[str, list[Box]]]) -> None:
        self.known = known

    def detect(
        self, clips: Sequence[Sequence[Keyframe]], words: Sequence[Sequence[str]]
    ) -> list[list[list[Detection]]]:
        return [
            [
                [
                    Detection(word, box, 0.9)
                    for word, boxes in self.known[int(keyframe.image[0, 0, 0])].items()
                    for box in boxes
                    if word in asked or not asked
                ]
                for keyframe in keyframes
            ]
            for keyframes, asked in zip(clips, words, strict=True)
        ]


class Embedder:
    """Tells pictures apart by their number, and what is in them by where the mask begins."""

    def __init__(self, known: dict[tuple[int, int], Vector]) -> None:
        self.known = known

    def embed(self, images: Sequence[Image], masks: Sequence[Mask]) -> list[Vector]:
        return [
            self.known[int(image[0, 0, 0]), int(np.flatnonzero(mask.any(axis=0))[0])]
            for image, mask in zip(images, masks, strict=True)
        ]


class RightHalf:
    """Of every box, the part right of the middle."""

    def segment(
        self, clips: Sequence[Sequence[Keyframe]], detections: Sequence[Sequence[Sequence[Detection]]]
    ) -> list[list[list[Segmentation]]]:
        def half(box: Box) -> Segmentation:
            mask = np.zeros((SIZE, SIZE), bool)
            mask[int(box[1]) : int(box[3]), int(box[0] + box[2]) // 2 : int(box[2])] = True
            return Segmentation(mask, 0.9)

        return [[[half(found.box) for found in frame] for frame in frames] for frames in detections]


class Scorer:
    """Scores a picture by its number."""

    def similarity(self, images: Sequence[Image], texts: Sequence[str]) -> list[float]:
        return [float(image[0, 0, 0]) / 100 * len(text) for image, text in zip(images, texts, strict=True)]

    def aesthetic(self, images: Sequence[Image]) -> list[float]:
        return [float(image[0, 0, 0]) for image in images]


def test_facesim_is_the_mean_positive_cosine_of_the_largest_face() -> None:
    known = {
        100: [face(EVE, 5), face(ANN, 12)],  # The reference: its largest face counts.
        1: [face(towards(ANN, BOB, 0.8))],
        2: [face(towards(ANN, BOB, 0.6), 20), face(ANN, 4)],
        3: [face(-ANN)],
        4: [],
    }
    values = FaceSim(Faces(known)).measure(shown([1, 2, 3, 4], [reference(100)]))
    assert list(values) == ["facesim", "face_frames"]
    assert values["facesim"] == pytest.approx((0.8 + 0.6 + 0 + 0) / 4)
    assert values["face_frames"] == 0.75


def test_facesim_gives_two_references_a_face_each() -> None:
    known = {
        100: [face(ANN)],
        101: [face(BOB)],
        102: [],  # A dog: it is no part of the mean.
        1: [face(BOB, 20), face(ANN, 10), face(ANN, 5)],
        2: [face(EVE, 20), face(ANN, 10), face(BOB, 5)],  # Bob's face is only the third.
        3: [face(ANN, 20)],
    }
    references = [reference(100), reference(101), reference(102)]
    values = FaceSim(Faces(known)).measure(shown([1, 2, 3], references))
    assert values["facesim"] == pytest.approx((2 + 1 + 1) / (2 * 3))


def test_facesim_needs_a_reference_with_a_face() -> None:
    metric = FaceSim(Faces({100: [], 1: [face(ANN)]}))
    with pytest.raises(NotMeasurable, match="no face in any reference"):
        metric.measure(shown([1], [reference(100)]))
    with pytest.raises(NotMeasurable, match="no references"):
        metric.measure(shown([1]))


def test_subj_s_sums_cosines_over_frames_and_words_and_misses_count_nothing() -> None:
    detector = Detector({1: {"cat": [(4, 4, 9, 9)], "dog": [(20, 4, 29, 9)]}, 2: {"dog": [(20, 4, 29, 9)]}, 3: {}})
    embedder = Embedder(
        {
            (100, 0): ANN,
            (101, 0): BOB,
            (1, 4): towards(ANN, EVE, 0.9),
            (1, 20): towards(BOB, ANN, 0.5),
            (2, 20): towards(BOB, EVE, -0.2),
        }
    )
    values = SubjS(detector, embedder, None).measure(shown([1, 2, 3], [reference(100, "cat"), reference(101, "dog")]))
    assert list(values) == ["subj_s", "subj_s_sum", "subjects_found"]
    assert values["subj_s_sum"] == pytest.approx(0.9 + 0.5 - 0.2)
    assert values["subj_s"] == pytest.approx(1.2 / 6)
    assert values["subjects_found"] == pytest.approx(3 / 6)


def test_subj_s_gives_two_cats_a_cat_each() -> None:
    detector = Detector({1: {"cat": [(4, 4, 9, 9), (20, 4, 29, 9)]}, 2: {"cat": [(4, 4, 9, 9)]}})
    embedder = Embedder({(100, 0): ANN, (101, 0): BOB, (1, 4): BOB, (1, 20): ANN, (2, 4): ANN})
    values = SubjS(detector, embedder, None).measure(shown([1, 2], [reference(100, "cat"), reference(101, "cat")]))
    assert values["subj_s_sum"] == pytest.approx(3)
    assert values["subjects_found"] == pytest.approx(3 / 4)


def test_subj_s_takes_anything_for_a_reference_without_a_word() -> None:
    detector = Detector({1: {"dog": [(4, 4, 9, 9)], "bear": [(20, 4, 29, 9)]}})
    embedder = Embedder({(100, 0): ANN, (101, 0): BOB, (1, 4): BOB, (1, 20): towards(ANN, EVE, 0.7)})
    values = SubjS(detector, embedder, None).measure(shown([1], [reference(100), reference(101, "dog")]))
    assert values["subj_s_sum"] == pytest.approx(1.7)


def test_subj_s_looks_inside_the_segmenter_s_mask() -> None:
    detector = Detector({1: {"cat": [(10, 0, 20, 10)]}})
    embedder = Embedder({(100, 0): ANN, (1, 10): BOB, (1, 15): ANN})
    seen = shown([1], [reference(100, "cat")])
    assert SubjS(detector, embedder, None).measure(seen)["subj_s"] == 0
    assert SubjS(detector, embedder, RightHalf()).measure(seen)["subj_s"] == 1


def test_boxes_that_leave_the_frame_hurt_nobody() -> None:
    detector = Detector({1: {"cat": [(-5, -5, 90, 90), (60, 60, 70, 70)]}})
    embedder = Embedder({(100, 0): ANN, (1, 0): ANN})
    assert SubjS(detector, embedder, None).measure(shown([1], [reference(100, "cat")]))["subj_s"] == 1


def test_image_text_and_aesthetic_are_means_over_the_frames() -> None:
    assert ImageText(Scorer()).measure(shown([10, 20], prompt="ab")) == {"image_text": pytest.approx(0.3)}
    assert Aesthetic(Scorer()).measure(shown([4, 6, 8])) == {"aesthetic": 6}
    with pytest.raises(NotMeasurable, match="no prompt"):
        ImageText(Scorer()).measure(shown([1]))


def test_motion_is_that_of_the_frames_that_have_a_next_one() -> None:
    ground = np.repeat(np.repeat(np.random.default_rng(0).integers(40, 215, (20, 30, 3)), 12, 0), 12, 1)
    wide = ground.astype(np.uint8)

    def moving(step: int, fps: float) -> Keyframe:
        return Keyframe(0, wide[:, 20:320], wide[:, 20 + step : 320 + step], 1 / fps)

    last = Keyframe(1, wide[:, :300], wide[:, :300], 0.0)
    slow, fast = (Motion().measure(Shown((moving(step, 24), last), "", ()))["motion"] for step in (2, 4))
    assert slow == pytest.approx(2 / math.hypot(240, 300) * 1000, rel=0.25)
    assert fast == pytest.approx(2 * slow, rel=0.25)
    assert Motion().measure(Shown((moving(4, 48),), "", ()))["motion"] == pytest.approx(2 * fast, rel=0.01)
    with pytest.raises(NotMeasurable, match="single frame"):
        Motion().measure(Shown((last,), "", ()))


def test_copy_score_is_the_mean_over_frames_and_references() -> None:
    from skimage import data

    cat = np.ascontiguousarray(data.cat()[20:280, 100:400])
    pasted, other = data.astronaut()[:400].copy(), data.coffee()
    pasted[50:310, 50:350] = cat
    frames = tuple(Keyframe(0, image, image) for image in (pasted, other, other, pasted))
    own = Reference(ReferenceFile(Path("cat.png"), "cat"), cat, np.ones(cat.shape[:2], bool))
    values = CopyScore(8).measure(Shown(frames, "", (own,)))
    assert values["copy_score_max"] > 0.95
    assert values["copy_score"] == pytest.approx(values["copy_score_max"] / 2, abs=0.02)
    # Two of four frames: the first and the last.
    assert CopyScore(2).measure(Shown(frames, "", (own,)))["copy_score"] > 0.95
