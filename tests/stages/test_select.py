from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from stages.records import KIND_ORDER, Proof, Reference, Score, Subject, Verdict
from stages.select import (
    ClipThresholds,
    ReferenceThresholds,
    SelectConfig,
    SubjectThresholds,
    clip_reasons,
    decide,
    near_duplicates,
    reference_reasons,
    subject_reasons,
)

CLIP = ClipThresholds(
    off=False,
    min_motion=1,
    max_motion=50,
    min_brightness=40,
    max_brightness=230,
    min_sharpness=30,
    max_text_area=0.02,
    max_border=0.1,
    max_static=0.8,
    min_aesthetic=4.5,
    max_nudity=0.4,
    duplicate_distance=3,
)
SUBJECT = SubjectThresholds(
    off=False,
    min_detection_score=0.3,
    min_mask_score=0.5,
    min_area=0.05,
    max_area=0.9,
    min_short_side=96,
    max_overlap=0.5,
    max_border=0.3,
    max_fragments=4,
    max_straightness=0.5,
    min_stability=0.4,
    min_seen=2,
    min_brightness=25,
    min_sharpness=20,
    min_image_text=0.2,
    min_face=0.6,
    max_face_turn=60,
)
REFERENCE = ReferenceThresholds(
    off=False,
    min_identity={"face": 0.4, "image": 0.5},
    min_margin=0.1,
    min_difference={"cross_clip": 0.1},
    max_copy_risk={"cross_clip": 0.7},
    duplicate_bits=2,
    min_image_text=0.2,
    max_nudity=0.4,
    max_subject_change=2.0,
    min_background_change=0.5,
    max_halo=0.25,
    max_revealed=0.15,
    max_second_subject=0.5,
    min_brightness=25,
    min_sharpness=20,
)
CONFIG = SelectConfig(clip=CLIP, subject=SUBJECT, reference=REFERENCE)

Row = dict[str, Any]


def score(clip_id: str = "c", phashes: Sequence[int] = (0,), **changes: Any) -> Row:
    numbers = {"motion": 9.0, "brightness": 120, "sharpness": 300, "text_area": 0, "border": 0, "static": 0.1}
    judged = {"aesthetic": 5.5, "nudity": 0.1}
    return {"clip_id": clip_id, **numbers, **judged, "phashes": list(phashes), "fingerprint": "", **changes}


def subject(subject_id: str = "s", clip_id: str = "c", **changes: Any) -> Row:
    numbers = {
        "detection_score": 0.9,
        "mask_score": 0.9,
        "area": 0.3,
        "short_side": 300,
        "overlap": 0,
        "border": 0,
        "fragments": 1,
        "straightness": 0.1,
        "stability": 0.8,
        "seen": 8,
        "brightness": 120,
        "sharpness": 300,
        "image_text": 0.3,
        "face": 0.9,
        "face_turn": 10.0,
    }
    return {"subject_id": subject_id, "clip_id": clip_id, "category": "person", **numbers, **changes}


def reference(reference_id: str = "r", subject_id: str = "s", source: str | None = None, **changes: Any) -> Row:
    numbers = {
        "identity_similarity": 0.9,
        "identity_by": "image",
        "rival_similarity": 0.3,
        "context_difference": 0.5,
        "copy_risk": 0.1,
        "image_text": 0.3,
        "nudity": 0.1,
        "subject_change": 0.5,
        "background_change": 0.9,
        "halo": 0.1,
        "revealed": 0.1,
        "second_subject": 0.1,
        "brightness": 120,
        "sharpness": 300,
        "phash": 0,
    }
    ids = {"reference_id": reference_id, "subject_id": subject_id, "source_subject_id": source or subject_id}
    return {**ids, "scene_subject_id": None, "kind": "cross_clip", **numbers, **changes}


def clip(clip_id: str = "c", dropped: str | None = None) -> Row:
    return {"clip_id": clip_id, "dropped": dropped}


