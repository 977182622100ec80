from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import Planned, planned
from PIL import Image as Pictures
from tiny_runs import configured, curve, final_weights, metrics, on_ranks, train, trainer_of

from models.errors import UserError
from stages.media import probe
from training import flow
from training.data import open_data
from training.encoding import Encoders
from training.latents import build_latents
from training.model import build_model, training_flops
from training.parallel import ParallelError
from training.shard_index import DataError
from training.student import Student
from training.text import build_text
from training.trainer import DivergedError

STEPS = 4
CLOSE = {"rtol": 2e-5, "atol": 1e-7}


class Plain:
    """The same run without the trainer: one module, one graph per step, nothing sharded."""

    def __init__(self, shards: Path, changes: Mapping[str, Any] | None = None) -> None:
        config = configured(changes)
        torch.manual_seed(config.seed)
        encoders = Encoders(build_latents(config.latents), build_text(config.text))
        model = build_model(config.model, encoders.latents.channels, encoders.text.dim, device="cpu", seed=config.seed)
        student = Student(model, encoders.text)
        weights = dict(student.named_parameters())
        optimiser = torch.optim.AdamW(
            [
                {"params": [p for name, p in weights.items() if p.ndim > 1 and "norm" not in name]},
                {"params": [p for name, p in weights.items() if not (p.ndim > 1 and "norm" not in name)]},
            ],
            betas=config.optimiser.betas,
            eps=config.optimiser.eps,
        )
        for group, decay in zip(optimiser.param_groups, (config.optimiser.weight_decay, 0.0), strict=True):
            group["weight_decay"] = decay
        batches = open_data(config.data, str(shards), "train", seed=config.seed).stream()
        self.samples: list[dict[str, float]] = []
        """Per step, the loss of each sample that counts."""
        self.curve: list[tuple[float, ...]] = []
        for step in range(config.steps):
            losses: dict[str, torch.Tensor] = {}
            for batch in islice(batches, config.accumulate):
                latents = encoders.encoded(batch)
                noise, sigma = flow.draw(config.flow, config.seed, batch.positions, latents.video.shape[1:])
                noisy = flow.add_noise(latents.video, noise, sigma)
                each = flow.loss(student(latents, noisy.video, noisy.timestep), noisy.target)
                counted = zip(batch.keys, each, batch.weights, strict=True)
                losses |= {key: loss for key, loss, weight in counted if weight}
            mean = torch.stack(list(losses.values())).mean()
            mean.backward()
            norm = torch.nn.utils.clip_grad_norm_(weights.values(), config.optimiser.clip)
            for group in optimiser.param_groups:
                group["lr"] = config.optimiser.lr * min(1, (step + 1) / (config.optimiser.warmup + 1))
            optimiser.step()
            optimiser.zero_grad()
            self.samples.append({key: loss.item() for key, loss in losses.items()})
            self.curve.append((step + 1, mean.item(), norm.item()))
        self.weights = {name: parameter.detach().numpy() for name, parameter in weights.items()}


def assert_same_weights(one: Mapping[str, np.ndarray], other: Mapping[str, np.ndarray], **tolerance: float) -> None:
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_allclose(one[name], other[name], err_msg=name, **(tolerance or {"rtol": 1e-3, "atol": 2e-5}))


@pytest.fixture(scope="module")
def plain(shards: Path) -> Plain:
    return Plain(shards, {"steps": STEPS})


@pytest.fixture
def same_video_again(make_shards: Callable[..., Path]) -> Path:
    """Shards of which the index names one video with two subjects twelve times."""
    folder: Path = make_shards([Planned("a", pictures=("0.original.0.png", "1.original.0.png"))])
    (row,) = pq.read_table(folder / "index.parquet").to_pylist()
    rows = pa.Table.from_pylist([row] * 12, pq.read_schema(folder / "index.parquet"))
    pq.write_table(rows, folder / "index.parquet")
    return folder


