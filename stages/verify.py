"""Measures what a reference proves: that it shows its target and nobody else, and that it shows it differently.

Every reference goes through it, however it was made. Nothing here judges: `stages.select` does, and a reference that
fails stays in its table with the reasons.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from pydantic import Field

from models.masks import box_of
from models.protocols import (
    Detector,
    FaceAnalyser,
    Image,
    ImageEmbedder,
    ImageTextScorer,
    Keyframe,
    Mask,
    SafetyScorer,
)
from stages.config import Section
from stages.copy_score import copy_scores
from stages.difference import Difference, Look, difference
from stages.measure import brightness, decode_rle, perceptual_hash, picture_difference, subject_sharpness
from stages.picture import cut_out, decode_png, subject_crop
from stages.records import Proof, Reference, Subject
from stages.repainted import halo, laid_over, new_share, second_subject, subject_change

Embedding = Sequence[float]

PAINTED = ("inpainted", "augmented", "moved", "swapped")
"""Kinds whose pictures are embedded anew, since what made them may have changed who they show."""
ON_WHITE = ("augmented", "moved")
"""Painted kinds that show the subject alone on white."""
NEW_BACKGROUND = ("inpainted", "swapped")


class VerifyConfig(Section):
    """What is measured of references."""

    rivals: int = Field(4, ge=0)
    """Subjects that are known to be others, the most alike ones, that each reference is held against; 0 for none."""
    copies: bool = True
    """Whether references are looked for in the target's frames."""
    second_subjects: bool = True
    """Whether new backgrounds are searched for a second subject, where the detector knows words."""


@dataclass(frozen=True, slots=True)
class Other:
    """A subject that is another one than the target."""

    subject_id: str
    face_embedding: Embedding | None
    image_embedding: Embedding


@dataclass(frozen=True, slots=True)
class Claim:
    """A reference, with all that it is measured against."""

    reference: Reference
    target: Subject
    source: Subject
    same_video: bool
    """Whether target and source are of one video."""
    others: list[Other]
    fingerprint: str


@dataclass(frozen=True, slots=True)
class Verifiers:
    """The models that measure; nothing where a task has none."""

    embedder: ImageEmbedder
    faces: FaceAnalyser | None = None
    image_text: ImageTextScorer | None = None
    safety: SafetyScorer | None = None
    detector: Detector | None = None


@dataclass
class _Case:
    """A claim with its pictures, and what the models found."""

    claim: Claim
    picture: Image
    mask: Mask
    own: tuple[Image, Mask]
    """The target's own best crop."""
    faces: list[Embedding] | None = None
    """Of all faces in the picture; nothing where none were looked for."""
    appearance: Embedding | None = None
    image_text: float | None = None
    nudity: float | None = None
    second: float | None = None

    @property
    def kind(self) -> str:
        return self.claim.reference.kind

    @property
    def is_painted(self) -> bool:
        return self.kind in PAINTED

    @cached_property
    def sides(self) -> tuple[tuple[Image, Mask], tuple[Image, Mask]]:
        """The reference and the target's own picture as pictures of one kind, each with its mask.

        Both have a background or both are cut out. A picture that was only cut out of a frame is known by what is
        around it there.
        """
        if self.kind in ON_WHITE:
            return (self.picture, self.mask), cut_out(*self.own)
        if self.is_painted:
            return (self.picture, self.mask), self.own
        return subject_crop(self.claim.source, self.claim.reference.source_frame), self.own


class VerifyStage:
    """References in, proofs out. Each model is asked once for all references of a batch."""

    def __init__(self, config: VerifyConfig, models: Verifiers) -> None:
        self._config = config
        self._models = models

    def run(self, claims: Sequence[Claim]) -> list[Proof]:
        """One proof per claim, in order."""
        cases = [_case(claim) for claim in claims]
        self._recognise(cases)
        self._name(cases)
        self._count(cases)
        risks = self._copy_risks(cases)
        return [_proof(case, risk) for case, risk in zip(cases, risks, strict=True)]

    def _recognise(self, cases: Sequence[_Case]) -> None:
        """Who the painted pictures show."""
        painted = [case for case in cases if case.is_painted]
        if painted:
            vectors = self._models.embedder.embed([case.picture for case in painted], [case.mask for case in painted])
            for case, vector in zip(painted, vectors, strict=True):
                case.appearance = vector.tolist()
        people = [case for case in painted if case.claim.target.face_embedding is not None]
        if self._models.faces is not None and people:
            for case, faces in zip(people, self._models.faces.faces([case.picture for case in people]), strict=True):
                case.faces = [face.embedding.tolist() for face in faces]

    def _name(self, cases: Sequence[_Case]) -> None:
        """How well the pictures fit their subjects' words, and whether they may be shown."""
        if self._models.image_text is not None and cases:
            crops = [_boxed(case.picture, case.mask) for case in cases]
            words = [case.claim.target.word for case in cases]
            for case, score in zip(cases, self._models.image_text.similarity(crops, words), strict=True):
                case.image_text = float(score)
        if self._models.safety is not None and cases:
            scores = self._models.safety.nudity([case.picture for case in cases])
            for case, score in zip(cases, scores, strict=True):
                case.nudity = float(score)

    def _count(self, cases: Sequence[_Case]) -> None:
        """Whether new backgrounds hold a second subject."""
        detector = self._models.detector
        scenes = [case for case in cases if case.kind in NEW_BACKGROUND]
        if not self._config.second_subjects or detector is None or detector.class_free or not scenes:
            return
        keyframes = [[Keyframe(0.0, case.picture, case.picture)] for case in scenes]
        found = detector.detect(keyframes, [[case.claim.target.word] for case in scenes])
        for case, (detections,) in zip(scenes, found, strict=True):
            x0, y0, x1, y1 = box_of(case.mask)
            case.second = second_subject(detections, (x0, y0, x1, y1))

    def _copy_risks(self, cases: Sequence[_Case]) -> list[float | None]:
        """How well each reference can be laid over the frames of its target."""
        risks: list[float | None] = [None] * len(cases)
        if not self._config.copies:
            return risks
        targets: dict[str, list[int]] = {}
        for number, case in enumerate(cases):
            if case.kind != "original":
                targets.setdefault(case.claim.target.subject_id, []).append(number)
        for numbers in targets.values():
            target = cases[numbers[0]].claim.target
            frames = [decode_png(crop) for crop in target.crops]
            # What was only cut out is looked for as it was in its frame: the edge that fades to white is in none.
            seen = [cases[number].sides[0] for number in numbers]
            mirrored = [(np.ascontiguousarray(picture[:, ::-1]), mask[:, ::-1]) for picture, mask in seen]
            scores = copy_scores([*seen, *mirrored], frames)
            for place, number in enumerate(numbers):
                reference, own = cases[number].claim.reference, scores[[place, place + len(seen)]]
                if reference.kind == "other_frame":
                    # It was cut out of one of these frames: what matters is whether another one repeats it.
                    own = np.delete(own, reference.source_frame, axis=1)
                risks[number] = float(own.max(initial=0))
        return risks


