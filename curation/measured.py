"""What was measured of the references that passed: medians by kind."""

from __future__ import annotations

from collections import defaultdict
from statistics import median

from curation.workspace import Workspace
from stages.records import KIND_ORDER, Proof, Reference, Verdict

MEASURES = {
    "identity_similarity": "identity",
    "rival_similarity": "other",
    "context_difference": "difference",
    "copy_risk": "copy",
    "background_change": "new",
    "halo": "halo",
}
"""Columns of `proofs`, and what a table calls them."""


def medians(workspace: Workspace) -> dict[str, dict[str, float]]:
    """By kind, in the order of `KIND_ORDER`, the median of each measure that accepted references have."""
    kept = {row["id"] for row in workspace.rows(Verdict, ["id"], where="kind = 'reference' AND keep")}
    kinds = {row["reference_id"]: row["kind"] for row in workspace.rows(Reference, ["reference_id", "kind"])}
    values: dict[str, dict[str, list[float]]] = {kind: defaultdict(list) for kind in KIND_ORDER}
    for row in workspace.rows(Proof, ["reference_id", *MEASURES]):
        if row["reference_id"] in kept:
            for name in MEASURES:
                if row[name] is not None:
                    values[kinds[row["reference_id"]]][name].append(row[name])
    return {
        kind: {name: median(found) for name, found in measures.items()} for kind, measures in values.items() if measures
    }
