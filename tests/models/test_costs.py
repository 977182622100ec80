from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from models.registry import BACKENDS, backend_class
from models.weights.catalogue import repositories, repository_entry
from models.weights.costs import Cost, _costs, cost_of

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"

UNCOUNTED = {
    "ybelkada/segment-anything",  # one repository of three sizes: those of facebook/sam-vit-*
    "camenduru/improved-aesthetic-predictor",  # a million parameters behind CLIP
    "public-data/insightface",  # ONNX files
    "Carve/LaMa-ONNX",
}


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        import model_costs

        return model_costs


def test_unknown_repository_has_no_cost():
    assert cost_of("nobody/nothing") is None


@pytest.mark.parametrize("cost", _costs().values(), ids=_costs())
def test_figures_are_positive_and_of_a_known_item(cost):
    assert cost.per in ("picture", "clip", "reference")
    assert cost.tflop > 0
    assert cost.gb > 0
    assert cost.following >= 0


def test_only_networks_that_follow_take_more_for_it():
    assert {name for name, cost in _costs().items() if cost.following} == {
        f"facebook/sam2.1-hiera-{size}" for size in ("tiny", "small", "base-plus", "large")
    }


def test_every_network_of_the_benchmark_is_in_the_file_in_its_order(benchmark):
    assert list(_costs()) == list(benchmark.NETWORKS)


@pytest.mark.parametrize(
    ("task", "backend"), [(task, backend) for task, backends in BACKENDS.items() for backend in backends]
)
def test_what_a_backend_fetches_by_default_is_counted(task, backend):
    kind = backend_class(task, backend).Config
    named = {repository.name for repository in repositories(kind.model_construct())}
    assert {name for name in named if cost_of(name) is None} <= UNCOUNTED


@pytest.mark.parametrize(
    ("repository", "least", "most"),
    [
        # Twice the multiplications in common tables: 81e9 and 4.4e9 for CLIP, 23e9 for DINOv2, and 0.49e12, 1.5e12
        # and just below 3e12 for the encoders of SAM.
        ("openai/clip-vit-large-patch14", 0.160, 0.164),
        ("laion/CLIP-ViT-L-14-DataComp.XL-s13B-b90K", 0.160, 0.164),
        ("laion/CLIP-ViT-B-32-laion2B-s34B-b79K", 0.0085, 0.0090),
        ("timm/ViT-B-16-SigLIP", 0.034, 0.038),
        ("facebook/dinov2-base", 0.045, 0.048),
        ("facebook/sam-vit-base", 0.96, 1.0),
        ("facebook/sam-vit-large", 2.9, 3.05),
        ("facebook/sam-vit-huge", 5.8, 6.05),
        # Grounding DINO's authors: 464e9 multiplications at 800x1333 and a longer prompt.
        ("IDEA-Research/grounding-dino-tiny", 0.6, 0.95),
        # Each token passes 7 billion weights; some 1,800 that are read and 200 that are written.
        ("Qwen/Qwen2.5-VL-7B-Instruct", 2 * 7e9 * 1500 / 1e12, 2 * 8.3e9 * 3000 / 1e12),
        ("Qwen/Qwen3-VL-8B-Instruct", 2 * 8e9 * 1300 / 1e12, 2 * 8.8e9 * 3000 / 1e12),
    ],
)
def test_operations_are_those_that_are_published(repository, least, most):
    assert least <= cost_of(repository).tflop <= most


@pytest.mark.parametrize(
    ("repository", "millions"),
    [
        ("facebook/sam2.1-hiera-tiny", 38.9),
        ("facebook/sam2.1-hiera-small", 46),
        ("facebook/sam2.1-hiera-base-plus", 80.8),
        ("facebook/sam2.1-hiera-large", 224.4),
        ("facebook/sam-vit-huge", 641),
        ("IDEA-Research/grounding-dino-tiny", 172),
        ("IDEA-Research/grounding-dino-base", 233),
        ("laion/CLIP-ViT-B-32-laion2B-s34B-b79K", 151.3),
        ("laion/CLIP-ViT-L-14-DataComp.XL-s13B-b90K", 427.6),
        ("facebook/dinov2-base", 86.6),
        ("facebook/dinov3-vitb16-pretrain-lvd1689m", 85.7),
    ],
)
def test_parameters_are_those_that_are_published(repository, millions):
    assert cost_of(repository).gb * 1000 / 2 == pytest.approx(millions, rel=0.01)


