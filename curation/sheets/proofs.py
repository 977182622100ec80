"""A contact sheet of proofs: beside each subject its references, those that passed and those that did not, and why."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from curation.sheets.samples import NothingToDrawError, header
from curation.sheets.tiles import (
    BORDER,
    CELL_GAP,
    GREY,
    MARGIN,
    PAGE,
    QUIET,
    RED,
    Colour,
    Tile,
    below,
    beside,
    fit,
    flow,
    page,
    pill,
    squared,
    text_tile,
    thumbnail,
    with_masks,
)
from curation.steps import kept_ids, proved_references
from curation.workspace import Workspace, among
from models.errors import UserError
from stages.picture import subject_crop
from stages.records import KIND_ORDER, Reference, Subject, Verdict

Row = dict[str, Any]

SIDE = 160
"""Of a reference's picture."""
GREEN: Colour = (24, 140, 52)
LEGEND = (
    "Green passed, red did not. id: identity similarity to the target, and to the most alike subject that is another. "
    "diff: context difference; copy: how well it can be laid over the target's frames; new, halo: of a background."
)


class UnknownKindError(UserError, ValueError):
    """A kind of references that there is not; the message names those that there are."""


def draw_proofs(workspace: Workspace, output: Path, *, kinds: Sequence[str] = (), most: int = 24) -> int:
    """Draw a sheet as a PNG file and return how many rows, one per subject, it has.

    Args:
        workspace: where the tables are.
        output: the file to write.
        kinds: kinds of references that are shown; empty shows all.
        most: rows at most; of the subjects with the most kinds of references, the first by id.

    Raises:
        UnknownKindError: if there is no kind of such a name.
        NothingToDrawError: if no reference of these kinds was measured.
    """
    if unknown := sorted(set(kinds) - set(KIND_ORDER)):
        raise UnknownKindError(f"no kind of reference is called {unknown[0]!r}; there are {', '.join(KIND_ORDER)}")
    wanted = set(kinds) or set(KIND_ORDER)
    numbers = [row for row in proved_references(workspace) if row["kind"] in wanted]
    if not numbers:
        raise NothingToDrawError(
            f"{workspace.uri} holds no proofs of references of the kinds {', '.join(sorted(wanted))}: `s2v run verify`"
        )
    of_subject: dict[str, list[Row]] = defaultdict(list)
    for row in sorted(numbers, key=lambda row: (KIND_ORDER.index(row["kind"]), row["reference_id"])):
        of_subject[row["subject_id"]].append(row)
    chosen = sorted(of_subject, key=lambda name: (-len({row["kind"] for row in of_subject[name]}), name))[:most]
    rows = list(_rows(workspace, {name: of_subject[name] for name in chosen}))
    kept = kept_ids(workspace, "reference")
    passed = sum(row["reference_id"] in kept for row in numbers)
    counts = f"{len(rows)} of {len(of_subject)} subjects; {passed} of {len(numbers)} references passed"
    output.parent.mkdir(parents=True, exist_ok=True)
    page(header(workspace, counts, LEGEND), rows).save(output, format="PNG")
    return len(rows)


def _rows(workspace: Workspace, of_subject: dict[str, list[Row]]) -> Iterator[Tile]:
    subjects = {row.subject_id: row for row in workspace.records(Subject, among("subject_id", of_subject))}
    for name, references in of_subject.items():
        ids = among("reference_id", [row["reference_id"] for row in references])
        pictures = {
            row["reference_id"]: row["image"] for row in workspace.rows(Reference, ["reference_id", "image"], ids)
        }
        verdicts = among("id", pictures)
        reasons = {row["id"]: row["reasons"] for row in workspace.rows(Verdict, ["id", "reasons"], verdicts)}
        subject = subjects[name]
        cells = [
            _cell(row, pictures[row["reference_id"]], reasons.get(row["reference_id"], ["not decided"]))
            for row in references
        ]
        width = PAGE - 2 * MARGIN - SIDE - CELL_GAP
        yield beside([_target(subject), flow(cells, width, CELL_GAP, 2 * CELL_GAP)], gap=CELL_GAP)


def _target(subject: Subject) -> Tile:
    crop, mask = subject_crop(subject, subject.best)
    inner = SIDE - 2 * BORDER
    own = squared(with_masks(fit(crop, (inner, inner)), [(mask, (31, 105, 225))], opacity=0), SIDE, GREY)
    return below([text_tile(f"{subject.word}, target", SIDE), own, text_tile(subject.subject_id, SIDE, colour=QUIET)])


def _cell(row: Row, image: bytes, reasons: Sequence[str]) -> Tile:
    colour = RED if reasons else GREEN
    identity = f"id {row['identity_similarity']:.2f} {row['identity_by']}"
    if row["rival_similarity"] is not None:
        identity += f", other {row['rival_similarity']:.2f}"
    apart = [
        f"{label} {row[name]:.2f}"
        for name, label in (
            ("context_difference", "diff"),
            ("copy_risk", "copy"),
            ("background_change", "new"),
            ("halo", "halo"),
        )
        if row[name] is not None
    ]
    return below(
        [
            text_tile(row["kind"], SIDE),
            thumbnail(image, SIDE, colour),
            text_tile(identity, SIDE),
            text_tile(", ".join(apart), SIDE, colour=QUIET, lines=2),
            *(pill(reason, RED, most=SIDE) for reason in reasons),
        ]
    )
