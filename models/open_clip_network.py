"""Networks of open_clip (Ilharco et al., doi:10.5281/zenodo.5143773) from local folders in the model hub's layout."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

from models.pretrained import UnusableWeightsError
from models.protocols import Image, Vector
from models.torch_device import HubConfig, placed

CHECKPOINTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors")
"""Weights by the names that open_clip itself looks for first."""


class OpenClipConfig(HubConfig):
    """Base of the configs of backends that run a network of open_clip."""

    files: ClassVar[tuple[str, ...]] = ("*.json", "*.txt", "*.model", "open_clip*.safetensors")

    model: str = "laion/CLIP-ViT-L-14-DataComp.XL-s13B-b90K"
    """Folder under `models.root` with `open_clip_config.json`, `open_clip_model.safetensors` and, where the network has
    a tokenizer of its own, that; on the model hub, the name of the repository to fetch it from."""


class OpenClipNetwork:
    """Takes pictures and texts to unit vectors of one space. Nothing is read but the folder, and no pickle."""

    def __init__(self, folder: Path, config: OpenClipConfig) -> None:
        """Load the network.

        Raises:
            UnusableWeightsError: if the folder lacks a file or tensors, or if its configuration names a tower that
                open_clip would look up on the model hub.
        """
        self._folder = folder
        self._config = config
        self._device, self._dtype = placed(config)
        self._settings = _settings(folder)
        import open_clip
        from safetensors import SafetensorError

        try:
            with _silence():
                network, self._transform = open_clip.create_model_from_pretrained(f"local-dir:{folder}")
        # It asserts that widths fit.
        except (OSError, ValueError, RuntimeError, KeyError, TypeError, AssertionError, SafetensorError) as error:
            raise self._unusable("loads as no network of open_clip", error) from error
        self._network: Any = network.eval().requires_grad_(False).to(self._device, self._dtype)
        self.mean_colour: tuple[float, ...] = tuple(255 * value for value in network.visual.preprocess_cfg["mean"])
        """RGB in [0, 255] that the network's normalisation takes to zero."""

    def tokenizer(self) -> Any:
        """What takes a list of texts to token ids of shape ``(texts, context)``, longer texts cut off.

        Raises:
            UnusableWeightsError: if the network has a tokenizer of its own and its files are not in the folder.
        """
        import open_clip

        # Without a name in the configuration it is the tokenizer of OpenAI's CLIP, which open_clip ships.
        own = bool(self._settings["text_cfg"].get("hf_tokenizer_name"))
        options = {"local_files_only": True, "trust_remote_code": False} if own else {}
        try:
            with _silence():
                return open_clip.get_tokenizer(f"local-dir:{self._folder}", **options)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise self._unusable("holds no tokenizer that loads", error) from error

    def embed_images(self, images: Sequence[Image]) -> list[Vector]:
        """Unit vectors of pictures, each scaled and cropped as the network's configuration says."""
        import torch
        from PIL import Image as Pictures

        vectors: list[Vector] = []
        for start in range(0, len(images), self._config.batch):
            pictures = [Pictures.fromarray(image) for image in images[start : start + self._config.batch]]
            pixels = torch.stack([self._transform(picture) for picture in pictures])
            with torch.inference_mode():
                vectors += _unit(self._network.encode_image(pixels.to(self._device, self._dtype)))
        return vectors

    def embed_tokens(self, tokens: Any) -> list[Vector]:
        """Unit vectors of texts from the token ids that the tokenizer gives."""
        import torch

        vectors: list[Vector] = []
        for part in tokens.split(self._config.batch):
            with torch.inference_mode():
                vectors += _unit(self._network.encode_text(part.to(self._device)))
        return vectors

    def _unusable(self, what: str, error: Exception) -> UnusableWeightsError:
        # open_clip lists every tensor that is missing.
        reason = " ".join(str(error).split())[:400]
        return UnusableWeightsError(f"{self._config.backend}: {self._folder} {what}: {reason}; fetch it again")


def _unit(vectors: Any) -> list[Vector]:
    from torch.nn.functional import normalize

    return list(normalize(vectors.float(), dim=-1).cpu().numpy())


def _settings(folder: Path) -> dict[str, Any]:
    """The ``model_cfg`` of a folder's configuration, if open_clip can load it from that folder alone."""
    if not any((folder / name).is_file() for name in CHECKPOINTS):
        raise UnusableWeightsError(f"{folder} holds no {CHECKPOINTS[0]} (pickles are not read); fetch it again")
    file = folder / "open_clip_config.json"
    try:
        settings: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))["model_cfg"]
        text, vision = settings["text_cfg"], settings["vision_cfg"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UnusableWeightsError(f"{file} is no configuration of open_clip: {error!r}; fetch it again") from error
    if name := text.get("hf_model_name"):
        raise UnusableWeightsError(f"{file}: open_clip would look its text tower {name} up on the model hub")
    if ":" in (name := vision.get("timm_model_name") or ""):
        raise UnusableWeightsError(f"{file}: timm would look its image tower {name} up elsewhere")
    return settings


@contextmanager
def _silence() -> Iterator[None]:
    """open_clip logs through the root logger, and would give it a handler that prints other libraries' messages."""
    root, before = logging.getLogger(), logging.root.manager.disable
    handler = logging.NullHandler()
    root.addHandler(handler)
    logging.disable(max(before, logging.WARNING))
    try:
        yield
    finally:
        logging.disable(before)
        root.removeHandler(handler)
