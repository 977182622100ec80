import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKLWan
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError
from safetensors.torch import load_file, save_file

from models.errors import UserError
from models.pretrained import UnusableWeightsError
from models.registry import MissingWeightsError
from training.latents import LatentsChoice, PixelLatentsConfig, UnfitVideoError, WanLatentsConfig, build_latents

MEAN, STD = [0.5, -0.25, 0.0, 1.0], [0.5, 2.0, 1.0, 4.0]


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, (*shape, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def vae() -> AutoencoderKLWan:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return AutoencoderKLWan(base_dim=8, z_dim=4, num_res_blocks=1, latents_mean=MEAN, latents_std=STD).eval()


@pytest.fixture(scope="module")
def checkpoint(vae: AutoencoderKLWan, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wan")
    vae.save_pretrained(folder / "vae")
    return folder


@pytest.fixture
def copy(checkpoint: Path, tmp_path: Path) -> Path:
    shutil.copytree(checkpoint / "vae", tmp_path / "copied" / "vae")
    return tmp_path / "copied"


def test_wan_latents_are_the_mode_with_mean_and_deviation_taken_out(vae: AutoencoderKLWan, checkpoint: Path) -> None:
    encoder = build_latents(WanLatentsConfig(checkpoint=checkpoint))
    assert (encoder.channels, encoder.spatial_factor, encoder.temporal_factor) == (4, 8, 4)
    video = noise(1, 5, 16, 24)
    with torch.no_grad():
        mode = vae.encode(video.permute(0, 4, 1, 2, 3).float() / 255 * 2 - 1).latent_dist.mode()
    latents = encoder.encode(video)
    assert (latents.shape, latents.dtype, latents.requires_grad) == ((1, 4, 2, 2, 3), torch.float32, False)
    for channel in range(4):
        expected = (mode[:, channel] - MEAN[channel]) / STD[channel]
        assert torch.allclose(latents[:, channel], expected, atol=1e-5)


def test_wan_decoding_is_that_of_the_pipeline(vae: AutoencoderKLWan, checkpoint: Path) -> None:
    from diffusers import WanPipeline

    latents = torch.randn(1, 4, 2, 2, 3, generator=torch.Generator().manual_seed(0))
    pipeline = WanPipeline(None, None, vae, None)
    scaled = latents * torch.tensor(STD).view(1, 4, 1, 1, 1) + torch.tensor(MEAN).view(1, 4, 1, 1, 1)
    with torch.no_grad():
        frames = pipeline.video_processor.postprocess_video(vae.decode(scaled).sample, output_type="pt")
    video = build_latents(WanLatentsConfig(checkpoint=checkpoint)).decode(latents)
    assert (video.shape, video.dtype) == ((1, 5, 16, 24, 3), torch.uint8)
    expected = (frames * 255).round().permute(0, 1, 3, 4, 2)
    assert (video.float() - expected).abs().max() <= 1  # A value half-way between two may fall either way.
    assert video.float().std() > 1


def test_latents_do_not_depend_on_the_batch(checkpoint: Path) -> None:
    encoder = build_latents(WanLatentsConfig(checkpoint=checkpoint))
    video = noise(3, 5, 16, 16)
    assert torch.equal(encoder.encode(video), torch.cat([encoder.encode(one[None]) for one in video]))


def test_each_reference_is_encoded_alone(checkpoint: Path) -> None:
    encoder = build_latents(WanLatentsConfig(checkpoint=checkpoint))
    references = noise(2, 3, 16, 24)
    latents = encoder.encode_references(references)
    assert latents.shape == (2, 4, 3, 2, 3)
    for sample in range(2):
        for number in range(3):
            alone = encoder.encode(references[sample, number][None, None])
            assert torch.equal(latents[sample, :, number], alone[0, :, 0])
    changed = references.clone()
    changed[:, 1] = 255 - changed[:, 1]
    assert torch.equal(encoder.encode_references(changed)[:, :, [0, 2]], latents[:, :, [0, 2]])
    assert not torch.equal(encoder.encode_references(changed)[:, :, 1], latents[:, :, 1])


def test_references_as_one_clip_would_be_lost(vae: AutoencoderKLWan, checkpoint: Path) -> None:
    encoder = build_latents(WanLatentsConfig(checkpoint=checkpoint))
    references = noise(1, 4, 16, 24)
    with torch.no_grad():
        as_clip = vae.encode(references.permute(0, 4, 1, 2, 3).float() / 127.5 - 1).latent_dist.mode()
    assert as_clip.shape[2] == 1  # The trap: one latent frame, of the first reference.
    assert encoder.encode_references(references).shape[2] == 4
    as_longer_clip = encoder.encode(noise(1, 5, 16, 24))
    assert not torch.allclose(as_longer_clip[:, :, 1:], encoder.encode_references(noise(1, 5, 16, 24))[:, :, 1:2])


@pytest.mark.parametrize("backend", ["wan", "pixel"])
def test_no_references_are_no_latents(backend: str, checkpoint: Path) -> None:
    config = WanLatentsConfig(checkpoint=checkpoint) if backend == "wan" else PixelLatentsConfig()
    encoder = build_latents(config)
    latents = encoder.encode_references(noise(2, 0, 16, 24))
    assert (latents.shape, latents.dtype) == ((2, encoder.channels, 0, 2, 3), torch.float32)


def test_bfloat16_and_tiling_are_near_and_are_told_apart(checkpoint: Path) -> None:
    exact = build_latents(WanLatentsConfig(checkpoint=checkpoint))
    rough = build_latents(WanLatentsConfig(checkpoint=checkpoint, precision="bfloat16"))
    tiled = build_latents(WanLatentsConfig(checkpoint=checkpoint, tiling=True))
    video = noise(1, 1, 16, 288)  # Wider than the 256 pixels of a tile.
    reference = exact.encode(video)
    for encoder, tolerance in ((rough, 0.1), (tiled, 0.5)):
        latents = encoder.encode(video)
        assert latents.dtype == torch.float32
        assert not torch.equal(latents, reference)
        assert (latents - reference).square().mean().sqrt() < tolerance * reference.std()
    assert len({encoder.fingerprint for encoder in (exact, rough, tiled)}) == 3


@pytest.mark.parametrize("frames", [2, 4, 80])
def test_frames_must_be_a_multiple_of_four_and_one(frames: int, checkpoint: Path) -> None:
    encoder = build_latents(WanLatentsConfig(checkpoint=checkpoint))
    with pytest.raises(UnfitVideoError, match=rf"4k \+ 1 frames, such as 81, not {frames}"):
        encoder.encode(noise(1, frames, 16, 16))


@pytest.mark.parametrize("backend", ["wan", "pixel"])
def test_sizes_must_be_multiples_of_the_factor(backend: str, checkpoint: Path) -> None:
    encoder = build_latents(WanLatentsConfig(checkpoint=checkpoint) if backend == "wan" else PixelLatentsConfig())
    for encode in (encoder.encode, encoder.encode_references):
        with pytest.raises(UnfitVideoError, match=r"20 pixels high and 16 wide .* multiples of 8"):
            encode(noise(1, 1, 20, 16))
    with pytest.raises(UserError):
        encoder.encode_references(noise(1, 0, 16, 20))


@given(
    factor=st.sampled_from([1, 2, 4, 8]), batch=st.integers(1, 2), frames=st.integers(1, 4), seed=st.integers(0, 1000)
)
def test_pixel_latents_are_lossless(factor: int, batch: int, frames: int, seed: int) -> None:
    encoder = build_latents(PixelLatentsConfig(factor=factor))
    video = noise(batch, frames, 2 * factor, 3 * factor, seed=seed)
    latents = encoder.encode(video)
    assert latents.shape == (batch, encoder.channels, frames, 2, 3)
    assert torch.equal(encoder.decode(latents), video)
    assert torch.equal(encoder.encode_references(video), latents)


def test_every_pixel_value_survives_and_decoding_clips() -> None:
    encoder = build_latents(PixelLatentsConfig(factor=4))
    values = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16, 1).expand(-1, -1, -1, -1, 3)
    assert torch.equal(encoder.decode(encoder.encode(values)), values)
    wild = torch.tensor([-1e6, 1e6]).view(1, 1, 1, 1, 2).expand(1, 48, 1, 1, 2)
    assert encoder.decode(wild).unique().tolist() == [0, 255]


def test_pixel_latents_keep_places_and_have_about_unit_variance() -> None:
    encoder = build_latents(PixelLatentsConfig(factor=8))
    video = noise(1, 2, 16, 24)
    changed = video.clone()
    changed[0, 1, 9, 17] ^= 255
    where = (encoder.encode(video) != encoder.encode(changed)).any(dim=1)[0]
    assert where.nonzero().tolist() == [[1, 1, 2]]
    ramp = torch.linspace(0, 255, 64).to(torch.uint8).view(1, 1, 8, 8, 1).expand(-1, -1, -1, -1, 3)
    assert 0.5 < encoder.encode(ramp).std() < 2


def test_weights_are_loaded_only_when_needed(copy: Path) -> None:
    (copy / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    encoder = build_latents(WanLatentsConfig(checkpoint=copy))
    assert encoder.channels == 4
    with pytest.raises(UnusableWeightsError, match="vae does not load"):
        encoder.encode(noise(1, 1, 16, 16))


def test_a_missing_checkpoint_is_named_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(MissingWeightsError) as error:
        build_latents(WanLatentsConfig(checkpoint=tmp_path / "nowhere"))
    message = str(error.value)
    for part in (str(tmp_path / "nowhere" / "vae" / "config.json"), "latents.checkpoint", "hf download Wan-AI/"):
        assert part in message


def _without_one_tensor(folder: Path) -> None:
    file = folder / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    del tensors["decoder.conv_in.weight"]
    save_file(tensors, file, metadata={"format": "pt"})


def _cut_short(folder: Path) -> None:
    file = folder / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:100_000])


