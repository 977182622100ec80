"""Starting a run: in this process, under torchrun, or on the workers of a Ray cluster."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from rich.console import Console

from stages.config import load
from training.config import TrainConfig, resolve
from training.trainer import Trainer

STOPPED = 143
"""Exit code of a run that was asked to stop (SIGTERM) and saved: 128 + 15, as of a process that the signal ended."""

_PATIENCE = timedelta(minutes=30)
"""Ranks wait for each other that long: loading a large model takes different times on them."""


def train(config_file: Path | None, overrides: Sequence[str], shards: str, run: Path | None) -> int:
    """Train in this process: alone, or as one rank if torchrun started it. Returns the exit code."""
    file = resolve(config_file)
    config = load(TrainConfig, file, overrides)
    with process_group(config) as device, stopping() as stop:
        trainer = Trainer(config, shards, run or default_run(file), device, Console())
        return 0 if trainer.train(stop) else STOPPED


def default_run(config_file: Path) -> Path:
    """Where a run lies if nobody says."""
    return Path("runs") / config_file.stem


@contextmanager
def process_group(config: TrainConfig) -> Iterator[torch.device]:
    """Join the other ranks, if there are any; gives this rank's device."""
    cuda = torch.cuda.is_available() if config.device == "auto" else config.device == "cuda"
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0))) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    backend = "cpu:gloo,cuda:nccl" if cuda else "gloo"
    if dist.is_initialized():  # By Ray Train.
        yield device
        return
    if "RANK" in os.environ:
        dist.init_process_group(backend, timeout=_PATIENCE)
    else:
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1, timeout=_PATIENCE)
    try:
        yield device
    finally:
        dist.destroy_process_group()


@contextmanager
def stopping() -> Iterator[Stop]:
    """Turn SIGTERM, with which schedulers announce the end, into a flag."""
    stop = Stop()
    before = signal.signal(signal.SIGTERM, stop.set)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGTERM, before)


class Stop:
    """Whether the run was asked to stop."""

    def __init__(self) -> None:
        self._asked = False

    def set(self, number: int, frame: object) -> None:
        """A signal's handler."""
        self._asked = True

    def __call__(self) -> bool:
        return self._asked
