from __future__ import annotations

from pathlib import Path

import pytest
from tiny_runs import write_config

from stages.config import CONFIG_FOLDER, ConfigError, load
from training.config import DEFAULT_TRAIN_CONFIG, TrainConfig, resolve

SHIPPED = sorted((CONFIG_FOLDER / "train").glob("*.yaml"))


class TestShipped:
    @pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.stem)
    def test_loads(self, file: Path) -> None:
        config = load(TrainConfig, file)
        assert config.optimiser.betas == (0.9, 0.95)

    def test_are_those_that_are_promised(self) -> None:
        assert {file.stem for file in SHIPPED} >= {"tiny", "wan1.3b", "wan14b", "kaleido-sft"}
        assert DEFAULT_TRAIN_CONFIG in SHIPPED

    def test_default_is_the_tiny_one(self) -> None:
        assert resolve(None) == DEFAULT_TRAIN_CONFIG
        assert resolve(Path("mine.yaml")) == Path("mine.yaml")


class TestDefaults:
    def test_are_the_released_recipe(self) -> None:
        config = TrainConfig.model_validate({"latents": {"backend": "pixel"}, "text": {"backend": "words"}})
        optimiser = config.optimiser
        assert (optimiser.lr, optimiser.eps, optimiser.weight_decay, optimiser.clip) == (5e-6, 1e-8, 1e-4, 0.1)
        assert (config.steps, config.accumulate, config.data.micro_batch) == (5000, 8, 1)
        assert (config.data.fps, config.data.skip, config.data.max_references) == (16, 3, 3)
        assert config.data.buckets == ((81, 480, 832),)
        assert (config.data.text_dropout, config.data.reference_dropout) == (0.1, 0)
        assert config.parallel.precision == "bf16"
        sampler = config.sampler
        assert (sampler.steps, sampler.guidance, sampler.shift) == (50, 6, 7)
        assert (sampler.height, sampler.width, sampler.frames) == (512, 896, 81)


class TestRefused:
    @pytest.mark.parametrize(
        ("override", "says"),
        [
            ("stpes=3", "stpes: there is no such key"),
            ("optimiser.learning_rate=3", "optimiser.learning_rate: there is no such key"),
            ("data.bucket=[]", "data.bucket: there is no such key"),
            ("steps=0", "steps"),
            ("optimiser.clip=0", "optimiser.clip"),
            ("optimiser.ema=1", "optimiser.ema"),
            ("parallel.precision=fp16", "parallel.precision"),
            ("latents.backend=vae", "latents"),
            ("checkpoint.keep=0", "checkpoint.keep"),
            ("log.tracker=mlflow", "log.tracker"),
            ("lora={rank: 4}", "lora: adapters need trained weights under them: set model.checkpoint"),
            ("steps", "'steps' is no override"),
        ],
    )
    def test_names_the_key(self, tmp_path: Path, override: str, says: str) -> None:
        with pytest.raises(ConfigError) as error:
            load(TrainConfig, write_config(tmp_path / "config.yaml"), [override])
        assert says in str(error.value)

    def test_no_such_file(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=r"mine.yaml does not exist; .*configs/train/tiny.yaml"):
            load(TrainConfig, tmp_path / "mine.yaml")
