"""In whose place a subject may be put: the plan of subject swapping, on stored numbers alone."""

from __future__ import annotations

import hashlib
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

from stages.pair import Individual
from stages.swap import FitConfig, Stance, fits

Row = Mapping[str, Any]

TRIES = 64
"""Hosts that are looked at for each picture."""
MOST = 2
"""How many times as often as on average a subject is host where another one fits, too: places on a ring are uneven."""


class Hosts:
    """Subjects of one category, in a ring by the hash of their ids.

    For each target the ring is walked from a place that follows from the target's id and the picture's number, to the
    first subject of another video whose stance fits and that is not host too often already; if all are, to the first
    that fits. So no subject is host much more often than others, each identity comes before many backgrounds and each
    background behind many identities, and a new subject changes few pairs.

    Args:
        config: what fits.
        count: hosts for each target.
        videos: the video of each clip.
    """

    def __init__(self, config: FitConfig, count: int, videos: Mapping[str, str]) -> None:
        self._config = config
        self._count = count
        self._videos = videos
        self._rings: dict[str, list[tuple[str, Individual, Stance]]] = defaultdict(list)

    def add(self, subject: Row, individual: Individual) -> None:
        """Put a subject into its ring; it is a target and a host."""
        if not self._count:
            return
        stance = Stance.of(subject, subject["frame_width"], subject["frame_height"])
        self._rings[subject["category"]].append((_hash(individual.subject_id), individual, stance))

    def pairs(self, seed: int) -> Iterator[tuple[Individual, Individual, int]]:
        """``(target, host, number)``: at most ``count`` hosts for each target, numbered from 0."""
        for category in sorted(self._rings):
            ring = sorted(self._rings[category], key=lambda entry: entry[0])
            places = [place for place, _, _ in ring]
            hosted: Counter[str] = Counter()
            for _, target, stance in ring:
                used: set[str] = set()
                for number in range(self._count):
                    start = bisect_left(places, _hash(f"{target.subject_id}:{seed + number}"))
                    walk = (ring[(start + step) % len(ring)] for step in range(min(TRIES, len(ring))))
                    fitting = [
                        host
                        for _, host, place in walk
                        if self._videos[target.clip_id] != self._videos[host.clip_id]
                        and host.subject_id not in used
                        and fits(stance, place, self._config)
                    ]
                    if fitting:
                        free = (host for host in fitting if hosted[host.subject_id] < MOST * self._count)
                        host = next(free, fitting[0])
                        used.add(host.subject_id)
                        hosted[host.subject_id] += 1
                        yield target, host, number


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
