from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm
from scipy.stats import t as student

from stages.calibration import (
    FEWEST,
    Pairs,
    Tail,
    best_face_bound,
    calibrate,
    evenly,
    face_bounds,
    fit_tail,
    roc,
)


def pairs(scores, weights=None, subjects=None, faces=None) -> Pairs:
    """Each pair of subjects of its own, unless they are given."""
    scores = np.asarray(scores, float)
    count = len(scores)
    return Pairs(
        scores,
        np.ones(count) if weights is None else np.asarray(weights, float),
        np.arange(2 * count).reshape(-1, 2) if subjects is None else np.asarray(subjects),
        np.ones(count) if faces is None else np.asarray(faces, float),
    )


def curve_of(same, different, same_weights=None, different_weights=None):
    same, different = np.asarray(same, float), np.asarray(different, float)
    return roc(
        same,
        different,
        np.ones(len(same)) if same_weights is None else np.asarray(same_weights, float),
        np.ones(len(different)) if different_weights is None else np.asarray(different_weights, float),
    )


def normal(count: int, mean: float, deviation: float) -> np.ndarray:
    """Evenly drawn quantiles: a sample without chance."""
    return norm.ppf((np.arange(count) + 0.5) / count, mean, deviation)


SCORES = st.lists(st.integers(-50, 50), min_size=1, max_size=30)
WEIGHTED = st.lists(st.tuples(st.integers(-50, 50), st.integers(1, 5)), min_size=1, max_size=30)


class TestRoc:
    def test_of_two_normal_distributions_is_what_theory_says(self) -> None:
        for apart, deviation in [(1.0, 1.0), (2.5, 1.0), (0.5, 0.2)]:
            curve = curve_of(normal(20_000, apart, deviation), normal(20_000, 0, deviation))
            rate, threshold = curve.equal_error
            assert rate == pytest.approx(norm.cdf(-apart / deviation / 2), abs=1e-3)
            assert threshold == pytest.approx(apart / 2, abs=5e-3)
            assert curve.area == pytest.approx(norm.cdf(apart / deviation / math.sqrt(2)), abs=1e-3)

    def test_of_normal_distributions_of_unlike_width_too(self) -> None:
        curve = curve_of(normal(20_000, 3, 0.5), normal(20_000, 0, 1.5))
        rate, threshold = curve.equal_error
        assert rate == pytest.approx(norm.cdf(-3 / 2), abs=1e-3)
        assert threshold == pytest.approx(1.5 * 1.5, abs=1e-2)

    def test_without_errors_puts_the_bound_into_the_middle_of_the_gap(self) -> None:
        curve = curve_of([0.8, 0.9], [0.1, 0.4])
        assert curve.area == 1
        assert curve.equal_error == (0, pytest.approx(0.6))

    def test_of_what_chance_cannot_tell_apart_is_a_half(self) -> None:
        curve = curve_of([1, 2, 3], [1, 2, 3])
        assert curve.area == pytest.approx(0.5)
        assert curve.equal_error == (pytest.approx(0.5), 2)

    def test_errors_are_those_of_accepting_from_the_threshold_on(self) -> None:
        same, different = np.array([0.3, 0.5, 0.5, 0.9]), np.array([0.1, 0.5, 0.2])
        curve = curve_of(same, different)
        for threshold, accepted, missed in zip(
            *(curve.thresholds, curve.false_accept, curve.false_reject), strict=True
        ):
            assert accepted == pytest.approx((different >= threshold).mean())
            assert missed == pytest.approx((same < threshold).mean())

    def test_needs_pairs_of_both_sorts(self) -> None:
        for same, different in [([], [0.1]), ([0.1], [])]:
            with pytest.raises(ValueError, match="both sorts"):
                curve_of(same, different)

    @given(SCORES, SCORES)
    def test_is_the_same_with_both_sorts_swapped_and_all_turned_round(self, same, different) -> None:
        one = curve_of(same, different)
        other = curve_of(-np.asarray(different), -np.asarray(same))
        assert other.area == pytest.approx(one.area)
        assert other.equal_error[0] == pytest.approx(one.equal_error[0])
        assert other.equal_error[1] == pytest.approx(-one.equal_error[1])

    @given(SCORES, SCORES, st.sampled_from([lambda x: 3 * x + 7, lambda x: x**3, np.sinh]))
    def test_does_not_change_with_the_scale_of_the_scores(self, same, different, scale) -> None:
        one = curve_of(same, different)
        other = curve_of(scale(np.asarray(same, float) / 10), scale(np.asarray(different, float) / 10))
        assert other.area == pytest.approx(one.area)
        assert other.equal_error[0] == pytest.approx(one.equal_error[0])

    @given(WEIGHTED, WEIGHTED)
    def test_a_weight_counts_as_so_many_pairs(self, same, different) -> None:
        one = curve_of(
            *([score for score, _ in part] for part in (same, different)),
            *([weight for _, weight in part] for part in (same, different)),
        )
        other = curve_of(*([score for score, weight in part for _ in range(weight)] for part in (same, different)))
        assert one.area == pytest.approx(other.area)
        assert one.equal_error == pytest.approx(other.equal_error)

    @given(WEIGHTED, WEIGHTED)
    def test_higher_bounds_accept_less_and_the_equal_error_lies_between_the_curves(self, same, different) -> None:
        curve = curve_of([score for score, _ in same], [score for score, _ in different])
        assert (np.diff(curve.thresholds) > 0).all()
        assert (np.diff(curve.false_accept) <= 0).all()
        assert (np.diff(curve.false_reject) >= 0).all()
        rate, threshold = curve.equal_error
        place = int(np.searchsorted(curve.thresholds, threshold))
        assert curve.false_reject[place] - 1e-9 <= rate
        assert rate <= curve.false_accept[place] + 1e-9 or threshold > curve.thresholds[place - 1]


