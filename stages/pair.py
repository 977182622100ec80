"""Which pictures each subject shall have as references, decided on stored numbers alone.

The plan is a list of :class:`ReferenceSpec`; its ids come from everything that the picture will be made from, so a
spec whose id is already in the table needs no work.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from stages.config import Section

Row = Mapping[str, Any]
SIMILARITY_BLOCK = 128
"""Targets compared at once: bounds the memory of the similarity matrix."""
DECIMALS = 5
"""To which cosines are compared. What lies beyond them depends on the block, and would tell equal ones apart."""
NO_SEED = 0
"""Of pictures that are made without chance: another seed is no reason to make them anew."""


class OtherFrameConfig(Section):
    """References from another moment of the target's own clip."""

    count: int = Field(2, ge=0)
    """Most pictures per subject; 0 turns the kind off."""


class IdentityRule(Section):
    """When two subjects of one category are the same individual, seen in different pictures."""

    by: Literal["face", "image", "none"]
    """Embedding that proves it; `none` makes no pairs of this category."""
    min: float = Field(ge=-1, le=1)
    """Least cosine: below it lie other individuals."""
    max: float = Field(ge=-1, le=1)
    """Largest cosine: above it lie copies."""
    min_face: float = Field(0.0, ge=0, le=1)
    """Least detector score of both faces: the embedding of an unsure face is anybody's."""
    scope: Literal["anywhere", "same_video", "other_video"] = "anywhere"
    """Which clips may be paired: any other clip, only those of the same video, or only those of other videos."""


class CrossClipConfig(Section):
    """References from other clips that show the same individual."""

    count: int = Field(2, ge=0)
    """Most pictures per subject; 0 turns the kind off."""
    rules: dict[Literal["person", "animal", "vehicle", "plant", "object"], IdentityRule] = Field({})
    """One rule per category; categories without one make no pairs."""


class InpaintedConfig(Section):
    """References whose subject is kept and whose background is painted anew."""

    count: int = Field(1, ge=0)
    """Pictures per subject, each with its own seed; 0 turns the kind off."""
    prompt: str = "a plain, natural background"
    """What to paint, for inpainters that read a prompt."""


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


class ReferencesConfig(Section):
    """Which references are made. `original`, the cut-out on white, always is."""

    seed: int = 0
    """Changes every picture that is made with chance."""
    other_frame: OtherFrameConfig = OtherFrameConfig()
    cross_clip: CrossClipConfig = CrossClipConfig()
    inpainted: InpaintedConfig = InpaintedConfig()
    moved: MovedConfig = MovedConfig()


@dataclass(frozen=True, slots=True)
class ReferenceSpec:
    """A picture to be made: frame ``frame`` of subject ``source_id``, made into a reference of ``target_id``."""

    reference_id: str
    kind: str
    target_id: str
    source_id: str
    frame: int
    seed: int
    identity_by: str
    fingerprint: str


@dataclass(frozen=True, slots=True)
class Individual:
    """What planning keeps of a subject. Its row holds vectors, which are let go of as soon as they are looked at."""

    subject_id: str
    clip_id: str
    best: int
    identity_by: str
    """Embedding by which its pictures are told to show it: ``face`` or ``image``."""
    fingerprint: str

    @classmethod
    def of(cls, subject: Row) -> Individual:
        """``subject`` is a row of ``subjects``."""
        by_face = subject["category"] == "person" and subject["face_embedding"] is not None
        return cls(
            subject_id=subject["subject_id"],
            clip_id=subject["clip_id"],
            best=subject["best"],
            identity_by="face" if by_face else "image",
            fingerprint=subject["fingerprint"],
        )


def plan_references(
    subjects: Iterable[Row], videos: Mapping[str, str], config: ReferencesConfig, fingerprints: Mapping[str, str]
) -> list[ReferenceSpec]:
    """Specs of every reference that the passing subjects shall have, sorted by id.

    Args:
        subjects: rows of ``subjects`` that passed, gone through once. Embeddings may be lists or arrays; of a frame
            no more is read than ``image_embedding``, and frames not at all where `other_frame` is turned off.
        videos: the video of each clip.
        config: kinds, counts and identity bounds.
        fingerprints: per kind, hash of the configuration that makes its pictures.
    """
    specs = []
    crowd = _Crowd(config.cross_clip.rules if config.cross_clip.count else {})
    for row in subjects:
        own = Individual.of(row)
        specs.append(_spec("original", own, own, own.best, NO_SEED, fingerprints))
        if config.other_frame.count:
            for frame in most_different(row)[: config.other_frame.count]:
                specs.append(_spec("other_frame", own, own, frame, NO_SEED, fingerprints))
        for kind, count in (("inpainted", config.inpainted.count), ("moved", config.moved.count)):
            for number in range(count):
                specs.append(_spec(kind, own, own, own.best, config.seed + number, fingerprints))
        crowd.add(row, own)
    for target, source in _cross_pairs(crowd, videos, config.cross_clip.count):
        specs.append(_spec("cross_clip", target, source, source.best, NO_SEED, fingerprints))
    return sorted(specs, key=lambda spec: spec.reference_id)


def most_different(subject: Row) -> list[int]:
    """The subject's kept frames besides its best, the one whose look differs most from the best first."""
    frames = subject["frames"]
    best = np.asarray(frames[subject["best"]]["image_embedding"])
    others = [number for number in range(len(frames)) if number != subject["best"]]
    return sorted(others, key=lambda number: (float(best @ np.asarray(frames[number]["image_embedding"])), number))