CLIP_CASES = [
    ("motion", "min_motion", "static"),
    ("static", "max_static", "static"),
    ("motion", "max_motion", "too_fast"),
    ("brightness", "min_brightness", "dark"),
    ("brightness", "max_brightness", "overexposed"),
    ("sharpness", "min_sharpness", "blurry"),
    ("text_area", "max_text_area", "text"),
    ("border", "max_border", "letterbox"),
    ("aesthetic", "min_aesthetic", "low_aesthetic"),
    ("nudity", "max_nudity", "nudity"),
]
SUBJECT_CASES = [
    ("detection_score", "min_detection_score", "uncertain"),
    ("mask_score", "min_mask_score", "poor_mask"),
    ("area", "min_area", "too_small"),
    ("short_side", "min_short_side", "too_small"),
    ("area", "max_area", "too_large"),
    ("overlap", "max_overlap", "overlapping"),
    ("border", "max_border", "cut_off"),
    ("fragments", "max_fragments", "fragmented"),
    ("straightness", "max_straightness", "boxy_mask"),
    ("stability", "min_stability", "unstable_mask"),
    ("seen", "min_seen", "seen_once"),
    ("brightness", "min_brightness", "dark"),
    ("sharpness", "min_sharpness", "blurry"),
    ("image_text", "min_image_text", "not_the_word"),
    ("face", "min_face", "no_face"),
    ("face_turn", "max_face_turn", "turned_away"),
]
REFERENCE_CASES = [
    ("image_text", "min_image_text", "not_the_word"),
    ("nudity", "max_nudity", "nudity"),
    ("subject_change", "max_subject_change", "subject_changed"),
    ("background_change", "min_background_change", "old_background"),
    ("halo", "max_halo", "halo"),
    ("revealed", "max_revealed", "patched"),
    ("second_subject", "max_second_subject", "second_subject"),
    ("brightness", "min_brightness", "dark"),
    ("sharpness", "min_sharpness", "blurry"),
]


def beyond(threshold: str, limit: float) -> float:
    step = 1 if isinstance(limit, int) else 1e-6
    return limit - step if threshold.startswith("min") else limit + step


@pytest.mark.parametrize(("number", "threshold", "reason"), CLIP_CASES)
def test_each_number_of_a_clip_has_its_reason(number: str, threshold: str, reason: str) -> None:
    limit = getattr(CLIP, threshold)
    assert clip_reasons(score(**{number: limit}), CLIP) == []
    assert clip_reasons(score(**{number: beyond(threshold, limit)}), CLIP) == [reason]


@pytest.mark.parametrize(("number", "threshold", "reason"), SUBJECT_CASES)
def test_each_number_of_a_subject_has_its_reason(number: str, threshold: str, reason: str) -> None:
    limit = getattr(SUBJECT, threshold)
    assert subject_reasons(subject(**{number: limit}), SUBJECT) == []
    assert subject_reasons(subject(**{number: beyond(threshold, limit)}), SUBJECT) == [reason]


@pytest.mark.parametrize(("number", "threshold", "reason"), REFERENCE_CASES)
def test_each_number_of_a_reference_has_its_reason(number: str, threshold: str, reason: str) -> None:
    limit = getattr(REFERENCE, threshold)
    assert reference_reasons(reference(**{number: limit}), REFERENCE) == []
    assert reference_reasons(reference(**{number: beyond(threshold, limit)}), REFERENCE) == [reason]


@pytest.mark.parametrize(("by", "limit"), [("face", 0.4), ("image", 0.5)])
def test_who_a_reference_shows_is_asked_by_what_tells_it(by: str, limit: float) -> None:
    told = {"identity_by": by, "rival_similarity": None}
    assert reference_reasons(reference(identity_similarity=limit, **told), REFERENCE) == []
    assert reference_reasons(reference(identity_similarity=limit - 1e-6, **told), REFERENCE) == ["other_identity"]
    # A bound on one embedding says nothing about the other.
    other = "image" if by == "face" else "face"
    only = REFERENCE.model_copy(update={"min_identity": {by: -1.0, other: 1.0}})
    assert reference_reasons(reference(identity_similarity=-1, **told), only) == []


