"""The config of a training run: what a YAML file and ``key=value`` overrides may say, checked before it starts."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from stages.config import CONFIG_FOLDER, Section
from training.data import DataConfig
from training.flow import FlowConfig
from training.latents import LatentsChoice
from training.model import ModelConfig
from training.sampler import SamplerConfig
from training.text import TextChoice

DEFAULT_TRAIN_CONFIG = CONFIG_FOLDER / "train" / "tiny.yaml"


class OptimiserConfig(Section):
    """AdamW with a constant learning rate after a linear warm-up."""

    lr: float = Field(5e-6, gt=0)
    """Learning rate."""
    warmup: int = Field(0, ge=0)
    """Steps over which the learning rate rises from 0."""
    betas: tuple[float, float] = (0.9, 0.95)
    """Decay of the running means of the gradient and of its square."""
    eps: float = Field(1e-8, gt=0)
    """Added to the denominator."""
    weight_decay: float = Field(1e-4, ge=0)
    """Decay of weights; biases and norms have none."""
    clip: float = Field(0.1, gt=0)
    """Largest norm of the gradient."""
    ema: float | None = Field(None, gt=0, lt=1)
    """Decay per step of an exponential moving average of the weights, used for validation and sampling; null: none."""


class LoraConfig(Section):
    """Train low-rank adapters instead of the weights."""

    rank: int = Field(64, ge=1)
    """Rank of the adapters."""
    alpha: float = Field(64, gt=0)
    """Their output is scaled by alpha / rank."""
    targets: tuple[str, ...] = ("to_q", "to_k", "to_v", "to_out.0", "ffn.net.0.proj", "ffn.net.2")
    """Ends of the names of the linear layers that get one."""


class ParallelConfig(Section):
    """How the model is spread over the ranks: replicate x shard x context = number of ranks."""

    replicate: int = Field(1, ge=1)
    """Groups of ranks that each hold the whole model (HSDP if above 1)."""
    shard: int | None = Field(None, ge=1)
    """Ranks over which each copy of the model is sharded and the data divided (FSDP2); null: as many as there are."""
    context: int = Field(1, ge=1)
    """Ranks that share the sequence of one sample (Ulysses); must divide the attention heads."""
    precision: Literal["fp32", "bf16"] = "bf16"
    """Of weights in use and activations; weights at rest, gradients' sums, rotary positions, timesteps and the loss are
    fp32."""
    recompute: bool = False
    """Recompute each block in the backward pass instead of keeping its activations."""
    compile: bool = False
    """Compile each block with torch.compile."""
    attention: str | None = None
    """Attention backend of diffusers (`native`, `flash`, `_native_cudnn`, ...); null: its default."""


class CheckpointConfig(Section):
    """When the run is saved."""

    every: int = Field(500, ge=1)
    """Steps from one checkpoint to the next; the last step and SIGTERM save too."""
    keep: int = Field(3, ge=1)
    """Newest checkpoints that stay."""


class CacheConfig(Section):
    """Latents and text embeddings that `s2v encode` keeps beside the shards, so that no step has to encode."""

    use: Literal["auto", "require", "never"] = "auto"
    """`auto` takes the cache where it fits these encoders and sizes and holds the whole split, `require` refuses to
    start without, `never` always encodes. Cached is the middle of each video, so that no window is drawn then."""
    precision: Literal["float32", "bfloat16"] = "bfloat16"
    """What cached numbers are stored in."""
    cpus: float = Field(1, gt=0)
    """CPUs of a worker of `s2v encode`."""
    gpus: float = Field(0, ge=0)
    """GPUs of a worker of `s2v encode`; fractions share a GPU."""
    workers: int | None = Field(None, ge=1)
    """Most workers of `s2v encode`; null: as many as fit into the cluster."""


class ValidationConfig(Section):
    """What is looked at while the run goes on."""

    every: int = Field(500, ge=1)
    """Steps from one validation to the next."""
    batches: int = Field(16, ge=0)
    """Micro-batches of the val shards at most; 0: no validation loss."""
    videos: int = Field(1, ge=0)
    """Samples of the val shards that are generated anew; 0: none."""


class LogConfig(Section):
    """Where the numbers go, besides the terminal and `metrics.jsonl`."""

    every: int = Field(10, ge=1)
    """Steps from one line in the terminal to the next; files get every step."""
    tensorboard: bool = True
    """Write TensorBoard events into `tensorboard/` of the run."""
    tracker: Literal["wandb", "trackio"] | None = None
    """Log to this service too; its package must be installed."""
    project: str = "s2v"
    """Project there."""


class TrainConfig(Section):
    """A whole training run."""

    seed: int = Field(0, ge=0)
    """Determines the order of the samples, every draw, the noise and, without a checkpoint, the first weights."""
    steps: int = Field(5000, ge=1)
    """Optimiser steps."""
    accumulate: int = Field(8, ge=1)
    """Micro-batches per step, over all ranks together: the step is the same on any number of them."""
    max_skipped: float = Field(0.1, ge=0, le=1)
    """Share of samples that may be unreadable; the run ends when more of at least 100 were."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """`auto` takes GPUs where there are any."""
    data: DataConfig = DataConfig()
    latents: LatentsChoice
    text: TextChoice
    model: ModelConfig = ModelConfig()
    flow: FlowConfig = FlowConfig()
    optimiser: OptimiserConfig = OptimiserConfig()
    lora: LoraConfig | None = None
    """Train adapters only; null trains all weights."""
    parallel: ParallelConfig = ParallelConfig()
    cache: CacheConfig = CacheConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    validation: ValidationConfig = ValidationConfig()
    sampler: SamplerConfig = SamplerConfig()
    log: LogConfig = LogConfig()

    @model_validator(mode="after")
    def _lora_needs_weights(self) -> TrainConfig:
        if self.lora is not None and self.model.checkpoint is None:
            raise ValueError("lora: adapters need trained weights under them: set model.checkpoint")
        return self


def resolve(path: Path | None) -> Path:
    """The config file to use."""
    return path if path is not None else DEFAULT_TRAIN_CONFIG
