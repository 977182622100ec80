"""Parts of a picture painted anew by FLUX.1 Fill (Black Forest Labs, 2024)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import Field

from models.diffusion import (
    DiffusionConfig,
    Size,
    as_pictures,
    as_pillow,
    bounded_aspect,
    generators,
    load_pipeline,
    margins,
    multiple_of,
    resized,
    same_size,
    working_size,
)
from models.protocols import FillRequest, Image, Mask


class FluxFill:
    """An inpainter that follows the prompt: it removes, extends, or gives a subject new surroundings.

    It works on about ``side`` times ``side`` pixels (never more), whatever the picture's size, and only the pixels
    inside the mask are taken from what it paints. A picture depends on its request and the options alone, up to
    rounding.
    """

    class Config(DiffusionConfig):
        """Options of ``backend: flux_fill``."""

        backend: Literal["flux_fill"] = "flux_fill"
        """Name of this backend."""
        model: str = "black-forest-labs/FLUX.1-Fill-dev"
        """Folder under `models.root`; on the model hub, the name of the repository to fetch it from."""
        guidance: float = Field(30.0, ge=0)
        """Strength of the guidance that the network has been distilled with."""

    def __init__(self, config: Config, root: Path) -> None:
        from diffusers import FluxFillPipeline

        self.config = config
        self._pipeline = load_pipeline(FluxFillPipeline, root / config.model, config)
        self._multiple = multiple_of(self._pipeline)

    def fill(self, requests: Sequence[FillRequest]) -> list[Image]:
        """One picture per request, of its size; pixels outside the mask are bit-identical to the request's."""
        filled = [request.image.copy() for request in requests]
        open_requests = [index for index, request in enumerate(requests) if request.mask.any()]
        sizes = [working_size(requests[index].mask.shape, self.config.side, self._multiple) for index in open_requests]
        for chosen in same_size(sizes, self.config.batch):
            size, indices = sizes[chosen[0]], [open_requests[position] for position in chosen]
            painted = self._paint([requests[index] for index in indices], size)
            for index, picture in zip(indices, painted, strict=True):
                mask = requests[index].mask
                filled[index][mask] = _without_margins(picture, mask.shape)[mask]
        return filled

    def _paint(self, requests: Sequence[FillRequest], size: Size) -> list[Image]:
        canvases = [_canvas(request, size) for request in requests]
        height, width = size
        painted = self._pipeline(
            image=as_pillow([image for image, _ in canvases]),
            mask_image=as_pillow([mask * np.uint8(255) for _, mask in canvases]),
            prompt=[request.prompt for request in requests],
            generator=generators([request.seed for request in requests]),
            height=height,
            width=width,
            num_inference_steps=self.config.steps,
            guidance_scale=self.config.guidance,
            output_type="np",
        ).images
        return as_pictures(painted, self.config)


def _canvas(request: FillRequest, size: Size) -> tuple[Image, Mask]:
    """Image and mask at the network's size. A picture wider than 21:9 has margins, which are painted too."""
    around = margins(request.mask.shape, bounded_aspect(request.mask.shape))
    image = resized(np.pad(request.image, (*around, (0, 0)), mode="edge"), size)
    mask = np.pad(request.mask, around, constant_values=True)
    # A pixel that holds anything of the masked ones is masked: nothing of what is to go may show.
    return image, np.abs(resized(mask.astype(np.float32), size)) > 1e-6


def _without_margins(painted: Image, shape: Size) -> Image:
    """What the network painted at the size of the picture asked for."""
    height, width = shape
    (above, below), (left, right) = margins(shape, bounded_aspect(shape))
    whole = resized(painted, (above + height + below, left + width + right))
    return whole[above : above + height, left : left + width]