def test_a_reference_must_be_more_like_its_target_than_like_any_other() -> None:
    def reasons(similarity: float, rival: float | None, **changes: float) -> list[str]:
        config = REFERENCE.model_copy(update=changes)
        return reference_reasons(reference(identity_similarity=similarity, rival_similarity=rival), config)

    assert reasons(0.75, 0.625, min_margin=0.125) == []
    assert reasons(0.75, 0.625 + 1e-6, min_margin=0.125) == ["like_another"]
    assert reasons(0.75, None, min_margin=2) == []
    # A margin below zero lets it be a little more like another one.
    assert reasons(0.625, 0.75, min_margin=-0.125) == []
    assert reasons(0.625, 0.75, min_margin=0) == ["like_another"]


def test_copies_are_a_matter_of_the_kind() -> None:
    copied = {"copy_risk": 0.7 + 1e-6}
    assert reference_reasons(reference(copy_risk=0.7), REFERENCE) == []
    assert reference_reasons(reference(**copied), REFERENCE) == ["copy"]
    assert reference_reasons(reference(copy_risk=None), REFERENCE) == []
    for kind in KIND_ORDER:
        expected = ["copy"] if kind in ("cross_clip", "other_frame", "moved") else []
        assert reference_reasons(reference(kind=kind, copy_risk=1.0), REFERENCE) == expected


def test_by_default_what_keeps_the_subject_s_pixels_may_be_found_in_its_frames() -> None:
    caught = {
        kind
        for kind in KIND_ORDER
        if "copy" in reference_reasons(reference(kind=kind, copy_risk=1.0), ReferenceThresholds())
    }
    assert caught == {"cross_clip", "other_frame", "moved"}


def test_near_copies_are_a_matter_of_the_kind() -> None:
    near = {"context_difference": 0.1 - 1e-6}
    assert reference_reasons(reference(kind="cross_clip", context_difference=0.1), REFERENCE) == []
    assert reference_reasons(reference(kind="cross_clip", **near), REFERENCE) == ["near_copy"]
    assert reference_reasons(reference(kind="original", **near), REFERENCE) == []
    assert reference_reasons(reference(kind="original", context_difference=0.0), ReferenceThresholds()) == []


@pytest.mark.parametrize(
    ("cases", "thresholds", "section"),
    [
        (CLIP_CASES, CLIP, ClipThresholds),
        (SUBJECT_CASES, SUBJECT, SubjectThresholds),
        (REFERENCE_CASES, REFERENCE, ReferenceThresholds),
    ],
    ids=["clip", "subject", "reference"],
)
def test_no_threshold_was_forgotten(cases: list[Any], thresholds: Any, section: Any) -> None:
    # These have tests of their own.
    tested = {threshold for _, threshold, _ in cases} | {"off", "duplicate_distance", "duplicate_bits", "min_margin"}
    tested |= {"min_identity", "min_difference", "max_copy_risk"}
    assert set(section.model_fields) <= tested
    assert thresholds.model_fields_set == set(section.model_fields)


def test_every_number_that_is_compared_is_a_column() -> None:
    assert {number for number, *_ in CLIP_CASES} <= set(Score.schema().names)
    assert {number for number, *_ in SUBJECT_CASES} <= set(Subject.schema().names)
    assert set(reference()) <= set(Reference.schema().names) | set(Proof.schema().names)


def test_what_no_model_scored_is_no_reason() -> None:
    assert clip_reasons(score(aesthetic=None, nudity=None), CLIP) == []
    assert subject_reasons(subject(image_text=None, face_turn=None), SUBJECT) == []
    unasked = dict.fromkeys(
        (
            "rival_similarity",
            "copy_risk",
            "image_text",
            "nudity",
            "subject_change",
            "background_change",
            "halo",
            "revealed",
            "second_subject",
        )
    )
    assert reference_reasons(reference(**unasked), REFERENCE) == []


