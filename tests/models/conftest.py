"""Real clips and real weights, from the folder ``shared`` beside the repository."""

from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import av
import numpy as np
import pytest

from models.protocols import Image, Keyframe

SHARED = Path(__file__).resolve().parents[3] / "shared"


def _decode(path: Path, size: tuple[int, int]) -> Iterator[Image]:
    width, height = size
    with av.open(str(path), metadata_errors="ignore") as container:
        for frame in container.decode(video=0):
            yield frame.to_ndarray(format="rgb24", width=width, height=height, interpolation="AREA")


@cache
def _frame(path: Path, index: int) -> Image:
    with av.open(str(path), metadata_errors="ignore") as container:
        # The frames before it are not turned into RGB.
        for position, frame in enumerate(container.decode(video=0)):
            if position == index:
                image: Image = frame.to_ndarray(format="rgb24")
                image.flags.writeable = False
                return image
    raise IndexError(f"{path.name} has no frame {index}")


@pytest.fixture(scope="session")
def weights() -> Path:
    folder = SHARED / "weights"
    if not folder.is_dir():
        pytest.skip(f"no weights: {folder} does not exist")
    return folder


@pytest.fixture(scope="session")
def clips() -> Path:
    folder = SHARED / "clips"
    if not folder.is_dir():
        pytest.skip(f"no clips: {folder} does not exist")
    return folder


@pytest.fixture(scope="session")
def frames(clips: Path) -> Callable[[str, tuple[int, int]], Iterator[Image]]:
    """``frames(name, (width, height))``: every frame of a clip as a stream."""
    return lambda name, size: _decode(clips / name, size)


@pytest.fixture(scope="session")
def frame(clips: Path) -> Callable[[str, int], Image]:
    """``frame(name, index)``: one read-only frame of a clip in full size."""
    return lambda name, index: _frame(clips / name, index)


@pytest.fixture(scope="session")
def keyframe(frame: Callable[[str, int], Image]) -> Callable[[str, int], Keyframe]:
    """``keyframe(name, index)``: one frame of a clip as the models get it."""
    return lambda name, index: Keyframe(time=0.0, image=frame(name, index), neighbour=frame(name, index))


@pytest.fixture(scope="session")
def blank_keyframe() -> Callable[[int, int], Keyframe]:
    def make(height: int, width: int) -> Keyframe:
        image = np.full((height, width, 3), 127, np.uint8)
        return Keyframe(time=0.0, image=image, neighbour=image)

    return make


@pytest.fixture(scope="session")
def pipelines(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """``pipelines(backend)``: a folder of weights with the tiny repositories that a backend with a pipeline reads."""

    @cache
    def root(backend: str) -> Path:
        import tiny_pipelines

        folder = tmp_path_factory.mktemp(backend)
        getattr(tiny_pipelines, backend)(folder)
        return folder

    return root
