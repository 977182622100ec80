"""The loader against plain webdataset on the same shards, and against reading the same bytes and nothing else.

Both loaders give the same videos, decoded and scaled to cover the bucket, with one letterboxed picture per subject, by
the same functions. The loader gives them in its shuffled order and reads by offset only what it draws; webdataset gives
them in the order of the shards and reads these whole. ``pread`` reads the bytes that the loader reads, in the loader's
order, and decodes nothing: how far storage alone would carry it. The shards lie in the system's page cache.
"""

from __future__ import annotations

import argparse
import io
import random
import tarfile
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from statistics import median as middle

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import webdataset
from _inputs import looped_demo
from _measure import MB, cpu_seconds, median, show, show_machine, timed

from curation.shards import INDEX_SCHEMA
from stages.media import encode_clip, read_keyframes
from stages.picture import encode_png
from training.clip import decode_window
from training.data import DataConfig, open_data
from training.draw import Augmentation
from training.layout import Bucket, frames_at, window_start
from training.order import Order
from training.pixels import decode_picture
from training.shard_index import VIDEO, ShardIndex
from training.shard_reader import Span, SpanReader

CLIP_S = 6.0
FPS = 16
KINDS = ("original", "other_frame", "cross_clip", "inpainted")
SUBJECTS = 2


def build_shards(folder: Path, samples: int, shard_samples: int) -> str:
    """Shards of that many samples: clips of the demo at 832 x 480, two subjects each with a picture of every kind."""
    videos = looped_demo(folder, 2, CLIP_S * 4)
    clips = []
    for video in videos:
        for place in range(3):
            start = place * CLIP_S
            clip = encode_clip(
                video,
                start,
                start + CLIP_S,
                width=832,
                height=480,
                fit="crop",
                fps=FPS,
                crf=20,
                preset="veryfast",
                timeout_s=600,
            )
            frames = read_keyframes(video, [start + place, start + place + 2], 1 / 24, 640)
            clips.append((clip, [encode_png(frame.image) for frame in frames]))
    shards = folder / "shards"
    shards.mkdir()
    rows = []
    for first in range(0, samples, shard_samples):
        name = f"train-{first // shard_samples:06d}.tar"
        with tarfile.open(shards / name, "w", format=tarfile.USTAR_FORMAT) as tar:
            for number in range(first, min(first + shard_samples, samples)):
                clip, pictures = clips[number % len(clips)]
                members = {"mp4": clip.data, "txt": b"A caption.", "json": b"{}" * 2000}
                members |= {
                    f"{subject}.{kind}.0.png": pictures[subject] for subject in range(SUBJECTS) for kind in KINDS
                }
                rows.append(
                    {
                        "key": f"{number:08x}",
                        "split": "train",
                        "shard": name,
                        "caption": "A caption.",
                        "width": clip.width,
                        "height": clip.height,
                        "frames": clip.frames,
                        "fps": clip.fps,
                        "subjects": SUBJECTS,
                        "references": len(members) - 3,
                        "members": [add_member(tar, f"{number:08x}", *member) for member in members.items()],
                    }
                )
    pq.write_table(pa.Table.from_pylist(rows, INDEX_SCHEMA), shards / "index.parquet")
    return str(shards)


def add_member(tar: tarfile.TarFile, key: str, extension: str, data: bytes) -> dict[str, object]:
    """Append a member; its entry in the index."""
    header = tarfile.TarInfo(f"{key}.{extension}")
    header.size = len(data)
    offset = tar.offset + tarfile.BLOCKSIZE
    tar.addfile(header, io.BytesIO(data))
    return {"extension": extension, "offset": offset, "size": len(data)}


@dataclass(frozen=True)
class Rate:
    """How fast samples come."""

    samples_per_s: float
    cpu_s: float
    """Processor time per sample, of all processes."""


class Decode:
    """What is done to a webdataset sample so that it equals one of the loader's."""

    def __init__(self, config: DataConfig) -> None:
        (self.bucket,) = config.buckets
        self.skip = config.skip
        self.frames = int(frames_at(CLIP_S * FPS, FPS, FPS))

    def __call__(self, sample: dict[str, bytes]) -> tuple[torch.Tensor, torch.Tensor]:
        frames, height, width = self.bucket
        video = torch.empty(1, frames, height, width, 3, dtype=torch.uint8)
        start = window_start(self.frames, frames, self.skip, random.random())
        decode_window(sample[VIDEO], start, FPS, video[0].numpy())
        chosen = [f"{subject}.{random.choice(KINDS)}.0.png" for subject in range(SUBJECTS)]
        pictures = [decode_picture(sample[name], Augmentation(), height, width) for name in chosen]
        return video, torch.from_numpy(np.stack(pictures))[None]


def webdataset_of(shards: str) -> webdataset.WebDataset:
    """Plain webdataset: samples as bytes by extension, in the order of the shards."""
    urls = sorted(str(path) for path in Path(shards).glob("*.tar"))
    return webdataset.WebDataset(
        urls, shardshuffle=False, nodesplitter=webdataset.split_by_node, workersplitter=webdataset.split_by_worker
    )


def webdataset_samples(shards: str, config: DataConfig) -> Iterator[object]:
    """The same, decoded, without end, in as many workers as the loader's."""
    return iter(
        webdataset.WebLoader(
            webdataset_of(shards).map(Decode(config)).repeat(),
            batch_size=None,
            num_workers=config.workers,
            prefetch_factor=config.prefetch if config.workers else None,
        )
    )


