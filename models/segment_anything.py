"""Masks from boxes by Segment Anything (Kirillov et al., arXiv:2304.02643), its authors' code and checkpoints."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Literal

import numpy as np

from models.box_prompts import BoxSegmenter, segmentations
from models.pretrained import UnusableWeightsError, refuse_missing
from models.protocols import Box, Image, Segmentation
from models.registry import Repository
from models.torch_device import TorchConfig, placed

REPOSITORY = "ybelkada/segment-anything"


class SegmentAnything(BoxSegmenter):
    """One mask per detection; an image without detections costs nothing.

    It is the mask of the network's single-mask token: the other three are guesses at what an ambiguous prompt means
    (the whole, a part, a part of it), and where a box means the whole, the surest of them may be a part.
    """

    class Config(TorchConfig):
        """Options of ``backend: segment_anything``."""

        backend: Literal["segment_anything"] = "segment_anything"
        """Name of this backend."""
        architecture: Literal["vit_b", "vit_l", "vit_h"] = "vit_b"
        """Size of the image encoder; it must be the checkpoint's."""
        file: str = f"{REPOSITORY}/checkpoints/sam_vit_b_01ec64.pth"
        """Checkpoint under `models.root`; its neighbours are `sam_vit_l_0b3195.pth` and `sam_vit_h_4b8939.pth`."""

        def weights(self, root: Path) -> list[Path]:
            """The checkpoint."""
            return [root / self.file]

        def repositories(self) -> list[Repository]:
            """The repository that holds the checkpoint; empty for a file from elsewhere."""
            inside = self.file.removeprefix(f"{REPOSITORY}/")
            return [] if inside == self.file else [Repository(REPOSITORY, (inside,))]

    def __init__(self, config: SegmentAnything.Config, root: Path) -> None:
        from segment_anything import sam_model_registry
        from segment_anything.utils.transforms import ResizeLongestSide

        super().__init__(config.batch)
        self._device, self._dtype = placed(config)
        network = sam_model_registry[config.architecture]()
        _load(network, root / config.file, config)
        self._network = network.eval().requires_grad_(False).to(self._device)
        # In bfloat16 a box's corners would be a pixel off; all but the encoder is small anyway.
        self._network.image_encoder.to(self._dtype)
        self._resize = ResizeLongestSide(network.image_encoder.img_size)

    def _segment_frames(self, images: Sequence[Image], boxes: Sequence[Sequence[Box]]) -> list[list[Segmentation]]:
        import torch

        resized = [torch.from_numpy(self._resize.apply_image(image)).permute(2, 0, 1) for image in images]
        with torch.inference_mode():
            pixels = torch.stack([self._network.preprocess(image.to(self._device)) for image in resized])
            embeddings = self._network.image_encoder(pixels.to(self._dtype)).float()
            return [
                self._decode(embedding[None], small.shape[-2:], image.shape[:2], of_image)
                for embedding, small, image, of_image in zip(embeddings, resized, images, boxes, strict=True)
            ]

    def _decode(
        self, embedding: Any, resized: Sequence[int], size: tuple[int, ...], boxes: Sequence[Box]
    ) -> list[Segmentation]:
        import torch

        prompts = torch.from_numpy(self._resize.apply_boxes(np.array(boxes), size).astype(np.float32))
        sparse, dense = self._network.prompt_encoder(points=None, boxes=prompts.to(self._device), masks=None)
        found, ious = self._network.mask_decoder(
            image_embeddings=embedding,
            image_pe=self._network.prompt_encoder.get_dense_pe(),
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            multimask_output=False,
        )
        masks = (self._network.postprocess_masks(logits[None], resized, size)[0, 0] > 0 for logits in found)
        return segmentations(masks, ious[:, 0])


def _load(network: Any, file: Path, config: SegmentAnything.Config) -> None:
    import torch

    try:
        tensors = torch.load(file, map_location="cpu", weights_only=True)
    except (RuntimeError, UnpicklingError, EOFError) as error:
        raise UnusableWeightsError(f"{config.backend}: {file} is no checkpoint of tensors: {error}") from error
    if not isinstance(tensors, dict):
        raise UnusableWeightsError(f"{config.backend}: {file} is no checkpoint of tensors, but {type(tensors)}")
    own = network.state_dict()
    if strange := sorted(
        name for name, tensor in tensors.items() if name not in own or tensor.shape != own[name].shape
    ):
        raise UnusableWeightsError(
            f"{config.backend}: {file} is no {config.architecture}: it differs in {len(strange)} tensors, such as "
            f"{strange[0]}; set `architecture` to the checkpoint's"
        )
    refuse_missing(file, own.keys() - tensors.keys())
    network.load_state_dict(tensors)
