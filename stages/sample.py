"""Samples: which clips, subjects and references stand together, which split they are in, and what their JSON says."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stages.identity import identities
from stages.records import KIND_ORDER

Row = Mapping[str, Any]

NEGATIVE = "negative"
"""The kind of pictures that show somebody else, which are no references."""


UNTOLD = ("face_embedding", "image_embedding", "surroundings", "shape")
"""What of subjects and their frames is for comparing them, and in no sample."""


@dataclass(frozen=True, slots=True)
class Negative:
    """A picture of an individual that is like a subject and is not shown in its clip."""

    reference_id: str
    subject_id: str
    """Whom it shows."""
    identity_similarity: float | None
    """Cosine between the embeddings by which both subjects are known, where it is known."""


@dataclass(frozen=True, slots=True)
class SamplePlan:
    """Which rows a sample is made of."""

    key: str
    """Id of its clip."""
    source_id: str
    subjects: tuple[str, ...]
    """Ids, the largest subject first."""
    references: tuple[tuple[str, ...], ...]
    """Per subject the ids of its references, in the order in which they are numbered."""
    negatives: tuple[tuple[Negative, ...], ...] = ()
    """Per subject the pictures of others, the most alike first; empty where none were asked for."""


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture in a sample: ``name`` is its extension, ``{subject}.{kind}.{n}.png``."""

    name: str
    reference_id: str


@dataclass(frozen=True, slots=True)
class Sample:
    """What a sample says. Equal rows make equal samples."""

    key: str
    caption: str
    metadata: str
    """The sample's JSON."""
    pictures: tuple[Picture, ...]
    """References, then negatives."""
    subjects: int
    references: int


def plan_samples(
    clips: Mapping[str, str], subjects: Iterable[Row], references: Iterable[Row], max_subjects: int
) -> list[SamplePlan]:
    """One sample per clip that has a subject with a reference, sorted by key.

    Args:
        clips: the id of the source of each clip that passed.
        subjects: ``subject_id``, ``clip_id`` and ``area`` of the subjects that passed.
        references: ``reference_id``, ``subject_id`` and ``kind`` of the references that passed.
        max_subjects: the largest subjects that a sample keeps.
    """
    pictures: dict[str, list[tuple[int, str]]] = defaultdict(list)
    for reference in references:
        pictures[reference["subject_id"]].append((KIND_ORDER.index(reference["kind"]), reference["reference_id"]))
    members: dict[str, list[tuple[float, str]]] = defaultdict(list)
    for subject in subjects:
        if subject["subject_id"] in pictures and subject["clip_id"] in clips:
            members[subject["clip_id"]].append((-subject["area"], subject["subject_id"]))
    samples = []
    for clip_id, found in sorted(members.items()):
        chosen = tuple(subject_id for _, subject_id in sorted(found)[:max_subjects])
        named = tuple(tuple(reference_id for _, reference_id in sorted(pictures[name])) for name in chosen)
        samples.append(SamplePlan(clip_id, clips[clip_id], chosen, named))
    return samples


