"""Bounds for `references.cross_clip.rules` from what a workspace holds: no network, nothing but numbers and crops."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.table import Table

from curation.calibration.labelled_pairs import LabelledPair, read_pairs
from curation.calibration.seen_pairs import (
    EMBEDDINGS,
    By,
    Tracked,
    different_across,
    labelled,
    neighbour_cosines,
    read_tracked,
    together,
    tracked_different,
    tracked_same,
    without,
)
from curation.workspace import Workspace
from models.errors import UserError
from stages.calibration import FEWEST, Calibration, FaceBound, Pairs, best_face_bound, calibrate, face_bounds
from stages.copies import copies
from stages.measure import picture_difference
from stages.pair import LIVING, Category
from stages.picture import decode_png
from stages.records import Subject
from stages.select import ReferenceThresholds

FACE_BOUNDS = (0.0, 0.5, 0.6, 0.7, 0.8)
"""Least detector scores of faces that are tried."""
NEIGHBOURS_S = 0.5
COPIES_SHARE = 98
"""Percentile of the neighbours' cosines that becomes the bound against copies."""
CROPS = 200
DIFFERENCE_SHARE = 99
"""Percentile of the copies' differences that becomes the least difference."""
SEED = 0


class NothingToCalibrateError(UserError, ValueError):
    """The workspace holds no subject that passed."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What the pairs of one category say by one embedding."""

    category: str
    by: By
    same: Pairs
    """Those with faces as sure as ``min_face``, as ``different``."""
    different: Pairs
    calibration: Calibration
    min_face: float
    faces: tuple[FaceBound, ...]
    """What other least scores of faces would do; empty by looks."""
    max: float | None
    """Bound against copies, or nothing where there are too few neighbours, ``neighbours``."""
    neighbours: int
    nearest: tuple[str, str, float] | None
    """The most alike of the different pairs and its cosine: where a track is wrong, it is this one."""


@dataclass(frozen=True, slots=True)
class CopyDifferences:
    """Picture differences of crops and copies of them: per sort of copy and over all, the 99th percentile."""

    crops: int
    by_copy: Mapping[str, float]
    bound: float | None
    """That over all, rounded up to hundredths; nothing without crops."""


@dataclass(frozen=True, slots=True)
class Proposal:
    """All that `s2v calibrate` found out."""

    findings: tuple[Finding, ...]
    copies: CopyDifferences
    rate: float
    across: bool

    def rules(self) -> dict[str, dict[str, str | float]]:
        """The rule of each category that has one, as in `references.cross_clip.rules`.

        People are known by their faces alone. By looks, bounds hold within one video, where they were measured; only
        things without life may go further, if ``across`` says that other videos were measured too.
        """
        return {finding.category: self._rule(finding) for finding in self.findings if _is_rule(finding)}

    def _rule(self, finding: Finding) -> dict[str, str | float]:
        bound = finding.calibration.min
        assert bound is not None
        rule: dict[str, str | float] = {"by": finding.by, "min": bound}
        rule["max"] = finding.max if finding.max is not None and finding.max > bound else 1.0
        if finding.min_face:
            rule["min_face"] = finding.min_face
        if finding.by == "image" and (finding.category in LIVING or not self.across):
            rule["scope"] = "same_video"
        return rule


def propose(workspace: Workspace, labels: Path | None, rate: float, *, across: bool) -> Proposal:
    """Measure the pairs and copies of a workspace.

    Args:
        workspace: curated at least until `select`.
        labels: a file of labelled pairs; see :mod:`curation.calibration.labelled_pairs`. Its pairs are added, and are
            right where the tracks say otherwise; enough same pairs of a category take the place of those of the tracks.
        rate: the false-accept rate of the bounds.
        across: whether subjects of different videos are different individuals.

    Raises:
        NothingToCalibrateError: if no subject passed.
        LabelError: if the labels cannot be used.
    """
    pairs: list[LabelledPair] = []
    if labels is not None:
        known = {row["subject_id"]: row["category"] for row in workspace.rows(Subject, ["subject_id", "category"])}
        pairs = read_pairs(labels, known)
    subjects = read_tracked(workspace, [name for pair in pairs for name in (pair.a, pair.b)])
    if not subjects:
        raise NothingToCalibrateError(
            f"{workspace.uri} holds no subject that passed: curate videos into it first, at least `--until select`"
        )
    findings = tuple(
        finding
        for category in get_args(Category)
        for by in EMBEDDINGS
        if (finding := _find(category, by, subjects, pairs, rate, across=across)) is not None
    )
    return Proposal(findings, copy_differences(workspace, [subject.subject_id for subject in subjects]), rate, across)


