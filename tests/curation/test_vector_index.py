from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from curation import vector_index
from curation.vector_index import LanceNeighbours, centroids, neighbours
from stages.search import Exact, Found, Vectors

LOW, HIGH = 0.6, 0.98


def unit(vectors: Vectors) -> Vectors:
    return (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float32)


def random_unit(rng: np.random.Generator, count: int, dimensions: int) -> Vectors:
    return unit(rng.standard_normal((count, dimensions), dtype=np.float32))


def near(rng: np.random.Generator, centres: Vectors, cosine: float) -> Vectors:
    """Each centre turned away from itself, some way or other, by that cosine."""
    aside = rng.standard_normal(centres.shape, dtype=np.float32)
    aside -= np.sum(aside * centres, axis=1, keepdims=True) * centres
    return unit(cosine * centres + (1 - cosine**2) ** 0.5 * unit(aside))


@pytest.fixture(scope="module")
def individuals() -> Vectors:
    """3,000 vectors: 500 individuals seen five times each, once more in a near-copy."""
    rng = np.random.default_rng(5)
    centres = random_unit(rng, 500, 64)
    views = [near(rng, centres, cosine) for cosine in (0.85, 0.88, 0.9, 0.92, 0.95)]
    vectors = np.concatenate([*views, near(rng, views[0], 0.995)])
    return vectors[rng.permutation(len(vectors))]


def same(a: Found, b: Found) -> bool:
    return len(a) == len(b) and all(
        np.array_equal(left, right)
        for one, other in zip(a, b, strict=True)
        for left, right in zip(one, other, strict=True)
    )


def test_nearly_all_is_found_and_nothing_else(individuals: Vectors) -> None:
    rows = np.arange(len(individuals))
    expected = Exact(individuals).within(rows, LOW, HIGH, 8)
    with neighbours(individuals, exact_below=0) as index:
        assert isinstance(index, LanceNeighbours)
        found = index.within(rows, LOW, HIGH, 8)
    pairs, truth = (
        {
            (row, other, cosine)
            for row, one in enumerate(side)
            for other, cosine in zip(*map(np.ndarray.tolist, one), strict=True)
        }
        for side in (found, expected)
    )
    assert len(truth) > 3 * len(individuals)
    assert pairs <= truth
    assert len(pairs) >= 0.98 * len(truth)


def test_an_index_is_searched_in_part_only(individuals: Vectors, tmp_path: Path, monkeypatch) -> None:
    """Else the recall above would say nothing."""
    monkeypatch.setattr(vector_index, "PARTITION", 10)
    index = LanceNeighbours(individuals, tmp_path)
    compared = 0
    near_pairs = vector_index.near_pairs

    def counting(left, right, *others):
        nonlocal compared
        compared += len(left) * len(right)
        return near_pairs(left, right, *others)

    monkeypatch.setattr(vector_index, "near_pairs", counting)
    rows = np.arange(len(individuals))
    found = index.within(rows, LOW, HIGH, 8)
    expected = Exact(individuals).within(rows, LOW, HIGH, 8)
    assert compared < len(individuals) ** 2 / 4
    assert sum(len(one) for one, _ in found) >= 0.98 * sum(len(one) for one, _ in expected)


def test_copies_take_no_place_of_a_true_neighbour(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    own = random_unit(rng, 1, 64)
    copies, match = near(rng, np.repeat(own, 500, axis=0), 0.998), near(rng, own, 0.8)
    vectors = np.concatenate([own, copies, match, random_unit(rng, 2500, 64)])
    ((numbers, cosines),) = LanceNeighbours(vectors, tmp_path).within(np.array([0]), LOW, HIGH, 3)
    assert numbers.tolist() == [501]
    assert cosines == pytest.approx([0.8], abs=1e-5)


@pytest.mark.parametrize(("low", "high", "most"), [(LOW, HIGH, 8), (-1.0, 0.3, 4)])
def test_chance_threads_and_the_other_rows_decide_nothing(
    individuals: Vectors, tmp_path: Path, monkeypatch, low: float, high: float, most: int
) -> None:
    monkeypatch.setattr(vector_index, "PARTITION", 30)
    rows = np.arange(0, len(individuals), 7)
    answers = []
    for threads in (1, 4):
        folder = tmp_path / str(threads)
        folder.mkdir()
        index = LanceNeighbours(individuals, folder, threads=threads)
        answers.append(index.within(rows, low, high, most))
    assert same(*answers)
    assert sum(len(numbers) for numbers, _ in answers[0]) > len(rows)
    assert same(answers[0], [index.within(rows[:1], low, high, most)[0], *index.within(rows[1:], low, high, most)])
    monkeypatch.setattr(vector_index, "ROWS", 100)
    assert same(answers[0], index.within(rows, low, high, most))


def test_few_are_compared_all_with_all_and_nothing_is_left_of_an_index(individuals: Vectors, tmp_path: Path) -> None:
    with neighbours(individuals, exact_below=3001, folder=tmp_path) as search:
        assert isinstance(search, Exact)
        assert not list(tmp_path.iterdir())
    with neighbours(individuals, exact_below=3000, folder=tmp_path) as search:
        assert isinstance(search, LanceNeighbours)
        assert list(tmp_path.iterdir())
    assert not list(tmp_path.iterdir())
    with pytest.raises(RuntimeError, match="in the middle"), neighbours(individuals, 0, tmp_path):  # noqa: PT012
        assert list(tmp_path.iterdir())
        raise RuntimeError("in the middle")
    assert not list(tmp_path.iterdir())


def test_who_asks_for_nothing_gets_nothing(individuals: Vectors, tmp_path: Path) -> None:
    index = LanceNeighbours(individuals[:300], tmp_path)
    assert index.within(np.empty(0, np.int64), LOW, HIGH, 3) == []
    ((numbers, _),) = index.within(np.array([7]), LOW, HIGH, 0)
    assert len(numbers) == 0


@pytest.mark.parametrize("strangers", [0, 3000])
def test_vectors_that_are_all_the_same_find_each_other(tmp_path: Path, strangers: int) -> None:
    """There is nothing to divide them by."""
    rng = np.random.default_rng(0)
    vectors = np.concatenate([np.repeat(random_unit(rng, 1, 8), 9000, axis=0), random_unit(rng, strangers, 8)])
    ((numbers, cosines),) = LanceNeighbours(vectors, tmp_path).within(np.array([3]), 0.99999, 1.0, 5)
    assert numbers.tolist() == [0, 1, 2, 4, 5]
    assert cosines.tolist() == [1.0] * 5


def test_centroids_are_distinct_unit_vectors(individuals: Vectors) -> None:
    found = centroids(individuals, 40, seed=0)
    assert 30 <= len(np.unique(found, axis=0)) == len(found) <= 40
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)
    nearest = np.max(individuals @ found.T, axis=1).mean()
    assert nearest > np.max(individuals @ individuals[: len(found)].T, axis=1).mean()
