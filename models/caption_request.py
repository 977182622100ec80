"""What captioners ask a vision language model: the prompt, which frames of a clip they show, and in what size."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from string import Template
from typing import Self

import cv2
import numpy as np
from pydantic import Field, PrivateAttr, field_validator, model_validator

from models.protocols import ClipCaption, Image, Keyframe
from models.registry import BackendConfig

PROMPTS = Path(__file__).resolve().parents[1] / "configs" / "prompts"

REMINDER = (
    "Your last answer was not the JSON object that was asked for. Answer with the object alone: the first character is "
    '{ and the last is }, with the keys "caption" and "subjects", no code fence and no other text. Keep the caption '
    "below 80 words."
)
"""Stands after the prompt when a clip is asked about again."""


class CaptionerConfig(BackendConfig):
    """Options that all captioners share."""

    prompt: str = "caption.txt"
    """File with the prompt: a name in `configs/prompts` or an absolute path. Its text is part of the fingerprint;
    `$max_subjects` in it stands for that option's value."""
    frames: int = Field(8, ge=1)
    """Keyframes of a clip that are shown, evenly chosen; all of them where there are fewer."""
    max_side: int = Field(512, ge=28)
    """Longest side in pixels that a frame is shown in; smaller ones stay as they are."""
    max_tokens: int = Field(512, ge=16)
    """Tokens that an answer may take. One that is cut off does not validate."""
    max_subjects: int = Field(6, ge=1)
    """Subjects of a clip that are kept, the first ones of the answer."""
    retries: int = Field(1, ge=0)
    """How often an answer that does not validate is asked for again, with a firmer note."""

    # Read where the config is read: it travels to workers whose machines need not have the file.
    _text: str = PrivateAttr("")

    @field_validator("prompt")
    @classmethod
    def _is_there(cls, prompt: str) -> str:
        if not (PROMPTS / prompt).is_file():
            raise ValueError(f"no file {PROMPTS / prompt}")
        return prompt

    @model_validator(mode="after")
    def _read(self) -> Self:
        self._text = (PROMPTS / self.prompt).read_text(encoding="utf-8").strip()
        return self

    def texts(self) -> list[str]:
        """The prompt."""
        return [self.question()]

    def question(self) -> str:
        """The prompt with its placeholders filled in."""
        return Template(self._text).safe_substitute(max_subjects=self.max_subjects)


def shown(keyframes: Sequence[Keyframe], frames: int, max_side: int) -> list[tuple[float, Image]]:
    """The frames that stand for a clip: seconds since its first keyframe, and the picture.

    Args:
        keyframes: of one clip, in order of time.
        frames: how many to choose at most; a single one is from the middle.
        max_side: longest side of a picture, which keeps its proportions and never grows.

    Raises:
        ValueError: for a clip without keyframes.
    """
    if not keyframes:
        raise ValueError("a clip without keyframes cannot be captioned")
    last = len(keyframes) - 1
    count = min(frames, len(keyframes))
    places = [last // 2] if count == 1 else [round(number * last / (count - 1)) for number in range(count)]
    start = keyframes[0].time
    return [(keyframes[place].time - start, _fitted(keyframes[place].image, max_side)) for place in places]


def time_note(seconds: float) -> str:
    """The text before a frame."""
    return f"{seconds:.1f} s:"


class KeptAnswers:
    """The answers of the last call about several clips.

    Where such a call fails for one of them, or a later step does, the clips come again one by one: then only those
    that have no answer are asked about.
    """

    def __init__(self) -> None:
        self._kept: dict[str, ClipCaption] = {}

    def complete(
        self, keys: Sequence[str], ask: Callable[[Sequence[int]], Mapping[int, ClipCaption | Exception]]
    ) -> list[ClipCaption]:
        """The answer for each key.

        Args:
            keys: one per clip; equal ones are the same question.
            ask: gives the answers, or what went wrong, for the places in ``keys`` that it is called with. It is not
                called if there are none.

        Raises:
            Exception: what went wrong with the first clip that has no answer.
        """
        outcomes: dict[int, ClipCaption | Exception] = {
            place: self._kept[key] for place, key in enumerate(keys) if key in self._kept
        }
        if asked := [place for place in range(len(keys)) if place not in outcomes]:
            outcomes.update(ask(asked))
        found = {place: answer for place, answer in outcomes.items() if not isinstance(answer, Exception)}
        if len(keys) > 1:
            self._kept = {keys[place]: answer for place, answer in found.items()}
        for place in range(len(keys)):
            if isinstance(outcome := outcomes[place], Exception):
                raise outcome
        return [found[place] for place in range(len(keys))]


def _fitted(image: Image, max_side: int) -> Image:
    height, width = image.shape[:2]
    scale = max_side / max(height, width)
    if scale >= 1:
        return np.ascontiguousarray(image)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.uint8)
