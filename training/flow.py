"""The rectified-flow objective: how noisy a sample is made, what the model is to say then, and how far off it was."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, TypeVar

import numpy as np
import torch
from pydantic import Field

from stages.config import Section

TIMESTEPS = 1000
BANDS = 4

Purpose = Literal["training", "sampling"]
Sigma = TypeVar("Sigma", float, torch.Tensor)

_STREAMS: dict[Purpose, int] = {"training": 0x666C6F77, "sampling": 0x73616D70}
_SHIFT_POINTS = ((256.0, 0.5), (4096.0, 1.15))


class FlowConfig(Section):
    """Which noise levels the model is trained at."""

    mean: float = 0.0
    """Mean of the noise level's logit before the shift."""
    std: float = Field(1.0, gt=0)
    """Standard deviation of the noise level's logit."""
    shift: Literal["resolution"] | Annotated[float, Field(gt=0)] = "resolution"
    """How far noise levels move towards pure noise: `resolution` follows the tokens of a frame; a number is the shift
    for all sizes, 1 none."""

    def shift_at(self, height: int, width: int) -> float:
        """The shift for latents of that size."""
        return resolution_shift(height, width) if self.shift == "resolution" else self.shift


@dataclass(frozen=True, slots=True)
class NoisyLatents:
    """A batch on its way between noise and data, float32."""

    video: torch.Tensor
    """(B, C, t, h, w): (1 - sigma) x + sigma noise."""
    target: torch.Tensor
    """(B, C, t, h, w): the velocity, noise - x."""
    timestep: torch.Tensor
    """(B,): 1000 sigma, as Wan counts."""


def resolution_shift(height: int, width: int) -> float:
    """Shift for latents of ``height`` x ``width``: e^u, u linear in a frame's tokens through (256, 0.5), (4096, 1.15).

    A token is 2 x 2 latent pixels. References do not count. Dynamic shifting of Stable Diffusion 3 and Flux (Esser et
    al. 2024, arXiv 2403.03206, section 5.3.2), by the tokens of one frame as in the released code of Kaleido.
    """
    (low, u_low), (high, u_high) = _SHIFT_POINTS
    tokens = height * width / 4
    return math.exp(u_low + (tokens - low) * (u_high - u_low) / (high - low))


def shifted(sigma: Sigma, shift: float) -> Sigma:
    """``shift * sigma / (1 + (shift - 1) * sigma)``: 0 and 1 stay, what lies between moves towards 1 if shift > 1."""
    return shift * sigma / (shift * sigma + (1 - sigma))  # Exact at both ends.


def draw(
    config: FlowConfig, seed: int, positions: Sequence[int], shape: Sequence[int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Noise and noise level of every sample of a batch, on the CPU.

    They follow from the run's seed and the sample's position alone (both at least 0), so that they are the same however
    many ranks there are and whatever the batch is made of.

    Args:
        config: distribution of the noise level.
        seed: of the run.
        positions: the B samples' places in the global order.
        shape: (C, t, h, w) of one sample's latents.

    Returns:
        Noise (B, C, t, h, w) float32 of N(0, 1) and sigma (B,) float32 in (0, 1), shifted.
    """
    generators = [_generator(seed, position, "training") for position in positions]
    logits = torch.tensor([generator.normal(config.mean, config.std) for generator in generators], dtype=torch.float64)
    sigma = shifted(torch.sigmoid(logits), config.shift_at(*shape[-2:])).float()
    return torch.stack([_gaussian(generator, shape) for generator in generators]), sigma


def starting_noise(seed: int, batch: int, shape: Sequence[int]) -> torch.Tensor:
    """Noise (B, C, t, h, w) float32 to sample from; a sample's does not depend on the size of its batch."""
    return torch.stack([_gaussian(_generator(seed, place, "sampling"), shape) for place in range(batch)])


def add_noise(video: torch.Tensor, noise: torch.Tensor, sigma: torch.Tensor) -> NoisyLatents:
    """Mix latents with noise (both (B, C, t, h, w)) at ``sigma`` (B,), in float32."""
    video, noise, sigma = video.float(), noise.float(), sigma.float()
    level = sigma.view(-1, 1, 1, 1, 1)
    return NoisyLatents((1 - level) * video + level * noise, noise - video, TIMESTEPS * sigma)


def loss(prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Mean squared error of every sample, (B,) float32; ``prediction`` and ``target`` are (B, C, t, h, w)."""
    return (prediction.float() - target.float()).square().flatten(1).mean(1)


def band(timestep: torch.Tensor) -> torch.Tensor:
    """Which quarter of the noise levels a sample is in: (B,) int64, 0 nearly clean to 3 nearly noise."""
    return (timestep * (BANDS / TIMESTEPS)).long().clamp(0, BANDS - 1)


def _generator(seed: int, position: int, purpose: Purpose) -> np.random.Generator:
    # Not PyTorch's: of a seed it uses 32 bits only, and its normal numbers differ between processors. The purpose keeps
    # whatever else is drawn for the same sample independent of this.
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(position, _STREAMS[purpose])))


def _gaussian(generator: np.random.Generator, shape: Sequence[int]) -> torch.Tensor:
    return torch.from_numpy(generator.standard_normal(tuple(shape), dtype=np.float32))
