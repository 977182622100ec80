"""What a clip is said to show: its caption, and the words in it that name subjects."""

from __future__ import annotations

from collections.abc import Sequence

from models.protocols import Captioner
from models.vocabulary import VOCABULARY, subject_names, subject_words
from stages.view import ClipView


class CaptionStage:
    """Takes the caption that came with the video, or asks a captioner if one is configured."""

    def __init__(self, captioner: Captioner | None) -> None:
        self.captioner = captioner

    def run(self, views: Sequence[ClipView]) -> list[tuple[str, str, list[str]]]:
        """``(caption, where it came from, subject words)`` per clip.

        Without a captioner, a clip whose video has no caption gets an empty one and no words: the detector then
        names what it knows, and :func:`template` writes the caption from that. A captioner's words go by their
        names in the vocabulary; those that it does not know stay as they are.
        """
        if self.captioner is not None:
            written = self.captioner.caption([view.keyframes for view in views])
            return [(caption.text, "model", _canonical(caption.words)) for caption in written]
        return [
            (
                view.source.caption,
                view.source.caption_source or "sidecar",
                [word.name for word in subject_words(view.source.caption)],
            )
            if view.source.caption
            else ("", "template", [])
            for view in views
        ]


def template(words: Sequence[str]) -> str:
    """A plain caption from subject words: ``A video of a dog, an owl and scissors.``"""
    if not words:
        return "A video."
    named = [_with_article(word) for word in words]
    return f"A video of {' and '.join(filter(None, [', '.join(named[:-1]), named[-1]]))}."


def _with_article(word: str) -> str:
    known = VOCABULARY.get(word)
    if known is not None and known.plural == word and word.endswith("s"):
        return word  # Scissors.
    # By sound: a unicorn, an hourglass.
    consonant = word[0] not in "aeiou" or word.startswith(("eu", "ufo", "uku", "uni"))
    return f"{'a' if consonant and not word.startswith('hour') else 'an'} {word}"


def _canonical(words: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(name for word in words for name in subject_names(word)))
