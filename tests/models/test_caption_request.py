import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.caption_request import PROMPTS, CaptionerConfig, KeptAnswers, shown
from models.protocols import ClipCaption, Keyframe
from models.registry import fingerprint


class Config(CaptionerConfig):
    backend: Literal["any"] = "any"


def keyframes(count: int, height: int = 4, width: int = 6) -> list[Keyframe]:
    """A keyframe a second from the tenth on, each of the brightness of its number."""
    pictures = [np.full((height, width, 3), number, np.uint8) for number in range(count)]
    return [Keyframe(10.0 + number, picture, picture) for number, picture in enumerate(pictures)]


@pytest.mark.parametrize(
    ("count", "frames", "chosen"),
    [
        (1, 8, [0]),
        (4, 8, [0, 1, 2, 3]),
        (8, 8, list(range(8))),
        (9, 3, [0, 4, 8]),
        (10, 4, [0, 3, 6, 9]),
        (7, 2, [0, 6]),
        (7, 1, [3]),
    ],
)
def test_frames_are_chosen_evenly_with_their_times(count: int, frames: int, chosen: list[int]) -> None:
    found = shown(keyframes(count), frames, 28)
    assert [seconds for seconds, _ in found] == chosen
    assert [int(image[0, 0, 0]) for _, image in found] == chosen


@given(st.integers(1, 40), st.integers(1, 40))
def test_chosen_frames_are_in_order_each_once_and_as_many_as_can_be(count: int, frames: int) -> None:
    times = [seconds for seconds, _ in shown(keyframes(count, 1, 1), frames, 28)]
    assert len(times) == min(count, frames)
    assert times == sorted(set(times))
    gaps = np.diff(times)
    assert gaps.size == 0 or gaps.max() - gaps.min() <= 1


@given(st.integers(1, 300), st.integers(1, 300), st.integers(28, 200))
def test_pictures_keep_their_proportions_and_are_never_enlarged(height: int, width: int, max_side: int) -> None:
    ((_, image),) = shown(keyframes(1, height, width), 1, max_side)
    scale = min(1, max_side / max(height, width))
    assert image.shape[:2] == (max(1, round(height * scale)), max(1, round(width * scale)))
    assert max(image.shape[:2]) <= max_side
    assert image.dtype == np.uint8
    assert image.flags.c_contiguous


def test_a_clip_without_keyframes_is_an_error() -> None:
    with pytest.raises(ValueError, match="without keyframes"):
        shown([], 8, 512)


def test_the_prompt_that_ships_is_filled_in() -> None:
    assert (PROMPTS / "caption.txt").is_file()
    question = Config(max_subjects=3).question()
    assert "3 at most" in question
    assert "$" not in question


def test_the_text_of_the_prompt_changes_the_fingerprint(tmp_path: Path) -> None:
    def of(text: str) -> str:
        (tmp_path / "mine.txt").write_text(text)
        return fingerprint(Config(prompt=str(tmp_path / "mine.txt")), tmp_path)

    before = of("Describe it. It costs $5.")
    assert of("Describe it. It costs $6.") != before
    assert of("Describe it. It costs $5.\n") == before


def test_a_prompt_that_is_not_there_is_an_error() -> None:
    for name in ("nowhere.txt", "", "/nowhere/caption.txt"):
        with pytest.raises(ValueError, match="no file"):
            Config(prompt=name)


class Asked:
    """Answers every place but those in ``wrong`` and notes which keys it was asked for."""

    def __init__(self, keys: Sequence[str], *wrong: str) -> None:
        self.keys, self.wrong = keys, wrong
        self.asked: list[str] = []

    def __call__(self, places: Sequence[int]) -> dict[int, ClipCaption | Exception]:
        self.asked += [self.keys[place] for place in places]
        return {
            place: KeyError(self.keys[place])
            if self.keys[place] in self.wrong
            else ClipCaption(f"{self.keys[place]} by {id(self)}", ())
            for place in places
        }


def test_answers_come_in_the_order_of_the_clips_and_the_first_failure_is_raised() -> None:
    kept = KeptAnswers()
    ask = Asked("abc")
    assert [answer.text[0] for answer in kept.complete("abc", ask)] == ["a", "b", "c"]
    with pytest.raises(KeyError, match="e"):
        kept.complete("defg", Asked("defg", "g", "e"))


def test_after_a_failure_only_what_has_no_answer_is_asked_for() -> None:
    kept = KeptAnswers()
    with pytest.raises(KeyError):
        kept.complete("abc", Asked("abc", "b"))
    for key, asked in (("a", []), ("b", ["b"]), ("c", []), ("a", [])):
        again = Asked(key)
        assert kept.complete(key, again)[0].text[0] == key
        assert again.asked == asked


def test_a_batch_asks_only_for_what_the_last_one_left_open() -> None:
    kept = KeptAnswers()
    with pytest.raises(KeyError):
        kept.complete("abc", Asked("abc", "b"))
    again = Asked("cbad")
    assert [answer.text[0] for answer in kept.complete("cbad", again)] == ["c", "b", "a", "d"]
    assert again.asked == ["b", "d"]
    assert kept.complete([], Asked([])) == []


def test_the_prompt_travels_with_the_config_to_machines_without_the_file(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("Name at most $max_subjects things.")
    sent = pickle.dumps(Config(prompt=str(tmp_path / "mine.txt"), max_subjects=3))
    (tmp_path / "mine.txt").unlink()
    assert pickle.loads(sent).question() == "Name at most 3 things."
