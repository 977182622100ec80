"""Masks from boxes by Segment Anything (Kirillov et al., arXiv:2304.02643) in the format of transformers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from models.box_prompts import segment_boxes, segmentations
from models.pretrained import load_network, load_processor
from models.protocols import Box, Detection, Image, Keyframe, Segmentation
from models.torch_device import HubConfig, placed


class Sam:
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

        folder = root / config.model
        self._batch = config.batch
        self._device, self._dtype = placed(config)
        self._processor = load_processor(SamImageProcessor, folder, config)
        self._network = load_network(SamModel, folder, config.model_copy(update={"precision": "float32"}))
        # In bfloat16 a box's corners would be a pixel off; all but the encoder is small anyway.
        self._network.vision_encoder.to(self._dtype)

    def segment(
        self, clips: Sequence[Sequence[Keyframe]], detections: Sequence[Sequence[Sequence[Detection]]]
    ) -> list[list[list[Segmentation]]]:
        """One segmentation per detection, at the image's size; the score is SAM's own prediction of its mask's IoU.

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
            embeddings = self._network.get_image_embeddings(pixels).float()
            return [
                self._decode(embedding[None], resized, image.shape[:2], of_image)
                for embedding, resized, image, of_image in zip(
                    embeddings, inputs["reshaped_input_sizes"].tolist(), images, boxes, strict=True
                )
            ]

    def _decode(
        self, embedding: Any, resized: Sequence[int], size: tuple[int, ...], boxes: Sequence[Box]
    ) -> list[Segmentation]:
        import torch

        scale = np.array([resized[1] / size[1], resized[0] / size[0]] * 2)
        prompts = torch.from_numpy((np.array(boxes) * scale).astype(np.float32)).to(self._device)
        found = self._network(image_embeddings=embedding, input_boxes=prompts[None], multimask_output=False)
        masks = (
            self._processor.post_process_masks([logits[None]], [size], [resized])[0][0, 0]
            for logits in found.pred_masks[0]
        )
        return segmentations(masks, found.iou_scores[0, :, 0])
