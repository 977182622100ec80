"""`s2v encode`: latents and text embeddings of every shard, computed on Ray and kept beside the shards.

A shard whose latents are there is done, so running again resumes.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import ray
from ray.util import ActorPool
from rich.console import Console

from models.errors import UserError
from stages.config import load
from training.batch import Skipped
from training.cache import CacheParts, LatentCache
from training.config import TrainConfig, resolve
from training.data import Split, open_split
from training.encode import encode_empty_caption, encode_shard
from training.encoding import Encoders
from training.latents import build_latents
from training.shard_index import DataError
from training.text import build_text

SPLITS = ("train", "val")
RETRIES = 3
"""Times that a shard is tried again after its worker died."""


class NoRoomError(UserError, RuntimeError):
    """Not one worker fits into the cluster."""


def encode_shards(config_file: Path | None, overrides: Sequence[str], shards: str) -> None:
    """Encode what is not encoded yet, and tell how it goes.

    Raises:
        DataError: if the shards cannot be used.
        NoRoomError: if a worker asks for more than the cluster has.
    """
    config = load(TrainConfig, resolve(config_file), overrides)
    console = Console()
    shards = shards if "://" in shards else str(Path(shards).resolve())
    cache = _cache(config, shards, _encoders(config, "cpu"))
    splits = {name: split for name in SPLITS if (split := _split(config, shards, name, console)) is not None}
    if not splits:
        raise DataError(f"{shards} has no samples that fit data.buckets")
    todo = [(name, shard) for name, split in splits.items() for shard in cache.missing(split.index.shards())]
    if todo:
        _run(config, shards, todo, console)
    total = sum(len(split.index.shards()) for split in splits.values())
    console.print(f"{total} shards encoded in {cache.uri}", soft_wrap=True)


class _Worker:
    """A process that keeps the encoders from shard to shard."""

    def __init__(self, config: TrainConfig, shards: str) -> None:
        self.encoders = _encoders(config, "cuda" if config.cache.gpus else "cpu")
        self.cache = _cache(config, shards, self.encoders)
        self.splits = {name: split for name in SPLITS if (split := _split(config, shards, name, None)) is not None}
        if not self.encoders.text.trainable:
            encode_empty_caption(self.encoders, self.cache)

    def encode(self, split: str, shard: str) -> list[Skipped]:
        return encode_shard(self.splits[split], shard, self.encoders, self.cache)


def _run(config: TrainConfig, shards: str, todo: Sequence[tuple[str, str]], console: Console) -> None:
    ray.init(
        address=os.environ.get("RAY_ADDRESS"),
        include_dashboard=None if "RAY_ADDRESS" in os.environ else False,
        runtime_env={"env_vars": {"PYTHONPATH": str(Path(__file__).resolve().parent.parent)}},
        log_to_driver=False,
    )
    try:
        worker = ray.remote(
            num_cpus=config.cache.cpus, num_gpus=config.cache.gpus, max_restarts=RETRIES, max_task_retries=RETRIES
        )(_Worker)
        count = min(len(todo), _fitting(config))
        pool = ActorPool([worker.remote(config, shards) for _ in range(count)])
        started, skipped = time.monotonic(), Counter[str]()
        results = pool.map_unordered(lambda actor, job: actor.encode.remote(*job), list(todo))
        for done, troubles in enumerate(results, 1):
            skipped.update(trouble.reason for trouble in troubles)
            left = (time.monotonic() - started) / done * (len(todo) - done)
            console.print(f"{done}/{len(todo)} shards, {left:.0f} s left", soft_wrap=True)
        for reason, number in skipped.items():
            console.print(f"{number} members left out: {reason}", soft_wrap=True)
    finally:
        ray.shutdown()


def _fitting(config: TrainConfig) -> int:
    have, cache = ray.cluster_resources(), config.cache
    fits = have.get("CPU", 0) / cache.cpus
    if cache.gpus:
        fits = min(fits, have.get("GPU", 0) / cache.gpus)
    if fits < 1:
        raise NoRoomError(
            f"a worker needs {cache.cpus:g} CPUs and {cache.gpus:g} GPUs, but the cluster has {have.get('CPU', 0):g} "
            f"and {have.get('GPU', 0):g}: lower cache.cpus or cache.gpus"
        )
    return min(int(fits), cache.workers or int(fits))


def _encoders(config: TrainConfig, device: str) -> Encoders:
    return Encoders(build_latents(config.latents, device), build_text(config.text, device))


def _cache(config: TrainConfig, shards: str, encoders: Encoders) -> LatentCache:
    return LatentCache(shards, CacheParts.of(config.data, encoders.latents, encoders.text, config.cache.precision))


def _split(config: TrainConfig, shards: str, name: str, console: Console | None) -> Split | None:
    try:
        return open_split(config.data, shards, name)
    except DataError as error:
        if console is not None:
            console.print(f"nothing to encode in {name}: {error}", soft_wrap=True)
        return None
