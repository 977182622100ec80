"""Masks from boxes by SAM 2 (Ravi et al., arXiv:2408.00714), frame by frame, in the format of transformers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from models.box_prompts import segment_boxes, segmentations
from models.pretrained import load_network, load_processor
from models.protocols import Box, Detection, Image, Keyframe, Segmentation
from models.torch_device import HubConfig, placed


class Sam2:
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

        folder = root / config.model
        self._batch = config.batch
        self._device, self._dtype = placed(config)
        self._processor = load_processor(Sam2ImageProcessor, folder, config)
        self._network = load_network(Sam2Model, folder, config.model_copy(update={"precision": "float32"}))
        # In bfloat16 a box's corners would be a pixel off; all but the encoder is small anyway.
        self._network.vision_encoder.to(self._dtype)

    def segment(
        self, clips: Sequence[Sequence[Keyframe]], detections: Sequence[Sequence[Sequence[Detection]]]
    ) -> list[list[list[Segmentation]]]:
        """One segmentation per detection, at the image's size; the score is SAM 2's own prediction of its mask's IoU.

        Raises:
            ValueError: if detections and keyframes do not match in number.
        """
        return segment_boxes(clips, detections, self._batch, self._segment_frames)

    def _segment_frames(self, images: Sequence[Image], boxes: Sequence[Sequence[Box]]) -> list[list[Segmentation]]:
        import torch

        with torch.inference_mode():
            # Copies, since PyTorch takes no read-only arrays; without the format a tiny image may be read as CHW.
            writable = [np.array(image) for image in images]
            inputs = self._processor(writable, input_data_format="channels_last", return_tensors="pt")
            pixels = inputs["pixel_values"].to(self._device, self._dtype)
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

    def _decode(
        self, embeddings: list[Any], resized: Sequence[int], size: tuple[int, ...], boxes: Sequence[Box]
    ) -> list[Segmentation]:
        import torch

        scale = np.array([resized[1] / size[1], resized[0] / size[0]] * 2)
        prompts = torch.from_numpy((np.array(boxes) * scale).astype(np.float32)).to(self._device)
        found = self._network(image_embeddings=embeddings, input_boxes=prompts[None], multimask_output=False)
        masks = (self._processor.post_process_masks([logits[None]], [size])[0][0, 0] for logits in found.pred_masks[0])
        return segmentations(masks, found.iou_scores[0, :, 0])