def test_all_reasons_are_told() -> None:
    bad_clip = score(motion=0, brightness=0, sharpness=0, text_area=1, border=1, static=1)
    assert clip_reasons(bad_clip, CLIP) == ["static", "dark", "blurry", "text", "letterbox"]
    assert clip_reasons({**bad_clip, "motion": 99, "static": 0, "brightness": 255}, CLIP) == [
        "too_fast",
        "overexposed",
        "blurry",
        "text",
        "letterbox",
    ]
    worst = {number: 0 if threshold.startswith("min") else 99 for number, threshold, _ in SUBJECT_CASES}
    all_reasons = [reason for _, _, reason in SUBJECT_CASES]
    found = subject_reasons(subject(**{**worst, "area": 0}), SUBJECT)
    # No subject is too large and too small, and one that was not seen twice has no stability to speak of.
    assert found == [reason for reason in dict.fromkeys(all_reasons) if reason not in ("too_large", "unstable_mask")]
    worst = {number: -1 if threshold.startswith("min") else 99 for number, threshold, _ in REFERENCE_CASES}
    worst |= {"identity_similarity": -1, "rival_similarity": 1, "context_difference": 0, "copy_risk": 1}
    assert reference_reasons(reference(**worst), REFERENCE) == [
        "other_identity",
        "like_another",
        "near_copy",
        "copy",
        *(reason for _, _, reason in REFERENCE_CASES),
    ]


def test_what_was_not_measured_is_no_reason() -> None:
    assert subject_reasons(subject(image_text=None), SUBJECT) == []
    assert subject_reasons(subject(category="animal", face=0), SUBJECT) == []
    assert subject_reasons(subject(seen=1, stability=0), SUBJECT.model_copy(update={"min_seen": 1})) == []


def looser(data: st.DataObject, thresholds: Any) -> Any:
    """The thresholds with some of them moved by any amount to the generous side."""
    steps: dict[str, Any] = {}
    for name in sorted(type(thresholds).model_fields):
        limit = getattr(thresholds, name)
        way = -1 if name.startswith("min") else 1
        if name == "off":
            steps[name] = data.draw(st.integers(0, 5)) == 0
        elif isinstance(limit, dict):
            steps[name] = {key: value + way * data.draw(st.floats(0, 1)) for key, value in limit.items()}
        elif not name.startswith("duplicate") and data.draw(st.booleans()):
            steps[name] = limit + way * data.draw(st.integers(0, 4) if isinstance(limit, int) else st.floats(0, 60))
    return thresholds.model_copy(update=steps)


def drawn(data: st.DataObject, row: Row, cases: Sequence[tuple[str, str, str]], thresholds: Any) -> Row:
    """The row with its numbers on both sides of their thresholds."""
    for number, threshold, _ in cases:
        limit = getattr(thresholds, threshold)
        if data.draw(st.integers(0, 3)) == 0:
            shift = data.draw(st.integers(-2, 2) if isinstance(limit, int) else st.floats(-2, 2))
            row = {**row, number: limit + shift}
    return row


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_looser_thresholds_never_let_fewer_through(data: st.DataObject) -> None:
    numbers = range(data.draw(st.integers(1, 4)))
    far = [0x5555_5555_5555_5555, 0x0F0F_0F0F_0F0F_0F0F, 0x00FF_00FF_00FF_00FF, 0x0000_FFFF_0000_FFFF]
    scores = [drawn(data, score(f"c{n}", [far[n]]), CLIP_CASES, CLIP) for n in numbers]
    subjects = [drawn(data, subject(f"s{n}", f"c{n}"), SUBJECT_CASES, SUBJECT) for n in numbers]
    bounds = [("identity_similarity", 0.5), ("rival_similarity", 0.8), ("context_difference", 0.1), ("copy_risk", 0.7)]
    references = []
    for n in numbers:
        row = reference(f"r{n}", f"s{n}", f"s{data.draw(st.sampled_from(numbers))}")
        row |= {name: bound + data.draw(st.floats(-0.2, 0.2)) for name, bound in bounds if data.draw(st.booleans())}
        references.append(drawn(data, row, REFERENCE_CASES, REFERENCE))
    rows = [clip(f"c{n}") for n in numbers], scores, subjects, references
    loose = SelectConfig(clip=looser(data, CLIP), subject=looser(data, SUBJECT), reference=looser(data, REFERENCE))

    def kept(config: SelectConfig) -> set[str]:
        return {verdict.id for verdict in decide(*rows, config) if verdict.keep}

    assert kept(CONFIG) <= kept(loose)


