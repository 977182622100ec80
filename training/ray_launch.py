"""Training on the workers of a Ray cluster, with Ray Train: a lost worker restarts the run from its last checkpoint."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

from models.errors import UserError
from stages.config import Section, change, load
from training.config import TrainConfig, resolve


class RayConfig(Section):
    """What `s2v train --ray key=value` takes."""

    num_workers: int = Field(1, ge=1)
    """Ranks."""
    cpus: float = Field(1, gt=0)
    """CPUs of each."""
    gpus: float = Field(0, ge=0)
    """GPUs of each: 1, or 0 to train on CPUs."""
    max_failures: int = Field(3, ge=-1)
    """Times that the run is restarted after losing a worker; -1 for any number."""


class RayTrainError(UserError, RuntimeError):
    """Ray gave up on the run."""


def train_on_ray(config_file: Path | None, overrides: Sequence[str], shards: str, run: Path | None) -> int:
    """Train on the cluster at ``RAY_ADDRESS``, or on a Ray of our own. Returns the exit code.

    Shards and run must lie where every worker sees them under the same path.

    Args:
        config_file: of the run.
        overrides: of the config, and of :class:`RayConfig`.
        shards: path or URI.
        run: folder of checkpoints and metrics.

    Raises:
        RayTrainError: if the run failed more often than ``max_failures``.
    """
    import ray
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    from training.launch import default_run

    file = resolve(config_file)
    for_ray = [override for override in overrides if override.partition("=")[0] in RayConfig.model_fields]
    config = load(TrainConfig, file, [override for override in overrides if override not in for_ray])
    options = change(RayConfig(), for_ray)
    run = (run or default_run(file)).resolve()
    root = Path(__file__).resolve().parent.parent
    ray.init(
        address=os.environ.get("RAY_ADDRESS"),
        runtime_env={"env_vars": {"PYTHONPATH": str(root)}},
    )
    trainer = TorchTrainer(
        _rank,
        train_loop_config={
            "config": config.model_dump(mode="json"),
            "shards": shards if "://" in shards else str(Path(shards).resolve()),
            "run": str(run),
        },
        scaling_config=ScalingConfig(
            num_workers=options.num_workers,
            use_gpu=options.gpus > 0,
            resources_per_worker={"CPU": options.cpus, **({"GPU": options.gpus} if options.gpus else {})},
        ),
        torch_config=TorchConfig(backend="cpu:gloo,cuda:nccl" if options.gpus else "gloo"),
        run_config=RunConfig(
            name=run.name,
            storage_path=str(run / "ray"),
            failure_config=FailureConfig(max_failures=options.max_failures),
        ),
    )
    try:
        trainer.fit()
    except Exception as error:
        raise RayTrainError(f"{type(error).__name__}: {error}") from error
    finally:
        ray.shutdown()
    return 0


def _rank(settings: dict[str, Any]) -> None:
    """One worker: a rank of the process group that Ray Train has set up."""
    from rich.console import Console

    from training.launch import process_group
    from training.trainer import Trainer

    config = TrainConfig.model_validate(settings["config"])
    with process_group(config) as device:
        # Ray's own signal ends workers; there is nobody to ask them to stop.
        Trainer(config, settings["shards"], Path(settings["run"]), device, Console()).train(lambda: False)
