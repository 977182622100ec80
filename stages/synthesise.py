"""Makes the pictures that the plan asks for, and measures each against its target."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from models.protocols import Editor, EditRequest, FaceAnalyser, FillRequest, Image, ImageEmbedder, Inpainter, Mask
from stages.measure import brightness, picture_difference, subject_sharpness
from stages.pair import ReferencesConfig, ReferenceSpec
from stages.picture import cut_out, encode_png, foreground, subject_crop
from stages.records import Reference, Subject

Subjects = Mapping[str, Subject]


@dataclass(frozen=True, slots=True)
class Painters:
    """What paints anew: the networks of the kinds `inpainted` and `moved`, each with its name for the provenance."""

    inpainter: Inpainter | None = None
    inpainted_by: str = ""
    editor: Editor | None = None
    moved_by: str = ""


@dataclass(frozen=True, slots=True)
class _Picture:
    """A reference's picture, where in it the subject is, and what is compared with the target for its difference.

    ``scene`` and ``before`` are pictures of one kind: both with a background, or both cut out.
    """

    picture: Image
    mask: Mask
    method: str
    scene: Image
    before: Image


class SynthesiseStage:
    """Turns specs into references.

    A picture that only moves pixels (`original`, `other_frame`, `cross_clip`) is known by the embeddings that its
    subject already has; one that a network or algorithm painted is embedded anew, since it may have changed who it
    shows.
    """

    def __init__(
        self, config: ReferencesConfig, painters: Painters, embedder: ImageEmbedder, faces: FaceAnalyser | None
    ) -> None:
        self.config = config
        self.painters = painters
        self.embedder = embedder
        self.faces = faces

    def run(self, specs: Sequence[ReferenceSpec], subjects: Subjects) -> list[Reference]:
        """One reference per spec, in order; each painter is asked once for all. ``subjects`` holds every target and
        source by id.

        Raises:
            ValueError: if a spec is of a kind for which there is no painter.
        """
        painted = {
            "inpainted": iter(self._inpaint([spec for spec in specs if spec.kind == "inpainted"], subjects)),
            "moved": iter(self._move([spec for spec in specs if spec.kind == "moved"], subjects)),
        }
        return [
            self._reference(
                spec,
                next(painted[spec.kind]) if spec.kind in painted else _cut(spec, subjects),
                subjects[spec.target_id],
                subjects[spec.source_id],
            )
            for spec in specs
        ]

    def _inpaint(self, specs: Sequence[ReferenceSpec], subjects: Subjects) -> list[_Picture]:
        if not specs:
            return []
        if self.painters.inpainter is None:
            raise ValueError("references.inpainted asks for pictures but models.inpainter is not set")
        crops = [subject_crop(subjects[spec.source_id], spec.frame) for spec in specs]
        pictures = self.painters.inpainter.fill(
            [
                FillRequest(
                    image=crop,
                    mask=~mask,
                    prompt=f"{subjects[spec.source_id].word}, {self.config.inpainted.prompt}",
                    seed=_seed(spec),
                )
                for spec, (crop, mask) in zip(specs, crops, strict=True)
            ]
        )
        return [
            _Picture(picture, mask, self.painters.inpainted_by, scene=picture, before=crop)
            for picture, (crop, mask) in zip(pictures, crops, strict=True)
        ]

    def _move(self, specs: Sequence[ReferenceSpec], subjects: Subjects) -> list[_Picture]:
        if not specs:
            return []
        if self.painters.editor is None:
            raise ValueError("references.moved asks for pictures but models.editor is not set")
        prompts = self.config.moved.prompts
        befores = [cut_out(*subject_crop(subjects[spec.source_id], spec.frame)) for spec in specs]
        pictures = self.painters.editor.edit(
            [
                EditRequest(
                    image=before,
                    prompt=prompts[(spec.seed - self.config.seed) % len(prompts)].replace(
                        "{word}", subjects[spec.source_id].word
                    ),
                    seed=_seed(spec),
                )
                for spec, before in zip(specs, befores, strict=True)
            ]
        )
        return [
            _Picture(picture, foreground(picture), self.painters.moved_by, scene=picture, before=before)
            for picture, before in zip(pictures, befores, strict=True)
        ]

    def _reference(self, spec: ReferenceSpec, made: _Picture, target: Subject, source: Subject) -> Reference:
        is_painted = spec.kind in ("inpainted", "moved")
        similarity, by = (
            self._painted_identity(spec, made.picture, made.mask, target)
            if is_painted
            else _stored_identity(spec, target, source)
        )
        return Reference(
            reference_id=spec.reference_id,
            subject_id=spec.target_id,
            kind=spec.kind,
            source_subject_id=spec.source_id,
            source_clip_id=source.clip_id,
            source_time=source.frames[spec.frame].time,
            image=encode_png(made.picture),
            width=made.picture.shape[1],
            height=made.picture.shape[0],
            method=made.method,
            seed=spec.seed,
            identity_similarity=similarity,
            identity_by=by,
            context_difference=picture_difference(made.scene, made.before),
            brightness=brightness(made.scene, made.mask),
            sharpness=subject_sharpness(made.scene, made.mask),
            fingerprint=spec.fingerprint,
        )

    def _painted_identity(self, spec: ReferenceSpec, picture: Image, mask: Mask, target: Subject) -> tuple[float, str]:
        if spec.identity_by == "face" and self.faces is not None and target.face_embedding is not None:
            (faces,) = self.faces.faces([picture])
            cosines = [_cosine(face.embedding, target.face_embedding) for face in faces]
            # No face to be found any more is no likeness, whatever the pixels say.
            return max(cosines, default=0.0), "face"
        (embedding,) = self.embedder.embed([picture], [mask])
        return _cosine(embedding, target.image_embedding), "image"


def _cut(spec: ReferenceSpec, subjects: Subjects) -> _Picture:
    """The source's cut-out; what tells it from the target is all that the crops around both show."""
    target = subjects[spec.target_id]
    crop, mask = subject_crop(subjects[spec.source_id], spec.frame)
    own_crop, _ = subject_crop(target, target.best)
    picture = cut_out(crop, mask)
    return _Picture(picture, mask, "cut_out", scene=crop, before=own_crop)


def _seed(spec: ReferenceSpec) -> int:
    return int.from_bytes(hashlib.sha256(f"{spec.target_id}:{spec.seed}".encode()).digest()[:4], "big")


def _stored_identity(spec: ReferenceSpec, target: Subject, source: Subject) -> tuple[float, str]:
    frame = source.frames[spec.frame]
    if spec.identity_by == "face" and target.face_embedding is not None and frame.face_embedding is not None:
        return _cosine(frame.face_embedding, target.face_embedding), "face"
    return _cosine(frame.image_embedding, target.image_embedding), "image"


def _cosine(a: Sequence[float] | np.ndarray, b: Sequence[float] | np.ndarray) -> float:
    first, second = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return float(first @ second / max(float(np.linalg.norm(first) * np.linalg.norm(second)), 1e-9))