class TestTail:
    def test_bound_is_reached_as_often_as_promised_however_few_pairs_there_are(self) -> None:
        """Over many draws of a few pairs, a further pair of the same kind reaches the bound at the promised rate."""
        random = np.random.default_rng(0)
        rate = 0.05
        for count in (4, 10, 40):
            reached = 0.0
            draws = 1000
            for _ in range(draws):
                tail = fit_tail(pairs(np.tanh(random.normal(0.3, 0.2, count))))
                reached += norm.sf(math.atanh(tail.bound(rate)), 0.3, 0.2)
            assert reached / draws == pytest.approx(rate, rel=0.1)

    def test_bound_is_the_one_of_students_distribution(self) -> None:
        scores = np.tanh([0.1, 0.2, 0.3, 0.5])
        transformed = np.arctanh(scores)
        wanted = transformed.mean() + student.ppf(0.999, 3) * transformed.std(ddof=1) * math.sqrt(1 + 1 / 4)
        assert fit_tail(pairs(scores)).bound(0.001) == pytest.approx(math.tanh(wanted))

    @given(st.floats(-1, 1), st.floats(0.01, 0.5), st.integers(2, 200), st.floats(1e-6, 0.4))
    def test_beyond_undoes_bound(self, mean, deviation, count, rate) -> None:
        tail = Tail(mean, deviation, count)
        bound = tail.bound(rate)
        if bound < 1 - 1e-5:
            assert tail.beyond(bound) == pytest.approx(rate, rel=1e-3)

    def test_fewer_pairs_and_rarer_errors_ask_for_higher_bounds(self) -> None:
        bounds = [Tail(0.2, 0.15, count).bound(1e-4) for count in (10, 20, 50, 500)]
        assert bounds == sorted(bounds, reverse=True)
        rates = [Tail(0.2, 0.15, 20).bound(rate) for rate in (1e-1, 1e-2, 1e-4, 1e-6)]
        assert rates == sorted(rates)

    def test_repeating_the_frames_of_two_subjects_proves_nothing_new(self) -> None:
        scores = np.tanh([0.1, 0.2, 0.3, 0.5])
        subjects = np.arange(8).reshape(-1, 2)
        once = fit_tail(pairs(scores, subjects=subjects))
        often = fit_tail(pairs(np.repeat(scores, 6), subjects=np.repeat(subjects, 6, axis=0)))
        assert (often.mean, often.deviation, often.count) == (
            pytest.approx(once.mean),
            pytest.approx(once.deviation),
            once.count,
        )

    def test_two_subjects_count_once_whichever_comes_first(self) -> None:
        assert evenly(np.array([[0, 1], [1, 0], [2, 3]])).tolist() == [0.5, 0.5, 1]

    def test_a_crowd_says_no_more_than_it_has_members(self) -> None:
        crowd = np.array([(a, b) for a in range(6) for b in range(a)])
        assert pairs(np.zeros(len(crowd)), subjects=crowd).independent == 6

    def test_a_heavy_tail_is_widened_to_what_was_seen(self) -> None:
        """Two in a hundred pairs resemble anybody; more of them are still to come, and some more alike."""
        random = np.random.default_rng(0)

        def draw(count: int) -> np.ndarray:
            unsure = random.random(count) < 0.02
            return np.tanh(np.where(unsure, random.normal(0.6, 0.25, count), random.normal(0.15, 0.15, count)))

        bounds = [fit_tail(pairs(draw(300))).bound(1e-3) for _ in range(40)]
        light = np.tanh(norm.ppf(1 - 1e-3, *norm.fit(np.arctanh(draw(100_000)))))
        true = np.quantile(draw(400_000), 1 - 1e-3)
        assert light < true < np.median(bounds)

    def test_an_even_tail_is_left_as_it_is(self) -> None:
        scores = normal(200, 0.2, 0.15)
        assert fit_tail(pairs(np.tanh(scores))).deviation == pytest.approx(scores.std(ddof=1))

    def test_needs_two_pairs(self) -> None:
        with pytest.raises(ValueError, match="two independent pairs"):
            fit_tail(pairs([0.2]))


