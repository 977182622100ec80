from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from subject_rows import Row, frame, person, rule, subject, videos_of

from stages.pair import Vectors
from stages.plan import NO_SEED, Recipe, ReferencesConfig, ReferenceSpec, plan_references
from stages.records import KIND_ORDER
from stages.search import Exact

KINDS = {kind: Recipe(f"by {kind}", kind) for kind in KIND_ORDER}
ALL = {kind: {"count": 2} for kind in ("inpainted", "augmented", "moved", "swapped")}
OFF = {kind: {"count": 0} for kind in ("other_frame", "cross_clip", *ALL)}
PAIR = [subject("a", 0), subject("b", 30, bits=3)]


def configured(**raw: Any) -> ReferencesConfig:
    return ReferencesConfig.model_validate({"cross_clip": {"count": 2, "rules": {"object": rule()}}, **raw})


def plan(subjects: Iterable[Row], recipes: Mapping[str, Recipe] = KINDS, **raw: Any) -> list[ReferenceSpec]:
    rows = list(subjects)
    return plan_references(rows, videos_of(rows), configured(**raw), recipes)


def told(specs: Sequence[ReferenceSpec], kind: str) -> list[tuple[str, str, int]]:
    return sorted((spec.target_id, spec.source_id, spec.frame) for spec in specs if spec.kind == kind)


def changed(before: Sequence[ReferenceSpec], after: Sequence[ReferenceSpec]) -> set[tuple[str, str]]:
    """``(kind, target)`` of what has to be made anew."""
    known = {spec.reference_id for spec in before}
    return {(spec.kind, spec.target_id) for spec in after if spec.reference_id not in known}


def test_the_plan_holds_every_kind() -> None:
    specs = plan([subject("a", 0, best=1), subject("b", 30)], **ALL)
    assert told(specs, "original") == [("a", "a", 1), ("b", "b", 0)]
    assert told(specs, "other_frame") == [("a", "a", 0), ("a", "a", 2), ("b", "b", 1), ("b", "b", 2)]
    assert told(specs, "cross_clip") == [("a", "b", 0), ("b", "a", 1)]
    for kind in ("inpainted", "augmented", "moved"):
        assert told(specs, kind) == [("a", "a", 1), ("a", "a", 1), ("b", "b", 0), ("b", "b", 0)]
    # There is only one other subject in whose place each may be put.
    assert told(specs, "swapped") == [("a", "a", 1), ("b", "b", 0)]
    assert {spec.kind for spec in specs} == set(KINDS)
    assert len({spec.reference_id for spec in specs}) == len(specs)


def test_only_swapped_pictures_have_a_scene_and_it_is_another_subject_s() -> None:
    specs = plan(PAIR, **ALL)
    scenes = {(spec.target_id, spec.scene_id) for spec in specs if spec.kind == "swapped"}
    assert scenes == {("a", "b"), ("b", "a")}
    assert {spec.scene_id for spec in specs if spec.kind != "swapped"} == {None}


def test_a_spec_names_every_subject_that_it_needs() -> None:
    needed = {(spec.kind, spec.target_id): set(spec.subjects) for spec in plan(PAIR, **ALL)}
    assert needed["original", "a"] == needed["moved", "a"] == {"a"}
    assert needed["cross_clip", "a"] == needed["swapped", "a"] == {"a", "b"}


def test_pictures_made_with_chance_are_numbered_and_seeded_from_the_config_s_seed_on() -> None:
    specs = plan(PAIR, seed=7, **ALL)
    for kind in ("inpainted", "augmented", "moved"):
        drawn = sorted((spec.number, spec.seed) for spec in specs if spec.kind == kind and spec.target_id == "a")
        assert drawn == [(0, 7), (1, 8)]
    assert {(spec.number, spec.seed) for spec in specs if spec.kind == "swapped"} == {(0, 7)}
    three = plan([*PAIR, subject("c", 90)], seed=7, **ALL)
    assert sorted((each.number, each.seed) for each in three if each.kind == "swapped") == 3 * [(0, 7)] + 3 * [(1, 8)]
    cut = {(spec.number, spec.seed) for spec in specs if spec.kind in ("original", "other_frame", "cross_clip")}
    assert cut == {(0, NO_SEED)}


def test_kinds_can_be_turned_off_but_the_original() -> None:
    assert [spec.kind for spec in plan(PAIR, **OFF)] == ["original", "original"]
    one = plan([PAIR[0]], **{**OFF, "other_frame": {"count": 1}})
    assert told(one, "other_frame") == [("a", "a", 2)]


def test_the_plan_is_the_same_for_any_order_of_rows() -> None:
    everyone = [subject(name, 10 * place, bits=place) for place, name in enumerate("abcdef")]
    specs = plan(everyone, **ALL)
    assert specs == plan(everyone, **ALL)
    assert specs == plan(everyone[::-1], **ALL)
    assert [spec.reference_id for spec in specs] == sorted(spec.reference_id for spec in specs)


