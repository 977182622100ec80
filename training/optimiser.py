"""The optimiser: AdamW, its warm-up, clipping, and the moving average of the weights."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from training.config import OptimiserConfig


def make_optimiser(parameters: Mapping[str, nn.Parameter], config: OptimiserConfig) -> torch.optim.AdamW:
    """AdamW over named parameters, with weight decay on matrices only: not on biases and norms."""
    decayed = [parameter for name, parameter in parameters.items() if _decays(name, parameter)]
    others = [parameter for name, parameter in parameters.items() if not _decays(name, parameter)]
    groups = [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]], lr=config.lr, betas=config.betas, eps=config.eps
    )


def learning_rate(step: int, config: OptimiserConfig) -> float:
    """The learning rate of step ``step`` (counted from 0): a linear rise over ``warmup`` steps, then constant."""
    return config.lr * min(1.0, (step + 1) / (config.warmup + 1))


def finish_gradients(parameters: Iterable[nn.Parameter], factor: float, clip: float) -> float:
    """Multiply the gradients by ``factor``, then clip them to the norm ``clip``; returns their norm before clipping."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if factor != 1.0:
        torch._foreach_mul_(gradients, factor)
    norm = torch.nn.utils.get_total_norm(gradients)
    if isinstance(norm, DTensor):
        norm = norm.full_tensor()
    torch._foreach_mul_(gradients, torch.clamp(clip / (norm + 1e-6), max=1.0).item())
    return float(norm.item())


class MovingAverage:
    """An exponential moving average of the trained parameters, kept like them: sharded and in fp32."""

    def __init__(self, parameters: Mapping[str, nn.Parameter], decay: float) -> None:
        self.decay = decay
        self.parameters = dict(parameters)
        self.averages = {name: parameter.detach().clone() for name, parameter in parameters.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the parameters after step ``step`` (from 0); early on the average follows them more closely."""
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(self.averages.values()), list(self.parameters.values()), 1 - decay)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange the averages with the parameters; calling it again undoes it."""
        for name, parameter in self.parameters.items():
            kept = parameter.detach().clone()
            parameter.copy_(self.averages[name])
            self.averages[name].copy_(kept)


def _decays(name: str, parameter: nn.Parameter) -> bool:
    return parameter.ndim >= 2 and "norm" not in name and not name.endswith("bias")
