from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from stages.mixture import Known, Mixture, MixtureConfig, mix, similar_others
from stages.sample import KIND_ORDER, SamplePlan
from stages.shares import fitted, taken

CLASSES = ("person", "animal", "vehicle")


class Library:
    """Samples to mix, and what is known of them."""

    def __init__(self) -> None:
        self.samples: list[SamplePlan] = []
        self.known = Known({}, {}, {})

    def add(self, *subjects: dict[str, int], name: str = "person", who: str | None = None, video: str = "") -> str:
        """A sample whose subjects have so many references of these kinds; its largest is of the class ``name``."""
        key = f"k{len(self.samples):04}"
        ids = tuple(f"{key}-{place}" for place in range(len(subjects)))
        references = []
        for subject, kinds in zip(ids, subjects, strict=True):
            self.known.class_of[subject] = name  # type: ignore[index]
            self.known.identity_of[subject] = who or subject  # type: ignore[index]
            of_kind = {f"{subject}-{kind}-{number}": kind for kind in kinds for number in range(kinds[kind])}
            self.known.kind_of.update(of_kind)  # type: ignore[attr-defined]
            references.append(tuple(of_kind))
        self.samples.append(SamplePlan(key, video or f"v-{key}", ids, tuple(references)))
        return key

    def mixed(self, val: Sequence[str] = (), **raw: Any) -> Mixture:
        return mix(self.samples, set(val), self.known, MixtureConfig.model_validate(raw))

    def kinds(self, samples: Sequence[SamplePlan]) -> Counter[str]:
        return Counter(self.known.kind_of[name] for sample in samples for names in sample.references for name in names)

    def classes(self, samples: Sequence[SamplePlan]) -> Counter[str]:
        return Counter(self.known.class_of[sample.subjects[0]] for sample in samples)


@st.composite
def libraries(draw: st.DrawFn) -> Library:
    library = Library()
    for _ in range(draw(st.integers(0, 14))):
        subjects = draw(
            st.lists(
                st.dictionaries(st.sampled_from(KIND_ORDER[:4]), st.integers(1, 3), min_size=1), min_size=1, max_size=3
            )
        )
        library.add(
            *subjects,
            name=draw(st.sampled_from(CLASSES)),
            who=draw(st.sampled_from([None, "ann", "bob"])),
            video=draw(st.sampled_from(["", "film", "sequel"])),
        )
    return library


def _weights(names: Sequence[Any]) -> st.SearchStrategy[dict[Any, float]]:
    weights = st.dictionaries(st.sampled_from(names), st.sampled_from([0, 0.5, 1, 3]))
    return weights.filter(lambda asked: not asked or any(asked.values()))


limits = st.none() | st.integers(1, 4)
mixtures = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 3),
        "kinds": _weights(KIND_ORDER[:4]),
        "references_per_subject": limits,
        "classes": _weights(CLASSES),
        "subjects": _weights([1, 2, 3]),
        "min_keep": st.sampled_from([0, 0.3, 0.5, 0.9, 1]),
        "max_per_identity": limits,
        "max_per_video": limits,
    }
)


