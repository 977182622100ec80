from __future__ import annotations

import itertools
import json
import shutil
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load, save

from training.batch import LatentBatch
from training.cache import CacheParts, LatentCache, stored_tensors, trimmed
from training.cached import open_cached_data
from training.data import DataConfig, open_data, open_split
from training.encode import encode_empty_caption, encode_shard
from training.encoding import Encoders
from training.latents import PixelLatents, PixelLatentsConfig
from training.layout import Bucket
from training.shard_index import DataError

CONFIG = DataConfig(buckets=(Bucket(9, 32, 48), Bucket(9, 48, 32)), micro_batch=2, workers=0, text_dropout=0.3)


class Letters:
    """A row for each of the first letters, and zeros after them; what is empty gets a row of ones."""

    dim, length, fingerprint, trainable = 4, 64, "letters", False

    def encode(self, captions: Sequence[str]) -> torch.Tensor:
        rows = torch.zeros(len(captions), self.length, self.dim)
        for place, caption in enumerate(captions):
            codes = [ord(letter) for letter in caption[: self.length]] or [1]
            rows[place, : len(codes)] = torch.tensor(codes, dtype=torch.float32)[:, None] / 8
        return rows


ENCODERS = Encoders(PixelLatents(PixelLatentsConfig(factor=8), torch.device("cpu")), Letters())
PARTS = CacheParts.of(CONFIG, ENCODERS.latents, ENCODERS.text)


def configured(**changes: Any) -> DataConfig:
    return DataConfig.model_validate({**CONFIG.model_dump(), **changes})


def encode_all(shards: str, cache: LatentCache) -> list:
    encode_empty_caption(ENCODERS, cache)
    return [
        skipped
        for name in ("train", "val")
        for split in [open_split(CONFIG, shards, name)]
        for shard in split.index.shards()
        for skipped in encode_shard(split, shard, ENCODERS, cache)
    ]


