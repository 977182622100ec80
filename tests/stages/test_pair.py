from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from subject_rows import Row, at, person, rule, subject, videos_of

from stages import pair
from stages.difference import Look, difference
from stages.pair import CrossClipConfig, Crowd, Individual, Search, Vectors, cross_pairs, rivals, same_subjects
from stages.search import Exact, exact


def rules(**named: dict[str, Any]) -> CrossClipConfig:
    return CrossClipConfig.model_validate({"rules": named or {"object": rule()}})


def crowd(
    subjects: Iterable[Row], config: CrossClipConfig, videos: Mapping[str, str] | None = None, *, apart: bool = False
) -> Crowd:
    known = {row["clip_id"]: "" for row in subjects} if videos is None else videos
    group = Crowd(config.rules, known, apart=apart)
    for row in subjects:
        group.add(row, Individual.of(row))
    return group


def pairs(
    subjects: Sequence[Row], config: CrossClipConfig, count: int = 2, search: Search = exact, **named: str
) -> list[tuple[str, str]]:
    """Ids of targets and sources; each clip is in a video of its own, but for those of the subjects named."""
    videos = videos_of(subjects, named)
    found = cross_pairs(crowd(subjects, config, videos, apart=True), videos, count, search)
    return [(target.subject_id, source.subject_id) for target, source in found]


def sources(target: str, *arguments: Any, **named: Any) -> list[str]:
    return [source for each, source in pairs(*arguments, **named) if each == target]


class TestRules:
    @pytest.mark.parametrize(
        "raw",
        [
            {"rules": {"robot": rule()}},
            {"rules": {"object": rule("smell")}},
            {"rules": {"object": rule(scope="nowhere")}},
            {"rules": {"object": rule(low=-2)}},
            {"rules": {"object": rule(min_difference=1.5)}},
            {"rules": {"object": rule(min_seconds=-1)}},
            {"count": -1},
        ],
    )
    def test_those_that_make_no_sense_are_refused(self, raw: dict[str, Any]) -> None:
        with pytest.raises(ValidationError):
            CrossClipConfig.model_validate(raw)

    @pytest.mark.parametrize("category", ["person", "animal", "plant"])
    @pytest.mark.parametrize("scope", ["anywhere", "other_video"])
    def test_living_things_of_other_videos_are_not_known_by_their_looks_unless_somebody_says_so(
        self, category: str, scope: str
    ) -> None:
        with pytest.raises(ValidationError) as refused:
            rules(**{category: rule(scope=scope)})
        message = str(refused.value)
        assert f"rules.{category}" in message
        # What can be done about it.
        assert all(way in message for way in ("scope: same_video", "by: face", "trust_looks: true"))
        assert rules(**{category: rule(scope=scope, trust_looks=True)}).rules

    @pytest.mark.parametrize("category", ["person", "animal", "plant"])
    def test_living_things_may_be_known_by_faces_or_within_a_video_or_not_at_all(self, category: str) -> None:
        for allowed in (rule("face"), rule("none"), rule(scope="same_video")):
            assert rules(**{category: allowed}).rules

    @pytest.mark.parametrize("category", ["vehicle", "object"])
    def test_things_may_be_known_by_their_looks(self, category: str) -> None:
        assert rules(**{category: rule(scope="other_video")}).rules


