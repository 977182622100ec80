"""Links what was found in single keyframes into tracks: the same subject through a clip."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from models.masks import box_iou, box_of, mask_iou
from models.protocols import Box, Detection, Mask, Segmentation, Vector

DUPLICATE_IOU = 0.8
"""Masks of one frame that overlap more than this are the same thing (the peers' choice for suppression)."""

_MEMORY = 2
"""Keyframes back that a track may have been seen last: one missing in between is bridged."""

_COST_LIMIT = 0.55
"""Pairs that cost more are different subjects. See `_cost`."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """Something found in one keyframe: its mask is not empty, ``appearance`` has unit length."""

    detection: Detection
    segmentation: Segmentation
    appearance: Vector

    @property
    def mask(self) -> Mask:
        """Where it is in its keyframe."""
        return self.segmentation.mask


@dataclass(frozen=True, slots=True)
class Track:
    """One subject through a clip: for each keyframe the index of its candidate, or nothing where it was not seen."""

    word: str
    indices: tuple[int | None, ...]

    @property
    def members(self) -> list[tuple[int, int]]:
        """``(keyframe, candidate)`` where the subject was seen, in order of time."""
        return [(keyframe, index) for keyframe, index in enumerate(self.indices) if index is not None]


@dataclass(slots=True)
class _Open:
    """A track that is still being drawn."""

    word: str
    instance: int | None
    members: dict[int, int]
    last: int
    box: Box
    mask: Mask
    appearances: list[Vector] = field(default_factory=list)

    @property
    def appearance(self) -> Vector:
        """Unit mean of the members' appearances."""
        mean: Vector = np.mean(self.appearances, axis=0)
        return mean / np.float32(max(float(np.linalg.norm(mean)), 1e-12))

    def take(self, keyframe: int, index: int, candidate: Candidate) -> None:
        self.members[keyframe] = index
        self.last = keyframe
        self.box = box_of(candidate.mask)
        self.mask = candidate.mask
        self.appearances.append(candidate.appearance)


def suppress(detections: Sequence[Detection], segmentations: Sequence[Segmentation]) -> list[int]:
    """Indices of one keyframe's detections without empty masks and duplicates, in the order given.

    Of masks that overlap by more than `DUPLICATE_IOU`, of whatever words, the one with the better detector score stays.
    """
    found = [index for index, segmentation in enumerate(segmentations) if segmentation.mask.any()]
    found.sort(key=lambda index: _rank(detections[index], segmentations[index]))
    kept: list[int] = []
    for index in found:
        mask, box = segmentations[index].mask, box_of(segmentations[index].mask)
        if not any(
            # Boxes first: comparing whole masks of every pair of a crowd is slow.
            box_iou(box, box_of(segmentations[other].mask)) > DUPLICATE_IOU / 2
            and mask_iou(mask, segmentations[other].mask) > DUPLICATE_IOU
            for other in kept
        ):
            kept.append(index)
    return sorted(kept)


def link(frames: Sequence[Sequence[Candidate]]) -> list[Track]:
    """Tracks through a clip's keyframes, from the candidates of each (without duplicates, see `suppress`).

    Every candidate belongs to exactly one track; tracks hold one word. Candidates that a network has followed already
    (see `Detection.instance`) are one track per instance. As for the others, keyframe by keyframe, the candidates are
    assigned to the tracks seen in the last two at the least total cost (Hungarian method); what costs too much starts
    a track of its own. The order of the candidates within a keyframe does not matter.
    """
    tracks: list[_Open] = []
    for keyframe, candidates in enumerate(frames):
        order = sorted(
            range(len(candidates)), key=lambda index: _rank(candidates[index].detection, candidates[index].segmentation)
        )
        for word in sorted({candidate.detection.word for candidate in candidates}):
            fresh = [
                index
                for index in order
                if candidates[index].detection.word == word and candidates[index].detection.instance is None
            ]
            living = [
                track
                for track in tracks
                if track.word == word and track.instance is None and keyframe - track.last <= _MEMORY
            ]
            for row, column in _assign(living, [candidates[index] for index in fresh]):
                living[row].take(keyframe, fresh[column], candidates[fresh[column]])
            taken = {track.members.get(keyframe) for track in living}
            for index in fresh:
                if index not in taken:
                    tracks.append(_begin(keyframe, index, candidates[index]))
        for index in order:
            if candidates[index].detection.instance is not None:
                _join(tracks, keyframe, index, candidates[index])
    return [
        Track(track.word, tuple(track.members.get(keyframe) for keyframe in range(len(frames)))) for track in tracks
    ]


def _join(tracks: list[_Open], keyframe: int, index: int, candidate: Candidate) -> None:
    """Add a candidate to the track of its instance, or begin that."""
    own = candidate.detection.word, candidate.detection.instance
    track = next((track for track in tracks if (track.word, track.instance) == own), None)
    if track is None:
        tracks.append(_begin(keyframe, index, candidate))
    else:
        track.take(keyframe, index, candidate)


def _rank(detection: Detection, segmentation: Segmentation) -> tuple[float, float, str, Box]:
    """Best first; the rest of the key makes the order a matter of content alone."""
    return (-detection.score, -segmentation.score, detection.word, detection.box)


def _begin(keyframe: int, index: int, candidate: Candidate) -> _Open:
    track = _Open(
        candidate.detection.word,
        candidate.detection.instance,
        {},
        keyframe,
        box_of(candidate.mask),
        candidate.mask,
    )
    track.take(keyframe, index, candidate)
    return track


def _assign(tracks: Sequence[_Open], candidates: Sequence[Candidate]) -> list[tuple[int, int]]:
    if not tracks or not candidates:
        return []
    costs: npt.NDArray[np.float64] = np.array(
        [[_cost(track, candidate) for candidate in candidates] for track in tracks]
    )
    from scipy.optimize import linear_sum_assignment  # Two seconds that workers without tracks need not wait.

    # Capped, so that a hopeless pair does not force a likely one apart.
    rows, columns = linear_sum_assignment(np.minimum(costs, _COST_LIMIT))
    return [
        (int(row), int(column)) for row, column in zip(rows, columns, strict=True) if costs[row, column] < _COST_LIMIT
    ]


def _cost(track: _Open, candidate: Candidate) -> float:
    """Unlikeness of a track's last sighting and a candidate; [0, 1].

    Keyframes lie up to a second apart and a subject may have left its own outline by then. So overlap counts only in
    part; the way between the centres (in diagonals of the larger box), size and appearance make up for it.
    """
    box = box_of(candidate.mask)
    overlap = max(mask_iou(track.mask, candidate.mask), box_iou(track.box, box))
    (width_a, height_a), (width_b, height_b) = _size(track.box), _size(box)
    way = math.hypot(track.box[0] + track.box[2] - box[0] - box[2], track.box[1] + track.box[3] - box[1] - box[3]) / 2
    distance = min(1.0, way / max(math.hypot(width_a, height_a), math.hypot(width_b, height_b)))
    size = math.sqrt(min(width_a * height_a, width_b * height_b) / max(width_a * height_a, width_b * height_b))
    unlike = min(1.0, 1 - float(track.appearance @ candidate.appearance))
    return 0.35 * (1 - overlap) + 0.2 * distance + 0.15 * (1 - size) + 0.3 * unlike


def _size(box: Box) -> tuple[float, float]:
    return box[2] - box[0], box[3] - box[1]
