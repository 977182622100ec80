"""New pictures of a subject by FLUX.1 with the image prompts of FLUX.1 Redux (Black Forest Labs, 2024)."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from models.diffusion import DiffusionConfig, DiffusionEditor, Size, as_pillow, load_pipeline
from models.protocols import Image
from models.registry import Repository


class FluxRedux(DiffusionEditor):
    """The subject's picture, as a few hundred tokens behind the prompt's, tells FLUX.1 what to paint.

    It keeps kind, colours and materials better than the individual, and its picture outweighs the prompt unless
    ``likeness`` is lowered.
    """

    class Config(DiffusionConfig):
        """Options of ``backend: flux_redux``."""

        backend: Literal["flux_redux"] = "flux_redux"
        """Name of this backend."""
        model: str = "black-forest-labs/FLUX.1-Redux-dev"
        """Image encoder: folder under `models.root`; on the model hub, the repository to fetch it from."""
        base: str = "black-forest-labs/FLUX.1-dev"
        """The network that paints: folder under `models.root`; on the model hub, the repository to fetch it from."""
        base_revision: str | None = None
        """Commit, branch or tag of `base` to fetch; null is the one that `models/weights/catalogue.yaml` pins."""
        likeness: float = Field(1.0, ge=0)
        """Factor of the picture's tokens: below 1, the prompt has more to say."""
        guidance: float = Field(2.5, ge=0)
        """Strength of the guidance that the network has been distilled with."""

        def weights(self, root: Path) -> list[Path]:
            """Both repositories' folders."""
            return [root / self.model, root / self.base]

        def repositories(self) -> list[Repository]:
            """Both repositories."""
            return [
                Repository(self.model, self.files, self.revision),
                Repository(self.base, self.files, self.base_revision),
            ]

    config: Config

    def __init__(self, config: Config, root: Path) -> None:
        from diffusers import FluxPipeline, FluxPriorReduxPipeline

        super().__init__(config, load_pipeline(FluxPipeline, root / config.base, config))
        self._prior = load_pipeline(FluxPriorReduxPipeline, root / config.model, config)

    def _paint(self, subjects: list[Image], prompts: list[str], seeded: list[Any], size: Size) -> Any:
        import torch

        # The prior's own call adds the pictures of a batch up, and has no encoders for prompts.
        with torch.no_grad():
            seen = self._prior.encode_image(as_pillow(subjects), self._prior._execution_device, 1)
            picture_tokens = self.config.likeness * self._prior.image_embedder(seen).image_embeds
            self._prior.maybe_free_model_hooks()
            text_tokens, pooled, _ = self._pipeline.encode_prompt(prompts)
        height, width = size
        return self._pipeline(
            prompt_embeds=torch.cat([text_tokens, picture_tokens.to(text_tokens)], dim=1),
            pooled_prompt_embeds=pooled,
            generator=seeded,
            height=height,
            width=width,
            num_inference_steps=self.config.steps,
            guidance_scale=self.config.guidance,
            output_type="np",
        ).images
