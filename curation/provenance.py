"""A row of any table by its id, with the rows that it was made from, up to the source video."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rich.console import Console
from rich.tree import Tree

from curation.stats import literal
from curation.workspace import Workspace
from stages.records import RECORDS, Annotation, Clip, Proof, Record, Reference, Score, Source, Subject, Verdict

Row = dict[str, Any]
WIDEST = 100
"""Longer values are cut."""


def show_row(workspace: Workspace, wanted: str, console: Console) -> bool:
    """Print the row, its verdict and its ancestors; says so and returns false if no table has such an id."""
    chain = list(trace(workspace, wanted))
    if not chain:
        console.print(literal(f"no table of {workspace.uri} has a row with the id {wanted!r}"))
        return False
    title = literal(wanted)
    title.stylize("bold")
    tree = Tree(title)
    for record, row in chain:
        branch = tree.add(f"[bold]{record.table}[/bold]")
        for name, value in row.items():
            branch.add(literal(f"{name}: {_short(value)}"))
    console.print(tree, highlight=False)
    return True


def trace(workspace: Workspace, wanted: str) -> Iterator[tuple[type[Record], Row]]:
    """The row with this id and the rows that it came from, nearest first."""
    for record in (Reference, Subject, Clip, Source):
        for row in _find(workspace, record, record.key, wanted):
            yield from _with_verdict(workspace, record, row)
            yield from _ancestors(workspace, record, row)
            return
    videos = _find(workspace, Source, "video_id", wanted)
    others = [(record, row) for record in RECORDS.values() for row in _find(workspace, record, record.key, wanted)]
    yield from ((Source, row) for row in videos)
    yield from others


def _ancestors(workspace: Workspace, record: type[Record], row: Row) -> Iterator[tuple[type[Record], Row]]:
    if record is Reference:
        for subject in dict.fromkeys([row["subject_id"], row["source_subject_id"], row["scene_subject_id"]]):
            if subject is not None:
                yield from trace(workspace, subject)
    elif record is Subject:
        yield from trace(workspace, row["clip_id"])
    elif record is Clip:
        for about in (Score, Annotation):
            yield from ((about, found) for found in _find(workspace, about, "clip_id", row["clip_id"]))
        for source in sorted(_find(workspace, Source, "video_id", row["video_id"]), key=lambda found: found["uri"])[:1]:
            yield Source, source


def _with_verdict(workspace: Workspace, record: type[Record], row: Row) -> Iterator[tuple[type[Record], Row]]:
    yield record, row
    if record is Reference:
        yield from ((Proof, proof) for proof in _find(workspace, Proof, "reference_id", row["reference_id"]))
    yield from ((Verdict, verdict) for verdict in _find(workspace, Verdict, "id", row[record.key]))


def _find(workspace: Workspace, record: type[Record], column: str, value: str) -> list[Row]:
    quoted = value.replace("'", "''")
    rows: list[Row] = workspace.read(record, where=f"{column} = '{quoted}'").to_pylist()
    return rows


def _short(value: Any) -> str:
    if isinstance(value, bytes):
        return f"{len(value)} bytes"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list) and value and isinstance(value[0], bytes | dict):
        return f"{len(value)} entries"
    text = str(value).replace("\n", " ")
    return text if len(text) <= WIDEST else text[:WIDEST] + "..."