SAME, DIFFERENT = np.tanh(normal(40, 1.6, 0.2)), np.tanh(normal(40, 0.2, 0.12))


class TestProposal:
    def test_lies_at_the_tail_of_the_different_pairs_rounded_up(self) -> None:
        found = calibrate(pairs(SAME), pairs(DIFFERENT), 1e-4)
        assert found.tail is not None
        exact = found.tail.bound(1e-4)
        assert found.min is not None
        assert exact <= found.min < exact + 0.01
        assert found.min == round(found.min, 2)
        assert found.false_accept <= 1e-4
        assert found.false_reject == pytest.approx((found.min > SAME).mean())

    def test_lies_above_the_largest_different_pair_that_was_seen(self) -> None:
        found = calibrate(pairs(SAME), pairs(DIFFERENT), 1e-4)
        assert found.min is not None
        assert found.min > DIFFERENT.max() + 0.05

    def test_never_lies_below_the_equal_error(self) -> None:
        found = calibrate(pairs(SAME), pairs(DIFFERENT), 0.4)
        assert found.tail is not None
        assert found.roc is not None
        assert found.min is not None
        assert found.tail.bound(0.4) < DIFFERENT.max() < found.min
        assert found.roc.false_accept[np.searchsorted(found.roc.thresholds, found.min)] == 0

    def test_is_not_made_of_too_few_different_pairs(self) -> None:
        few = calibrate(pairs(SAME), pairs(DIFFERENT[: FEWEST - 1]), 1e-4)
        assert few.min is None
        assert f"only {FEWEST - 1} independent different pairs" in few.why
        assert few.roc is not None
        assert calibrate(pairs(SAME), pairs(DIFFERENT[:FEWEST]), 1e-2).min is not None

    def test_is_not_made_of_many_frames_of_few_subjects(self) -> None:
        subjects = np.repeat([[0, 1], [2, 3]], 20, axis=0)
        found = calibrate(pairs(SAME), pairs(DIFFERENT, subjects=subjects), 1e-4)
        assert (found.min, found.different, found.independent) == (None, 40, 2)

    def test_is_not_made_without_same_or_different_pairs(self) -> None:
        none = pairs([])
        assert "no independent different pairs" in calibrate(pairs(SAME), none, 1e-4).why
        assert "no same pairs" in calibrate(none, pairs(DIFFERENT), 1e-4).why
        assert math.isnan(calibrate(none, none, 1e-4).false_accept)

    def test_is_not_made_where_it_would_miss_nearly_all(self) -> None:
        found = calibrate(pairs(DIFFERENT + 0.05), pairs(DIFFERENT), 1e-4)
        assert found.min is None
        assert "too close" in found.why


class TestFaceBounds:
    def test_unsure_faces_that_resemble_anybody_are_found_out(self) -> None:
        """Faces below .6 score alike whoever they are: with them, no bound finds as much."""
        random = np.random.default_rng(1)
        unsure = np.tanh(random.normal(0.9, 0.4, 30))
        faces = np.repeat([0.8, 0.5], [40, 30])
        same = pairs(np.concatenate([SAME, np.tanh(random.normal(0.9, 0.4, 30))]), faces=faces)
        different = pairs(np.concatenate([DIFFERENT, unsure]), faces=faces)
        found = face_bounds(same, different, 1e-3, (0.0, 0.6, 0.9))
        best = best_face_bound(found)
        assert best.min_face == 0.6
        assert best.found > found[0].found
        assert (found[2].calibration.same, found[2].found) == (0, 0)

    def test_faces_that_are_all_alike_sure_are_all_taken(self) -> None:
        found = face_bounds(pairs(SAME), pairs(DIFFERENT), 1e-4, (0.0, 0.5, 0.9))
        assert best_face_bound(found).min_face == 0

    def test_what_is_found_is_a_share_of_all_the_same_pairs(self) -> None:
        same = pairs(np.full(40, 0.99), faces=np.repeat([0.9, 0.1], 20), weights=np.repeat([1, 3], 20))
        found = face_bounds(same, pairs(DIFFERENT), 1e-4, (0.0, 0.5))
        assert [bound.found for bound in found] == [pytest.approx(1), pytest.approx(0.25)]
