"""New pictures of a subject by FLUX.1 Kontext (Black Forest Labs, arXiv:2506.15742)."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from models.diffusion import DiffusionConfig, DiffusionEditor, Size, as_pillow, load_pipeline
from models.protocols import Image


class FluxKontext(DiffusionEditor):
    """The subject's picture is context that the prompt edits: "the same dog, asleep on a sofa"."""

    class Config(DiffusionConfig):
        """Options of ``backend: flux_kontext``."""

        backend: Literal["flux_kontext"] = "flux_kontext"
        """Name of this backend."""
        model: str = "black-forest-labs/FLUX.1-Kontext-dev"
        """Folder under `models.root`; on the model hub, the name of the repository to fetch it from."""
        steps: int = Field(28, ge=1)
        """Denoising steps."""
        guidance: float = Field(2.5, ge=0)
        """Strength of the guidance that the network has been distilled with."""

    def __init__(self, config: Config, root: Path) -> None:
        from diffusers import FluxKontextPipeline

        super().__init__(config, load_pipeline(FluxKontextPipeline, root / config.model, config))

    def _paint(self, subjects: list[Image], prompts: list[str], seeded: list[Any], size: Size) -> Any:
        height, width = size
        # The pipeline would choose sizes of its own: for its picture by `max_area`, for ours from a list.
        return self._pipeline(
            image=as_pillow(subjects),
            prompt=prompts,
            generator=seeded,
            height=height,
            width=width,
            max_area=height * width,
            _auto_resize=False,
            num_inference_steps=self.config.steps,
            guidance_scale=self.config.guidance,
            output_type="np",
        ).images
