"""What the SAM and SAM 2 of transformers share as segmenters: only their encoders and outputs differ."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from models.box_prompts import BoxSegmenter, segmentations
from models.pretrained import load_network, load_processor
from models.protocols import Box, Image, Segmentation
from models.torch_device import HubConfig, placed


class TransformersSam(BoxSegmenter):
    """A segmenter of a network with a vision encoder, which alone runs in the config's precision, and a processor."""

    def __init__(self, config: HubConfig, root: Path, network: Any, processor: Any) -> None:
        """``network`` and ``processor`` are the classes of transformers to load."""
        super().__init__(config.batch)
        folder = root / config.model
        self._device, self._dtype = placed(config)
        self._processor = load_processor(processor, folder, config)
        self._network = load_network(network, folder, config.model_copy(update={"precision": "float32"}))
        # In bfloat16 a box's corners would be a pixel off; all but the encoder is small anyway.
        self._network.vision_encoder.to(self._dtype)

    def _inputs(self, images: Sequence[Image]) -> Any:
        """What the processor makes of images, with ``pixel_values`` on the device."""
        # Copies, since PyTorch takes no read-only arrays; without the format a tiny image may be read as CHW.
        writable = [np.array(image) for image in images]
        inputs = self._processor(writable, input_data_format="channels_last", return_tensors="pt")
        inputs["pixel_values"] = inputs["pixel_values"].to(self._device, self._dtype)
        return inputs

    def _decode(
        self,
        embeddings: Any,
        resized: Sequence[int],
        size: tuple[int, ...],
        boxes: Sequence[Box],
        *unpadding: Any,
    ) -> list[Segmentation]:
        """Masks of one image from its embeddings.

        ``resized`` is the size at which the network saw the image, ``unpadding`` what else the processor wants to know
        in order to bring masks back to ``size``.
        """
        import torch

        scale = np.array([resized[1] / size[1], resized[0] / size[0]] * 2)
        prompts = torch.from_numpy((np.array(boxes) * scale).astype(np.float32)).to(self._device)
        found = self._network(image_embeddings=embeddings, input_boxes=prompts[None], multimask_output=False)
        masks = (
            self._processor.post_process_masks([logits[None]], [size], *unpadding)[0][0, 0]
            for logits in found.pred_masks[0]
        )
        return segmentations(masks, found.iou_scores[0, :, 0])