class TestStep:
    def test_is_that_of_a_plain_loop(self, shards: Path, tmp_path: Path, plain: Plain) -> None:
        weights = final_weights(shards, tmp_path, {"steps": STEPS})
        np.testing.assert_allclose(curve(tmp_path), plain.curve, **CLOSE)
        assert max(norm for _, _, norm in plain.curve) > 0.1, "gradients are clipped"
        assert_same_weights(weights, plain.weights)

    def test_is_the_same_recomputed(self, shards: Path, tmp_path: Path, plain: Plain) -> None:
        weights = final_weights(shards, tmp_path, {"steps": STEPS, "parallel.recompute": True})
        np.testing.assert_allclose(curve(tmp_path), plain.curve, **CLOSE)
        assert_same_weights(weights, plain.weights)

    @pytest.mark.timeout(600)
    def test_is_the_same_compiled(self, same_video_again: Path, tmp_path: Path) -> None:
        _need_a_compiler()
        changes = {"steps": 2, "model.layers": 1, "data.micro_batch": 1, "accumulate": 1}
        plain = Plain(same_video_again, changes)
        arguments = same_video_again, tmp_path / "run", changes | {"parallel.compile": True}
        (weights,) = on_ranks(1, _compiled_weights, *arguments, folder=tmp_path, timeout_s=500)
        np.testing.assert_allclose(curve(tmp_path / "run"), plain.curve, **CLOSE)
        assert_same_weights(weights, plain.weights)

    def test_accumulated_is_that_of_a_larger_batch(self, same_video_again: Path, tmp_path: Path) -> None:
        weights = []
        for micro_batch, accumulate in ((1, 4), (2, 2), (4, 1)):
            changes = {
                "steps": 3,
                "accumulate": accumulate,
                "data.micro_batch": micro_batch,
                "data.shuffle_references": False,
                "data.text_dropout": 0,
            }
            weights.append(final_weights(same_video_again, tmp_path / f"{accumulate}", changes))
        np.testing.assert_allclose(curve(tmp_path / "4"), curve(tmp_path / "1"), **CLOSE)
        np.testing.assert_allclose(curve(tmp_path / "2"), curve(tmp_path / "1"), **CLOSE)
        assert_same_weights(weights[0], weights[2])
        assert_same_weights(weights[1], weights[2])

    def test_is_the_mean_of_the_samples_that_could_be_read(
        self, make_shards: Callable[..., Path], tmp_path: Path
    ) -> None:
        damaged = make_shards(planned())
        whole = Plain(damaged, {"steps": 1, "accumulate": 4})
        lost = sorted(whole.samples[0])[1]
        _overwrite(damaged, lost, "mp4")
        said = train(damaged, tmp_path / "run", {"steps": 1, "accumulate": 4})
        (line,) = metrics(tmp_path / "run")
        left = [loss for key, loss in whole.samples[0].items() if key != lost]
        assert line["samples"] == len(left) == len(whole.samples[0]) - 1
        assert line["loss"] == pytest.approx(np.mean(left), rel=1e-5)
        assert f"skipped {lost}" in said
        assert "skipped samples: 1 x " in said
        # Gradients are those of that mean, too.
        np.testing.assert_allclose(
            curve(tmp_path / "run"), Plain(damaged, {"steps": 1, "accumulate": 4}).curve, **CLOSE
        )

    def test_does_not_depend_on_the_processes_that_read(self, shards: Path, tmp_path: Path, plain: Plain) -> None:
        train(shards, tmp_path, {"steps": STEPS, "data.workers": 1})
        np.testing.assert_allclose(curve(tmp_path), plain.curve, **CLOSE)

    def test_diverged(self, shards: Path, tmp_path: Path) -> None:
        with pytest.raises(DivergedError, match=r"loss of step \d+ is (nan|inf).*checkpoint.*optimiser.lr"):
            train(shards, tmp_path, {"optimiser.lr": 1e30, "optimiser.clip": 1e9, "optimiser.warmup": 0})


