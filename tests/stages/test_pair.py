from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from stages import pair
from stages.pair import (
    CrossClipConfig,
    ReferencesConfig,
    ReferenceSpec,
    cross_pairs,
    most_different,
    plan_references,
    same_individuals,
)

Row = dict[str, Any]
KINDS = {"original": "o", "other_frame": "f", "cross_clip": "c", "inpainted": "i"}


def at(degrees: float) -> list[float]:
    """A unit vector: the cosine of two of them is that of the angle between them."""
    return [float(np.cos(np.radians(degrees))), float(np.sin(np.radians(degrees)))]


def subject(
    name: str,
    degrees: float = 0.0,
    *,
    clip: str | None = None,
    category: str = "object",
    word: str = "cup",
    face: float | None = None,
    frames: Sequence[float] = (0, 10, 40),
    best: int = 0,
    fingerprint: str = "fp",
) -> Row:
    return {
        "subject_id": name,
        "clip_id": clip or f"clip-{name}",
        "category": category,
        "word": word,
        "image_embedding": at(degrees),
        "face_embedding": None if face is None else at(face),
        "face": 0.0 if face is None else 0.8,
        "frames": [{"image_embedding": at(frame)} for frame in frames],
        "best": best,
        "fingerprint": fingerprint,
    }


def person(name: str, face: float | None, **changes: Any) -> Row:
    return subject(name, category="person", **{"word": "woman", **changes}, face=face)


def videos_of(subjects: Sequence[Row], **named: str) -> dict[str, str]:
    """Each clip in a video of its own, but for those named."""
    return {row["clip_id"]: named.get(row["subject_id"], f"video-{row['subject_id']}") for row in subjects}


def rule(by: str = "image", low: float = 0.5, high: float = 0.95, scope: str = "anywhere") -> dict[str, Any]:
    return {"by": by, "min": low, "max": high, "scope": scope}


def rules(count: int = 2, **named: dict[str, Any]) -> CrossClipConfig:
    return CrossClipConfig.model_validate({"count": count, "rules": named or {"object": rule()}})


def pairs(subjects: Sequence[Row], config: CrossClipConfig, **videos: str) -> list[tuple[str, str]]:
    found = cross_pairs(subjects, videos_of(subjects, **videos), config)
    return [(target.subject_id, source.subject_id) for target, source in found]


def test_pairs_lie_within_the_bounds() -> None:
    # Cosines with a: b .98 (a copy), c .87, d .5, e .26 (another one).
    everyone = [subject("a", 0), subject("b", 11), subject("c", 30), subject("d", 60), subject("e", 75)]
    of_a = [source for target, source in pairs(everyone, rules(9)) if target == "a"]
    assert of_a == ["c", "d"]


def test_bounds_are_part_of_the_range() -> None:
    everyone = [subject("a", 0), subject("b", 60), subject("c", 0)]
    everyone[2]["image_embedding"] = [3.0, 0.0]  # Of any length.
    assert pairs(everyone[:2], rules(object=rule(low=0.5))) == [("a", "b"), ("b", "a")]
    assert pairs([everyone[0], everyone[2]], rules(object=rule(high=1.0))) == [("a", "c"), ("c", "a")]
    assert pairs([everyone[0], everyone[2]], rules(object=rule(high=0.99999))) == []


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.tuples(st.floats(0, 90), st.integers(0, 5), st.sampled_from(["cup", "kettle"])), max_size=9),
    st.integers(0, 3),
    st.sampled_from(["anywhere", "same_video", "other_video"]),
    st.randoms(use_true_random=False),
)
def test_pairs_keep_every_rule_in_any_order(
    drawn: list[tuple[float, int, str]], count: int, scope: str, rng: random.Random
) -> None:
    everyone = [
        subject(f"s{number}", degrees, clip=f"c{clip}", word=word) for number, (degrees, clip, word) in enumerate(drawn)
    ]
    videos = {f"c{clip}": f"v{clip // 2}" for clip in range(6)}
    config = rules(count, object=rule(scope=scope))
    found = list(cross_pairs(everyone, videos, config))

    rows = {row["subject_id"]: row for row in everyone}
    for target, source in ((rows[a.subject_id], rows[b.subject_id]) for a, b in found):
        assert target["clip_id"] != source["clip_id"]
        assert target["word"] == source["word"]
        assert 0.5 - 1e-5 <= np.dot(target["image_embedding"], source["image_embedding"]) <= 0.95 + 1e-5
        same = videos[target["clip_id"]] == videos[source["clip_id"]]
        assert same in {"anywhere": (True, False), "same_video": (True,), "other_video": (False,)}[scope]
    names = [(target.subject_id, source.subject_id) for target, source in found]
    assert len(set(names)) == len(names)
    assert all([target for target, _ in names].count(row["subject_id"]) <= count for row in everyone)

    rng.shuffle(everyone)
    again = [(a.subject_id, b.subject_id) for a, b in cross_pairs(everyone, videos, config)]
    assert again == names


