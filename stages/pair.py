"""Which pictures each subject shall have as references, decided on stored numbers alone.

The plan is a list of :class:`ReferenceSpec`; its ids come from everything that the picture will be made from, so a
spec whose id is already in the table needs no work.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from stages.config import Section

Row = Mapping[str, Any]
SIMILARITY_BLOCK = 1024
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


class ReferencesConfig(Section):
    """Which references are made. `original`, the cut-out on white, always is."""

    seed: int = 0
    """Changes every picture that is made with chance."""
    other_frame: OtherFrameConfig = OtherFrameConfig()
    cross_clip: CrossClipConfig = CrossClipConfig()
    inpainted: InpaintedConfig = InpaintedConfig()


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


def plan_references(
    subjects: Sequence[Row], videos: Mapping[str, str], config: ReferencesConfig, fingerprints: Mapping[str, str]
) -> list[ReferenceSpec]:
    """Specs of every reference that the passing subjects shall have, sorted by id.

    Args:
        subjects: rows of ``subjects`` that passed, without their pictures.
        videos: the video of each clip.
        config: kinds, counts and identity bounds.
        fingerprints: per kind, hash of the configuration that makes its pictures.
    """
    specs = []
    for subject in subjects:
        specs.append(_spec("original", subject, subject, subject["best"], NO_SEED, fingerprints))
        for frame in most_different(subject)[: config.other_frame.count]:
            specs.append(_spec("other_frame", subject, subject, frame, NO_SEED, fingerprints))
        for number in range(config.inpainted.count):
            specs.append(_spec("inpainted", subject, subject, subject["best"], config.seed + number, fingerprints))
    for target, source in cross_pairs(subjects, videos, config.cross_clip):
        specs.append(_spec("cross_clip", target, source, source["best"], NO_SEED, fingerprints))
    return sorted(specs, key=lambda spec: spec.reference_id)


def most_different(subject: Row) -> list[int]:
    """The subject's kept frames besides its best, the one whose look differs most from the best first."""
    frames = subject["frames"]
    best = np.asarray(frames[subject["best"]]["image_embedding"])
    others = [number for number in range(len(frames)) if number != subject["best"]]
    return sorted(others, key=lambda number: (float(best @ np.asarray(frames[number]["image_embedding"])), number))


def cross_pairs(
    subjects: Sequence[Row], videos: Mapping[str, str], config: CrossClipConfig
) -> Iterator[tuple[Row, Row]]:
    """``(target, source)`` pairs of the same individual in different clips, at most ``count`` sources per target.

    A source is taken when the cosine lies within the rule's bounds. Sources from other videos come first, then the
    most alike; ties are broken by id, so the order of the rows does not matter.
    """
    for rule, members, target, cosines in _compared(subjects, config):
        near = np.flatnonzero((cosines >= rule.min) & (cosines <= rule.max))
        found = [
            (videos[target["clip_id"]] == videos[members[index]["clip_id"]], -float(cosines[index]), index)
            for index in near.tolist()
            if _in_scope(target, members[index], videos, rule)
        ]
        for _, _, index in sorted(found)[: config.count]:
            yield target, members[index]


def same_individuals(subjects: Sequence[Row], config: CrossClipConfig) -> Iterator[tuple[str, str]]:
    """Pairs of clips that show one individual by the rules' lower bounds, near-copies included."""
    for rule, members, target, cosines in _compared(subjects, config):
        for index in np.flatnonzero(cosines >= rule.min).tolist():
            if members[index]["clip_id"] > target["clip_id"]:
                yield target["clip_id"], members[index]["clip_id"]


def _compared(
    subjects: Sequence[Row], config: CrossClipConfig
) -> Iterator[tuple[IdentityRule, list[Row], Row, npt.NDArray[np.float32]]]:
    """Every subject with its cosines to all the members of its group, a block of subjects at a time."""
    groups: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for subject in subjects:
        rule = config.rules.get(subject["category"])
        if rule is not None and _can_prove(subject, rule):
            # People are compared across words (a "man" may be a "chef" elsewhere): the face decides.
            groups[subject["category"], "" if rule.by == "face" else subject["word"]].append(subject)
    for (category, _), members in sorted(groups.items()):
        members.sort(key=lambda subject: subject["subject_id"])
        rule = config.rules[category]  # type: ignore[index]
        vectors = _unit(np.asarray([subject[_embedding_column(rule)] for subject in members], np.float32))
        for start in range(0, len(members), SIMILARITY_BLOCK):
            block = np.round(vectors[start : start + SIMILARITY_BLOCK] @ vectors.T, DECIMALS)
            for target, cosines in zip(members[start:], block, strict=False):
                yield rule, members, target, cosines


def _can_prove(subject: Row, rule: IdentityRule) -> bool:
    return rule.by != "none" and subject[f"{rule.by}_embedding"] is not None and subject["face"] >= rule.min_face


def _in_scope(target: Row, source: Row, videos: Mapping[str, str], rule: IdentityRule) -> bool:
    if target["clip_id"] == source["clip_id"]:
        return False
    same = videos[target["clip_id"]] == videos[source["clip_id"]]
    return rule.scope == "anywhere" or same == (rule.scope == "same_video")


def _embedding_column(rule: IdentityRule) -> str:
    return f"{rule.by}_embedding"


def _unit(vectors: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit: npt.NDArray[np.float32] = (vectors / np.maximum(lengths, 1e-9)).astype(np.float32)
    return unit


def _spec(kind: str, target: Row, source: Row, frame: int, seed: int, fingerprints: Mapping[str, str]) -> ReferenceSpec:
    by_face = target["category"] == "person" and target["face_embedding"] is not None
    fingerprint = hashlib.sha256(
        ":".join([fingerprints[kind], target["fingerprint"], source["fingerprint"]]).encode()
    ).hexdigest()[:16]
    parts = (kind, target["subject_id"], source["subject_id"], frame, seed, fingerprint)
    return ReferenceSpec(
        reference_id=hashlib.sha256(":".join(map(str, parts)).encode()).hexdigest()[:16],
        kind=kind,
        target_id=target["subject_id"],
        source_id=source["subject_id"],
        frame=frame,
        seed=seed,
        identity_by="face" if by_face else "image",
        fingerprint=fingerprint,
    )
