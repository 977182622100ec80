"""Two workspaces side by side: what a step or a threshold does, told by the same funnel with it and without."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from curation.measured import MEASURES, medians
from curation.shards import read_manifest
from curation.stats import Level, collect, literal
from curation.workspace import Workspace


@dataclass(frozen=True, slots=True)
class Row:
    """Something that both workspaces tell; nothing where one of them does not."""

    name: str
    one: Any
    other: Any


@dataclass(slots=True)
class Comparison:
    """What two workspaces hold."""

    levels: list[tuple[Level, Level]]
    """Those of the funnel, and below them references by kind."""
    reasons: list[Row]
    """How often each reason was given, where that differs; those of references by kind."""
    totals: list[Row]
    """Samples by split, shards, failures, and hours."""
    shares: list[Row]
    """What the mixtures are made of, in [0, 1]."""
    medians: list[Row]
    """Of the measures of accepted references, by kind."""
    config: list[Row]
    """The keys whose values differ, by the manifests; values as JSON."""


def compare(one: Workspace, other: Workspace) -> Comparison:
    """Hold two workspaces against each other."""
    stats = [collect(workspace) for workspace in (one, other)]
    manifests = [read_manifest(workspace.path("shards")) for workspace in (one, other)]
    levels = [*_paired(stats[0].levels, stats[1].levels), *_paired(stats[0].kinds, stats[1].kinds)]
    reasons = [_reasons([*each.levels, *each.kinds]) for each in stats]
    totals = [
        {
            **{f"samples for {split}": count for split, count in each.samples.items()},
            "shards": len(each.shards),
            "failures": each.failures,
            **{f"hours {name}": hours for name, hours in each.hours.items()},
        }
        for each in stats
    ]
    configs = [dict(_flat(manifest.get("config", {}))) for manifest in manifests]
    return Comparison(
        levels=levels,
        reasons=[row for row in _rows(reasons[0], reasons[1], missing=0) if row.one != row.other],
        totals=_rows(*totals),
        shares=_rows(*(_shares(manifest.get("mixture", {})) for manifest in manifests)),
        medians=_rows(*map(_medians, (one, other))),
        config=[row for row in _rows(*configs) if row.one != row.other] if all(manifests) else [],
    )


def show_comparison(found: Comparison, names: Sequence[str], console: Console) -> None:
    """Print what differs, and the funnel whole. ``names`` tell which workspace is which."""
    console.print(literal(f"1: {names[0]}\n2: {names[1]}"), soft_wrap=True)
    table = _table("", "found", "found", "kept", "kept", "share", "share", "change")
    for one, other in found.levels:
        shares = [level.kept / level.found if level.found else None for level in (one, other)]
        table.add_row(
            literal(one.name),
            *(str(number) for number in (one.found, other.found, one.kept, other.kept)),
            *map(_percent, shares),
            f"{other.kept - one.kept:+d}" if other.kept != one.kept else "",
        )
    console.print(table)
    _show(console, "why not", found.reasons, str)
    _show(console, "", found.totals, _number)
    _show(console, "share of", found.shares, _percent)
    _show(console, "median of", found.medians, lambda value: "" if value is None else f"{value:.3f}")
    if found.config:
        _show(console, "config", found.config, lambda value: value or "")
    else:
        console.print("no key of the config differs, as far as both have shards that tell")


def _show(console: Console, title: str, rows: Sequence[Row], text: Callable[[Any], str]) -> None:
    if not rows:
        return
    table = _table(title, "", "", "change")
    for row in rows:
        numbers = all(isinstance(value, int | float) for value in (row.one, row.other))
        change = row.other - row.one if numbers else 0
        signed = ("+" if change > 0 else "-") + text(abs(change)) if change else ""
        table.add_row(literal(row.name), *(literal(text(value)) for value in (row.one, row.other)), signed)
    console.print(table)


def _table(first: str, *columns: str) -> Table:
    numbers = iter("12" * len(columns))
    table = Table(first)
    for name in columns:
        table.add_column(name if name == "change" else f"{name} {next(numbers)}".strip(), justify="right")
    return table


def _paired(one: Iterable[Level], other: Iterable[Level]) -> list[tuple[Level, Level]]:
    """Levels of the same name, in their order."""
    first, second = ({level.name: level for level in levels} for levels in (one, other))
    return [
        (first.get(name) or Level(name, 0, 0), second.get(name) or Level(name, 0, 0)) for name in {**first, **second}
    ]


def _reasons(levels: Iterable[Level]) -> dict[str, int]:
    return {
        f"{level.name}: {reason}": count
        for level in levels
        if level.name != "references"
        for reason, count in sorted(level.reasons.items())
    }


def _rows(one: Mapping[str, Any], other: Mapping[str, Any], missing: Any = None) -> list[Row]:
    return [Row(name, one.get(name, missing), other.get(name, missing)) for name in {**one, **other}]


def _shares(mixture: Mapping[str, Any]) -> dict[str, float]:
    shares = {
        f"{part}: {name}": share["got"]
        for part in ("kinds", "classes", "subjects")
        for name, share in mixture.get(part, {}).items()
    }
    if "largest_identity" in mixture:
        shares["samples with the most frequent individual"] = mixture["largest_identity"]["got"]
    return shares


def _medians(workspace: Workspace) -> dict[str, float]:
    return {
        f"{kind}: {MEASURES[name]}": value
        for kind, measures in medians(workspace).items()
        for name, value in measures.items()
    }


def _flat(section: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Dotted keys, as they are given on the command line."""
    for name, value in sorted(section.items()):
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", json.dumps(value)


def _percent(share: float | None) -> str:
    return "" if share is None else f"{share:.1%}"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}" if isinstance(value, float) else str(value)
