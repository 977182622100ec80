"""Finding the same individual among many: in the index, against comparing all with all.

Random unit vectors with planted individuals: each is seen in some views whose cosines lie between .7 and .9, and once
more in a near-copy (.995), which does not count; half of all vectors are strangers, near to nobody. Nothing else
draws vectors together, as likeness does in real ones, so that partitions divide them as badly as can be. Recall is the
share of what comparing all with all finds that the index finds, on the rows that were compared so; precision the share
of the index's answers that are planted. Lance's own search goes through the same partitions, vector by vector.

Every size runs in a process of its own. Rates are per second of processor time, which other work hardly changes.
"""

from __future__ import annotations

import argparse
import multiprocessing
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import numpy.typing as npt
import psutil
from _measure import MB, MemoryWatch, cpu_seconds, show, show_machine

LOW, HIGH = 0.6, 0.98
MOST = 8
VIEWS = 4
COPY = 0.995
COSINES = (0.7, 0.9)


@dataclass(frozen=True)
class Case:
    """What is measured."""

    size: int
    dimensions: int
    searched: int
    """Rows that the index is asked for. Of the rest the rate is the same, as of those below."""
    compared: int
    """Of them, rows that are compared with all."""
    asked: int
    """Of them, rows that Lance's own search is asked for."""


@dataclass(frozen=True)
class Result:
    """Rates are rows per second of processor time."""

    exact: float
    build_s: float
    """Processor time to make the index."""
    index: float
    lance: float
    recall: float
    lance_recall: float
    precision: float
    before_mb: float
    """Memory before anything is searched: the vectors, and the libraries."""


