from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages import search
from stages.search import DECIMALS, Exact, Found, Numbers, Vectors, exact


def unit(vectors: object) -> Vectors:
    array = np.asarray(vectors, np.float32)
    return (array / np.linalg.norm(array, axis=-1, keepdims=True)).astype(np.float32)


def at(*degrees: float) -> Vectors:
    """Unit vectors in a plane: the cosine of two is that of the angle between them."""
    return np.stack([np.cos(np.radians(degrees)), np.sin(np.radians(degrees))], axis=1).astype(np.float32)


def numbers_of(found: Found) -> list[list[int]]:
    return [numbers.tolist() for numbers, _ in found]


def naive(vectors: Vectors, rows: Numbers, low: float, high: float, most: int) -> list[list[tuple[int, np.float32]]]:
    """What :meth:`Neighbours.within` promises, spelled out."""
    answer = []
    for row in rows.tolist():
        found = []
        for other in range(len(vectors)):
            cosine = np.float32(
                round(sum(float(a) * float(b) for a, b in zip(vectors[row], vectors[other], strict=True)), DECIMALS)
            )
            if other != row and np.float32(low) <= cosine <= np.float32(high):
                found.append((-cosine, other))
        answer.append([(other, -negative) for negative, other in sorted(found)[:most]])
    return answer


def both(found: Found) -> list[list[tuple[int, np.float32]]]:
    return [list(zip(numbers.tolist(), cosines, strict=True)) for numbers, cosines in found]


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    count=st.integers(1, 40),
    dimensions=st.integers(1, 6),
    repeated=st.booleans(),
    bounds=st.tuples(st.floats(-1, 1), st.floats(-1, 1)),
    most=st.integers(0, 50),
    tile=st.sampled_from([(256, 4096), (3, 5), (1, 1)]),
    pairs=st.sampled_from([2**22, 7]),
)
def test_what_is_found_is_what_a_double_loop_finds(
    seed, count, dimensions, repeated, bounds, most, tile, pairs
) -> None:
    rng = np.random.default_rng(seed)
    vectors = unit(rng.standard_normal((count, dimensions)))
    if repeated:
        vectors = vectors[rng.integers(0, max(1, count // 3), count)]
    rows = rng.integers(0, count, count + 2)
    low, high = sorted(bounds)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(search, "TILE", tile)
        patch.setattr(search, "PAIRS", pairs)
        found = Exact(vectors).within(rows, low, high, most)
    assert both(found) == naive(vectors, rows, low, high, most)


def test_bounds_belong_to_what_they_bound() -> None:
    vectors = at(0, 60, 45, 90)
    half, diagonal = 0.5, round(float(np.cos(np.radians(45))), DECIMALS)
    assert numbers_of(Exact(vectors).within(np.array([0]), half, diagonal, 9)) == [[2, 1]]
    assert numbers_of(Exact(vectors).within(np.array([0]), half + 2e-5, diagonal, 9)) == [[2]]
    assert numbers_of(Exact(vectors).within(np.array([0]), half, diagonal - 2e-5, 9)) == [[1]]


def test_of_equally_near_ones_the_first_comes_first() -> None:
    vectors = at(0, 30, -30, 30, -30, 10)
    assert numbers_of(Exact(vectors).within(np.array([0]), 0.5, 1, 4)) == [[5, 1, 2, 3]]


def test_copies_are_no_neighbours_and_take_no_place_of_theirs() -> None:
    vectors = np.concatenate([at(0), at(*np.linspace(0.1, 2, 500)), at(40)])
    assert numbers_of(Exact(vectors).within(np.array([0]), 0.5, 0.98, 1)) == [[501]]
    assert numbers_of(Exact(vectors).within(np.array([0]), 0.5, 1.0, 1)) == [[1]]


def test_copies_just_above_the_bound_take_no_place_either() -> None:
    """Nearer to the bound than 32 bits can tell: which side they are on is known only when looked at closely."""
    high = 0.98
    above = np.degrees(np.arccos(high + 8e-6))
    vectors = np.concatenate([at(0), at(*[above] * 50), at(40)])
    assert numbers_of(Exact(vectors).within(np.array([0]), 0.5, high, 1)) == [[51]]


def test_a_vector_is_not_its_own_neighbour_but_its_twin_is() -> None:
    vectors = at(10, 10)
    assert numbers_of(Exact(vectors).within(np.array([0, 1, 0]), 0.9, 1, 5)) == [[1], [0], [1]]
    assert numbers_of(Exact(at(10)).within(np.array([0]), -1, 1, 5)) == [[]]


def test_a_line_has_two_directions() -> None:
    vectors = np.array([[1], [-1], [1]], np.float32)
    assert numbers_of(Exact(vectors).within(np.arange(3), 0.5, 1, 5)) == [[2], [], [0]]
    assert numbers_of(Exact(vectors).within(np.arange(3), -1, -0.5, 5)) == [[1], [0, 2], [1]]


def test_who_asks_for_nothing_gets_nothing() -> None:
    nothing = np.empty(0, np.int64)
    assert Exact(at(0, 1)).within(nothing, -1, 1, 5) == []
    assert Exact(np.empty((0, 4), np.float32)).within(nothing, -1, 1, 5) == []
    (numbers, cosines), *_ = Exact(at(0, 1)).within(np.array([0]), -1, 1, 0)
    assert (len(numbers), numbers.dtype, len(cosines), cosines.dtype) == (0, np.int64, 0, np.float32)


def test_a_cosine_is_the_same_from_both_sides_and_whatever_else_is_asked() -> None:
    vectors = unit(np.random.default_rng(1).standard_normal((300, 64)))
    with exact(vectors) as neighbours:
        all_at_once = neighbours.within(np.arange(300), -1, 1, 300)
        backwards = neighbours.within(np.arange(300)[::-1], -1, 1, 300)[::-1]
        alone = [neighbours.within(np.array([row]), -1, 1, 300)[0] for row in range(300)]
    table = np.eye(300, dtype=np.float32)
    for row, (numbers, cosines) in enumerate(all_at_once):
        table[row, numbers] = cosines
        for other in (backwards[row], alone[row]):
            np.testing.assert_array_equal(other[0], numbers)
            np.testing.assert_array_equal(other[1], cosines)
    np.testing.assert_array_equal(table, table.T)
