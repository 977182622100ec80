"""Subjects by Grounding DINO (Liu et al., arXiv:2303.05499), which finds what a text names."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import Field

from models.open_vocabulary import OpenVocabularyConfig, corners, detections, distinct
from models.pretrained import UnusableWeightsError, load_network, load_processor
from models.protocols import Detection, Image, Keyframe, Vector
from models.torch_device import placed


@dataclass(frozen=True, slots=True)
class Prompt:
    """What one pass asks for: words in lower case, each closed by a full stop, as tokens of the text encoder."""

    tokens: tuple[int, ...]
    words: tuple[str, ...]
    """The words as they were asked for."""
    spans: tuple[tuple[int, int], ...]
    """First token and one past the last token of each word."""


class GroundingDino:
    """Boxes of the subjects that a clip's words name.

    The network says how well each box fits each token of the prompt. A word's score is the mean over its tokens, as
    in the authors' evaluation on COCO: training makes all tokens of a phrase true at once, so a dog, which only
    half of "hot dog" fits, goes to "dog". A box goes to its best word. It is found if one token of that word reaches
    ``min_score`` and the word ``min_text_score``.
    """

    class_free = False

    class Config(OpenVocabularyConfig):
        """Options of ``backend: grounding_dino``."""

        backend: Literal["grounding_dino"] = "grounding_dino"
        """Name of this backend."""
        model: str = "IDEA-Research/grounding-dino-base"
        """Folder under `models.root`, and repository on the model hub: any Grounding DINO for transformers."""
        min_score: float = Field(0.3, ge=0, le=1)
        """What the best token of a box's word must reach: the authors' box threshold."""
        min_text_score: float = Field(0.25, ge=0, le=1)
        """What a box's word must reach in the mean over its tokens: the authors' text threshold. It is the score."""

    def __init__(self, config: GroundingDino.Config, root: Path) -> None:
        from transformers import AutoTokenizer, GroundingDinoForObjectDetection, GroundingDinoImageProcessor

        folder = root / config.model
        self._config = config
        self._device, self._dtype = placed(config)
        # The network adds corrections to boxes that it keeps: in bfloat16 they would be off by 1 % of the image. So
        # the weights stay in float32, and the multiplications run in what the config says.
        precise = config.model_copy(update={"precision": "float32"})
        self._network = load_network(GroundingDinoForObjectDetection, folder, precise)
        self._processor = load_processor(GroundingDinoImageProcessor, folder, config)
        self._tokenizer = load_processor(AutoTokenizer, folder, config)
        options = self._network.config
        self._longest = min(options.max_text_len, options.text_config.max_position_embeddings)
        self._stop = self._tokenizer.convert_tokens_to_ids(".")
        # Without its files, transformers makes a tokenizer that knows no word.
        marks = {self._tokenizer.cls_token_id, self._tokenizer.sep_token_id, self._stop}
        if not marks <= set(self._network.model.special_tokens.tolist()):
            raise UnusableWeightsError(f"{config.backend}: {folder} holds no tokenizer of the network; fetch it again")

    def detect(
        self, clips: Sequence[Sequence[Keyframe]], words: Sequence[Sequence[str]]
    ) -> list[list[list[Detection]]]:
        """Detections per clip and keyframe, best first, boxes inside the image, scores in [0, 1].

        Words that the text encoder cannot take at once are asked for in several passes; a single word longer than
        that is read as far as it goes. Words that differ only in case or punctuation are found under the first one.
        An empty list asks for the config's ``default_words``.

        Raises:
            ValueError: if there are not as many word lists as clips.
        """
        asked = [(keyframes, self.prompts(names)) for keyframes, names in zip(clips, words, strict=True)]
        passes = [
            (clip, frame, prompt)
            for clip, (keyframes, prompts) in enumerate(asked)
            for frame in range(len(keyframes))
            for prompt in prompts
        ]
        found: list[list[list[Detection]]] = [[[] for _ in keyframes] for keyframes, _ in asked]
        for batch in _equal_sizes(passes, clips, self._config.batch):
            images = [clips[clip][frame].image for clip, frame, _ in batch]
            answers = self._answers(images, [prompt for _, _, prompt in batch])
            for (clip, frame, _), answer in zip(batch, answers, strict=True):
                found[clip][frame] += answer
        return [
            [
                distinct(answers, keyframe.image.shape, self._config.nms_iou)
                for keyframe, answers in zip(keyframes, per_frame, strict=True)
            ]
            for (keyframes, _), per_frame in zip(asked, found, strict=True)
        ]

    def prompts(self, words: Sequence[str]) -> list[Prompt]:
        """The passes that ask for all words, each within the text encoder's limit; for the default words if empty."""
        room = self._longest - 2
        passes: list[list[tuple[str, list[int]]]] = []
        used = room
        for phrase, word in _phrases(words or self._config.default_words).items():
            # Word by word, since the encoder's tokenizer never joins what a space parts: so the spans are known.
            tokens = self._tokenizer(phrase, add_special_tokens=False)["input_ids"][: room - 1]
            if used + len(tokens) + 1 > room:
                passes.append([])
                used = 0
            passes[-1].append((word, [*tokens, self._stop]))
            used += len(tokens) + 1
        return [self._prompt(asked) for asked in passes]

    def _prompt(self, asked: Sequence[tuple[str, list[int]]]) -> Prompt:
        tokens = [self._tokenizer.cls_token_id]
        spans = []
        for _, closed in asked:
            spans.append((len(tokens), len(tokens) + len(closed) - 1))
            tokens += closed
        return Prompt((*tokens, self._tokenizer.sep_token_id), tuple(word for word, _ in asked), tuple(spans))

    def _answers(self, images: Sequence[Image], prompts: Sequence[Prompt]) -> list[list[Detection]]:
        """What images of one size show, before suppression."""
        import torch

        longest = max(len(prompt.tokens) for prompt in prompts)
        blank = self._tokenizer.pad_token_id
        tokens = [[*prompt.tokens, *[blank] * (longest - len(prompt.tokens))] for prompt in prompts]
        there = [[position < len(prompt.tokens) for position in range(longest)] for prompt in prompts]
        inputs = self._processor(
            [torch.tensor(image, device=self._device).permute(2, 0, 1) for image in images],
            input_data_format="channels_first",
            return_tensors="pt",
        )
        with torch.inference_mode(), torch.autocast(self._device.type, self._dtype, self._dtype != torch.float32):
            outputs = self._network(
                pixel_values=inputs["pixel_values"],
                pixel_mask=inputs["pixel_mask"],
                input_ids=torch.tensor(tokens, device=self._device),
                attention_mask=torch.tensor(there, dtype=torch.long, device=self._device),
            )
            probabilities = outputs.logits.float().sigmoid().cpu().numpy()
            centred = outputs.pred_boxes.float().cpu().numpy()
        height, width = images[0].shape[:2]
        return [
            self._found(prompt, fit, corners(boxes, width, height))
            for prompt, fit, boxes in zip(prompts, probabilities, centred, strict=True)
        ]

    def _found(self, prompt: Prompt, fit: Vector, boxes: Vector) -> list[Detection]:
        """Detections from the fit of each box to each token, of shape ``(boxes, tokens)``, and the boxes in pixels."""
        peaks = np.stack([fit[:, start:end].max(axis=1) for start, end in prompt.spans], axis=1)
        means = np.stack([fit[:, start:end].mean(axis=1) for start, end in prompt.spans], axis=1)
        best = means.argmax(axis=1)
        rows = np.arange(len(fit))
        sure = (peaks[rows, best] >= self._config.min_score) & (means[rows, best] >= self._config.min_text_score)
        return detections(prompt.words, best[sure], means[rows, best][sure], boxes[sure])


def _phrases(words: Sequence[str]) -> dict[str, str]:
    """The words as the network reads them, in order, with the first word that each stands for.

    A full stop or question mark inside a word would end it early.
    """
    phrases: dict[str, str] = {}
    for word in words:
        if phrase := " ".join(word.lower().replace(".", " ").replace("?", " ").split()):
            phrases.setdefault(phrase, word)
    return phrases


def _equal_sizes(
    passes: Sequence[tuple[int, int, Prompt]], clips: Sequence[Sequence[Keyframe]], batch: int
) -> Iterator[list[tuple[int, int, Prompt]]]:
    """Batches of passes over images of one size: images of others would be padded, which changes what is found."""
    sizes: dict[tuple[int, ...], list[tuple[int, int, Prompt]]] = {}
    for one in passes:
        sizes.setdefault(clips[one[0]][one[1]].image.shape, []).append(one)
    for alike in sizes.values():
        for start in range(0, len(alike), batch):
            yield alike[start : start + batch]