def by_id(verdicts: list[Verdict]) -> dict[str, tuple[str, bool, list[str]]]:
    return {verdict.id: (verdict.kind, verdict.keep, verdict.reasons) for verdict in verdicts}


def test_a_verdict_on_everything_that_was_measured_sorted_by_id() -> None:
    found = decide([clip("c")], [score("c")], [subject("b")], [reference("a", "b")], CONFIG)
    assert found == [
        Verdict("a", "reference", True, []),
        Verdict("b", "subject", True, []),
        Verdict("c", "clip", True, []),
    ]


def test_a_clip_that_fails_takes_its_subjects_and_their_references_along() -> None:
    found = decide(
        [clip("c0"), clip("c1")],
        [score("c0", brightness=1, text_area=1), score("c1", [-1])],
        [subject("s0", "c0", area=0.01), subject("s1", "c1")],
        [reference("r0", "s0", sharpness=0), reference("r1", "s1", "s0"), reference("r2", "s1")],
        CONFIG,
    )
    assert by_id(found) == {
        "c0": ("clip", False, ["dark", "text"]),
        "c1": ("clip", True, []),
        "s0": ("subject", False, ["clip", "too_small"]),
        "s1": ("subject", True, []),
        "r0": ("reference", False, ["subject", "blurry"]),
        "r1": ("reference", False, ["subject"]),  # What it was cut from is as bad as the target itself would be.
        "r2": ("reference", True, []),
    }


@pytest.mark.parametrize("part", ["subject_id", "source_subject_id", "scene_subject_id"])
def test_a_reference_goes_with_every_subject_that_it_was_made_of(part: str) -> None:
    made_of = {"subject_id": "good", "source_subject_id": "good", "scene_subject_id": "good", part: "bad"}
    found = by_id(
        decide(
            [clip()],
            [score()],
            [subject("good"), subject("bad", area=0.01)],
            [{**reference("r"), **made_of}, reference("s", "good")],
            CONFIG,
        )
    )
    assert found["r"] == ("reference", False, ["subject"])
    assert found["s"] == ("reference", True, [])


def test_what_is_turned_off_lets_everything_of_its_kind_through() -> None:
    clips = [clip("c0"), clip("c1"), clip("c2", "too_short"), clip("c3")]
    scores = [score(f"c{n}", brightness=0 if n == 0 else 120, sharpness=300 + n) for n in range(4)]
    subjects = [subject("s0", "c0"), subject("s1", "c1", area=0.01), subject("s2", "c2"), subject("s3", "c3")]
    references = [
        *(reference(f"r{n}", f"s{n}", sharpness=0) for n in range(4)),
        reference("q3", "s3"),
        reference("p3", "s3"),
    ]

    def reasons(**off: bool) -> dict[str, list[str]]:
        config = SelectConfig(
            clip=CLIP.model_copy(update={"off": off.get("clip", False)}),
            subject=SUBJECT.model_copy(update={"off": off.get("subject", False)}),
            reference=REFERENCE.model_copy(update={"off": off.get("reference", False)}),
        )
        return {each.id: each.reasons for each in decide(clips, scores, subjects, references, config)}

    on = reasons()
    assert on["c0"] == ["dark"]
    assert on["c1"] == ["near_duplicate"]
    assert on["s1"] == ["clip", "too_small"]
    assert on["r3"] == ["blurry"]
    assert on["q3"] == ["duplicate"]

    clips_off = reasons(clip=True)
    # What was dropped when it was cut is no clip at all.
    assert [clips_off[f"c{n}"] for n in range(4)] == [[], [], ["too_short"], []]
    assert [clips_off[f"s{n}"] for n in range(4)] == [[], ["too_small"], ["clip"], []]

    subjects_off = reasons(subject=True)
    assert [subjects_off[f"s{n}"] for n in range(4)] == [["clip"], ["clip"], ["clip"], []]
    assert subjects_off["c0"] == ["dark"]

    references_off = reasons(reference=True)
    assert [references_off[f"r{n}"] for n in range(4)] == [["subject"], ["subject"], ["subject"], []]
    assert (references_off["q3"], references_off["p3"]) == ([], [])

    everything = reasons(clip=True, subject=True, reference=True)
    assert {name for name, why in everything.items() if why} == {"c2", "s2", "r2"}