def test_never_two_subjects_of_one_clip() -> None:
    assert pairs([subject("a", 0, clip="c"), subject("b", 30, clip="c")], rules()) == []


@pytest.mark.parametrize(
    ("scope", "expected"), [("anywhere", ["b", "c"]), ("same_video", ["b"]), ("other_video", ["c"])]
)
def test_the_scope_says_which_videos(scope: str, expected: list[str]) -> None:
    everyone = [subject("a", 0), subject("b", 30), subject("c", 40)]
    found = pairs(everyone, rules(object=rule(scope=scope)), a="film", b="film")
    assert sorted(source for target, source in found if target == "a") == expected


def test_other_videos_come_first_then_the_most_alike() -> None:
    everyone = [subject("a", 0), subject("b", 20), subject("c", 50), subject("d", 40), subject("e", 30)]
    found = pairs(everyone, rules(3), a="film", b="film", e="film")
    assert [source for target, source in found if target == "a"] == ["d", "c", "b"]


def test_the_count_is_kept() -> None:
    everyone = [subject(name, 20 * place) for place, name in enumerate("abcdefgh")]
    # Each has three others or more that lie 20, 40 or 60 degrees away.
    assert [len(pairs(everyone, rules(count))) for count in range(4)] == [0, 8, 16, 24]


def test_people_are_compared_by_face_whatever_they_are_called() -> None:
    everyone = [
        person("a", 0, word="man", degrees=0),
        person("b", 30, word="chef", degrees=90),  # The same face above other clothes.
        person("c", 80, word="man", degrees=20),  # The same clothes under another face.
        person("d", None, word="man", degrees=20),
    ]
    assert pairs(everyone, rules(person=rule("face"))) == [("a", "b"), ("b", "a"), ("b", "c"), ("c", "b")]


def test_an_unsure_face_proves_nothing() -> None:
    everyone = [person("a", 0), person("b", 30), {**person("c", 20), "face": 0.69}]
    config = rules(person={**rule("face"), "min_face": 0.7})
    assert pairs(everyone, config) == [("a", "b"), ("b", "a")]
    assert list(same_individuals(everyone, config)) == [("clip-a", "clip-b")]


def test_things_are_compared_by_looks_under_one_word() -> None:
    everyone = [subject("a", 0, word="cup"), subject("b", 30, word="kettle"), subject("c", 40, word="cup")]
    assert pairs(everyone, rules()) == [("a", "c"), ("c", "a")]


def test_categories_are_kept_apart_and_need_a_rule() -> None:
    everyone = [
        subject("a", 0, category="animal"),
        subject("b", 30, category="animal"),
        subject("c", 0, category="vehicle"),
        subject("d", 30, category="vehicle"),
        subject("e", 30, category="object"),
    ]
    assert pairs(everyone, rules(animal=rule(), vehicle=rule("none"))) == [("a", "b"), ("b", "a")]


