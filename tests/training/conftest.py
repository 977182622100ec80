"""Tiny shards with real videos and pictures in them, written without the engine."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image as Pictures
from PIL import ImageDraw

from curation.shards import INDEX_SCHEMA

FPS = 16
LANDSCAPE, PORTRAIT = (96, 64), (64, 96)
KINDS = ("original", "cross_clip", "inpainted")


@dataclass(frozen=True)
class Planned:
    """A sample to be written. Frame ``n`` of its video is grey of ``grey(n)``; its pictures have ``colour_of``."""

    key: str
    split: str = "train"
    size: tuple[int, int] = LANDSCAPE
    frames: int = 24
    fps: int = FPS
    pictures: tuple[str, ...] = ()
    caption: str = "A disc wanders over a grey ground."


def grey(frame: int) -> int:
    return 20 + 4 * frame


def frame_of(image: np.ndarray) -> int:
    """The number of the frame that a picture shows, whatever it was cut to."""
    return round((float(image[: image.shape[0] // 4].mean()) - 20) / 4)


def colour_of(key: str, extension: str) -> tuple[int, int, int]:
    red, green, blue, *_ = hashlib.sha256(f"{key}.{extension}".encode()).digest()
    return red // 2, green // 2, blue // 2


def mp4_of(sample: Planned) -> bytes:
    width, height = sample.size
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=sample.fps, options={"crf": "8", "bf": "2", "threads": "1"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for number in range(sample.frames):
            image = np.full((height, width, 3), grey(number), np.uint8)
            across = width // 4 + number % (width // 4)
            image[height // 2 : height // 2 + 16, across : across + 16] = colour_of(sample.key, "mp4")
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    return file.getvalue()


def png_of(key: str, extension: str, size: tuple[int, int] = (40, 30)) -> bytes:
    picture = Pictures.new("RGB", size, "white")
    ImageDraw.Draw(picture).rectangle((4, 4, size[0] - 5, size[1] - 5), fill=colour_of(key, extension))
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


def write_shards(folder: Path, samples: Sequence[Planned], shard_samples: int = 4) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for split in sorted({sample.split for sample in samples}):
        ordered = sorted((sample for sample in samples if sample.split == split), key=lambda sample: sample.key)
        for first in range(0, len(ordered), shard_samples):
            name = f"{split}-{first // shard_samples:06d}.tar"
            with tarfile.open(folder / name, "w", format=tarfile.USTAR_FORMAT) as tar:
                rows += [_add(tar, name, sample) for sample in ordered[first : first + shard_samples]]
    names = sorted({row["shard"] for row in rows})
    digests = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names}
    entries = [{"file": name, "sha256": digest, "fingerprint": digest[:16]} for name, digest in digests.items()]
    (folder / "manifest.json").write_text(json.dumps({"shards": entries}))
    pq.write_table(pa.Table.from_pylist(rows, INDEX_SCHEMA), folder / "index.parquet")
    return folder


def _add(tar: tarfile.TarFile, shard: str, sample: Planned) -> dict[str, object]:
    data = {"mp4": mp4_of(sample), "txt": sample.caption.encode(), "json": b"{}"}
    data |= {extension: png_of(sample.key, extension) for extension in sample.pictures}
    members = []
    for extension, content in data.items():
        header = tarfile.TarInfo(f"{sample.key}.{extension}")
        header.size = len(content)
        members.append({"extension": extension, "offset": tar.offset + tarfile.BLOCKSIZE, "size": len(content)})
        tar.addfile(header, io.BytesIO(content))
    return {
        "key": sample.key,
        "split": sample.split,
        "shard": shard,
        "caption": sample.caption,
        "width": sample.size[0],
        "height": sample.size[1],
        "frames": sample.frames,
        "fps": sample.fps,
        "subjects": len({name.split(".")[0] for name in sample.pictures}),
        "references": len(sample.pictures),
        "members": members,
    }


def planned() -> list[Planned]:
    """12 samples for training and 3 for validation, of two sizes, with 0 to 3 subjects and up to 4 pictures of each."""
    samples = []
    for number in range(15):
        pictures = [
            f"{subject}.{kind}.{copy}.png"
            for subject in range(number % 4)
            for kind in KINDS[: 1 + (number + subject) % 3]
            for copy in range(1 + (kind == "cross_clip"))
        ]
        samples.append(
            Planned(
                key=hashlib.sha256(bytes([number])).hexdigest()[:12],
                split="val" if number >= 12 else "train",
                size=PORTRAIT if number % 3 == 1 else LANDSCAPE,
                frames=16 + 2 * number,
                pictures=tuple(pictures),
                caption=f"Disc {number} wanders over a grey ground.",
            )
        )
    return samples


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of shards. Not to be changed: take ``own_shards`` for that."""
    return write_shards(tmp_path_factory.mktemp("data") / "shards", planned())


@pytest.fixture
def make_shards(tmp_path: Path) -> Callable[..., Path]:
    """``make_shards(samples)``: a folder of shards with these samples."""
    return lambda samples, **options: write_shards(tmp_path / "made", samples, **options)
