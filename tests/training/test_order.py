from __future__ import annotations

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.order import Order

GROUPS = st.lists(st.integers(-1, 3), min_size=1, max_size=60).filter(lambda groups: max(groups) >= 0)
SEED = st.integers(-(2**63), 2**64 - 1)


def order_of(groups: list[int], micro_batch: int, seed: int | None) -> Order:
    return Order(np.array(groups), micro_batch, seed=seed)


def epoch(order: Order, number: int) -> list:
    first = number * order.micro_batches
    return [order[place] for place in range(first, first + order.micro_batches)]


@given(groups=GROUPS, micro_batch=st.integers(1, 7), seed=SEED, number=st.integers(0, 5))
def test_every_sample_once_per_epoch(groups, micro_batch, seed, number) -> None:
    seen = [sample for batch in epoch(order_of(groups, micro_batch, seed), number) for sample in batch.samples]
    assert sorted(seen) == [row for row, group in enumerate(groups) if group >= 0]


@given(groups=GROUPS, micro_batch=st.integers(1, 7), seed=SEED)
def test_micro_batches_are_of_one_group_and_only_the_last_of_a_group_is_small(groups, micro_batch, seed) -> None:
    sizes: dict[int, list[int]] = {}
    for batch in epoch(order_of(groups, micro_batch, seed), 1):
        (group,) = {groups[sample] for sample in batch.samples}
        sizes.setdefault(group, []).append(len(batch.samples))
    for group, found in sizes.items():
        whole, rest = divmod(groups.count(group), micro_batch)
        assert sorted(found) == sorted([micro_batch] * whole + [rest] * (rest > 0))


@given(groups=GROUPS, micro_batch=st.integers(1, 7), seed=SEED)
def test_positions_count_all_samples_ever(groups, micro_batch, seed) -> None:
    order = order_of(groups, micro_batch, seed)
    positions = [position for number in range(3) for batch in epoch(order, number) for position in batch.positions]
    assert positions == list(range(3 * order.samples))


@given(groups=GROUPS, micro_batch=st.integers(1, 7), seed=SEED, numbers=st.lists(st.integers(0, 200), max_size=6))
def test_any_place_can_be_asked_for_at_any_time(groups, micro_batch, seed, numbers) -> None:
    asked = order_of(groups, micro_batch, seed)
    assert [asked[number] for number in numbers] == [order_of(groups, micro_batch, seed)[number] for number in numbers]


def test_epochs_and_seeds_differ_and_all_is_shuffled() -> None:
    groups = [number % 3 for number in range(300)]
    flat = {
        (seed, number): tuple(sample for batch in epoch(order_of(groups, 4, seed), number) for sample in batch.samples)
        for seed in (0, 1)
        for number in (0, 1)
    }
    assert len(set(flat.values())) == 4
    batches = epoch(order_of(groups, 4, 0), 0)
    changes = sum(groups[a.samples[0]] != groups[b.samples[0]] for a, b in pairwise(batches))
    assert changes > len(batches) / 3, "micro-batches of the groups come mixed"
    partners = Counter(
        tuple(sorted(batch.samples)) for number in range(4) for batch in epoch(order_of(groups, 4, 0), number)
    )
    assert max(partners.values()) == 1, "other samples meet in every epoch"


def test_each_sample_comes_at_each_place_equally_often() -> None:
    order = order_of([0] * 5, 1, 3)
    counts = Counter(
        (place, batch.samples) for number in range(1000) for place, batch in enumerate(epoch(order, number))
    )
    assert len(counts) == 25
    # Five standard deviations of a binomial with n = 1000, p = 1 / 5.
    assert all(abs(times - 200) < 5 * (1000 * 0.2 * 0.8) ** 0.5 for times in counts.values())


def test_the_order_is_fixed_for_all_time() -> None:
    """A run of an older version must resume with the same order."""
    order = order_of([0, 1, 0, 1, 0, -1, 0], 2, 17)
    assert [order[number].samples for number in range(6)] == [(3, 1), (0, 2), (4, 6), (6, 0), (1, 3), (2, 4)]


def test_without_a_seed_samples_stay_in_order() -> None:
    order = order_of([1, 0, 1, -1, 0, 1], 2, None)
    for number in range(2):
        assert [batch.samples for batch in epoch(order, number)] == [(1, 4), (0, 2), (5,)]


def test_no_samples() -> None:
    with pytest.raises(ValueError, match="no samples"):
        order_of([-1, -1], 1, 0)
