"""Pairs of pictures that a workspace holds, of one individual or of two, and how sure that is without any label.

Two kept frames of a subject's track show one individual. Two subjects seen in one keyframe are two.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from curation.labelled_pairs import LabelledPair
from curation.workspace import Workspace
from stages.calibration import Pairs, evenly
from stages.records import Clip, Subject, Verdict

By = Literal["face", "image"]
EMBEDDINGS: tuple[By, ...] = ("face", "image")
MOST_SUBJECTS = 20_000
MOST_ACROSS = 20_000
"""Pairs of subjects of different videos that are drawn, per category and embedding."""
INSIDE = 0.5
"""Share of the smaller of two boxes inside the other from which on they may hold one thing, found twice."""

COLUMNS = ("subject_id", "clip_id", "word", "category", "best", "face", "face_embedding", "image_embedding", "frames")
Vectors = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Tracked:
    """A subject's kept frames, as far as they are compared. Vectors have unit length."""

    number: int
    subject_id: str
    clip_id: str
    video_id: str
    word: str
    category: str
    best: int
    face: float
    times: tuple[float, ...]
    boxes: tuple[tuple[float, ...], ...]
    faces: tuple[float, ...]
    vectors: Mapping[By, tuple[Vectors | None, ...]]
    """Per frame."""
    means: Mapping[By, Vectors | None]
    """Of the subject: what `references.cross_clip` compares."""


def read_tracked(workspace: Workspace, named: Iterable[str] = ()) -> list[Tracked]:
    """The subjects that passed, by id, and those that are named whether they passed or not.

    Of more than `MOST_SUBJECTS`, those of some clips: all subjects of a clip or none.
    """
    kept = set(workspace.read(Verdict, ["id"], "keep AND kind = 'subject'").column("id").to_pylist())
    videos = {row["clip_id"]: row["video_id"] for row in workspace.rows(Clip, ["clip_id", "video_id"])}
    clips = _some_clips(row["clip_id"] for row in workspace.rows(Subject, ["subject_id", "clip_id"]))
    wanted = set(named)
    rows = (
        row
        for row in workspace.rows(Subject, COLUMNS)
        if row["subject_id"] in wanted or (row["subject_id"] in kept and row["clip_id"] in clips)
    )
    found = sorted((_tracked(row, videos[row["clip_id"]]) for row in rows), key=lambda subject: subject.subject_id)
    return [replace(subject, number=number) for number, subject in enumerate(found)]


def tracked_same(subjects: Iterable[Tracked], by: By) -> Pairs:
    """Any two kept frames of one subject. A pair counts for as many seconds as lie between them.

    Neighbouring frames are alike whoever they show; the further apart, the more like another clip's they are.
    """
    return _pairs(
        (float(a @ b), subject.times[j] - subject.times[i], subject, subject, _surest(subject, i, subject, j, by))
        for subject in subjects
        for i, j in combinations(range(len(subject.times)), 2)
        if (a := subject.vectors[by][i]) is not None and (b := subject.vectors[by][j]) is not None
    )


def tracked_different(subjects: Iterable[Tracked], by: By) -> Pairs:
    """Frames of two subjects in one keyframe. All those of two subjects together count once.

    By their looks only things of one word are compared, as `references.cross_clip` does, and none of which one lies
    within the other: that may be one thing, found twice.
    """
    clips: dict[str, list[Tracked]] = defaultdict(list)
    for subject in subjects:
        clips[subject.clip_id].append(subject)
    return _evened(
        _pairs(
            (float(a @ b), 1.0, one, other, _surest(one, i, other, j, by))
            for together in clips.values()
            for one, other in combinations(together, 2)
            if by == "face" or one.word == other.word
            for i, j in _moments(one, other)
            if by == "face" or _inside(one.boxes[i], other.boxes[j]) < INSIDE
            if (a := one.vectors[by][i]) is not None and (b := other.vectors[by][j]) is not None
        )
    )


