"""Where same ends and different begins: error rates and bounds from scored pairs, with nothing but numbers.

A *pair* is two pictures of subjects and the cosine of their embeddings; *same* pairs show one individual, *different*
pairs two. A bound accepts what reaches it. False accepts are different pairs that it takes for the same, false
rejects same pairs that it misses.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

FEWEST = 10
"""Pairs of each sort, and among the different ones pairs of other subjects, below which no bound is proposed."""
MOST_REJECTED = 0.9
"""Share of the same pairs that a bound may miss and still be one."""
_EDGE = 1e-6
"""Fisher's transform is infinite at 1: cosines are held this far off."""
_EVEN = 1e-9
_HARDLY_EVER = 0.05
"""Pairs as alike as the most alike that a tail leads one to expect, below which it is too light."""


@dataclass(frozen=True, slots=True)
class Pairs:
    """Scored pairs of one sort, all of shape ``(pairs,)`` but ``subjects``."""

    scores: Floats
    """Cosines in [-1, 1]."""
    weights: Floats
    """How much each counts; above 0."""
    subjects: Ints
    """Numbers of the two subjects, ``(pairs, 2)``; several pairs of frames of the same two are no independent proof."""
    faces: Floats
    """The lower of both faces' detector scores, in [0, 1]."""

    def __len__(self) -> int:
        return len(self.scores)

    def sure(self, min_face: float) -> Pairs:
        """Those whose faces both reach this detector score."""
        return self.where(self.faces >= min_face)

    def where(self, kept: npt.NDArray[np.bool_]) -> Pairs:
        """Those that are marked, ``(pairs,)``."""
        return Pairs(self.scores[kept], self.weights[kept], self.subjects[kept], self.faces[kept])

    @property
    def independent(self) -> int:
        """Pairs that say something of their own: as many as pairs of subjects, but never more than subjects."""
        return min(len(np.unique(np.sort(self.subjects, axis=1), axis=0)), len(np.unique(self.subjects)))


@dataclass(frozen=True, slots=True)
class Roc:
    """The errors of every bound: with ``thresholds[n]`` as bound they are ``false_accept[n]``, ``false_reject[n]``.

    ``thresholds`` are the distinct scores, ascending, and last infinity, which accepts nothing; shape ``(bounds,)``.
    """

    thresholds: Floats
    false_accept: Floats
    """Falls from 1 to 0."""
    false_reject: Floats
    """Rises from 0 to 1."""

    @property
    def area(self) -> float:
        """Area under the curve of accepted same over accepted different pairs; [0, 1], 0.5 by chance.

        The probability that a same pair scores above a different one, ties counted half (Hanley and McNeil 1982).
        """
        accepted = (2 - self.false_reject[1:] - self.false_reject[:-1]) / 2
        return float((accepted * -np.diff(self.false_accept)).sum())

    @property
    def equal_error(self) -> tuple[float, float]:
        """The rate at which both errors are equal, in [0, 1], and the bound there, the middle of `equal_bounds`.

        Between two bounds the curve is a straight line.
        """
        place, excess = self._crossing
        low, high = self.equal_bounds
        before = excess[place - 1]
        share = 1.0 if low < high else float(-before / (excess[place] - before))
        missed = self.false_reject[place - 1], self.false_reject[place]
        return float(missed[0] + share * (missed[1] - missed[0])), (low + high) / 2

    @property
    def equal_bounds(self) -> tuple[float, float]:
        """The bounds at which both errors are equal: all above the first, up to the second; or one score alone."""
        place, excess = self._crossing
        low = float(self.thresholds[place - 1])
        return low, float(self.thresholds[place]) if excess[place] <= _EVEN else low

    @property
    def _crossing(self) -> tuple[int, Floats]:
        excess = self.false_reject - self.false_accept
        return int(np.flatnonzero(excess > -_EVEN)[0]), excess


@dataclass(frozen=True, slots=True)
class Tail:
    """A normal distribution fitted to Fisher's transform (artanh) of the different pairs' cosines."""

    mean: float
    deviation: float
    count: int
    """Independent pairs behind the fit."""

    def bound(self, rate: float) -> float:
        """The cosine that a further different pair reaches with this probability.

        From Student's t with ``count - 1`` degrees of freedom, as mean and deviation are themselves estimates (the
        prediction interval of Whitmore 1986): the fewer pairs, the higher the bound, so that ``rate`` holds all the
        same.
        """
        from scipy.special import stdtrit

        return math.tanh(self.mean + self._spread * -float(stdtrit(self.count - 1, rate)))

    def beyond(self, score: float) -> float:
        """The probability that a further different pair reaches this cosine; the inverse of `bound`."""
        from scipy.special import stdtr

        return float(stdtr(self.count - 1, -(float(_fisher(np.float64(score))) - self.mean) / self._spread))

    @property
    def _spread(self) -> float:
        return max(self.deviation, _EVEN) * math.sqrt(1 + 1 / self.count)


@dataclass(frozen=True, slots=True)
class Calibration:
    """What pairs say about a bound. ``roc`` needs pairs of both sorts, ``tail`` independent different ones."""

    same: int
    different: int
    independent: int
    """Different pairs that say something of their own; see `Pairs.independent`."""
    roc: Roc | None
    tail: Tail | None
    min: float | None
    """The proposed bound, in hundredths, or nothing; then ``why`` says why."""
    why: str
    false_accept: float
    """Expected share of different pairs that the bound takes for the same, by ``tail``; NaN without a bound."""
    false_reject: float
    """Share of the same pairs, by weight, that it misses; NaN without a bound."""