def make_sample(
    plan: SamplePlan,
    clip: Row,
    source: Row,
    score: Row,
    annotation: Row,
    subjects: Mapping[str, Row],
    references: Mapping[str, Row],
    models: Sequence[Row],
) -> Sample:
    """Name a sample's pictures and write its JSON.

    Args:
        plan: which subjects and references, in which order.
        clip: row of ``clips``.
        source: row of ``sources``.
        score: row of ``scores``.
        annotation: row of ``annotations``.
        subjects: rows of ``subjects`` by id, without ``crops``.
        references: rows of ``references`` by id, without ``image``.
        models: what the rows were made with, and under which licences.
    """
    named = [
        _named_pictures(number, [references[reference_id] for reference_id in ids])
        for number, ids in enumerate(plan.references)
    ]
    negatives = [
        [(Picture(f"{number}.{NEGATIVE}.{place}.png", one.reference_id), one) for place, one in enumerate(found)]
        for number, found in enumerate(plan.negatives)
    ]
    metadata = {
        "clip": _without(clip, "fingerprint", "dropped", "span_id"),
        "source": told_of_source(source),
        "scores": _without(score, "clip_id", "fingerprint"),
        "models": list(models),
        "caption": {"text": annotation["caption"], "from": annotation["caption_source"], "words": annotation["words"]},
        "subjects": [
            {
                **_without(subjects[subject_id], *UNTOLD, "clip_id", "content", "fingerprint"),
                "frames": [_without(frame, *UNTOLD) for frame in subjects[subject_id]["frames"]],
                "references": [
                    {"file": picture.name, **_without(reference, "subject_id", "fingerprint")}
                    for picture, reference in pairs
                ],
                **({"negatives": [_told_of_negative(*pair) for pair in negatives[number]]} if negatives else {}),
            }
            for number, (subject_id, pairs) in enumerate(zip(plan.subjects, named, strict=True))
        ],
    }
    return Sample(
        key=plan.key,
        caption=annotation["caption"],
        metadata=json.dumps(metadata, sort_keys=True, ensure_ascii=False),
        pictures=(
            *(picture for pairs in named for picture, _ in pairs),
            *(picture for found in negatives for picture, _ in found),
        ),
        subjects=len(plan.subjects),
        references=sum(map(len, named)),
    )


def told_of_source(source: Row) -> dict[str, Any]:
    """What of a row of ``sources`` stands in a sample's JSON."""
    return _without(source, "source_id", "fingerprint", "caption", "caption_source")


def split_by_identity(clips: Mapping[str, str], pairs: Iterable[tuple[str, str]], val_share: float) -> set[str]:
    """The clips of the validation split.

    Clips of one video, and clips that show one individual, always fall on the same side. Of the groups that this
    makes, the largest stays for training (of equally large ones, the first by hash). The others are taken in the order
    of the hash until their clips are at least ``val_share`` of all, but none that alone has more clips than that,
    unless it is as small as the smallest. So validation is no larger than twice its share or, where every group is
    larger than the share, one group; and it is smaller than its share where most clips hang together.

    Args:
        clips: the video of each clip.
        pairs: clips that show the same individual.
        val_share: in [0, 1).
    """
    first_of: dict[str, str] = {}
    of_one_video = [(first_of.setdefault(video, clip), clip) for clip, video in sorted(clips.items())]
    of_one_individual = ((a, b) for a, b in pairs if a in clips and b in clips)
    named = identities(sorted(clips), itertools.chain(of_one_video, of_one_individual))
    groups: dict[str, list[str]] = defaultdict(list)
    for clip in clips:
        groups[named[clip]].append(clip)
    order = sorted(groups, key=lambda name: hashlib.sha256(name.encode()).digest())
    if len(order) < 2:
        return set()
    order.remove(max(order, key=lambda name: len(groups[name])))
    share = val_share * len(clips)
    most = max(share, min(len(groups[name]) for name in order))
    chosen: set[str] = set()
    for name in order:
        if len(chosen) >= share:
            break
        if len(groups[name]) <= most:
            chosen.update(groups[name])
    return chosen


def _named_pictures(number: int, references: Sequence[Row]) -> list[tuple[Picture, Row]]:
    counts: dict[str, int] = defaultdict(int)
    named = []
    for reference in references:
        kind = reference["kind"]
        named.append((Picture(f"{number}.{kind}.{counts[kind]}.png", reference["reference_id"]), reference))
        counts[kind] += 1
    return named


def _told_of_negative(picture: Picture, negative: Negative) -> dict[str, Any]:
    return {
        "file": picture.name,
        "subject_id": negative.subject_id,
        "identity_similarity": negative.identity_similarity,
        "reference_id": negative.reference_id,
    }


def _without(row: Row, *names: str) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name not in names}
