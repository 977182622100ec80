"""Makes the pictures that the plan asks for. What they prove is measured afterwards, by `stages.verify`."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from models.protocols import Editor, EditRequest, FillRequest, Image, Inpainter, Mask
from stages.augment import augment
from stages.measure import encode_rle
from stages.picture import cut_out, encode_png, foreground, subject_crop
from stages.plan import ReferencesConfig, ReferenceSpec
from stages.records import Reference, Subject
from stages.repaint import repaint_compose, repaint_request
from stages.swap import swap_compose, swap_request

Subjects = Mapping[str, Subject]
Specs = Sequence[ReferenceSpec]


@dataclass(frozen=True, slots=True)
class Painters:
    """What paints anew."""

    inpainter: Inpainter | None = None
    editor: Editor | None = None


@dataclass(frozen=True, slots=True)
class _Picture:
    """A reference's picture, and where in it the subject is."""

    picture: Image
    mask: Mask
    revealed: float | None = None


class SynthesiseStage:
    """Turns specs into references."""

    def __init__(self, config: ReferencesConfig, painters: Painters) -> None:
        self.config = config
        self.painters = painters

    def run(self, specs: Specs, subjects: Subjects) -> list[Reference]:
        """One reference per spec, in order; each painter is asked once for all pictures of a kind.

        Args:
            specs: what to make.
            subjects: every target, source and scene by id.

        Raises:
            ValueError: if a spec is of a kind for which there is no painter.
        """
        makers = {"inpainted": self._inpaint, "moved": self._move, "swapped": self._swap, "augmented": self._augment}
        made: dict[str, Iterator[_Picture]] = {}
        for kind in dict.fromkeys(spec.kind for spec in specs):
            of_kind = [spec for spec in specs if spec.kind == kind]
            made[kind] = iter(makers.get(kind, _cut)(of_kind, subjects))
        return [_reference(spec, next(made[spec.kind]), subjects[spec.source_id]) for spec in specs]

    def _inpaint(self, specs: Specs, subjects: Subjects) -> list[_Picture]:
        config = self.config.inpainted
        crops = [subject_crop(subjects[spec.source_id], spec.frame) for spec in specs]
        painted = self._fill(
            "inpainted",
            [
                repaint_request(*crop, config, f"{subjects[spec.source_id].word}, {config.prompt}", _seed(spec))
                for spec, crop in zip(specs, crops, strict=True)
            ],
        )
        return [
            _Picture(repaint_compose(picture, crop, mask, config), mask)
            for picture, (crop, mask) in zip(painted, crops, strict=True)
        ]

    def _swap(self, specs: Specs, subjects: Subjects) -> list[_Picture]:
        config = self.config.swapped
        scenes = [_scene(spec, subjects) for spec in specs]
        filled = self._fill(
            "swapped",
            [
                swap_request(*scene, config, config.prompt, _seed(spec))
                for spec, scene in zip(specs, scenes, strict=True)
            ],
        )
        pictures = []
        for spec, picture, (_, scene_mask) in zip(specs, filled, scenes, strict=True):
            swapped = swap_compose(picture, scene_mask, *subject_crop(subjects[spec.source_id], spec.frame), config)
            pictures.append(_Picture(swapped.picture, swapped.mask, swapped.revealed))
        return pictures

    def _move(self, specs: Specs, subjects: Subjects) -> list[_Picture]:
        if self.painters.editor is None:
            raise ValueError("references.moved asks for pictures but models.editor is not set")
        prompts = self.config.moved.prompts
        pictures = self.painters.editor.edit(
            [
                EditRequest(
                    image=_cut_out(spec, subjects)[0],
                    prompt=prompts[spec.number % len(prompts)].replace("{word}", subjects[spec.source_id].word),
                    seed=_seed(spec),
                )
                for spec in specs
            ]
        )
        return [_Picture(picture, foreground(picture)) for picture in pictures]

    def _augment(self, specs: Specs, subjects: Subjects) -> list[_Picture]:
        config = self.config.augmented
        return [
            _Picture(*augment(*subject_crop(subjects[spec.source_id], spec.frame), config, _seed(spec)))
            for spec in specs
        ]

    def _fill(self, kind: str, requests: Sequence[FillRequest]) -> list[Image]:
        if self.painters.inpainter is None:
            raise ValueError(f"references.{kind} asks for pictures but models.inpainter is not set")
        return self.painters.inpainter.fill(requests)


def _cut(specs: Specs, subjects: Subjects) -> list[_Picture]:
    return [_Picture(*_cut_out(spec, subjects)) for spec in specs]


def _cut_out(spec: ReferenceSpec, subjects: Subjects) -> tuple[Image, Mask]:
    return cut_out(*subject_crop(subjects[spec.source_id], spec.frame))


def _scene(spec: ReferenceSpec, subjects: Subjects) -> tuple[Image, Mask]:
    if spec.scene_id is None:
        raise ValueError(f"{spec.reference_id}: a picture of kind {spec.kind} needs a scene")
    host = subjects[spec.scene_id]
    return subject_crop(host, host.best)


def _reference(spec: ReferenceSpec, made: _Picture, source: Subject) -> Reference:
    return Reference(
        reference_id=spec.reference_id,
        subject_id=spec.target_id,
        kind=spec.kind,
        source_subject_id=spec.source_id,
        source_clip_id=source.clip_id,
        source_time=source.frames[spec.frame].time,
        source_frame=spec.frame,
        scene_subject_id=spec.scene_id,
        image=encode_png(made.picture),
        mask=encode_rle(made.mask),
        width=made.picture.shape[1],
        height=made.picture.shape[0],
        method=spec.method,
        revealed=made.revealed,
        seed=spec.seed,
        fingerprint=spec.fingerprint,
    )


def _seed(spec: ReferenceSpec) -> int:
    return int.from_bytes(hashlib.sha256(f"{spec.target_id}:{spec.seed}".encode()).digest()[:4], "big")