def spans_in_order(shards: str, keys: Sequence[str]) -> list[list[Span]]:
    """What the loader reads of these samples: the video and one picture of each subject."""
    index = ShardIndex.read(shards, "train")
    samples = {sample.key: sample for sample in (index[row] for row in range(len(index)))}
    kinds = dict.fromkeys(KINDS, 1.0)
    return [
        [samples[key].span(VIDEO)]
        + [samples[key].span(pictures[KINDS[-1]][0]) for pictures in samples[key].pictures(kinds)]
        for key in keys
    ]


def rate(batches: Iterator[object], samples: int) -> Rate:
    """Samples a second of a loader that has started already, and processor time for each."""
    next(batches)
    before, started = cpu_seconds(), time.perf_counter()
    for _ in islice(batches, samples):
        pass
    return Rate(samples / (time.perf_counter() - started), (cpu_seconds() - before) / samples)


def rate_of_reading(shards: str, spans: Sequence[Sequence[Span]]) -> Rate:
    """The same of reading alone, in one process."""
    before, started = cpu_seconds(), time.perf_counter()
    with closing(SpanReader(shards)) as reader:
        for of_sample in spans:
            reader.read(of_sample)
    return Rate(len(spans) / (time.perf_counter() - started), (cpu_seconds() - before) / len(spans))


def show_order(samples: int) -> None:
    """What the order of very many samples costs."""
    groups = np.random.default_rng(0).integers(0, 20, samples)
    before = psutil.Process().memory_info().rss
    started = time.perf_counter()
    order = Order(groups, 1, seed=0)
    made = time.perf_counter() - started
    epochs = [timed(lambda: order[epoch * order.micro_batches]) for epoch in range(2)]  # noqa: B023
    each = timed(lambda: [order[order.micro_batches + place] for place in range(0, samples, samples // 10_000)])
    rows = [
        ("seconds to open", made),
        ("seconds to lay out an epoch", median(epochs)),
        ("microseconds per micro-batch", each / 10_000 * 1e6),
        ("MB kept", (psutil.Process().memory_info().rss - before) / MB),
    ]
    show(f"The order of {samples / 1e6:g} million samples in 20 groups", ["", ""], rows)


def main() -> None:
    """Build, measure in turns, print."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="example: python benchmarks/loader.py --samples 48 --repeats 3",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--samples", type=int, default=48, metavar="N", help="samples to build (default: 48)")
    parser.add_argument("--read", type=int, default=48, metavar="N", help="samples to read in a round (default: 48)")
    parser.add_argument("--frames", type=int, default=81, metavar="N", help="frames of a window (default: 81)")
    parser.add_argument("--height", type=int, default=480, metavar="PX", help="height (default: 480)")
    parser.add_argument("--width", type=int, default=832, metavar="PX", help="width (default: 832)")
    parser.add_argument("--workers", type=int, default=2, metavar="N", help="of both loaders (default: 2)")
    parser.add_argument("--repeats", type=int, default=3, metavar="N", help="rounds (default: 3)")
    parser.add_argument(
        "--order",
        type=int,
        default=10_000_000,
        metavar="N",
        help="samples whose order is laid out (default: 10 million)",
    )
    options = parser.parse_args()
    config = DataConfig(
        buckets=(Bucket(options.frames, options.height, options.width),), workers=options.workers, text_dropout=0
    )
    loader: list[Rate] = []
    plain: list[Rate] = []
    plain_reading: list[Rate] = []
    reading: list[Rate] = []
    show_machine()
    with tempfile.TemporaryDirectory(prefix="s2v-benchmark-") as name:
        shards = build_shards(Path(name), options.samples, shard_samples=max(1, options.samples // 8))
        size = sum(path.stat().st_size for path in Path(shards).glob("*.tar"))
        data = open_data(config, shards, "train", seed=0)
        keys = [batch.keys[0] for batch in islice(data.stream(), options.read)]
        spans = spans_in_order(shards, keys)
        for _ in range(options.repeats):
            plain.append(rate(webdataset_samples(shards, config), options.read))
            plain_reading.append(rate(iter(webdataset_of(shards).repeat()), options.read))
            loader.append(rate(data.stream(), options.read))
            reading.append(rate_of_reading(shards, spans))
    base = middle([one.samples_per_s for one in plain])
    rows = [
        (
            label,
            median([one.samples_per_s for one in rates]),
            middle([one.samples_per_s for one in rates]) / base,
            middle([one.cpu_s for one in rates]) * 1e3,
        )
        for label, rates in {
            "webdataset, in the shards' order": plain,
            "loader, shuffled": loader,
            "pread of the loader's bytes, decoding nothing": reading,
            "webdataset, decoding nothing": plain_reading,
        }.items()
    ]
    show(
        f"{options.samples} samples ({size / MB:.0f} MB), {options.frames} x {options.height} x {options.width}, "
        f"{SUBJECTS} references, {options.workers} workers",
        ["", "samples/s", "ratio", "CPU ms per sample"],
        rows,
        f"medians of {options.repeats} rounds of {options.read} samples",
    )
    show_order(options.order)


if __name__ == "__main__":
    main()