def _case(claim: Claim) -> _Case:
    picture = decode_png(claim.reference.image)
    mask = decode_rle(claim.reference.mask, *picture.shape[:2])
    return _Case(claim, picture, mask, own=subject_crop(claim.target, claim.target.best))


def _proof(case: _Case, copy_risk: float | None) -> Proof:
    claim, reference = case.claim, case.claim.reference
    similarity, by, vector = _identity(case)
    rival = _nearest(vector, by, claim.others)
    (scene, scene_mask), (before, _) = case.sides
    apart = _difference(case)
    new_background = case.kind in NEW_BACKGROUND
    old = before
    if case.kind == "swapped":
        # What may hang on to a swapped subject is its own old background, not that of the scene.
        old = laid_over(*subject_crop(claim.source, reference.source_frame), case.mask)
    return Proof(
        reference_id=reference.reference_id,
        identity_similarity=similarity,
        identity_by=by,
        rival_similarity=rival[0] if rival else None,
        rival_subject_id=rival[1] if rival else None,
        context_difference=picture_difference(scene, before),
        pose_difference=apart.pose,
        background_difference=apart.background,
        scale_difference=apart.scale,
        hash_distance=apart.hash,
        time_distance=apart.seconds,
        copy_risk=copy_risk,
        image_text=case.image_text,
        nudity=case.nudity,
        brightness=brightness(scene, scene_mask),
        sharpness=subject_sharpness(scene, scene_mask),
        phash=perceptual_hash(case.picture),
        subject_change=subject_change(case.picture, before, case.mask) if case.kind == "inpainted" else None,
        background_change=new_share(case.picture, before, case.mask) if case.kind == "inpainted" else None,
        halo=halo(case.picture, old, case.mask) if new_background else None,
        second_subject=case.second,
        fingerprint=claim.fingerprint,
    )


def _difference(case: _Case) -> Difference:
    claim = case.claim
    if not case.is_painted:
        source = claim.source.frames[claim.reference.source_frame]
        target = claim.target.frames[claim.target.best]
        return difference(Look.of_frame(source), Look.of_frame(target), same_video=claim.same_video)
    first, second = (Look.of_picture(*side) for side in case.sides)
    return difference(first, second, same_video=False)


def _identity(case: _Case) -> tuple[float, str, Embedding | None]:
    """How like the target the picture is, by what, and the vector that says so."""
    target = case.claim.target
    if case.is_painted:
        if target.face_embedding is not None and case.faces is not None:
            # No face to be found any more is no likeness, whatever the pixels say.
            known = target.face_embedding
            best = max(case.faces, key=lambda face: _cosine(face, known), default=None)
            return (0.0, "face", None) if best is None else (_cosine(best, known), "face", best)
        vector = case.appearance or []
        return _cosine(vector, target.image_embedding), "image", vector
    frame = case.claim.source.frames[case.claim.reference.source_frame]
    if target.face_embedding is not None and frame.face_embedding is not None:
        return _cosine(frame.face_embedding, target.face_embedding), "face", frame.face_embedding
    return _cosine(frame.image_embedding, target.image_embedding), "image", frame.image_embedding


def _nearest(vector: Embedding | None, by: str, others: Sequence[Other]) -> tuple[float, str] | None:
    """Cosine and id of the most alike of the others; nothing where there is none to compare with."""
    if vector is None:
        return None
    known = ((other.face_embedding if by == "face" else other.image_embedding, other.subject_id) for other in others)
    return max(((_cosine(vector, embedding), name) for embedding, name in known if embedding is not None), default=None)


def _boxed(picture: Image, mask: Mask) -> Image:
    x0, y0, x1, y1 = box_of(mask)
    return picture[y0:y1, x0:x1]


def _cosine(a: Embedding, b: Embedding) -> float:
    first, second = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return float(first @ second / max(float(np.linalg.norm(first) * np.linalg.norm(second)), 1e-9))
