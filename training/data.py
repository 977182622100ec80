"""The loader: shards into batches, in an order that follows from the seed and one integer alone."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import count
from typing import Generic, Literal, Protocol, TypeVar

import fsspec
import numpy as np
import torch
from pydantic import Field, field_validator
from torch.utils.data import DataLoader

from stages.config import Section
from stages.sample import NEGATIVE
from training.batch import PixelBatch
from training.draw import AugmentConfig, DrawRules
from training.layout import Bucket, Layout
from training.order import MicroBatch, Order
from training.pixels import Pixels
from training.shard_index import DataError, ShardIndex
from training.shard_reader import SpanReader


class DataConfig(Section):
    """What is read from the shards, and how."""

    buckets: tuple[Bucket, ...] = Field((Bucket(81, 480, 832),), min_length=1)
    """Sizes that videos are brought to, as `[frames, height, width]`. Of those that are not too long for it, a video
    takes that of the nearest aspect ratio, then the longest."""
    fps: float = Field(16, gt=0, le=120)
    """Frames per second that the model sees."""
    skip: int = Field(3, ge=0)
    """Frames left out at both ends of every video."""
    micro_batch: int = Field(1, ge=1)
    """Most samples that pass through the model together."""
    max_references: int = Field(3, ge=0)
    """Most references per sample: one picture of each subject, the largest subjects first; 0 trains without."""
    kinds: dict[str, float] | None = None
    """Weights by which one of a subject's kinds of pictures is drawn; a kind that is not named is never drawn. Null:
    all kinds that there are, evenly, but `negative`, which shows somebody else."""
    shuffle_references: bool = True
    """References in any order; otherwise in that of their subjects, largest first."""
    text_dropout: float = Field(0.1, ge=0, le=1)
    """Probability that a sample goes with the empty caption."""
    reference_dropout: float = Field(0, ge=0, le=1)
    """Probability that a micro-batch goes without its references."""
    augment: AugmentConfig = AugmentConfig()
    """Changes to the pictures of subjects."""
    without_caption: Literal["refuse", "leave_out"] = "refuse"
    """What happens to samples that have no caption."""
    workers: int = Field(2, ge=0)
    """Processes of each rank that read ahead; 0 reads when a batch is asked for. Any number gives the same batches."""
    prefetch: int = Field(2, ge=1)
    """Micro-batches that each of them holds ready."""
    timeout_s: float = Field(600, gt=0)
    """Longest that a batch may take before the run gives up on storage that hangs."""

    @field_validator("kinds")
    @classmethod
    def _some_kind(cls, kinds: dict[str, float] | None) -> dict[str, float] | None:
        if kinds is not None and (min(kinds.values(), default=0) < 0 or max(kinds.values(), default=0) <= 0):
            raise ValueError(
                "weights are at least 0, and one is above; set max_references=0 to train without references"
            )
        return kinds


@dataclass(frozen=True, slots=True)
class DataReport:
    """What a split holds for the loader."""

    samples: int
    """Samples of an epoch."""
    micro_batches: int
    """Micro-batches of an epoch."""
    shapes: Mapping[tuple[Bucket, int], int]
    """Samples by bucket and number of references."""
    left_out: Mapping[str, int]
    """Samples that are never read, by reason."""
    missing_shards: tuple[str, ...]
    """Shards that the index names and that are not there: their samples will be skipped."""


B = TypeVar("B")
B_co = TypeVar("B_co", covariant=True)


class Source(Protocol[B_co]):
    """Reads micro-batches. One that cannot be read in part has stand-ins of weight 0 there, and says so."""

    def __getitem__(self, micro_batch: MicroBatch) -> B_co: ...


@dataclass(frozen=True, slots=True)
class Split:
    """The samples of one split, looked through: what is left out, and the shapes and pictures of the others."""

    shards: str
    index: ShardIndex
    layout: Layout
    kinds: Mapping[str, float]
    """Weights of the kinds of pictures that are drawn."""
    left_out: Mapping[str, int]
    missing_shards: tuple[str, ...]


class Data(Generic[B]):
    """The samples of one split, as batches."""

    def __init__(
        self, split: Split, config: DataConfig, seed: int, source: Callable[[Split, DrawRules], Source[B]]
    ) -> None:
        self._split = split
        self._config = config
        self._seed = seed
        self._source = source
        self.report = DataReport(
            samples=int((split.layout.bucket_of >= 0).sum()),
            micro_batches=self._order(None).micro_batches,
            shapes=split.layout.shapes,
            left_out=split.left_out,
            missing_shards=split.missing_shards,
        )

    def stream(self, position: int = 0, *, rank: int = 0, world: int = 1, accumulate: int = 1) -> Iterator[B]:
        """Batches for training, without end, from the micro-batch number ``position`` on: the loader's whole state.

        A step takes ``accumulate`` micro-batches over all ranks together, so that after n steps the position is
        n * accumulate. A rank gets those of which the number modulo ``world`` is its own, in order.

        Args:
            position: number of the first micro-batch of the next step.
            rank: of the group that reads its own data, less than ``world``.
            world: number of such groups.
            accumulate: a multiple of ``world``.

        Raises:
            DataError: if ``accumulate`` is no multiple of ``world``.
        """
        if accumulate % world:
            raise DataError(
                f"accumulate={accumulate} micro-batches of a step cannot be divided evenly among {world} ranks: "
                f"set accumulate to a multiple of {world}"
            )
        order = self._order(self._seed)
        numbers = count(position + (rank - position) % world, world)
        return self._load(self._training_rules(), (order[number] for number in numbers))

    def once(self, *, rank: int = 0, world: int = 1, limit: int | None = None) -> Iterator[B]:
        """Batches for validation: one pass in the order of the index, the middle of each video, nothing dropped.

        Every rank gets equally many: those beyond the last have weights of 0 only.

        Args:
            limit: most micro-batches, over all ranks together.
        """
        order = self._order(None)
        total = min(order.micro_batches, limit) if limit is not None else order.micro_batches
        numbers = range(rank, -(-total // world) * world, world)
        return self._load(self._rules(), (_in_step(order, number, total) for number in numbers))

    def _order(self, seed: int | None) -> Order:
        return Order(self._split.layout.groups, self._config.micro_batch, seed=seed)

    def _rules(self) -> DrawRules:
        return DrawRules(kinds=self._split.kinds, max_references=self._config.max_references)

    def _training_rules(self) -> DrawRules:
        return replace(
            self._rules(),
            centre=False,
            shuffle=self._config.shuffle_references,
            text_dropout=self._config.text_dropout,
            reference_dropout=self._config.reference_dropout,
            augment=self._config.augment,
        )

    def _load(self, rules: DrawRules, micro_batches: Iterable[MicroBatch]) -> Iterator[B]:
        workers = self._config.workers
        loader: DataLoader[B] = DataLoader(
            self._source(self._split, rules),
            sampler=micro_batches,
            batch_size=None,
            num_workers=workers,
            prefetch_factor=self._config.prefetch if workers else None,
            timeout=self._config.timeout_s if workers else 0,
            # Its own, or every new iterator would draw from the run's random state.
            generator=torch.Generator(),
            worker_init_fn=_leave_the_group,
            # Children of this very process, so that they see it end: those of a fork server would stay.
            multiprocessing_context="fork" if workers else None,
        )
        return iter(loader)


def _leave_the_group(worker: int) -> None:
    """Signals to a whole process group (Ctrl-C, schedulers) are for the run alone, which needs its batches to save."""
    os.setpgid(0, 0)


def open_data(config: DataConfig, shards: str, split: str, *, seed: int) -> Data[PixelBatch]:
    """The samples of a split of the folder of shards at that path or URI.

    Raises:
        DataError: for whatever can be known before the first step: no such folder or index, no samples, none that fits
            a bucket or has references, kinds of pictures that there are not, missing captions, none of the shards.
    """

    def source(samples: Split, rules: DrawRules) -> Pixels:
        return Pixels(samples.index, samples.layout, SpanReader(samples.shards), rules, seed)

    return Data(open_split(config, shards, split), config, seed, source)


def open_split(config: DataConfig, shards: str, split: str) -> Split:
    """Look through the index of a split. Raises what :func:`open_data` does."""
    index = ShardIndex.read(shards, split)
    kinds = _kinds(config, index, shards)
    bucket_of = index.buckets(config.buckets, config.fps, config.skip)
    left_out = {"too short for every bucket": int((bucket_of < 0).sum())}
    if (bucket_of < 0).all():
        raise DataError(_nothing_fits(config, index, shards, split))
    bare = index.without_caption() & (bucket_of >= 0)
    if bare.any():
        if config.without_caption == "refuse" or bare.sum() == (bucket_of >= 0).sum():
            raise DataError(
                f"{int(bare.sum())} samples of the split {split!r} of {shards} have no caption, such as "
                f"{index[int(bare.argmax())].key}: caption them, or leave them out with data.without_caption=leave_out"
            )
        left_out["no caption"] = int(bare.sum())
        bucket_of[bare] = -1
    references_of = np.minimum(index.subjects_with(kinds), config.max_references).astype(np.int16)
    if config.max_references and not references_of[bucket_of >= 0].any():
        raise DataError(
            f"no sample of the split {split!r} of {shards} has a reference to train with (kinds that there are: "
            f"{', '.join(index.kinds) or 'none'}): set data.max_references=0 to train without"
        )
    return Split(
        shards=shards,
        index=index,
        layout=Layout(config.buckets, config.fps, config.skip, bucket_of, references_of),
        kinds=kinds,
        left_out={reason: counted for reason, counted in left_out.items() if counted},
        missing_shards=_missing_shards(index, shards),
    )


def _kinds(config: DataConfig, index: ShardIndex, shards: str) -> dict[str, float]:
    if config.kinds is None:
        return {kind: 1.0 for kind in index.kinds if kind != NEGATIVE}
    unknown = [kind for kind, weight in config.kinds.items() if weight > 0 and kind not in index.kinds]
    if unknown and config.max_references:
        raise DataError(
            f"data.kinds: no sample of {shards} has a picture of kind {', '.join(unknown)}; "
            f"kinds that there are: {', '.join(index.kinds) or 'none'}"
        )
    return config.kinds


def _nothing_fits(config: DataConfig, index: ShardIndex, shards: str, split: str) -> str:
    shortest = min(bucket.frames for bucket in config.buckets)
    return (
        f"no video of the split {split!r} of {shards} is long enough: the shortest bucket takes {shortest} frames and "
        f"{2 * config.skip} are left out at the ends, but the longest video has {index.frames_at(config.fps).max()} at "
        f"{config.fps:g} frames a second; set data.buckets, such as data.buckets=[[17,240,416]], or data.skip"
    )


def _missing_shards(index: ShardIndex, shards: str) -> tuple[str, ...]:
    filesystem, root = fsspec.core.url_to_fs(shards)
    there = {name.rsplit("/", 1)[-1] for name in filesystem.ls(root, detail=False)}
    named = index.shards()
    missing = tuple(name for name in named if name not in there)
    if len(missing) == len(named):
        raise DataError(
            f"none of the {len(named)} shards that {shards}/index.parquet names is there, such as {named[0]}"
        )
    return missing


def _in_step(order: Order, number: int, total: int) -> MicroBatch:
    """The micro-batch, or one that only keeps its rank in step."""
    if number < total:
        return order[number]
    last = order[total - 1]
    return MicroBatch(number, last.samples, last.positions, counts=False)
