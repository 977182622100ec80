from __future__ import annotations

import json
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist
from diffusers import WanTransformer3DModel
from safetensors.torch import load_file, save_file
from torch import nn

from models.errors import UserError
from models.pretrained import UnusableWeightsError
from stages.config import ConfigError, change
from training.model import ModelConfig, S2VTransformer, build_model, fill_weights, training_flops
from training.rope import GeometryError
from training.tensor_folder import INDEX, WEIGHTS

CHANNELS = 4
TEXT_DIM = 12
GEOMETRY: dict[str, Any] = {
    "num_attention_heads": 2,
    "attention_head_dim": 12,
    "in_channels": CHANNELS,
    "out_channels": CHANNELS,
    "text_dim": TEXT_DIM,
    "freq_dim": 16,
    "ffn_dim": 40,
    "num_layers": 2,
}
TINY = ModelConfig(layers=2, heads=2, head_dim=12, ffn_dim=40, freq_dim=16)

Inputs = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


def inputs(references: int = 2, batch: int = 1, frames: int = 3, height: int = 6, width: int = 8) -> Inputs:
    """Video, references, timestep and text."""
    draw = torch.Generator().manual_seed(references + 10 * batch)
    return (
        torch.randn(batch, CHANNELS, frames, height, width, generator=draw),
        torch.randn(batch, CHANNELS, references, height, width, generator=draw),
        torch.rand(batch, generator=draw) * 1000,
        torch.randn(batch, 5, TEXT_DIM, generator=draw),
    )


def sharpen(model: nn.Module) -> None:
    """Weights with which positions and references show in the output; at the start none do."""
    draw = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            scale = 3.0 if "norm_" in name else 1.0
            parameter.copy_(scale * torch.randn(parameter.shape, generator=draw) / parameter[0].numel() ** 0.5)


@pytest.fixture
def wan() -> WanTransformer3DModel:
    model = WanTransformer3DModel(**GEOMETRY).eval()
    sharpen(model)
    return model


@pytest.fixture
def model() -> S2VTransformer:
    model = build_model(TINY, CHANNELS, TEXT_DIM, device="cpu")
    sharpen(model)
    return model


def test_without_references_it_is_plain_wan_bit_for_bit(wan: WanTransformer3DModel, model: S2VTransformer) -> None:
    video, references, timestep, text = inputs(references=0, batch=2)

    assert torch.equal(model(video, references, timestep, text), wan(video, timestep, text).sample)


def test_so_it_is_in_bf16(wan: WanTransformer3DModel, tmp_path: Path) -> None:
    wan.save_pretrained(tmp_path)
    plain = deepcopy(WanTransformer3DModel.from_pretrained(tmp_path, torch_dtype=torch.bfloat16))
    ours = S2VTransformer.from_pretrained(tmp_path, dtype=torch.bfloat16)
    video, references, timestep, text = inputs(references=0)

    velocity = ours(video.bfloat16(), references.bfloat16(), timestep, text.bfloat16())

    assert torch.equal(velocity, plain(video.bfloat16(), timestep, text.bfloat16()).sample)
    assert {name: p.dtype for name, p in ours.named_parameters()} == {
        name: p.dtype for name, p in plain.named_parameters()
    }


def test_a_bf16_model_takes_and_gives_float32_and_keeps_its_positions(model: S2VTransformer) -> None:
    exact = model(*inputs())

    model.to(torch.bfloat16)
    rounded = model(*inputs())

    assert model.rope.freqs_cos.dtype == model.rope.freqs_sin.dtype == torch.float32
    assert rounded.dtype == torch.float32
    assert 0 < torch.linalg.norm(rounded - exact) < 0.1 * torch.linalg.norm(exact)


@pytest.mark.parametrize("shard_size", ["10GB", "20KB"])
def test_a_plain_wan_checkpoint_loads_whole(wan: WanTransformer3DModel, tmp_path: Path, shard_size: str) -> None:
    wan.save_pretrained(tmp_path, max_shard_size=shard_size)
    assert (tmp_path / INDEX).is_file() == (shard_size == "20KB")

    ours = S2VTransformer.from_pretrained(tmp_path)

    assert ours.state_dict().keys() == wan.state_dict().keys()
    assert all(torch.equal(value, wan.state_dict()[name]) for name, value in ours.state_dict().items())
    assert ours.rope.offset == (80, 80)
    assert not ours.training


