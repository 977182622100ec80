"""One run on the workers of a real Ray: starting it takes long."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from tiny_runs import curve, train, write_config

from stages.config import ConfigError
from training.ray_launch import train_on_ray

CHANGES = {"steps": 10, "checkpoint.every": 2}


class Killer(threading.Thread):
    """Kills a worker of this run once ``metrics.jsonl`` has that step."""

    def __init__(self, run: Path, step: int) -> None:
        super().__init__(daemon=True)
        self.file, self.step = run / "metrics.jsonl", step
        self.killed: list[int] = []
        self.done = threading.Event()

    def run(self) -> None:
        while not self.done.is_set() and not self.killed:
            if self.file.exists() and f'"step": {self.step},' in self.file.read_text():
                workers = [p for p in psutil.Process().children(recursive=True) if _is_worker(p)]
                for worker in workers[-1:]:
                    worker.kill()
                    self.killed.append(worker.pid)
            time.sleep(0.01)


def _is_worker(process: psutil.Process) -> bool:
    try:
        # As Ray titles an actor that trains.
        return "RayTrainWorker" in " ".join(process.cmdline())
    except psutil.Error:
        return False


def _steps(events: Path) -> list[int]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    return [point.step for point in EventAccumulator(str(events)).Reload().Scalars("loss")]


@pytest.mark.timeout(600)
def test_a_lost_worker_changes_nothing(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    train(shards, tmp_path / "undisturbed", CHANGES)
    config = write_config(tmp_path / "config.yaml", CHANGES)
    run = tmp_path / "run"
    killer = Killer(run, 5)
    killer.start()
    try:
        overrides = ["num_workers=2", "cpus=0.5", "log.tensorboard=true"]
        assert train_on_ray(config, overrides, str(shards), run) == 0
    finally:
        killer.done.set()
        killer.join()
    assert len(killer.killed) == 1
    assert [step for step, *_ in curve(run)] == list(range(1, 11))
    np.testing.assert_allclose(curve(run), curve(tmp_path / "undisturbed"), rtol=2e-5)
    first, second = (_steps(file) for file in sorted((run / "tensorboard").iterdir()))
    assert first[0] == 1
    assert second[0] > 2, "it went on from a checkpoint"
    assert second[-1] == 10


def test_options_that_there_are_not(shards: Path, tmp_path: Path) -> None:
    config = write_config(tmp_path / "config.yaml")
    with pytest.raises(ConfigError, match="num_worker: there is no such key"):
        train_on_ray(config, ["num_worker=2"], str(shards), tmp_path / "run")
    with pytest.raises(ConfigError, match="num_workers"):
        train_on_ray(config, ["num_workers=0"], str(shards), tmp_path / "run")
