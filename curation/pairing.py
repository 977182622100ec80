"""The steps that make references and measure them: subjects into pictures, pictures into proofs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

from curation.config import fingerprint
from curation.guard import Item, Stage
from curation.steps import REVISION, Step, kept_ids, row_ids, videos_by_clip, write_verdicts
from curation.vector_index import neighbours
from curation.vectors import compared_subjects
from curation.workspace import Workspace
from stages.config import Section
from stages.pair import Crowd, Individual, Rival, rivals
from stages.plan import Recipe, ReferenceSpec, plan_references
from stages.records import Proof, Record, Reference, Subject
from stages.synthesise import Painters, SynthesiseStage
from stages.verify import PAINTED, Claim, Other, Verifiers, VerifyStage


class References(Step):
    """Subjects into ``references``."""

    name = "references"
    outputs = (Reference,)
    models: ClassVar = {"synthesise": ("inpainter", "editor")}

    @property
    def is_light(self) -> bool:
        return not self.tasks("synthesise")

    @cached_property
    def recipes(self) -> dict[str, Recipe]:
        """How the pictures of each kind are made: all that they depend on besides their subjects."""
        references = self.config.references
        cut = fingerprint("references", REVISION["references"])
        inpainter, editor = self.model_fingerprint("inpainter", "editor")
        inpainted_by, moved_by = self._name("inpainter", inpainter), self._name("editor", editor)
        return {
            "original": Recipe("cut_out", cut),
            "other_frame": Recipe("cut_out", cut),
            "cross_clip": Recipe("cut_out", cut),
            "inpainted": Recipe(inpainted_by, fingerprint(cut, _how(references.inpainted), inpainter)),
            "augmented": Recipe("augment", fingerprint(cut, _how(references.augmented))),
            "moved": Recipe(moved_by, fingerprint(cut, _how(references.moved), editor)),
            "swapped": Recipe(f"swap, {inpainted_by}", fingerprint(cut, _how(references.swapped), inpainter)),
        }

    @cached_property
    def fingerprint(self) -> str:
        return fingerprint({kind: recipe.fingerprint for kind, recipe in self.recipes.items()})

    @cached_property
    def _wanted(self) -> list[ReferenceSpec]:
        references = self.config.references
        subjects = compared_subjects(
            self.workspace, kept_ids(self.workspace, "subject"), frames=references.other_frame.count > 0
        )
        return plan_references(subjects, videos_by_clip(self.workspace), references, self.recipes, neighbours)

    def clean(self) -> None:
        """Delete references that are no longer wanted, and their proofs."""
        wanted = {spec.reference_id for spec in self._wanted}
        for record in (Proof, Reference):
            self.workspace.delete(record, "reference_id", set(self.workspace.column(record, "reference_id")) - wanted)

    def plan(self) -> list[Item]:
        """One item for what is cut out of a subject's frames, and one for each kind that is painted: a painter that
        fails costs its own pictures."""
        known = set(self.workspace.column(Reference, "reference_id"))
        where, version = row_ids(self.workspace, Subject)
        todo: dict[str, list[ReferenceSpec]] = defaultdict(list)
        for spec in self._wanted:
            if spec.reference_id not in known:
                todo[f"{spec.target_id}:{spec.kind}" if spec.kind in PAINTED else spec.target_id].append(spec)
        return [
            Item(
                key,
                f"subject {specs[0].target_id}",
                float(len(specs)),
                SubjectReferences(specs, version, sorted({where[name] for spec in specs for name in spec.subjects})),
            )
            for key, specs in sorted(todo.items())
        ]

    def tasks(self, stage: str) -> tuple[str, ...]:
        references = self.config.references
        asked = {
            "inpainter": references.inpainted.count + references.swapped.count,
            "editor": references.moved.count,
        }
        return tuple(task for task in super().tasks(stage) if asked[task])

    def stage(self, name: str) -> Stage:
        models = dict(zip(self.tasks(name), self.loaded(name), strict=True))
        return ReferenceStage(SynthesiseStage(self.config.references, Painters(**models)), self.workspace)

    def _name(self, task: str, mark: str) -> str:
        config = self.config.models.chosen().get(task)
        return f"{config.backend}@{mark}" if config else ""

    def rows(self, value: Sequence[Reference]) -> Sequence[Record]:
        return value


@dataclass(frozen=True, slots=True)
class SubjectReferences:
    """References to be made for one subject, and where the subjects that they need lie in their table."""

    specs: list[ReferenceSpec]
    version: int
    row_ids: list[int]


@dataclass(frozen=True)
class ReferenceStage:
    """Reads the subjects that a batch's references need, and makes the references of all in one go."""

    synthesise: SynthesiseStage
    workspace: Workspace

    def run(self, batch: Sequence[SubjectReferences]) -> list[list[Reference]]:
        """References of each item, in the order of its specs."""
        subjects: dict[str, Subject] = {}
        for value in batch:
            found = self.workspace.take(Subject, value.row_ids, value.version)
            subjects |= {subject.subject_id: subject for subject in found}
        made = iter(self.synthesise.run([spec for value in batch for spec in value.specs], subjects))
        return [[next(made) for _ in value.specs] for value in batch]


