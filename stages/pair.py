"""Which subjects are one individual in different pictures, and which are known to be others.

All of it is decided on stored numbers. Subjects are put into groups that are compared within: people who are known by
their faces all together, everything else by its word. A group is searched by a :class:`stages.search.Neighbours`,
exact or not, so that nothing here depends on how many subjects there are.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field, model_validator

from stages.config import Section
from stages.difference import Look, difference
from stages.identity import identities
from stages.search import Neighbours, exact

Row = Mapping[str, Any]
Vectors = npt.NDArray[np.float32]
"""Unit vectors, shape ``(subjects, embedding)``."""
Search = Callable[[Vectors], AbstractContextManager[Neighbours]]
"""Makes vectors searchable for as long as its context is open."""
Category = Literal["person", "animal", "vehicle", "plant", "object"]

LIVING = ("person", "animal", "plant")
SEARCHED_AT_ONCE = 2**16
HIDDEN_AT_ONCE = 2**10
CANDIDATES = 64
"""Most alike subjects within the bounds that are looked at for each target."""
ALL_LINKS = 20_000
"""Largest group in which every two subjects of one individual are found, however many there are of it."""
SPEAKERS = 16
"""Subjects that speak for a large individual where a group is larger."""
BELOW = 1e-5
"""Cosines are compared to five decimals: the step from one to the next."""
DECIMALS = 6
"""To which differences are compared: what follows from rounding breaks no tie."""


class IdentityRule(Section):
    """When two subjects of one category are the same individual, seen in different pictures."""

    by: Literal["face", "image", "none"]
    """Embedding that proves it; `none` makes no pairs of this category."""
    min: float = Field(ge=-1, le=1)
    """Least cosine: below it lie other individuals. `s2v calibrate` proposes it."""
    max: float = Field(1.0, ge=-1, le=1)
    """Largest cosine: above it lie copies."""
    min_face: float = Field(0.0, ge=0, le=1)
    """Where faces prove it: least detector score of both; the embedding of an unsure face is anybody's."""
    scope: Literal["anywhere", "same_video", "other_video"] = "anywhere"
    """Which clips may be paired: any other clip, only those of the same video, or only those of other videos."""
    trust_looks: bool = False
    """Whether living things of different videos may be paired by their looks, without a face that proves it."""
    min_difference: float = Field(0.0, ge=0, le=1)
    """Least difference of both pictures by stored numbers: mean of pose, background, size and perceptual hash."""
    min_seconds: float = Field(0.0, ge=0)
    """Least time between both pictures where they are of one video."""


class CrossClipConfig(Section):
    """References from other clips that show the same individual."""

    count: int = Field(2, ge=0)
    """Most pictures per subject; 0 turns the kind off."""
    rules: dict[Category, IdentityRule] = Field({})
    """One rule per category; categories without one make no pairs."""

    @model_validator(mode="after")
    def _living_things_are_proven(self) -> CrossClipConfig:
        for category, rule in self.rules.items():
            if category in LIVING and rule.by == "image" and rule.scope != "same_video" and not rule.trust_looks:
                raise ValueError(
                    f"rules.{category}: living things look alike, and nothing but a face tells those of different "
                    "videos apart. Set scope: same_video or by: face, or trust_looks: true to pair them all the same"
                )
        return self


@dataclass(frozen=True, slots=True)
class Individual:
    """What planning keeps of a subject. Its row holds vectors, which are let go of as soon as they are looked at."""

    subject_id: str
    clip_id: str
    best: int
    content: str
    fingerprint: str

    @classmethod
    def of(cls, subject: Row) -> Individual:
        """``subject`` is a row of ``subjects``."""
        return cls(*(subject[name] for name in ("subject_id", "clip_id", "best", "content", "fingerprint")))


@dataclass(frozen=True, slots=True)
class Rival:
    """A subject that is known to be another one than a target: of its own clip, or too unlike to be the same."""

    subject_id: str
    fingerprint: str


@dataclass(slots=True)
class _Group:
    """Subjects that may be one individual, in the order of their ids, and the unit vector and look of each."""

    rule: IdentityRule
    members: list[Individual] = field(default_factory=list)
    vectors: list[npt.NDArray[np.float32]] = field(default_factory=list)
    looks: list[Look] = field(default_factory=list)