def repeats(*rows: Row, bits: int = 2) -> dict[str, bool]:
    """Which references of subjects that pass are told to be a duplicate."""
    config = CONFIG.model_copy(update={"reference": REFERENCE.model_copy(update={"duplicate_bits": bits})})
    subjects = [subject(name) for name in sorted({row["subject_id"] for row in rows})]
    verdicts = decide([clip()], [score()], subjects, rows, config)
    return {each.id: each.reasons == ["duplicate"] for each in verdicts if each.kind == "reference"}


class TestDuplicates:
    @pytest.mark.parametrize("bits", [-1, 0, 1, 2, 63, 64])
    @pytest.mark.parametrize("apart", [0, 1, 2, 3, 63, 64])
    def test_are_references_of_one_subject_whose_hashes_differ_by_few_bits(self, bits: int, apart: int) -> None:
        other = signed(flipped(BASE, [(7 * place + 3) % 64 for place in range(apart)]))
        found = repeats(reference("a", phash=signed(BASE)), reference("b", phash=other), bits=bits)
        assert found == {"a": False, "b": apart <= bits}

    def test_the_sign_is_a_bit_like_any_other(self) -> None:
        assert repeats(reference("a", phash=-(2**63)), reference("b", phash=0), bits=1) == {"a": False, "b": True}
        assert repeats(reference("a", phash=-1), reference("b", phash=2**63 - 1), bits=1) == {"a": False, "b": True}
        assert repeats(reference("a", phash=-1), reference("b", phash=0), bits=63) == {"a": False, "b": False}

    def test_the_surest_kind_stays_and_then_the_first_id(self) -> None:
        kinds = {"z": "original", "y": "other_frame", "x": "cross_clip", "b": "swapped", "a": "swapped"}
        rows = [reference(name, kind=kind) for name, kind in kinds.items()]
        assert repeats(*rows) == {"z": False, "y": True, "x": True, "b": True, "a": True}
        assert repeats(*rows[1:]) == {"y": False, "x": True, "b": True, "a": True}
        assert repeats(*rows[3:]) == repeats(*rows[:2:-1]) == {"b": True, "a": False}

    def test_of_other_subjects_are_none(self) -> None:
        assert repeats(reference("a", "s"), reference("b", "t")) == {"a": False, "b": False}

    def test_what_fails_makes_no_other_a_duplicate(self) -> None:
        assert repeats(reference("a", sharpness=0), reference("b"), reference("c")) == {
            "a": False,
            "b": False,
            "c": True,
        }

    def test_one_between_two_others_does_not_join_them(self) -> None:
        rows = [
            reference(str(place), phash=signed(flipped(BASE, range(count)))) for place, count in enumerate((0, 2, 4))
        ]
        assert repeats(*rows) == {"0": False, "1": True, "2": False}