class TestWhateverIsAsked:
    @settings(deadline=None, max_examples=60)
    @given(libraries(), mixtures, st.randoms(use_true_random=False), st.data())
    def test_every_limit_is_kept_in_any_order(self, library, raw, rng: random.Random, data) -> None:
        val = set(data.draw(st.lists(st.sampled_from([sample.key for sample in library.samples] or [""]))))
        found = library.mixed(val, **raw)
        config = MixtureConfig.model_validate(raw)
        by_key = {sample.key: sample for sample in library.samples}
        named = [max(config.subjects, default=9)]
        shown: Counter[str] = Counter()
        for sample in found.samples:
            whole = by_key[sample.key]
            references = dict(zip(whole.subjects, whole.references, strict=True))
            shown.update({library.known.identity_of[subject] for subject in sample.subjects})
            assert sample.subjects
            for subject, names in zip(sample.subjects, sample.references, strict=True):
                of_weight = [n for n in references[subject] if config.kinds.get(library.known.kind_of[n], 0)]
                there = of_weight if config.kinds else list(references[subject])
                assert list(names) == [name for name in there if name in names], "in their order"
                assert len(names) == min(len(there), config.references_per_subject or 99)
            if sample.key not in val:
                assert not config.classes or config.classes.get(library.known.class_of[sample.subjects[0]], 0) > 0
                assert not config.subjects or config.subjects.get(min(len(sample.subjects), *named), 0) > 0
        assert max(shown.values(), default=0) <= (config.max_per_identity or 99)
        cut = Counter(sample.source_id for sample in found.samples)
        assert max(cut.values(), default=0) <= (config.max_per_video or 99)
        assert [sample.key for sample in found.samples] == sorted(sample.key for sample in found.samples)

        dropped = len(library.samples) - len(found.samples)
        assert found.dropped_samples.total() == dropped
        lost = library.kinds(library.samples).total() - library.kinds(found.samples).total()
        assert found.dropped_references.total() == lost

        shuffled = Library()
        shuffled.samples, shuffled.known = rng.sample(library.samples, len(library.samples)), library.known
        assert shuffled.mixed(val, **raw) == found

    @settings(deadline=None, max_examples=40)
    @given(libraries(), mixtures)
    def test_a_mixture_without_shares_of_samples_is_not_thinned_again(self, library, raw) -> None:
        raw = {**raw, "classes": {}, "subjects": {}}
        once = library.mixed(**raw).samples
        again = mix(once, set(), library.known, MixtureConfig.model_validate(raw))
        assert again.samples == once
        assert not again.dropped_samples
        assert not again.dropped_references

    @settings(deadline=None, max_examples=40)
    @given(libraries(), _weights(CLASSES), _weights([1, 2, 3]), st.floats(0, 1))
    def test_the_least_share_is_kept(self, library, classes, numbers, least) -> None:
        found = library.mixed(classes=classes, subjects=numbers, min_keep=least).samples
        asked_for = [
            sample
            for sample in library.samples
            if (not classes or classes.get(library.known.class_of[sample.subjects[0]], 0))
            and (not numbers or numbers.get(min(len(sample.subjects), max(numbers)), 0))
        ]
        assert least * len(asked_for) - 1e-6 <= len(found) <= len(asked_for)
        if least == 1:
            assert found == asked_for

    @settings(deadline=None, max_examples=60)
    @given(libraries(), mixtures)
    def test_validation_is_what_it_is_whatever_shares_training_shall_have(self, library, raw) -> None:
        val = {sample.key for sample in library.samples[::3]}
        of_val = [
            [sample for sample in library.mixed(val, **asked).samples if sample.key in val]
            for asked in (raw, {**raw, "classes": {}, "subjects": {}})
        ]
        assert of_val[0] == of_val[1]

    def test_the_defaults_take_everything(self) -> None:
        library = Library()
        for number in range(20):
            library.add({"original": 1, "moved": 1 + number % 3}, {"original": 2}, who="ann", video="film")
        found = library.mixed([library.samples[3].key])
        assert found.samples == library.samples
        assert not found.dropped_samples + found.dropped_references
        assert found.largest_identity.before == found.largest_identity.got == 1.0

    def test_nothing_is_mixed_to_nothing(self) -> None:
        found = Library().mixed(classes={"person": 1}, kinds={"moved": 1}, references_per_subject=1)
        assert found.samples == []
        assert found.report()["classes"] == {"person": {"asked": 1.0, "before": 0.0, "got": 0.0}}


