"""What subjects look like, by DINOv2 (Oquab et al., arXiv:2304.07193) or DINOv3 (Siméoni et al., arXiv:2508.10104)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from models.pretrained import UnusableWeightsError, load_network, load_processor
from models.protocols import Image, Mask, Vector
from models.registry import check_weights
from models.subject_square import subject_square
from models.torch_device import HubConfig, placed

KINDS = ("dinov2", "dinov2_with_registers", "dinov3_vit", "dinov3_convnext")
"""Values of ``model_type`` in ``config.json`` of the networks that are known here."""


class Dino:
    """Embeds the subject alone: its box padded to a square, everything outside the mask in the network's mean colour.

    Unlike CLIP's, the vectors go by looks more than by kind: two dogs are further apart.
    """

    class Config(HubConfig):
        """Options of ``backend: dino``."""

        backend: Literal["dino"] = "dino"
        """Name of this backend."""
        model: str = "facebook/dinov2-base"
        """Folder under `models.root` with a DINOv2 or DINOv3 (such as `facebook/dinov3-vitb16-pretrain-lvd1689m`); on
        the model hub, the name of the repository to fetch it from."""

    def __init__(self, config: Dino.Config, root: Path) -> None:
        check_weights(config, root)
        from transformers import AutoConfig, AutoImageProcessor, AutoModel

        folder = root / config.model
        kind = load_processor(AutoConfig, folder, config).model_type
        if kind not in KINDS:
            raise UnusableWeightsError(f"dino: {folder} holds a network of kind {kind!r}; known: {', '.join(KINDS)}")
        self._batch = config.batch
        self._device, self._dtype = placed(config)
        self._network = load_network(AutoModel, folder, config)
        self._processor = load_processor(AutoImageProcessor, folder, config)
        self._side = _side(self._processor)
        self._colour = [255 * value for value in self._processor.image_mean]

    def embed(self, images: Sequence[Image], masks: Sequence[Mask]) -> list[Vector]:
        """Unit vectors of the network's width (768 for a base one), of its class token; all empty masks have one.

        The whole square is scaled to the processor's crop; the margin that it would cut off is the subject's here.

        Raises:
            ValueError: if masks and images do not match in number or size.
        """
        import torch
        from torch.nn.functional import normalize

        squares = [subject_square(image, mask, self._colour) for image, mask in zip(images, masks, strict=True)]
        vectors: list[Vector] = []
        for start in range(0, len(squares), self._batch):
            pixels = self._processor(
                squares[start : start + self._batch],
                size={"height": self._side, "width": self._side},
                do_center_crop=False,
                input_data_format="channels_last",
                return_tensors="pt",
            )["pixel_values"]
            with torch.inference_mode():
                found = self._network(pixel_values=pixels.to(self._device, self._dtype)).pooler_output
            vectors += list(normalize(found.float(), dim=-1).cpu().numpy())
        return vectors


def _side(processor: Any) -> int:
    """Pixels of a side of the square that a processor gives the network."""
    size = processor.crop_size if processor.do_center_crop else processor.size
    return int(size.height or size.shortest_edge)
