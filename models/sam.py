"""Masks from boxes by Segment Anything (Kirillov et al., arXiv:2304.02643) in the format of transformers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from models.protocols import Box, Image, Segmentation
from models.torch_device import HubConfig
from models.transformers_sam import TransformersSam


class Sam(TransformersSam):
    """One mask per detection; an image without detections costs nothing.

    It is the mask of the network's single-mask token: the other three are guesses at what an ambiguous prompt means
    (the whole, a part, a part of it), and where a box means the whole, the surest of them may be a part.
    """

    class Config(HubConfig):
        """Options of ``backend: sam``."""

        backend: Literal["sam"] = "sam"
        """Name of this backend."""
        model: str = "facebook/sam-vit-huge"
        """Folder under `models.root` with a `SamModel`, such as sam-vit-base, -large or -huge."""

    def __init__(self, config: Sam.Config, root: Path) -> None:
        from transformers import SamImageProcessor, SamModel

        super().__init__(config, root, SamModel, SamImageProcessor)

    def _segment_frames(self, images: Sequence[Image], boxes: Sequence[Sequence[Box]]) -> list[list[Segmentation]]:
        import torch

        with torch.inference_mode():
            inputs = self._inputs(images)
            embeddings = self._network.get_image_embeddings(inputs["pixel_values"]).float()
            return [
                self._decode(embedding[None], resized, image.shape[:2], of_image, [resized])
                for embedding, resized, image, of_image in zip(
                    embeddings, inputs["reshaped_input_sizes"].tolist(), images, boxes, strict=True
                )
            ]