class TestPrecision:
    def test_positions_timesteps_and_loss_stay_exact_in_bf16(
        self, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        seen: dict[str, set[torch.dtype]] = {}

        def note(name: str, *tensors: Any) -> None:
            seen.setdefault(name, set()).update(t.dtype for t in tensors if isinstance(t, torch.Tensor))

        measured = flow.loss

        def loss(prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
            result = measured(prediction, target)
            note("loss", prediction, target, result)
            return result

        monkeypatch.setattr(flow, "loss", loss)
        with trainer_of(shards, tmp_path, {"steps": 1, "parallel.precision": "bf16"}) as trainer:
            transformer = trainer.student.transformer
            transformer.rope.register_forward_hook(lambda _, __, out: note("rope", *out))
            embedder = transformer.condition_embedder
            embedder.timesteps_proj.register_forward_hook(lambda _, given, out: note("timestep", *given, out))
            embedder.time_embedder.register_forward_hook(lambda _, given, out: note("time embedder", *given, out))
            embedder.time_embedder.linear_1.register_forward_hook(lambda m, *_: note("time embedder", m.weight))
            transformer.blocks[0].register_forward_hook(lambda _, __, out: note("block", out))
            transformer.blocks[0].ffn.register_forward_hook(lambda _, given, out: note("ffn", *given, out))
            transformer.blocks[0].register_forward_pre_hook(lambda _, given: note("block's rope", *given[3]))
            trainer.train(lambda: False)
            parameters = {parameter.dtype for parameter in trainer.student.named_trained().values()}
        exact = {torch.float32}
        assert {name: seen[name] for name in ("rope", "block's rope", "timestep", "loss")} == dict.fromkeys(
            ("rope", "block's rope", "timestep", "loss"), exact
        )
        assert seen["time embedder"] == exact
        assert seen["block"] == seen["ffn"] == {torch.bfloat16}
        assert parameters == exact, "weights at rest"

    def test_bf16_is_close_to_fp32(self, shards: Path, tmp_path: Path, plain: Plain) -> None:
        train(shards, tmp_path, {"steps": STEPS, "parallel.precision": "bf16"})
        np.testing.assert_allclose(curve(tmp_path), plain.curve, rtol=0.03)
        assert not np.allclose(curve(tmp_path), plain.curve, rtol=1e-6)


@pytest.fixture(scope="module")
def run(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A run that learns, and what it said."""
    folder = tmp_path_factory.mktemp("learned")
    changes = {
        "steps": TestWholeRun.STEPS,
        "optimiser.lr": 3e-3,
        "optimiser.clip": 1.0,
        "optimiser.ema": 0.9,
        "checkpoint.every": 60,
        "checkpoint.keep": 1,
        "validation": {"every": 40, "batches": 4, "videos": 2},
        "log": {"every": 40, "tensorboard": True},
    }
    return folder, train(shards, folder, changes)


class TestWholeRun:
    STEPS = 80

    def test_the_loss_falls_well_below_its_start(self, run: tuple[Path, str]) -> None:
        losses = [line["loss"] for line in metrics(run[0])]
        assert np.mean(losses[-10:]) < 0.65 * np.mean(losses[:10])

    def test_so_does_that_of_samples_never_trained_on(self, run: tuple[Path, str]) -> None:
        lines = [json.loads(line) for line in (run[0] / "metrics.jsonl").read_text().splitlines()]
        found = {line["step"]: line["val_loss"] for line in lines if "val_loss" in line}
        assert list(found) == [40, 80]
        assert found[80] < 0.75 * found[40]

    def test_metrics_of_every_step(self, run: tuple[Path, str]) -> None:
        lines = metrics(run[0])
        assert [line["step"] for line in lines] == list(range(1, self.STEPS + 1))
        expected = {"loss", "gradient_norm", "lr", "samples", "samples_per_s", "tokens_per_s", "mfu", "data_wait_share"}
        for line in lines:
            assert line.keys() >= expected | {"memory_gb", "seconds", "step"}
            bands = [line[name] for name in line if name.startswith("loss_band_")]
            assert min(bands) - 1e-6 <= line["loss"] <= max(bands) + 1e-6
            assert line["samples_per_s"] == pytest.approx(line["samples"] / line["seconds"])
            assert 0 <= line["data_wait_share"] < 1
        assert {name for line in lines for name in line if "band" in name} == {f"loss_band_{n}" for n in range(4)}

    def test_tensorboard_has_the_same(self, run: tuple[Path, str]) -> None:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        events = EventAccumulator(str(run[0] / "tensorboard")).Reload()
        points = [(point.step, point.value) for point in events.Scalars("loss")]
        np.testing.assert_allclose(points, [(line["step"], line["loss"]) for line in metrics(run[0])], rtol=1e-6)
        assert [point.step for point in events.Scalars("val_loss")] == [40, 80]

    def test_samples_to_look_at(self, run: tuple[Path, str]) -> None:
        val = {sample.key: sample for sample in planned() if sample.split == "val"}
        for step in (40, 80):
            folder = run[0] / "samples" / f"step-{step:08d}"
            videos = sorted(folder.glob("*.mp4"))
            assert len(videos) == 2
            for video in videos:
                sample = val[video.stem]
                width, height = (24, 16) if sample.size[0] > sample.size[1] else (16, 24)
                media = probe(video)
                assert (media.width, media.height) == (width, height)
                with Pictures.open(video.with_suffix(".png")) as strip:
                    subjects = len({name.split(".")[0] for name in sample.pictures})
                    assert strip.size == ((subjects + 6) * width, height)

    def test_tells_how_it_goes(self, run: tuple[Path, str]) -> None:
        said = run[1]
        assert "12 samples" in said
        assert "step 80/80  loss" in said
        assert "MFU" in said
        assert "validation loss" in said
        assert f"done at step 80; saved in {run[0] / 'checkpoints' / 'step-00000080'}" in said

    def test_keeps_as_many_checkpoints_as_it_should(self, run: tuple[Path, str]) -> None:
        assert [folder.name for folder in (run[0] / "checkpoints").iterdir()] == ["step-00000080"]

    def test_a_run_that_is_done_does_nothing(self, run: tuple[Path, str], shards: Path) -> None:
        before = (run[0] / "metrics.jsonl").read_bytes()
        said = train(shards, run[0], {"steps": self.STEPS, "optimiser.ema": 0.9})
        assert said.splitlines()[-1] == f"{run[0]}: all 80 steps are done"
        assert (run[0] / "metrics.jsonl").read_bytes() == before


class TestThroughput:
    def test_mfu_and_tokens_are_those_of_the_closed_form(self, same_video_again: Path, tmp_path: Path) -> None:
        changes = {"steps": 2, "accumulate": 3}
        with trainer_of(same_video_again, tmp_path, changes) as trainer:
            trainer.train(lambda: False)
            peak, geometry = trainer.peak, trainer.geometry
        config = configured(changes)
        video, references = 3 * 4 * 6, 2 * 4 * 6
        flops = training_flops(geometry, video, references, config.text.length)
        for line in metrics(tmp_path):
            assert line["samples"] == 6
            assert line["tokens_per_s"] * line["seconds"] == pytest.approx(6 * (video + references))
            assert line["mfu"] * line["seconds"] * peak == pytest.approx(6 * flops)


class TestValidation:
    def test_looks_at_the_average(self, shards: Path, tmp_path: Path) -> None:
        """Which lags behind the weights, so that its loss is another."""
        found = {}
        for ema in (None, 0.99):
            run = tmp_path / str(ema)
            train(
                shards,
                run,
                {
                    "steps": 4,
                    "optimiser.lr": 1e-2,
                    "optimiser.ema": ema,
                    "validation.every": 4,
                    "validation.batches": 2,
                },
            )
            found[ema] = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])["val_loss"]
        assert curve(tmp_path / "None") == curve(tmp_path / "0.99"), "the average changes nothing else"
        assert found[None] != pytest.approx(found[0.99], rel=1e-4)

    def test_without_val_shards(self, make_shards: Callable[..., Path], tmp_path: Path) -> None:
        bare = make_shards([sample for sample in planned() if sample.split == "train"])
        train(bare, tmp_path, {"steps": 2, "validation": {"every": 1, "batches": 1, "videos": 1}})
        assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 2
        assert not (tmp_path / "samples").exists()


class TestRefusals:
    """What can be known before the first step is said then, and nothing was trained."""

    @pytest.mark.parametrize(
        ("changes", "error", "says"),
        [
            ({"data.buckets": [[3, 18, 24]]}, DataError, r"\[3, 18, 24\] does not fit.*multiples of 4"),
            ({"data.buckets": [[3, 16, 24]], "model.patch_size": [3, 1]}, DataError, "heights in multiples of 12"),
            ({"data.buckets": [[300, 16, 24]]}, DataError, "no video .* is long enough.*data.buckets"),
            ({"data.kinds": {"painted": 1}}, DataError, "painted.*kinds that there are"),
            ({"parallel.replicate": 2}, ParallelError, "makes 2 ranks, but 1 were started"),
            ({"parallel.shard": 3}, ParallelError, "makes 3 ranks, but 1 were started"),
            ({"parallel.context": 5}, DataError, "24 tokens of a frame .*parallel.context=5"),
            ({"model.checkpoint": "nowhere"}, UserError, "nowhere.*config.json"),
        ],
    )
    def test_of_configs(
        self, shards: Path, tmp_path: Path, changes: dict[str, Any], error: type[UserError], says: str
    ) -> None:
        with pytest.raises(error, match=says):
            train(shards, tmp_path / "run", changes)
        assert not (tmp_path / "run" / "metrics.jsonl").exists()

    def test_of_shards_without_references(self, make_shards: Callable[..., Path], tmp_path: Path) -> None:
        bare = make_shards([Planned("a"), Planned("b")])
        with pytest.raises(DataError, match=r"no sample .* has a reference.*max_references=0"):
            train(bare, tmp_path / "run")
        train(bare, tmp_path / "run", {"steps": 1, "data.max_references": 0})
        assert len(metrics(tmp_path / "run")) == 1

    def test_of_missing_captions(self, make_shards: Callable[..., Path], tmp_path: Path) -> None:
        mute = make_shards([Planned("a", caption="", pictures=("0.original.0.png",)), *planned()])
        with pytest.raises(DataError, match=r"have no caption, such as a.*leave_out"):
            train(mute, tmp_path / "run")

    def test_of_no_shards(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match=r"there is no folder .*s2v curate"):
            train(tmp_path / "nothing", tmp_path / "run")


def _overwrite(shards: Path, key: str, extension: str) -> None:
    rows = pq.read_table(shards / "index.parquet").to_pylist()
    row = next(row for row in rows if row["key"] == key)
    member = next(member for member in row["members"] if member["extension"] == extension)
    with (shards / row["shard"]).open("r+b") as tar:
        tar.seek(member["offset"])
        tar.write(bytes(member["size"]))


def _compiled_weights(shards: Path, run: Path, changes: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """In a process of its own: what compiling changes there is gone with it."""
    os.environ |= {"TORCHINDUCTOR_CACHE_DIR": str(run.parent / "compiled"), "TORCHINDUCTOR_COMPILE_THREADS": "1"}
    weights = final_weights(shards, run, changes)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0, "nothing was compiled"
    return weights


def _need_a_compiler() -> None:
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        pytest.skip("torch.compile needs a C++ compiler")
