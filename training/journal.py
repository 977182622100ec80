"""What a run tells: a line of JSON per step, TensorBoard, a tracking service, and lines in the terminal."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console

from models.errors import UserError
from training.config import LogConfig

METRICS = "metrics.jsonl"


class MissingTrackerError(UserError, ImportError):
    """The config names a tracking service whose package is not installed."""


class Writer(Protocol):
    """Takes the numbers of a step."""

    def write(self, step: int, numbers: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


class JsonLines:
    """``metrics.jsonl``: a line per step. Lines after ``step``, left by a run that went on to die, are taken out."""

    def __init__(self, file: Path, step: int) -> None:
        kept = [line for line in _complete_lines(file) if json.loads(line)["step"] <= step]
        partial = file.with_suffix(".partial")
        partial.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
        partial.replace(file)
        self._file = file.open("a", encoding="utf-8")

    def write(self, step: int, numbers: Mapping[str, float]) -> None:
        """Append a line; a reader sees it at once."""
        self._file.write(json.dumps({"step": step, **numbers}) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class TensorBoard:
    """Event files for TensorBoard, which hides what comes after the step that a run resumes from."""

    def __init__(self, folder: Path, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder), purge_step=step + 1)

    def write(self, step: int, numbers: Mapping[str, float]) -> None:
        """Add a point to every curve."""
        for name, value in numbers.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Write what is left."""
        self._writer.close()


class Tracker:
    """wandb or trackio, which share an interface. The run's name is the id: resuming goes on in the same one."""

    def __init__(self, name: str, project: str, run: str, config: Mapping[str, Any]) -> None:
        import importlib

        try:
            self._service = importlib.import_module(name)
        except ImportError:
            raise MissingTrackerError(f"log.tracker={name} needs the package {name}: pip install {name}") from None
        # trackio goes on in the run of that name, wandb in that of that id.
        named = {"name": run} if name == "trackio" else {"name": run, "id": re.sub(r"[^\w.-]", "-", run)}
        self._service.init(project=project, config=dict(config), resume="allow", **named)

    def write(self, step: int, numbers: Mapping[str, float]) -> None:
        """Send the numbers."""
        self._service.log(dict(numbers), step=step)

    def close(self) -> None:
        """End the run there."""
        self._service.finish()


class Journal:
    """Everything that the first rank writes down."""

    def __init__(
        self, config: LogConfig, run: Path, *, step: int, steps: int, settings: Mapping[str, Any], console: Console
    ) -> None:
        """
        Args:
            run: the folder of the run.
            step: the last step that is done: what lies behind it is forgotten.
            steps: how many there will be.
            settings: the run's config, for the tracking service.
        """
        self.every, self.steps, self.console = config.every, steps, console
        self.writers: list[Writer] = [JsonLines(run / METRICS, step)]
        if config.tensorboard:
            self.writers.append(TensorBoard(run / "tensorboard", step))
        if config.tracker is not None:
            self.writers.append(Tracker(config.tracker, config.project, run.name, settings))

    def step(self, step: int, numbers: Mapping[str, float], seconds_left: float) -> None:
        """Write the numbers of a step; now and then a line in the terminal."""
        for writer in self.writers:
            writer.write(step, numbers)
        if step % self.every == 0 or step in (1, self.steps):
            self.console.print(
                f"step {step}/{self.steps}  loss {numbers['loss']:.4f}  gradient {numbers['gradient_norm']:.3g}  "
                f"{numbers['samples_per_s']:.3g} samples/s  {numbers['tokens_per_s']:.0f} tokens/s  "
                f"MFU {numbers['mfu']:.1%}  waiting for data {numbers['data_wait_share']:.0%}  "
                f"{numbers['memory_gb']:.1f} GB  {_duration(seconds_left)} left",
                highlight=False,
                soft_wrap=True,
            )

    def note(self, step: int, numbers: Mapping[str, float], text: str) -> None:
        """Write numbers that do not come with every step, and say so."""
        for writer in self.writers:
            writer.write(step, numbers)
        self.say(f"step {step}/{self.steps}  {text}")

    def say(self, text: str) -> None:
        """A line in the terminal."""
        self.console.print(text, highlight=False, soft_wrap=True)

    def close(self) -> None:
        """Close every file."""
        for writer in self.writers:
            writer.close()


def _complete_lines(file: Path) -> list[str]:
    """The lines that were written whole: a killed run may have left a piece of one."""
    if not file.exists():
        return []
    text = file.read_text(encoding="utf-8")
    return text[: text.rfind("\n") + 1].splitlines()


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


def resident_gb() -> float:
    """Memory of this process, in GB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e9
