import itertools
import json
import shutil
from pathlib import Path

import av
import numpy as np
import pytest

from curation.demo import COPY, TRUNCATED, VIDEOS, build_demo, frames
from models.vocabulary import subject_words


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo")
    build_demo(folder)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def luma(path: Path) -> np.ndarray:
    """Every eighth frame in grey."""
    with av.open(str(path)) as container:
        chosen = itertools.islice(container.decode(video=0), 0, None, 8)
        return np.stack([frame.to_ndarray(format="gray").astype(np.int16) for frame in chosen])


def sharpness(path: Path) -> float:
    return float(np.abs(np.diff(luma(path)[::3], n=2, axis=-1)).mean())


def test_complete_set_is_left_alone(demo: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in demo.rglob("*")}
    videos = build_demo(demo)
    assert {path: path.stat().st_mtime_ns for path in demo.rglob("*")} == before
    assert videos == sorted(path for path in before if path.suffix == ".mp4")


def test_same_bytes_every_time(demo: Path, tmp_path: Path) -> None:
    shutil.copytree(demo, tmp_path, dirs_exist_ok=True)
    for path in tmp_path.glob("cat_*"):
        path.write_bytes(b"incomplete")
    build_demo(tmp_path)
    assert contents(tmp_path) == contents(demo)


@pytest.mark.parametrize("video", VIDEOS, ids=lambda video: video.name)
def test_videos_are_what_they_say(demo: Path, video) -> None:
    with av.open(str(demo / f"{video.name}.mp4")) as container:
        stream = container.streams.video[0]
        count = sum(1 for _ in container.decode(stream))
        assert (stream.width, stream.height) == video.size
        assert stream.average_rate == video.fps
        assert stream.codec_context.name == "h264"
        assert container.metadata.get("encoder") is None
    assert count == sum(round(shot.seconds * video.fps) for shot in video.shots)
    assert 4 <= count / video.fps <= 9


def test_every_video_has_one_sidecar_whose_caption_names_its_subjects(demo: Path) -> None:
    detailed = 0
    for path in demo.rglob("*.mp4"):
        text, details = path.with_suffix(".txt"), path.with_suffix(".json")
        assert text.exists() != details.exists()
        if details.exists():
            sidecar = json.loads(details.read_text())
            assert set(sidecar) == {"caption", "licence", "source"}
            assert all(sidecar.values())
            detailed += 1
        caption = sidecar["caption"] if details.exists() else text.read_text().strip()
        assert [word.name for word in subject_words(caption)][:1] == [path.name.split("_")[0]]
    assert detailed == sum(video.detailed for video in VIDEOS)


def test_subjects_come_back_elsewhere() -> None:
    places: dict[str, set[str]] = {}
    for video in VIDEOS[:12]:
        for shot in video.shots:
            for actor in shot.actors:
                places.setdefault(actor.subject, set()).add(shot.background)
    assert set(places) == {"astronaut", "cat", "cup", "motorcycle", "rocket"}
    assert all(len(backgrounds) >= 2 for backgrounds in places.values())


def test_bad_ones_are_bad(demo: Path) -> None:
    with pytest.raises(av.error.InvalidDataError):
        av.open(str(demo / TRUNCATED))
    assert (demo / COPY).read_bytes() == (demo / "cat_wall.mp4").read_bytes()
    assert 8 <= luma(demo / "cat_dark.mp4").mean() <= 16
    assert sharpness(demo / "motorcycle_blurred.mp4") < sharpness(demo / "motorcycle_lawn.mp4") / 10
    assert np.abs(np.diff(luma(demo / "cup_static.mp4"), axis=0)).mean() < 0.3


def test_good_ones_are_bright_and_moving(demo: Path) -> None:
    for video in VIDEOS[:12]:
        pictures = luma(demo / f"{video.name}.mp4")
        assert pictures.mean() > 40, video.name
        assert np.abs(np.diff(pictures, axis=0)).mean() > 3, video.name


def test_frames_are_a_stream() -> None:
    first = next(frames(VIDEOS[0]))
    assert first.shape == (360, 640, 3)
    assert first.dtype == np.uint8
