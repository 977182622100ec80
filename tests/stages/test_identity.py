from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from stages.identity import identities

NAMES = [f"{number:02d}" for number in range(12)]


def test_pairs_chain_and_the_smallest_id_names_them() -> None:
    assert identities(["d", "a", "c", "b", "e"], [("d", "c"), ("c", "b")]) == {
        "d": "b",
        "a": "a",
        "c": "b",
        "b": "b",
        "e": "e",
    }


def test_without_pairs_each_is_its_own() -> None:
    assert identities(["b", "a"], []) == {"b": "b", "a": "a"}
    assert identities([], []) == {}


def test_a_long_chain_is_one() -> None:
    """Longer than what may call itself."""
    names = [f"{number:05d}" for number in range(20_000)]
    links = list(zip(names[1:], names, strict=False))
    assert set(identities(names, links).values()) == {"00000"}
    assert set(identities(names, links[::-1]).values()) == {"00000"}


pairs = st.lists(st.tuples(st.sampled_from(NAMES), st.sampled_from(NAMES)), max_size=15)


@given(pairs=pairs, shuffled=st.randoms(use_true_random=False))
def test_the_order_and_the_sides_of_pairs_do_not_matter(pairs, shuffled) -> None:
    turned = [shuffled.choice([(a, b), (b, a)]) for a, b in pairs]
    shuffled.shuffle(turned)
    names = list(NAMES)
    shuffled.shuffle(names)
    assert identities(names, turned) == identities(NAMES, pairs)


@given(pairs=pairs)
def test_two_are_one_exactly_if_a_path_of_pairs_leads_from_one_to_the_other(pairs) -> None:
    named = identities(NAMES, pairs)
    for name in NAMES:
        reached = {name}
        while more := {y for a, b in pairs for x, y in ((a, b), (b, a)) if x in reached} - reached:
            reached |= more
        assert named[name] == min(reached)
        assert reached == {other for other in NAMES if named[other] == named[name]}
