"""How many to take of each kind of thing, so that asked shares are met as nearly as what is there allows."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TypeVar

ROUNDS = 500
"""Of fitting: tables of a few cells settle in tens, those whose asked sums contradict each other never."""
SETTLED = 1e-12
DECIMALS = 9
"""To which expected numbers are compared. What lies beyond is the arithmetic's, and would tell equal ones apart."""

Cell = tuple[str, int]
C = TypeVar("C", str, Cell)


def fitted(counts: Mapping[Cell, int], rows: Mapping[str, float], columns: Mapping[int, float]) -> dict[Cell, float]:
    """The share of each cell of a table when its rows and its columns shall have asked shares.

    Iterative proportional fitting (Deming and Stephan, 1940): of all tables with these sums, the one that differs
    least from what there is. Where no table of these cells has both, the columns have theirs.

    Args:
        counts: what there is; only cells that are above 0.
        rows: asked weight of every row, above 0; empty leaves the rows free.
        columns: the same for columns.

    Returns:
        Shares above 0 that sum to 1.
    """
    total = sum(counts.values())
    shares = {cell: counts[cell] / total for cell in sorted(counts)}
    for _ in range(ROUNDS):
        before = shares
        for place, asked in ((0, rows), (1, columns)):
            if asked:
                shares = _scaled(shares, place, asked)
        if max(abs(shares[cell] - before[cell]) for cell in shares) < SETTLED:
            break
    # A cell that only contradictory sums empty is the last to be taken from, but it is there.
    floored = {cell: max(share, SETTLED) for cell, share in shares.items()}
    return {cell: share / sum(floored.values()) for cell, share in floored.items()}


def taken(counts: Mapping[C, int], shares: Mapping[C, float], least: int) -> dict[C, int]:
    """How many to take of each cell.

    As many as the asked shares allow. If these are fewer than ``least``, so many are taken: cells that hold less than
    their share are taken whole, the others keep their proportions among themselves.

    Args:
        counts: what there is; above 0.
        shares: asked share of each; above 0, summing to 1.
        least: at most the sum of ``counts``.
    """
    by_scarcity = sorted(counts, key=lambda cell: (round(counts[cell] / shares[cell], DECIMALS), cell))
    total = max(least, math.floor(round(counts[by_scarcity[0]] / shares[by_scarcity[0]], DECIMALS)))
    found: dict[C, int] = {}
    while by_scarcity:
        scale = (total - sum(found.values())) / sum(shares[cell] for cell in by_scarcity)
        if round(scale * shares[by_scarcity[0]], DECIMALS) < counts[by_scarcity[0]]:
            found |= _rounded({cell: scale * shares[cell] for cell in by_scarcity})
            break
        scarce = by_scarcity.pop(0)
        found[scarce] = counts[scarce]
    return found


def _scaled(
    shares: Mapping[Cell, float], place: int, asked: Mapping[str, float] | Mapping[int, float]
) -> dict[Cell, float]:
    sums: dict[str | int, float] = {}
    for cell, share in shares.items():
        sums[cell[place]] = sums.get(cell[place], 0.0) + share
    wanted: dict[str | int, float] = {name: weight for name, weight in asked.items() if name in sums}
    total = sum(wanted[name] for name in sums)
    return {
        cell: share * wanted[cell[place]] / total / sums[cell[place]] if sums[cell[place]] else 0.0
        for cell, share in shares.items()
    }


def _rounded(expected: Mapping[C, float]) -> dict[C, int]:
    """Whole numbers of the same sum: the largest remainders are rounded up."""
    numbers = {cell: math.floor(round(value, DECIMALS)) for cell, value in expected.items()}
    more = round(sum(expected.values())) - sum(numbers.values())
    for cell in sorted(expected, key=lambda cell: (round(numbers[cell] - expected[cell], DECIMALS), cell))[:more]:
        numbers[cell] += 1
    return numbers
