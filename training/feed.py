"""Where a run's batches come from: the shards themselves, or the latents cached beside them."""

from __future__ import annotations

from dataclasses import dataclass

from training.batch import LatentBatch, PixelBatch
from training.cache import CacheParts, LatentCache
from training.cached import open_cached_data
from training.config import TrainConfig
from training.data import Data, open_data
from training.encoding import Encoders
from training.shard_index import DataError


@dataclass(frozen=True, slots=True)
class Feed:
    """The samples of a split, and in a few words where they are read."""

    data: Data[PixelBatch] | Data[LatentBatch]
    origin: str


def open_feed(config: TrainConfig, shards: str, split: str, encoders: Encoders, *, seed: int) -> Feed:
    """The samples of a split as ``config.cache.use`` says.

    Raises:
        DataError: what :func:`~training.data.open_data` raises it for; with ``require`` also for a cache that does not
            fit or is not complete.
    """
    if config.cache.use == "never":
        return Feed(open_data(config.data, shards, split, seed=seed), "encoded as they are read")
    try:
        cache = LatentCache(shards, CacheParts.of(config.data, encoders.latents, encoders.text, config.cache.precision))
        cached = open_cached_data(config.data, shards, split, cache, seed=seed)
    except DataError:
        if config.cache.use == "require":
            raise
        pixels = open_data(config.data, shards, split, seed=seed)
        return Feed(pixels, "encoded as they are read, as `s2v encode` has not cached all of them for this config")
    return Feed(cached, f"cached in {cache.uri}")
