"""The funnel: how many of everything went in, how many are left, and why the others are not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from curation.measured import MEASURES, medians
from curation.shards import read_index, read_manifest
from curation.workspace import Workspace
from stages.records import Annotation, Clip, Failure, Record, Reference, Source, Subject, Verdict

STAND_INS = {
    "motion_saliency": "subjects are found by motion and saliency, one per clip; the caption's first word names them",
    "grabcut": "masks are GrabCut's",
    "colour_texture": "likeness of objects is colour and texture, not a network's",
    "quilting": "backgrounds are quilted from the picture's own pixels, not painted by a network",
}

TRANSITION = "transition"
"""Why the frames between two shots are in no clip."""


@dataclass(slots=True)
class Level:
    """One level of the funnel: of ``found`` things ``kept`` go on; ``reasons`` counts why others do not."""

    name: str
    found: int
    kept: int
    reasons: Counter[str] = field(default_factory=Counter)


@dataclass(slots=True)
class Stats:
    """What a workspace holds."""

    levels: list[Level]
    kinds: list[Level]
    """References by kind."""
    samples: dict[str, int]
    """By split."""
    hours: dict[str, float]
    """Video read, and video in samples."""
    shards: list[dict[str, Any]]
    licences: Counter[str]
    """Videos by licence."""
    medians: dict[str, dict[str, float]]
    """What was measured of accepted references, by kind."""
    failures: int
    stand_ins: list[str]
    mixture: dict[str, Any]
    """What the manifest says of it."""


def collect(workspace: Workspace) -> Stats:
    """Count what the tables and the manifest say."""
    sources = _rows(workspace, Source, "source_id", "video_id", "duration_s", "licence")
    videos = {row["video_id"]: row for row in sources}
    failures = _rows(workspace, Failure, "step", "error")
    verdicts = _rows(workspace, Verdict, "id", "kind", "keep", "reasons")
    manifest, index = read_manifest(workspace.path("shards")), read_index(workspace.path("shards"))
    unreadable = Counter(row["error"] for row in failures if row["step"].startswith("ingest"))
    inputs = Level("inputs", len(sources) + sum(unreadable.values()), len(videos), unreadable)
    if len(sources) > len(videos):
        inputs.reasons["duplicate"] = len(sources) - len(videos)
    stretches = Level("stretches of video", *_clips_cut(workspace))
    clips = _level("clips", [row for row in verdicts if row["reasons"] != [TRANSITION]], "clip")
    undecided = stretches.kept - clips.found
    if undecided:
        clips.found += undecided
        clips.reasons["not decided yet"] = undecided
    for row in failures:
        if not row["step"].startswith("ingest"):
            clips.reasons[f"failed in {row['step']}"] += 1
    with_subjects = Level("clips with a subject", *_with_subjects(workspace, verdicts))
    references = _rows(workspace, Reference, "reference_id", "kind")
    kind_of = {row["reference_id"]: row["kind"] for row in references}
    made = [row for row in verdicts if row["kind"] == "reference" and row["id"] in kind_of]
    return Stats(
        levels=[
            inputs,
            stretches,
            clips,
            with_subjects,
            _level("subjects", verdicts, "subject"),
            _level("references", made, "reference"),
        ],
        kinds=[
            _level(kind, [row for row in made if kind_of[row["id"]] == kind], "reference")
            for kind in sorted(set(kind_of.values()))
        ],
        samples=manifest.get("samples", {}),
        hours={
            "read": sum(row["duration_s"] for row in videos.values()) / 3600,
            "in samples": sum(row["frames"] / row["fps"] for row in index) / 3600,
        },
        shards=manifest.get("shards", []),
        licences=Counter(row["licence"] or "not stated" for row in videos.values()),
        medians=medians(workspace),
        failures=len(failures),
        stand_ins=stand_ins(manifest),
        mixture=manifest.get("mixture", {}),
    )


def show(stats: Stats, workspace: Workspace, console: Console) -> None:
    """Print the funnel."""
    table = Table(
        "", "found", "kept", "share", "why not", title=literal(f"Funnel of {workspace.uri}"), title_justify="left"
    )
    for column in (1, 2, 3):
        table.columns[column].justify = "right"
    for level in stats.levels:
        table.add_row(*_cells(level))
    for level in stats.kinds:
        table.add_row(*_cells(Level(f"  {level.name}", level.found, level.kept, level.reasons)), style="dim")
    console.print(table)
    _show_medians(stats.medians, console)
    _show_mixture(stats.mixture, console)
    if stats.shards:
        total = sum(shard["bytes"] for shard in stats.shards)
        console.print(
            f"{sum(stats.samples.values())} samples ({stats.samples['train']} train, {stats.samples['val']} val), "
            f"{_length(stats.hours['in samples'])} of {_length(stats.hours['read'])} read, "
            f"{total / 1e6:.1f} MB in {len(stats.shards)} shards:"
        )
        for shard in stats.shards:
            path = workspace.path("shards", shard["file"])
            console.print(literal(f"  {path}  {shard['samples']} samples"), soft_wrap=True)
    elif stats.levels[2].found:
        console.print("no samples yet: the last column says what stopped them; `s2v select --what-if` tries thresholds")
    for text in stats.stand_ins:
        console.print(f"stand-in: {text}", style="yellow")
    if stats.failures:
        told = "1 failure" if stats.failures == 1 else f"{stats.failures} failures"
        console.print(literal(f"{told}: `s2v failures --workspace {workspace.uri}`"), style="red", soft_wrap=True)


def _show_medians(found: dict[str, dict[str, float]], console: Console) -> None:
    if not found:
        return
    table = Table("medians", *MEASURES.values())
    table.columns[0].no_wrap = True
    for column in table.columns[1:]:
        column.justify = "right"
    for kind, measures in found.items():
        table.add_row(kind, *(f"{measures[name]:.2f}" if name in measures else "" for name in MEASURES))
    console.print(table)


def show_failures(workspace: Workspace, console: Console) -> None:
    """Print what could not be done."""
    table = Table("step", "where", "error", "message")
    for row in sorted(workspace.records(Failure), key=lambda row: (row.step, row.uri)):
        table.add_row(*map(literal, (row.step, row.uri, row.error, row.message)))
    console.print(table if table.row_count else "no failures")


def literal(text: str) -> Text:
    """Text from outside as it stands: brackets are no markup, and nothing in it steers the terminal."""
    return Text("".join(letter if letter.isprintable() or letter == "\n" else "?" for letter in text))


def _show_mixture(mixture: dict[str, Any], console: Console) -> None:
    """Print what was asked and got, for whatever was asked, and what was dropped for it."""
    asked = {
        f"{part} {name}": share
        for part in ("kinds", "classes", "subjects")
        for name, share in mixture.get(part, {}).items()
        if share["asked"] is not None
    }
    if asked:
        table = Table("of the training samples", "before", "asked", "got")
        for column in (1, 2, 3):
            table.columns[column].justify = "right"
        for name, share in asked.items():
            table.add_row(name, *(f"{share[column]:.1%}" for column in ("before", "asked", "got")))
        console.print(table)
    for what, reasons in mixture.get("dropped", {}).items():
        if reasons:
            told = ", ".join(f"{reason} {count}" for reason, count in sorted(reasons.items()))
            console.print(literal(f"not in the mixture: {sum(reasons.values())} {what} ({told})"), soft_wrap=True)
    if mixture.get("dropped", {}).get("samples"):
        largest = mixture["largest_identity"]
        console.print(
            f"most frequent individual: in {largest['got']:.1%} of the samples, {largest['before']:.1%} before"
        )


def _clips_cut(workspace: Workspace) -> tuple[int, int, Counter[str]]:
    dropped = workspace.column(Clip, "dropped")
    transitions = dropped.count(TRANSITION)
    return len(dropped), len(dropped) - transitions, Counter({TRANSITION: transitions} if transitions else {})


def _with_subjects(workspace: Workspace, verdicts: Iterable[dict[str, Any]]) -> tuple[int, int, Counter[str]]:
    verdicts = list(verdicts)
    passing = {row["id"] for row in verdicts if row["kind"] == "clip" and row["keep"]}
    kept = {row["id"] for row in verdicts if row["kind"] == "subject" and row["keep"]}
    found: Counter[str] = Counter()
    good = set()
    for row in _rows(workspace, Subject, "subject_id", "clip_id"):
        found[row["clip_id"]] += 1
        if row["subject_id"] in kept:
            good.add(row["clip_id"])
    reasons: Counter[str] = Counter()
    annotated = {row["clip_id"]: row for row in _rows(workspace, Annotation, "clip_id", "words")}
    for clip in passing - good:
        if clip not in annotated:
            reasons["not annotated"] += 1
        elif not found[clip]:
            reasons["nothing found" if annotated[clip]["words"] else "no subject word"] += 1
        else:
            reasons["no subject passes"] += 1
    return len(passing), len(good & passing), reasons


def _level(name: str, verdicts: Iterable[dict[str, Any]], kind: str) -> Level:
    rows = [row for row in verdicts if row["kind"] == kind]
    reasons = Counter(reason for row in rows for reason in row["reasons"])
    return Level(name, len(rows), sum(row["keep"] for row in rows), reasons)


def _rows(workspace: Workspace, record: type[Record], *columns: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = workspace.read(record, columns).to_pylist()
    return rows


def stand_ins(manifest: dict[str, Any]) -> list[str]:
    """What the run that made a manifest did without a network, one line each."""
    models = manifest.get("config", {}).get("models", {})
    names = [entry["backend"] for entry in models.values() if isinstance(entry, dict)]
    return [STAND_INS[name] for name in names if name in STAND_INS]


def _cells(level: Level) -> list[str]:
    share = f"{level.kept / level.found:.0%}" if level.found else ""
    why = ", ".join(f"{reason} {count}" for reason, count in level.reasons.most_common())
    return [level.name, str(level.found), str(level.kept), share, why]


def _length(hours: float) -> str:
    return f"{hours:.1f} h" if hours >= 1 else f"{hours * 60:.1f} min"
