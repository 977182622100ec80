"""A trained model from a run's checkpoint, whole and on one device, with the encoders that belong to it."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException

from stages.config import ConfigError, change
from training.checkpoint import CheckpointError, describe, first_line, latest_checkpoint
from training.config import TrainConfig
from training.encoding import Encoders
from training.latents import build_latents
from training.model import build_model
from training.parallel import add_adapters
from training.student import Student
from training.text import build_text


@dataclass(frozen=True)
class Trained:
    """What a run made."""

    config: TrainConfig
    student: Student
    encoders: Encoders


def load_trained(folder: Path, overrides: Sequence[str] = ()) -> Trained:
    """Load the newest checkpoint of a run, or a certain one: its moving average if there is one, else its weights.

    Args:
        folder: of a run, or of a checkpoint.
        overrides: changes to the run's config, such as ``sampler.steps=30``. Those that change the model do not load.

    Raises:
        CheckpointError: if there is none, or it is damaged.
        UserError: what building the model and its encoders raises.
    """
    found = folder if (folder / "run.json").exists() else latest_checkpoint(folder / "checkpoints")
    if found is None:
        raise CheckpointError(
            f"{folder} is neither a run with a checkpoint nor a checkpoint: give the folder that `s2v train` wrote, or "
            "one of its checkpoints/step-*"
        )
    description = describe(found)
    try:
        config = change(TrainConfig.model_validate(description["config"]), overrides)
    except (KeyError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        raise CheckpointError(f"{found / 'run.json'} holds no config of this version: {error}") from error
    device = torch.device("cuda" if torch.cuda.is_available() and config.device != "cpu" else "cpu")
    encoders = Encoders(build_latents(config.latents, device), build_text(config.text, device))
    transformer = build_model(config.model, encoders.latents.channels, encoders.text.dim, device=device)
    if config.lora is not None:
        add_adapters(transformer, config.lora)
    student = Student(transformer, encoders.text).to(device)
    part = "average" if config.optimiser.ema else "model"
    tensors = {part: {name: parameter.detach() for name, parameter in student.named_trained().items()}}
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # As it should be.
            dcp.load(tensors, checkpoint_id=found, no_dist=True)
    except (Exception, CheckpointException) as error:
        raise CheckpointError(f"{found} cannot be loaded: {first_line(error)}") from error
    return Trained(config, student.eval(), encoders)