class Verify(Step):
    """References into ``proofs``: what each shows of its target, and how differently.

    A table of its own, so that another face network, or a new subject that looks like an old one, measures anew what
    was painted and paints nothing.
    """

    name = "verify"
    outputs = (Proof,)
    models: ClassVar = {"verify": ("embedder", "faces", "image_text", "safety", "detector")}

    @property
    def is_light(self) -> bool:
        return False

    @cached_property
    def fingerprint(self) -> str:
        return fingerprint(
            "verify", REVISION["verify"], self.config.verify, self.model_fingerprint(*self.tasks("verify"))
        )

    def tasks(self, stage: str) -> tuple[str, ...]:
        references = self.config.references
        backgrounds = self.config.verify.second_subjects and references.inpainted.count + references.swapped.count
        return tuple(task for task in super().tasks(stage) if task != "detector" or backgrounds)

    @cached_property
    def _others(self) -> dict[str, list[Rival]]:
        """By target, the subjects that are known to be others: those of its own clip first, then the most alike."""
        count = self.config.verify.rivals
        if not count:
            return {}
        videos = videos_by_clip(self.workspace)
        crowd = Crowd(self.config.references.cross_clip.rules, videos, apart=False)
        beside: dict[tuple[str, str], list[Rival]] = defaultdict(list)
        place: dict[str, tuple[str, str]] = {}
        for row in compared_subjects(self.workspace, kept_ids(self.workspace, "subject"), frames=False):
            crowd.add(row, Individual.of(row))
            place[row["subject_id"]] = row["clip_id"], row["category"]
            beside[place[row["subject_id"]]].append(Rival(row["subject_id"], row["fingerprint"]))
        alike = dict(rivals(crowd, count, neighbours))
        return {
            name: _distinct([*sorted(beside[where], key=lambda other: other.subject_id), *alike.get(name, [])], name)[
                :count
            ]
            for name, where in place.items()
        }

    @cached_property
    def _wanted(self) -> dict[str, tuple[str, list[Rival], str]]:
        """By reference: its target, the others that it is held against, and the fingerprint of its proof."""
        subjects = self.workspace.rows(Subject, ["subject_id", "fingerprint"])
        described = {row["subject_id"]: row["fingerprint"] for row in subjects}
        rows = self.workspace.rows(Reference, ["reference_id", "subject_id", "source_subject_id", "fingerprint"])
        wanted = {}
        for row in rows:
            others = self._others.get(row["subject_id"], [])
            parts = [
                row["fingerprint"],
                *(described[row[name]] for name in ("subject_id", "source_subject_id")),
                *(f"{other.subject_id}:{other.fingerprint}" for other in others),
            ]
            wanted[row["reference_id"]] = row["subject_id"], others, fingerprint(self.fingerprint, parts)
        return wanted

    def clean(self) -> None:
        """Delete proofs that were made with another configuration or against other subjects."""
        rows = self.workspace.rows(Proof, ["reference_id", "fingerprint"])
        stale = [
            row["reference_id"]
            for row in rows
            if row["reference_id"] not in self._wanted or self._wanted[row["reference_id"]][2] != row["fingerprint"]
        ]
        self.workspace.delete(Proof, "reference_id", stale)

    def plan(self) -> list[Item]:
        known = set(self.workspace.column(Proof, "reference_id"))
        videos = videos_by_clip(self.workspace)
        subjects, subject_version = row_ids(self.workspace, Subject)
        references, reference_version = row_ids(self.workspace, Reference)
        todo: dict[str, list[ClaimRows]] = defaultdict(list)
        numbers = self.workspace.rows(Reference, ["reference_id", "subject_id", "source_subject_id", "source_clip_id"])
        clip_of = {row["subject_id"]: row["clip_id"] for row in self.workspace.rows(Subject, ["subject_id", "clip_id"])}
        for row in numbers:
            name, target = row["reference_id"], row["subject_id"]
            if name in known:
                continue
            _, others, mark = self._wanted[name]
            todo[target].append(
                ClaimRows(
                    reference=references[name],
                    target=subjects[target],
                    source=subjects[row["source_subject_id"]],
                    same_video=videos[clip_of[target]] == videos[row["source_clip_id"]],
                    others=[subjects[other.subject_id] for other in others],
                    fingerprint=mark,
                )
            )
        return [
            Item(
                target,
                f"subject {target}",
                float(len(claims)),
                SubjectClaims(sorted(claims, key=lambda claim: claim.reference), reference_version, subject_version),
            )
            for target, claims in sorted(todo.items())
        ]

    def stage(self, name: str) -> Stage:
        models = dict(zip(self.tasks(name), self.loaded(name), strict=True))
        return ProofStage(VerifyStage(self.config.verify, Verifiers(**models)), self.workspace)

    def rows(self, value: Sequence[Proof]) -> Sequence[Record]:
        return value

    def finish(self) -> None:
        """Give the references their verdicts."""
        write_verdicts(self.workspace, self.config)


