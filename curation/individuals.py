"""Who is who among the subjects that passed, and who looks like whom without being the same."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence, Set
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np

from curation.config import Config
from curation.steps import kept_ids, videos_by_clip
from curation.vector_index import neighbours
from curation.vectors import compared_subjects
from curation.workspace import Workspace
from stages.identity import identities
from stages.mixture import similar_others
from stages.pair import Crowd, Individual, rivals, same_subjects
from stages.records import Subject
from stages.sample import Negative, SamplePlan

LOOKED_AT = 64
"""Similar others of each subject from which its negatives are chosen."""
DECIMALS = 5
"""To which cosines are told: what lies beyond them depends on how they were computed."""


class Individuals:
    """The individuals in a workspace, by the rules of ``references.cross_clip``."""

    def __init__(self, workspace: Workspace, config: Config) -> None:
        self._workspace = workspace
        self._rules = config.references.cross_clip.rules
        self._mixture = config.mixture

    @cached_property
    def _subjects(self) -> set[str]:
        return kept_ids(self._workspace, "subject")

    @cached_property
    def _clip_of(self) -> dict[str, str]:
        rows = self._workspace.rows(Subject, ["subject_id", "clip_id"])
        return {row["subject_id"]: row["clip_id"] for row in rows if row["subject_id"] in self._subjects}

    @cached_property
    def names(self) -> dict[str, str]:
        """For each subject that passed, a name for the individual that it is."""
        pairs = same_subjects(self._crowd(self._rules, self._subjects), neighbours)
        return identities(sorted(self._clip_of), pairs)

    def clips(self) -> Iterator[tuple[str, str]]:
        """Pairs of clips that show the same individual; they link all of its clips."""
        first: dict[str, str] = {}
        for subject, name in self.names.items():
            clip = self._clip_of[subject]
            if (other := first.setdefault(name, clip)) != clip:
                yield other, clip

    def with_negatives(
        self, samples: Sequence[SamplePlan], among: Sequence[SamplePlan], val: Set[str], originals: Mapping[str, str]
    ) -> list[SamplePlan]:
        """The samples with pictures of similar others.

        Args:
            samples: those of the mixture.
            among: samples whose subjects may be shown.
            val: keys of the samples for validation.
            originals: the picture of each subject that may be shown.
        """
        rules = {
            category: rule.model_copy(update={"min": rule.min - self._mixture.negative_margin})
            for category, rule in self._rules.items()
        }
        alike: dict[str, list[str]] = {}
        for side in (True, False):
            # Each side by itself, or the few for validation would find none of their own among the nearest.
            subjects = {name for sample in among if (sample.key in val) == side for name in sample.subjects}
            for name, found in rivals(self._crowd(rules, subjects), LOOKED_AT, neighbours):
                alike[name] = [other.subject_id for other in found if other.subject_id in originals]
        others = similar_others(samples, among, val, alike, self.names, self._mixture.negatives)
        cosines = self._cosines(others)
        return [
            replace(
                sample,
                negatives=tuple(
                    tuple(Negative(originals[other], other, cosines[subject, other]) for other in others[subject])
                    for subject in sample.subjects
                ),
            )
            for sample in samples
        ]

    def _crowd(self, rules: Mapping[Any, Any], subjects: Collection[str]) -> Crowd:
        crowd = Crowd(rules, videos_by_clip(self._workspace), apart=False)
        for row in compared_subjects(self._workspace, set(subjects), frames=False):
            crowd.add(row, Individual.of(row))
        return crowd

    def _cosines(self, others: Mapping[str, Sequence[str]]) -> dict[tuple[str, str], float]:
        wanted = {name for subject, found in others.items() if found for name in (subject, *found)}
        vectors = {}
        for row in compared_subjects(self._workspace, wanted, frames=False):
            vector = np.array(row[f"{self._rules[row['category']].by}_embedding"], np.float32)
            vectors[row["subject_id"]] = vector / np.linalg.norm(vector)
        return {
            (subject, other): round(float(vectors[subject] @ vectors[other]), DECIMALS)
            for subject, found in others.items()
            for other in found
        }
