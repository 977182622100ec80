"""Drives the steps: what is still to do, in units, through an executor, committed as it comes."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from curation.config import Config
from curation.guard import Item, Trouble, Unit
from curation.operator import Operator, UnitResult
from curation.pack import Pack
from curation.pairing import References, Verify
from curation.progress import Progress
from curation.steps import Annotate, Encode, Ingest, Split, Step, write_verdicts
from curation.workspace import Workspace
from stages.ingest import InputVideo
from stages.records import Failure

STEPS = ("ingest", "split", "annotate", "select", "references", "verify", "encode", "pack")
SPREAD = 32
"""A step's work is cut into at least this many units where there are items enough, so that workers end together."""


class Executor(Protocol):
    """Something that carries units through a step's operators."""

    def run(self, step: Step, units: Sequence[Unit]) -> Iterator[UnitResult]: ...


class SerialExecutor:
    """Runs units one after the other in this process: for tests, notebooks and measuring what Ray costs."""

    def run(self, step: Step, units: Sequence[Unit]) -> Iterator[UnitResult]:
        """Results in the order of the units."""
        operators = [
            Operator(type(step), step.config, step.workspace, index) for index in range(len(step.runtime.operators))
        ]
        for unit in units:
            for operator in operators:
                unit = operator.run(unit)
            yield operators[-1].write(unit)


@dataclass(frozen=True, slots=True)
class StepReport:
    """What a step did in this run: items tried, of which failed, and seconds taken."""

    step: str
    items: int
    failed: int
    seconds: float


def make_step(name: str, config: Config, workspace: Workspace, videos: Sequence[InputVideo] = ()) -> Step | None:
    """The step of that name; nothing for `select`, which is a pass over the tables and has no items."""
    match name:
        case "ingest":
            return Ingest(config, workspace, videos)
        case "select":
            return None
    classes: dict[str, type[Step]] = {step.name: step for step in (Split, Annotate, References, Verify, Encode, Pack)}
    return classes[name](config, workspace)


def run_steps(
    names: Sequence[str],
    config: Config,
    workspace: Workspace,
    executor: Executor,
    progress: Progress,
    *,
    videos: Sequence[InputVideo] = (),
    retry_failed: bool = False,
) -> list[StepReport]:
    """Run steps in order, then tidy the tables. The caller holds the workspace's lock.

    ``videos`` are what `ingest` takes up: what `stages.ingest.list_inputs` found behind the inputs.
    """
    if workspace.exists("attempts"):
        # Notes of a run that was killed say nothing about its items: it was the run that died.
        workspace.filesystem.rm(workspace.path("attempts"), recursive=True)
    reports = []
    for name in names:
        step = make_step(name, config, workspace, videos)
        if step is None:
            started = time.monotonic()
            verdicts = write_verdicts(workspace, config)
            reports.append(StepReport(name, len(verdicts), 0, time.monotonic() - started))
            progress.passed(name, len(verdicts))
        else:
            reports.append(run_step(step, executor, progress, retry_failed=retry_failed))
    workspace.tidy()
    return reports


def run_step(step: Step, executor: Executor, progress: Progress, *, retry_failed: bool = False) -> StepReport:
    """Do what a step has still to do."""
    started = time.monotonic()
    step.clean()
    planned = step.plan()
    failed_before = _failed_before(step, {item.key for item in planned}, retry_failed)
    items = [item for item in planned if item.key not in failed_before]
    units = group(items, step.runtime.unit_seconds, step.runtime.unit_items)
    failed = 0
    if units:
        with progress.step(step.name, len(items), sum(item.seconds for item in items)) as advance:
            for result in _committed(step, executor.run(step, units), step.config.runtime.commit_s):
                failed += len(result.troubles)
                advance(result.items, len(result.troubles), result.seconds)
    else:
        progress.passed(step.name, 0)
    step.finish()
    return StepReport(step.name, len(items), failed, time.monotonic() - started)


def group(items: Sequence[Item], unit_seconds: float, unit_items: int) -> list[Unit]:
    """Neighbouring items into units, bounded by their seconds and their number."""
    bound = min(unit_seconds, sum(item.seconds for item in items) / SPREAD)
    units: list[list[Item]] = []
    seconds = 0.0
    for item in items:
        if not units or seconds + item.seconds > bound or len(units[-1]) >= unit_items:
            units.append([])
            seconds = 0.0
        units[-1].append(item)
        seconds += item.seconds
    return [Unit(_hash(*(item.key for item in members)), members) for members in units]


def _committed(step: Step, results: Iterator[UnitResult], every_s: float) -> Iterator[UnitResult]:
    """Pass results on, committing them every few seconds and at the end."""
    pending: list[UnitResult] = []
    last = time.monotonic()
    try:
        for result in results:
            pending.append(result)
            if time.monotonic() - last >= every_s:
                # Taken first: were it committed again after an error half-way, its rows would be there twice.
                taken, pending = pending, []
                _commit(step, taken)
                last = time.monotonic()
            yield result
    finally:
        _commit(step, pending)


def _commit(step: Step, results: Sequence[UnitResult]) -> None:
    for record in step.outputs:
        step.workspace.commit(record, [found for result in results if (found := result.fragments.get(record.table))])
    step.workspace.append([_failure(step, *trouble) for result in results for trouble in result.troubles])


def _failure(step: Step, key: str, uri: str, trouble: Trouble) -> Failure:
    return Failure(
        failure_id=_hash(step.name, key, step.fingerprint),
        step=f"{step.name}/{trouble.stage}" if trouble.stage not in ("", step.name) else step.name,
        item=key,
        uri=uri,
        error=trouble.error,
        message=trouble.message,
        fingerprint=step.fingerprint,
    )


def _failed_before(step: Step, planned: set[str], retry: bool) -> set[str]:
    """Planned items that failed earlier under this configuration; to be retried, their failures are forgotten.

    So are failures under other configurations, for those items are about to be tried again, and failures of items that
    are no longer there to be done.
    """
    rows = step.workspace.read(Failure, ["failure_id", "step", "item", "uri", "fingerprint"]).to_pylist()
    mine = [row for row in rows if row["step"].partition("/")[0] == step.name and step.covers(row["uri"])]
    forgotten = {
        row["failure_id"]
        for row in mine
        if retry or row["item"] not in planned or row["fingerprint"] != step.fingerprint
    }
    step.workspace.delete(Failure, "failure_id", forgotten)
    return {row["item"] for row in mine if row["failure_id"] not in forgotten}


def _hash(*parts: str) -> str:
    return hashlib.sha256(":".join(parts).encode()).hexdigest()[:16]
