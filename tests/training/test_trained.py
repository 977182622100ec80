from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed.checkpoint as dcp
from conftest import png_of
from tiny_runs import final_weights, on_ranks, train, trainer_of, weights_of, whole

from stages.config import ConfigError
from training.checkpoint import CheckpointError
from training.sampler import sample_video
from training.trained import Trained, load_trained

CHANGES = {"steps": 3, "checkpoint.every": 1, "checkpoint.keep": 3, "optimiser.ema": 0.9, "optimiser.lr": 1e-2}


@pytest.fixture(scope="module")
def run(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with averages and a checkpoint at every step. Not to be changed."""
    folder = tmp_path_factory.mktemp("run")
    train(shards, folder, CHANGES)
    return folder


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("pictures") / "a.png"
    file.write_bytes(png_of("a", "png"))
    return file


def generate(trained: Trained, picture: Path, seed: int = 0, prompt: str = "A disc.") -> np.ndarray:
    return sample_video(
        trained.student.transformer,
        trained.encoders.latents,
        trained.student.text,
        prompt,
        [picture],
        trained.config.sampler,
        seed,
    )


class TestLoaded:
    def test_is_the_average_of_the_newest(self, run: Path, shards: Path) -> None:
        with trainer_of(shards, run, CHANGES) as trainer:
            assert trainer.done == 3
            weights = weights_of(trainer)
            averages = {name: whole(value) for name, value in trainer.average.averages.items()}
        found = {name: p.detach().numpy() for name, p in load_trained(run).student.named_parameters()}
        assert found.keys() == averages.keys()
        for name in found:
            np.testing.assert_array_equal(found[name], averages[name])
        assert any(not np.array_equal(found[name], weights[name]) for name in found)

    def test_is_the_weights_where_there_is_no_average(self, shards: Path, tmp_path: Path) -> None:
        train(shards, tmp_path, {"steps": 1})
        with trainer_of(shards, tmp_path, {"steps": 1}) as trainer:
            weights = weights_of(trainer)
        for name, parameter in load_trained(tmp_path).student.named_parameters():
            np.testing.assert_array_equal(parameter.detach().numpy(), weights[name])

    def test_is_a_certain_one(self, run: Path) -> None:
        newest, first = (
            load_trained(folder).student.state_dict() for folder in (run, run / "checkpoints" / "step-00000001")
        )
        assert not torch.equal(newest["transformer.proj_out.weight"], first["transformer.proj_out.weight"])

    def test_takes_changes_to_its_config(self, run: Path) -> None:
        trained = load_trained(run, ["sampler.steps=7"])
        assert trained.config.sampler.steps == 7
        assert not trained.student.training
        with pytest.raises(ConfigError, match=r"sampler.stepz"):
            load_trained(run, ["sampler.stepz=7"])

    @pytest.mark.timeout(600)
    def test_was_sharded_over_two_ranks(self, run: Path, shards: Path, tmp_path: Path) -> None:
        changes = {**CHANGES, "steps": 1, "optimiser.ema": None}
        first, _ = on_ranks(2, final_weights, shards, tmp_path / "two", changes, folder=tmp_path)
        for name, parameter in load_trained(tmp_path / "two").student.named_parameters():
            np.testing.assert_array_equal(parameter.detach().numpy(), first[name])

    @pytest.mark.parametrize(
        ("damage", "says"),
        [
            (lambda run: shutil.rmtree(run / "checkpoints"), "neither a run with a checkpoint nor a checkpoint"),
            (lambda run: (run / "checkpoints/step-00000003/__0_0.distcp").write_bytes(b""), "step-00000003"),
            (lambda run: (run / "checkpoints/step-00000003/.metadata").write_bytes(b"x"), "step-00000003"),
            (lambda run: (run / "checkpoints/step-00000003/run.json").write_text("{}"), "step-00000003"),
            (
                lambda run: (run / "checkpoints/step-00000003/run.json").write_text(
                    '{"step": 3, "geometry": {}, "config": {"stpes": 3}}'
                ),
                "holds no config of this version",
            ),
        ],
        ids=["no checkpoints", "no tensors", "no metadata", "empty run.json", "another config"],
    )
    def test_is_damaged(self, run: Path, tmp_path: Path, damage: Callable[[Path], object], says: str) -> None:
        broken = Path(shutil.copytree(run, tmp_path / "broken"))
        damage(broken)
        with pytest.raises(CheckpointError, match=says):
            load_trained(broken)


class TestVideos:
    def test_follow_from_seed_prompt_and_pictures(self, run: Path, picture: Path) -> None:
        one, again = (generate(load_trained(run), picture) for _ in range(2))
        assert one.shape == (3, 16, 24, 3)
        assert one.dtype == np.uint8
        assert one.tobytes() == again.tobytes()
        assert one.tobytes() != generate(load_trained(run), picture, seed=1).tobytes()

    def test_are_of_the_average(self, run: Path, picture: Path) -> None:
        """Not of the weights that the average was taken of."""
        trained = load_trained(run)
        of_average = generate(trained, picture)
        tensors = {"model": {name: p.detach() for name, p in trained.student.named_trained().items()}}
        dcp.load(tensors, checkpoint_id=run / "checkpoints" / "step-00000003", no_dist=True)
        assert generate(trained, picture).tobytes() != of_average.tobytes()