def crowd(size: int, seed: int = 0) -> list[Row]:
    """People of whom each is seen about three times, some of them in one and the same picture."""
    rng = np.random.default_rng(seed)
    faces = rng.normal(size=(size // 3 + 1, 64))
    everyone = []
    for number in range(size):
        face = faces[number % len(faces)]
        if number % 2:
            face = face + rng.normal(scale=0.4, size=64)
        row = person(f"{number:03}", 0, clip=f"c{number}")
        everyone.append({**row, "face_embedding": face.tolist()})
    return everyone


@pytest.mark.parametrize("block", [1, 7, 64, 149])
def test_blocks_make_no_difference(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    everyone = crowd(150)
    config = rules(2, person=rule("face", 0.6, 1.0))
    whole, individuals = pairs(everyone, config), list(same_individuals(everyone, config))
    assert len(whole) > 150
    monkeypatch.setattr(pair, "SIMILARITY_BLOCK", block)
    assert pairs(everyone, config) == whole
    assert list(same_individuals(everyone, config)) == individuals


def test_ties_go_to_the_first_id_wherever_they_stand() -> None:
    # Floating point tells equal vectors apart by where in a matrix they stand; more so in large ones.
    rng = np.random.default_rng(5)
    vectors = rng.normal(size=(300, 97))
    same = rng.choice(299, 40, replace=False) + 1
    vectors[same] = vectors[0] + 0.5 * rng.normal(size=97)
    everyone = [
        {**person(f"{number:03}", 0, clip=f"c{number}"), "face_embedding": vector.tolist()}
        for number, vector in enumerate(vectors)
    ]
    found = pairs(everyone, rules(9, person=rule("face", 0.6, 0.99)))
    assert [source for target, source in found if target == "000"] == [f"{number:03}" for number in sorted(same)[:9]]


def test_same_individuals_ignore_the_upper_bound_and_the_scope() -> None:
    everyone = [
        subject("a", 0, clip="3"),
        subject("b", 0, clip="1"),
        subject("c", 50, clip="2"),
        subject("d", 0, clip="1"),
    ]
    everyone.append(subject("e", 120, clip="0"))
    found = list(same_individuals(everyone, rules(0, object=rule(high=0.9, scope="other_video"))))
    assert sorted(set(found)) == [("1", "2"), ("1", "3"), ("2", "3")]
    assert all(first < second for first, second in found)


def test_same_individuals_need_a_rule() -> None:
    everyone = [subject("a"), subject("b")]
    assert list(same_individuals(everyone, CrossClipConfig())) == []
    assert list(same_individuals(everyone, rules(object=rule("none")))) == []


def test_the_most_different_frame_comes_first() -> None:
    assert most_different(subject("a", frames=(10, 60, 0, 20), best=2)) == [1, 3, 0]
    assert most_different(subject("a", frames=(0, 30, 30), best=0)) == [1, 2]
    assert most_different(subject("a", frames=(0,), best=0)) == []


def plan(subjects: Sequence[Row], kinds: dict[str, str] = KINDS, **raw: Any) -> list[ReferenceSpec]:
    raw = {"cross_clip": {"count": 2, "rules": {"object": rule()}}, **raw}
    return plan_references(subjects, videos_of(subjects), ReferencesConfig.model_validate(raw), kinds)


def told(specs: Sequence[ReferenceSpec], kind: str) -> list[tuple[str, str, int]]:
    return sorted((spec.target_id, spec.source_id, spec.frame) for spec in specs if spec.kind == kind)


def test_the_plan_holds_every_kind() -> None:
    specs = plan([subject("a", 0, best=1), subject("b", 30)], inpainted={"count": 2})
    assert told(specs, "original") == [("a", "a", 1), ("b", "b", 0)]
    assert told(specs, "other_frame") == [("a", "a", 0), ("a", "a", 2), ("b", "b", 1), ("b", "b", 2)]
    assert told(specs, "inpainted") == [("a", "a", 1), ("a", "a", 1), ("b", "b", 0), ("b", "b", 0)]
    assert told(specs, "cross_clip") == [("a", "b", 0), ("b", "a", 1)]
    assert len({spec.reference_id for spec in specs}) == len(specs) == 12
    painted = [spec.seed for spec in specs if spec.kind == "inpainted" and spec.target_id == "a"]
    assert len(set(painted)) == 2


def test_kinds_can_be_turned_off_but_the_original() -> None:
    off = {"count": 0}
    specs = plan([subject("a", 0), subject("b", 30)], other_frame=off, inpainted=off, cross_clip=off)
    assert [spec.kind for spec in specs] == ["original", "original"]
    one = plan([subject("a")], other_frame={"count": 1}, inpainted=off)
    assert told(one, "other_frame") == [("a", "a", 2)]


def test_the_plan_is_the_same_for_any_order_of_rows() -> None:
    everyone = [subject(name, 10 * place) for place, name in enumerate("abcdef")]
    specs = plan(everyone)
    assert specs == plan(everyone)
    assert specs == plan(everyone[::-1])
    assert [spec.reference_id for spec in specs] == sorted(spec.reference_id for spec in specs)


def test_embeddings_may_be_arrays_and_rows_may_come_one_by_one() -> None:
    def arrays(row: Row) -> Row:
        named = {name: row[name] for name in ("image_embedding", "face_embedding")}
        frames = [{"image_embedding": np.array(frame["image_embedding"])} for frame in row["frames"]]
        return {**row, **{name: value and np.array(value) for name, value in named.items()}, "frames": frames}

    everyone = [subject("a", 0), subject("b", 30), subject("c", 50, face=0), person("d", 0), person("e", 40)]
    raw = {"cross_clip": {"count": 2, "rules": {"object": rule(), "person": rule("face")}}}
    config, videos = ReferencesConfig.model_validate(raw), videos_of(everyone)
    specs = plan_references(everyone, videos, config, KINDS)
    assert plan_references(map(arrays, everyone), videos, config, KINDS) == specs
    assert list(same_individuals(map(arrays, everyone), config.cross_clip)) == list(
        same_individuals(everyone, config.cross_clip)
    )


def test_frames_are_not_read_where_no_other_frame_is_wanted() -> None:
    everyone = [{name: value for name, value in row.items() if name != "frames"} for row in PAIR]
    assert {spec.kind for spec in plan(everyone, other_frame={"count": 0})} == {"original", "inpainted", "cross_clip"}


def test_people_with_a_face_are_known_by_it() -> None:
    everyone = [person("a", 0), person("b", None), subject("c", face=0)]
    by = {spec.target_id: spec.identity_by for spec in plan(everyone) if spec.kind == "original"}
    assert by == {"a": "face", "b": "image", "c": "image"}


def changed(before: Sequence[ReferenceSpec], after: Sequence[ReferenceSpec]) -> set[tuple[str, str]]:
    """``(kind, target)`` of what has to be made anew."""
    known = {spec.reference_id for spec in before}
    return {(spec.kind, spec.target_id) for spec in after if spec.reference_id not in known}


PAIR = [subject("a", 0), subject("b", 30)]


def test_ids_do_not_depend_on_who_else_is_there() -> None:
    alone = plan([PAIR[0]])
    assert {spec.reference_id for spec in alone} <= {spec.reference_id for spec in plan(PAIR)}


@pytest.mark.parametrize("kind", KINDS)
def test_how_a_kind_is_made_changes_the_ids_of_that_kind(kind: str) -> None:
    after = plan(PAIR, {**KINDS, kind: "another"})
    assert changed(plan(PAIR), after) == {(kind, "a"), (kind, "b")}


def test_a_subject_made_anew_changes_all_that_it_is_part_of() -> None:
    after = plan([{**PAIR[0], "fingerprint": "another"}, PAIR[1]])
    assert changed(plan(PAIR), after) == {(kind, "a") for kind in KINDS} | {("cross_clip", "b")}


def test_another_best_frame_changes_what_shows_it() -> None:
    everyone = [subject("a", 0, frames=(0, 10, 20), best=0), subject("b", 30)]
    after = plan([{**everyone[0], "best": 1}, everyone[1]])
    assert changed(plan(everyone), after) == {
        ("original", "a"),
        ("other_frame", "a"),
        ("inpainted", "a"),
        ("cross_clip", "b"),
    }


def test_the_seed_changes_only_what_is_made_with_chance() -> None:
    assert changed(plan(PAIR), plan(PAIR, seed=1)) == {("inpainted", "a"), ("inpainted", "b")}


def test_more_pictures_leave_those_that_are_there() -> None:
    few = plan(PAIR, other_frame={"count": 1}, inpainted={"count": 1})
    many = plan(PAIR, other_frame={"count": 2}, inpainted={"count": 3})
    assert {spec.reference_id for spec in few} < {spec.reference_id for spec in many}
    assert changed(few, many) == {(kind, name) for kind in ("other_frame", "inpainted") for name in "ab"}


def test_fingerprints_tell_rows_apart_as_ids_do() -> None:
    by_kind = {(spec.kind, spec.target_id): spec.fingerprint for spec in plan(PAIR)}
    assert by_kind["original", "a"] != by_kind["inpainted", "a"]
    assert by_kind["original", "a"] == by_kind["original", "b"]


@pytest.mark.parametrize(
    "raw",
    [
        {"rules": {"robot": rule()}},
        {"rules": {"object": rule("smell")}},
        {"rules": {"object": {**rule(), "scope": "nowhere"}}},
        {"rules": {"object": rule(low=-2)}},
        {"count": -1},
    ],
)
def test_rules_that_make_no_sense_are_refused(raw: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        CrossClipConfig.model_validate(raw)
