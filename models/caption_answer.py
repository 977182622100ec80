"""Reads what a vision language model answers to ``configs/prompts/caption.txt``: one JSON object, or nothing fits."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterator
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, Field, ValidationError

from models.protocols import ClipCaption
from models.vocabulary import subject_names

SHOWN = 160
"""Characters of an answer that an error shows."""

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "caption": {"type": "string"},
        "subjects": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {"word": {"type": "string"}},
                "required": ["word"],
                "additionalProperties": False,
            },
        },
    },
    "required": ["caption", "subjects"],
    "additionalProperties": False,
}
"""JSON schema of an answer, in the part of the standard that servers with guided decoding know."""


class AnswerError(ValueError):
    """An answer that is not what was asked for; the message shows its start."""


def clip_caption(answer: str, max_subjects: int) -> ClipCaption:
    """The caption and the subjects of an answer.

    The JSON object may stand in a code fence or between other text; the last one that fits counts. White space and
    control characters of the caption become single spaces. Subjects go by :func:`models.vocabulary.subject_names`,
    each once; what is never a subject is dropped.

    Args:
        answer: text of the model.
        max_subjects: how many subjects to keep.

    Raises:
        AnswerError: if there is no JSON object in it, or none with a caption and a list of subjects.
    """
    misfit = "no JSON object that is complete"
    fitting: _Answer | None = None
    for found in _objects(answer):
        try:
            fitting = _Answer.model_validate(found)
        except ValidationError as error:
            detail = error.errors()[0]
            misfit = f"{'.'.join(map(str, detail['loc']))}: {detail['msg']}"
    if fitting is None:
        raise AnswerError(f"the answer does not fit ({misfit}): {start_of(answer)}")
    names = [name for subject in fitting.subjects for name in subject_names(subject.word)]
    return ClipCaption(fitting.caption, tuple(dict.fromkeys(names))[:max_subjects])


def start_of(answer: str) -> str:
    """The start of a text in one quoted line, for errors."""
    return repr(answer[:SHOWN]) + (" ..." if len(answer) > SHOWN else "")


def _plain(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    # Half a surrogate pair, which JSON can spell, could not be written to a table.
    text = value.encode("utf-8", "ignore").decode("utf-8")
    return " ".join("".join(" " if unicodedata.category(letter) == "Cc" else letter for letter in text).split())


def _named(value: Any) -> Any:
    return {"word": value} if isinstance(value, str) else value


_Text = Annotated[str, BeforeValidator(_plain)]


class _Subject(BaseModel):
    word: Annotated[_Text, Field(max_length=80)]


class _Answer(BaseModel):
    caption: Annotated[_Text, Field(pattern=r"\w")]
    subjects: list[Annotated[_Subject, BeforeValidator(_named)]]


def _objects(text: str) -> Iterator[Any]:
    """JSON objects that stand in a text, none of them inside another."""
    decoder = json.JSONDecoder(strict=False)
    place = text.find("{")
    while place >= 0:
        try:
            found, place = decoder.raw_decode(text, place)
        except (ValueError, RecursionError):
            place += 1
        else:
            yield found
        place = text.find("{", place)