@pytest.mark.parametrize(
    ("damage", "message"),
    [(_without_one_tensor, "lacks tensors of the model: decoder.conv_in.weight"), (_cut_short, "does not load")],
)
def test_damaged_weights_are_refused(damage: Callable[[Path], None], message: str, copy: Path) -> None:
    damage(copy / "vae")
    with pytest.raises(UnusableWeightsError, match=message):
        build_latents(WanLatentsConfig(checkpoint=copy)).encode(noise(1, 1, 16, 16))


@pytest.mark.parametrize("content", ["{", "[]"])
def test_damaged_settings_are_refused(content: str, copy: Path) -> None:
    (copy / "vae" / "config.json").write_text(content)
    with pytest.raises(UnusableWeightsError, match=r"config\.json"):
        build_latents(WanLatentsConfig(checkpoint=copy))


def test_the_fingerprint_is_that_of_the_weights_not_of_their_place(checkpoint: Path, copy: Path) -> None:
    def fingerprint(folder: Path) -> str:
        return build_latents(WanLatentsConfig(checkpoint=folder)).fingerprint

    (copy / "vae" / "README.md").write_text("notes")
    assert fingerprint(copy) == fingerprint(checkpoint)
    file = copy / "vae" / "diffusion_pytorch_model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    assert fingerprint(copy) != fingerprint(checkpoint)


def test_the_fingerprint_tells_factors_and_statistics_apart(checkpoint: Path, copy: Path) -> None:
    assert build_latents(PixelLatentsConfig(factor=4)).fingerprint != build_latents(PixelLatentsConfig()).fingerprint
    settings = json.loads((copy / "vae" / "config.json").read_text())
    (copy / "vae" / "config.json").write_text(json.dumps({**settings, "latents_mean": [0.0] * 4}))
    configs = [WanLatentsConfig(checkpoint=folder) for folder in (checkpoint, copy)]
    assert len({build_latents(config).fingerprint for config in configs}) == 2


def test_the_backend_chooses_the_encoder() -> None:
    choice: TypeAdapter[LatentsChoice] = TypeAdapter(LatentsChoice)
    assert choice.validate_python({"backend": "pixel", "factor": 4}) == PixelLatentsConfig(factor=4)
    assert isinstance(choice.validate_python({"backend": "wan", "checkpoint": "wan"}), WanLatentsConfig)
    for wrong in ({"backend": "pixels"}, {"factor": 4}, {"backend": "pixel", "checkpoint": "wan"}, {"backend": "wan"}):
        with pytest.raises(ValidationError):
            choice.validate_python(wrong)