@pytest.mark.parametrize("repository", sorted(_costs().keys() - {"openai/clip-vit-large-patch14"}))
def test_a_fetch_is_of_the_weights_in_16_or_32_bits(repository):
    # Of CLIP from OpenAI, half of what is fetched is used.
    fetched, cost = repository_entry(repository).gb, cost_of(repository)
    assert any(fetched == pytest.approx(times * cost.gb, rel=0.02, abs=0.06) for times in (1, 2))


def test_bigger_networks_of_a_family_take_more():
    families = [
        [f"IDEA-Research/grounding-dino-{size}" for size in ("tiny", "base")],
        [f"facebook/sam-vit-{size}" for size in ("base", "large", "huge")],
        [f"facebook/sam2.1-hiera-{size}" for size in ("tiny", "small", "base-plus", "large")],
        ["black-forest-labs/FLUX.2-klein-4B", "black-forest-labs/FLUX.1-Kontext-dev", "Qwen/Qwen-Image-Edit-2509"],
    ]
    for family in families:
        costs = [cost_of(name) for name in family]
        assert [cost.tflop for cost in costs] == sorted(cost.tflop for cost in costs)
        assert [cost.gb for cost in costs] == sorted(cost.gb for cost in costs)


@pytest.mark.parametrize("repository", ["facebook/dinov2-base", "laion/CLIP-ViT-B-32-laion2B-s34B-b79K"])
def test_counting_again_gives_what_stands_in_the_file(benchmark, repository):
    assert Cost(**benchmark.entry(benchmark.NETWORKS[repository]())) == cost_of(repository)


def test_products_and_convolutions_are_counted_and_nothing_else(benchmark):
    linear = benchmark.built(torch.nn.Linear, 16, 8)
    convolution = benchmark.built(torch.nn.Conv2d, 3, 4, 5)
    assert benchmark.flops(linear, benchmark.of(3, 16)) == 2 * 3 * 16 * 8
    assert benchmark.flops(convolution, benchmark.of(1, 3, 9, 9)) == 2 * (5 * 5) * 4 * (3 * 5 * 5)
    assert benchmark.flops(torch.nn.GELU(), benchmark.of(100)) == 0


def test_attention_is_counted_both_ways(benchmark):
    heads = benchmark.of(1, 4, 10, 16)
    attention = torch.nn.functional.scaled_dot_product_attention
    assert benchmark.flops(attention, heads, heads, heads) == 2 * 2 * 4 * 10 * 10 * 16
    assert benchmark.flops(attention, heads, heads, heads, is_causal=True) == 2 * 2 * 4 * 10 * 10 * 16


def test_tensors_with_values_work_along_with_those_without(benchmark):
    picked, rows = benchmark.of(5, 7), torch.tensor([4, 0])
    assert benchmark.count(lambda: picked[rows])[1].shape == (2, 7)
    assert benchmark.count(lambda: (rows.sum().item(), (picked > 0).all().item()))[1] == (4, True)


def test_a_value_that_decides_a_size_is_not_made_up(benchmark):
    with pytest.raises(RuntimeError, match="meta"):
        benchmark.count(lambda: benchmark.of(1).item())


def test_file_is_written_as_it_is_read(benchmark, monkeypatch, tmp_path):
    monkeypatch.setattr(benchmark, "COSTS", tmp_path / "costs.yaml")
    benchmark.write(
        {"a/b": benchmark.Count("picture", 123_456e6, 7_654_321, 2e12), "c/d": benchmark.Count("clip", 2e15, 8)}
    )
    written = (tmp_path / "costs.yaml").read_text().splitlines()
    assert written[-2:] == [
        "a/b: {per: picture, tflop: 0.123, gb: 0.0153, following: 2.0}",
        "c/d: {per: clip, tflop: 2000.0, gb: 1.6e-08}",
    ]
    assert all(line.startswith("# ") for line in written[:-2])


def test_costs_are_read_without_heavy_libraries():
    code = "import sys, models.weights.costs; models.weights.costs.cost_of('a/b'); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
