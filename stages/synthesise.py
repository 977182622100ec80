"""Makes the pictures that the plan asks for, and measures each against its target."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np

from models.protocols import FaceAnalyser, FillRequest, Image, ImageEmbedder, Inpainter, Mask
from stages.measure import brightness, picture_difference, subject_sharpness
from stages.pair import ReferenceSpec
from stages.picture import cut_out, encode_png, subject_crop
from stages.records import Reference, Subject


class SynthesiseStage:
    """Turns specs into references.

    A picture that only moves pixels (`original`, `other_frame`, `cross_clip`) is known by the embeddings that its
    subject already has; one that a network or algorithm painted is embedded anew, since it may have changed who it
    shows.
    """

    def __init__(
        self, inpainter: Inpainter | None, embedder: ImageEmbedder, faces: FaceAnalyser | None, prompt: str, method: str
    ) -> None:
        """``method`` names the inpainter and its revision, for the provenance."""
        self.inpainter = inpainter
        self.embedder = embedder
        self.faces = faces
        self.prompt = prompt
        self.method = method

    def run(self, specs: Sequence[ReferenceSpec], subjects: Mapping[str, Subject]) -> list[Reference]:
        """One reference per spec, in order. ``subjects`` holds every target and source by id."""
        return [self._make(spec, subjects[spec.target_id], subjects[spec.source_id]) for spec in specs]

    def _make(self, spec: ReferenceSpec, target: Subject, source: Subject) -> Reference:
        crop, mask = subject_crop(source, spec.frame)
        own_crop, _ = subject_crop(target, target.best)
        if spec.kind == "inpainted":
            scene = picture = self._inpaint(spec, crop, mask, source)
            method = self.method
            similarity, by = self._painted_identity(spec, picture, mask, target)
        else:
            scene, picture = crop, cut_out(crop, mask)
            method = "cut_out"
            similarity, by = _stored_identity(spec, target, source)
        return Reference(
            reference_id=spec.reference_id,
            subject_id=spec.target_id,
            kind=spec.kind,
            source_subject_id=spec.source_id,
            source_clip_id=source.clip_id,
            source_time=source.frames[spec.frame].time,
            image=encode_png(picture),
            width=picture.shape[1],
            height=picture.shape[0],
            method=method,
            seed=spec.seed,
            identity_similarity=similarity,
            identity_by=by,
            context_difference=picture_difference(scene, own_crop),
            brightness=brightness(scene, mask),
            sharpness=subject_sharpness(scene, mask),
            fingerprint=spec.fingerprint,
        )

    def _inpaint(self, spec: ReferenceSpec, crop: Image, mask: Mask, source: Subject) -> Image:
        if self.inpainter is None:
            raise ValueError("references.inpainted asks for pictures but models.inpainter is not set")
        seed = int.from_bytes(hashlib.sha256(f"{spec.target_id}:{spec.seed}".encode()).digest()[:4], "big")
        prompt = f"{source.word}, {self.prompt}"
        (picture,) = self.inpainter.fill([FillRequest(image=crop, mask=~mask, prompt=prompt, seed=seed)])
        return picture

    def _painted_identity(self, spec: ReferenceSpec, picture: Image, mask: Mask, target: Subject) -> tuple[float, str]:
        if spec.identity_by == "face" and self.faces is not None and target.face_embedding is not None:
            (faces,) = self.faces.faces([picture])
            cosines = [_cosine(face.embedding, target.face_embedding) for face in faces]
            # No face to be found any more is no likeness, whatever the pixels say.
            return max(cosines, default=0.0), "face"
        (embedding,) = self.embedder.embed([picture], [mask])
        return _cosine(embedding, target.image_embedding), "image"


def _stored_identity(spec: ReferenceSpec, target: Subject, source: Subject) -> tuple[float, str]:
    frame = source.frames[spec.frame]
    if spec.identity_by == "face" and target.face_embedding is not None and frame.face_embedding is not None:
        return _cosine(frame.face_embedding, target.face_embedding), "face"
    return _cosine(frame.image_embedding, target.image_embedding), "image"


def _cosine(a: Sequence[float] | np.ndarray, b: Sequence[float] | np.ndarray) -> float:
    first, second = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return float(first @ second / max(float(np.linalg.norm(first) * np.linalg.norm(second)), 1e-9))
