"""Captions by Qwen2.5-VL (Bai et al., arXiv:2502.13923) and Qwen3-VL (arXiv:2511.21631), in this process."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from models.caption_answer import AnswerError, clip_caption
from models.caption_request import REMINDER, CaptionerConfig, KeptAnswers, shown, time_note
from models.pretrained import UnusableWeightsError, load_network, load_processor
from models.protocols import ClipCaption, Image, Keyframe
from models.torch_device import HubConfig, placed

Frames = list[tuple[float, Image]]


class QwenVL:
    """One caption per clip by greedy decoding, from some of its keyframes, each with its time before it."""

    class Config(HubConfig, CaptionerConfig):
        """Options of ``backend: qwen_vl``."""

        backend: Literal["qwen_vl"] = "qwen_vl"
        """Name of this backend."""
        model: str = "Qwen/Qwen2.5-VL-7B-Instruct"
        """Folder under `models.root`: any size of Qwen2.5-VL or Qwen3-VL, such as `Qwen/Qwen3-VL-8B-Instruct`."""
        batch: int = Field(4, ge=1)
        """Clips that are answered at once."""

    def __init__(self, config: QwenVL.Config, root: Path) -> None:
        from transformers import AutoModelForImageTextToText, AutoProcessor, GenerationConfig

        folder = root / config.model
        self._config = config
        self._question = config.question()
        self._network = load_network(AutoModelForImageTextToText, folder, config)
        self._processor = load_processor(AutoProcessor, folder, config)
        _refuse_parts(self._processor, folder, config)
        # Where padding stands to the left, all answers of a batch begin in the same column.
        self._processor.tokenizer.padding_side = "left"
        self._device, self._dtype = placed(config)
        # Named outright, for whatever is not comes from the checkpoint; a penalty of repetitions would see the padding.
        self._decoding = GenerationConfig(
            do_sample=False,
            num_beams=1,
            temperature=1.0,
            top_p=1.0,
            top_k=50,
            repetition_penalty=1.0,
            max_new_tokens=config.max_tokens,
            eos_token_id=self._network.generation_config.eos_token_id,
            pad_token_id=self._processor.tokenizer.pad_token_id,
        )
        self._kept = KeptAnswers()

    def caption(self, clips: Sequence[Sequence[Keyframe]]) -> list[ClipCaption]:
        """A caption and its subjects per clip.

        Raises:
            AnswerError: a ValueError that names the clip's place in the call, if the answer about a clip does not fit
                however often it is asked for.
            ValueError: for a clip without keyframes.
        """
        frames = [shown(keyframes, self._config.frames, self._config.max_side) for keyframes in clips]
        keys = [_key(of_clip) for of_clip in frames]
        return self._kept.complete(keys, lambda places: self._ask(frames, places))

    def _ask(self, frames: Sequence[Frames], places: Sequence[int]) -> dict[int, ClipCaption | Exception]:
        outcomes: dict[int, ClipCaption | Exception] = {}
        for question in [self._question, *[f"{self._question}\n\n{REMINDER}"] * self._config.retries]:
            asked = [place for place in places if not isinstance(outcomes.get(place), ClipCaption)]
            answers = self._answers([frames[place] for place in asked], question)
            for place, answer in zip(asked, answers, strict=True):
                try:
                    outcomes[place] = clip_caption(answer, self._config.max_subjects)
                except AnswerError as error:
                    outcomes[place] = AnswerError(f"{self._config.model}: clip {place + 1} of {len(frames)}: {error}")
        return outcomes

    def _answers(self, clips: Sequence[Frames], question: str) -> Iterator[str]:
        for start in range(0, len(clips), self._config.batch):
            yield from self._generate(clips[start : start + self._config.batch], question)

    def _generate(self, clips: Sequence[Frames], question: str) -> list[str]:
        import torch

        inputs = self._inputs(clips, question)
        with torch.inference_mode():
            tokens = self._network.generate(**inputs, generation_config=self._decoding)
        answers: list[str] = self._processor.tokenizer.batch_decode(
            tokens[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True
        )
        return answers

    def _inputs(self, clips: Sequence[Frames], question: str) -> Any:
        chats = [
            [{"role": "user", "content": [*_shown_in_chat(frames), {"type": "text", "text": question}]}]
            for frames in clips
        ]
        inputs = self._processor(
            text=[self._processor.apply_chat_template(chat, add_generation_prompt=True) for chat in chats],
            images=[[image for _, image in frames] for frames in clips],
            padding=True,
            input_data_format="channels_last",
            return_tensors="pt",
        )
        return inputs.to(self._device, self._dtype)


def _refuse_parts(processor: Any, folder: Path, config: QwenVL.Config) -> None:
    """Raise where a processor loaded from a folder that lacks some of its files, which transformers lets pass."""
    whole = hasattr(processor, "image_processor") and processor.chat_template is not None
    if not whole or processor.tokenizer.decode(processor.tokenizer("caption").input_ids) != "caption":
        raise UnusableWeightsError(
            f"{config.backend}: {folder} lacks a tokenizer, an image processor or a chat template; fetch it again"
        )


def _shown_in_chat(frames: Frames) -> Iterator[dict[str, str]]:
    for seconds, _ in frames:
        yield {"type": "text", "text": time_note(seconds)}
        yield {"type": "image"}


def _key(frames: Frames) -> str:
    digest = hashlib.sha256()
    for seconds, image in frames:
        digest.update(f"{seconds} {image.shape}".encode() + image.tobytes())
    return digest.hexdigest()