@dataclass(frozen=True, slots=True)
class ClaimRows:
    """Where the rows of a claim lie in their tables."""

    reference: int
    target: int
    source: int
    same_video: bool
    others: list[int]
    fingerprint: str


@dataclass(frozen=True, slots=True)
class SubjectClaims:
    """References of one subject to be measured, and the versions of the tables in which their rows lie."""

    claims: list[ClaimRows]
    references: int
    subjects: int


@dataclass(frozen=True)
class ProofStage:
    """Reads what a batch's references are measured against, and measures all in one go."""

    verify: VerifyStage
    workspace: Workspace

    def run(self, batch: Sequence[SubjectClaims]) -> list[list[Proof]]:
        """Proofs of each item, in the order of its claims."""
        proofs = iter(self.verify.run([claim for value in batch for claim in self._claims(value)]))
        return [[next(proofs) for _ in value.claims] for value in batch]

    def _claims(self, value: SubjectClaims) -> Iterator[Claim]:
        references = self.workspace.take(Reference, [claim.reference for claim in value.claims], value.references)
        whole = sorted({row for claim in value.claims for row in (claim.target, claim.source)})
        subjects = dict(zip(whole, self.workspace.take(Subject, whole, value.subjects), strict=True))
        known = sorted({row for claim in value.claims for row in claim.others})
        columns = ["subject_id", "face_embedding", "image_embedding"]
        rows = self.workspace.take_rows(Subject, known, value.subjects, columns) if known else []
        others = {number: Other(**row) for number, row in zip(known, rows, strict=True)}
        for claim, reference in zip(value.claims, references, strict=True):
            yield Claim(
                reference,
                subjects[claim.target],
                subjects[claim.source],
                claim.same_video,
                [others[number] for number in claim.others],
                claim.fingerprint,
            )


def _distinct(found: Iterable[Rival], target: str) -> list[Rival]:
    return list({other.subject_id: other for other in found if other.subject_id != target}.values())


def _how(kind: Section) -> dict[str, Any]:
    """What of a kind's section its pictures depend on: how many there are is none of it."""
    return kind.model_dump(mode="json", exclude={"count", "fit"})
