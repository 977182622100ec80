"""How well a picture fits a text, by a network of open_clip: CLIP (Radford et al., arXiv:2103.00020) and its kin."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import field_validator

from models.open_clip_network import OpenClipConfig, OpenClipNetwork
from models.protocols import Image
from models.registry import check_weights

LONGEST_NAME = 4
"""Words of the longest text that is taken for the name of a subject."""


class OpenClipText:
    """Scores pictures against names of subjects, which go into a template, and against captions, taken as they are."""

    class Config(OpenClipConfig):
        """Options of ``backend: open_clip``."""

        backend: Literal["open_clip"] = "open_clip"
        """Name of this backend."""
        template: str = "a photo of a {}"
        """What the name of a subject is put into, at the braces; captions stay as they are."""

        @field_validator("template")
        @classmethod
        def _has_one_place(cls, template: str) -> str:
            if template.count("{}") != 1:
                raise ValueError("expected a text with {} in one place")
            return template

    def __init__(self, config: OpenClipText.Config, root: Path) -> None:
        check_weights(config, root)
        self._template = config.template
        self._network = OpenClipNetwork(root / config.model, config)
        self._tokenize = self._network.tokenizer()

    def similarity(self, images: Sequence[Image], texts: Sequence[str]) -> list[float]:
        """Cosine similarity of each picture and its text, in [-1, 1].

        Texts for which :func:`is_caption` is false are put into the template. What does not fit the network's context
        (77 tokens of CLIP, 64 of SigLIP) is cut off. A text that stands there several times is embedded once.

        Raises:
            ValueError: if there are not as many texts as pictures.
        """
        if len(images) != len(texts):
            raise ValueError(f"{len(images)} pictures and {len(texts)} texts")
        if not images:
            return []
        asked = [text if is_caption(text) else self._template.replace("{}", text.strip()) for text in texts]
        distinct = list(dict.fromkeys(asked))
        known = dict(zip(distinct, self._network.embed_tokens(self._tokenize(distinct)), strict=True))
        seen = self._network.embed_images(images)
        return [float(np.clip(vector @ known[text], -1, 1)) for vector, text in zip(seen, asked, strict=True)]


def is_caption(text: str) -> bool:
    """Whether a text is a caption, and no name of a subject ("dog", "traffic light").

    A caption is several words that end in a full stop, exclamation or question mark, begin with a capital letter,
    or are more than four.
    """
    words = text.split()
    if len(words) < 2:
        return False
    return words[-1][-1] in ".!?" or words[0][0].isupper() or len(words) > LONGEST_NAME