def copy_differences(workspace: Workspace, subject_ids: Sequence[str]) -> CopyDifferences:
    """How unlike copies of the best crops of the first of these subjects are to what they were made of."""
    wanted = ", ".join(f"'{name}'" for name in sorted(subject_ids)[:CROPS])
    found: dict[str, list[float]] = {}
    crops = 0
    for row in workspace.rows(Subject, ["best", "crops"], f"subject_id IN ({wanted})"):
        crop = decode_png(row["crops"][row["best"]])
        crops += 1
        for name, copy in copies(crop).items():
            found.setdefault(name, []).append(picture_difference(crop, copy))
    every = [value for values in found.values() for value in values]
    bound = math.ceil(round(np.percentile(every, DIFFERENCE_SHARE) * 100, 6)) / 100 if every else None
    return CopyDifferences(
        crops, {name: float(np.percentile(values, DIFFERENCE_SHARE)) for name, values in found.items()}, bound
    )


def show(proposal: Proposal, console: Console) -> None:
    """Print what was measured, and the part of a config that follows from it."""
    table = Table("category", "by", "faces", "same", "different", "area", "equal error", "at")
    for name in ("min", "false accepts", "false rejects", "max"):
        table.add_column(name)
    for column in table.columns[2:]:
        column.justify = "right"
    for finding in proposal.findings:
        table.add_row(*_cells(finding))
    console.print(table)
    for finding in proposal.findings:
        if finding.calibration.min is None:
            console.print(f"{finding.category} by {finding.by}: no bound: {finding.calibration.why}.")
    for finding in proposal.findings:
        if finding.nearest is not None:
            one, other, cosine = finding.nearest
            console.print(
                f"{finding.category} by {finding.by}: most alike of the different: {one} {other}, {cosine:.2f}"
            )
    for finding in proposal.findings:
        if finding.faces:
            console.print(_face_table(finding))
    console.print(_copies_told(proposal.copies))
    console.print(
        "Same pairs are both halves of a track, each counted by the seconds between them: other clips are harder than "
        "that. Different pairs are two subjects of one keyframe"
        + (", and subjects of different videos" if proposal.across else "")
        + "; look whether those named here are two. "
        + f"`min` is what a further different pair reaches with a probability of {proposal.rate:g}."
    )
    console.print()
    # Nothing of it is to be broken or coloured: it is to be copied.
    console.print("\n".join(snippet(proposal)), soft_wrap=True, highlight=False, markup=False)


def snippet(proposal: Proposal) -> Iterator[str]:
    """Lines of YAML for a config: the rules, reasons where there is none, and the least difference."""
    rules = proposal.rules()
    yield "references:"
    yield "  cross_clip:"
    yield "    rules:" if rules else "    rules: {}"
    for finding in proposal.findings:
        if _is_rule(finding):
            values = ", ".join(f"{name}: {_yaml(value)}" for name, value in rules[finding.category].items())
            yield f"      {finding.category}: {{{values}}}" + _no_max(finding)
    for finding in proposal.findings:
        if finding.category not in rules:
            yield f"      # {finding.category} by {finding.by}: {_why_not(finding)}"
    if proposal.copies.bound is not None:
        least = ", ".join(f"{kind}: {value:g}" for kind, value in _least_differences(proposal.copies.bound).items())
        yield "select:"
        yield "  reference:"
        yield f"    min_difference: {{{least}}}"


