"""Checkpoints of a run: sharded, written in the background, and whole or not there at all.

A checkpoint is a folder ``step-00000100`` with the tensors in torch's distributed format, each rank's own, and
``run.json``, which says how the run was configured. It is written as ``step-00000100.partial`` and renamed when it is
complete; whatever else lies there is left over from a run that died, and is ignored and removed. It holds no random
state because a run has none: every draw follows from the seed and the number of a step or sample (training/order.py).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException  # No Exception, but a BaseException.
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)

from models.errors import UserError
from training.optimiser import MovingAverage
from training.student import Student

TRAINED = StateDictOptions(ignore_frozen_params=True, strict=False)
"""Frozen weights are where they came from: a checkpoint of adapters holds adapters."""
PARTIAL = ".partial"


class CheckpointError(UserError, RuntimeError):
    """A checkpoint cannot be written or read."""


@dataclass(frozen=True)
class TrainState:
    """All that changes while a run goes on, besides the number of the step."""

    student: Student
    optimiser: torch.optim.Optimizer
    average: MovingAverage | None

    def tensors(self) -> dict[str, Any]:
        """The state as nested dictionaries of tensors; loading writes into them."""
        state = {
            "model": get_model_state_dict(self.student, options=TRAINED),
            "optimiser": get_optimizer_state_dict(self.student, self.optimiser, options=TRAINED),
        }
        return state if self.average is None else state | {"average": self.average.averages}

    def take(self, state: Mapping[str, Any]) -> None:
        """Go on from loaded tensors. Averages were loaded in place."""
        settings = [{k: v for k, v in group.items() if k != "params"} for group in self.optimiser.param_groups]
        set_model_state_dict(self.student, state["model"], options=TRAINED)
        set_optimizer_state_dict(self.student, self.optimiser, state["optimiser"], options=TRAINED)
        # Weight decay and the like are as the config says now, not as it said when the checkpoint was written.
        for group, of_config in zip(self.optimiser.param_groups, settings, strict=True):
            group.update(of_config)


class Checkpoints:
    """The checkpoints of one run. Every rank has one of these and makes the same calls."""

    def __init__(self, folder: Path, keep: int, *, is_first: bool) -> None:
        """
        Args:
            folder: seen by all ranks.
            keep: newest checkpoints that stay.
            is_first: whether this rank renames and removes.
        """
        self.folder = folder
        self.keep = keep
        self.is_first = is_first
        # Its own group: the writing thread's collectives must not mix with those of the training.
        self._group = dist.new_group(backend="gloo")
        self._writing: tuple[Future[Any], Path] | None = None
        self.written: Path | None = None
        """The last checkpoint that this run completed."""

    def latest(self) -> Path | None:
        """The newest complete checkpoint."""
        return latest_checkpoint(self.folder)

    def path(self, step: int) -> Path:
        """Where the checkpoint of a step is, or will be."""
        return self.folder / f"step-{step:08d}"

    def clean(self) -> None:
        """Remove what runs that died left behind."""
        if self.is_first:
            for left in self.folder.glob(f"step-*{PARTIAL}"):
                shutil.rmtree(left)
        dist.barrier(self._group)

    def save(self, step: int, state: TrainState, description: Mapping[str, Any]) -> None:
        """Start writing a checkpoint; the training may go on at once.

        Raises:
            CheckpointError: if the *previous* one could not be written.
        """
        self.finish()
        partial = self.path(step).with_suffix(PARTIAL)
        trouble: list[OSError | None] = [None]
        if self.is_first:
            try:
                partial.mkdir(parents=True, exist_ok=True)
                (partial / "run.json").write_text(json.dumps({**description, "step": step}, indent=1), encoding="utf-8")
            except OSError as error:
                trouble = [error]
        dist.broadcast_object_list(trouble, src=0, group=self._group)
        if trouble[0] is not None:
            raise self._failed(partial, trouble[0])
        writing = dcp.async_save(
            state.tensors(), storage_writer=dcp.FileSystemWriter(partial), process_group=self._group
        )
        assert isinstance(writing, Future)
        self._writing = writing, partial

    def finish(self, *, wait: bool = True) -> None:
        """Give the checkpoint that is being written its name; without ``wait``, only if it is complete.

        Raises:
            CheckpointError: if it could not be written; older ones stay.
        """
        if self._writing is None or not (wait or self._writing[0].done()):
            return
        (writing, partial), self._writing = self._writing, None
        try:
            writing.result()
        except (Exception, CheckpointException) as error:
            raise self._failed(partial, error) from error
        self.written = partial.with_suffix("")
        if self.is_first:
            partial.rename(self.written)
            for old in checkpoints(self.folder)[: -self.keep]:
                shutil.rmtree(old)

    def load(self, folder: Path, state: TrainState, geometry: Mapping[str, Any]) -> int:
        """Load a checkpoint; returns its step. The number of ranks need not be the one that wrote it.

        Args:
            geometry: the config of the state's model.

        Raises:
            CheckpointError: if it belongs to another model, or is damaged.
        """
        description = describe(folder)
        # Tensors alone do not tell: a model of fewer layers, or of other heads, would load without a word.
        _refuse_other_geometry(folder, description["geometry"], geometry)
        tensors = state.tensors()
        try:
            dcp.load(tensors, checkpoint_id=folder, process_group=self._group)
        except (Exception, CheckpointException) as error:
            raise CheckpointError(f"{folder} cannot be loaded into this model: {first_line(error)}") from error
        state.take(tensors)
        return int(description["step"])

    def _failed(self, partial: Path, error: BaseException) -> CheckpointError:
        if self.is_first:
            shutil.rmtree(partial, ignore_errors=True)
        return CheckpointError(
            f"checkpoint {partial.stem} was not written: {first_line(error)}. Is the disk of {self.folder} full? "
            "Older checkpoints are whole; the run can be resumed from them."
        )


def checkpoints(folder: Path) -> list[Path]:
    """The complete checkpoints in a folder, oldest first."""
    return sorted(path for path in folder.glob("step-*") if path.suffix != PARTIAL and (path / ".metadata").exists())


def latest_checkpoint(folder: Path) -> Path | None:
    """The newest complete checkpoint in a folder."""
    return found[-1] if (found := checkpoints(folder)) else None


def describe(folder: Path) -> dict[str, Any]:
    """What a checkpoint says of its run: its step and config.

    Raises:
        CheckpointError: if it is none.
    """
    try:
        description: dict[str, Any] = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{folder} is no checkpoint: run.json cannot be read: {error}") from error
    if missing := {"step", "config", "geometry"} - description.keys():
        raise CheckpointError(f"{folder} is no checkpoint: its run.json does not tell the {', '.join(sorted(missing))}")
    return description


def check_space(folder: Path, state_bytes: int, keep: int) -> None:
    """Refuse to start where not even two checkpoints fit: the one that stays while the next is written.

    Args:
        state_bytes: of weights, optimiser states and averages.

    Raises:
        CheckpointError: with both numbers.
    """
    need = state_bytes * min(2, keep + 1)
    free = shutil.disk_usage(folder).free
    if free < need:
        raise CheckpointError(
            f"{folder} has {free / 1e9:.1f} GB free, but two checkpoints of this model take {need / 1e9:.1f} GB: "
            "make room, or choose another folder for the run"
        )


def _refuse_other_geometry(folder: Path, there: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    here = json.loads(json.dumps(here))  # As it is stored: lists for tuples.
    names = sorted(name for name in there.keys() | here.keys() if not name.startswith("_"))
    if differing := [name for name in names if there.get(name) != here.get(name)]:
        raise CheckpointError(
            f"{folder} belongs to another model: "
            + ", ".join(f"{name} is {there.get(name)} there and {here.get(name)} here" for name in differing)
            + ". Set the model as it was, or choose another folder for the run"
        )


def first_line(error: BaseException) -> str:
    """What lies at the bottom of an error that torch has wrapped."""
    if isinstance(error, CheckpointException):
        error = next((cause[0] if isinstance(cause, tuple) else cause for cause in error.failures.values()), error)
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"
