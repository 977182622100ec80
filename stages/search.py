"""Neighbours of unit vectors, found exactly."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

import numpy as np
import numpy.typing as npt

Numbers = npt.NDArray[np.int64]
Vectors = npt.NDArray[np.float32]

BLOCK = 128
DECIMALS = 5


class Neighbours(Protocol):
    """Finds, among unit vectors, those near to each."""

    def within(
        self, rows: Numbers, low: float, high: float, most: int
    ) -> list[tuple[Numbers, npt.NDArray[np.float32]]]:
        """Per row: the others whose cosine lies in [low, high], best first, at most ``most``; ties by number."""
        ...


class Exact:
    """Compares every row with all vectors."""

    def __init__(self, vectors: Vectors) -> None:
        self._vectors = vectors

    def within(
        self, rows: Numbers, low: float, high: float, most: int
    ) -> list[tuple[Numbers, npt.NDArray[np.float32]]]:
        """See :class:`Neighbours`."""
        found = []
        for start in range(0, len(rows), BLOCK):
            part = rows[start : start + BLOCK]
            cosines = np.round(self._vectors[part] @ self._vectors.T, DECIMALS)
            for row, own in zip(part.tolist(), cosines, strict=True):
                near = np.flatnonzero((own >= np.float32(low)) & (own <= np.float32(high)))
                near = near[near != row]
                near = near[np.lexsort((near, -own[near]))][:most]
                found.append((near, own[near]))
        return found


@contextmanager
def exact(vectors: Vectors) -> Iterator[Neighbours]:
    """Search by comparing every row with all."""
    yield Exact(vectors)