@pytest.mark.parametrize("offset", [(3, 5), "video_grid", "time", "none"])
def test_the_offset_is_saved_with_the_weights(model: S2VTransformer, tmp_path: Path, offset: Any) -> None:
    config = ModelConfig(layers=1, heads=2, head_dim=12, ffn_dim=8, freq_dim=16, offset=offset)
    saved = build_model(config, CHANNELS, TEXT_DIM, device="cpu")
    sharpen(saved)
    saved.save_pretrained(tmp_path)

    loaded = S2VTransformer.from_pretrained(tmp_path)
    again = build_model(ModelConfig(checkpoint=tmp_path), CHANNELS, TEXT_DIM, device="cpu")
    other = build_model(ModelConfig(checkpoint=tmp_path, offset=(9, 9)), CHANNELS, TEXT_DIM, device="cpu")

    assert loaded.rope.offset == again.rope.offset == offset
    assert torch.equal(loaded(*inputs()), saved(*inputs()))
    assert torch.equal(again(*inputs()), saved(*inputs()))
    assert other.rope.offset == other.config.offset == (9, 9)
    assert not torch.allclose(other(*inputs()), saved(*inputs()))


def test_plain_wan_reads_what_we_save(model: S2VTransformer, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)

    wan, report = WanTransformer3DModel.from_pretrained(tmp_path, output_loading_info=True)

    assert not any(report.values())
    video, references, timestep, text = inputs(references=0)
    # Unlike the file that it maps, a copy in memory is aligned as the original is: sums round the same.
    plain = deepcopy(wan)(video, timestep, text).sample
    assert torch.equal(plain, model(video, references, timestep, text))


def test_a_batch_equals_its_samples_one_by_one(model: S2VTransformer) -> None:
    video, references, timestep, text = inputs(references=3, batch=2)

    together = model(video, references, timestep, text)

    for i in range(2):
        alone = model(video[i : i + 1], references[i : i + 1], timestep[i : i + 1], text[i : i + 1])
        torch.testing.assert_close(together[i : i + 1], alone, rtol=1e-5, atol=1e-5)


def test_every_reference_reaches_the_video_and_every_weight_is_trained(model: S2VTransformer) -> None:
    video, references, timestep, text = inputs(references=3)
    references.requires_grad_()

    model(video, references, timestep, text).square().mean().backward()

    assert references.grad is not None
    assert (references.grad.abs().amax(dim=(0, 1, 3, 4)) > 1e-6).all()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in model.parameters())


def test_recomputed_blocks_give_the_same_gradients(model: S2VTransformer) -> None:
    gradients = []
    for recompute in (False, True):
        model.zero_grad()
        if recompute:
            model.enable_gradient_checkpointing()
        model(*inputs()).square().mean().backward()
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters()})

    assert model.is_gradient_checkpointing
    assert all(torch.equal(gradients[0][name], gradients[1][name]) for name in gradients[0])


def test_the_compiled_model_gives_the_same(model: S2VTransformer) -> None:
    compiled = torch.compile(model, backend="eager")

    torch.testing.assert_close(compiled(*inputs()), model(*inputs()))
    torch._dynamo.reset()


def test_a_model_trains_from_random_weights() -> None:
    model = build_model(TINY, CHANNELS, TEXT_DIM, device="cpu", seed=3)
    video, references, timestep, text = inputs(references=1, batch=4, frames=1)
    target = video - references
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(150):
        loss = (model(video, references, timestep, text) - target).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())

    assert losses[0] == pytest.approx(target.square().mean().item(), rel=1e-5)
    assert losses[-1] < 0.3 * losses[0]


def test_first_weights_follow_from_the_seed_alone() -> None:
    model = build_model(TINY, CHANNELS, TEXT_DIM, device="cpu", seed=1)
    torch.manual_seed(99)
    late = build_model(TINY, CHANNELS, TEXT_DIM, device="meta", seed=2)
    assert all(parameter.is_meta for parameter in late.parameters())
    late.to_empty(device="cpu")
    fill_weights(late, TINY, seed=1)
    other = build_model(TINY, CHANNELS, TEXT_DIM, device="cpu", seed=2)

    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), late.parameters(), strict=True))
    assert not torch.equal(model.blocks[0].ffn.net[2].weight, other.blocks[0].ffn.net[2].weight)
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    assert model.training


def test_a_config_has_the_geometry_or_a_checkpoint(tmp_path: Path) -> None:
    saved = build_model(TINY, CHANNELS, TEXT_DIM, device="cpu")
    saved.save_pretrained(tmp_path)
    loaded = build_model(change(TINY, ["layers=7", f"checkpoint={tmp_path}"]), CHANNELS, TEXT_DIM, device="cpu")

    assert len(loaded.blocks) == 2
    assert ModelConfig(offset=None).offset is None
    assert change(TINY, ["offset=[0, 12]"]).offset == (0, 12)
    with pytest.raises(ConfigError, match="offset"):
        change(TINY, ["offset=[-1, 12]"])
    with pytest.raises(ConfigError, match="head_dim"):
        change(TINY, ["head_dim=7"])


