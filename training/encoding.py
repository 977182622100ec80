"""Batches of pixels into batches of latents, with the frozen encoders."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from training.batch import LatentBatch, PixelBatch
from training.latents import LatentEncoder
from training.text import TextEncoder


@dataclass(frozen=True, slots=True)
class Encoders:
    """The encoder of pixels and the encoder of captions."""

    latents: LatentEncoder
    text: TextEncoder

    @torch.no_grad()
    def encoded(self, batch: PixelBatch | LatentBatch) -> LatentBatch:
        """Encode a batch, unless it is one of cached latents already.

        Captions stay captions where the text embedding is trained along with the model.
        """
        if isinstance(batch, LatentBatch):
            return batch
        return LatentBatch(
            keys=batch.keys,
            positions=batch.positions,
            weights=batch.weights,
            captions=batch.captions,
            video=self.latents.encode(batch.video),
            references=self.latents.encode_references(batch.references),
            text=None if self.text.trainable else self.text.encode(batch.captions),
            skipped=batch.skipped,
        )
