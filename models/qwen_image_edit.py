"""New pictures of a subject by Qwen-Image-Edit (Wu et al., arXiv:2508.02324)."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from models.diffusion import DiffusionConfig, DiffusionEditor, Size, as_pillow, load_pipeline
from models.protocols import Image


class QwenImageEdit(DiffusionEditor):
    """The subject's picture is seen twice: by the language model that reads the prompt, and as latents."""

    class Config(DiffusionConfig):
        """Options of ``backend: qwen_image_edit``."""

        backend: Literal["qwen_image_edit"] = "qwen_image_edit"
        """Name of this backend."""
        model: str = "Qwen/Qwen-Image-Edit-2509"
        """Folder under `models.root`; on the model hub, the name of the repository to fetch it from."""
        batch: int = Field(1, ge=1, le=1)
        """Pictures that go through the pipeline at once: it takes one."""
        steps: int = Field(40, ge=1)
        """Denoising steps."""
        guidance: float = Field(4.0, ge=0)
        """Classifier-free guidance: each step costs twice as much where it is more than 1."""

    def __init__(self, config: Config, root: Path) -> None:
        from diffusers import QwenImageEditPlusPipeline

        super().__init__(config, load_pipeline(QwenImageEditPlusPipeline, root / config.model, config))
        self._pipeline.text_encoder.register_forward_pre_hook(_say_where_pictures_are, with_kwargs=True)

    def _paint(self, subjects: list[Image], prompts: list[str], seeded: list[Any], size: Size) -> Any:
        height, width = size
        return self._pipeline(
            image=as_pillow(subjects),
            prompt=prompts,
            negative_prompt=" " if self.config.guidance > 1 else None,
            true_cfg_scale=self.config.guidance,
            generator=seeded,
            height=height,
            width=width,
            num_inference_steps=self.config.steps,
            output_type="np",
        ).images


def _say_where_pictures_are(
    text_encoder: Any, args: tuple[Any, ...], inputs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Adds what transformers 5 needs to lay picture tokens out in two dimensions, as in training.

    The pipeline leaves it out, and they would silently lie in a row: huggingface/diffusers#14194.
    """
    pictures = inputs["input_ids"] == text_encoder.config.image_token_id
    return args, {"mm_token_type_ids": pictures.long(), **inputs}