@pytest.mark.parametrize(
    ("broken", "says"),
    [
        (lambda v, r, t, x: (v[0], r, t, x), r"video has the shape .* instead of \(B, C, T, h, w\)"),
        (lambda v, r, t, x: (v, r[:, :, 0], t, x), "references has the shape"),
        (lambda v, r, t, x: (v[:, :3], r, t, x), "video has 3 channels, but the model takes 4"),
        (lambda v, r, t, x: (v[..., :7], r[..., :7], t, x), "3 x 6 x 7 do not divide into patches of 2 x 2"),
        (lambda v, r, t, x: (v[:, :, :0], r, t, x), "0 x 6 x 8"),
        (lambda v, r, t, x: (v, r[..., :6], t, x), "letterbox each onto the video's size"),
        (lambda v, r, t, x: (v, r[:, :3], t, x), "in more than their number"),
        (lambda v, r, t, x: (v, r, t.repeat(3), x), r"\(3,\) timesteps for a batch of 1"),
        (lambda v, r, t, x: (v, r, t, x[..., :9]), "the model takes text of 12 channels"),
    ],
)
def test_tensors_that_do_not_fit_are_refused_before_any_compute(
    model: S2VTransformer, broken: Callable[..., Inputs], says: str
) -> None:
    model.patch_embedding.register_forward_pre_hook(lambda *_: pytest.fail("computed something"))

    with pytest.raises(GeometryError, match=says) as error:
        model(*broken(*inputs()))
    assert isinstance(error.value, UserError)


def test_positions_beyond_the_table_are_refused_before_any_compute(model: S2VTransformer) -> None:
    model.patch_embedding.register_forward_pre_hook(lambda *_: pytest.fail("computed something"))
    model.rope.offset = (0, 1021)

    with pytest.raises(GeometryError, match="1025 columns"):
        model(*inputs())


def test_patches_of_several_frames_are_refused() -> None:
    with pytest.raises(GeometryError, match="would mix references"):
        S2VTransformer(**GEOMETRY, patch_size=(2, 2, 2))


def rename(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    tensors["blocks.0.attn9.to_q.weight"] = tensors.pop("blocks.0.attn1.to_q.weight")
    tensors["proj_out.bias"] = tensors["proj_out.bias"][1:].clone()
    return tensors


def test_a_checkpoint_of_other_tensors_is_refused_with_their_names(model: S2VTransformer, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    save_file(rename(load_file(tmp_path / WEIGHTS)), tmp_path / WEIGHTS)

    with pytest.raises(GeometryError) as error:
        S2VTransformer.from_pretrained(tmp_path)

    assert "1 missing: blocks.0.attn1.to_q.weight;" in str(error.value)
    assert "1 unexpected: blocks.0.attn9.to_q.weight;" in str(error.value)
    assert "1 of another shape: proj_out.bias (15,) instead of (16,)" in str(error.value)


def test_a_refused_checkpoint_changes_nothing(model: S2VTransformer, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    save_file(rename(load_file(tmp_path / WEIGHTS)), tmp_path / WEIGHTS)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    nn.init.zeros_(model.proj_out.weight)
    before["proj_out.weight"].zero_()

    with pytest.raises(GeometryError):
        model.load_weights(tmp_path)

    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def truncate(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-9])


def into_pipeline(folder: Path) -> None:
    (folder / "transformer").mkdir()
    (folder / "config.json").rename(folder / "transformer/config.json")


def edit_config(folder: Path, **values: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | values))


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (truncate, "missing or damaged"),
        (into_pipeline, "is a whole pipeline: give its transformer"),
        (lambda folder: (folder / "config.json").unlink(), "has no config.json"),
        (lambda folder: (folder / "config.json").write_text("{"), "config.json is no JSON"),
        (lambda folder: (folder / WEIGHTS).unlink(), f"holds neither {WEIGHTS} nor"),
        (lambda folder: (folder / INDEX).write_text("[]"), "is no index of shards"),
        (
            lambda folder: (folder / INDEX).write_text('{"weight_map": {"a": "gone.safetensors"}}'),
            "gone.safetensors is",
        ),
        (lambda folder: edit_config(folder, offset="sideways"), "offset 'sideways' is neither"),
        (lambda folder: edit_config(folder, num_layers=3), "27 missing: blocks.2.scale_shift_table"),
    ],
)
def test_a_damaged_checkpoint_is_refused_in_words(
    model: S2VTransformer, tmp_path: Path, damage: Callable[[Path], None], says: str
) -> None:
    model.save_pretrained(tmp_path)
    damage(tmp_path)

    with pytest.raises((UnusableWeightsError, GeometryError), match=says) as error:
        S2VTransformer.from_pretrained(tmp_path)
    assert isinstance(error.value, UserError)
    assert str(tmp_path) in str(error.value)