def test_embeddings_may_be_arrays_and_rows_may_come_one_by_one() -> None:
    def arrays(row: Row) -> Row:
        named = {name: row[name] for name in ("image_embedding", "face_embedding")}
        frames = [{**frame, "image_embedding": np.array(frame["image_embedding"])} for frame in row["frames"]]
        return {**row, **{name: value and np.array(value) for name, value in named.items()}, "frames": frames}

    everyone = [subject("a", 0), subject("b", 30), subject("c", 50, face=0), person("d", 0), person("e", 40)]
    config = configured(cross_clip={"count": 2, "rules": {"object": rule(), "person": rule("face")}})
    videos = videos_of(everyone)
    specs = plan_references(everyone, videos, config, KINDS)
    assert plan_references(map(arrays, everyone), videos, config, KINDS) == specs


def test_frames_are_not_read_where_no_other_frame_is_wanted() -> None:
    everyone = [{name: value for name, value in row.items() if name != "frames"} for row in PAIR]
    assert {spec.kind for spec in plan(everyone, other_frame={"count": 0})} == {"original", "inpainted", "cross_clip"}


def test_nothing_is_searched_where_no_pairs_are_wanted() -> None:
    searched: list[int] = []

    @contextmanager
    def counting(vectors: Vectors) -> Any:
        searched.append(len(vectors))
        yield Exact(vectors)

    config = configured(cross_clip={"count": 0, "rules": {"object": rule()}})
    plan_references(PAIR, videos_of(PAIR), config, KINDS, counting)
    assert searched == []
    plan_references(PAIR, videos_of(PAIR), configured(), KINDS, counting)
    assert searched == [2]


def test_ids_do_not_depend_on_who_else_is_there() -> None:
    alone = plan([PAIR[0]], **ALL)
    assert {spec.reference_id for spec in alone} <= {spec.reference_id for spec in plan(PAIR, **ALL)}


@pytest.mark.parametrize("kind", KINDS)
def test_how_a_kind_is_made_changes_the_ids_of_that_kind(kind: str) -> None:
    after = plan(PAIR, {**KINDS, kind: Recipe(f"by {kind}", "another")}, **ALL)
    assert changed(plan(PAIR, **ALL), after) == {(kind, "a"), (kind, "b")}


def test_another_description_of_what_is_shown_changes_nothing() -> None:
    assert plan([{**row, "fingerprint": "another"} for row in PAIR], **ALL) == plan(PAIR, **ALL)


def test_the_method_is_that_of_the_kind() -> None:
    assert {(spec.kind, spec.method) for spec in plan(PAIR, **ALL)} == {(kind, f"by {kind}") for kind in KINDS}


def test_a_subject_cut_out_anew_changes_all_that_it_is_part_of() -> None:
    after = plan([{**PAIR[0], "content": "another"}, PAIR[1]], **ALL)
    # As the source of a pair and as the scene of a swap, too.
    assert changed(plan(PAIR, **ALL), after) == {(kind, "a") for kind in KINDS} | {
        ("cross_clip", "b"),
        ("swapped", "b"),
    }


def test_another_best_frame_changes_what_shows_it() -> None:
    everyone = [subject("a", 0, frames=[frame(bits=bits) for bits in (0, 5, 9)], best=0), subject("b", 30)]
    after = plan([{**everyone[0], "best": 1}, everyone[1]], **ALL)
    assert changed(plan(everyone, **ALL), after) == {
        ("original", "a"),
        ("other_frame", "a"),
        ("inpainted", "a"),
        ("augmented", "a"),
        ("moved", "a"),
        ("swapped", "a"),
        ("cross_clip", "b"),
    }


def test_the_seed_changes_only_what_is_made_with_chance() -> None:
    after = changed(plan(PAIR, **ALL), plan(PAIR, seed=2, **ALL))
    assert after == {(kind, name) for kind in ALL for name in "ab"}


def test_more_pictures_leave_those_that_are_there() -> None:
    everyone = [subject(name, 30 * place) for place, name in enumerate("abcdefgh")]
    few = plan(everyone, **{kind: {"count": 1} for kind in OFF if kind not in ("cross_clip", "swapped")})
    many = plan(everyone, **{kind: {"count": 3} for kind in OFF if kind not in ("cross_clip", "swapped")})
    assert {spec.reference_id for spec in few} < {spec.reference_id for spec in many}
    assert {kind for kind, _ in changed(few, many)} == {"other_frame", "inpainted", "augmented", "moved"}


def test_fingerprints_tell_rows_apart_as_ids_do() -> None:
    by_kind = {(spec.kind, spec.target_id): spec.fingerprint for spec in plan(PAIR, **ALL)}
    assert by_kind["original", "a"] != by_kind["inpainted", "a"]
    assert by_kind["original", "a"] == by_kind["original", "b"]