class TestKinds:
    @settings(deadline=None, max_examples=60)
    @given(
        st.dictionaries(st.sampled_from(KIND_ORDER), st.floats(0.05, 1), min_size=1, max_size=3),
        st.integers(1, 60),
        st.integers(0, 5),
    )
    def test_shares_are_met_to_one_reference_where_everything_is_there(self, weights, count, seed) -> None:
        library = Library()
        for _ in range(count):
            library.add(dict.fromkeys(KIND_ORDER, 1))
        found = library.mixed(kinds=weights, references_per_subject=1, seed=seed)
        got = library.kinds(found.samples)
        for kind, weight in weights.items():
            assert abs(got[kind] - count * weight / sum(weights.values())) < 1 + 1e-9
        assert got.total() == count

    @pytest.mark.parametrize("seed", range(6))
    def test_those_who_have_a_choice_make_up_for_those_who_have_none(self, seed: int) -> None:
        """Also for those who come after them."""
        library = Library()
        for number in range(38):
            library.add({"original": 1} if number < 18 else {"original": 1, "moved": 1})
        found = library.mixed(kinds={"original": 1, "moved": 1}, references_per_subject=1, seed=seed)
        assert library.kinds(found.samples) == {"original": 19, "moved": 19}

    def test_what_is_scarce_is_taken_wherever_it_is_and_the_others_keep_their_proportion(self) -> None:
        library = Library()
        for number in range(200):
            library.add({"original": 1, "inpainted": 1} | ({"cross_clip": 1} if number % 10 == 0 else {}))
        asked = {"original": 0.3, "inpainted": 0.1, "cross_clip": 0.6}
        found = library.mixed(kinds=asked, references_per_subject=1)
        assert library.kinds(found.samples) == {"original": 135, "inpainted": 45, "cross_clip": 20}
        assert found.kinds["cross_clip"].asked == pytest.approx(0.6)
        assert found.kinds["cross_clip"].got == pytest.approx(0.1)

    def test_without_a_limit_the_weights_only_say_what_is_taken(self) -> None:
        library = Library()
        library.add({"original": 1, "moved": 3, "inpainted": 2})
        found = library.mixed(kinds={"original": 1, "moved": 5})
        assert library.kinds(found.samples) == {"original": 1, "moved": 3}
        assert found.dropped_references == {"kind share": 2}

    def test_a_limit_alone_takes_from_all_kinds_evenly(self) -> None:
        library = Library()
        for _ in range(40):
            library.add({"original": 1, "other_frame": 4})
        assert library.kinds(library.mixed(references_per_subject=1).samples) == {"original": 20, "other_frame": 20}

    def test_subjects_and_samples_without_a_kind_that_is_asked_for_go(self) -> None:
        library = Library()
        library.add({"original": 1}, {"original": 1, "moved": 1})
        library.add({"original": 1})
        found = library.mixed(kinds={"moved": 1, "original": 0})
        (sample,) = found.samples
        assert sample.subjects == ("k0000-1",)
        assert sample.references == (("k0000-1-moved-0",),)
        assert found.dropped_samples == {"kind share": 1}
        assert found.dropped_references == {"kind share": 3}

    @settings(deadline=None, max_examples=60)
    @given(libraries(), st.integers(1, 2), _weights(KIND_ORDER[:4]))
    def test_distinct_kinds_repeat_only_where_nothing_else_is_left(self, library, most, weights) -> None:
        found = library.mixed(distinct_kinds=True, references_per_subject=most, kinds=weights)
        whole = {
            subject: names
            for sample in library.samples
            for subject, names in zip(sample.subjects, sample.references, strict=True)
        }
        for sample in found.samples:
            taken = [{library.known.kind_of[name] for name in names} for names in sample.references]
            free = [
                {library.known.kind_of[name] for name in whole[subject] if name not in names}
                for subject, names in zip(sample.subjects, sample.references, strict=True)
            ]
            allowed = {kind for kind in KIND_ORDER if not weights or weights.get(kind, 0)}
            for place, kinds in enumerate(taken):
                elsewhere = set().union(*(other for number, other in enumerate(taken) if number != place))
                # Of two that share a kind, the one that came last had no other.
                if len(sample.subjects) == 2 and most == 1 and kinds & elsewhere:
                    assert any(not (left & allowed) - kinds for left in free)

    def test_two_subjects_with_all_kinds_never_share_one(self) -> None:
        library = Library()
        for _ in range(30):
            library.add(*[dict.fromkeys(KIND_ORDER[:4], 1)] * 2)
        for sample in library.mixed(distinct_kinds=True, references_per_subject=2).samples:
            assert set(library.kinds([sample]).values()) == {1}

    def test_who_has_the_least_choice_chooses_first(self) -> None:
        library = Library()
        for _ in range(30):
            library.add({"original": 1, "moved": 1}, {"original": 1})
        found = library.mixed(distinct_kinds=True, references_per_subject=1, kinds={"original": 9, "moved": 1})
        assert library.kinds(found.samples) == {"original": 30, "moved": 30}

    def test_another_seed_takes_others(self) -> None:
        library = Library()
        for _ in range(20):
            library.add({"other_frame": 6})
        one, other = (library.mixed(references_per_subject=2, seed=seed).samples for seed in (0, 1))
        assert one != other