class Crowd:
    """Subjects in groups that are compared within. It holds a vector and a look per subject, and nothing that is large.

    Args:
        rules: what subjects of each category are known by.
        videos: the video of each clip.
        apart: whether subjects that may only be paired within a video are put into a group per video.
    """

    def __init__(self, rules: Mapping[Any, IdentityRule], videos: Mapping[str, str], *, apart: bool) -> None:
        self._rules = rules
        self._videos = videos
        self._apart = apart
        self._groups: dict[tuple[str, str, str], _Group] = {}

    def add(self, subject: Row, individual: Individual) -> None:
        """Put a subject into its group, if a rule says what it is known by."""
        rule = self._rules.get(subject["category"])
        if rule is None or not _can_prove(subject, rule):
            return
        # People are compared across words (a "man" may be a "chef" elsewhere): the face decides.
        word = "" if rule.by == "face" else subject["word"]
        video = self._videos[subject["clip_id"]] if self._apart and rule.scope == "same_video" else ""
        group = self._groups.setdefault((subject["category"], word, video), _Group(rule))
        group.members.append(individual)
        group.vectors.append(_unit(np.asarray(subject[f"{rule.by}_embedding"], np.float32)))
        group.looks.append(Look.of(subject))

    def groups(self) -> Iterator[tuple[IdentityRule, list[Individual], Vectors, list[Look]]]:
        """Each group, its subjects by id. They are given up one by one: this can be done once."""
        for name in sorted(self._groups):
            group = self._groups.pop(name)
            order = sorted(range(len(group.members)), key=lambda number: group.members[number].subject_id)
            vectors = np.stack([group.vectors[number] for number in order])
            group.vectors.clear()
            yield (
                group.rule,
                [group.members[number] for number in order],
                vectors,
                [group.looks[number] for number in order],
            )


def cross_pairs(
    crowd: Crowd, videos: Mapping[str, str], count: int, search: Search = exact
) -> Iterator[tuple[Individual, Individual]]:
    """``(target, source)`` pairs of the same individual in different clips, at most ``count`` sources per target.

    A source is taken when the cosine lies within the rule's bounds and the pictures differ enough; of a clip's
    subjects, only the most alike within the bounds can be one. Sources from other videos come first, then those whose
    pictures differ most; ties are broken by id, so the order of rows does not matter. `CANDIDATES` of the target's own
    video and of others, the most alike within the bounds, are looked at.

    Args:
        crowd: the subjects, with ``apart``; it is used up.
        videos: the video of each clip.
        count: most sources per target.
        search: how a group's vectors are searched.
    """
    for rule, members, vectors, looks in crowd.groups():
        clips = _numbered(member.clip_id for member in members)
        films = _numbered(videos[member.clip_id] for member in members)
        for target, near in _candidates(vectors, films, rule, count, search):
            near = near[(clips[near] != clips[target]) & _in_scope(films[near] == films[target], rule)]
            # Of several in one clip only the most alike can be it: they are seen beside each other.
            near = near[np.sort(np.unique(clips[near], return_index=True)[1])]
            same = films[near] == films[target]
            differences = [
                difference(looks[target], looks[index], same_video=bool(is_same))
                for index, is_same in zip(near.tolist(), same, strict=True)
            ]
            order = sorted(
                (bool(is_same), -round(apart.overall, DECIMALS), index)
                for index, is_same, apart in zip(near.tolist(), same, differences, strict=True)
                if apart.overall >= rule.min_difference and (apart.seconds is None or apart.seconds >= rule.min_seconds)
            )
            for _, _, index in order[:count]:
                yield members[target], members[index]


def same_subjects(crowd: Crowd, search: Search = exact) -> Iterator[tuple[str, str]]:
    """Pairs of subjects that are one individual by the rules' lower bounds, near-copies included.

    They link every two subjects of an individual, directly or through others. In a group of at most `ALL_LINKS`
    subjects all pairs are found; in a larger one each subject's nearest, and then the nearest of a few that speak for
    each individual found so far, until no two are one any more. There, two crowds of more than `CANDIDATES` that touch
    only at their edges may stay apart.

    Args:
        crowd: the subjects, not ``apart``; it is used up.
        search: how a group's vectors are searched.
    """
    for rule, members, vectors, _ in crowd.groups():
        names = [member.subject_id for member in members]
        for a, b in _links(vectors, rule.min, search):
            yield names[a], names[b]


def rivals(crowd: Crowd, count: int, search: Search = exact) -> Iterator[tuple[str, list[Rival]]]:
    """For each subject that a rule can tell from others, those most like it of whom the rule says that they are others.

    Args:
        crowd: the subjects, not ``apart``; it is used up.
        count: most rivals per subject, the most alike first.
        search: how a group's vectors are searched.
    """
    for rule, members, vectors, _ in crowd.groups():
        for target, near, _ in _near(vectors, -1.0, rule.min - BELOW, count, search):
            others = (members[index] for index in near.tolist())
            yield members[target].subject_id, [Rival(other.subject_id, other.fingerprint) for other in others]


