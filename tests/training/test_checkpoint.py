from __future__ import annotations

import errno
import json
import shutil
from collections import namedtuple
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch.distributed.checkpoint as dcp
from tiny_runs import configured, curve, final_weights, train, trainer_of, weights_of

from stages.config import ConfigError, change
from training.checkpoint import CheckpointError, check_space, checkpoints, describe, latest_checkpoint
from training.config import TrainConfig
from training.encoding import Encoders
from training.latents import build_latents
from training.model import build_model
from training.text import build_text

Usage = namedtuple("Usage", "total used free")
CHANGES = {"steps": 4, "checkpoint.every": 2, "optimiser.ema": 0.9}


@pytest.fixture(scope="module")
def trained(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 4 steps with checkpoints at 2 and 4. Not to be changed: take ``run`` for that."""
    folder = tmp_path_factory.mktemp("trained")
    train(shards, folder, CHANGES)
    return folder


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "run"))


def names(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "checkpoints").iterdir())


class TestKept:
    def test_are_the_newest(self, shards: Path, tmp_path: Path) -> None:
        train(shards, tmp_path, {"steps": 5, "checkpoint.every": 1, "checkpoint.keep": 3})
        assert names(tmp_path) == ["step-00000003", "step-00000004", "step-00000005"]
        assert latest_checkpoint(tmp_path / "checkpoints") == tmp_path / "checkpoints" / "step-00000005"

    def test_say_what_they_are(self, trained: Path) -> None:
        assert names(trained) == ["step-00000002", "step-00000004"]
        description = describe(trained / "checkpoints" / "step-00000004")
        assert description["step"] == 4
        assert TrainConfig.model_validate(description["config"]) == configured(CHANGES)
        assert description["geometry"]["num_layers"] == 2

    def test_order_is_that_of_the_steps(self, tmp_path: Path) -> None:
        for name in ("step-00000010", "step-00000009", "step-00000011.partial", "step-00000008"):
            (tmp_path / name).mkdir()
            (tmp_path / name / ".metadata").touch()
        (tmp_path / "step-00000012").mkdir()
        assert [path.name for path in checkpoints(tmp_path)] == ["step-00000008", "step-00000009", "step-00000010"]

    def test_there_may_be_none(self, tmp_path: Path) -> None:
        assert latest_checkpoint(tmp_path / "nowhere") is None


class TestResumed:
    def test_at_every_step_it_is_the_same_run(self, shards: Path, tmp_path: Path, trained: Path) -> None:
        expected = {}
        with trainer_of(shards, trained, CHANGES) as trainer:
            assert trainer.done == 4
            expected = weights_of(trainer)
        for _ in range(4):
            train(shards, tmp_path, CHANGES, steps=1)
        assert curve(tmp_path) == curve(trained)
        with trainer_of(shards, tmp_path, CHANGES) as trainer:
            weights = weights_of(trainer)
            averages = {name: value.full_tensor().numpy() for name, value in trainer.average.averages.items()}
        for name, value in expected.items():
            np.testing.assert_array_equal(weights[name], value)
            assert not np.array_equal(averages[name], value) or "patch_embedding" not in name

    def test_what_a_killed_run_left_is_ignored_and_removed(self, shards: Path, run: Path) -> None:
        partial = run / "checkpoints" / "step-00000006.partial"
        shutil.copytree(run / "checkpoints" / "step-00000004", partial)
        (partial / "__0_0.distcp").write_bytes(b"half of it")
        with trainer_of(shards, run, CHANGES) as trainer:
            assert trainer.done == 4
        assert names(run) == ["step-00000002", "step-00000004"]

    def test_older_checkpoint_if_the_newest_is_taken_away(self, shards: Path, run: Path, trained: Path) -> None:
        shutil.rmtree(run / "checkpoints" / "step-00000004")
        said = train(shards, run, CHANGES)
        assert "going on from step 2" in said
        assert curve(run) == curve(trained)

    def test_the_new_config_counts(self, shards: Path, run: Path) -> None:
        changes = {**CHANGES, "optimiser.lr": 5e-4, "optimiser.weight_decay": 0.25, "optimiser.betas": [0.8, 0.9]}
        with trainer_of(shards, run, changes) as trainer:
            trainer._step(trainer.done, trainer.feed.data.stream(trainer.done * 2, accumulate=2), 2)
            decayed, others = trainer.optimiser.param_groups
        assert decayed["lr"] == others["lr"] == 5e-4
        assert (decayed["weight_decay"], others["weight_decay"]) == (0.25, 0)
        assert tuple(decayed["betas"]) == (0.8, 0.9)


class TestOfAnotherModel:
    @pytest.mark.parametrize(
        "changes",
        [
            {"model.layers": 3},
            {"model.layers": 1},
            {"model.ffn_dim": 64},
            {"model.heads": 2, "model.head_dim": 32},
            {"model.offset": "video_grid"},
            {"text.rows": 65},
            {"optimiser.ema": 0.5},
        ],
    )
    def test_is_refused_before_the_first_step(
        self, shards: Path, run: Path, changes: dict[str, Any], tmp_path: Path
    ) -> None:
        before = (run / "metrics.jsonl").read_bytes()
        if "optimiser.ema" in changes:
            shutil.rmtree(run)
            train(shards, run, {"steps": 1})
            before = (run / "metrics.jsonl").read_bytes()
        with pytest.raises(CheckpointError, match=r"step-0000000\d .*"):
            train(shards, run, {**CHANGES, "steps": 6, **changes})
        assert (run / "metrics.jsonl").read_bytes() == before


class TestDamaged:
    @pytest.mark.parametrize(
        "damage",
        [
            lambda folder: (folder / ".metadata").write_bytes((folder / ".metadata").read_bytes()[:100]),
            lambda folder: (folder / ".metadata").write_bytes(b""),
            lambda folder: (folder / "__0_0.distcp").write_bytes((folder / "__0_0.distcp").read_bytes()[:5000]),
            lambda folder: (folder / "__0_0.distcp").unlink(),
            lambda folder: (folder / "run.json").unlink(),
            lambda folder: (folder / "run.json").write_text("{"),
            lambda folder: (folder / "run.json").write_text("{}"),
        ],
        ids=["metadata cut", "metadata empty", "tensors cut", "tensors gone", "no run.json", "cut run.json", "{}"],
    )
    def test_says_which(self, shards: Path, run: Path, damage: Callable[[Path], object]) -> None:
        damage(run / "checkpoints" / "step-00000004")
        with pytest.raises(CheckpointError, match="step-00000004"):
            train(shards, run, {**CHANGES, "steps": 6})


class TestFullDisk:
    def test_is_noticed_before_the_first_step(
        self, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(10**9, 10**9 - 10**6, 10**6))
        with pytest.raises(CheckpointError, match=r"0.0 GB free, but two checkpoints .* take 0.0 GB: make room"):
            train(shards, tmp_path)
        assert not (tmp_path / "metrics.jsonl").exists()

    def test_what_is_needed(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(0, 0, 200))
        check_space(tmp_path, 100, keep=1)
        with pytest.raises(CheckpointError):
            check_space(tmp_path, 101, keep=5)

    def test_while_writing_ends_no_run(self, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        write, written = dcp.FileSystemWriter.write_data, []

        def full_from_the_second_to_the_third(writer: Any, *arguments: Any) -> Any:
            written.append(writer.path)
            if len(written) in (2, 3):
                raise OSError(errno.ENOSPC, "No space left on device")
            return write(writer, *arguments)

        monkeypatch.setattr(dcp.FileSystemWriter, "write_data", full_from_the_second_to_the_third)
        said = train(shards, tmp_path, {"steps": 8})
        assert said.count("was not written: OSError: [Errno 28] No space left on device. Is the disk of") == 2
        assert said.count("The run goes on.") == 2
        assert [step for step, *_ in curve(tmp_path)] == list(range(1, 9))
        assert names(tmp_path) == ["step-00000002", "step-00000008"]

    def test_at_the_last_step_it_is_an_error_and_older_ones_stay(
        self, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        train(shards, tmp_path, {"steps": 4}, steps=2)

        def full(*_: Any) -> Any:
            raise OSError(errno.ENOSPC, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(dcp.FileSystemWriter, "write_data", full)
            with pytest.raises(CheckpointError, match=r"step-00000004 was not written.*No space left"):
                train(shards, tmp_path, {"steps": 4})
        assert names(tmp_path) == ["step-00000002"]
        assert "going on from step 2" in train(shards, tmp_path, {"steps": 4})

    def test_where_not_even_the_folder_can_be_made(
        self, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        write_text = Path.write_text

        def full(path: Path, *arguments: Any, **options: Any) -> int:
            if path.parent.name == "step-00000002.partial":
                raise OSError(errno.ENOSPC, "No space left on device")
            return write_text(path, *arguments, **options)

        monkeypatch.setattr(Path, "write_text", full)
        said = train(shards, tmp_path, {"steps": 3})
        assert "checkpoint step-00000002 was not written: OSError: [Errno 28]" in said
        assert names(tmp_path) == ["step-00000003"]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model to put adapters on."""
    folder = tmp_path_factory.mktemp("base")
    config = configured()
    encoders = Encoders(build_latents(config.latents), build_text(config.text))
    model = build_model(config.model, encoders.latents.channels, encoders.text.dim, device="cpu", seed=3)
    # Behind a last layer of zeros nothing would learn at first.
    model.proj_out.weight.data.normal_(std=0.1)
    model.save_pretrained(folder)
    return folder


class TestLora:
    CHANGES: Mapping[str, Any] = {
        "steps": 4,
        "lora": {"rank": 2, "alpha": 4, "targets": ["to_q", "ffn.net.2"]},
        "data.text_dropout": 0,
    }

    def test_trains_and_keeps_adapters_only(self, shards: Path, tmp_path: Path, base: Path) -> None:
        changes = {**self.CHANGES, "model.checkpoint": str(base)}
        with trainer_of(shards, tmp_path, changes) as trainer:
            before = {n: p.detach().full_tensor().numpy().copy() for n, p in trainer.student.named_parameters()}
            trained = set(trainer.student.named_trained())
            trainer.train(lambda: False)
            after = {n: p.detach().full_tensor().numpy() for n, p in trainer.student.named_parameters()}
        adapters = {name for name in trained if "lora_" in name}
        assert len(adapters) == 2 * (2 + 1) * 2, "of to_q in both attentions and of ffn.net.2, in two blocks"
        assert all(name in adapters or name.startswith("text.") for name in trained)
        changed = {name for name in before if not np.array_equal(before[name], after[name])}
        assert changed == trained
        stored = dcp.FileSystemReader(tmp_path / "checkpoints" / "step-00000004").read_metadata().state_dict_metadata
        weights = {name.removeprefix("model.") for name in stored if name.startswith("model.")}
        assert weights == trained
        assert all(any(key in name for key in trained) for name in stored if name.startswith("optimiser.state"))

    def test_resumes_exactly(self, shards: Path, tmp_path: Path, base: Path) -> None:
        changes = {**self.CHANGES, "model.checkpoint": str(base)}
        undisturbed = final_weights(shards, tmp_path / "undisturbed", changes)
        train(shards, tmp_path / "resumed", changes, steps=3)
        resumed = final_weights(shards, tmp_path / "resumed", changes)
        assert curve(tmp_path / "resumed") == curve(tmp_path / "undisturbed")
        assert {name: value.tobytes() for name, value in resumed.items()} == {
            name: value.tobytes() for name, value in undisturbed.items()
        }

    def test_needs_weights_under_the_adapters(self) -> None:
        with pytest.raises(ConfigError, match=r"lora: adapters need trained weights.*model.checkpoint"):
            change(configured(), ["lora.rank=4"])


def test_run_json_is_for_people_too(trained: Path) -> None:
    text = (trained / "checkpoints" / "step-00000004" / "run.json").read_text()
    assert json.loads(text)["config"]["optimiser"]["lr"] == 2e-3
    assert len(text.splitlines()) > 20