@dataclass(frozen=True, slots=True)
class FaceBound:
    """What becomes of the pairs if only faces that reach ``min_face`` count."""

    min_face: float
    calibration: Calibration
    found: float
    """Share of *all* the same pairs, by weight, that have such faces and reach the bound; 0 without one."""


def roc(same: Floats, different: Floats, same_weights: Floats, different_weights: Floats) -> Roc:
    """The errors of every bound on these scores.

    Raises:
        ValueError: if there are no same or no different pairs.
    """
    if not len(same) or not len(different):
        raise ValueError("errors need pairs of both sorts")
    values, places = np.unique(np.concatenate([same, different]), return_inverse=True)
    missed, refused = (
        np.concatenate([[0.0], np.cumsum(np.bincount(where, weights, len(values)))]) / weights.sum()
        for where, weights in ((places[: len(same)], same_weights), (places[len(same) :], different_weights))
    )
    return Roc(np.append(values, np.inf), (1 - refused).clip(0, 1), missed.clip(0, 1))


def fit_tail(different: Pairs) -> Tail:
    """Mean and deviation over pairs of subjects: each counts once, however many pairs of frames it has.

    Unsure faces now and then resemble anybody: then the tail is heavier than a normal one. Where the most alike pair
    would hardly ever be seen among so many, the deviation is widened until it is what the most alike usually is.

    Raises:
        ValueError: with less than two independent pairs.
    """
    from scipy.special import ndtri

    count = different.independent
    if count < 2:
        raise ValueError("a deviation needs two independent pairs")
    transformed, weights = _fisher(different.scores), evenly(different.subjects)
    mean = float(np.average(transformed, weights=weights))
    variance = float(np.average((transformed - mean) ** 2, weights=weights)) * count / (count - 1)
    tail = Tail(mean, math.sqrt(variance), count)
    pairs = float(weights.sum())
    if pairs * tail.beyond(float(different.scores.max())) >= _HARDLY_EVER:
        return tail
    usual = float(ndtri(1 - 0.5 / pairs))
    return Tail(mean, (float(transformed.max()) - mean) / usual, count)


def evenly(subjects: Ints) -> Floats:
    """Weights ``(pairs,)`` by which any two subjects count once, over all pairs of frames of theirs."""
    _, places, counts = np.unique(np.sort(subjects, axis=1), axis=0, return_inverse=True, return_counts=True)
    return 1 / counts[places.ravel()]


def calibrate(same: Pairs, different: Pairs, rate: float) -> Calibration:
    """Propose the bound that different pairs reach with at most the probability ``rate``, if the pairs allow it.

    The bound is where the tail of the different pairs falls to ``rate``, and never below those of equal errors. It is
    rounded up to hundredths.
    """
    independent = different.independent if len(different) else 0
    curve = roc(same.scores, different.scores, same.weights, different.weights) if len(same) and independent else None
    tail = fit_tail(different) if independent >= 2 else None

    def judged(bound: float | None, why: str, accepted: float = math.nan, rejected: float = math.nan) -> Calibration:
        return Calibration(len(same), len(different), independent, curve, tail, bound, why, accepted, rejected)

    if tail is None or independent < FEWEST:
        return judged(
            None, f"{_few(independent, 'independent different')}, and at least {FEWEST} are needed to model their tail"
        )
    if curve is None or len(same) < FEWEST:
        return judged(None, f"{_few(len(same), 'same')}, and at least {FEWEST} are needed to tell what a bound misses")
    # A little above: the lowest of the bounds is itself the score of a different pair.
    bound = math.ceil(round(100 * max(tail.bound(rate), curve.equal_bounds[0] + _EDGE), 4)) / 100
    rejected = float(same.weights[same.scores < bound].sum() / same.weights.sum())
    if rejected > MOST_REJECTED:
        return judged(
            None,
            f"a bound with a false-accept rate of {rate:g} would lie at {bound:.2f} and miss {rejected:.0%} "
            "of the same pairs: same and different lie too close",
        )
    return judged(bound, "", tail.beyond(bound), rejected)


def face_bounds(same: Pairs, different: Pairs, rate: float, bounds: Sequence[float]) -> list[FaceBound]:
    """What each least detector score of the faces would make of the bound on their embeddings."""
    found = []
    for min_face in bounds:
        sure = same.sure(min_face)
        calibration = calibrate(sure, different.sure(min_face), rate)
        share = 0.0
        if calibration.min is not None:
            share = float(sure.weights[sure.scores >= calibration.min].sum() / same.weights.sum())
        found.append(FaceBound(min_face, calibration, share))
    return found


def best_face_bound(bounds: Sequence[FaceBound]) -> FaceBound:
    """The one that finds most of the same pairs, which all do at one false-accept rate; the lowest of equals."""
    return max(bounds, key=lambda bound: (bound.found, -bound.min_face))


def _fisher(scores: Floats | np.float64) -> Floats:
    return np.arctanh(np.clip(scores, _EDGE - 1, 1 - _EDGE))


def _few(count: int, sort: str) -> str:
    return f"only {count} {sort} pair{'' if count == 1 else 's'}" if count else f"no {sort} pairs"
