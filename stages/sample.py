"""Samples: which clips, subjects and references stand together, which split they are in, and what their JSON says."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Row = Mapping[str, Any]

KIND_ORDER = ("original", "other_frame", "cross_clip", "inpainted", "augmented", "moved", "swapped")


@dataclass(frozen=True, slots=True)
class Picture:
    """A reference in a sample: ``name`` is its extension, ``{subject}.{kind}.{n}.png``."""

    name: str
    reference_id: str


@dataclass(frozen=True, slots=True)
class SampleSpec:
    """A sample to be written. Equal specs make equal bytes."""

    key: str
    caption: str
    metadata: str
    """The sample's JSON."""
    pictures: tuple[Picture, ...]
    subjects: int

    def fingerprint(self, encoding: str) -> str:
        """Hash of all that its bytes follow from; ``encoding`` is the fingerprint of its encoded clip."""
        text = "\0".join([self.key, self.caption, self.metadata, encoding])
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def plan_samples(
    clips: Iterable[tuple[Row, Row, Row, Row]],
    subjects: Iterable[Row],
    references: Iterable[Row],
    max_subjects: int,
) -> list[SampleSpec]:
    """One sample per clip that has a subject with a reference, sorted by key.

    Args:
        clips: ``(clip, source, score, annotation)`` rows of the clips that passed.
        subjects: rows of the subjects that passed.
        references: rows of the references that passed, without their pictures.
        max_subjects: the largest subjects that a sample keeps.
    """
    pictures: dict[str, list[Row]] = defaultdict(list)
    for reference in references:
        pictures[reference["subject_id"]].append(reference)
    members: dict[str, list[Row]] = defaultdict(list)
    for subject in subjects:
        if pictures[subject["subject_id"]]:
            members[subject["clip_id"]].append(subject)
    samples = []
    for clip, source, score, annotation in clips:
        chosen = sorted(members[clip["clip_id"]], key=lambda subject: (-subject["area"], subject["subject_id"]))
        if chosen:
            samples.append(_sample(clip, source, score, annotation, chosen[:max_subjects], pictures))
    return sorted(samples, key=lambda sample: sample.key)


def split_by_identity(clips: Mapping[str, str], pairs: Iterable[tuple[str, str]], val_share: float) -> set[str]:
    """The clips of the validation split.

    Clips of one video, and clips that show one individual, always fall on the same side. Groups are taken in the
    order of a hash until their clips are at least ``val_share`` of all; one group at least stays for training.

    Args:
        clips: the video of each clip.
        pairs: clips that show the same individual.
        val_share: in [0, 1).
    """
    parent = {clip: clip for clip in clips}

    def root(clip: str) -> str:
        while parent[clip] != clip:
            parent[clip] = parent[parent[clip]]
            clip = parent[clip]
        return clip

    def join(a: str, b: str) -> None:
        low, high = sorted((root(a), root(b)))
        parent[high] = low

    first_of: dict[str, str] = {}
    for clip, video in sorted(clips.items()):
        join(first_of.setdefault(video, clip), clip)
    for a, b in pairs:
        if a in parent and b in parent:
            join(a, b)
    groups: dict[str, list[str]] = defaultdict(list)
    for clip in clips:
        groups[root(clip)].append(clip)
    order = sorted(groups, key=lambda name: hashlib.sha256(name.encode()).digest())
    chosen: set[str] = set()
    for name in order[:-1]:
        if len(chosen) >= val_share * len(clips):
            break
        chosen.update(groups[name])
    return chosen


def _sample(
    clip: Row, source: Row, score: Row, annotation: Row, subjects: Sequence[Row], pictures: Mapping[str, Sequence[Row]]
) -> SampleSpec:
    named = {
        subject["subject_id"]: _named_pictures(number, pictures[subject["subject_id"]])
        for number, subject in enumerate(subjects)
    }
    metadata = {
        "clip": _without(clip, "fingerprint", "dropped", "span_id"),
        "source": _without(source, "source_id", "fingerprint", "caption", "caption_source"),
        "scores": _without(score, "clip_id", "fingerprint"),
        "caption": {"text": annotation["caption"], "from": annotation["caption_source"], "words": annotation["words"]},
        "subjects": [
            {
                **_without(subject, "clip_id", "fingerprint", "face_embedding", "image_embedding", "frames"),
                "frames": [_without(frame, "face_embedding", "image_embedding") for frame in subject["frames"]],
                "references": [
                    {"file": picture.name, **_without(reference, "subject_id", "fingerprint")}
                    for picture, reference in named[subject["subject_id"]]
                ],
            }
            for subject in subjects
        ],
    }
    return SampleSpec(
        key=clip["clip_id"],
        caption=annotation["caption"],
        metadata=json.dumps(metadata, sort_keys=True, ensure_ascii=False),
        pictures=tuple(picture for pairs in named.values() for picture, _ in pairs),
        subjects=len(subjects),
    )


def _named_pictures(number: int, references: Sequence[Row]) -> list[tuple[Picture, Row]]:
    counts: dict[str, int] = defaultdict(int)
    named = []
    for reference in sorted(references, key=lambda row: (KIND_ORDER.index(row["kind"]), row["reference_id"])):
        kind = reference["kind"]
        named.append((Picture(f"{number}.{kind}.{counts[kind]}.png", reference["reference_id"]), reference))
        counts[kind] += 1
    return named


def _without(row: Row, *names: str) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name not in names}
