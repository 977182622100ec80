"""All that is trained, as one module: the transformer and, where it has no frozen one, its text embedding."""

from __future__ import annotations

import torch
from torch import nn

from training.batch import LatentBatch
from training.model import S2VTransformer
from training.text import TextEncoder, Words


class Student(nn.Module):
    """The transformer with the text embedding that is trained along with it, if any."""

    def __init__(self, transformer: S2VTransformer, text: TextEncoder) -> None:
        super().__init__()
        self.transformer = transformer
        self.text: Words | None = text if isinstance(text, Words) else None

    def forward(self, batch: LatentBatch, noisy: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        """Predict the velocity.

        Args:
            batch: its references, and its captions or text embeddings.
            noisy: the noisy video latents (B, C, t, h, w).
            timestep: (B,) float32 in [0, 1000].

        Returns:
            (B, C, t, h, w) float32.
        """
        text = batch.text if self.text is None else self.text.encode(batch.captions)
        if text is None:
            raise ValueError("the batch has no text embeddings and the model does not train one")
        prediction: torch.Tensor = self.transformer(noisy, batch.references, timestep, text)
        return prediction.float()

    def named_trained(self) -> dict[str, nn.Parameter]:
        """The parameters that the optimiser changes, by name."""
        return {name: parameter for name, parameter in self.named_parameters() if parameter.requires_grad}
