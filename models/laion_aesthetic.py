"""The aesthetic score of LAION's improved predictor: CLIP's image embedding and a small head trained on ratings.

The head is that of github.com/christophschuhmann/improved-aesthetic-predictor: five linear layers without anything
between them, on the embedding at unit length.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np

from models.pretrained import UnusableWeightsError, load_network, load_processor
from models.protocols import Image
from models.registry import Repository, check_weights
from models.torch_device import TorchConfig, placed

_HEAD = ("layers.0", "layers.2", "layers.4", "layers.6", "layers.7")
"""The head's linear layers; what lies between them is dropout."""


class LaionAesthetic:
    """Scores pictures by the middle square of each, as its makers do."""

    class Config(TorchConfig):
        """Options of ``backend: laion_aesthetic``."""

        backend: Literal["laion_aesthetic"] = "laion_aesthetic"
        """Name of this backend."""
        clip: str = "openai/clip-vit-large-patch14"
        """Folder under `models.root` with the CLIP model that the head was trained on; on the model hub, the name of
        the repository to fetch it from."""
        head: str = "camenduru/improved-aesthetic-predictor/sac+logos+ava1-l14-linearMSE.pth"
        """The head's weights under `models.root`; fetched if the path begins with a repository's owner and name."""

        def weights(self, root: Path) -> list[Path]:
            """CLIP's folder and the head."""
            return [root / self.clip, root / self.head]

        def repositories(self) -> list[Repository]:
            """CLIP's and the head's."""
            owner, *rest = PurePosixPath(self.head).parts
            head = [Repository(f"{owner}/{rest[0]}", ("/".join(rest[1:]),))] if len(rest) > 1 else []
            return [Repository(self.clip, ("config.json", "preprocessor_config.json", "model.safetensors")), *head]

    def __init__(self, config: LaionAesthetic.Config, root: Path) -> None:
        """Load both networks.

        Raises:
            MissingWeightsError: if a file is not there.
            UnusableWeightsError: if one does not load, or the head does not fit the length of CLIP's embeddings.
        """
        check_weights(config, root)
        from transformers import CLIPImageProcessor, CLIPVisionModelWithProjection

        self._batch = config.batch
        self._device, self._dtype = placed(config)
        folder = root / config.clip
        self._clip = load_network(CLIPVisionModelWithProjection, folder, config)
        self._processor = load_processor(CLIPImageProcessor, folder, config)
        self._head = _head(root / config.head, int(self._clip.config.projection_dim)).to(self._device)

    def aesthetic(self, images: Sequence[Image]) -> list[float]:
        """A score per picture, about 1 to 10. The middle square of each is looked at."""
        import torch
        from torch.nn.functional import normalize

        scores: list[float] = []
        for start in range(0, len(images), self._batch):
            # Copies, since torch warns of pictures that are read-only.
            part = [np.array(image) for image in images[start : start + self._batch]]
            pixels = self._processor(part, input_data_format="channels_last", return_tensors="pt")["pixel_values"]
            with torch.inference_mode():
                embeddings = self._clip(pixel_values=pixels.to(self._device, self._dtype)).image_embeds
                scores += self._head(normalize(embeddings.float(), dim=-1))[:, 0].tolist()
        return scores


def _head(file: Path, length: int) -> Any:
    """The head in float32, which costs nothing and rounds no score."""
    import pickle

    import torch

    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
        found = [(state[f"{name}.weight"], state[f"{name}.bias"]) for name in _HEAD]
    except (OSError, RuntimeError, KeyError, TypeError, EOFError, pickle.UnpicklingError) as error:
        raise UnusableWeightsError(f"laion_aesthetic: {file} is no head that loads: {error}; fetch it again") from error
    layers = []
    for name, (weight, bias) in zip(_HEAD, found, strict=True):
        if weight.shape[1] != length:
            raise UnusableWeightsError(f"{file}: {name} takes {weight.shape[1]} numbers and gets {length}")
        layer = torch.nn.Linear(weight.shape[1], weight.shape[0])
        layer.load_state_dict({"weight": weight, "bias": bias})
        layers.append(layer)
        length = weight.shape[0]
    return torch.nn.Sequential(*layers).requires_grad_(False)