class TestCrossPairs:
    def test_lie_within_the_bounds(self) -> None:
        # Cosines with a: b .98 (a copy), c .87, d .5, e .26 (another one).
        everyone = [subject("a", 0), subject("b", 11), subject("c", 30), subject("d", 60), subject("e", 75)]
        assert sources("a", everyone, rules(), 9) == ["c", "d"]

    def test_bounds_are_part_of_the_range(self) -> None:
        everyone = [subject("a", 0), subject("b", 60), subject("c", 0)]
        everyone[2]["image_embedding"] = [3.0, 0.0]  # Of any length.
        assert pairs(everyone[:2], rules(object=rule(low=0.5))) == [("a", "b"), ("b", "a")]
        assert pairs([everyone[0], everyone[2]], rules(object=rule(high=1.0))) == [("a", "c"), ("c", "a")]
        assert pairs([everyone[0], everyone[2]], rules(object=rule(high=0.99999))) == []

    def test_copies_leave_room_for_others_however_many_they_are(self) -> None:
        copies = [subject(f"copy-{number:03}", 0.01 * number) for number in range(2 * pair.CANDIDATES)]
        everyone = [*copies, subject("other", 30)]
        assert sources("copy-000", everyone, rules()) == ["other"]

    @pytest.mark.parametrize("scope", ["anywhere", "other_video"])
    def test_a_long_film_hides_nobody_of_other_videos(self, scope: str) -> None:
        film = [subject(f"film-{number:03}", 20 + 0.01 * number) for number in range(2 * pair.CANDIDATES)]
        others = [subject("other-1", 40), subject("other-2", 30, bits=3), subject("too far", 70)]
        everyone = [subject("a", 0), *film, *others]
        named = {row["subject_id"]: "film" for row in [everyone[0], *film]}
        found = sources("a", everyone, rules(object=rule(scope=scope)), 3, **named)
        assert found[:2] == ["other-2", "other-1"]
        assert found[2:] == (["film-000"] if scope == "anywhere" else [])

    def test_never_two_subjects_of_one_clip(self) -> None:
        assert pairs([subject("a", 0, clip="c"), subject("b", 30, clip="c")], rules()) == []

    def test_of_a_clip_s_subjects_only_the_most_alike_can_be_the_target(self) -> None:
        # b and c are seen beside each other: if b is a, c is not, however well it would pass.
        everyone = [subject("a", 0), subject("b", 30, clip="both", bits=1), subject("c", 40, clip="both", bits=9)]
        assert sources("a", everyone, rules()) == ["b"]
        assert sources("a", [everyone[0], everyone[2]], rules()) == ["c"]

    @pytest.mark.parametrize(
        ("scope", "expected"), [("anywhere", ["c", "b"]), ("same_video", ["b"]), ("other_video", ["c"])]
    )
    def test_the_scope_says_which_videos(self, scope: str, expected: list[str]) -> None:
        everyone = [subject("a", 0), subject("b", 30), subject("c", 40)]
        assert sources("a", everyone, rules(object=rule(scope=scope)), a="film", b="film") == expected

    def test_other_videos_come_first_and_then_what_differs_most(self) -> None:
        everyone = [
            subject("a", 0, bits=0),
            subject("b", 20, bits=9),
            subject("c", 50, bits=3),
            subject("d", 40, bits=5),
            subject("e", 30, bits=4),
        ]
        found = sources("a", everyone, rules(), 9, a="film", b="film", e="film")
        assert found == ["d", "c", "b", "e"]

    def test_of_those_that_differ_alike_the_first_id_comes_first(self) -> None:
        everyone = [subject("a", 0), *(subject(name, 30, bits=3) for name in "fdbec")]
        assert sources("a", everyone, rules(), 3) == ["b", "c", "d"]

    def test_differences_are_those_of_both_looks(self) -> None:
        everyone = [
            subject("a", 0),
            subject("size", 30, area=0.2),  # An octave: a fourth of the mean.
            subject("pose", 30, shape=-1),  # Nothing in common with no shape at all.
            subject("hash", 30, bits=12),
            subject("same", 30),
        ]
        assert sources("a", everyone, rules(), 9) == ["pose", "size", "hash", "same"]
        looks = {row["subject_id"]: Look.of(row) for row in everyone}
        told = {name: difference(looks["a"], other, same_video=False).overall for name, other in looks.items()}
        assert told == {"a": 0, "size": 0.25, "pose": 0.25, "hash": 0.125, "same": 0}

    @pytest.mark.parametrize(("bits", "expected"), [(11, []), (12, ["b"])])
    def test_pictures_that_differ_too_little_make_no_pair(self, bits: int, expected: list[str]) -> None:
        everyone = [subject("a", 0), subject("b", 30, bits=bits)]
        assert sources("a", everyone, rules(object=rule(min_difference=0.125))) == expected

    @pytest.mark.parametrize(("time", "expected"), [(6.9, []), (7.0, ["b"])])
    def test_moments_of_one_video_that_are_too_near_make_no_pair(self, time: float, expected: list[str]) -> None:
        everyone = [subject("a", 0, time=2.0), subject("b", 30, time=time)]
        config = rules(object=rule(min_seconds=5))
        assert sources("a", everyone, config, a="film", b="film") == expected
        # In another video, a time says nothing.
        assert sources("a", everyone, config) == ["b"]

    def test_what_is_too_alike_takes_no_place(self) -> None:
        everyone = [
            subject("a", 0),
            *(subject(name, 30, bits=bits) for name, bits in zip("bcd", (1, 2, 9), strict=True)),
        ]
        assert sources("a", everyone, rules(object=rule(min_difference=9 / 96)), 1) == ["d"]

    def test_the_count_is_kept(self) -> None:
        everyone = [subject(name, 20 * place) for place, name in enumerate("abcdefgh")]
        # Each has three others or more that lie 20, 40 or 60 degrees away.
        assert [len(pairs(everyone, rules(), count)) for count in range(4)] == [0, 8, 16, 24]

    def test_people_are_compared_by_face_whatever_they_are_called(self) -> None:
        everyone = [
            person("a", 0, word="man", degrees=0),
            person("b", 30, word="chef", degrees=90),  # The same face above other clothes.
            person("c", 80, word="man", degrees=20),  # The same clothes under another face.
            person("d", None, word="man", degrees=20),
        ]
        assert pairs(everyone, rules(person=rule("face"))) == [("a", "b"), ("b", "a"), ("b", "c"), ("c", "b")]

    def test_an_unsure_face_proves_nothing(self) -> None:
        everyone = [person("a", 0), person("b", 30), {**person("c", 20), "face": 0.69}]
        config = rules(person=rule("face", min_face=0.7))
        assert pairs(everyone, config) == [("a", "b"), ("b", "a")]
        assert list(same_subjects(crowd(everyone, config))) == [("a", "b")]
        assert dict(rivals(crowd(everyone, config), 9)) == {"a": [], "b": []}

    def test_what_is_known_by_its_looks_needs_no_face(self) -> None:
        everyone = [subject("a", 0), subject("b", 30)]
        assert pairs(everyone, rules(object=rule(min_face=0.7))) == [("a", "b"), ("b", "a")]

    def test_things_are_compared_by_looks_under_one_word(self) -> None:
        everyone = [subject("a", 0, word="cup"), subject("b", 30, word="kettle"), subject("c", 40, word="cup")]
        assert pairs(everyone, rules()) == [("a", "c"), ("c", "a")]

    def test_categories_are_kept_apart_and_need_a_rule(self) -> None:
        everyone = [
            subject("a", 0, category="animal"),
            subject("b", 30, category="animal"),
            subject("c", 0, category="vehicle"),
            subject("d", 30, category="vehicle"),
            subject("e", 30, category="object"),
        ]
        config = rules(animal=rule(trust_looks=True), vehicle=rule("none"))
        assert pairs(everyone, config) == [("a", "b"), ("b", "a")]

    def test_what_may_only_be_paired_within_a_video_is_searched_within_it(self) -> None:
        searched: list[int] = []

        @contextmanager
        def counting(vectors: Vectors) -> Any:
            searched.append(len(vectors))
            yield Exact(vectors)

        everyone = [subject(name, 10 * place) for place, name in enumerate("abcdef")]
        films = {"a": "1", "b": "2", "c": "1", "d": "2", "e": "1", "f": "3"}
        config = rules(object=rule(scope="same_video", high=1.0))
        found = pairs(everyone, config, 9, counting, **films)
        assert sorted(searched) == [1, 2, 3]
        assert {tuple(sorted(each)) for each in found} == {("a", "c"), ("a", "e"), ("c", "e"), ("b", "d")}
        # Who is who is asked across all.
        searched.clear()
        list(same_subjects(crowd(everyone, config, videos_of(everyone, films)), counting))
        assert searched == [6]

    def test_any_search_will_do(self) -> None:
        @contextmanager
        def forgetful(vectors: Vectors) -> Any:
            class Half:
                """Finds no odd numbers."""

                def within(self, rows: Any, low: float, high: float, most: int) -> Any:
                    found = Exact(vectors).within(rows, low, high, most)
                    return [(near[near % 2 == 0], cosines[near % 2 == 0]) for near, cosines in found]

            yield Half()

        everyone = [subject(name, 10 * place) for place, name in enumerate("abcd")]
        config = rules(object=rule(high=1.0))
        assert {source for _, source in pairs(everyone, config, 9, forgetful)} == {"a", "c"}

    @settings(deadline=None, max_examples=60)
    @given(
        st.lists(
            st.tuples(
                st.floats(0, 90),
                st.integers(0, 5),
                st.sampled_from(["cup", "kettle"]),
                st.integers(0, 20),
                st.floats(0, 9),
            ),
            max_size=9,
        ),
        st.integers(0, 3),
        st.sampled_from(["anywhere", "same_video", "other_video"]),
        st.randoms(use_true_random=False),
    )
    def test_keep_every_rule_in_any_order(
        self, drawn: list[tuple[float, int, str, int, float]], count: int, scope: str, rng: random.Random
    ) -> None:
        everyone = [
            subject(f"s{number}", degrees, clip=f"c{clip}", word=word, bits=bits, time=time)
            for number, (degrees, clip, word, bits, time) in enumerate(drawn)
        ]
        videos = {f"c{clip}": f"v{clip // 2}" for clip in range(6)}
        config = rules(object=rule(scope=scope, min_difference=2 / 96, min_seconds=3))

        def found() -> list[tuple[str, str]]:
            made = cross_pairs(crowd(everyone, config, videos, apart=True), videos, count)
            return [(target.subject_id, source.subject_id) for target, source in made]

        def likeness(target: Row, source: Row) -> float:
            return round(float(np.dot(target["image_embedding"], source["image_embedding"])), 5)

        def alike(target: Row, source: Row) -> bool:
            return target["word"] == source["word"] and 0.5 <= likeness(target, source) <= 0.95

        def fits(target: Row, source: Row) -> bool:
            same = videos[target["clip_id"]] == videos[source["clip_id"]]
            beside = [row for row in everyone if row["clip_id"] == source["clip_id"] and alike(target, row)]
            return (
                target["clip_id"] != source["clip_id"]
                and source in beside
                and source == min(beside, key=lambda row: (-likeness(target, row), row["subject_id"]))
                and (same or scope != "same_video")
                and (not same or scope != "other_video")
                and abs((target["phash"] ^ source["phash"]).bit_count()) >= 2
                and (not same or abs(target["time"] - source["time"]) >= 3)
            )

        names = found()
        rows = {row["subject_id"]: row for row in everyone}
        taken = defaultdict(list)
        for target, source in names:
            taken[target].append(source)
        for name, row in rows.items():
            possible = [other for other in rows if fits(row, rows[other])]
            assert set(taken[name]) <= set(possible)
            # As many as there are, none twice.
            assert len(set(taken[name])) == len(taken[name]) == min(count, len(possible))
        rng.shuffle(everyone)
        assert found() == names


