import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.caption_answer import SCHEMA, SHOWN, AnswerError, clip_caption, start_of
from models.caption_request import PROMPTS
from models.protocols import ClipCaption

GOOD = '{"caption": "A dog runs.", "subjects": [{"word": "dog"}, {"word": "ball"}]}'
READ = ClipCaption("A dog runs.", ("dog", "ball"))


def answer(*words: object, caption: str = "A scene.") -> str:
    return json.dumps({"caption": caption, "subjects": list(words)})


@pytest.mark.parametrize(
    "text",
    [
        GOOD,
        f"```json\n{GOOD}\n```",
        f"```\n{GOOD}```",
        f"Sure, here it is:\n\n{GOOD}\nAnything else?",
        f"<think>Is it {{a cat}}? No.</think>{GOOD}",
        f'{{"caption": "A cat.", "subjects": []}}\nNo, wait:\n{GOOD}',
        f'{GOOD} as in {{"form": 1}}',
        GOOD.replace(", ", ",\n\t"),
        GOOD.replace('{"word": "ball"}', '"ball"'),
        GOOD.replace('"word": "ball"', '"word": "ball", "count": 2'),
        GOOD.replace("dog runs", "dog \n runs"),
    ],
)
def test_the_object_is_found_whatever_stands_around_it(text: str) -> None:
    assert clip_caption(text, 6) == READ


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "no JSON object"),
        ("I cannot see any frames.", "no JSON object"),
        (GOOD[:-1], "caption: Field required"),
        (GOOD[:30], "no JSON object"),
        ("[1, 2]", "no JSON object"),
        ('{"caption": "A dog."}', "subjects: Field required"),
        ('{"subjects": []}', "caption: Field required"),
        ('{"caption": "", "subjects": []}', "caption: "),
        ('{"caption": "...", "subjects": []}', "caption: "),
        ('{"caption": " \\u0000 ", "subjects": []}', "caption: "),
        ('{"caption": ["A dog."], "subjects": []}', "caption: "),
        ('{"caption": "A dog.", "subjects": "dog"}', "subjects: "),
        ('{"caption": "A dog.", "subjects": [1]}', r"subjects\.0: "),
        ('{"caption": "A dog.", "subjects": [{"name": "dog"}]}', r"subjects\.0\.word: "),
        (answer("a very long " * 10), r"subjects\.0\.word: "),
        ('{"a": ' + "[" * 100_000, "no JSON object"),
        ("{" * 1000, "no JSON object"),
    ],
)
def test_what_does_not_fit_is_refused_with_its_start(text: str, why: str) -> None:
    with pytest.raises(AnswerError, match=f"does not fit .{why}") as caught:
        clip_caption(text, 6)
    message = str(caught.value)
    assert repr(text[:SHOWN]) in message
    assert "\n" not in message
    assert "pydantic" not in message
    assert len(message) < 500
    assert isinstance(caught.value, ValueError)


def test_the_start_of_an_answer_is_one_line_whatever_it_holds() -> None:
    assert start_of("two\nlines") == r"'two\nlines'"
    assert start_of("x" * SHOWN) == repr("x" * SHOWN)
    assert start_of("x" * (SHOWN + 1)) == repr("x" * SHOWN) + " ..."
    start_of("\ud800").encode()


@pytest.mark.parametrize(
    ("words", "read"),
    [
        (["Dogs", "the ball", "two women"], ("dog", "ball", "woman")),
        (["dog", "Dog", "the dogs", "hound"], ("dog",)),
        (["man", "left hand", "shirt", "blue sky", "grass", "red", "license plate"], ("man",)),
        (["axolotl", "an axolotl", "Theremin"], ("axolotl", "theremin")),
        (["", " ", "...", "the"], ()),
        (["dog and cat", "cup/saucer"], ("dog", "cat", "cup", "saucer")),
        (["hand", "car", "sky", "bus", "cars", "train", "boat", "ship"], ("car", "bus", "train", "boat")),
    ],
)
def test_subjects_are_nouns_of_one_name_each_once_and_not_too_many(words: list[str], read: tuple[str, ...]) -> None:
    assert clip_caption(answer(*words), 4).words == read


def test_captions_become_one_line_that_can_be_written() -> None:
    found = clip_caption('{"caption": " A\\u0000dog\\n\\n\\truns \\ud83d\\ude00 \\ud800. ", "subjects": []}', 6).text
    assert found == "A dog runs \N{GRINNING FACE} ."
    found.encode()


def test_the_schema_says_what_is_read() -> None:
    # The one of the prompt, of servers and of the reader must be the same.
    prompt = (PROMPTS / "caption.txt").read_text(encoding="utf-8")
    assert all(f'"{key}"' in prompt for key in [*SCHEMA["properties"], "word"])
    assert set(SCHEMA["required"]) == set(json.loads(GOOD)) == set(SCHEMA["properties"])
    assert clip_caption(prompt + GOOD, 6) == READ
    with pytest.raises(AnswerError):
        clip_caption(prompt, 6)


@given(st.text(max_size=60))
def test_any_text_is_either_read_or_refused(text: str) -> None:
    for tried in (text, "{" + text + "}", '{"caption": "A.", "subjects": [' + text + "]}"):
        try:
            found = clip_caption(tried, 2)
        except AnswerError:
            continue
        assert found.text
        assert len(found.words) <= 2


@given(st.text(max_size=60), st.text(st.characters(exclude_categories=["C"]), max_size=60))
def test_what_json_can_spell_is_read_back(around: str, caption: str) -> None:
    around = around.replace("{", "").replace("}", "")
    spelt = json.dumps({"caption": f"A {caption}", "subjects": [{"word": "dog"}]})
    found = clip_caption(f"{around}{spelt}{around}", 6)
    assert found == ClipCaption(" ".join(f"A {caption}".split()), ("dog",))
