"""Numbers into verdicts: which clips, subjects and references pass, and every reason why one does not.

No model runs here and nothing is decoded, so thresholds can be tried in a moment.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field, ValidationInfo, field_validator

from stages.config import Section
from stages.records import KIND_ORDER, Kind, Verdict

Row = Mapping[str, Any]
ALL_BITS = 2**64 - 1
"""Of a hash that is stored as a signed integer."""


class ClipThresholds(Section):
    """What a clip must fulfil. A clip that fails any of these is not shown to the subject models."""

    off: bool = False
    """Whether every clip passes, for comparison."""
    min_motion: float = Field(0.12, ge=0)
    """Least mean motion (thousandths of the frame's diagonal per 1/24 s); less is a still."""
    max_motion: float = Field(60, gt=0)
    """Most mean motion; more is a blur."""
    min_brightness: float = Field(40, ge=0, le=255)
    """Least mean luma."""
    max_brightness: float = Field(235, ge=0, le=255)
    """Most mean luma."""
    min_sharpness: float = Field(25, ge=0)
    """Least variance of the Laplacian at 360 lines."""
    max_text_area: float = Field(0.035, ge=0, le=1)
    """Largest share of the frame under written text."""
    max_border: float = Field(0.02, ge=0, le=1)
    """Largest share of the frame in letterbox or pillarbox bars."""
    max_static: float = Field(0.8, ge=0, le=1)
    """Largest share of pixels that never change: a still, a slide, a screen recording."""
    min_aesthetic: float = Field(0.0, ge=0)
    """Least aesthetic score, where a model gives one: about 1 to 10; peers ask for 4.5 to 5."""
    max_nudity: float = Field(1.0, ge=0, le=1)
    """Largest nudity score, where a model gives one."""
    duplicate_distance: float = Field(3, ge=0, lt=8)
    """Clips whose perceptual hashes differ by at most this many of 64 bits, on average over their keyframes, are
    one; the sharpest stays."""


class SubjectThresholds(Section):
    """What a subject must fulfil. Its numbers are those of its best frame."""

    off: bool = False
    """Whether every subject of a clip that passes does too, for comparison."""
    min_detection_score: float = Field(0.3, ge=0, le=1)
    """Least score of the detector."""
    min_mask_score: float = Field(0.5, ge=0, le=1)
    """Least score of the segmenter."""
    min_area: float = Field(0.03, ge=0, le=1)
    """Least share of the frame inside its mask."""
    max_area: float = Field(0.9, ge=0, le=1)
    """Largest share of the frame inside its mask."""
    min_short_side: float = Field(96, ge=0)
    """Least length in pixels of the shorter side of its box."""
    max_overlap: float = Field(0.5, ge=0, le=1)
    """Largest IoU of its mask with another subject's."""
    max_border: float = Field(0.35, ge=0, le=1)
    """Largest share of its outline on the frame's edge: more is an incomplete subject."""
    max_fragments: int = Field(4, ge=1)
    """Most connected parts of its mask."""
    max_straightness: float = Field(0.5, ge=0, le=1)
    """Largest share of its outline in long straight horizontal or vertical runs."""
    min_stability: float = Field(0.4, ge=0, le=1)
    """Least median IoU of its masks in neighbouring keyframes."""
    min_seen: int = Field(2, ge=1)
    """Least number of keyframes that it is found in."""
    min_brightness: float = Field(25, ge=0, le=255)
    """Least mean luma inside its mask."""
    min_sharpness: float = Field(20, ge=0)
    """Least variance of the Laplacian inside its mask at 256 lines."""
    min_image_text: float = Field(0.0, ge=-1, le=1)
    """Least cosine of its crop and its word, where an image-text model is configured."""
    min_face: float = Field(0.0, ge=0, le=1)
    """Least face score of a person; 0 asks for no face."""
    max_face_turn: float = Field(180, ge=0, le=180)
    """Most degrees that a person's face is turned from the camera, where the face model tells."""


class ReferenceThresholds(Section):
    """What a reference must fulfil, whatever made it."""

    off: bool = False
    """Whether every reference of a subject that passes is taken, for comparison."""
    min_identity: dict[Literal["face", "image"], float] = Field({"face": 0.5, "image": 0.5})
    """Least identity similarity to its target, by the embedding that it was told by. What is not named keeps its
    default."""
    min_margin: float = Field(0.0, ge=-2, le=2)
    """How much more like its target it must be than like any subject that is known to be another one."""
    min_difference: dict[Kind, float] = Field(
        {"other_frame": 0.05, "cross_clip": 0.03, "inpainted": 0.04, "augmented": 0.05, "moved": 0.05, "swapped": 0.05}
    )
    """Least context difference per kind; what is not named keeps its default. A re-encoded or brightened copy has up to
    0.02, the next frame 0.006, the start and the end of a clip 0.13, another scene 0.4 (medians on real clips)."""
    max_copy_risk: dict[Kind, float] = Field({"cross_clip": 0.8, "other_frame": 0.85, "moved": 0.8})
    """Largest copy risk per kind; what is not named keeps its default, and the other kinds may be copies: what keeps
    the subject's pixels (`inpainted`, `augmented`, `swapped`) is found in its frames by nature."""
    duplicate_bits: int = Field(2, ge=-1, le=64)
    """References of one subject whose hashes differ by at most so many of 64 bits are one: the first kind stays; -1
    keeps all."""
    min_image_text: float = Field(0.0, ge=-1, le=1)
    """Least cosine of the picture and the subject's word, where an image-text model is configured."""
    max_nudity: float = Field(1.0, ge=0, le=1)
    """Largest nudity score, where a model gives one."""
    max_subject_change: float = Field(2.0, ge=0)
    """Of pictures that keep the subject: most that its pixels may have changed, in Lab."""
    min_background_change: float = Field(0.5, ge=0, le=1)
    """Of pictures with a new background: least share of it that is new."""
    max_halo: float = Field(0.25, ge=0, le=1)
    """Of pictures with a new background: most that may be left of the old one along the subject's edge."""
    max_revealed: float = Field(0.15, ge=0, le=1)
    """Of `swapped`: largest share of the picture that was painted where the scene's own subject was, and shows."""
    max_second_subject: float = Field(0.5, ge=0, le=1)
    """Of pictures with a new background: largest score of a second subject of the same word."""
    min_brightness: float = Field(25, ge=0, le=255)
    """Least mean luma of the subject in the picture."""
    min_sharpness: float = Field(20, ge=0)
    """Least variance of the Laplacian of the subject in the picture at 256 lines."""

    @field_validator("min_identity", "min_difference", "max_copy_risk", mode="before")
    @classmethod
    def _with_defaults(cls, given: Any, info: ValidationInfo) -> Any:
        """Naming one leaves the others as they are."""
        field = cls.model_fields[str(info.field_name)]
        return {**field.default, **given} if isinstance(given, Mapping) else given


class SelectConfig(Section):
    """Thresholds. They read stored numbers, so changing one runs no model that it need not."""

    clip: ClipThresholds = ClipThresholds()
    subject: SubjectThresholds = SubjectThresholds()
    reference: ReferenceThresholds = ReferenceThresholds()


def clip_reasons(score: Row, config: ClipThresholds) -> list[str]:
    """Why a clip fails on its own numbers; empty if it passes. ``score`` holds the columns of ``scores``."""
    if config.off:
        return []
    checks = {
        "static": score["motion"] < config.min_motion or score["static"] > config.max_static,
        "too_fast": score["motion"] > config.max_motion,
        "dark": score["brightness"] < config.min_brightness,
        "overexposed": score["brightness"] > config.max_brightness,
        "blurry": score["sharpness"] < config.min_sharpness,
        "text": score["text_area"] > config.max_text_area,
        "letterbox": score["border"] > config.max_border,
        "low_aesthetic": score["aesthetic"] is not None and score["aesthetic"] < config.min_aesthetic,
        "nudity": (score["nudity"] or 0.0) > config.max_nudity,
    }
    return [reason for reason, fails in checks.items() if fails]


def subject_reasons(subject: Row, config: SubjectThresholds) -> list[str]:
    """Why a subject fails on its own numbers; empty if it passes. ``subject`` holds the columns of ``subjects``."""
    no_match = subject["image_text"] is not None and subject["image_text"] < config.min_image_text
    checks = {
        "uncertain": subject["detection_score"] < config.min_detection_score,
        "poor_mask": subject["mask_score"] < config.min_mask_score,
        "too_small": subject["area"] < config.min_area or subject["short_side"] < config.min_short_side,
        "too_large": subject["area"] > config.max_area,
        "overlapping": subject["overlap"] > config.max_overlap,
        "cut_off": subject["border"] > config.max_border,
        "fragmented": subject["fragments"] > config.max_fragments,
        "boxy_mask": subject["straightness"] > config.max_straightness,
        "unstable_mask": subject["stability"] < config.min_stability and subject["seen"] > 1,
        "seen_once": subject["seen"] < config.min_seen,
        "dark": subject["brightness"] < config.min_brightness,
        "blurry": subject["sharpness"] < config.min_sharpness,
        "not_the_word": no_match,
        "no_face": subject["category"] == "person" and subject["face"] < config.min_face,
        "turned_away": subject["category"] == "person" and (subject["face_turn"] or 0.0) > config.max_face_turn,
    }
    return [reason for reason, fails in checks.items() if fails]


def reference_reasons(reference: Row, config: ReferenceThresholds) -> list[str]:
    """Why a reference fails; empty if it passes. ``reference`` holds the columns of ``references`` and ``proofs``."""

    def above(value: float | None, bound: float) -> bool:
        return value is not None and value > bound

    def below(value: float | None, bound: float) -> bool:
        return value is not None and value < bound

    kind, identity, rival = reference["kind"], reference["identity_similarity"], reference["rival_similarity"]
    checks = {
        "other_identity": identity < config.min_identity.get(reference["identity_by"], -1.0),
        "like_another": rival is not None and identity - rival < config.min_margin,
        "near_copy": reference["context_difference"] < config.min_difference.get(kind, 0.0),
        "copy": above(reference["copy_risk"], config.max_copy_risk.get(kind, 1.0)),
        "not_the_word": below(reference["image_text"], config.min_image_text),
        "nudity": above(reference["nudity"], config.max_nudity),
        "subject_changed": above(reference["subject_change"], config.max_subject_change),
        "old_background": below(reference["background_change"], config.min_background_change),
        "halo": above(reference["halo"], config.max_halo),
        "patched": above(reference["revealed"], config.max_revealed),
        "second_subject": above(reference["second_subject"], config.max_second_subject),
        "dark": reference["brightness"] < config.min_brightness,
        "blurry": reference["sharpness"] < config.min_sharpness,
    }
    return [reason for reason, fails in checks.items() if fails]


def decide(
    clips: Iterable[Row],
    scores: Iterable[Row],
    subjects: Iterable[Row],
    references: Iterable[Row],
    config: SelectConfig,
) -> list[Verdict]:
    """Verdicts on everything that was scored, sorted by id.

    A subject in a clip that fails has the reason ``clip``, a reference of a subject that fails ``subject``; a clip
    that passes but has no subject that passes keeps its verdict: what it lacks is told by its subjects.

    Args:
        clips: rows of ``clips``.
        scores: rows of ``scores``.
        subjects: rows of ``subjects``.
        references: rows of ``references`` that have a proof, with its columns.
        config: the thresholds.
    """
    clip_verdicts = _clip_verdicts(clips, scores, config.clip)
    passing = {verdict.id: verdict.keep for verdict in clip_verdicts}
    subject_verdicts = []
    for subject in subjects:
        if subject["clip_id"] in passing:
            why = [] if config.subject.off else subject_reasons(subject, config.subject)
            if not passing[subject["clip_id"]]:
                why = ["clip", *why]
            subject_verdicts.append(_verdict("subject", subject["subject_id"], why))
    kept = {verdict.id for verdict in subject_verdicts if verdict.keep}
    verdicts = [*clip_verdicts, *subject_verdicts, *_reference_verdicts(references, kept, config.reference)]
    return sorted(verdicts, key=lambda verdict: verdict.id)


def _clip_verdicts(clips: Iterable[Row], scores: Iterable[Row], config: ClipThresholds) -> list[Verdict]:
    by_clip = {score["clip_id"]: score for score in scores}
    reasons: dict[str, list[str]] = {}
    for clip in clips:
        score = by_clip.get(clip["clip_id"])
        if clip["dropped"]:
            reasons[clip["clip_id"]] = [clip["dropped"]]
        elif score is not None:
            reasons[clip["clip_id"]] = clip_reasons(score, config)
    if not config.off:
        passing = [by_clip[clip] for clip, why in reasons.items() if not why]
        for duplicate in near_duplicates(passing, config.duplicate_distance):
            reasons[duplicate] = ["near_duplicate"]
    return [_verdict("clip", clip, why) for clip, why in reasons.items()]


def _reference_verdicts(
    references: Iterable[Row], subjects: Container[str], config: ReferenceThresholds
) -> Iterator[Verdict]:
    passing: dict[str, list[tuple[int, str, int]]] = defaultdict(list)
    for reference in references:
        name = reference["reference_id"]
        why = [] if config.off else reference_reasons(reference, config)
        made_of = (reference["subject_id"], reference["source_subject_id"], reference["scene_subject_id"])
        if not all(subject in subjects for subject in made_of if subject is not None):
            why = ["subject", *why]
        if why or config.off:
            yield _verdict("reference", name, why)
        else:
            rank = KIND_ORDER.index(reference["kind"])
            passing[reference["subject_id"]].append((rank, name, reference["phash"]))
    for rows in passing.values():
        kept: list[int] = []
        for _, name, phash in sorted(rows):
            repeats = any(((phash ^ other) & ALL_BITS).bit_count() <= config.duplicate_bits for other in kept)
            if not repeats:
                kept.append(phash)
            yield _verdict("reference", name, ["duplicate"] if repeats else [])


def _verdict(kind: str, name: str, why: Sequence[str]) -> Verdict:
    return Verdict(id=name, kind=kind, keep=not why, reasons=list(why))


def near_duplicates(scores: Sequence[Row], distance: float) -> set[str]:
    """Clips that repeat a sharper clip.

    Two clips repeat each other when the hashes of their keyframes, taken in order, differ by at most ``distance``
    bits on average. Candidates are found by equal parts of hashes: of two such clips at least one pair of hashes
    differs in no more than ``distance`` bits, so of ``distance + 1`` parts of that pair at least one is equal.
    """
    groups: dict[int, list[Row]] = defaultdict(list)
    for score in sorted(scores, key=lambda score: (-score["sharpness"], score["clip_id"])):
        groups[len(score["phashes"])].append(score)
    return {
        rows[number]["clip_id"]
        for rows in groups.values()
        for number in _repeats(np.array([row["phashes"] for row in rows], np.int64).view(np.uint64), distance)
    }


def _repeats(hashes: npt.NDArray[np.uint64], distance: float) -> Iterator[int]:
    """Numbers of the clips that repeat an earlier one which is no repetition itself; ``(clips, keyframes)``."""
    bounds = np.linspace(0, 64, math.floor(distance) + 2).astype(int).tolist()
    low = np.array(bounds[:-1], np.uint64)
    ones = np.array([(1 << end - start) - 1 for start, end in pairwise(bounds)], np.uint64)
    buckets: dict[tuple[int, int], list[int]] = defaultdict(list)
    for number, own in enumerate(hashes):
        keys = list(enumerate((own[:, None] >> low & ones).ravel().tolist()))
        candidates = list({other for key in keys for other in buckets.get(key, ())})
        if candidates and (np.bitwise_count(hashes[candidates] ^ own).mean(axis=1) <= distance).any():
            yield number
            continue
        for key in keys:
            buckets[key].append(number)
