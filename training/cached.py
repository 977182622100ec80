"""Micro-batches of cached latents: the same order and the same draws as those of pixels, without the encoders."""

from __future__ import annotations

import struct
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import islice

import torch

from training.batch import LatentBatch, Skipped
from training.cache import EMPTY, LatentCache, StoredTensor, stored_tensors
from training.data import Data, DataConfig, Split, open_split
from training.draw import AugmentConfig, Draw, DrawRules, draw_micro_batch
from training.layout import Layout
from training.order import MicroBatch
from training.shard_index import TEXT, VIDEO, DataError, Sample, ShardIndex
from training.shard_reader import CorruptMemberError, Span, SpanReader

HEADERS = 64
"""Most files of which a reader remembers what is in them."""
MAX_HEADER = 100_000_000
"""Most bytes of a header, as the format says."""


def open_cached_data(
    config: DataConfig, shards: str, split: str, cache: LatentCache, *, seed: int
) -> Data[LatentBatch]:
    """The samples of a split as cached latents. Windows are those in the middle of the videos: others are not cached.

    Raises:
        DataError: what :func:`~training.data.open_data` raises it for; if shards of the split are not cached; if the
            config asks for augmentation, which needs pixels.
    """
    if config.augment != AugmentConfig():
        raise DataError("data.augment changes pixels, and these are cached latents: leave one of them out")
    samples = open_split(config, shards, split)
    missing = cache.missing([shard for shard in samples.index.shards() if shard not in samples.missing_shards])
    if missing:
        raise DataError(
            f"{len(missing)} shards of the split {split!r} have no latents in {cache.uri}, such as {missing[0]}: "
            "encode them first"
        )

    def source(samples: Split, rules: DrawRules) -> CachedLatents:
        return CachedLatents(samples.index, samples.layout, cache, rules, seed)

    return Data(samples, config, seed, source)


class CachedLatents:
    """Reads micro-batches as a :class:`LatentBatch` each; what cannot be read has a stand-in of weight 0."""

    def __init__(self, index: ShardIndex, layout: Layout, cache: LatentCache, rules: DrawRules, seed: int) -> None:
        self._index = index
        self._layout = layout
        self._cache = cache
        self._rules = rules
        self._seed = seed
        self._reader = SpanReader(cache.uri)
        self._headers: OrderedDict[str, Mapping[str, StoredTensor]] = OrderedDict()

    def __getitem__(self, micro_batch: MicroBatch) -> LatentBatch:
        samples = [self._index[row] for row in micro_batch.samples]
        draws = draw_micro_batch(samples, micro_batch, self._rules, self._seed)
        parts = self._cache.parts
        channels, frames, height, width = parts.latent_size(self._layout.bucket(micro_batch.samples[0]))
        stand_ins = LatentBatch(
            keys=tuple(sample.key for sample in samples),
            positions=micro_batch.positions,
            weights=torch.zeros(len(samples)),
            captions=tuple(
                sample.caption if draw.keep_text else "" for sample, draw in zip(samples, draws, strict=True)
            ),
            video=torch.zeros(len(samples), channels, frames, height, width),
            references=torch.zeros(len(samples), channels, len(draws[0].pictures), height, width),
            text=None if parts.text is None else torch.zeros(len(samples), *parts.text_shape),
        )
        return self._filled(stand_ins, samples, draws) if micro_batch.counts else stand_ins

    def _filled(self, batch: LatentBatch, samples: Sequence[Sample], draws: Sequence[Draw]) -> LatentBatch:
        """The batch with what could be read written into it."""
        stored = [self._find(sample, draw) for sample, draw in zip(samples, draws, strict=True)]
        spans = [tensor.span for found in stored if not isinstance(found, CorruptMemberError) for tensor in found]
        data = iter(self._reader.read(spans))
        skipped = []
        for place, (sample, found) in enumerate(zip(samples, stored, strict=True)):
            try:
                if isinstance(found, CorruptMemberError):
                    raise found
                # All of a sample's are taken from the iterator before any of them may raise.
                read = list(zip(found, islice(data, len(found)), strict=True))
                _fill(batch, place, [_restored(tensor, part) for tensor, part in read])
            except CorruptMemberError as error:
                skipped.append(Skipped(sample.key, error.reason, error.detail))
        return replace(batch, skipped=tuple(skipped))

    def _find(self, sample: Sample, draw: Draw) -> list[StoredTensor] | CorruptMemberError:
        """Video, pictures in their order, and text, where they lie."""
        file = self._cache.file_of(sample.shard)
        names = [(file, f"{sample.key}.{extension}") for extension in (VIDEO, *draw.pictures)]
        if self._cache.parts.text is not None:
            names.append((file, f"{sample.key}.{TEXT}") if draw.keep_text else (EMPTY, TEXT))
        try:
            return [self._header(file)[name] for file, name in names]
        except KeyError as error:
            return CorruptMemberError("not encoded", f"{error.args[0]} is not in {file}")
        except CorruptMemberError as error:
            return error

    def _header(self, file: str) -> Mapping[str, StoredTensor]:
        if file not in self._headers:
            (size,) = struct.unpack("<Q", self._read(Span(file, 0, 8)))
            if size > MAX_HEADER:
                raise CorruptMemberError("latents unreadable", f"{file} is no safetensors file")
            try:
                self._headers[file] = stored_tensors(file, self._read(Span(file, 8, size)))
            except ValueError as error:
                raise CorruptMemberError("latents unreadable", f"{file}: {error}") from error
            if len(self._headers) > HEADERS:
                self._headers.popitem(last=False)
        self._headers.move_to_end(file)
        return self._headers[file]

    def _read(self, span: Span) -> bytes:
        (data,) = self._reader.read([span])
        if isinstance(data, CorruptMemberError):
            raise data
        return data


def _restored(stored: StoredTensor, data: bytes | CorruptMemberError) -> torch.Tensor:
    if isinstance(data, CorruptMemberError):
        raise data
    return stored.restore(data)


def _fill(batch: LatentBatch, place: int, tensors: Sequence[torch.Tensor]) -> None:
    """Write a sample's video, pictures and text into its place."""
    video, *rest = tensors
    pictures = rest[: batch.references.shape[2]]
    texts = rest[len(pictures) :]
    channels, _, height, width = batch.video.shape[1:]
    wanted = [batch.video.shape[1:], *[(channels, height, width)] * len(pictures)]
    if batch.text is not None:
        wanted.append((min(len(texts[0]), batch.text.shape[1]), batch.text.shape[2]))
    for tensor, shape in zip(tensors, wanted, strict=True):
        if tensor.shape != shape:
            raise CorruptMemberError("latents unreadable", f"{tuple(tensor.shape)} instead of {tuple(shape)}")
    batch.video[place] = video
    for number, picture in enumerate(pictures):
        batch.references[place, :, number] = picture
    if batch.text is not None:
        batch.text[place, : len(texts[0])] = texts[0]
    batch.weights[place] = 1
