"""Micro-batches of decoded videos and pictures."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image as Pictures

from models.protocols import Image
from training.batch import PixelBatch, Skipped
from training.clip import decode_window
from training.draw import Augmentation, Draw, DrawRules, draw_micro_batch
from training.layout import Layout, frames_at, window_start
from training.order import MicroBatch
from training.picture import letterbox
from training.shard_index import VIDEO, Sample, ShardIndex
from training.shard_reader import CorruptMemberError, SpanReader

_WHITE = 255
_NOT_A_PICTURE = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, Pictures.DecompressionBombError)
"""What Pillow raises for damaged files."""


class Pixels:
    """Reads micro-batches as a :class:`PixelBatch` each; what cannot be read has a stand-in of weight 0."""

    def __init__(self, index: ShardIndex, layout: Layout, reader: SpanReader, rules: DrawRules, seed: int) -> None:
        self._index = index
        self._layout = layout
        self._reader = reader
        self._rules = rules
        self._seed = seed

    def __getitem__(self, micro_batch: MicroBatch) -> PixelBatch:
        samples = [self._index[row] for row in micro_batch.samples]
        draws = draw_micro_batch(samples, micro_batch, self._rules, self._seed)
        frames, height, width = self._layout.bucket(micro_batch.samples[0])
        stand_ins = PixelBatch(
            keys=tuple(sample.key for sample in samples),
            positions=micro_batch.positions,
            weights=torch.zeros(len(samples)),
            captions=tuple(
                sample.caption if draw.keep_text else "" for sample, draw in zip(samples, draws, strict=True)
            ),
            video=torch.zeros(len(samples), frames, height, width, 3, dtype=torch.uint8),
            references=torch.full((len(samples), len(draws[0].pictures), height, width, 3), _WHITE, dtype=torch.uint8),
        )
        return self._filled(stand_ins, samples, draws) if micro_batch.counts else stand_ins

    def _filled(self, batch: PixelBatch, samples: Sequence[Sample], draws: Sequence[Draw]) -> PixelBatch:
        """The batch with what could be read written into it."""
        spans = [
            [sample.span(extension) for extension in (VIDEO, *draw.pictures)]
            for sample, draw in zip(samples, draws, strict=True)
        ]
        members = iter(self._reader.read([span for of_sample in spans for span in of_sample]))
        skipped = []
        for place, (sample, draw, of_sample) in enumerate(zip(samples, draws, spans, strict=True)):
            video, *pictures = islice(members, len(of_sample))
            into = batch.video[place].numpy(), batch.references[place].numpy()
            try:
                self._decode_video(video, sample, draw, into[0])
                for picture, augmentation, canvas in zip(pictures, draw.augmentations, into[1], strict=True):
                    canvas[...] = decode_picture(_data(picture), augmentation, *canvas.shape[:2])
                batch.weights[place] = 1
            except CorruptMemberError as error:
                skipped.append(Skipped(sample.key, error.reason, error.detail))
                batch.video[place] = 0
                batch.references[place] = _WHITE
        return replace(batch, skipped=tuple(skipped))

    def _decode_video(
        self, member: bytes | CorruptMemberError, sample: Sample, draw: Draw, into: npt.NDArray[np.uint8]
    ) -> None:
        fps = self._layout.fps
        there = int(frames_at(sample.frames, sample.fps, fps))
        decode_window(_data(member), window_start(there, len(into), self._layout.skip, draw.place), fps, into)


def decode_picture(data: bytes, augmentation: Augmentation, height: int, width: int) -> Image:
    """A reference as the model sees it: augmented, letterboxed on white; (height, width, 3).

    Raises:
        CorruptMemberError: ``picture unreadable``.
    """
    try:
        with Pictures.open(io.BytesIO(data), formats=("PNG",)) as picture:
            if augmentation == Augmentation():
                return letterbox(picture, height, width)
            # In its own size this only puts it on white.
            opaque = Pictures.fromarray(letterbox(picture, picture.height, picture.width))
    except _NOT_A_PICTURE as error:
        raise CorruptMemberError("picture unreadable", str(error)) from error
    return letterbox(augmentation.apply(opaque), height, width)


def _data(member: bytes | CorruptMemberError) -> bytes:
    if isinstance(member, CorruptMemberError):
        raise member
    return member
