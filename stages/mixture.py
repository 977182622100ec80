"""Which of all the samples and references make a good mixture: balanced, and no face or video too often.

Everything is decided on ids. What is left to chance follows from the seed and those ids, so that neither the order of
rows nor what else a table holds moves anything that it need not.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from stages.config import Section
from stages.records import Kind
from stages.sample import SamplePlan
from stages.shares import Cell, fitted, taken

Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Reason = Literal["max_per_identity", "max_per_video", "class share", "kind share"]
"""Why a sample or a reference is not in the mixture."""


class MixtureConfig(Section):
    """What of all that passes goes into the shards, and in which shares. The defaults take everything."""

    seed: int = 0
    """Decides which samples and references are taken wherever there is a choice."""
    kinds: dict[Kind, Weight] = Field({})
    """Asked weights of the kinds of references. Kinds that are not named or weigh 0 are never taken; empty names all
    evenly. The weights decide which references `references_per_subject` leaves; without it, all of these kinds are."""
    references_per_subject: int | None = Field(None, ge=1)
    """Most references of a subject; null takes all."""
    distinct_kinds: bool = False
    """Whether the references of different subjects of a sample come from different kinds, wherever they can."""
    classes: dict[Literal["person", "animal", "vehicle", "plant", "object"], Weight] = Field({})
    """Asked weights of the training samples by the class of their largest subject. Classes that are not named or weigh
    0 are not taken; empty asks for nothing."""
    subjects: dict[Annotated[int, Field(ge=1)], Weight] = Field({})
    """Asked weights of the training samples by their number of subjects; the largest number named stands for itself
    and more. Numbers that are not named or weigh 0 are not taken; empty asks for nothing."""
    min_keep: float = Field(0.5, ge=0, le=1)
    """Of the training samples of the classes and numbers asked for, at least this share is kept: where exact shares
    would need more to be dropped, what is scarce is taken whole and only the rest is balanced."""
    max_per_identity: int | None = Field(None, ge=1)
    """Most samples that show one individual, as told by the rules of `references.cross_clip`; null sets no limit."""
    max_per_video: int | None = Field(None, ge=1)
    """Most samples of one source video; null sets no limit."""
    negatives: int = Field(0, ge=0)
    """Most pictures per subject of similar individuals who are not in the clip and come from other videos, one of each,
    packed as kind `negative`. Only for subjects whom a rule of `references.cross_clip` tells apart."""
    negative_margin: float = Field(0.1, ge=0, le=2)
    """How far below its rule's least cosine a similar subject must lie to be surely another individual."""

    @field_validator("kinds", "classes", "subjects")
    @classmethod
    def _something(cls, weights: dict[Any, float]) -> dict[Any, float]:
        if weights and not any(weights.values()):
            raise ValueError("all weights are 0, so nothing would be taken: leave it empty to ask for nothing")
        return weights

    @model_validator(mode="after")
    def _choice(self) -> MixtureConfig:
        if self.distinct_kinds and self.references_per_subject is None:
            raise ValueError("distinct_kinds chooses among references: set references_per_subject, such as to 1")
        return self


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of those that samples are made of."""

    class_of: Mapping[str, str]
    """Category of each subject."""
    kind_of: Mapping[str, str]
    """Kind of each reference."""
    identity_of: Mapping[str, str]
    """A name for the individual that each subject is; subjects without one are one each."""


@dataclass(frozen=True, slots=True)
class Share:
    """A part of the whole: its asked share, where one was asked for, and the shares it had and got; in [0, 1]."""

    asked: float | None
    before: float
    got: float


@dataclass(frozen=True, slots=True)
class Mixture:
    """The samples that were taken, by key, and how far they are what was asked for."""

    samples: list[SamplePlan]
    kinds: dict[str, Share]
    """References of the training samples by kind."""
    classes: dict[str, Share]
    """Training samples by the class of their largest subject."""
    subjects: dict[str, Share]
    """Training samples by number of subjects; ``3+`` is three or more."""
    dropped_samples: Counter[str]
    """By reason, of both splits."""
    dropped_references: Counter[str]
    """By reason, of both splits; those of dropped samples among them."""
    largest_identity: Share
    """The share of all samples that the most frequent individual is in; nothing is asked of it."""

    def report(self) -> dict[str, Any]:
        """All but the samples, as JSON has it."""
        told: dict[str, Any] = {
            name: {
                part: {"asked": _told(share.asked), "before": _told(share.before), "got": _told(share.got)}
                for part, share in getattr(self, name).items()
            }
            for name in ("kinds", "classes", "subjects")
        }
        return {
            **told,
            "dropped": {"samples": dict(self.dropped_samples), "references": dict(self.dropped_references)},
            "largest_identity": {
                "before": _told(self.largest_identity.before),
                "got": _told(self.largest_identity.got),
            },
        }


def mix(samples: Iterable[SamplePlan], val: Set[str], known: Known, config: MixtureConfig) -> Mixture:
    """Take the mixture that the config asks for.

    In this order: kinds without weight go, and with them subjects and samples that have no other; then the caps on
    identities and videos; then, of the training samples alone, the shares of classes and numbers of subjects; then, in
    each split by itself, the references of every subject.

    Args:
        samples: all that there are.
        val: keys of those for validation.
        known: of their subjects and references.
        config: what is asked for.
    """
    given = sorted(samples, key=lambda sample: sample.key)
    dropped: dict[str, Reason] = {}
    stripped = [_stripped(sample, known.kind_of, config.kinds) for sample in given]
    dropped |= {sample.key: "kind share" for sample in stripped if not sample.subjects}
    left = [sample for sample in stripped if sample.subjects]
    dropped |= _over_caps(left, known.identity_of, config)
    left = [sample for sample in left if sample.key not in dropped]
    dropped |= _over_shares([sample for sample in left if sample.key not in val], known.class_of, config)
    left = [sample for sample in left if sample.key not in dropped]
    train = _chosen([sample for sample in left if sample.key not in val], known.kind_of, config)
    chosen = {**train, **_chosen([sample for sample in left if sample.key in val], known.kind_of, config)}
    got = [chosen[sample.key] for sample in left]

    lost: Counter[str] = Counter()
    for sample in given:
        kept = sum(map(len, chosen[sample.key].references)) if sample.key in chosen else 0
        if missing := sum(map(len, sample.references)) - kept:
            lost[dropped.get(sample.key, "kind share")] += missing
    before = [sample for sample in given if sample.key not in val]
    return Mixture(
        samples=got,
        kinds=_shares(config.kinds, *(_kinds(part, known.kind_of) for part in (before, train.values()))),
        classes=_shares(
            config.classes,
            *(Counter(_class(sample, known.class_of) for sample in part) for part in (before, train.values())),
        ),
        subjects={
            _number_name(number, config.subjects): share
            for number, share in _shares(
                config.subjects,
                *(Counter(_number(sample, config.subjects) for sample in part) for part in (before, train.values())),
            ).items()
        },
        dropped_samples=Counter(dropped.values()),
        dropped_references=lost,
        largest_identity=Share(None, *(_largest_identity(part, known.identity_of) for part in (given, got))),
    )


def similar_others(
    samples: Iterable[SamplePlan],
    among: Iterable[SamplePlan],
    val: Set[str],
    rivals: Mapping[str, Sequence[str]],
    identity_of: Mapping[str, str],
    most: int,
) -> dict[str, list[str]]:
    """For each subject of the samples, similar subjects that show nobody of its sample, each another individual.

    They come from the same split and from other videos: there, the same individual may look unlike itself.

    Args:
        samples: those of the mixture.
        among: samples whose subjects may be shown.
        val: keys of the samples for validation.
        rivals: for each subject those that are others, the most alike first.
        identity_of: a name for the individual that each subject is.
        most: others per subject.
    """
    home = {subject: sample for sample in among for subject in sample.subjects}
    found: dict[str, list[str]] = {}
    for sample in samples:
        shown = _individuals(sample, identity_of)
        for subject in sample.subjects:
            chosen: dict[str, str] = {}
            for other in rivals.get(subject, ()):
                name = identity_of.get(other, other)
                if (
                    len(chosen) < most
                    and other in home
                    and (home[other].key in val) == (sample.key in val)
                    and home[other].source_id != sample.source_id
                    and name not in shown
                ):
                    chosen.setdefault(name, other)
            found[subject] = list(chosen.values())
    return found


def _stripped(sample: SamplePlan, kind_of: Mapping[str, str], weights: Mapping[Any, float]) -> SamplePlan:
    """The sample without references of kinds that have no weight, and without subjects that have no other."""
    if not weights:
        return sample
    left = [tuple(name for name in names if weights.get(kind_of[name], 0) > 0) for names in sample.references]
    return replace(
        sample,
        subjects=tuple(subject for subject, names in zip(sample.subjects, left, strict=True) if names),
        references=tuple(names for names in left if names),
    )


def _over_caps(
    samples: Sequence[SamplePlan], identity_of: Mapping[str, str], config: MixtureConfig
) -> dict[str, Reason]:
    if config.max_per_identity is config.max_per_video is None:
        return {}
    most_shown, most_cut = (
        math.inf if limit is None else limit for limit in (config.max_per_identity, config.max_per_video)
    )
    shown: Counter[str] = Counter()
    cut: Counter[str] = Counter()
    dropped: dict[str, Reason] = {}
    for sample in _by_hash(samples, config.seed):
        individuals = _individuals(sample, identity_of)
        if any(shown[individual] >= most_shown for individual in individuals):
            dropped[sample.key] = "max_per_identity"
        elif cut[sample.source_id] >= most_cut:
            dropped[sample.key] = "max_per_video"
        else:
            shown.update(individuals)
            cut[sample.source_id] += 1
    return dropped


def _over_shares(
    samples: Sequence[SamplePlan], class_of: Mapping[str, str], config: MixtureConfig
) -> dict[str, Reason]:
    if not (config.classes or config.subjects):
        return {}
    classes: dict[str, float] = {name: weight for name, weight in config.classes.items() if weight > 0}
    numbers = {number: weight for number, weight in config.subjects.items() if weight > 0}
    cells: dict[Cell, list[SamplePlan]] = defaultdict(list)
    for sample in _by_hash(samples, config.seed):
        name, number = _class(sample, class_of), _number(sample, config.subjects)
        if (not classes or name in classes) and (not numbers or number in numbers):
            # What is not asked about is one.
            cells[name if classes else "", number if numbers else 0].append(sample)
    counts = {cell: len(found) for cell, found in cells.items()}
    kept: set[str] = set()
    if counts:
        least = math.ceil(round(config.min_keep * sum(counts.values()), 9))
        for cell, number in taken(counts, fitted(counts, classes, numbers), least).items():
            kept.update(sample.key for sample in cells[cell][:number])
    return {sample.key: "class share" for sample in samples if sample.key not in kept}


def _chosen(samples: Sequence[SamplePlan], kind_of: Mapping[str, str], config: MixtureConfig) -> dict[str, SamplePlan]:
    """The samples by key, each subject with no more than ``references_per_subject`` references.

    Sample by sample in the order of the hash, every reference is taken from the kind that is furthest behind: the one
    that would be next in Webster's apportionment of all references taken so far. What is taken in any case, because a
    subject has no more or no other, is counted beforehand, so that the others can make up for it.
    """
    most = config.references_per_subject
    if most is None:
        return {sample.key: sample for sample in samples}
    taking = _Taking(config, most)
    offers = {sample.key: [_by_kind(names, kind_of, config.seed) for names in sample.references] for sample in samples}
    for subjects in offers.values():
        for offer in subjects:
            taking.count_forced(offer)
    return {
        sample.key: replace(sample, references=tuple(taking.take(sample, offers[sample.key])))
        for sample in _by_hash(samples, config.seed)
    }


class _Taking:
    """Takes references, and keeps count of their kinds."""

    def __init__(self, config: MixtureConfig, most: int) -> None:
        self._config = config
        self._most = most
        self._got: Counter[str] = Counter()

    def count_forced(self, offer: Mapping[str, Sequence[str]]) -> None:
        """Count what a subject gets whatever is chosen."""
        if self._is_forced(offer):
            self._got.update({kind: min(len(names), self._most) for kind, names in offer.items()})

    def take(self, sample: SamplePlan, offers: Sequence[Mapping[str, Sequence[str]]]) -> Iterator[tuple[str, ...]]:
        """References of each subject of a sample, out of its offer: names by kind."""
        left = [{kind: list(names) for kind, names in offer.items()} for offer in offers]
        kinds: list[set[str]] = [set() for _ in offers]
        taken: set[str] = set()
        # Who has the least choice chooses first.
        order = sorted(range(len(offers)), key=lambda place: (len(offers[place]), place))
        for place in self._turns(order):
            if not left[place]:
                continue
            free = set(left[place])
            if self._config.distinct_kinds:
                elsewhere = set().union(*(kinds[other] for other in order if other != place))
                free = free - elsewhere or free
            kind = min(free, key=lambda kind: (self._turn(kind), _hash(self._config.seed, sample.key, place, kind)))
            kinds[place].add(kind)
            taken.add(left[place][kind].pop(0))
            if not left[place][kind]:
                del left[place][kind]
            if not self._is_forced(offers[place]):
                self._got[kind] += 1
        for names in sample.references:
            yield tuple(name for name in names if name in taken)

    def _turns(self, order: Sequence[int]) -> Iterator[int]:
        for _ in range(self._most):
            yield from order

    def _is_forced(self, offer: Mapping[str, Sequence[str]]) -> bool:
        return len(offer) == 1 or sum(map(len, offer.values())) <= self._most

    def _turn(self, kind: Any) -> float:
        """Smaller for a kind that is further behind its weight."""
        return (2 * self._got[kind] + 1) / (self._config.kinds.get(kind, 1.0) or math.inf)


def _by_kind(names: Iterable[str], kind_of: Mapping[str, str], seed: int) -> dict[str, list[str]]:
    found: dict[str, list[str]] = defaultdict(list)
    for name in sorted(names, key=lambda name: _hash(seed, name)):
        found[kind_of[name]].append(name)
    return found


def _by_hash(samples: Iterable[SamplePlan], seed: int) -> list[SamplePlan]:
    return sorted(samples, key=lambda sample: _hash(seed, sample.key))


def _hash(*parts: int | str) -> bytes:
    return hashlib.sha256(":".join(map(str, parts)).encode()).digest()


def _class(sample: SamplePlan, class_of: Mapping[str, str]) -> str:
    return class_of[sample.subjects[0]]


def _number(sample: SamplePlan, named: Iterable[int]) -> int:
    return min(len(sample.subjects), max(named, default=len(sample.subjects)))


def _number_name(number: int, named: Iterable[int]) -> str:
    return f"{number}+" if number == max(named, default=0) else str(number)


def _individuals(sample: SamplePlan, identity_of: Mapping[str, str]) -> set[str]:
    return {identity_of.get(subject, subject) for subject in sample.subjects}


def _largest_identity(samples: Sequence[SamplePlan], identity_of: Mapping[str, str]) -> float:
    shown = Counter(individual for sample in samples for individual in _individuals(sample, identity_of))
    return max(shown.values(), default=0) / max(len(samples), 1)


def _kinds(samples: Iterable[SamplePlan], kind_of: Mapping[str, str]) -> Counter[str]:
    return Counter(kind_of[name] for sample in samples for names in sample.references for name in names)


def _shares(asked: Mapping[Any, float], before: Counter[Any], got: Counter[Any]) -> dict[Any, Share]:
    total = sum(asked.values())
    return {
        name: Share(
            asked=asked.get(name, 0.0) / total if asked else None,
            before=before[name] / max(before.total(), 1),
            got=got[name] / max(got.total(), 1),
        )
        for name in sorted({*asked, *before, *got})
    }


def _told(share: float | None) -> float | None:
    return None if share is None else round(share, 4)
