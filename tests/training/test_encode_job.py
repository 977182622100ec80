from __future__ import annotations

import shutil
from itertools import islice
from pathlib import Path

import pytest
import torch
import yaml

from stages.config import ConfigError, load
from training.batch import LatentBatch, PixelBatch
from training.config import TrainConfig
from training.encode_job import encode_shards
from training.encoding import Encoders
from training.feed import Feed, open_feed
from training.latents import build_latents
from training.shard_index import DataError
from training.text import build_text

SETTINGS = {
    "data": {"buckets": [[9, 32, 48], [9, 48, 32]], "micro_batch": 2, "workers": 0, "text_dropout": 0.3},
    "latents": {"backend": "pixel", "factor": 8},
    "text": {"backend": "words"},
    "cache": {"precision": "float32"},
}


@pytest.fixture(scope="module")
def config_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("config") / "config.yaml"
    file.write_text(yaml.safe_dump(SETTINGS))
    return file


@pytest.fixture(scope="module")
def encoded(shards: Path, config_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shards, encoded by a real Ray."""
    folder = tmp_path_factory.mktemp("job") / "shards"
    shutil.copytree(shards, folder)
    encode_shards(config_file, [], str(folder))
    return folder


def feed(config_file: Path, shards: Path, *overrides: str, split: str = "train") -> Feed:
    config = load(TrainConfig, config_file, overrides)
    encoders = Encoders(build_latents(config.latents), build_text(config.text))
    return open_feed(config, str(shards), split, encoders, seed=3)


@pytest.mark.timeout(600)
class TestJob:
    def test_every_shard_of_both_splits_is_there(self, encoded: Path) -> None:
        (cache,) = (encoded / "latents").iterdir()
        shards = {path.name.rpartition("-")[0] for path in cache.glob("*.safetensors")}
        assert shards >= {path.stem for path in encoded.glob("*.tar")}

    def test_running_again_writes_nothing(
        self, encoded: Path, config_file: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        before = {path: path.stat().st_mtime_ns for path in encoded.rglob("*")}
        encode_shards(config_file, [], str(encoded))
        assert {path: path.stat().st_mtime_ns for path in encoded.rglob("*")} == before
        assert "shards encoded in" in capsys.readouterr().out

    def test_shards_without_samples_that_fit_are_refused(self, encoded: Path, config_file: Path) -> None:
        with pytest.raises(DataError, match="fit"):
            encode_shards(config_file, ["data.buckets=[[900, 32, 48]]"], str(encoded))


class TestFeed:
    def test_auto_takes_the_cache_and_it_holds_what_the_encoders_give(self, encoded: Path, config_file: Path) -> None:
        cached = feed(config_file, encoded, split="val")
        read = feed(config_file, encoded, "cache.use=never", split="val")
        config = load(TrainConfig, config_file)
        encoders = Encoders(build_latents(config.latents), build_text(config.text))
        assert "cached in" in cached.origin
        pairs = list(zip(cached.data.once(), read.data.once(), strict=True))
        assert pairs
        for kept, raw in pairs:
            assert isinstance(kept, LatentBatch)
            assert isinstance(raw, PixelBatch)
            again = encoders.encoded(raw)
            assert kept.keys == again.keys
            assert torch.equal(kept.video, again.video)
            assert torch.equal(kept.references, again.references)

    def test_the_order_is_that_of_the_pixels(self, encoded: Path, config_file: Path) -> None:
        streams = [feed(config_file, encoded, f"cache.use={use}").data.stream() for use in ("require", "never")]
        for kept, raw in islice(zip(*streams, strict=False), 20):
            assert (kept.keys, kept.positions, kept.captions) == (raw.keys, raw.positions, raw.captions)

    def test_auto_reads_pixels_where_nothing_fits(self, encoded: Path, config_file: Path) -> None:
        other = feed(config_file, encoded, "latents.factor=4")
        assert "encoded as they are read" in other.origin
        assert isinstance(next(iter(other.data.once())), PixelBatch)

    def test_require_refuses_then(self, encoded: Path, config_file: Path) -> None:
        with pytest.raises(DataError, match="encode"):
            feed(config_file, encoded, "cache.use=require", "latents.factor=4")

    def test_unknown_uses_are_refused(self, encoded: Path, config_file: Path) -> None:
        with pytest.raises(ConfigError, match=r"cache\.use"):
            feed(config_file, encoded, "cache.use=maybe")