@pytest.mark.parametrize(("channels", "text_dim"), [(16, TEXT_DIM), (CHANNELS, 4096)])
def test_a_checkpoint_for_other_encoders_is_refused_with_both_named(
    model: S2VTransformer, tmp_path: Path, channels: int, text_dim: int
) -> None:
    model.save_pretrained(tmp_path)

    with pytest.raises(GeometryError) as error:
        build_model(ModelConfig(checkpoint=tmp_path), channels, text_dim, device="cpu")

    assert f"takes latents of 4 channels, gives 4 and reads text of {TEXT_DIM}" in str(error.value)
    assert f"the encoders give latents of {channels} and text of {text_dim}" in str(error.value)


@pytest.mark.parametrize(
    ("heads", "ffn_dim", "layers", "references", "petaflops"),
    [(12, 8960, 30, 0, 0.85), (12, 8960, 30, 3, 1.07), (40, 13824, 40, 0, 5.04), (40, 13824, 40, 3, 6.18)],
)
def test_flops_of_the_released_sizes(heads: int, ffn_dim: int, layers: int, references: int, petaflops: float) -> None:
    with torch.device("meta"):
        config = S2VTransformer(num_attention_heads=heads, ffn_dim=ffn_dim, num_layers=layers).config

    flops = training_flops(config, 21 * 30 * 52, references * 30 * 52)

    assert flops / 1e15 == pytest.approx(petaflops, rel=0.01)


def test_flops_are_three_times_what_torch_counts_forwards(model: S2VTransformer) -> None:
    from torch.utils.flop_counter import FlopCounterMode

    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(*inputs(references=2))

    assert training_flops(model.config, 3 * 3 * 4, 2 * 3 * 4, text_tokens=5) == 3 * counter.get_total_flops()


def test_adapters_train_alone_and_start_as_the_model(model: S2VTransformer) -> None:
    from peft import LoraConfig

    before = model(*inputs())
    model.requires_grad_(False)
    model.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_k", "to_v", "to_out.0", "ffn.net.0.proj"]))

    after = model(*inputs())
    after.square().mean().backward()

    torch.testing.assert_close(after, before)
    trained = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}
    assert trained == {name for name, _ in model.named_parameters() if "lora_B" in name}


def _sharded_and_shared(rank: int, meeting: Path, checkpoint: Path) -> None:
    from diffusers import ContextParallelConfig
    from torch.distributed.fsdp import fully_shard

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meeting / 'store'}", rank=rank, world_size=2)
    try:
        whole = S2VTransformer.from_pretrained(checkpoint)
        for config in (ModelConfig(checkpoint=checkpoint), TINY):
            sharded = build_model(config, CHANNELS, TEXT_DIM, device="meta")
            for module in (*sharded.blocks, sharded):
                fully_shard(module)
            sharded.to_empty(device="cpu")
            fill_weights(sharded, config, seed=4)
            expected = whole if config.checkpoint else build_model(TINY, CHANNELS, TEXT_DIM, device="cpu", seed=4)
            for name, value in expected.named_parameters():
                assert torch.equal(sharded.get_parameter(name).full_tensor(), value), name
            torch.testing.assert_close(sharded(*inputs()), expected(*inputs()))
        with torch.no_grad():
            alone = whole(*inputs(references=1))
            mesh = dist.device_mesh.init_device_mesh("cpu", (1, 2), mesh_dim_names=("ring", "ulysses"))
            # diffusers divides by the number of accelerators.
            with patch("torch.accelerator.device_count", return_value=1):
                whole.enable_parallelism(config=ContextParallelConfig(ulysses_degree=2, mesh=mesh))
            torch.testing.assert_close(whole(*inputs(references=1)), alone, rtol=1e-4, atol=1e-4)
    finally:
        dist.destroy_process_group()


def test_two_processes_shard_the_weights_or_share_the_sequence(model: S2VTransformer, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path / "checkpoint")

    torch.multiprocessing.spawn(_sharded_and_shared, (tmp_path, tmp_path / "checkpoint"), nprocs=2)