class TestCaps:
    def test_a_frequent_face_is_shown_no_more_than_it_may(self) -> None:
        library = Library()
        for number in range(60):
            library.add({"original": 1}, who="star" if number < 40 else None)
        found = library.mixed(max_per_identity=10)
        assert len(found.samples) == 30
        assert found.dropped_samples == {"max_per_identity": 30}
        assert found.largest_identity.before == pytest.approx(40 / 60)
        assert found.largest_identity.got == pytest.approx(10 / 30)

    def test_any_subject_of_a_sample_counts(self) -> None:
        library = Library()
        for _ in range(4):
            library.add({"original": 1}, {"original": 1})
        for sample in library.samples:
            library.known.identity_of[sample.subjects[1]] = "star"
        assert len(library.mixed(max_per_identity=1).samples) == 1

    def test_a_video_gives_no_more_samples_than_it_may(self) -> None:
        library = Library()
        for number in range(30):
            library.add({"original": 1}, video="film" if number % 3 else "")
        found = library.mixed(max_per_video=5)
        assert Counter(sample.source_id for sample in found.samples)["film"] == 5
        assert found.dropped_samples == {"max_per_video": 15}

    def test_what_is_dropped_for_one_cap_takes_no_place_of_the_other(self) -> None:
        library = Library()
        for _ in range(6):
            library.add({"original": 1}, who="star", video="film")
        for _ in range(2):
            library.add({"original": 1}, video="film")
        assert len(library.mixed(max_per_video=3, max_per_identity=1).samples) == 3


class TestShares:
    @settings(deadline=None, max_examples=60)
    @given(
        st.lists(st.integers(1, 60), min_size=1, max_size=3),
        st.lists(st.floats(0.05, 1), min_size=3, max_size=3),
        st.integers(0, 5),
    )
    def test_classes_are_met_to_one_sample(self, counts, weights, seed) -> None:
        library = Library()
        for name, count in zip(CLASSES, counts, strict=False):
            for _ in range(count):
                library.add({"original": 1}, name=name)
        asked = dict(zip(CLASSES[: len(counts)], weights, strict=False))
        found = library.mixed(classes=asked, min_keep=0, seed=seed)
        got = library.classes(found.samples)
        for name, weight in asked.items():
            assert abs(got[name] - got.total() * weight / sum(asked.values())) < 1 + 1e-6
        # And no more is dropped than that needs.
        whole = min(count / asked[name] for name, count in zip(asked, counts, strict=True)) * sum(asked.values())
        assert got.total() > whole - 1 - 1e-6

    def test_classes_and_numbers_are_met_together(self) -> None:
        library = Library()
        for name, single, pair in (("person", 300, 60), ("animal", 100, 40)):
            for number in range(single + pair):
                library.add(*[{"original": 1}] * (1 if number < single else 2 + number % 2), name=name)
        found = library.mixed(classes={"person": 1, "animal": 1}, subjects={1: 0.6, 2: 0.4}, min_keep=0)
        got = Counter((library.known.class_of[s.subjects[0]], min(len(s.subjects), 2)) for s in found.samples)
        total = got.total()
        assert total >= 150
        assert sum(got["person", number] for number in (1, 2)) == pytest.approx(total / 2, abs=2)
        assert sum(got[name, 1] for name in CLASSES) == pytest.approx(0.6 * total, abs=2)
        assert found.subjects["2+"].asked == pytest.approx(0.4)
        assert found.subjects["2+"].got == pytest.approx(0.4, abs=0.02)

    def test_what_is_scarce_is_kept_whole_and_the_rest_is_balanced(self) -> None:
        library = Library()
        for name, count in (("person", 890), ("animal", 100), ("vehicle", 10)):
            for _ in range(count):
                library.add({"original": 1}, name=name)
        asked = {"person": 0.4, "animal": 0.4, "vehicle": 0.2}
        assert library.classes(library.mixed(classes=asked).samples) == {"person": 390, "animal": 100, "vehicle": 10}
        assert library.classes(library.mixed(classes=asked, min_keep=0.1).samples) == {
            "person": 45,
            "animal": 45,
            "vehicle": 10,
        }
        assert library.classes(library.mixed(classes=asked, min_keep=0).samples) == {
            "person": 20,
            "animal": 20,
            "vehicle": 10,
        }

    def test_classes_that_are_not_named_are_not_taken(self) -> None:
        library = Library()
        for name in CLASSES * 3:
            library.add({"original": 1}, name=name)
        found = library.mixed(classes={"person": 1, "animal": 0})
        assert library.classes(found.samples) == {"person": 3}
        assert found.dropped_samples == {"class share": 6}
        assert found.classes["vehicle"].asked == 0

    def test_a_sample_that_stays_does_so_when_others_come(self) -> None:
        library = Library()
        for number in range(40):
            library.add({"original": 1}, name=CLASSES[number % 2])
        few = {s.key for s in library.mixed(classes={"person": 1, "animal": 3}, min_keep=0).samples}
        for _ in range(3):
            library.add({"original": 1}, name="animal")
        more = {s.key for s in library.mixed(classes={"person": 1, "animal": 3}, min_keep=0).samples}
        assert len(few - more) <= 3


