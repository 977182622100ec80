"""Which vectors lie near to which: the question behind every pair of pictures of one individual."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

import numpy as np
import numpy.typing as npt

Vectors = npt.NDArray[np.float32]
Numbers = npt.NDArray[np.int64]
Found = list[tuple[Numbers, Vectors]]

DECIMALS = 5
"""To which cosines are compared and told. What lies beyond them would tell equal vectors apart."""
TILE = (256, 4096)
"""Rows and columns of cosines computed at once, in memory that is used again and stays in the cache."""
SLACK = 2e-5
"""More than a cosine of 32-bit floats may be off, rounding to :data:`DECIMALS` included."""
PAIRS = 2**22
"""Pairs that may wait to be chosen from: bounds memory, not the result."""
PRODUCTS = 2**20
"""Products of 64-bit floats computed at once."""


class Neighbours(Protocol):
    """Finds, among unit vectors, those near to each."""

    def within(self, rows: Numbers, low: float, high: float, most: int) -> Found:
        """The neighbours of some of the vectors.

        Args:
            rows: ``(rows,)`` numbers of the vectors whose neighbours are asked for.
            low: least cosine, in [-1, 1].
            high: largest cosine. What lies above does not count, however much of it there is.
            most: most neighbours of each.

        Returns:
            Per row the numbers of its neighbours and their cosines, rounded to :data:`DECIMALS`, in [low, high]. The
            nearest comes first, of equally near ones the one with the smaller number. A row is not its own neighbour.
        """
        ...


class Exact:
    """Compares each with all. Memory does not grow with what is asked, apart from the answer."""

    def __init__(self, vectors: Vectors) -> None:
        """``vectors`` are ``(n, d)``, of length 1."""
        self._vectors = vectors

    def within(self, rows: Numbers, low: float, high: float, most: int) -> Found:
        """See :class:`Neighbours`."""
        best = Best(self._vectors, rows, low, high, most)
        for start in range(0, len(rows), TILE[0]):
            block = self._vectors[rows[start : start + TILE[0]]]
            floors = np.full(len(block), low - SLACK, np.float32)
            # One more, because each finds itself.
            for places, numbers in near_pairs(block, self._vectors, floors, high, most + 1):
                best.add(places + start, numbers)
        return best.chosen()


@contextmanager
def exact(vectors: Vectors) -> Iterator[Neighbours]:
    """Search by comparing each with all."""
    yield Exact(vectors)


class Best:
    """Keeps the best of the neighbours that a search comes across, in whatever order and however often it does."""

    def __init__(self, vectors: Vectors, rows: Numbers, low: float, high: float, most: int) -> None:
        """For the rest see :meth:`Neighbours.within`."""
        self._vectors, self._rows = vectors, rows
        self._low, self._high, self._most = low, high, most
        self._places = np.empty(0, np.int64)
        self._numbers = np.empty(0, np.int64)
        self._cosines = np.empty(0, np.float32)
        self._waiting: list[tuple[Numbers, Numbers]] = []
        self._room = PAIRS

    def add(self, places: Numbers, numbers: Numbers) -> None:
        """Consider ``numbers`` as neighbours of the rows at ``places``; both ``(pairs,)``."""
        self._waiting.append((places, numbers))
        self._room -= len(places)
        if self._room < 0:
            self._choose()
            # Where more is kept than may wait, choosing after every few would take forever.
            self._room = max(PAIRS, len(self._places))

    def chosen(self) -> Found:
        """See :meth:`Neighbours.within`."""
        self._choose()
        ends = np.searchsorted(self._places, np.arange(1, len(self._rows)))
        return list(zip(np.split(self._numbers, ends), np.split(self._cosines, ends), strict=True))[: len(self._rows)]

    def _choose(self) -> None:
        if not self._waiting:
            return
        places, numbers = (np.concatenate(side) for side in zip(*self._waiting, strict=True))
        self._waiting.clear()
        own = self._rows[places]
        others = own != numbers
        places, numbers, own = places[others], numbers[others], own[others]
        value = cosines(self._vectors, own, numbers)
        inside = (value >= np.float32(self._low)) & (value <= np.float32(self._high))
        places = np.concatenate([self._places, places[inside]])
        numbers = np.concatenate([self._numbers, numbers[inside]])
        value = np.concatenate([self._cosines, value[inside]])
        order = np.lexsort((numbers, -value, places))
        places, numbers, value = places[order], numbers[order], value[order]
        fresh = np.ones(len(places), np.bool_)
        fresh[1:] = (places[1:] != places[:-1]) | (numbers[1:] != numbers[:-1])
        places, numbers, value = places[fresh], numbers[fresh], value[fresh]
        best = np.arange(len(places)) - np.searchsorted(places, places) < self._most
        self._places, self._numbers, self._cosines = places[best], numbers[best], value[best]


def cosines(vectors: Vectors, a: Numbers, b: Numbers) -> Vectors:
    """The cosine of each pair of numbers, ``(pairs,)``, the same whichever else is computed with it."""
    result = np.empty(len(a), np.float32)
    step = max(1, PRODUCTS // max(1, vectors.shape[1]))
    for start in range(0, len(a), step):
        part = slice(start, start + step)
        left, right = (vectors[side[part]].astype(np.float64) for side in (a, b))
        result[part] = np.round(np.einsum("nd,nd->n", left, right), DECIMALS)
    return result


def near_pairs(
    left: Vectors, right: Vectors, floors: Vectors, high: float, most: int
) -> Iterator[tuple[Numbers, Numbers]]:
    """Places in ``left`` and in ``right`` of the pairs that may be what is looked for, a tile at a time.

    Args:
        left: ``(left, d)``.
        right: ``(right, d)``.
        floors: ``(left,)`` cosines below which nothing is looked for, :data:`SLACK` included. They are raised to what
            ``most`` others have been found to exceed.
        high: largest cosine looked for.
        most: how many are looked for in each row of ``left``. No pair that is one of them is missing; more come.
    """
    products = np.empty(TILE[0] * TILE[1], np.float32)
    inside = np.empty(TILE[0] * TILE[1], np.bool_)
    for top in range(0, len(left), TILE[0]):
        block, floor = left[top : top + TILE[0]], floors[top : top + TILE[0]]
        for start in range(0, len(right), TILE[1]):
            others = right[start : start + TILE[1]]
            width = len(others)
            tile = products[: len(block) * width].reshape(len(block), width)
            may = inside[: tile.size].reshape(tile.shape)
            np.matmul(block, others.T, out=tile)
            np.greater_equal(tile, floor[:, None], out=may)
            hits = np.flatnonzero(may)
            if len(hits):
                values = tile.ravel()[hits]
                fits = values <= np.float32(high + SLACK)
                hits, values = hits[fits], values[fits]
                hits = hits[_unbeaten(hits // width, values, floor, high, most)]
                yield hits // width + top, hits % width + start


def _unbeaten(places: Numbers, values: Vectors, floors: Vectors, high: float, most: int) -> npt.NDArray[np.bool_]:
    """Which of the pairs, sorted by place, may be among the ``most`` best of theirs; raises their floors."""
    keeps = np.ones(len(places), np.bool_)
    counts = np.bincount(places, minlength=len(floors))
    ends = np.cumsum(counts)
    for place in np.flatnonzero(counts > most).tolist():
        end = ends[place]
        own = values[end - counts[place] : end]
        # What may turn out to exceed the bound must not displace what does not.
        sure = own[own <= np.float32(high - SLACK)]
        if len(sure) > most:
            beaten = len(sure) - most
            floors[place] = max(floors[place], np.partition(sure, beaten)[beaten] - np.float32(SLACK))
            keeps[end - counts[place] : end] = own >= floors[place]
    return keeps
