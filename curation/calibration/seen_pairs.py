"""Pairs of pictures that a workspace holds, of one individual or of two, as sure as that is without any label.

The kept frames of a subject's track show one individual. Two subjects of one keyframe are two. They are compared as
`references.cross_clip` does it, by unit means over frames: means are steadier than frames, and so more alike whether
they show one individual or two.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from curation.calibration.labelled_pairs import LabelledPair
from curation.workspace import Workspace
from stages.calibration import Pairs
from stages.records import Clip, Subject, Verdict

By = Literal["face", "image"]
EMBEDDINGS: tuple[By, ...] = ("face", "image")
MOST_SUBJECTS = 20_000
"""Subjects that are read: their vectors are all held at once."""
MOST_ACROSS = 20_000
"""Pairs of subjects of different videos that are drawn, per category and embedding."""
INSIDE = 0.5
"""Share of the smaller of two boxes inside the other from which on they may hold one thing, found twice."""

COLUMNS = ("subject_id", "clip_id", "word", "category", "face", "face_embedding", "image_embedding", "frames")
Vectors = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Sight:
    """A kept frame of a subject. Vectors have unit length."""

    time: float
    box: tuple[float, ...]
    face: float
    vectors: Mapping[By, Vectors | None]


@dataclass(frozen=True, slots=True)
class Tracked:
    """A subject, as far as it is compared."""

    number: int
    """Its place among all that were read."""
    subject_id: str
    clip_id: str
    video_id: str
    word: str
    category: str
    face: float
    means: Mapping[By, Vectors | None]
    """Unit means over the kept frames: what `references.cross_clip` compares."""
    sights: tuple[Sight, ...]
    """By time."""


def read_tracked(workspace: Workspace, named: Iterable[str] = ()) -> list[Tracked]:
    """The subjects that passed, by id, and those that are named whether they passed or not.

    Of more than `MOST_SUBJECTS`, those of some clips: all subjects of a clip or none.
    """
    kept = set(workspace.read(Verdict, ["id"], "keep AND kind = 'subject'").column("id").to_pylist())
    videos = {row["clip_id"]: row["video_id"] for row in workspace.rows(Clip, ["clip_id", "video_id"])}
    clip_of = {row["subject_id"]: row["clip_id"] for row in workspace.rows(Subject, ["subject_id", "clip_id"])}
    clips = _some_clips(clip for name, clip in clip_of.items() if name in kept)
    wanted = {name for name, clip in clip_of.items() if name in kept and clip in clips} | set(named)
    numbers = {name: number for number, name in enumerate(sorted(wanted))}
    found = [
        _tracked(row, numbers[row["subject_id"]], videos[row["clip_id"]])
        for row in workspace.rows(Subject, COLUMNS)
        if row["subject_id"] in numbers
    ]
    return sorted(found, key=lambda subject: subject.number)


def tracked_same(subjects: Iterable[Tracked], by: By) -> Pairs:
    """The earlier and the later half of each subject's kept frames, each its unit mean.

    A pair counts for as many seconds as lie between the halves: neighbouring frames are alike whoever they show; the
    further apart, the more like another clip's they are.
    """
    return _pairs(
        (
            float(_mean(early, by) @ _mean(late, by)),
            _middle(late) - _middle(early),
            subject,
            subject,
            min(_surest(early), _surest(late)) if by == "face" else 1.0,
        )
        for subject in subjects
        for early, late in _halves([sight for sight in subject.sights if sight.vectors[by] is not None])
    )


def tracked_different(subjects: Iterable[Tracked], by: By) -> Pairs:
    """Two subjects of one keyframe.

    By their faces, both must show one there. By their looks only things of one word are compared, as
    `references.cross_clip` does, and none of which one lies within the other: that may be one thing, found twice.
    """
    clips: dict[str, list[Tracked]] = defaultdict(list)
    for subject in subjects:
        clips[subject.clip_id].append(subject)
    return _different(
        (
            (one, other)
            for together in clips.values()
            for one, other in combinations(together, 2)
            if _are_two(one, other, by)
        ),
        by,
    )


def different_across(subjects: Sequence[Tracked], by: By, seed: int) -> Pairs:
    """Subjects of different videos: right if, and only if, no individual is in two videos."""
    return _different(((one, other) for one, other in _drawn(subjects, seed) if one.video_id != other.video_id), by)


def labelled(pairs: Iterable[LabelledPair], subjects: Mapping[str, Tracked], by: By, *, same: bool) -> Pairs:
    """The pairs that were labelled so; those without such an embedding are left out."""
    return _pairs(
        _comparison(subjects[pair.a], subjects[pair.b], by)
        for pair in pairs
        if pair.same == same
        if _comparable(subjects[pair.a], by) and _comparable(subjects[pair.b], by)
    )


def neighbour_cosines(subjects: Iterable[Tracked], by: By, within_s: float) -> npt.NDArray[np.float64]:
    """Cosines of neighbouring kept frames of a track that lie less than ``within_s`` seconds apart."""
    return np.array(
        [
            float(a @ b)
            for subject in subjects
            for one, other in pairwise(subject.sights)
            if other.time - one.time < within_s
            if (a := one.vectors[by]) is not None and (b := other.vectors[by]) is not None
        ],
        np.float64,
    )


def together(*parts: Pairs) -> Pairs:
    """All these pairs as one."""
    return Pairs(
        np.concatenate([part.scores for part in parts]),
        np.concatenate([part.weights for part in parts]),
        np.concatenate([part.subjects for part in parts]),
        np.concatenate([part.faces for part in parts]),
    )


def without(pairs: Pairs, known: Iterable[tuple[Tracked, Tracked]]) -> Pairs:
    """Those of other subjects than these pairs of them."""
    taken = {frozenset((one.number, other.number)) for one, other in known}
    return pairs.where(np.array([frozenset(two) not in taken for two in pairs.subjects.tolist()], bool))


def _some_clips(clip_of_each: Iterable[str]) -> set[str]:
    """Clips that together have at most `MOST_SUBJECTS`. Their ids are hashes: the first are as good as drawn."""
    counts: dict[str, int] = defaultdict(int)
    for clip in clip_of_each:
        counts[clip] += 1
    total, chosen = 0, set[str]()
    for clip in sorted(counts):
        total += counts[clip]
        if total > MOST_SUBJECTS and chosen:
            break
        chosen.add(clip)
    return chosen


def _tracked(row: Mapping[str, Any], number: int, video_id: str) -> Tracked:
    return Tracked(
        number=number,
        subject_id=row["subject_id"],
        clip_id=row["clip_id"],
        video_id=video_id,
        word=row["word"],
        category=row["category"],
        face=row["face"],
        means={by: _unit(row[f"{by}_embedding"]) for by in EMBEDDINGS},
        sights=tuple(
            Sight(
                time=frame["time"],
                box=tuple(frame["box"]),
                face=frame["face"],
                vectors={by: _unit(frame[f"{by}_embedding"]) for by in EMBEDDINGS},
            )
            for frame in row["frames"]
        ),
    )


def _unit(values: Sequence[float] | None) -> Vectors | None:
    if values is None:
        return None
    vector = np.asarray(values, np.float32)
    return vector / np.float32(max(float(np.linalg.norm(vector)), 1e-9))


def _pairs(found: Iterable[tuple[float, float, Tracked, Tracked, float]]) -> Pairs:
    """Of ``(score, weight, one, other, face)``."""
    rows = [(score, weight, one.number, other.number, face) for score, weight, one, other, face in found]
    values = np.array(rows, np.float64).reshape(-1, 5)
    return Pairs(values[:, 0], values[:, 1], values[:, 2:4].astype(np.int64), values[:, 4])


def _different(pairs: Iterable[tuple[Tracked, Tracked]], by: By) -> Pairs:
    return _pairs(
        _comparison(one, other, by)
        for one, other in pairs
        if (by == "face" or one.word == other.word) and _comparable(one, by) and _comparable(other, by)
    )


def _comparable(subject: Tracked, by: By) -> bool:
    return subject.means[by] is not None


def _comparison(one: Tracked, other: Tracked, by: By) -> tuple[float, float, Tracked, Tracked, float]:
    """By looks alone there is no face to be unsure of."""
    a, b = one.means[by], other.means[by]
    assert a is not None
    assert b is not None
    return float(a @ b), 1.0, one, other, min(one.face, other.face) if by == "face" else 1.0


def _are_two(one: Tracked, other: Tracked, by: By) -> bool:
    """Whether both were seen in one keyframe, and not as parts of each other."""
    later = {sight.time: sight for sight in other.sights}
    moments = ((sight, later[sight.time]) for sight in one.sights if sight.time in later)
    if by == "face":
        return any(a.vectors[by] is not None and b.vectors[by] is not None for a, b in moments)
    shares = [_inside(a.box, b.box) for a, b in moments]
    return bool(shares) and max(shares) < INSIDE


def _inside(a: Sequence[float], b: Sequence[float]) -> float:
    """Share of the smaller box that lies inside the other; [0, 1]."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    smaller = min((box[2] - box[0]) * (box[3] - box[1]) for box in (a, b))
    return max(0.0, width) * max(0.0, height) / smaller if smaller > 0 else 1.0


