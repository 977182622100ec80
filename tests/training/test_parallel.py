from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch.distributed as dist
from tiny_runs import curve, final_weights, on_ranks, train, trainer_of, weights_of
from torch.distributed.fsdp import FSDPModule

from models.errors import UserError

pytestmark = pytest.mark.timeout(600)

STEPS = 4
TRAINING = {"steps": STEPS, "accumulate": 4, "data.micro_batch": 1, "checkpoint.every": 2, "optimiser.clip": 1.0}
ARRANGEMENTS: dict[str, dict[str, Any]] = {
    "fsdp": {},
    "hsdp": {"parallel.replicate": 2},
    "context": {"parallel.context": 2},
    "context recomputed": {"parallel.context": 2, "parallel.recompute": True},
}
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "micro-batches": (
        {"accumulate": 3},
        "accumulate=3 micro-batches .* 2 ranks: set it to a multiple",
    ),
    "heads": ({"parallel.context": 2, "model.heads": 3}, "parallel.context=2 does not divide the model's 3 attention"),
    "more ranks": ({"parallel.replicate": 2, "parallel.context": 2}, "context 2 makes 4 ranks, but 2 were started"),
    "fewer ranks": ({"parallel.shard": 1}, "makes 1 ranks, but 2 were started"),
}


class Found:
    """What two ranks made of every arrangement."""

    def __init__(self, folder: Path, ranks: list[dict[str, Any]]) -> None:
        self.folder = folder
        self.first, self.second = ranks

    def curve(self, name: str) -> list[tuple[float, ...]]:
        return curve(self.folder / name)


@pytest.fixture(scope="module")
def one(
    shards: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[list[tuple[float, ...]], dict[str, np.ndarray]]:
    """The curve and the weights of one process."""
    run = tmp_path_factory.mktemp("one")
    weights = final_weights(shards, run, TRAINING)
    return curve(run), weights


@pytest.fixture(scope="module")
def two(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Found:
    folder = tmp_path_factory.mktemp("two")
    return Found(folder, on_ranks(2, _everything, shards, folder, folder=folder))


def _everything(shards: Path, folder: Path) -> dict[str, Any]:
    """One pair of processes for all: most of the time goes into starting them."""
    found: dict[str, Any] = {}
    for name, changes in ARRANGEMENTS.items():
        found[name] = final_weights(shards, folder / name, TRAINING | changes)
    found["mean"] = _with_a_mean_over_the_context(shards, folder / "mean")
    found["parts"] = _parts(shards, folder / "parts")
    with trainer_of(shards, folder / "stopped", TRAINING) as trainer:
        # Only one of them is asked to.
        trainer.train(lambda: dist.get_rank() == 1 and trainer.done == 3)
    found["resumed"] = final_weights(shards, folder / "stopped", TRAINING)
    with trainer_of(shards, folder / "handed over", TRAINING) as trainer:
        trainer.train(lambda: trainer.done == 2)
    found["refused"] = {name: _refusal(shards, folder, changes) for name, (changes, _) in REFUSED.items()}
    return found


def _with_a_mean_over_the_context(shards: Path, run: Path) -> dict[str, np.ndarray]:
    """What `set_gradient_divide_factor` is there to prevent."""
    with trainer_of(shards, run, TRAINING | {"parallel.context": 2}) as trainer:
        for module in trainer.student.modules():
            if isinstance(module, FSDPModule):
                module.set_gradient_divide_factor(2.0)
        trainer.train(lambda: False)
        return weights_of(trainer)


def _parts(shards: Path, run: Path) -> tuple[int, int]:
    """Numbers that this rank keeps, and numbers that there are."""
    with trainer_of(shards, run, TRAINING) as trainer:
        parameters = trainer.student.named_trained().values()
        return sum(p.to_local().numel() for p in parameters), sum(p.numel() for p in parameters)


def _refusal(shards: Path, folder: Path, changes: Mapping[str, Any]) -> str:
    try:
        train(shards, folder / "refused", TRAINING | changes)
    except UserError as error:
        return str(error)
    return "nothing was said"


def assert_same(found: list[tuple[float, ...]], expected: list[tuple[float, ...]]) -> None:
    np.testing.assert_allclose(found, expected, rtol=2e-5)


class TestTwoProcesses:
    @pytest.mark.parametrize("name", [*ARRANGEMENTS, "resumed"])
    def test_equal_one(self, one, two: Found, name: str) -> None:
        expected_curve, expected_weights = one
        norms = [norm for _, _, norm in expected_curve]
        assert min(norms) < 1 < max(norms), "some gradients are clipped"
        assert_same(two.curve("stopped" if name == "resumed" else name), expected_curve)
        for ranks_weights in (two.first[name], two.second[name]):
            assert ranks_weights.keys() == expected_weights.keys()
            for key, expected in expected_weights.items():
                np.testing.assert_allclose(ranks_weights[key], expected, rtol=1e-3, atol=2e-5, err_msg=key)

    def test_each_keeps_a_part(self, two: Found) -> None:
        (mine, all_), (others, _) = two.first["parts"], two.second["parts"]
        assert mine + others == all_
        assert 0.4 < mine / all_ < 0.6

    def test_a_mean_over_the_context_would_be_noticed(self, one, two: Found) -> None:
        found, (expected, expected_weights) = two.curve("mean"), one
        with pytest.raises(AssertionError):
            assert_same(found, expected)
        assert found[0][1] == pytest.approx(expected[0][1], rel=1e-5), "the first loss is before any gradient"
        assert found[0][2] == pytest.approx(expected[0][2] / 2, rel=1e-5)
        assert any(
            not np.allclose(two.first["mean"][name], expected_weights[name], rtol=1e-3, atol=2e-5)
            for name in expected_weights
        )

    def test_go_on_in_one(self, one, two: Found, shards: Path) -> None:
        assert_same(two.curve("handed over"), one[0][:2])
        weights = final_weights(shards, two.folder / "handed over", TRAINING)
        assert_same(two.curve("handed over"), one[0])
        for key, expected in one[1].items():
            np.testing.assert_allclose(weights[key], expected, rtol=1e-3, atol=2e-5, err_msg=key)

    @pytest.mark.parametrize("name", REFUSED)
    def test_refused(self, two: Found, name: str) -> None:
        for found in (two.first, two.second):
            import re

            assert re.search(REFUSED[name][1], found["refused"][name]), found["refused"][name]
