"""New pictures of a subject by FLUX.2 klein (Black Forest Labs, 2026)."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from models.diffusion import DiffusionConfig, DiffusionEditor, Size, as_pillow, load_pipeline
from models.protocols import Image


class Flux2Klein(DiffusionEditor):
    """The subject's picture is a reference of the prompt. Distilled to four steps."""

    class Config(DiffusionConfig):
        """Options of ``backend: flux2_klein``."""

        backend: Literal["flux2_klein"] = "flux2_klein"
        """Name of this backend."""
        model: str = "black-forest-labs/FLUX.2-klein-4B"
        """Folder under `models.root`; on the model hub, the name of the repository to fetch it from."""
        steps: int = Field(4, ge=1)
        """Denoising steps: 4 for a distilled network, about 50 for a base network."""
        guidance: float = Field(1.0, ge=0)
        """Classifier-free guidance of a base network, about 4. A distilled network ignores it."""

    def __init__(self, config: Config, root: Path) -> None:
        from diffusers import Flux2KleinPipeline

        super().__init__(config, load_pipeline(Flux2KleinPipeline, root / config.model, config))
        self._pipeline.prepare_image_latents = _one_reference_each(self._pipeline.prepare_image_latents)

    def _paint(self, subjects: list[Image], prompts: list[str], seeded: list[Any], size: Size) -> Any:
        height, width = size
        return self._pipeline(
            image=as_pillow(subjects),
            prompt=prompts,
            generator=seeded,
            height=height,
            width=width,
            num_inference_steps=self.config.steps,
            # Distilled networks would warn of any other.
            guidance_scale=1.0 if self._pipeline.config.is_distilled else self.config.guidance,
            output_type="np",
        ).images


def _one_reference_each(prepare: Any) -> Any:
    """The pipeline's ``prepare_image_latents``, but picture i belongs to prompt i.

    The pipeline itself gives all pictures of a call to every prompt.
    """

    def prepared(images: list[Any], batch_size: int, **rest: Any) -> tuple[Any, ...]:
        import torch

        each = [prepare(images=[image], batch_size=1, **rest) for image in images]
        return tuple(torch.cat(parts) for parts in zip(*each, strict=True))

    return prepared
