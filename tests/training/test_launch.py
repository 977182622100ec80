"""Runs as they are started and stopped: commands in processes of their own, signals, torchrun."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch.distributed as dist
from tiny_runs import Command, curve, metrics, train, write_config

from training.config import TrainConfig
from training.launch import STOPPED, default_run, process_group, stopping

pytestmark = pytest.mark.timeout(600)

ROOT = Path(__file__).resolve().parents[2]
STEPS = 10
CHANGES = {"steps": STEPS, "checkpoint.every": 2, "optimiser.ema": 0.9, "data.workers": 1}

Start = Callable[..., Command]


@pytest.fixture
def start(shards: Path, tmp_path: Path) -> Start:
    """``start(run, ...)``: ``s2v train`` in a process of its own."""
    config = write_config(tmp_path / "config.yaml", CHANGES)
    return lambda run, *overrides: Command(
        tmp_path / "log", "train", "--data", shards, "--config", config, "--out", run, *overrides
    )


@pytest.fixture(scope="module")
def undisturbed(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> list[tuple[float, ...]]:
    folder = tmp_path_factory.mktemp("undisturbed")
    train(shards, folder, CHANGES)
    assert [step for step, *_ in curve(folder)] == list(range(1, STEPS + 1))
    return curve(folder)


class TestStopped:
    def test_killed_and_resumed_the_curve_is_the_undisturbed_one(
        self, start: Start, tmp_path: Path, undisturbed: list[tuple[float, ...]]
    ) -> None:
        run = tmp_path / "run"
        killed = start(run)
        assert killed.kill_at(signal.SIGKILL, run, 5) == -signal.SIGKILL
        assert len(metrics(run)) < STEPS
        last = start(run)
        assert last.wait() == 0, last.log.read_text()
        assert "going on from step" in last.log.read_text()
        assert curve(run) == undisturbed
        # Those that read for it notice by and by.
        assert len(killed.children) == 1
        assert not psutil.wait_procs(killed.children, timeout=60)[1]

    def test_asked_to_stop_it_saves_and_says_so(
        self, start: Start, tmp_path: Path, undisturbed: list[tuple[float, ...]]
    ) -> None:
        run = tmp_path / "run"
        # No checkpoint would be due yet.
        stopped = start(run, "checkpoint.every=100")
        assert stopped.kill_at(signal.SIGTERM, run, 3) == STOPPED
        done = len(metrics(run))
        assert 3 <= done < STEPS
        assert f"stopped at step {done}; saved in {run / 'checkpoints' / f'step-{done:08d}'}" in stopped.log.read_text()
        train_on = start(run, "checkpoint.every=100")
        assert train_on.wait() == 0, train_on.log.read_text()
        assert f"going on from step {done}" in train_on.log.read_text()
        assert curve(run) == undisturbed

    def test_only_while_it_trains(self) -> None:
        before = signal.getsignal(signal.SIGTERM)
        with stopping() as stop:
            assert not stop()
            os.kill(os.getpid(), signal.SIGTERM)
            assert stop()
        assert signal.getsignal(signal.SIGTERM) == before


class TestTorchrun:
    def test_two_ranks_train_as_one(self, shards: Path, tmp_path: Path) -> None:
        train(shards, tmp_path / "one", {"steps": 3})
        config = write_config(tmp_path / "two.yaml", {"steps": 3})
        command = [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc-per-node=2",
            "-m",
            "training",
        ]
        result = subprocess.run(
            [*command, "--data", str(shards), "--config", str(config)],
            cwd=tmp_path,
            env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=580,
            check=False,
        )
        assert result.returncode == 0, result.stderr
        assert result.stdout.count("done at step 3") == 1, "only the first rank talks"
        np.testing.assert_allclose(curve(tmp_path / "runs" / "two"), curve(tmp_path / "one"), rtol=2e-5)


class TestProcessGroup:
    def test_is_left_as_it_was_found(self) -> None:
        config = TrainConfig.model_validate(
            {"latents": {"backend": "pixel"}, "text": {"backend": "words"}, "device": "cpu"}
        )
        with process_group(config) as device:
            assert device.type == "cpu"
            assert dist.get_world_size() == 1
            with process_group(config):
                pass
            assert dist.is_initialized(), "somebody else's is used and left alone"
        assert not dist.is_initialized()


def test_where_a_run_lies() -> None:
    assert default_run(Path("configs/train/wan14b.yaml")) == Path("runs/wan14b")
