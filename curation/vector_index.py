"""Neighbours among more vectors than can all be compared: in a Lance vector index.

Lance keeps the vectors in partitions around centroids, on disk. A search goes through the partitions one by one: all
rows that a partition is near to are multiplied with all of its vectors in one matrix product. Lance's own search, which
scores vector by vector, takes three times as long on the same partitions, and up to a hundred thousand vectors no less
than comparing all with all (``benchmarks/retrieval.py``).
"""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa

import curation.late_pandas  # noqa: F401 - before Lance, which makes arrays

import lance  # isort: skip
from lance.dataset import VectorIndexReader  # isort: skip

from stages.search import SLACK, Best, Exact, Found, Neighbours, Numbers, Vectors, near_pairs

# Of no use here, and Lance warns as long as nobody says it.
os.environ.setdefault("LANCE_INCLUDE_VECTOR_CENTROIDS", "false")

EXACT_BELOW = 20_000
"""Vectors that comparing all with all is quick enough for."""
PARTITION = 256
"""Vectors of a partition, on average."""
PROBES = 4.0
"""Partitions searched for each row, times the root of their number: the share that it takes falls as they grow many."""
SAMPLE = 32
"""Vectors per partition from which the centroids are learned."""
ROUNDS = 6
"""Of k-means."""
ROWS = 2**16
"""Rows that are looked for together: bounds memory."""


@contextmanager
def neighbours(vectors: Vectors, exact_below: int = EXACT_BELOW, folder: Path | None = None) -> Iterator[Neighbours]:
    """The search that fits so many vectors: by comparing all with all, or in an index that is removed afterwards.

    Args:
        vectors: ``(n, d)``, of length 1.
        exact_below: fewer vectors than these are compared all with all.
        folder: where the index is written; the system's folder for temporary files, if it is not said.
    """
    if len(vectors) < exact_below:
        yield Exact(vectors)
        return
    with tempfile.TemporaryDirectory(prefix="s2v-index-", dir=folder) as name:
        yield LanceNeighbours(vectors, Path(name))


class LanceNeighbours:
    """Compares each with the vectors of the partitions nearest to it. Some neighbours are missed, none is made up.

    What is found for a row depends on the vectors and their order alone: not on chance, the number of threads, or which
    other rows are asked for.
    """

    def __init__(self, vectors: Vectors, folder: Path, threads: int | None = None) -> None:
        """Write the index.

        Args:
            vectors: ``(n, d)``, of length 1; they are kept.
            folder: an empty folder, which is the index's as long as it is searched.
            threads: how many search at a time, as many as there are CPUs if it is not said.
        """
        self._vectors = vectors
        self._threads = threads or os.cpu_count() or 1
        self._centroids = centroids(vectors, max(1, len(vectors) // PARTITION), seed=0)
        self.probes = min(len(self._centroids), math.ceil(PROBES * len(self._centroids) ** 0.5))
        """Partitions that are searched for each row."""
        flat = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), vectors.shape[1])
        dataset = lance.write_dataset(pa.table({"vector": flat}), str(folder / "vectors.lance"))
        dataset = dataset.create_index(
            "vector",
            "IVF_FLAT",
            name="vector",
            metric="cosine",
            num_partitions=len(self._centroids),
            ivf_centroids=self._centroids,
        )
        self._reader = VectorIndexReader(dataset, "vector")

    def within(self, rows: Numbers, low: float, high: float, most: int) -> Found:
        """See :class:`stages.search.Neighbours`; it is the quicker per row the more rows are asked for at once."""
        with ThreadPoolExecutor(self._threads) as pool:
            parts = (rows[start : start + ROWS] for start in range(0, len(rows), ROWS))
            return [one for part in parts for one in self._together(part, low, high, most, pool)]

    def _together(self, rows: Numbers, low: float, high: float, most: int, pool: ThreadPoolExecutor) -> Found:
        floors = np.full(len(rows), low - SLACK, np.float32)
        asked = self._asked(rows, pool)

        def pairs_in(partition: int) -> list[tuple[Numbers, Numbers]]:
            places = asked[partition]
            if not len(places):
                return []
            numbers, vectors = self._partition(partition)
            floor = floors[places]
            # One more, because each finds itself.
            pairs = near_pairs(self._vectors[rows[places]], vectors, floor, high, most + 1)
            found = [(places[a], numbers[b]) for a, b in pairs]
            # Of two threads the last one's counts; every floor is a true one.
            floors[places] = np.maximum(floors[places], floor)
            return found

        best = Best(self._vectors, rows, low, high, most)
        for found in pool.map(pairs_in, range(len(self._centroids))):
            for places, numbers in found:
                best.add(places, numbers)
        return best.chosen()

    def _asked(self, rows: Numbers, pool: ThreadPoolExecutor) -> list[Numbers]:
        """Per partition the places of the rows that it is searched for."""
        count = self.probes
        wide = self._centroids.astype(np.float64)

        def nearest(start: int) -> npt.NDArray[np.int64]:
            # In 64 bits, as below.
            near = self._vectors[rows[start : start + 256]].astype(np.float64) @ wide.T
            return np.argpartition(-near, min(count, near.shape[1] - 1), axis=1)[:, :count]

        chosen = np.concatenate(list(pool.map(nearest, range(0, len(rows), 256)))).ravel()
        order = np.argsort(chosen, kind="stable")
        ends = np.searchsorted(chosen[order], np.arange(1, len(self._centroids)))
        return np.split(order // count, ends)

    def _partition(self, number: int) -> tuple[Numbers, Vectors]:
        """Numbers and vectors of a partition."""
        table = self._reader.read_partition(number, with_vector=True)
        flat = table["flat"].combine_chunks().flatten().to_numpy().reshape(len(table), self._vectors.shape[1])
        return table["_rowid"].to_numpy().astype(np.int64), cast(Vectors, flat)


def centroids(vectors: Vectors, count: int, seed: int) -> Vectors:
    """Unit vectors among which ``vectors`` divide themselves, at most ``count``, by spherical k-means.

    Those that are nearest to nothing are left out: were there two at one place, the vectors there would all belong to
    the one, and be looked for in the other.
    """
    rng = np.random.default_rng(seed)
    sample = vectors[np.sort(rng.choice(len(vectors), min(len(vectors), count * SAMPLE), replace=False))]
    means = sample[np.sort(rng.choice(len(sample), count, replace=False))].astype(np.float64)
    for _ in range(ROUNDS):
        blocks = (sample[start : start + 1024] for start in range(0, len(sample), 1024))
        # In 64 bits, so that how a product is split among threads decides nothing.
        nearest = np.concatenate([np.argmax(block.astype(np.float64) @ means.T, axis=1) for block in blocks])
        order = np.argsort(nearest, kind="stable")
        sums = np.add.reduceat(sample[order].astype(np.float64), np.unique(nearest[order], return_index=True)[1])
        means = sums / np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), 1e-9)
    return cast(Vectors, means.astype(np.float32))
