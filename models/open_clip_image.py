"""What a subject looks like, by the image tower of a network of open_clip (CLIP, SigLIP)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from models.open_clip_network import OpenClipConfig, OpenClipNetwork
from models.protocols import Image, Mask, Vector
from models.registry import check_weights
from models.subject_square import subject_square


class OpenClipImage:
    """Embeds the subject alone: its box padded to a square, what lies outside the mask in the mean colour."""

    class Config(OpenClipConfig):
        """Options of ``backend: open_clip``."""

        backend: Literal["open_clip"] = "open_clip"
        """Name of this backend."""

    def __init__(self, config: OpenClipImage.Config, root: Path) -> None:
        check_weights(config, root)
        self._network = OpenClipNetwork(root / config.model, config)

    def embed(self, images: Sequence[Image], masks: Sequence[Mask]) -> list[Vector]:
        """Unit vectors of the network's length (768 for ViT-L/14); all empty masks have the same one.

        Raises:
            ValueError: if masks and images do not match in number or size.
        """
        colour = self._network.mean_colour
        return self._network.embed_images(
            [subject_square(image, mask, colour) for image, mask in zip(images, masks, strict=True)]
        )