class TestFitting:
    @settings(deadline=None, max_examples=60)
    @given(
        st.lists(st.integers(1, 1000), min_size=6, max_size=6),
        st.lists(st.floats(0.05, 1), min_size=3, max_size=3),
        st.lists(st.floats(0.05, 1), min_size=2, max_size=2),
    )
    def test_a_full_table_gets_both_sums(self, counts, rows, columns) -> None:
        cells = dict(zip([(name, number) for name in "abc" for number in (1, 2)], counts, strict=True))
        by_row = dict(zip("abc", rows, strict=True))
        by_column = dict(zip((1, 2), columns, strict=True))
        shares = fitted(cells, by_row, by_column)
        for name, weight in by_row.items():
            assert sum(shares[name, number] for number in (1, 2)) == pytest.approx(weight / sum(rows), abs=1e-6)
        for number, weight in by_column.items():
            assert sum(shares[name, number] for name in "abc") == pytest.approx(weight / sum(columns), abs=1e-6)
        # What goes with what stays as it was: the odds ratios are those of the counts.
        odds = shares["a", 1] * shares["b", 2] / (shares["a", 2] * shares["b", 1])
        assert odds == pytest.approx(counts[0] * counts[3] / (counts[1] * counts[2]), rel=1e-4)

    def test_sums_that_contradict_each_other_settle_on_the_columns(self) -> None:
        # All of row a stands in column 1, all of b in column 2.
        shares = fitted({("a", 1): 5, ("b", 2): 5}, {"a": 0.9, "b": 0.1}, {1: 0.2, 2: 0.8})
        assert shares["a", 1] == pytest.approx(0.2)

    @settings(deadline=None, max_examples=60)
    @given(st.lists(st.tuples(st.integers(1, 50), st.floats(0.01, 1)), min_size=1, max_size=6), st.floats(0, 1))
    def test_no_more_is_taken_than_there_is_and_no_less_than_asked(self, drawn, share) -> None:
        counts = {str(number): count for number, (count, _) in enumerate(drawn)}
        total = sum(weight for _, weight in drawn)
        shares = {str(number): weight / total for number, (_, weight) in enumerate(drawn)}
        least = int(share * sum(counts.values()))
        found = taken(counts, shares, least)
        assert found.keys() == counts.keys()
        assert all(0 <= found[name] <= counts[name] for name in counts)
        assert sum(found.values()) >= least


class TestSimilarOthers:
    def test_come_from_the_same_side_another_video_and_nobody_who_is_shown(self) -> None:
        library = Library()
        keys = [library.add({"original": 1}) for _ in range(6)]
        library.add({"original": 1}, {"original": 1}, video="v-k0001")
        individuals = {"k0002-0": "ann", "k0006-1": "ann", "k0003-0": "eve", "k0004-0": "eve"}
        identity = {**library.known.identity_of, **individuals}
        rivals = {"k0006-0": [f"k000{number}-0" for number in (0, 1, 2, 7, 3, 4, 5)]}
        found = similar_others(library.samples[-1:], library.samples, {keys[0]}, rivals, identity, 2)
        # 0 is for validation, 1 of the same video, 2 shows who is in the sample, 7 is in none, 3 and 4 are one.
        assert found == {"k0006-0": ["k0003-0", "k0005-0"], "k0006-1": []}


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ({"kinds": {"painted": 1}}, "kinds"),
        ({"kinds": {"original": 0}}, "all weights are 0"),
        ({"classes": {"person": -1}}, "greater than or equal to 0"),
        ({"classes": {"robot": 1}}, "classes"),
        ({"subjects": {0: 1}}, "greater than or equal to 1"),
        ({"subjects": {1: float("inf")}}, "finite"),
        ({"max_per_identity": 0}, "greater than or equal to 1"),
        ({"min_keep": 1.1}, "less than or equal to 1"),
        ({"distinct_kinds": True}, "set references_per_subject"),
    ],
)
def test_mixtures_that_make_no_sense_are_refused(raw: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        MixtureConfig.model_validate(raw)
