"""Masks from boxes by SAM 2 (Ravi et al., arXiv:2408.00714), frame by frame, in the format of transformers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from models.protocols import Box, Image, Segmentation
from models.torch_device import HubConfig
from models.transformers_sam import TransformersSam


class Sam2(TransformersSam):
    """One mask per detection; an image without detections costs nothing.

    It is the mask of the network's single-mask token, as SAM 2 was trained for boxes; where that mask is unstable, the
    network itself puts the surest of its other three in its place (``dynamic_multimask_via_stability``).
    """

    class Config(HubConfig):
        """Options of ``backend: sam2``."""

        backend: Literal["sam2"] = "sam2"
        """Name of this backend."""
        model: str = "facebook/sam2.1-hiera-large"
        """Folder under `models.root` with a SAM 2: sam2.1-hiera-tiny, -small, -base-plus or -large."""

    def __init__(self, config: Sam2.Config, root: Path) -> None:
        from transformers import Sam2ImageProcessor, Sam2Model

        super().__init__(config, root, Sam2Model, Sam2ImageProcessor)

    def _segment_frames(self, images: Sequence[Image], boxes: Sequence[Sequence[Box]]) -> list[list[Segmentation]]:
        import torch

        with torch.inference_mode():
            pixels = self._inputs(images)["pixel_values"]
            levels = self._embeddings(pixels)
            return [
                self._decode([level[place, None] for level in levels], pixels.shape[-2:], image.shape[:2], of_image)
                for place, (image, of_image) in enumerate(zip(images, boxes, strict=True))
            ]

    def _embeddings(self, pixels: Any) -> list[Any]:
        """What ``Sam2Model.get_image_embeddings`` gives, in float32 from the encoder on."""
        fine, middle, coarse = (level.float() for level in self._network.vision_encoder(pixels).fpn_hidden_states)
        decoder = self._network.mask_decoder
        no_memory = self._network.no_memory_embedding.reshape(1, -1, 1, 1)
        return [decoder.conv_s0(fine), decoder.conv_s1(middle), coarse + no_memory]
