"""What other thresholds would let through, told from stored numbers alone."""

from __future__ import annotations

from collections import Counter

from rich.console import Console
from rich.table import Table

from curation.config import Config
from curation.steps import SUBJECT_MEASURES, proved_references
from curation.workspace import Workspace
from stages.records import Annotation, Clip, Score, Subject, Verdict
from stages.select import SelectConfig, decide


def show_what_if(workspace: Workspace, config: Config, changed: SelectConfig, console: Console) -> None:
    """Print how many clips, subjects, references and samples pass now and would pass, and which reasons change."""
    now, then = (_outcome(workspace, select) for select in (config.select, changed))
    table = Table("", "now", "then", "change")
    for column in (1, 2, 3):
        table.columns[column].justify = "right"
    for name in ("clips", "subjects", "references", "samples"):
        table.add_row(name, str(now[name]), str(then[name]), f"{then[name] - now[name]:+d}")
    for name in sorted(set(now) | set(then)):
        if name not in ("clips", "subjects", "references", "samples", "unseen") and now[name] != then[name]:
            table.add_row(
                f"  dropped as {name}", str(now[name]), str(then[name]), f"{then[name] - now[name]:+d}", style="dim"
            )
    console.print(table)
    if then["unseen"]:
        console.print(
            f"{then['unseen']} clips that would pass have not been shown to the subject models yet: "
            "`s2v curate` with these thresholds would annotate them, and may find more."
        )


def _outcome(workspace: Workspace, select: SelectConfig) -> Counter[str]:
    references = list(proved_references(workspace))
    subjects = workspace.read(Subject, SUBJECT_MEASURES).to_pylist()
    verdicts = decide(
        workspace.read(Clip, ["clip_id", "dropped"]).to_pylist(),
        workspace.read(Score).to_pylist(),
        subjects,
        references,
        select,
    )
    return _count(
        verdicts,
        {row["subject_id"]: row["clip_id"] for row in subjects},
        {row["reference_id"]: row["subject_id"] for row in references},
        set(workspace.column(Annotation, "clip_id")),
    )


def _count(
    verdicts: list[Verdict], clip_of: dict[str, str], subject_of: dict[str, str], annotated: set[str]
) -> Counter[str]:
    count: Counter[str] = Counter()
    samples = set()
    shown = {subject_of[verdict.id] for verdict in verdicts if verdict.kind == "reference" and verdict.keep}
    # A subject that no reference was made of yet will get some; one whose references all fail makes no sample.
    shown |= clip_of.keys() - set(subject_of.values())
    for verdict in verdicts:
        count.update(f"{verdict.kind}: {reason}" for reason in verdict.reasons)
        count[f"{verdict.kind}s"] += verdict.keep
        if verdict.kind == "subject" and verdict.keep and verdict.id in shown:
            samples.add(clip_of[verdict.id])
        if verdict.kind == "clip" and verdict.keep and verdict.id not in annotated:
            count["unseen"] += 1
    count["samples"] = len(samples)
    return count
