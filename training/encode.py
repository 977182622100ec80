"""One shard into cached latents: what a worker of `s2v encode` does, with encoders that it keeps."""

from __future__ import annotations

import torch

from training.batch import Skipped
from training.cache import LatentCache
from training.clip import decode_window
from training.data import Split
from training.draw import Augmentation
from training.encoding import Encoders
from training.layout import Bucket, Layout, frames_at, window_start
from training.pixels import decode_picture
from training.shard_index import TEXT, VIDEO, Sample, picture_name
from training.shard_reader import CorruptMemberError, SpanReader

_MIDDLE = 0.5


@torch.no_grad()
def encode_shard(split: Split, shard: str, encoders: Encoders, cache: LatentCache) -> list[Skipped]:
    """Encode every sample of a shard that has a bucket: its middle window, all its pictures, its caption.

    Publishes the shard's file of latents; returns the members that could not be read, which it does not hold.
    """
    tensors: dict[str, torch.Tensor] = {}
    skipped = []
    reader = SpanReader(split.shards)
    for row in split.index.rows_of(shard):
        if split.layout.bucket_of[row] < 0:
            continue
        sample = split.index[row]
        pictures = [extension for extension in sample.members if picture_name(extension)]
        members = dict(
            zip((VIDEO, *pictures), reader.read([sample.span(name) for name in (VIDEO, *pictures)]), strict=True)
        )
        shape = split.layout.bucket(row)
        for extension, member in members.items():
            try:
                if isinstance(member, CorruptMemberError):
                    raise member
                tensors[f"{sample.key}.{extension}"] = (
                    _encode_video(member, sample, split.layout, shape, encoders)
                    if extension == VIDEO
                    else _encode_picture(member, shape, encoders)
                )
            except CorruptMemberError as error:
                skipped.append(Skipped(f"{sample.key}.{extension}", error.reason, error.detail))
        if not encoders.text.trainable:
            tensors[f"{sample.key}.{TEXT}"] = encoders.text.encode([sample.caption])[0]
    reader.close()
    cache.write_shard(shard, tensors)
    return skipped


@torch.no_grad()
def encode_empty_caption(encoders: Encoders, cache: LatentCache) -> None:
    """Publish the embedding that dropped captions get; once per cache, before any shard."""
    cache.write_empty_caption(encoders.text.encode([""])[0])


def _encode_video(member: bytes, sample: Sample, layout: Layout, shape: Bucket, encoders: Encoders) -> torch.Tensor:
    video = torch.empty(1, *shape, 3, dtype=torch.uint8)
    there = int(frames_at(sample.frames, sample.fps, layout.fps))
    decode_window(member, window_start(there, shape.frames, layout.skip, _MIDDLE), layout.fps, video[0].numpy())
    return encoders.latents.encode(video)[0]


def _encode_picture(member: bytes, shape: Bucket, encoders: Encoders) -> torch.Tensor:
    picture = torch.from_numpy(decode_picture(member, Augmentation(), shape.height, shape.width))
    return encoders.latents.encode_references(picture[None, None])[0, :, 0]