def people(size: int, seed: int = 0) -> list[Row]:
    """People of whom each is seen about three times, some of them in one and the same picture."""
    rng = np.random.default_rng(seed)
    faces = rng.normal(size=(size // 3 + 1, 64))
    everyone = []
    for number in range(size):
        face = faces[number % len(faces)]
        if number % 2:
            face = face + rng.normal(scale=0.4, size=64)
        row = person(f"{number:03}", 0, clip=f"c{number}", bits=number % 20)
        everyone.append({**row, "face_embedding": face.tolist()})
    return everyone


@pytest.mark.parametrize("block", [1, 7, 64, 149])
def test_how_many_are_searched_at_once_makes_no_difference(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    everyone = people(150)
    config = rules(person=rule("face", 0.6, 1.0))
    whole, individuals = pairs(everyone, config), list(same_subjects(crowd(everyone, config)))
    others = list(rivals(crowd(everyone, config), 3))
    assert len(whole) > 150
    monkeypatch.setattr(pair, "SEARCHED_AT_ONCE", block)
    monkeypatch.setattr(pair, "HIDDEN_AT_ONCE", block)
    assert pairs(everyone, config) == whole
    assert list(same_subjects(crowd(everyone, config))) == individuals
    assert list(rivals(crowd(everyone, config), 3)) == others


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
    found = sources("000", everyone, rules(person=rule("face", 0.6, 0.99)), 9)
    assert found == [f"{number:03}" for number in sorted(same)[:9]]


@pytest.mark.parametrize("candidates", [1, 3, 5])
@pytest.mark.parametrize("seed", range(4))
def test_however_few_are_looked_at_those_of_other_videos_come_first(
    monkeypatch: pytest.MonkeyPatch, candidates: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    everyone = [subject(f"s{number:02}", rng.uniform(0, 60), bits=int(rng.integers(20))) for number in range(40)]
    films = {row["subject_id"]: f"film-{int(rng.integers(3))}" for row in everyone}
    config = rules(object=rule(low=0.9, high=0.9999))
    whole = pairs(everyone, config, 1, **films)
    monkeypatch.setattr(pair, "CANDIDATES", candidates)
    monkeypatch.setattr(pair, "HIDDEN_AT_ONCE", 3)
    few = pairs(everyone, config, 1, **films)
    assert [(target, films[target] == films[source]) for target, source in few] == [
        (target, films[target] == films[source]) for target, source in whole
    ]


class TestRivals:
    def of(self, target: str, subjects: Sequence[Row], count: int = 9, **named: dict[str, Any]) -> list[str]:
        found = dict(rivals(crowd(subjects, rules(**named)), count))
        return [other.subject_id for other in found[target]]

    def test_are_the_most_alike_of_those_that_are_another_one(self) -> None:
        everyone = [
            subject(name, degrees) for name, degrees in zip("abcdef", (0, 59.9, 60.1, 170, 90, 75), strict=True)
        ]
        assert self.of("a", everyone) == ["c", "f", "e", "d"]
        assert self.of("a", everyone, 2) == ["c", "f"]
        assert self.of("a", everyone, 0) == []

    def test_what_is_the_same_by_the_bound_is_none(self) -> None:
        everyone = [subject("a", 0), subject("b", 60)]
        assert self.of("a", everyone, object=rule(low=0.5)) == []
        assert self.of("a", everyone, object=rule(low=0.50002)) == ["b"]

    def test_neither_copies_nor_the_same_individual_take_a_place(self) -> None:
        same = [subject(f"s{number:03}", 0.1 * number) for number in range(200)]
        assert self.of("s000", [*same, subject("z", 80)], 1) == ["z"]

    def test_clips_videos_and_differences_do_not_matter(self) -> None:
        everyone = [subject("a", 0, clip="c"), subject("b", 80, clip="c")]
        strict = rule(scope="same_video", min_difference=0.5, min_seconds=9)
        assert self.of("a", everyone, object=strict) == ["b"]

    def test_are_told_with_what_they_were_made_from_and_in_any_order(self) -> None:
        everyone = [subject(name, 40 * place, fingerprint=f"fp-{name}") for place, name in enumerate("abcde")]
        found = list(rivals(crowd(everyone, rules()), 2))
        assert found[0] == ("a", [pair.Rival("c", "fp-c"), pair.Rival("d", "fp-d")])
        assert list(rivals(crowd(everyone[::-1], rules()), 2)) == found

    def test_what_no_rule_knows_has_none(self) -> None:
        everyone = [subject("a"), subject("b", 90, category="animal"), person("c", None)]
        config = rules(object=rule(), person=rule("face"))
        assert dict(rivals(crowd(everyone, config), 9)) == {"a": []}


def components(names: Iterable[str], links: Iterable[tuple[str, str]]) -> set[frozenset[str]]:
    """What hangs together, by growing each group until it grows no more."""
    near = defaultdict(set)
    for a, b in links:
        near[a].add(b)
        near[b].add(a)
    left, groups = set(names), set()
    while left:
        group, edge = set(), {left.pop()}
        while edge:
            group |= edge
            edge = set().union(*(near[name] for name in edge)) - group
        groups.add(frozenset(group))
        left -= group
    return groups


def by_brute_force(subjects: Sequence[Row], low: float) -> set[frozenset[str]]:
    vectors = np.array([row["image_embedding"] for row in subjects])
    near = np.round(vectors @ vectors.T, 5) >= low
    names = [row["subject_id"] for row in subjects]
    return components(names, [(names[a], names[b]) for a, b in np.argwhere(near).tolist()])


def together(subjects: Sequence[Row], low: float = 0.9) -> set[frozenset[str]]:
    config = rules(object=rule(low=low, high=1.0))
    return components((row["subject_id"] for row in subjects), same_subjects(crowd(subjects, config)))


@pytest.fixture
def large_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    """Groups of more than ten are large, and of more than eight near ones not all are looked at."""
    for name, value in {"ALL_LINKS": 10, "CANDIDATES": 8, "SPEAKERS": 4}.items():
        monkeypatch.setattr(pair, name, value)


class TestSameSubjects:
    def test_ignore_the_upper_bound_the_scope_and_what_differs(self) -> None:
        everyone = [
            subject("a", 0, clip="3"),
            subject("b", 0, clip="1"),
            subject("c", 50, clip="2"),
            subject("d", 0, clip="1"),
            subject("e", 120, clip="0"),
        ]
        strict = rule(high=0.9, scope="other_video", min_difference=1, min_seconds=9)
        found = list(same_subjects(crowd(everyone, rules(object=strict))))
        assert sorted(found) == [("a", "b"), ("a", "c"), ("a", "d"), ("b", "c"), ("b", "d"), ("c", "d")]

    def test_need_a_rule(self) -> None:
        everyone = [subject("a"), subject("b")]
        assert list(same_subjects(crowd(everyone, CrossClipConfig()))) == []
        assert list(same_subjects(crowd(everyone, rules(object=rule("none"))))) == []

    @settings(deadline=None, max_examples=60)
    @given(st.lists(st.floats(0, 360), max_size=16), st.floats(0.5, 1), st.randoms(use_true_random=False))
    def test_hang_together_as_comparing_all_with_all_finds(
        self, degrees: list[float], low: float, rng: random.Random
    ) -> None:
        everyone = [subject(f"s{number:02}", at) for number, at in enumerate(degrees)]
        expected = by_brute_force(everyone, round(low, 5))
        assert together(everyone, round(low, 5)) == expected
        rng.shuffle(everyone)
        assert together(everyone, round(low, 5)) == expected

    @pytest.mark.usefixtures("large_groups")
    def test_two_crowds_of_one_individual_are_linked_though_each_hides_the_other(self) -> None:
        # Everyone's nearest are of its own crowd, by far more than are looked at.
        crowds = {"a": 0.0, "b": 20.0}
        everyone = [
            subject(f"{name}{number:02}", middle + 0.01 * number)
            for name, middle in crowds.items()
            for number in range(30)
        ]
        nearest = pair._pairs(np.array([row["image_embedding"] for row in everyone], np.float32), 0.9, 8, exact)
        assert all((a < 30) == (b < 30) for a, b in nearest)
        assert len(together(everyone)) == 1
        # And those that are another one stay that.
        others = [subject(f"c{number:02}", 50 + 0.01 * number) for number in range(30)]
        assert len(together([*everyone, *others])) == 2

    @pytest.mark.usefixtures("large_groups")
    def test_a_chain_of_crowds_is_followed_to_its_end(self) -> None:
        everyone = [
            subject(f"{place}-{number:02}", 20.0 * place + 0.01 * number) for place in range(9) for number in range(12)
        ]
        assert len(together(everyone)) == 1

    @pytest.mark.usefixtures("large_groups")
    def test_crowds_that_hide_each_other_are_linked_once_they_are_one(self) -> None:
        # Those who speak for a crowd see the two beside it first, and only then the three that are further away.
        everyone = [
            subject(f"{place:02}-{number:02}", place + 0.01 * number)
            for place in (0, 1, 2, 20, 21, 22)
            for number in range(12)
        ]
        assert len(together(everyone)) == 1

    @pytest.mark.usefixtures("large_groups")
    @pytest.mark.parametrize("seed", range(12))
    def test_large_groups_hang_together_as_small_ones_do(self, seed: int) -> None:
        # Crowds of all sizes, some of them beside another one of the same individual, all of it within the bound.
        rng = np.random.default_rng(seed)
        everyone = []
        for individual in range(8):
            middle = 40 * rng.integers(9) + rng.choice([0, 4])
            for number in range(int(rng.integers(1, 40))):
                everyone.append(subject(f"{individual}-{number:02}", middle + rng.uniform(-4, 4)))
        expected = by_brute_force(everyone, 0.97)
        assert together(everyone, 0.97) == expected
        order = rng.permutation(len(everyone))
        assert together([everyone[place] for place in order], 0.97) == expected

    @pytest.mark.usefixtures("large_groups")
    @settings(deadline=None, max_examples=40)
    @given(st.lists(st.floats(0, 360), min_size=11, max_size=60), st.floats(0.9, 1))
    def test_large_groups_never_join_what_is_apart(self, degrees: list[float], low: float) -> None:
        everyone = [subject(f"s{number:02}", at) for number, at in enumerate(degrees)]
        expected, found = by_brute_force(everyone, round(low, 5)), together(everyone, round(low, 5))
        assert all(any(group <= whole for whole in expected) for group in found)
        # What has no more near ones than are looked at is all there.
        assert {group for group in expected if len(group) <= 9} <= found


def test_a_crowd_is_used_up() -> None:
    everyone = crowd([subject("a", 0), subject("b", 30)], rules())
    assert len(list(same_subjects(everyone))) == 1
    assert list(same_subjects(everyone)) == []


def test_embeddings_may_be_arrays_and_rows_may_come_one_by_one() -> None:
    everyone = [subject("a", 0), subject("b", 30), subject("c", 50, face=0), person("d", 0), person("e", 40)]
    config = rules(object=rule(), person=rule("face"))
    arrays = [
        {**row, **{name: row[name] and np.array(row[name]) for name in ("image_embedding", "face_embedding")}}
        for row in everyone
    ]
    assert pairs(arrays, config) == pairs(everyone, config)
    assert list(same_subjects(crowd(arrays, config))) == list(same_subjects(crowd(everyone, config)))


def test_vectors_of_a_group_have_unit_length_whatever_comes_in() -> None:
    everyone = [subject("a"), {**subject("b"), "image_embedding": [5.0, 5.0]}]
    ((_, members, vectors, looks),) = crowd(everyone, rules()).groups()
    assert [member.subject_id for member in members] == ["a", "b"]
    assert vectors == pytest.approx(np.array([at(0), at(45)]), abs=1e-6)
    assert len(looks) == 2