@pytest.fixture(scope="module")
def encoded(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The shards with their latents beside them. Not to be changed: take ``own`` for that."""
    folder = str(shutil.copytree(shards, tmp_path_factory.mktemp("encoded") / "shards"))
    assert encode_all(folder, LatentCache(folder, PARTS)) == []
    return folder


@pytest.fixture
def own(encoded: str, tmp_path: Path) -> str:
    return str(shutil.copytree(encoded, tmp_path / "own"))


def cached(shards: str, split: str = "train", parts: CacheParts = PARTS, **changes: Any):
    return open_cached_data(configured(**changes), shards, split, LatentCache(shards, parts), seed=0)


def assert_equal(one: LatentBatch, other: LatentBatch) -> None:
    assert (one.keys, one.positions, one.captions) == (other.keys, other.positions, other.captions)
    for name in ("weights", "video", "references", "text"):
        assert torch.equal(getattr(one, name), getattr(other, name)), name


@pytest.mark.parametrize("workers", [0, 2])
def test_validation_equals_encoding_on_the_spot(encoded: str, workers: int) -> None:
    pixels = open_data(CONFIG, encoded, "val", seed=0)
    for world in (1, 2):
        found = list(cached(encoded, "val", workers=workers, micro_batch=1).once(rank=world - 1, world=world))
        plain = open_data(configured(micro_batch=1), encoded, "val", seed=0).once(rank=world - 1, world=world)
        for one, pixel in zip(found, plain, strict=True):
            if pixel.weights.any():
                assert_equal(one, ENCODERS.encoded(pixel))
            else:
                assert not one.weights.any()
    assert len(list(cached(encoded, "val").once())) == len(list(pixels.once()))


def test_training_has_the_order_and_the_draws_of_pixels(encoded: str) -> None:
    dropped = 0
    pairs = zip(cached(encoded).stream(), open_data(CONFIG, encoded, "train", seed=0).stream(), strict=False)
    for found, pixel in itertools.islice(pairs, 16):
        plain = ENCODERS.encoded(pixel)
        # Windows are those in the middle; all else is drawn as without a cache.
        assert found.video.shape == plain.video.shape
        assert_equal(replace(found, video=plain.video), plain)
        dropped += sum(not caption for caption in found.captions)
    assert dropped > 2


def test_ranks_and_workers_give_the_same(encoded: str) -> None:
    whole = list(itertools.islice(cached(encoded).stream(), 8))
    for rank in (0, 1):
        stream = cached(encoded, workers=1).stream(rank=rank, world=2, accumulate=2)
        for one, other in zip(whole[rank::2], stream, strict=False):
            assert_equal(one, other)


def test_object_storage_gives_the_same(encoded: str) -> None:
    filesystem = fsspec.filesystem("memory")
    filesystem.put(encoded, "/latents-bucket/shards", recursive=True)
    try:
        pairs = zip(cached(encoded).stream(), cached("memory://latents-bucket/shards").stream(), strict=False)
        for one, other in itertools.islice(pairs, 8):
            assert_equal(one, other)
    finally:
        filesystem.rm("/latents-bucket", recursive=True)


def test_encoding_writes_to_object_storage(shards: Path, encoded: str) -> None:
    filesystem = fsspec.filesystem("memory")
    filesystem.put(str(shards), "/fresh-bucket/shards", recursive=True)
    try:
        cache = LatentCache("memory://fresh-bucket/shards", PARTS)
        encode_all("memory://fresh-bucket/shards", cache)
        written = {path.name: path.read_bytes() for path in Path(LatentCache(encoded, PARTS).uri).iterdir()}
        root = f"/fresh-bucket/shards/latents/{PARTS.fingerprint}"
        assert {name.rsplit("/", 1)[-1] for name in filesystem.ls(root, detail=False)} == written.keys()
        assert all(filesystem.cat_file(f"{root}/{name}") == data for name, data in written.items())
    finally:
        filesystem.rm("/fresh-bucket", recursive=True)


def test_bfloat16_takes_half_and_is_another_cache(own: str) -> None:
    parts = replace(PARTS, precision="bfloat16")
    cache = LatentCache(own, parts)
    encode_all(own, cache)
    assert cache.uri != LatentCache(own, PARTS).uri
    sizes = [
        sum(path.stat().st_size for path in Path(uri).glob("train*"))
        for uri in (cache.uri, LatentCache(own, PARTS).uri)
    ]
    assert 0.45 < sizes[0] / sizes[1] < 0.6
    for one, other in zip(cached(own, "val", parts).once(), cached(own, "val").once(), strict=True):
        assert one.video.dtype == torch.float32
        assert torch.equal(one.video, other.video.bfloat16().float())


def test_many_may_write_one_file_at_once(shards: Path, tmp_path: Path) -> None:
    """Every worker of an encode job publishes the empty caption when it starts."""
    cache = LatentCache(str(shutil.copytree(shards, tmp_path / "shards")), PARTS)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: encode_empty_caption(ENCODERS, cache), range(64)))
    assert {path.name for path in Path(cache.uri).iterdir()} == {"empty.safetensors", "parts.json"}


@pytest.mark.parametrize(
    "change",
    [
        {"latents": "other"},
        {"text": "other"},
        {"text": None},
        {"buckets": (Bucket(5, 32, 48),)},
        {"fps": 8.0},
        {"skip": 2},
        {"precision": "bfloat16"},
    ],
)
def test_the_fingerprint_changes_with_every_part(change: dict[str, Any]) -> None:
    assert replace(PARTS, **change).fingerprint != PARTS.fingerprint
    assert replace(PARTS).fingerprint == PARTS.fingerprint


class TestMissing:
    def test_nothing_is_encoded(self, shards: Path) -> None:
        cache = LatentCache(str(shards), PARTS)
        assert cache.missing(["train-000000.tar"]) == ["train-000000.tar"]
        with pytest.raises(DataError, match="3 shards of the split 'train' have no latents"):
            cached(str(shards))

    def test_shards_that_were_packed_anew(self, own: str) -> None:
        manifest = Path(own, "manifest.json")
        about = json.loads(manifest.read_text())
        (entry,) = (entry for entry in about["shards"] if entry["file"] == "train-000001.tar")
        entry["fingerprint"] = "0123456789abcdef"
        manifest.write_text(json.dumps(about))
        shards = ["train-000000.tar", "train-000001.tar", "train-000002.tar"]
        assert LatentCache(own, PARTS).missing(shards) == ["train-000001.tar"]
        with pytest.raises(DataError, match=r"1 shards .* such as train-000001.tar"):
            cached(own)

    def test_no_empty_caption(self, own: str) -> None:
        Path(LatentCache(own, PARTS).uri, "empty.safetensors").unlink()
        assert LatentCache(own, PARTS).missing(["train-000000.tar"]) == ["train-000000.tar"]

    def test_no_manifest(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match=r"no manifest\.json"):
            LatentCache(str(tmp_path), PARTS)

    def test_augmentation_needs_pixels(self, encoded: str) -> None:
        with pytest.raises(DataError, match="augment"):
            cached(encoded, augment={"flip": 0.5})


class TestDamage:
    @pytest.mark.parametrize(
        "spoil",
        [
            lambda data: data[:100],
            lambda data: data[: len(data) * 3 // 4],
            lambda data: b"",
            lambda data: b"\xff" * len(data),
            lambda data: bytes(8) + data[8:],
        ],
    )
    def test_costs_the_samples_of_one_file(self, own: str, spoil) -> None:
        cache = LatentCache(own, PARTS)
        file = Path(cache.uri, cache.file_of("train-000001.tar"))
        file.write_bytes(spoil(file.read_bytes()))
        batches = list(itertools.islice(cached(own, workers=1).stream(), 8))
        skipped = Counter(skip.key for batch in batches for skip in batch.skipped)
        split = open_split(CONFIG, own, "train")
        there = {split.index[row].key for row in split.index.rows_of("train-000001.tar")}
        assert skipped
        assert set(skipped) <= there
        assert sum(float(batch.weights.sum()) for batch in batches) == 12 - len(skipped)

    def test_samples_that_were_not_encoded(self, own: str, shards: Path) -> None:
        split = open_split(CONFIG, own, "train")
        row = split.index.rows_of("train-000000.tar")[0]
        sample = split.index[row]
        tar = Path(own, "train-000000.tar")
        data = bytearray(tar.read_bytes())
        span = sample.span("mp4")
        data[span.offset : span.offset + span.size] = bytes(span.size)
        tar.write_bytes(bytes(data))
        cache = LatentCache(own, PARTS)
        skipped = encode_shard(split, "train-000000.tar", ENCODERS, cache)
        assert [(skip.key, skip.reason) for skip in skipped] == [(f"{sample.key}.mp4", "video unreadable")]
        found = [skip for batch in itertools.islice(cached(own).stream(), 8) for skip in batch.skipped]
        assert [(skip.key, skip.reason) for skip in found] == [(sample.key, "not encoded")]


@given(
    tensors=st.dictionaries(
        st.text(min_size=1, max_size=5),
        st.tuples(st.lists(st.integers(0, 4), max_size=3), st.sampled_from([torch.float32, torch.bfloat16])),
        max_size=5,
    )
)
def test_offsets_are_those_of_safetensors(tensors: dict[str, Any]) -> None:
    named = {name: torch.rand(shape).to(dtype) for name, (shape, dtype) in tensors.items() if name != "__metadata__"}
    data = save(named)
    size = int.from_bytes(data[:8], "little")
    found = stored_tensors("file", data[8 : 8 + size])
    assert found.keys() == named.keys() == load(data).keys()
    for name, stored in found.items():
        part = data[stored.span.offset : stored.span.offset + stored.span.size]
        assert torch.equal(stored.restore(part), named[name].float())


def test_trimming_leaves_out_rows_of_zeros_at_the_end_alone() -> None:
    text = torch.tensor([[0.0, 0], [1, 0], [0, 0], [0, -2], [0, 0], [0, 0]])
    assert torch.equal(trimmed(text), text[:4])
    assert trimmed(torch.zeros(3, 2)).shape == (0, 2)