def unit(vectors: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Each with length 1."""
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors


def near(
    rng: np.random.Generator, centres: npt.NDArray[np.float32], cosines: npt.NDArray[np.float32]
) -> npt.NDArray[np.float32]:
    """Each centre turned away from itself by that cosine."""
    aside = rng.standard_normal(centres.shape, np.float32)
    aside -= np.sum(aside * centres, axis=1, keepdims=True) * centres
    return unit(cosines[:, None] * centres + np.sqrt(1 - cosines[:, None] ** 2) * unit(aside))


def planted(size: int, dimensions: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """Vectors ``(n, d)`` in no order, and the individual of each."""
    rng = np.random.default_rng(0)
    count = max(1, size // 2 // (VIEWS + 1))
    centres = unit(rng.standard_normal((count, dimensions), np.float32))
    # Two views at a cosine c of their centre are at about c * c of one another.
    low, high = (cosine**0.5 for cosine in COSINES)
    views = [near(rng, centres, rng.uniform(low, high, count).astype(np.float32)) for _ in range(VIEWS)]
    copies = near(rng, views[0], np.full(count, COPY, np.float32))
    strangers = size - count * (VIEWS + 1)
    vectors = np.concatenate([*views, copies, unit(rng.standard_normal((strangers, dimensions), np.float32))])
    who = np.concatenate([np.tile(np.arange(count), VIEWS + 1), count + np.arange(strangers)])
    order = rng.permutation(size)
    return vectors[order], who[order]


def rate(ask: Callable[[npt.NDArray[np.int64]], object], rows: npt.NDArray[np.int64]) -> float:
    """Rows per second of processor time."""
    before = cpu_seconds()
    ask(rows)
    return len(rows) / (cpu_seconds() - before)


def lance_answers(
    dataset_folder: Path, vectors: npt.NDArray[np.float32], probes: int
) -> Callable[[npt.NDArray[np.int64]], list[npt.NDArray[np.int64]]]:
    """Lance's own search in an index that is there already, many queries at once."""
    import lance

    dataset = lance.dataset(str(dataset_folder))

    def ask(rows: npt.NDArray[np.int64]) -> list[npt.NDArray[np.int64]]:
        found = []
        for start in range(0, len(rows), 256):
            nearest = {
                "column": "vector",
                "q": vectors[rows[start : start + 256]],
                "k": MOST,
                "metric": "cosine",
                "nprobes": probes,
                "distance_range": (1 - HIGH, 1 - LOW),
            }
            table = dataset.to_table(columns=["_rowid", "_distance"], nearest=nearest)
            query, number = table["query_index"].to_numpy(), table["_rowid"].to_numpy().astype(np.int64)
            found += [number[query == place] for place in range(len(rows[start : start + 256]))]
        return found

    return ask


def shared(some: Sequence[npt.NDArray[np.int64]], expected: Sequence[npt.NDArray[np.int64]]) -> float:
    """The share of what is expected that is there."""
    hits = sum(len(np.intersect1d(a, b)) for a, b in zip(some, expected, strict=True))
    return hits / max(1, sum(map(len, expected)))


def measure(case: Case, results: Connection) -> None:
    """What the watched process does."""
    from curation.vector_index import LanceNeighbours
    from stages.search import Exact, Found

    vectors, who = planted(case.size, case.dimensions)
    before = psutil.Process().memory_info().rss / MB
    # The vectors are in no order: the first are as good as any.
    searched = np.arange(min(case.searched, case.size))
    compared = searched[: case.compared]
    asked = compared[: case.asked]
    answers: dict[str, Found] = {}

    def answer(name: str, search: Exact | LanceNeighbours) -> Callable[[npt.NDArray[np.int64]], None]:
        return lambda rows: answers.update({name: search.within(rows, LOW, HIGH, MOST)})

    exact_rate = rate(answer("exact", Exact(vectors)), compared)
    with tempfile.TemporaryDirectory(prefix="s2v-benchmark-") as name:
        before_build = cpu_seconds()
        index = LanceNeighbours(vectors, Path(name))
        build_s = cpu_seconds() - before_build
        index_rate = rate(answer("index", index), searched)
        ask = lance_answers(Path(name) / "vectors.lance", vectors, index.probes)
        lance_found: list[npt.NDArray[np.int64]] = []
        ask(asked[:64])
        lance_rate = rate(lambda rows: lance_found.extend(ask(rows)), asked)
    expected = [numbers for numbers, _ in answers["exact"]]
    found = [numbers for numbers, _ in answers["index"]]
    right = sum(int((who[numbers] == who[row]).sum()) for row, numbers in enumerate(found))
    results.send(
        Result(
            exact=exact_rate,
            build_s=build_s,
            index=index_rate,
            lance=lance_rate,
            recall=shared(found[: len(compared)], expected),
            lance_recall=shared(lance_found, expected[: len(asked)]),
            precision=right / max(1, sum(map(len, found))),
            before_mb=before,
        )
    )


def watched(case: Case) -> tuple[Result, float]:
    """The result of a case, and its peak memory in MB."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=measure, args=(case, sender))
    process.start()
    sender.close()
    with MemoryWatch(process.pid) as watch:
        process.join()
    if process.exitcode:
        raise SystemExit(f"{case.size} vectors: the run ended with {process.exitcode}")
    return receiver.recv(), watch.peak.driver / MB


def main() -> None:
    """Plant, search, print."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="example: python benchmarks/retrieval.py --sizes 1000 10000 100000 1000000",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--sizes", type=int, nargs="+", default=[1_000, 10_000, 100_000], metavar="N", help="numbers of vectors"
    )
    parser.add_argument("--dimensions", type=int, default=128, metavar="D", help="of a vector (default: 128)")
    parser.add_argument(
        "--searched", type=int, default=100_000, metavar="N", help="rows that the index is asked for (default: 100000)"
    )
    parser.add_argument(
        "--compared",
        type=int,
        default=2_000,
        metavar="N",
        help="of them, rows that are compared with all (default: 2000)",
    )
    parser.add_argument(
        "--asked",
        type=int,
        default=500,
        metavar="N",
        help="of them, rows that Lance's own search is asked for (default: 500)",
    )
    options = parser.parse_args()
    show_machine()
    rows: list[Sequence[object]] = []
    for size in options.sizes:
        result, peak = watched(Case(size, options.dimensions, options.searched, options.compared, options.asked))
        index, own = (size / (result.build_s + size / each) for each in (result.index, result.lance))
        rows.append(
            (
                f"{size:,}",
                f"{result.exact:,.0f}",
                f"{result.lance:,.0f}",
                f"{result.index:,.0f}",
                result.build_s,
                index / result.exact,
                index / own,
                f"{result.recall:.3f}",
                f"{result.lance_recall:.3f}",
                f"{result.precision:.4f}",
                f"{peak:,.0f} ({result.before_mb:,.0f})",
            )
        )
    show(
        f"Neighbours of all among n vectors of {options.dimensions} dimensions, rows per second of processor time",
        [
            "n",
            "all with all",
            "Lance's search",
            "index",
            "CPU s to build",
            "ratio to all with all",
            "ratio to Lance's",
            "recall",
            "Lance's recall",
            "precision",
            "peak MB (before)",
        ],
        rows,
        "Ratios include making the index. MB before: vectors and libraries.",
    )


if __name__ == "__main__":
    main()
