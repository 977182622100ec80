"""Subjects by OWLv2 (Minderer et al., arXiv:2306.09683), which compares every patch of an image with every word."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field

from models.open_vocabulary import OpenVocabularyConfig, corners, detections, distinct
from models.pretrained import UnusableWeightsError, load_network, load_processor
from models.protocols import Detection, Image, Keyframe, Vector
from models.torch_device import placed


class Owlv2:
    """Boxes of the subjects that a clip's words name. A box goes to the word that fits it best, scored by that fit."""

    class_free = False

    class Config(OpenVocabularyConfig):
        """Options of ``backend: owlv2``."""

        backend: Literal["owlv2"] = "owlv2"
        """Name of this backend."""
        model: str = "google/owlv2-base-patch16-ensemble"
        """Folder under `models.root`, and repository on the model hub: any OWLv2 for transformers."""
        min_score: float = Field(0.2, ge=0, le=1)
        """How well a word must fit a box for it to be reported."""
        prompt: str = Field("a photo of a {}", pattern=r"^[^{}]*\{\}[^{}]*$")
        """What the network reads for a word, which stands in place of {}: it was trained on such sentences."""

    def __init__(self, config: Owlv2.Config, root: Path) -> None:
        from transformers import AutoTokenizer, Owlv2ForObjectDetection, Owlv2ImageProcessor

        folder = root / config.model
        self._config = config
        self._device, self._dtype = placed(config)
        # In bfloat16 the places of the boxes would be off by up to 0.4 % of the image. So the weights stay in float32,
        # and the multiplications run in what the config says.
        self._network = load_network(
            Owlv2ForObjectDetection, folder, config.model_copy(update={"precision": "float32"})
        )
        self._processor = load_processor(Owlv2ImageProcessor, folder, config)
        self._tokenizer = load_processor(AutoTokenizer, folder, config)
        options = self._network.config.text_config
        self._longest = options.max_position_embeddings
        # The network takes the highest token for the end of a text. Without its files, transformers makes a tokenizer
        # that knows no word.
        if self._tokenizer.eos_token_id != options.vocab_size - 1:
            raise UnusableWeightsError(f"{config.backend}: {folder} holds no tokenizer of the network; fetch it again")

    def detect(
        self, clips: Sequence[Sequence[Keyframe]], words: Sequence[Sequence[str]]
    ) -> list[list[list[Detection]]]:
        """Detections per clip and keyframe, best first, boxes inside the image, scores in [0, 1].

        A word with its prompt is read up to the network's text limit (16 tokens). An empty list asks for the
        config's ``default_words``.

        Raises:
            ValueError: if there are not as many word lists as clips.
        """
        asked = [
            (keyframe.image, tuple(dict.fromkeys(names or self._config.default_words)))
            for keyframes, names in zip(clips, words, strict=True)
            for keyframe in keyframes
        ]
        found = iter(
            answer
            for start in range(0, len(asked), self._config.batch)
            for answer in self._answers(asked[start : start + self._config.batch])
        )
        return [[next(found) for _ in keyframes] for keyframes in clips]

    def _answers(self, asked: Sequence[tuple[Image, tuple[str, ...]]]) -> list[list[Detection]]:
        import torch

        pixels = torch.cat([self._pixels(image) for image, _ in asked])
        tokens, there = self._queries([words for _, words in asked])
        with torch.inference_mode():
            with torch.autocast(self._device.type, self._dtype, self._dtype != torch.float32):
                outputs = self._network(pixel_values=pixels, input_ids=tokens, attention_mask=there)
            # Once more in float32, and cheap: what the network gives here is rounded to the config's precision.
            features = outputs.image_embeds.float()
            centred = self._network.box_predictor(features.flatten(1, 2), features).cpu().numpy()
            scores = outputs.logits.float().sigmoid().cpu().numpy()
        return [
            self._found(words, fit[:, : len(words)], boxes, image.shape)
            for (image, words), fit, boxes in zip(asked, scores, centred, strict=True)
        ]

    def _pixels(self, image: Image) -> Any:
        """One image as the network takes it; alone, since a 4K frame is padded to a square in float32 on the way."""
        import torch

        picture = torch.tensor(image, device=self._device).permute(2, 0, 1)
        return self._processor(picture, input_data_format="channels_first", return_tensors="pt")["pixel_values"]

    def _queries(self, words: Sequence[Sequence[str]]) -> tuple[Any, Any]:
        """Tokens and their mask, of shape ``(images * most words, longest word)``.

        Images with fewer words get rows of zeros, which the network takes for no query; the processor of transformers
        would fill them with queries for a space.
        """
        import torch

        distinct_words = list(dict.fromkeys(word for per_image in words for word in per_image))
        encoded = self._tokenizer(
            [self._config.prompt.format(word) for word in distinct_words],
            padding=True,
            truncation=True,
            max_length=self._longest,
            return_tensors="pt",
        )
        rows = {word: row for row, word in enumerate(distinct_words)}
        most = max(map(len, words))
        tokens = torch.zeros(len(words), most, encoded["input_ids"].shape[-1], dtype=torch.long)
        there = torch.ones_like(tokens)
        for image, per_image in enumerate(words):
            chosen = [rows[word] for word in per_image]
            tokens[image, : len(chosen)] = encoded["input_ids"][chosen]
            there[image, : len(chosen)] = encoded["attention_mask"][chosen]
        return tokens.flatten(0, 1).to(self._device), there.flatten(0, 1).to(self._device)

    def _found(self, words: Sequence[str], fit: Vector, centred: Vector, size: tuple[int, ...]) -> list[Detection]:
        """Detections from the fit of each box to each word, of shape ``(boxes, words)``, and the boxes in [0, 1].

        The network sees a square with the image in its top left corner, and places its boxes in that square.
        """
        best = fit.argmax(axis=1)
        scores = fit[np.arange(len(fit)), best]
        sure = scores >= self._config.min_score
        side = max(size[:2])
        found = detections(words, best[sure], scores[sure], corners(centred[sure], side, side))
        return distinct(found, size, self._config.nms_iou)
