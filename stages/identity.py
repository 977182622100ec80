"""Who is one individual: what pairs of names hang together."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def identities(ids: Sequence[str], pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    """The individual of each id: the smallest of all ids that are linked to it by pairs, directly or not."""
    parent = {name: name for name in ids}

    def root(name: str) -> str:
        while parent[name] != name:
            parent[name] = parent[parent[name]]
            name = parent[name]
        return name

    for a, b in pairs:
        low, high = sorted((root(a), root(b)))
        parent[high] = low
    return {name: root(name) for name in ids}
