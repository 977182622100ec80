"""Training runs of a few tiny steps: in this process, as commands in processes of their own, and as ranks."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import sys
import time
import traceback
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
import torch.distributed as dist
import yaml
from rich.console import Console
from torch.distributed.tensor import DTensor

from training.config import TrainConfig
from training.launch import process_group
from training.trainer import Trainer

SETTINGS: dict[str, Any] = {
    "steps": 6,
    "accumulate": 2,
    "device": "cpu",
    "data": {"buckets": [[3, 16, 24], [3, 24, 16]], "micro_batch": 2, "workers": 0},
    "latents": {"backend": "pixel", "factor": 4},
    "text": {"backend": "words", "dim": 16, "length": 8, "rows": 64},
    "model": {"layers": 2, "heads": 4, "head_dim": 16, "ffn_dim": 128, "freq_dim": 16, "patch_size": [1, 1]},
    "optimiser": {"lr": 2e-3, "warmup": 2, "clip": 0.1},
    "parallel": {"precision": "fp32"},
    "checkpoint": {"every": 2, "keep": 2},
    "validation": {"every": 1000, "batches": 0, "videos": 0},
    "sampler": {"steps": 2, "guidance": 1, "shift": 1, "negative": "", "height": 16, "width": 24, "frames": 3},
    "log": {"every": 1, "tensorboard": False},
}
CURVE = ("loss", "gradient_norm")
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["training.trainer", "training.cli", "pandas", "pyarrow.dataset"])


def settings(changes: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """``SETTINGS`` with ``{"a.b": value}`` in their places."""
    values = json.loads(json.dumps(SETTINGS))
    for key, value in (changes or {}).items():
        *parents, last = key.split(".")
        section = values
        for parent in parents:
            section = section[parent]
        section[last] = value
    return values


def configured(changes: Mapping[str, Any] | None = None) -> TrainConfig:
    return TrainConfig.model_validate(settings(changes))


def write_config(file: Path, changes: Mapping[str, Any] | None = None) -> Path:
    file.write_text(yaml.safe_dump(settings(changes)), encoding="utf-8")
    return file


@contextlib.contextmanager
def trainer_of(
    shards: Path, run: Path, changes: Mapping[str, Any] | None = None, console: StringIO | None = None
) -> Iterator[Trainer]:
    """A trainer in this process, on one thread: sums then come out alike to the last bit."""
    config = configured(changes)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with process_group(config) as device, torch.random.fork_rng():
            yield Trainer(config, str(shards), run, device, Console(file=console or StringIO(), width=200))
    finally:
        torch.set_num_threads(threads)


def train(shards: Path, run: Path, changes: Mapping[str, Any] | None = None, steps: int | None = None) -> str:
    """Train to the end, or for ``steps`` steps until it is asked to stop; returns what the terminal would show."""
    console = StringIO()
    with trainer_of(shards, run, changes, console) as trainer:
        last = None if steps is None else trainer.done + steps
        trainer.train(lambda: trainer.done == last)
    return console.getvalue()


def metrics(run: Path) -> list[dict[str, float]]:
    """The lines of ``metrics.jsonl`` that tell of steps."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if "loss" in line]


def curve(run: Path) -> list[tuple[float, ...]]:
    """Step, loss and gradient norm of every step."""
    return [(line["step"], *(line[name] for name in CURVE)) for line in metrics(run)]


def weights_of(trainer: Trainer) -> dict[str, np.ndarray]:
    return {name: whole(parameter) for name, parameter in trainer.student.named_trained().items()}


def whole(tensor: torch.Tensor) -> np.ndarray:
    """A tensor, gathered from the ranks; every rank must call this."""
    detached = tensor.detach()
    return (detached.full_tensor() if isinstance(detached, DTensor) else detached).numpy().copy()


def final_weights(shards: Path, run: Path, changes: Mapping[str, Any] | None) -> dict[str, np.ndarray]:
    """Train to the end, in whatever process group this is; gives the weights."""
    with trainer_of(shards, run, changes) as trainer:
        trainer.train(lambda: False)
        return weights_of(trainer)


def on_ranks(
    number: int, function: Callable[..., Any], *arguments: Any, folder: Path, timeout_s: float = 550
) -> list[Any]:
    """``function(*arguments)`` on that many gloo processes; what each of them returns.

    They meet through a file: no port has to be free.
    """
    meeting = folder / f"meeting-{uuid.uuid4().hex}"
    ends, processes = [], []
    for rank in range(number):
        receiving, sending = PROCESSES.Pipe(duplex=False)
        process = PROCESSES.Process(target=_rank, args=(sending, meeting, rank, number, function, arguments))
        process.start()
        sending.close()
        ends.append(receiving)
        processes.append(process)
    deadline = time.monotonic() + timeout_s
    try:
        results = []
        for rank, end in enumerate(ends):
            assert end.poll(max(0.0, deadline - time.monotonic())), f"rank {rank} said nothing within {timeout_s} s"
            ok, result = end.recv()
            assert ok, f"rank {rank}:\n{result}"
            results.append(result)
        return results
    finally:
        for process in processes:
            process.join(timeout=5)
            process.kill()
            process.join()
        meeting.unlink(missing_ok=True)


def _rank(
    sending: Any, meeting: Path, rank: int, number: int, function: Callable[..., Any], arguments: Sequence[Any]
) -> None:
    multiprocessing.set_start_method("fork", force=True)
    try:
        dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=number)
        result = True, function(*arguments)
        dist.destroy_process_group()
    except BaseException:  # noqa: BLE001 - whatever it is, the test tells it.
        result = False, traceback.format_exc()
    sending.send(result)


class Command:
    """``s2v`` with these arguments in a process of its own."""

    def __init__(self, log: Path, *arguments: object) -> None:
        self.log = log
        self._process = PROCESSES.Process(target=_command, args=(log, [str(argument) for argument in arguments]))
        self._process.start()
        self.children: list[psutil.Process] = []
        """Processes that it had when it was sent a signal."""

    def kill_at(self, signal: int, run: Path, step: int) -> int:
        """Send a signal once ``metrics.jsonl`` has that step; returns the exit code."""
        file = run / "metrics.jsonl"
        self._until(lambda: file.exists() and f'"step": {step},' in file.read_text())
        self.children = psutil.Process(self._process.pid).children(recursive=True)
        os.kill(self._process.pid, signal)
        return self.wait()

    def wait(self, timeout_s: float = 550) -> int:
        self._process.join(timeout_s)
        if self._process.exitcode is None:
            self._process.kill()
            raise AssertionError(f"it did not end within {timeout_s} s:\n{self.log.read_text()}")
        return self._process.exitcode

    def _until(self, done: Callable[[], bool], timeout_s: float = 550) -> None:
        deadline = time.monotonic() + timeout_s
        while not done():
            if not self._process.is_alive() or time.monotonic() > deadline:
                self._process.kill()
                raise AssertionError(f"it never came that far:\n{self.log.read_text()}")
            time.sleep(0.005)


def _command(log: Path, arguments: Sequence[str]) -> None:
    from training.cli import main

    # Else its loader would start a fork server of its own, which nobody else does.
    multiprocessing.set_start_method("fork", force=True)
    torch.set_num_threads(1)
    with log.open("a", buffering=1) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.exit(main(arguments))
