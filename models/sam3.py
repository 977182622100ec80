"""Subjects by name, with masks and followed through the keyframes, by SAM 3 (arXiv:2511.16719) in transformers."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from models.masks import box_of
from models.pretrained import load_network, load_processor
from models.protocols import Detection, Image, Keyframe
from models.torch_device import HubConfig, placed

DUPLICATE_IOU = 0.1
"""Of masks that one word finds in a picture and that overlap more than this, the best stays (SAM 3's own choice)."""


class Sam3:
    """A detector that segments and tracks: in each keyframe it looks for the words anew and follows what it knows.

    What it finds is matched with what it follows, so one subject has one ``instance`` through the clip. It looks
    forward in time alone: a subject begins where it is first found.
    """

    class_free = False

    class Config(HubConfig):
        """Options of ``backend: sam3``."""

        backend: Literal["sam3"] = "sam3"
        """Name of this backend."""
        model: str = "facebook/sam3"
        """Folder under `models.root`; on the model hub, the name of the repository to fetch it from."""
        min_score: float = Field(0.7, gt=0, lt=1)
        """Score that a subject must be found with once in the clip, to be followed from there."""
        max_objects: int = Field(12, ge=1)
        """Subjects that are followed in a clip; in the keyframe that has more, the best ones."""
        default_words: tuple[str, ...] = Field(("person", "dog", "cat", "bird", "horse", "vehicle"), min_length=1)
        """What to look for in a clip that has no words."""

    def __init__(self, config: Config, root: Path) -> None:
        from transformers import Sam3VideoModel, Sam3VideoProcessor

        self.config = config
        folder = root / config.model
        self._device, self._dtype = placed(config)
        self._network = load_network(Sam3VideoModel, folder, config)
        self._processor = load_processor(Sam3VideoProcessor, folder, config)
        self._embeddings: Iterator[Any] = iter(())
        self._adapt()

    def detect(
        self, clips: Sequence[Sequence[Keyframe]], words: Sequence[Sequence[str]]
    ) -> list[list[list[Detection]]]:
        """Detections with their masks as ``prior``, at the image's size, and ``instance`` unique in the clip.

        The score, in [0, 1], is the one that the subject was first found with or, if less, how sure the network is
        that it is there still.
        """
        asked = [
            (clip, tuple(dict.fromkeys(clip_words)) or self.config.default_words)
            for clip, clip_words in zip(clips, words, strict=True)
        ]
        self._embeddings = self._embed([keyframe.image for clip in clips for keyframe in clip])
        return [self._detect(clip, clip_words) for clip, clip_words in asked]

    def _detect(self, clip: Sequence[Keyframe], words: Sequence[str]) -> list[list[Detection]]:
        import torch

        session = self._processor.init_video_session(inference_device=self._device, dtype=self._dtype)
        self._processor.add_text_prompt(session, list(words))
        for index in range(len(clip)):
            # The session counts its frames; their pixels are on their way through the encoder.
            session.add_new_frame(torch.empty(0), index)
        found = []
        for index, keyframe in enumerate(clip):
            output = self._network(inference_session=session, frame_idx=index)
            found.append(self._detections(session, output, keyframe.image.shape[:2]))
        return found

    def _detections(self, session: Any, output: Any, size: tuple[int, ...]) -> list[Detection]:
        output.obj_id_to_mask = {number: mask.float() for number, mask in output.obj_id_to_mask.items()}
        # Its boxes are older than its masks, of which it then cuts off what others cover.
        finished = self._processor.postprocess_outputs(session, output, original_sizes=[list(size)])
        found = []
        for number, mask in zip(finished["object_ids"].tolist(), finished["masks"].cpu().numpy(), strict=True):
            if mask.any():
                score = min(output.obj_id_to_score[number], output.obj_id_to_tracker_score[number])
                word = session.prompts[session.obj_id_to_prompt_id[number]]
                found.append(Detection(word, box_of(mask), min(max(score, 0.0), 1.0), mask.copy(), number))
        return found

    def _adapt(self) -> None:
        """Make transformers' network fit for keyframes, offline, in batches."""
        network, config = self._network, self.config
        network.new_det_thresh = config.min_score
        network.score_threshold_detection = min(network.score_threshold_detection, config.min_score)
        network.max_num_objects = config.max_objects
        # It would warn in every keyframe that has more.
        logging.getLogger(type(network).__module__).setLevel(logging.ERROR)
        # It takes back what the words no longer find, counted in frames of a video; keyframes lie far apart. (And the
        # masks of a frame in which it does so belong to the wrong subjects.)
        network.hotstart_delay = 0
        # Suppression and hole filling would fetch code from the hub, and be left out without it.
        network.det_nms_thresh = 0.0
        network.fill_hole_area = 0
        find = network.run_detection

        def find_once(inference_session: Any, vision_embeds: Any) -> dict[int, dict[str, Any]]:
            by_prompt = find(inference_session=inference_session, vision_embeds=vision_embeds)
            return {prompt: without_duplicates(found) for prompt, found in by_prompt.items()}

        network.run_detection = find_once
        # It encodes one frame at a time.
        network.detector_model.get_vision_features = lambda pixel_values: next(self._embeddings)

    def _embed(self, images: Sequence[Image]) -> Iterator[Any]:
        """The encoder's output for each picture, a batch ahead."""
        import torch

        encode = self._network.detector_model.vision_encoder
        for start in range(0, len(images), self.config.batch):
            pixels = self._processor.image_processor(
                images=list(images[start : start + self.config.batch]),
                input_data_format="channels_last",
                return_tensors="pt",
            )["pixel_values"]
            with torch.inference_mode():
                output = encode(pixels.to(self._device, self._dtype))
            for place in range(len(pixels)):
                yield type(output)(
                    last_hidden_state=output.last_hidden_state[place : place + 1],
                    fpn_hidden_states=tuple(level[place : place + 1] for level in output.fpn_hidden_states),
                    fpn_position_encoding=tuple(level[:1] for level in output.fpn_position_encoding),
                )


def without_duplicates(found: dict[str, Any]) -> dict[str, Any]:
    """What one word finds in a picture, less the masks that overlap a better one by more than :data:`DUPLICATE_IOU`.

    Args:
        found: tensors that agree in their first size: ``mask`` holds logits of shape ``(found, height, width)``,
            ``scores`` has the shape ``(found,)``.

    Returns:
        The same, in the same order, without the duplicates.
    """
    masks = found["mask"].flatten(1) > 0
    kept: list[int] = []
    for index in found["scores"].float().argsort(descending=True, stable=True).tolist():
        rivals = masks[kept]
        union = (rivals | masks[index]).sum(1).clamp(min=1)
        if not ((rivals & masks[index]).sum(1) > DUPLICATE_IOU * union).any():
            kept.append(index)
    return {name: tensor[sorted(kept)] for name, tensor in found.items()}