def different_across(subjects: Sequence[Tracked], by: By, seed: int) -> Pairs:
    """Best frames of subjects of different videos: right if, and only if, no individual is in two videos."""
    seen = [subject for subject in subjects if subject.vectors[by][subject.best] is not None]
    return _pairs(
        (
            float(_vector(one.vectors[by][one.best]) @ _vector(other.vectors[by][other.best])),
            1.0,
            one,
            other,
            _surest(one, one.best, other, other.best, by),
        )
        for one, other in _drawn(seen, seed)
        if one.video_id != other.video_id and (by == "face" or one.word == other.word)
    )


def labelled(pairs: Iterable[LabelledPair], subjects: Mapping[str, Tracked], by: By, *, same: bool) -> Pairs:
    """The pairs that were labelled so, compared by the subjects' own embeddings; those without one are left out."""
    return _pairs(
        (float(u @ v), 1.0, a, b, min(a.face, b.face) if by == "face" else 1.0)
        for pair in pairs
        if pair.same == same
        for a, b in [(subjects[pair.a], subjects[pair.b])]
        if (u := a.means[by]) is not None and (v := b.means[by]) is not None
    )


def neighbour_cosines(subjects: Iterable[Tracked], by: By, within_s: float) -> npt.NDArray[np.float64]:
    """Cosines of neighbouring kept frames of a track that lie less than ``within_s`` seconds apart."""
    return np.array(
        [
            float(a @ b)
            for subject in subjects
            for i in range(len(subject.times) - 1)
            if subject.times[i + 1] - subject.times[i] < within_s
            if (a := subject.vectors[by][i]) is not None and (b := subject.vectors[by][i + 1]) is not None
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


def _tracked(row: Mapping[str, Any], video_id: str) -> Tracked:
    frames = row["frames"]
    return Tracked(
        number=-1,
        subject_id=row["subject_id"],
        clip_id=row["clip_id"],
        video_id=video_id,
        word=row["word"],
        category=row["category"],
        best=row["best"],
        face=row["face"],
        times=tuple(frame["time"] for frame in frames),
        boxes=tuple(tuple(frame["box"]) for frame in frames),
        faces=tuple(frame["face"] for frame in frames),
        vectors={by: tuple(_unit(frame[f"{by}_embedding"]) for frame in frames) for by in EMBEDDINGS},
        means={by: _unit(row[f"{by}_embedding"]) for by in EMBEDDINGS},
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


def _evened(pairs: Pairs) -> Pairs:
    return replace(pairs, weights=evenly(pairs.subjects))


def _surest(one: Tracked, i: int, other: Tracked, j: int, by: By) -> float:
    """The lower detector score of both faces; by looks alone there is nothing to be unsure of."""
    return min(one.faces[i], other.faces[j]) if by == "face" else 1.0


def _moments(one: Tracked, other: Tracked) -> Iterator[tuple[int, int]]:
    """Places of the keyframes in which both were kept."""
    places = {time: place for place, time in enumerate(other.times)}
    return ((place, places[time]) for place, time in enumerate(one.times) if time in places)


def _inside(a: Sequence[float], b: Sequence[float]) -> float:
    """Share of the smaller box that lies inside the other; [0, 1]."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    smaller = min((box[2] - box[0]) * (box[3] - box[1]) for box in (a, b))
    return max(0.0, width) * max(0.0, height) / smaller if smaller > 0 else 1.0


def _drawn(subjects: Sequence[Tracked], seed: int) -> Iterator[tuple[Tracked, Tracked]]:
    """Every two subjects, or `MOST_ACROSS` draws of two where there are more."""
    count = len(subjects)
    if count * (count - 1) // 2 <= MOST_ACROSS:
        yield from combinations(subjects, 2)
        return
    draws = np.random.default_rng(seed).integers(0, count, (MOST_ACROSS, 2))
    for one, other in np.unique(np.sort(draws, axis=1), axis=0).tolist():
        yield subjects[one], subjects[other]


def _vector(vector: Vectors | None) -> Vectors:
    assert vector is not None
    return vector
