"""Which pictures each subject shall have as references, decided on stored numbers alone.

The plan is a list of :class:`ReferenceSpec`; its ids come from everything that the picture will be made from, so a
spec whose id is already in the table needs no work.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import Field

from stages.augment import AugmentConfig
from stages.config import Section
from stages.hosts import Hosts
from stages.other_frames import OtherFrameConfig, other_frames
from stages.pair import CrossClipConfig, Crowd, Individual, Search, cross_pairs
from stages.repaint import RepaintConfig
from stages.search import exact
from stages.swap import FitConfig, SwapConfig

Row = Mapping[str, Any]
NO_SEED = 0
"""Of pictures that are made without chance: another seed is no reason to make them anew."""


class InpaintedConfig(RepaintConfig):
    """References whose subject is kept and whose background is painted anew."""

    count: int = Field(1, ge=0)
    """Pictures per subject, each with its own seed; 0 turns the kind off."""
    prompt: str = "a plain, natural background"
    """What to paint, for inpainters that read a prompt."""


class AugmentedConfig(AugmentConfig):
    """References that are the subject's own picture, turned, cropped and recoloured: no other picture of it, but no
    copy either."""

    count: int = Field(0, ge=0)
    """Pictures per subject, each with its own seed; 0 turns the kind off."""


class MovedConfig(Section):
    """References in which a network shows the subject in another pose or place: motion change."""

    count: int = Field(0, ge=0)
    """Pictures per subject, each with its own seed and the next of the prompts; 0 turns the kind off."""
    prompts: tuple[str, ...] = Field(
        (
            "The same {word} seen from another side, in another pose, alone on a plain white background.",
            "The same {word} in the middle of a movement, alone on a plain white background.",
        ),
        min_length=1,
    )
    """What to show, for editors that read a prompt; `{word}` is the subject's word."""


class SwappedConfig(SwapConfig):
    """References in which the subject stands in another clip's scene, in place of the one that was there."""

    count: int = Field(0, ge=0)
    """Pictures per subject, each in another scene; 0 turns the kind off."""
    fit: FitConfig = FitConfig()
    """Whose place a subject may take."""
    prompt: str = "the empty background, nobody there"
    """What to paint where that scene's own subject was, for inpainters that read a prompt."""


class ReferencesConfig(Section):
    """Which references are made. `original`, the cut-out on white, always is."""

    seed: int = 0
    """Changes every picture that is made with chance."""
    other_frame: OtherFrameConfig = OtherFrameConfig()
    cross_clip: CrossClipConfig = CrossClipConfig()
    inpainted: InpaintedConfig = InpaintedConfig()
    augmented: AugmentedConfig = AugmentedConfig()
    moved: MovedConfig = MovedConfig()
    swapped: SwappedConfig = SwappedConfig()


@dataclass(frozen=True, slots=True)
class Recipe:
    """How the pictures of a kind are made."""

    method: str
    """In words, with the model's name and revision where one is used."""
    fingerprint: str
    """Hash of the configuration and the models."""


@dataclass(frozen=True, slots=True)
class ReferenceSpec:
    """A picture to be made: frame ``frame`` of subject ``source_id``, made into a reference of ``target_id``."""

    reference_id: str
    kind: str
    target_id: str
    source_id: str
    scene_id: str | None
    """Of `swapped`: the subject whose place the source takes."""
    frame: int
    number: int
    """Counts the pictures of a kind that are made with chance, from 0."""
    seed: int
    method: str
    fingerprint: str

    @property
    def subjects(self) -> tuple[str, ...]:
        """Ids of all the subjects that the picture is made from or measured against."""
        return tuple(name for name in (self.target_id, self.source_id, self.scene_id) if name is not None)


def plan_references(
    subjects: Iterable[Row],
    videos: Mapping[str, str],
    config: ReferencesConfig,
    recipes: Mapping[str, Recipe],
    search: Search = exact,
) -> list[ReferenceSpec]:
    """Specs of every reference that the passing subjects shall have, sorted by id.

    Args:
        subjects: rows of ``subjects`` that passed, gone through once. Embeddings may be lists or arrays. Frames are
            not read where `other_frame` is turned off.
        videos: the video of each clip.
        config: kinds, counts and identity bounds.
        recipes: how each kind is made.
        search: how subjects that look alike are found.
    """
    draft = _Draft(recipes)
    crowd = Crowd(config.cross_clip.rules if config.cross_clip.count else {}, videos, apart=True)
    hosts = Hosts(config.swapped.fit, config.swapped.count, videos)
    drawn = {"inpainted": config.inpainted.count, "augmented": config.augmented.count, "moved": config.moved.count}
    for row in subjects:
        own = Individual.of(row)
        draft.add("original", own, own, own.best)
        if config.other_frame.count:
            for frame in other_frames(row, config.other_frame):
                draft.add("other_frame", own, own, frame)
        for kind, count in drawn.items():
            for number in range(count):
                draft.add(kind, own, own, own.best, number=number, seed=config.seed + number)
        crowd.add(row, own)
        hosts.add(row, own)
    for target, source in cross_pairs(crowd, videos, config.cross_clip.count, search):
        draft.add("cross_clip", target, source, source.best)
    for target, host, number in hosts.pairs(config.seed):
        draft.add("swapped", target, target, target.best, number=number, seed=config.seed + number, scene=host)
    return sorted(draft.specs, key=lambda spec: spec.reference_id)


class _Draft:
    """The specs so far."""

    def __init__(self, recipes: Mapping[str, Recipe]) -> None:
        self.specs: list[ReferenceSpec] = []
        self._recipes = recipes

    def add(
        self,
        kind: str,
        target: Individual,
        source: Individual,
        frame: int,
        *,
        number: int = 0,
        seed: int = NO_SEED,
        scene: Individual | None = None,
    ) -> None:
        made_of = [one for one in (target, source, scene) if one is not None]
        recipe = self._recipes[kind]
        fingerprint = _hash(recipe.fingerprint, *(one.content for one in made_of))
        self.specs.append(
            ReferenceSpec(
                reference_id=_hash(kind, *(one.subject_id for one in made_of), str(frame), str(seed), fingerprint),
                kind=kind,
                target_id=target.subject_id,
                source_id=source.subject_id,
                scene_id=scene.subject_id if scene else None,
                frame=frame,
                number=number,
                seed=seed,
                method=recipe.method,
                fingerprint=fingerprint,
            )
        )


def _hash(*parts: str) -> str:
    return hashlib.sha256(":".join(parts).encode()).hexdigest()[:16]
