"""Keeps one bad item from costing more than itself: errors, hangs and crashes of the worker process alike.

Before a batch is worked on, its items are noted in a file of the workspace. A worker that dies leaves the note behind;
whoever takes the unit up again finds it, goes on item by item to find the culprit, and gives that item up after
``crashes`` deaths. A batch that takes too long gets its own process killed, which then is such a death.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Any, Protocol

from curation.workspace import Workspace

KILLED_BY_WATCHDOG = 86
"""Exit code of a worker that gave itself up; nothing else uses it."""


class Stage(Protocol):
    """What is done to a batch of items: one method, results in the order of the inputs."""

    def run(self, batch: Sequence[Any]) -> Sequence[Any]: ...


@dataclass(frozen=True, slots=True)
class Trouble:
    """Why an item has no result."""

    stage: str
    error: str
    message: str


@dataclass(frozen=True, slots=True)
class Item:
    """One row of a step's input on its way: its key, where it came from, its length, and what the stages made of it."""

    key: str
    uri: str
    seconds: float
    value: Any
    trouble: Trouble | None = None


@dataclass(frozen=True, slots=True)
class Unit:
    """Items that are worked on, and committed, together. Its id follows from its items."""

    unit_id: str
    items: list[Item]


@dataclass(slots=True)
class Attempts:
    """The note that a worker leaves about what it is working on.

    ``busy`` are the items of the batch in hand, ``deaths`` how many workers died on each item so far.
    """

    workspace: Workspace
    name: str
    busy: list[str] = field(default_factory=list)
    reason: str = "WorkerCrash"
    deaths: dict[str, int] = field(default_factory=dict)
    timeouts: list[str] = field(default_factory=list)
    disturbed: bool = False
    """Whether an earlier attempt died: then items go one by one."""

    @classmethod
    def resume(cls, workspace: Workspace, name: str) -> Attempts:
        """Read what an earlier attempt left, and put its death down to the item that it was at."""
        attempts = cls(workspace, name)
        if not workspace.exists("attempts", name):
            return attempts
        with workspace.filesystem.open(attempts._path, "r") as note:
            left = json.load(note)
        attempts.deaths, attempts.timeouts, attempts.disturbed = left["deaths"], left["timeouts"], True
        if len(left["busy"]) == 1:
            (culprit,) = left["busy"]
            attempts.deaths[culprit] = attempts.deaths.get(culprit, 0) + 1
            if left["reason"] == "Timeout":
                attempts.timeouts.append(culprit)
        return attempts

    def note(self, busy: Sequence[str], reason: str = "WorkerCrash") -> None:
        """Write down what is being worked on. Renamed into place, so that a death leaves the old note or the new."""
        self.busy, self.reason = list(busy), reason
        text = json.dumps({"busy": self.busy, "reason": reason, "deaths": self.deaths, "timeouts": self.timeouts})
        with self.workspace.writing("attempts", self.name) as file:
            file.write_text(text, encoding="utf-8")

    def forget(self) -> None:
        """The unit is through."""
        if self.workspace.exists("attempts", self.name):
            self.workspace.filesystem.rm(self._path)

    @property
    def _path(self) -> str:
        return self.workspace.path("attempts", self.name)


class Watchdog:
    """Kills its own process when the block takes longer than ``seconds``: C code that hangs hears nothing else."""

    def __init__(self, seconds: float, before_death: Callable[[], None]) -> None:
        self._timer = threading.Timer(seconds, self._bark)
        self._timer.daemon = True
        self._before_death = before_death

    def __enter__(self) -> None:
        self._timer.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._timer.cancel()

    def _bark(self) -> None:
        self._before_death()
        os._exit(KILLED_BY_WATCHDOG)


@dataclass(frozen=True)
class Guard:
    """Runs stages over a unit's items and turns whatever goes wrong into :class:`Trouble` of the item it befell."""

    workspace: Workspace
    stages: Sequence[tuple[str, Stage]]
    batch: int
    timeout_s: float
    crashes: int

    def run(self, unit: Unit, name: str) -> Unit:
        """The unit with every item either carried through all the stages or in trouble.

        Args:
            unit: the work.
            name: a name for this unit and these stages that no other in the run has.
        """
        attempts = Attempts.resume(self.workspace, name)
        items = [self._given_up(item, attempts) for item in unit.items]
        size = 1 if attempts.disturbed else self.batch
        todo = [number for number, item in enumerate(items) if item.trouble is None]
        for start in range(0, len(todo), size):
            numbers = todo[start : start + size]
            for number, item in zip(
                numbers, self._through([items[number] for number in numbers], attempts), strict=True
            ):
                items[number] = item
        attempts.forget()
        return replace(unit, items=items)

    def _given_up(self, item: Item, attempts: Attempts) -> Item:
        if item.key in attempts.timeouts:
            message = f"took longer than {self.timeout_s:g} s; its worker was killed (runtime.*.timeout_s)"
            return replace(item, trouble=Trouble("", "Timeout", message))
        if attempts.deaths.get(item.key, 0) >= self.crashes:
            message = f"its worker process died {self.crashes} times while working on it"
            return replace(item, trouble=Trouble("", "WorkerCrash", message))
        return item

    def _through(self, batch: list[Item], attempts: Attempts) -> list[Item]:
        keys = [item.key for item in batch]
        attempts.note(keys)
        with Watchdog(self.timeout_s * len(batch), lambda: attempts.note(keys, "Timeout")):
            for name, stage in self.stages:
                batch = self._stage(name, stage, batch)
        return batch

    def _stage(self, name: str, stage: Stage, batch: list[Item]) -> list[Item]:
        whole = [item for item in batch if item.trouble is None]
        if not whole:
            return batch
        try:
            values = stage.run([item.value for item in whole])
            done = iter([replace(item, value=value) for item, value in zip(whole, values, strict=True)])
        except Exception as error:  # noqa: BLE001 - errors are data: whatever a stage raises becomes a row
            if len(whole) > 1:
                done = iter([self._stage(name, stage, [item])[0] for item in whole])
            else:
                trouble = Trouble(name, type(error).__name__, str(error) or repr(error))
                done = iter([replace(whole[0], trouble=trouble)])
        return [next(done) if item.trouble is None else item for item in batch]
