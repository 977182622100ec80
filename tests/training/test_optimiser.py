from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from training.config import OptimiserConfig
from training.optimiser import MovingAverage, finish_gradients, learning_rate, make_optimiser


class TestLearningRate:
    @given(warmup=st.integers(0, 50), step=st.integers(0, 100))
    def test_rises_by_equal_amounts_and_stays(self, warmup: int, step: int) -> None:
        config = OptimiserConfig(lr=0.5, warmup=warmup)
        expected = 0.5 if step >= warmup else 0.5 * (step + 1) / (warmup + 1)
        assert learning_rate(step, config) == pytest.approx(expected)

    def test_is_never_zero(self) -> None:
        assert learning_rate(0, OptimiserConfig(lr=1, warmup=9)) == pytest.approx(0.1)
        assert learning_rate(0, OptimiserConfig(lr=1)) == 1


class TestOptimiser:
    def test_decays_matrices_only(self) -> None:
        module = nn.ModuleDict({"linear": nn.Linear(2, 3), "norm_q": nn.LayerNorm((2, 3)), "norm": nn.LayerNorm(3)})
        named = dict(module.named_parameters())
        decayed, others = make_optimiser(named, OptimiserConfig(lr=1, weight_decay=0.1)).param_groups
        assert (decayed["weight_decay"], others["weight_decay"]) == (0.1, 0)
        assert [id(p) for p in decayed["params"]] == [id(named["linear.weight"])]
        assert {id(p) for p in others["params"]} == {id(p) for p in named.values()} - {id(named["linear.weight"])}

    def test_is_adamw(self) -> None:
        weight = nn.Parameter(torch.tensor([[2.0]]))
        config = OptimiserConfig(lr=0.1, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.5)
        optimiser = make_optimiser({"weight": weight}, config)
        weight.grad = torch.tensor([[3.0]])
        optimiser.step()
        # Loshchilov & Hutter 2019, algorithm 2: after one step both means are those of the gradient alone.
        assert weight.item() == pytest.approx(2 * (1 - 0.1 * 0.5) - 0.1 * 3 / (3 + 1e-8))

    def test_where_nothing_decays(self) -> None:
        (group,) = make_optimiser({"bias": nn.Parameter(torch.zeros(3))}, OptimiserConfig()).param_groups
        assert group["weight_decay"] == 0


class TestGradients:
    @given(
        values=st.lists(st.floats(-10, 10, width=32), min_size=2, max_size=6),
        factor=st.floats(0.125, 4, width=32),
        clip=st.floats(0.0625, 100, width=32),
    )
    def test_are_scaled_then_clipped(self, values: list[float], factor: float, clip: float) -> None:
        parameters = [nn.Parameter(torch.zeros(1)) for _ in values]
        for parameter, value in zip(parameters, values, strict=True):
            parameter.grad = torch.tensor([value])
        norm = finish_gradients(parameters, factor, clip)
        expected = factor * math.sqrt(sum(value**2 for value in values))
        assert norm == pytest.approx(expected, rel=1e-4, abs=1e-6)
        scale = factor * min(1, clip / (expected + 1e-6))
        found = [parameter.grad.item() for parameter in parameters]
        assert found == pytest.approx([value * scale for value in values], rel=1e-4, abs=1e-6)

    def test_that_are_missing_are_left_out(self) -> None:
        used, unused = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2))
        used.grad = torch.tensor([3.0, 4.0])
        assert finish_gradients([used, unused], 1.0, 1.0) == pytest.approx(5)
        assert unused.grad is None
        assert used.grad.tolist() == pytest.approx([0.6, 0.8], rel=1e-5)


class TestMovingAverage:
    def test_closed_form(self) -> None:
        """With decays d_n = min(decay, (1 + n) / (10 + n)) the average is the sum of d-products that is written out."""
        weight = nn.Parameter(torch.tensor([1.0]))
        average = MovingAverage({"weight": weight}, decay=0.15)
        path = [2.0, -3.0, 7.0, 0.5]
        for step, value in enumerate(path):
            weight.data.fill_(value)
            average.update(step)
        decays = [0.1, 0.15, 0.15, 0.15]
        assert 2 / 11 > 0.15, "from the second step on it is the decay that was asked for"
        expected = math.prod(decays) * 1.0 + sum(
            (1 - decays[n]) * value * math.prod(decays[n + 1 :]) for n, value in enumerate(path)
        )
        assert average.averages["weight"].item() == pytest.approx(expected, rel=1e-6)

    def test_of_what_never_changes_is_that(self) -> None:
        weight = nn.Parameter(torch.randn(5, generator=torch.Generator().manual_seed(1)))
        average = MovingAverage({"weight": weight}, decay=0.999)
        for step in range(20):
            average.update(step)
        torch.testing.assert_close(average.averages["weight"], weight.detach())

    def test_swapped_twice_nothing_changed(self) -> None:
        weights = {name: nn.Parameter(torch.randn(3)) for name in "ab"}
        average = MovingAverage(weights, decay=0.5)
        for weight in weights.values():
            weight.data.add_(1)
        average.update(0)
        before = {name: (weights[name].detach().clone(), average.averages[name].clone()) for name in weights}
        average.swap()
        for name, (weight, mean) in before.items():
            assert torch.equal(weights[name], mean)
            assert torch.equal(average.averages[name], weight)
            assert not torch.equal(weight, mean)
        average.swap()
        for name, (weight, mean) in before.items():
            assert torch.equal(weights[name], weight)
            assert torch.equal(average.averages[name], mean)

    def test_keeps_no_graph(self) -> None:
        weight = nn.Parameter(torch.ones(2))
        average = MovingAverage({"weight": weight}, decay=0.9)
        average.update(0)
        assert not average.averages["weight"].requires_grad
        assert average.averages["weight"].data_ptr() != weight.data_ptr()