def test_a_subject_that_fails_leaves_its_clip_alone() -> None:
    found = by_id(decide([clip()], [score()], [subject(area=0.01)], [reference()], CONFIG))
    assert found["c"] == ("clip", True, [])
    assert found["s"] == ("subject", False, ["too_small"])
    assert found["r"] == ("reference", False, ["subject"])


def test_a_clip_dropped_at_cutting_keeps_that_reason() -> None:
    found = by_id(decide([clip("c", "too_short")], [score("c", brightness=0)], [subject()], [], CONFIG))
    assert found == {"c": ("clip", False, ["too_short"]), "s": ("subject", False, ["clip"])}


def test_what_has_no_scores_yet_or_no_clip_any_more_gets_no_verdict() -> None:
    assert decide([clip("c")], [], [subject("s", "c"), subject("t", "gone")], [], CONFIG) == []
    found = by_id(decide([clip("c")], [score("c")], [subject("t", "gone")], [reference("r", "t")], CONFIG))
    assert found == {"c": ("clip", True, []), "r": ("reference", False, ["subject"])}


def test_a_near_duplicate_goes_with_its_subjects() -> None:
    found = by_id(
        decide(
            [clip("c0"), clip("c1")],
            [score("c0", sharpness=100), score("c1", sharpness=200)],
            [subject("s0", "c0"), subject("s1", "c1")],
            [],
            CONFIG,
        )
    )
    assert found["c0"] == ("clip", False, ["near_duplicate"])
    assert found["c1"] == ("clip", True, [])
    assert found["s0"] == ("subject", False, ["clip"])


def test_a_clip_that_fails_makes_no_other_a_duplicate() -> None:
    clips = [clip("c0"), clip("c1"), clip("c2", "transition")]
    scores = [score("c0", sharpness=100), score("c1", sharpness=200, text_area=1), score("c2", sharpness=300)]
    found = by_id(decide(clips, scores, [], [], CONFIG))
    assert found["c0"] == ("clip", True, [])
    assert found["c1"] == ("clip", False, ["text"])


def signed(phash: int) -> int:
    return phash - (1 << 64) if phash >> 63 else phash


def flipped(phash: int, bits: Sequence[int]) -> int:
    for bit in bits:
        phash ^= 1 << bit
    return phash


BASE = 0xC3A5_0F96_1E87_D24B


@pytest.mark.parametrize("bits", range(12))
@pytest.mark.parametrize("distance", [0, 2.9, 3, 7, 7.99])
def test_hashes_up_to_the_distance_are_one_clip(bits: int, distance: float) -> None:
    spread = [(7 * place + 3) % 64 for place in range(bits)]
    scores = [score("a", [signed(BASE)], sharpness=2), score("b", [signed(flipped(BASE, spread))], sharpness=1)]
    assert near_duplicates(scores, distance) == ({"b"} if bits <= distance else set())


def test_the_distance_is_the_mean_over_the_keyframes() -> None:
    def pair(*bits: int) -> list[Row]:
        other = [signed(flipped(BASE, range(count))) for count in bits]
        return [score("a", [signed(BASE)] * len(bits), sharpness=2), score("b", other, sharpness=1)]

    assert near_duplicates(pair(0, 12, 0), 4) == {"b"}  # However unlike the middle ones are.
    assert near_duplicates(pair(0, 12, 0), 3.9) == set()
    assert near_duplicates(pair(9, 3, 0, 0), 3) == {"b"}
    assert near_duplicates(pair(8, 8, 8), 7.9) == set()


def test_the_sharpest_stays_and_then_the_first_id() -> None:
    same = [score(name, sharpness=sharpness) for name, sharpness in (("d", 5), ("b", 9), ("a", 5), ("c", 9))]
    assert near_duplicates(same, 0) == {"a", "c", "d"}


def test_a_clip_between_two_others_does_not_join_them() -> None:
    hashes = [signed(flipped(BASE, range(count))) for count in (0, 3, 6)]
    chain = [score(str(place), [phash], sharpness=9 - place) for place, phash in enumerate(hashes)]
    assert near_duplicates(chain, 3) == {"1"}
    chain[1]["sharpness"] = 99
    assert near_duplicates(chain, 3) == {"0", "2"}


