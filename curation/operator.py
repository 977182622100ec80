"""What runs on a worker: a group of a step's stages over one unit, and at the end the writing of its rows."""

from __future__ import annotations

import os
import pickle
from collections import defaultdict
from dataclasses import dataclass
from functools import lru_cache

from curation.config import Config
from curation.guard import Guard, Trouble, Unit
from curation.steps import Step
from curation.workspace import Workspace
from stages.records import Record


@dataclass(frozen=True, slots=True)
class UnitResult:
    """What the driver learns of a finished unit.

    ``fragments`` are data files per table, written but not committed; ``troubles`` the items that failed, each as
    ``(key, uri, trouble)``; ``items`` and ``seconds`` how much work the unit was.
    """

    unit_id: str
    items: int
    seconds: float
    fragments: dict[str, str]
    troubles: list[tuple[str, str, Trouble]]


class Operator:
    """Operator number ``index`` of a step, with its stages loaded."""

    def __init__(self, step: type[Step], config: Config, workspace: Workspace, index: int) -> None:
        self.step = step(config, workspace)
        self.index = index
        operator = self.step.runtime.operators[index]
        _limit_threads(operator.cpus)
        self.guard = Guard(
            workspace=workspace,
            stages=[(name, self.step.stage(name)) for name in operator.stages],
            batch=operator.batch,
            timeout_s=self.step.runtime.timeout_s,
            crashes=config.runtime.crashes,
        )

    @property
    def is_last(self) -> bool:
        """Whether the step ends here."""
        return self.index == len(self.step.runtime.operators) - 1

    def run(self, unit: Unit) -> Unit:
        """Carry the unit through the stages."""
        return self.guard.run(unit, f"{self.step.name}-{self.index}-{unit.unit_id}")

    def write(self, unit: Unit) -> UnitResult:
        """Write the unit's rows as fragments."""
        rows: dict[str, list[Record]] = defaultdict(list)
        for item in unit.items:
            if item.trouble is None:
                for row in self.step.rows(item.value):
                    rows[row.table].append(row)
        return UnitResult(
            unit_id=unit.unit_id,
            items=len(unit.items),
            seconds=sum(item.seconds for item in unit.items),
            fragments={
                record.table: self.step.workspace.write_fragments(record, rows[record.table])
                for record in self.step.outputs
                if rows[record.table]
            },
            troubles=[(item.key, item.uri, item.trouble) for item in unit.items if item.trouble is not None],
        )


def run_unit(arguments: bytes, unit: bytes) -> bytes:
    """Carry a pickled unit through the only operator of a step and write its rows; returns a pickled result.

    Args:
        arguments: a pickled ``(step, config, workspace)``; what it loads is kept for the next unit of the same.
        unit: a pickled :class:`Unit`.
    """
    operator = _only_operator(arguments)
    return pickle.dumps(operator.write(operator.run(pickle.loads(unit))))  # noqa: S301 - our own driver's


@lru_cache(maxsize=4)
def _only_operator(arguments: bytes) -> Operator:
    step, config, workspace = pickle.loads(arguments)  # noqa: S301 - our own driver's
    return Operator(step, config, workspace, index=0)


def _limit_threads(cpus: float) -> None:
    """Keep the libraries' own thread pools within the worker's share; else every worker takes every core."""
    import cv2

    threads = max(1, int(cpus))
    os.environ["OMP_NUM_THREADS"] = str(threads)
    cv2.setNumThreads(threads)
