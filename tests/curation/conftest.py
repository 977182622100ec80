"""Tiny videos, fake networks and a run without Ray: the whole engine in a second or two."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import counting_backends
import cv2
import numpy as np
import pytest
from rich.console import Console

from curation.config import Config
from curation.engine import STEPS, Executor, SerialExecutor, StepReport, run_steps
from curation.progress import Progress
from curation.workspace import Workspace
from models import registry
from stages.annotate import keyframe_times
from stages.ingest import list_inputs
from stages.media import read_keyframes
from stages.records import Record, Source

WIDTH, HEIGHT, FPS = 320, 240, 12
RADIUS = 58
RED, BLUE, GREEN = (210, 30, 40), (40, 60, 220), (30, 190, 50)

RAW: dict[str, Any] = {
    "models": {task: {"backend": "fake"} for task in counting_backends.TASKS},
    "split": {"min_s": 1, "max_s": 6},
    "annotate": {"look": {"keyframes": 4, "neighbour_s": 1 / FPS}},
    "select": {"clip": {"min_sharpness": 5}},
    "references": {"cross_clip": {"rules": {"animal": {"by": "image", "min": 0.8, "max": 1, "trust_looks": True}}}},
    "pack": {"width": 160, "height": 120, "fps": 8, "preset": "ultrafast", "shard_samples": 2, "val_share": 0.2},
}


def write_video(
    path: Path, seed: int, seconds: float, discs: Sequence[tuple[int, int, int]], *, light: float = 1.0
) -> None:
    """Spotted discs that wander over a grey, grainy ground that pans.

    Their spots are others in each frame: no picture of a disc is a copy of another.
    """
    random = np.random.default_rng(seed)
    coarse = random.integers(60, 200, (HEIGHT // 24, WIDTH // 16), dtype=np.uint8)
    ground = cv2.resize(coarse, (WIDTH, HEIGHT), interpolation=cv2.INTER_NEAREST) + random.normal(
        0, 12, (HEIGHT, WIDTH)
    )
    ground = np.repeat(np.clip(ground, 0, 255).astype(np.uint8)[..., None], 3, axis=2)
    y, x = np.mgrid[-RADIUS : RADIUS + 1, -RADIUS : RADIUS + 1]
    far = np.hypot(x, y)[..., None]
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv444p"
        stream.options = {"preset": "ultrafast", "crf": "8"}
        for number in range(round(seconds * FPS)):
            picture = np.roll(ground, 2 * number, axis=1)
            spots = cv2.GaussianBlur(random.normal(size=far.shape[:2]), (0, 0), 2.5)[..., None]
            shade = np.where(spots > 0, 1.0, 0.6)
            for place, colour in enumerate(discs):
                # Two discs keep to their own halves.
                left, right = (60 + 160 * place, 100 + 160 * place) if len(discs) > 1 else (75, 245)
                across = left + abs((5 * number + 20 * seed) % (2 * (right - left)) - (right - left))
                down = 120 + round(15 * np.sin(number / 5))
                window = picture[down - RADIUS : down + RADIUS + 1, across - RADIUS : across + RADIUS + 1]
                window[...] = np.where(far <= RADIUS, np.asarray(colour) * shade, window)
            frame = av.VideoFrame.from_ndarray((picture * light).astype(np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


@pytest.fixture(scope="session")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three videos of one cat (red), one of another (blue) with a dog (green); a dark one, a torn one, a copy."""
    folder = tmp_path_factory.mktemp("videos")
    for number, (name, seconds, discs) in enumerate(
        [("a", 3, [RED]), ("b", 4.5, [RED]), ("c", 3, [RED]), ("d", 3, [BLUE, GREEN])]
    ):
        write_video(folder / f"{name}.mp4", number, seconds, discs)
        caption = "A cat runs past a dog." if len(discs) > 1 else "A cat rolls over a wall."
        (folder / f"{name}.txt").write_text(caption)
    write_video(folder / "dark.mp4", 7, 3, [RED], light=0.12)
    (folder / "dark.txt").write_text("A cat in the dark.")
    whole = (folder / "b.mp4").read_bytes()
    (folder / "torn.mp4").write_bytes(whole[: len(whole) // 2])
    shutil.copyfile(folder / "a.mp4", folder / "z_copy.mp4")
    return folder


@pytest.fixture(scope="session")
def later_videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One more video, of an animal that no other video shows."""
    folder = tmp_path_factory.mktemp("later")
    write_video(folder / "e.mp4", 11, 3, [GREEN])
    (folder / "e.txt").write_text("A bird on the wing.")
    return folder


@contextmanager
def _registered() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for task, backend in counting_backends.TASKS.items():
            patch.setitem(registry.BACKENDS[task], "fake", f"{backend.__module__}:{backend.__name__}")
        patch.setitem(os.environ, "OMP_NUM_THREADS", os.environ.get("OMP_NUM_THREADS", "1"))
        threads = cv2.getNumThreads()
        counting_backends.forget()
        yield
        counting_backends.forget()
        cv2.setNumThreads(threads)


@pytest.fixture
def fakes() -> Iterator[None]:
    """Makes ``backend: fake`` known for every task, with nothing noted yet."""
    with _registered():
        yield


def _changed(raw: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    raw = {key: _changed(value, {}) if isinstance(value, dict) else value for key, value in raw.items()}
    for path, value in changes.items():
        *parents, last = path.split(".")
        section = raw
        for parent in parents:
            section = section.setdefault(parent, {})
        section[last] = value
    return raw


@pytest.fixture
def configure(fakes: None) -> Callable[..., Config]:
    """``configure({"pack.crf": 30})``: the tests' config with these changes."""
    return lambda changes=None: Config.model_validate(_changed(RAW, changes or {}))


@pytest.fixture
def config(configure: Callable[..., Config]) -> Config:
    return configure()


def _curate(
    workspace: Workspace,
    config: Config,
    inputs: Sequence[Path | str] = (),
    *,
    steps: Sequence[str] = STEPS,
    executor: Executor | None = None,
    retry_failed: bool = False,
) -> dict[str, StepReport]:
    reports = run_steps(
        steps,
        config,
        workspace,
        executor or SerialExecutor(),
        Progress(Console(file=io.StringIO())),
        videos=list_inputs([str(path) for path in inputs]),
        retry_failed=retry_failed,
    )
    return {report.step: report for report in reports}


@pytest.fixture
def curate() -> Callable[..., dict[str, StepReport]]:
    """``curate(workspace, config, inputs, steps=, executor=, retry_failed=)``: reports by step."""
    return _curate


@dataclass(frozen=True)
class Finished:
    """A run over ``videos``: its workspace, its reports and what the fakes noted."""

    folder: Path
    reports: dict[str, StepReport]
    seen: dict[str, list[list[object]]]


@pytest.fixture(scope="session")
def finished(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """A first run. Its workspace is not to be changed: take ``workspace`` for that."""
    folder = tmp_path_factory.mktemp("finished") / "workspace"
    with _registered():
        reports = _curate(Workspace.open(folder, create=True), Config.model_validate(RAW), [videos])
        return Finished(folder, reports, dict(counting_backends.SEEN))


@pytest.fixture(scope="session")
def run_apart() -> Callable[[Path, dict[str, Any], Sequence[Path], Sequence[str]], Workspace]:
    """``run_apart(folder, changes, inputs, steps)``: a run outside of any test, for what several tests share."""

    def run(folder: Path, changes: dict[str, Any], inputs: Sequence[Path], steps: Sequence[str]) -> Workspace:
        workspace = Workspace.open(folder, create=True)
        with _registered():
            _curate(workspace, Config.model_validate(_changed(RAW, changes)), inputs, steps=steps)
        return workspace

    return run


@pytest.fixture
def workspace(finished: Finished, tmp_path: Path) -> Workspace:
    """The first run's workspace, as a copy of the test's own."""
    return Workspace.open(shutil.copytree(finished.folder, tmp_path / "workspace"))


@pytest.fixture
def empty(tmp_path: Path) -> Workspace:
    return Workspace.open(tmp_path / "empty", create=True)


@pytest.fixture
def table_of() -> Callable[[Workspace, type[Record]], dict[str, dict[str, Any]]]:
    """``table_of(workspace, record)``: rows by key; fails if a key is there twice."""

    def read(workspace: Workspace, record: type[Record]) -> dict[str, dict[str, Any]]:
        rows = workspace.read(record).to_pylist()
        keyed = {row[record.key]: row for row in rows}
        assert len(keyed) == len(rows), f"{record.table}: a key is there twice"
        return keyed

    return read


@pytest.fixture
def clip_names() -> Callable[[Workspace, Config], dict[str, set[str]]]:
    """``clip_names(workspace, config)``: per file name, the names by which the fakes noted its clips."""
    from curation.steps import clips_of

    def read(workspace: Workspace, config: Config) -> dict[str, set[str]]:
        names: dict[str, set[str]] = {}
        look = config.annotate.look
        for clip, source in clips_of(workspace):
            times = keyframe_times(clip, look.keyframes)
            first, *_ = read_keyframes(Path(source.uri), times, look.neighbour_s, look.max_side)
            names.setdefault(Path(source.uri).stem, set()).add(counting_backends.name_of(first.image))
        return names

    return read


@pytest.fixture
def video_names() -> Callable[[Workspace], dict[str, str]]:
    """``video_names(workspace)``: file name by video id."""
    return lambda workspace: {
        source.video_id: Path(source.uri).stem
        for source in sorted(workspace.records(Source), key=lambda source: source.uri, reverse=True)
    }


@pytest.fixture
def shard_files() -> Callable[[Workspace], dict[str, str]]:
    """``shard_files(workspace)``: SHA-256 of everything in ``shards/`` by its path."""

    def read(workspace: Workspace) -> dict[str, str]:
        folder = Path(workspace.path("shards"))
        return {
            str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        }

    return read