def _candidates(
    vectors: Vectors, films: npt.NDArray[np.int64], rule: IdentityRule, count: int, search: Search
) -> Iterator[tuple[int, npt.NDArray[np.int64]]]:
    """Every vector's number, with those of its neighbours within the bounds: the nearest of its own film and of others.

    Where its own film fills the places, it is looked for again, with places for all of that film: however long one is,
    it hides no other.
    """
    sizes = np.bincount(films)
    with search(vectors) as neighbours:
        for start in range(0, len(vectors), SEARCHED_AT_ONCE):
            rows = np.arange(start, min(start + SEARCHED_AT_ONCE, len(vectors)))
            found = [near for near, _ in neighbours.within(rows, rule.min, rule.max, CANDIDATES)]
            hidden = [
                place
                for place, near in enumerate(found)
                if rule.scope != "same_video"
                and len(near) == CANDIDATES
                and np.count_nonzero(films[near] != films[rows[place]]) < count
            ]
            for first in range(0, len(hidden), HIDDEN_AT_ONCE):
                places = hidden[first : first + HIDDEN_AT_ONCE]
                most = CANDIDATES + int(sizes[films[rows[places]]].max())
                for place, (near, _) in zip(
                    places, neighbours.within(rows[places], rule.min, rule.max, most), strict=True
                ):
                    is_own = films[near] == films[rows[place]]
                    found[place] = np.concatenate([near[~is_own][:CANDIDATES], near[is_own][:CANDIDATES]])
            yield from zip(rows.tolist(), found, strict=True)


def _near(
    vectors: Vectors, low: float, high: float, most: int, search: Search
) -> Iterator[tuple[int, npt.NDArray[np.int64], npt.NDArray[np.float32]]]:
    """Every vector's number, with the numbers and cosines of its neighbours within the bounds."""
    with search(vectors) as neighbours:
        for start in range(0, len(vectors), SEARCHED_AT_ONCE):
            rows = np.arange(start, min(start + SEARCHED_AT_ONCE, len(vectors)))
            for row, (near, cosines) in zip(rows.tolist(), neighbours.within(rows, low, high, most), strict=True):
                yield row, near, cosines


def _links(vectors: Vectors, low: float, search: Search) -> Iterator[tuple[int, int]]:
    if len(vectors) <= ALL_LINKS:
        yield from _pairs(vectors, low, len(vectors), search)
        return
    found = list(_pairs(vectors, low, CANDIDATES, search))
    speakers = _speakers(len(vectors), found)
    # Only where a subject has more neighbours than were asked for can a link have been missed.
    while len(speakers) > SPEAKERS:
        found += [(int(speakers[a]), int(speakers[b])) for a, b in _pairs(vectors[speakers], low, 2 * SPEAKERS, search)]
        before, speakers = len(speakers), _speakers(len(vectors), found)
        if len(speakers) == before:
            break
    yield from found


def _pairs(vectors: Vectors, low: float, most: int, search: Search) -> Iterator[tuple[int, int]]:
    for row, near, _ in _near(vectors, low, 1.0 + BELOW, most, search):
        for other in near[near > row].tolist() if most >= len(vectors) else near.tolist():
            yield row, other


def _speakers(size: int, links: Iterable[tuple[int, int]]) -> npt.NDArray[np.int64]:
    """A few numbers of each individual that has more subjects than were looked at, evenly from all of its own."""
    digits = len(str(size))
    named = identities(
        [f"{number:0{digits}}" for number in range(size)], ((f"{a:0{digits}}", f"{b:0{digits}}") for a, b in links)
    )
    members: dict[str, list[int]] = defaultdict(list)
    for number, name in enumerate(named.values()):
        members[name].append(number)
    large = (numbers for numbers in members.values() if len(numbers) > CANDIDATES)
    few = [numbers[:: len(numbers) // SPEAKERS][:SPEAKERS] for numbers in large]
    return np.array(sorted(number for numbers in few for number in numbers), np.int64)


def _numbered(names: Iterable[str]) -> npt.NDArray[np.int64]:
    """A number for each name, equal for equal names."""
    known: dict[str, int] = {}
    return np.array([known.setdefault(name, len(known)) for name in names], np.int64)


def _can_prove(subject: Row, rule: IdentityRule) -> bool:
    if rule.by == "none" or subject[f"{rule.by}_embedding"] is None:
        return False
    return rule.by != "face" or bool(subject["face"] >= rule.min_face)


def _in_scope(same_video: npt.NDArray[np.bool_], rule: IdentityRule) -> npt.NDArray[np.bool_]:
    match rule.scope:
        case "same_video":
            return same_video
        case "other_video":
            return ~same_video
    return np.ones_like(same_video)


def _unit(vector: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    unit: npt.NDArray[np.float32] = (vector / np.maximum(np.linalg.norm(vector, axis=-1), 1e-9)).astype(np.float32)
    return unit
