from __future__ import annotations

import json
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image as Pictures

from models.protocols import Image
from training.evaluation import items
from training.evaluation.items import (
    LONGEST_SIDE,
    InputError,
    Item,
    ReferenceFile,
    list_items,
    read_reference,
    show,
    vocabulary_word,
)


def write_picture(path: Path, colour: tuple[int, ...] = (200, 30, 30), size: tuple[int, int] = (24, 16)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Pictures.new("RGB" if len(colour) == 3 else "RGBA", size, colour).save(path)
    return path


def write_video(path: Path, frames: int, fps: int = 8) -> Path:
    """Frame ``n`` is grey of ``20 + 4 n``."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=fps)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv444p"
        stream.options = {"crf": "1", "preset": "ultrafast"}
        for number in range(frames):
            image = np.full((48, 64, 3), 20 + 4 * number, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    return path


def number_of(image: Image) -> int:
    return round((float(image.mean()) - 20) / 4)


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    videos, references = tmp_path / "videos", tmp_path / "references"
    videos.mkdir()
    references.mkdir()
    return videos, references


def named(item: Item) -> list[tuple[str, str]]:
    return [(file.path.name, file.word) for file in item.references]


def test_references_lie_in_a_folder_or_behind_the_name_of_the_video(folders: tuple[Path, Path]) -> None:
    videos, references = folders
    for name in ("b.mp4", "a.mp4", "a.long.MKV", ".hidden.mp4", "notes.md"):
        (videos / name).touch()
    for name in ("a/cat.png", "a/red_dog_2.JPG", "a/readme.md", "a.woman.png", "a.long.car.png", "b.png", "c.png"):
        write_picture(references / name) if not name.endswith(".md") else (references / name).touch()
    (references / "a.txt").write_text(" A cat, a dog and a woman.\n")
    (videos / "b.txt").write_text("Nothing much.")
    listed = list_items(videos, references)
    assert [item.name for item in listed] == ["a.long.MKV", "a.mp4", "b.mp4"]
    long, first, second = listed
    assert named(first) == [("cat.png", "cat"), ("red_dog_2.JPG", "dog"), ("a.woman.png", "woman")]
    assert named(long) == [("a.long.car.png", "car")]
    assert named(second) == [("b.png", "")]
    assert (first.prompt, second.prompt, long.prompt) == ("A cat, a dog and a woman.", "Nothing much.", "")


def test_one_video_alone(folders: tuple[Path, Path]) -> None:
    videos, references = folders
    (videos / "a.mp4").touch()
    (videos / "b.mp4").touch()
    assert list_items(videos / "b.mp4", references) == [Item("b.mp4", videos / "b.mp4")]


def test_names_are_no_patterns(folders: tuple[Path, Path]) -> None:
    videos, references = folders
    (videos / "[a]*.mp4").touch()
    write_picture(references / "a.cat.png")
    write_picture(references / "[a]*.dog.png")
    assert named(list_items(videos, references)[0]) == [("[a]*.dog.png", "dog")]


def test_manifest(tmp_path: Path) -> None:
    lines = [
        {"video": "out/a.mp4", "prompt": "Hi.", "references": [{"image": "x.png", "word": "kitty"}, "red_dog.png"]},
        {"video": "/elsewhere/b.mp4", "references": [{"image": "y.png", "word": "flux capacitor"}]},
        {"video": "c.mp4"},
    ]
    manifest = tmp_path / "list.jsonl"
    manifest.write_text("\n".join(json.dumps(line) for line in lines) + "\n\n")
    first, second, third = list_items(manifest, None)
    assert first.video == tmp_path / "out/a.mp4"
    assert first.prompt == "Hi."
    assert [file.path for file in first.references] == [tmp_path / "x.png", tmp_path / "red_dog.png"]
    assert [file.word for file in first.references] == ["cat", "dog"]
    assert second.video == Path("/elsewhere/b.mp4")
    assert second.references[0].word == "flux capacitor"
    assert third == Item("c.mp4", tmp_path / "c.mp4")
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    assert list_items(manifest, pictures)[0].references[0].path == pictures / "x.png"


@pytest.mark.parametrize(
    "line",
    [
        "{",
        "[]",
        "{}",
        '{"video": 3}',
        '{"video": "a.mp4", "prompt": 4}',
        '{"video": "a.mp4", "references": {"image": "a.png"}}',
        '{"video": "a.mp4", "references": [{"picture": "a.png"}]}',
        '{"video": "a.mp4", "references": [{"image": "a.png", "word": 1}]}',
        '{"video": "a.mp4", "references": [null]}',
        "\x00",
    ],
)
def test_a_bad_line_is_one_bad_item(tmp_path: Path, line: str) -> None:
    manifest = tmp_path / "list.jsonl"
    manifest.write_text(f'{line}\n{{"video": "good.mp4"}}\n')
    bad, good = list_items(manifest, None)
    assert bad.name == "list.jsonl, line 1"
    assert bad.problem
    assert good.problem is None
    with pytest.raises(InputError):
        show(bad, 4, 64)


def test_where_there_is_nothing_the_message_says_so(folders: tuple[Path, Path]) -> None:
    videos, references = folders
    with pytest.raises(InputError, match="holds no video"):
        list_items(videos, references)
    with pytest.raises(InputError, match=r"nowhere.* does not exist"):
        list_items(videos / "nowhere", references)
    with pytest.raises(InputError, match=r"nowhere.* is no folder"):
        list_items(videos, references / "nowhere")
    with pytest.raises(InputError, match="name their folder"):
        list_items(videos, None)


@pytest.mark.parametrize(("name", "word"), [("cat", "cat"), ("Red-Cat_02", "cat"), ("0.original.0", ""), ("", "")])
def test_words_of_the_vocabulary(name: str, word: str) -> None:
    assert vocabulary_word(name) == word


@given(st.text(max_size=20))
def test_any_name_has_a_word_or_none(name: str) -> None:
    assert vocabulary_word(vocabulary_word(name)) == vocabulary_word(name)


def test_a_reference_s_transparent_parts_are_not_its_subject(tmp_path: Path) -> None:
    pixels = np.full((20, 30, 4), (10, 200, 30, 0), np.uint8)
    pixels[5:15, 10:20, 3] = 255
    Pictures.fromarray(pixels).save(tmp_path / "a.png")
    reference = read_reference(ReferenceFile(tmp_path / "a.png", ""))
    expected = np.zeros((20, 30), bool)
    expected[5:15, 10:20] = True
    assert np.array_equal(reference.subject, expected)
    assert (reference.image[~expected] == 255).all()
    assert (reference.image[expected] == (10, 200, 30)).all()


def test_large_references_are_scaled_down(tmp_path: Path) -> None:
    file = write_picture(tmp_path / "a.png", size=(2000, 1000))
    assert read_reference(ReferenceFile(file, "")).image.shape == (LONGEST_SIDE // 2, LONGEST_SIDE, 3)


def test_references_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "empty.png").touch()
    whole = write_picture(tmp_path / "whole.png", size=(300, 300)).read_bytes()
    (tmp_path / "torn.png").write_bytes(whole[: len(whole) // 2])
    for name in ("text.png", "empty.png", "torn.png", "missing.png", "nul\0.png"):
        with pytest.raises(InputError, match="reference"):
            read_reference(ReferenceFile(tmp_path / name, ""))


def test_pictures_that_would_fill_the_memory_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write_picture(tmp_path / "huge.png", size=(300, 200))
    monkeypatch.setattr(items, "MOST_PIXELS", 300 * 200 - 1)
    with pytest.raises(InputError, match="300 x 200 pixels are too many"):
        read_reference(ReferenceFile(file, ""))


@pytest.mark.parametrize(
    ("length", "count", "shown"), [(48, 4, [6, 18, 30, 42]), (5, 5, [0, 1, 2, 3, 4]), (3, 32, [0, 1, 2]), (1, 8, [0])]
)
def test_frames_are_evenly_spaced_and_followed_by_the_next(
    tmp_path: Path, length: int, count: int, shown: list[int]
) -> None:
    video = write_video(tmp_path / "a.mp4", length)
    frames = show(Item("a", video), count, 64).frames
    assert [number_of(frame.image) for frame in frames] == shown
    for frame, number in zip(frames, shown, strict=True):
        last = number == length - 1
        assert number_of(frame.neighbour) == number + (not last)
        assert frame.neighbour_s == pytest.approx(0 if last else 1 / 8)


def test_videos_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("no video")
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "folder.mp4").mkdir()
    for name in ("text.mp4", "empty.mp4", "folder.mp4", "missing.mp4", "nul\0.mp4"):
        with pytest.raises(InputError, match="video"):
            show(Item(name, tmp_path / name), 4, 64)