def _find(
    category: str, by: By, everyone: Sequence[Tracked], pairs: Sequence[LabelledPair], rate: float, *, across: bool
) -> Finding | None:
    subjects = [subject for subject in everyone if subject.category == category]
    named = {subject.subject_id: subject for subject in subjects}
    own = [pair for pair in pairs if pair.a in named]
    same = labelled(own, named, by, same=True)
    if len(same) < FEWEST:
        same = together(tracked_same(subjects, by), same)
    seen = tracked_different(subjects, by)
    if across:
        seen = together(seen, different_across(subjects, by, SEED))
    # Whoever labels a pair has looked: it may be one individual that was found twice.
    known = [(named[pair.a], named[pair.b]) for pair in own]
    different = together(without(seen, known), labelled(own, named, by, same=False))
    if not len(same) and not len(different):
        return None
    faces = face_bounds(same, different, rate, FACE_BOUNDS) if by == "face" else []
    best = best_face_bound(faces) if faces else FaceBound(0.0, calibrate(same, different, rate), 0.0)
    cosines = neighbour_cosines(subjects, by, NEIGHBOURS_S)
    same, different = same.sure(best.min_face), different.sure(best.min_face)
    return Finding(
        category=category,
        by=by,
        same=same,
        different=different,
        calibration=best.calibration,
        min_face=best.min_face,
        faces=tuple(faces),
        max=_copies_above(cosines) if len(cosines) >= FEWEST else None,
        neighbours=len(cosines),
        nearest=_nearest(different, {subject.number: subject.subject_id for subject in subjects}),
    )


def _nearest(different: Pairs, names: Mapping[int, str]) -> tuple[str, str, float] | None:
    if not len(different):
        return None
    place = int(np.argmax(different.scores))
    one, other = different.subjects[place].tolist()
    return names[one], names[other], float(different.scores[place])


def _copies_above(cosines: npt.NDArray[np.float64]) -> float:
    """Rounded down to thousandths."""
    return math.floor(round(float(np.percentile(cosines, COPIES_SHARE)) * 1000, 6)) / 1000


def _is_rule(finding: Finding) -> bool:
    """People of other clips may wear the same or something else: looks prove nothing of them."""
    return finding.calibration.min is not None and (finding.category != "person" or finding.by == "face")


def _why_not(finding: Finding) -> str:
    return finding.calibration.why or "looks do not tell people apart across clips"


def _no_max(finding: Finding) -> str:
    bound = finding.calibration.min or 0.0
    if finding.max is None:
        return f"  # no max: only {finding.neighbours} neighbouring frames less than {NEIGHBOURS_S:g} s apart"
    return "" if finding.max > bound else f"  # no max: neighbouring frames reach {finding.max}, not more than others"


def _least_differences(bound: float) -> dict[str, float]:
    """The bounds on context difference that are the default, none below what copies reach."""
    return {kind: max(value, bound) for kind, value in ReferenceThresholds().min_difference.items()}


def _cells(finding: Finding) -> list[str]:
    calibration = finding.calibration
    rate, at = calibration.roc.equal_error if calibration.roc else (math.nan, math.nan)
    return [
        finding.category,
        finding.by,
        f"{finding.min_face:g}" if finding.faces else "",
        str(calibration.same),
        f"{calibration.different} ({calibration.independent} independent)",
        _number(calibration.roc.area if calibration.roc else math.nan, ".4f"),
        _number(rate, ".2%"),
        _number(at, ".2f"),
        _number(calibration.min, ".2f"),
        _number(calibration.false_accept, ".1e"),
        _number(calibration.false_reject, ".1%"),
        _number(finding.max, ".3f"),
    ]


def _face_table(finding: Finding) -> Table:
    table = Table("faces from", "same", "different", "equal error", "min", "same pairs found", title_justify="left")
    table.title = f"{finding.category}: what unsure faces do"
    for column in table.columns:
        column.justify = "right"
    for bound in finding.faces:
        calibration = bound.calibration
        table.add_row(
            f"{bound.min_face:g}",
            str(calibration.same),
            f"{calibration.different} ({calibration.independent} independent)",
            _number(calibration.roc.equal_error[0] if calibration.roc else math.nan, ".2%"),
            _number(calibration.min, ".2f"),
            f"{bound.found:.1%}",
            style="bold" if bound.min_face == finding.min_face else "",
        )
    return table


def _copies_told(measured: CopyDifferences) -> str:
    if measured.bound is None:
        return "No crops: nothing is known of copies."
    sorts = ", ".join(f"{name} {value:.3f}" for name, value in measured.by_copy.items())
    return (
        f"Picture difference that {DIFFERENCE_SHARE} % of the copies of {measured.crops} crops stay below: {sorts}; "
        f"of all {measured.bound:.2f}."
    )


def _number(value: float | None, how: str) -> str:
    return "" if value is None or math.isnan(value) else format(value, how)


def _yaml(value: str | float) -> str:
    return value if isinstance(value, str) else str(value)