def _halves(sights: Sequence[Sight]) -> Iterator[tuple[Sequence[Sight], Sequence[Sight]]]:
    if len(sights) > 1:
        yield sights[: len(sights) // 2], sights[len(sights) // 2 :]


def _mean(sights: Sequence[Sight], by: By) -> Vectors:
    vectors = [vector for sight in sights if (vector := sight.vectors[by]) is not None]
    total: Vectors = np.sum(vectors, axis=0, dtype=np.float32)
    return total / np.float32(max(float(np.linalg.norm(total)), 1e-9))


def _middle(sights: Sequence[Sight]) -> float:
    return float(np.mean([sight.time for sight in sights]))


def _surest(sights: Sequence[Sight]) -> float:
    return max(sight.face for sight in sights)


def _drawn(subjects: Sequence[Tracked], seed: int) -> Iterator[tuple[Tracked, Tracked]]:
    """Every two subjects, or `MOST_ACROSS` draws of two where there are more."""
    count = len(subjects)
    if count * (count - 1) // 2 <= MOST_ACROSS:
        yield from combinations(subjects, 2)
        return
    draws = np.random.default_rng(seed).integers(0, count, (MOST_ACROSS, 2))
    for one, other in np.unique(np.sort(draws, axis=1), axis=0).tolist():
        yield subjects[one], subjects[other]