def cross_pairs(
    subjects: Iterable[Row], videos: Mapping[str, str], config: CrossClipConfig
) -> Iterator[tuple[Individual, Individual]]:
    """``(target, source)`` pairs of the same individual in different clips, at most ``count`` sources per target.

    A source is taken when the cosine lies within the rule's bounds. Sources from other videos come first, then the
    most alike; ties are broken by id, so the order of the rows does not matter.
    """
    return _cross_pairs(_crowd(subjects, config), videos, config.count)


def same_individuals(subjects: Iterable[Row], config: CrossClipConfig) -> Iterator[tuple[str, str]]:
    """Pairs of clips that show one individual by the rules' lower bounds, near-copies included.

    Args:
        subjects: rows of ``subjects``, gone through once; their frames are not read.
        config: the rules.
    """
    for rule, members, target, cosines in _crowd(subjects, config).compared():
        for index in np.flatnonzero(cosines >= rule.min).tolist():
            if members[index].clip_id > target.clip_id:
                yield target.clip_id, members[index].clip_id


@dataclass(slots=True)
class _Group:
    """Subjects that may be one individual, and the unit vector of each; ``(embedding,)`` of 32-bit floats."""

    rule: IdentityRule
    members: list[Individual] = field(default_factory=list)
    vectors: list[npt.NDArray[np.float32]] = field(default_factory=list)


class _Crowd:
    """Subjects in groups that are compared within. It holds one vector per subject, and nothing else that is large."""

    def __init__(self, rules: Mapping[Any, IdentityRule]) -> None:
        self._rules = rules
        self._groups: dict[tuple[str, str], _Group] = {}

    def add(self, subject: Row, individual: Individual) -> None:
        """Put a subject into its group, if a rule says what it is known by."""
        rule = self._rules.get(subject["category"])
        if rule is None or not _can_prove(subject, rule):
            return
        # People are compared across words (a "man" may be a "chef" elsewhere): the face decides.
        name = subject["category"], "" if rule.by == "face" else subject["word"]
        group = self._groups.setdefault(name, _Group(rule))
        group.members.append(individual)
        group.vectors.append(_unit(np.asarray(subject[f"{rule.by}_embedding"], np.float32)))

    def compared(self) -> Iterator[tuple[IdentityRule, list[Individual], Individual, npt.NDArray[np.float32]]]:
        """Every subject with its cosines to all the members of its group, a block of subjects at a time.

        Groups are given up one by one: this can be done once.
        """
        for name in sorted(self._groups):
            group = self._groups.pop(name)
            order = sorted(range(len(group.members)), key=lambda number: group.members[number].subject_id)
            members = [group.members[number] for number in order]
            vectors = np.stack([group.vectors[number] for number in order])
            group.vectors.clear()
            for start in range(0, len(members), SIMILARITY_BLOCK):
                block = vectors[start : start + SIMILARITY_BLOCK] @ vectors.T
                np.round(block, DECIMALS, out=block)
                for target, cosines in zip(members[start:], block, strict=False):
                    yield group.rule, members, target, cosines


def _crowd(subjects: Iterable[Row], config: CrossClipConfig) -> _Crowd:
    crowd = _Crowd(config.rules)
    for subject in subjects:
        crowd.add(subject, Individual.of(subject))
    return crowd


def _cross_pairs(crowd: _Crowd, videos: Mapping[str, str], count: int) -> Iterator[tuple[Individual, Individual]]:
    for rule, members, target, cosines in crowd.compared():
        near = np.flatnonzero((cosines >= rule.min) & (cosines <= rule.max))
        found = [
            (videos[target.clip_id] == videos[members[index].clip_id], -float(cosines[index]), index)
            for index in near.tolist()
            if _in_scope(target, members[index], videos, rule)
        ]
        for _, _, index in sorted(found)[:count]:
            yield target, members[index]


def _can_prove(subject: Row, rule: IdentityRule) -> bool:
    return rule.by != "none" and subject[f"{rule.by}_embedding"] is not None and subject["face"] >= rule.min_face


def _in_scope(target: Individual, source: Individual, videos: Mapping[str, str], rule: IdentityRule) -> bool:
    if target.clip_id == source.clip_id:
        return False
    same = videos[target.clip_id] == videos[source.clip_id]
    return rule.scope == "anywhere" or same == (rule.scope == "same_video")


def _unit(vector: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    unit: npt.NDArray[np.float32] = (vector / np.maximum(np.linalg.norm(vector, axis=-1), 1e-9)).astype(np.float32)
    return unit


def _spec(
    kind: str, target: Individual, source: Individual, frame: int, seed: int, fingerprints: Mapping[str, str]
) -> ReferenceSpec:
    fingerprint = _fingerprint(fingerprints[kind], target.fingerprint, source.fingerprint)
    parts = (kind, target.subject_id, source.subject_id, frame, seed, fingerprint)
    return ReferenceSpec(
        reference_id=hashlib.sha256(":".join(map(str, parts)).encode()).hexdigest()[:16],
        kind=kind,
        target_id=target.subject_id,
        source_id=source.subject_id,
        frame=frame,
        seed=seed,
        identity_by=target.identity_by,
        fingerprint=fingerprint,
    )


@lru_cache(maxsize=1024)
def _fingerprint(*parts: str) -> str:
    # Remembered, so that the many specs that share a fingerprint share one string.
    return hashlib.sha256(":".join(parts).encode()).hexdigest()[:16]
