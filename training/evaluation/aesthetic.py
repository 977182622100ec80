"""The aesthetic score of LAION's improved predictor: CLIP's image embedding and a small head trained on ratings.

The head is that of github.com/christophschuhmann/improved-aesthetic-predictor: five linear layers without anything
between them, on the embedding at unit length.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image as Pictures
from pydantic import Field

from models.protocols import Image
from models.registry import BackendConfig, check_weights

_MEAN = (0.48145466, 0.4578275, 0.40821073)
_STD = (0.26862954, 0.26130258, 0.27577711)
"""CLIP's own, of RGB in [0, 1]."""
_HEAD = ("layers.0", "layers.2", "layers.4", "layers.6", "layers.7")
"""The head's linear layers; what lies between them is dropout."""


class LaionAesthetic:
    """Scores pictures; runs on CUDA where there is one."""

    class Config(BackendConfig):
        """Options of ``backend: laion_aesthetic``."""

        backend: Literal["laion_aesthetic"] = "laion_aesthetic"
        """Name of this backend."""
        clip: str = "aesthetic/clip-vit-large-patch14"
        """Folder of the CLIP model under ``models.root``, as published (config.json and model.safetensors)."""
        head: str = "aesthetic/sac+logos+ava1-l14-linearMSE.pth"
        """The head's weights under ``models.root``."""
        batch: int = Field(8, ge=1)
        """Pictures that are embedded at once."""

        def weights(self, root: Path) -> list[Path]:
            """CLIP's configuration and weights, and the head."""
            return [root / self.clip / "config.json", root / self.clip / "model.safetensors", root / self.head]

    def __init__(self, config: LaionAesthetic.Config, root: Path) -> None:
        """Load both networks.

        Raises:
            MissingWeightsError: if a file is not there.
            ValueError: if the head does not fit the length of CLIP's embeddings.
        """
        check_weights(config, root)
        from transformers import CLIPModel

        self._config = config
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        # The text tower comes along: without it, transformers prints a report of weights that it did not expect.
        clip: Any = CLIPModel
        self._clip = clip.from_pretrained(root / config.clip, local_files_only=True).eval().to(self._device)
        self._head = _head(root / config.head, int(self._clip.config.projection_dim)).to(self._device)

    def aesthetic(self, images: Sequence[Image]) -> list[float]:
        """A score per picture, about 1 to 10. The middle square of each is looked at."""
        scores: list[float] = []
        for start in range(0, len(images), self._config.batch):
            pictures = torch.stack([self._pixels(image) for image in images[start : start + self._config.batch]])
            with torch.inference_mode():
                embeddings = self._clip.get_image_features(pictures.to(self._device)).pooler_output
                scores.extend(self._head(torch.nn.functional.normalize(embeddings, dim=-1))[:, 0].tolist())
        return scores

    def _pixels(self, image: Image) -> torch.Tensor:
        """CLIP's input: the middle square, scaled (bicubic) and normalised; ``(3, side, side)``."""
        side = int(self._clip.config.vision_config.image_size)
        height, width = image.shape[:2]
        scale = side / min(height, width)
        picture = Pictures.fromarray(image).resize(
            (max(side, round(width * scale)), max(side, round(height * scale))), Pictures.Resampling.BICUBIC
        )
        left, top = (picture.width - side) // 2, (picture.height - side) // 2
        square = np.asarray(picture.crop((left, top, left + side, top + side)), np.float32) / 255
        return torch.from_numpy(((square - _MEAN) / _STD).astype(np.float32)).permute(2, 0, 1)


def _head(file: Path, length: int) -> torch.nn.Sequential:
    state = torch.load(file, map_location="cpu", weights_only=True)
    layers = []
    for name in _HEAD:
        weight = state[f"{name}.weight"]
        if weight.shape[1] != length:
            raise ValueError(f"{file}: {name} takes {weight.shape[1]} numbers and gets {length}")
        layer = torch.nn.Linear(weight.shape[1], weight.shape[0])
        layer.load_state_dict({"weight": weight, "bias": state[f"{name}.bias"]})
        layers.append(layer)
        length = weight.shape[0]
    return torch.nn.Sequential(*layers)