def test_other_content_and_other_motion_are_kept() -> None:
    rng = random.Random(0)
    scene = rng.getrandbits(64)
    # One room: still in the first clip, somebody walks through it in the second, in the third the other way round.
    walk = [flipped(scene, rng.sample(range(64), count)) for count in (2, 9, 16, 18)]
    clips = [[scene] * 4, walk, walk[::-1], [rng.getrandbits(64) for _ in range(4)]]
    scores = [score(str(place), [signed(phash) for phash in phashes]) for place, phashes in enumerate(clips)]
    assert near_duplicates(scores, 7.9) == set()


def test_clips_with_unequal_numbers_of_hashes_are_not_compared() -> None:
    assert near_duplicates([score("a", [1]), score("b", [1, 1]), score("d", []), score("e", [])], 7) == set()
    assert near_duplicates([], 3) == set()


def brute_force(scores: Sequence[Row], distance: float) -> set[str]:
    kept: list[Row] = []
    for row in sorted(scores, key=lambda row: (-row["sharpness"], row["clip_id"])):
        if not any(
            np.mean([((a ^ b) % 2**64).bit_count() for a, b in zip(row["phashes"], other["phashes"], strict=True)])
            <= distance
            for other in kept
        ):
            kept.append(row)
    return {row["clip_id"] for row in scores} - {row["clip_id"] for row in kept}


@st.composite
def libraries(draw: st.DrawFn) -> list[Row]:
    """Clips, most of them planted a few bits away from another; the bits on one keyframe, or over all."""
    keyframes = draw(st.integers(1, 5))
    rng = random.Random(draw(st.integers(0, 2**32)))
    clips = [[rng.getrandbits(64) for _ in range(keyframes)]]
    for _ in range(draw(st.integers(0, 14))):
        if draw(st.integers(0, 4)) == 0:
            clips.append([rng.getrandbits(64) for _ in range(keyframes)])
            continue
        near = list(rng.choice(clips))
        one = draw(st.one_of(st.none(), st.integers(0, keyframes - 1)))
        for _ in range(draw(st.integers(0, 8 * keyframes + 2))):
            place = rng.randrange(keyframes) if one is None else one
            near[place] = flipped(near[place], [rng.randrange(64)])
        clips.append(near)
    return [
        score(f"{place:02}", [signed(phash) for phash in phashes], sharpness=draw(st.integers(0, 5)))
        for place, phashes in enumerate(clips)
    ]


@settings(deadline=None, max_examples=150)
@given(libraries(), st.one_of(st.integers(0, 7), st.floats(0, 8, exclude_max=True)), st.randoms(use_true_random=False))
def test_duplicates_are_those_that_comparing_all_with_all_finds(
    scores: list[Row], distance: float, rng: random.Random
) -> None:
    expected = brute_force(scores, distance)
    assert near_duplicates(scores, distance) == expected
    rng.shuffle(scores)
    assert near_duplicates(scores, distance) == expected


@pytest.mark.parametrize(
    "raw",
    [
        {"clip": {"duplicate_distance": 8}},
        {"subject": {"min_aera": 0.1}},
        {"reference": {"min_identity": {"smell": 2}}},
    ],
)
def test_thresholds_that_make_no_sense_are_refused(raw: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        SelectConfig.model_validate(raw)


@pytest.mark.parametrize("name", ["min_identity", "min_difference", "max_copy_risk"])
def test_naming_one_bound_leaves_the_others_as_they_are(name: str) -> None:
    defaults = getattr(ReferenceThresholds(), name)
    first, *others = defaults
    changed = getattr(ReferenceThresholds.model_validate({name: {first: 0.9}}), name)
    assert changed[first] == 0.9
    assert others
    assert {key: changed[key] for key in others} == {key: defaults[key] for key in others}
