from __future__ import annotations

import typing
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.protocols import ClipCaption, Keyframe
from models.vocabulary import VOCABULARY, subject_words
from stages.caption import CaptionStage, template
from stages.records import Clip, Source
from stages.view import ClipView


def blank(cls: Any, **values: Any) -> Any:
    """A record of zeros and nothings but for these values."""
    zeros = {str: "", int: 0, float: 0.0, bool: False, bytes: b""}
    hints = typing.get_type_hints(cls)
    empty = {
        field.name: [] if typing.get_origin(hints[field.name]) is list else zeros.get(hints[field.name])
        for field in fields(cls)
    }
    return cls(**{**empty, **values})


def view(caption: str | None = None, source: str | None = None, frames: int = 2) -> ClipView:
    image = np.zeros((4, 6, 3), np.uint8)
    keyframes = [Keyframe(float(number), image, image) for number in range(frames)]
    return ClipView(blank(Clip), blank(Source, caption=caption, caption_source=source), keyframes)


class Writer:
    """Writes these captions and notes how many keyframes each clip came with."""

    def __init__(self, *captions: ClipCaption) -> None:
        self.captions = captions
        self.calls: list[list[int]] = []

    def caption(self, clips: Sequence[Sequence[Keyframe]]) -> list[ClipCaption]:
        self.calls.append([len(keyframes) for keyframes in clips])
        return list(self.captions[: len(clips)])


@pytest.mark.parametrize(
    ("words", "caption"),
    [
        ([], "A video."),
        (["dog"], "A video of a dog."),
        (["owl"], "A video of an owl."),
        (["dog", "person"], "A video of a dog and a person."),
        (["apple", "dog", "elephant"], "A video of an apple, a dog and an elephant."),
        (["unicorn", "ukulele", "ufo"], "A video of a unicorn, a ukulele and a ufo."),
        (["umbrella", "hourglass", "horse"], "A video of an umbrella, an hourglass and a horse."),
        (["scissors", "sheep", "bus"], "A video of scissors, a sheep and a bus."),
        (["fire truck"], "A video of a fire truck."),
    ],
)
def test_a_template_is_a_sentence(words: list[str], caption: str) -> None:
    assert template(words) == caption


@given(st.lists(st.sampled_from(sorted(VOCABULARY)), max_size=5, unique=True))
def test_templates_name_the_words_in_order(words: list[str]) -> None:
    caption = template(words)
    assert caption.startswith("A video")
    assert caption.endswith(".")
    assert caption.count(" and ") == sum(" and " in word for word in words) + (len(words) > 1)
    places = [caption.find(word) for word in words]
    assert -1 not in places


def test_templates_can_be_read_back() -> None:
    for word in ("dog", "owl", "unicorn", "scissors", "umbrella", "person"):
        assert [found.name for found in subject_words(template([word, "car"]))] == [word, "car"]


def test_a_caption_that_came_along_is_kept_with_its_words() -> None:
    stage = CaptionStage(None)
    found = stage.run(
        [
            view("Two dogs chase a red car.", "manifest"),
            view("A woman's dog sleeps.", "sidecar"),
            view("Waves roll in slowly.", "sidecar"),
        ]
    )
    assert found == [
        ("Two dogs chase a red car.", "manifest", ["dog", "car"]),
        ("A woman's dog sleeps.", "sidecar", ["dog"]),
        ("Waves roll in slowly.", "sidecar", []),
    ]


@pytest.mark.parametrize("caption", [None, ""])
def test_without_a_caption_there_is_nothing_yet(caption: str | None) -> None:
    assert CaptionStage(None).run([view(caption)]) == [("", "template", [])]


def test_a_captioner_writes_all_captions_in_one_go() -> None:
    writer = Writer(ClipCaption("A dog and its ball.", ("dog", "ball")), ClipCaption("Rain.", ()))
    found = CaptionStage(writer).run([view("A cat.", "manifest", frames=3), view(frames=1)])
    assert found == [("A dog and its ball.", "model", ["dog", "ball"]), ("Rain.", "model", [])]
    assert writer.calls == [[3, 1]]


def test_a_captioner_s_words_are_taken_for_what_the_vocabulary_calls_them() -> None:
    words = ("the two dogs", "A dog", "happiness", "a young woman", "blue sky")
    ((_, _, found),) = CaptionStage(Writer(ClipCaption("...", words))).run([view()])
    assert found == ["dog", "woman"]


def test_a_captioner_s_words_that_the_vocabulary_does_not_know_are_kept() -> None:
    words = ("axolotl", "lady", "an axolotl", "theremin", "woman")
    ((_, _, found),) = CaptionStage(Writer(ClipCaption("...", words))).run([view()])
    assert found == ["axolotl", "woman", "theremin"]


def test_no_clips_ask_nobody() -> None:
    assert CaptionStage(None).run([]) == []
