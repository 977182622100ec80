"""What travels from the loader through the encoders to the model."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch


@dataclass(frozen=True, slots=True)
class Skipped:
    """A sample that could not be read. ``reason`` is one of a few, for counting; ``detail`` tells what happened."""

    key: str
    reason: str
    detail: str


@dataclass(frozen=True, slots=True)
class PixelBatch:
    """Samples as they were recorded, all of one bucket: equal size, length and number of references.

    ``video`` is (B, T, H, W, 3) uint8, ``references`` (B, n, H, W, 3) uint8 with n >= 0, letterboxed on white.
    ``captions`` may be empty strings (text dropout). ``positions`` are the samples' places in the endless global order:
    with the run's seed they determine every random draw for a sample, whichever rank it falls to. ``weights`` (B,)
    float32 are 1, or 0 for what stands in for a sample that could not be read; ``skipped`` tells of these.
    """

    keys: tuple[str, ...]
    positions: tuple[int, ...]
    weights: torch.Tensor
    captions: tuple[str, ...]
    video: torch.Tensor
    references: torch.Tensor
    skipped: tuple[Skipped, ...] = ()


@dataclass(frozen=True, slots=True)
class LatentBatch:
    """The same, encoded.

    ``video`` is (B, C, t, h, w) float32, ``references`` (B, C, n, h, w) float32, each of them encoded alone. ``text``
    is (B, L, D), or None where the text embedding is trained along with the model and computed from ``captions`` then.
    """

    keys: tuple[str, ...]
    positions: tuple[int, ...]
    weights: torch.Tensor
    captions: tuple[str, ...]
    video: torch.Tensor
    references: torch.Tensor
    text: torch.Tensor | None
    skipped: tuple[Skipped, ...] = ()

    def to(self, device: torch.device) -> LatentBatch:
        """The same batch on another device."""
        return replace(
            self,
            weights=self.weights.to(device),
            video=self.video.to(device),
            references=self.references.to(device),
            text=None if self.text is None else self.text.to(device),
        )
