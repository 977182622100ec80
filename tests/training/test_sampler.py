from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from models.errors import UserError
from stages.config import ConfigError, change
from stages.media import EncodingError, probe, stream_frames
from training.flow import starting_noise
from training.latents import PixelLatentsConfig, UnfitVideoError, build_latents
from training.model import ModelConfig, S2VTransformer, build_model
from training.picture import letterbox
from training.sampler import (
    SamplerConfig,
    UnreadableReferenceError,
    latent_shape,
    noise_levels,
    sample_latents,
    sample_video,
    write_video,
)
from training.text import WordsConfig, build_text

SHAPE = (3, 2, 4, 6)
QUICK = SamplerConfig(steps=4, guidance=1, height=32, width=48, frames=3, negative="blurred")
NO_REFERENCES = torch.zeros(1, 3, 0, 4, 6)

Target = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


class Field:
    """The exact velocity towards one data point: where the text and the references say."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self.timesteps: list[torch.Tensor] = []

    def __call__(
        self, video: torch.Tensor, references: torch.Tensor, timestep: torch.Tensor, text: torch.Tensor
    ) -> torch.Tensor:
        self.timesteps.append(timestep)
        return (video - self.target(references, text)) / (timestep.view(-1, 1, 1, 1, 1) / 1000)


def by_text(references: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
    return text.mean(dim=(1, 2)).view(-1, 1, 1, 1, 1)


def by_both(references: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
    return by_text(references, text) + references.mean(dim=2, keepdim=True)


def prompts(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float32).view(-1, 1, 1).expand(-1, 5, 7)


def sample(field: Field, config: SamplerConfig = QUICK, seed: int = 0, **changes: torch.Tensor) -> torch.Tensor:
    given = {"text": prompts(0.5), "negative": prompts(-1.0), "references": NO_REFERENCES} | changes
    return sample_latents(
        field, given["text"], given["negative"], given["references"], shape=SHAPE, config=config, seed=seed
    )


@given(steps=st.integers(1, 100), shift=st.floats(0.2, 20))
def test_noise_levels_fall_from_one_to_zero_by_the_closed_form(steps: int, shift: float) -> None:
    levels = noise_levels(steps, shift)
    assert (len(levels), levels[0], levels[-1]) == (steps + 1, 1.0, 0.0)
    assert all(after < before for before, after in pairwise(levels))
    for step, level in enumerate(levels):
        assert level * step == pytest.approx(shift * (steps - step) * (1 - level), abs=1e-6)


def test_the_default_schedule() -> None:
    config = SamplerConfig()
    levels = noise_levels(config.steps, config.shift)
    assert len(levels) == 51
    assert levels[25] == pytest.approx(7 / 8)
    assert levels[49] == pytest.approx(7 / 56)


@given(steps=st.integers(1, 20), shift=st.floats(0.5, 10), seed=st.integers(0, 2**63))
def test_a_known_data_point_is_reached_exactly(steps: int, shift: float, seed: int) -> None:
    latents = sample(Field(by_text), change(QUICK, [f"steps={steps}", f"shift={shift}"]), seed)
    assert (latents.shape, latents.dtype) == ((1, *SHAPE), torch.float32)
    assert torch.allclose(latents, torch.full_like(latents, 0.5), atol=1e-5)


def test_gaussian_data_are_sampled_as_the_ordinary_differential_equation_says() -> None:
    mean, spread = 0.7, 0.4

    def velocity(
        video: torch.Tensor, references: torch.Tensor, timestep: torch.Tensor, text: torch.Tensor
    ) -> torch.Tensor:
        level = timestep.item() / 1000
        variance = (1 - level) ** 2 * spread**2 + level**2
        return (level - (1 - level) * spread**2) / variance * (video - (1 - level) * mean) - mean

    def error(steps: int) -> float:
        config = change(QUICK, [f"steps={steps}", "shift=3"])
        latents = sample_latents(velocity, prompts(0), None, NO_REFERENCES, shape=SHAPE, config=config, seed=1)
        # Along the flow (x - (1 - s) mean) / sqrt(variance) stays as it is.
        expected = mean + spread * starting_noise(1, 1, SHAPE)
        return float((latents - expected).abs().max())

    errors = [error(steps) for steps in (50, 100, 200, 400)]
    assert errors[-1] < 0.01
    for coarse, fine in pairwise(errors):
        assert coarse / fine == pytest.approx(2, rel=0.15)  # Euler's method is of first order.


def test_the_model_is_told_the_noise_level_in_thousandths() -> None:
    field = Field(by_text)
    sample(field, text=prompts(1, 2), references=NO_REFERENCES.expand(2, -1, -1, -1, -1))
    expected = [1000 * level for level in noise_levels(QUICK.steps, QUICK.shift)[:-1]]
    assert [timestep.tolist() for timestep in field.timesteps] == [pytest.approx([level] * 2) for level in expected]
    assert {timestep.dtype for timestep in field.timesteps} == {torch.float32}


def test_guidance_leads_from_the_negative_prompt_through_the_prompt() -> None:
    latents = sample(Field(by_text), change(QUICK, ["guidance=6"]))
    assert torch.allclose(latents, torch.full_like(latents, -1 + 6 * 1.5), atol=1e-4)


def test_references_are_in_both_branches() -> None:
    references = torch.randn(1, 3, 2, 4, 6, generator=torch.Generator().manual_seed(0))
    latents = sample(Field(by_both), change(QUICK, ["guidance=6"]), references=references)
    # Were they left out of the negative branch, they would count six times.
    expected = -1 + 6 * 1.5 + references.mean(dim=2, keepdim=True)
    assert torch.allclose(latents, expected.expand(1, *SHAPE), atol=1e-4)


@pytest.mark.parametrize(("guidance", "calls"), [(1, 4), (1.5, 8), (6, 8)])
def test_without_guidance_a_step_is_one_call(guidance: float, calls: int) -> None:
    field = Field(by_text)
    sample(field, change(QUICK, [f"guidance={guidance}"]))
    assert len(field.timesteps) == calls


def test_guidance_without_a_negative_prompt_is_refused() -> None:
    with pytest.raises(ValueError, match="guidance 6"):
        sample_latents(
            Field(by_text), prompts(0), None, NO_REFERENCES, shape=SHAPE, config=change(QUICK, ["guidance=6"]), seed=0
        )


def test_seeds_choose_the_noise_and_a_batch_does_not() -> None:
    def still(
        video: torch.Tensor, references: torch.Tensor, timestep: torch.Tensor, text: torch.Tensor
    ) -> torch.Tensor:
        return torch.zeros_like(video)

    def noise(seed: int, batch: int) -> torch.Tensor:
        text = prompts(*range(batch))
        references = NO_REFERENCES.expand(batch, -1, -1, -1, -1)
        return sample_latents(still, text, None, references, shape=SHAPE, config=QUICK, seed=seed)

    torch.manual_seed(0)
    first = noise(3, 2)
    torch.manual_seed(1)
    assert torch.equal(first, noise(3, 2))
    assert torch.equal(first[:1], noise(3, 1))
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(first[:1], noise(4, 1))


def test_progress_is_told_and_no_graph_is_kept() -> None:
    weight = torch.ones((), requires_grad=True)
    seen: list[tuple[int, int]] = []
    latents = sample_latents(
        lambda video, references, timestep, text: video * weight,
        prompts(0),
        None,
        NO_REFERENCES,
        shape=SHAPE,
        config=QUICK,
        seed=0,
        progress=lambda done, all_of_them: seen.append((done, all_of_them)),
    )
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert not latents.requires_grad


class Paster(S2VTransformer):
    """Knows the answer: the first reference in all frames, or grey where there is none."""

    def forward(
        self, video: torch.Tensor, references: torch.Tensor, timestep: torch.Tensor, text: torch.Tensor
    ) -> torch.Tensor:
        target = references[:, :, :1] if references.shape[2] else torch.zeros_like(video[:, :, :1])
        return (video - target) / (timestep.view(-1, 1, 1, 1, 1) / 1000)


@pytest.fixture
def paster() -> Paster:
    return Paster(num_attention_heads=2, attention_head_dim=12, in_channels=192, out_channels=192, num_layers=1)


def test_pictures_reach_the_model_letterboxed_and_the_answer_comes_back_as_frames(
    paster: Paster, tmp_path: Path
) -> None:
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 30, 4), dtype=np.uint8))
    picture.save(tmp_path / "with alpha.png")
    encoder, text = build_latents(PixelLatentsConfig()), build_text(WordsConfig())
    expected = letterbox(picture, 32, 48)
    assert (expected[:, :8] == 255).all()
    seen = {"file": tmp_path / "with alpha.png", "array": expected}
    for reference in seen.values():
        frames = sample_video(paster, encoder, text, "a cat", [reference], QUICK, seed=0)
        assert (frames.shape, frames.dtype) == ((3, 32, 48, 3), np.uint8)
        assert (frames == expected).all()


def test_no_references_will_do(paster: Paster) -> None:
    frames = sample_video(paster, build_latents(PixelLatentsConfig()), build_text(WordsConfig()), "", [], QUICK, seed=0)
    assert np.isin(frames, (127, 128)).all()  # The middle lies between them.


def test_a_real_model_heeds_prompt_negative_prompt_references_and_seed() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        text = build_text(WordsConfig(dim=16, length=4))
        config = ModelConfig(layers=2, heads=2, head_dim=12, ffn_dim=32, freq_dim=16)
        model = build_model(config, 48, 16, device="cpu")
        with torch.no_grad():
            model.proj_out.weight.normal_(std=0.3)  # Untrained, it is zero.
    encoder = build_latents(PixelLatentsConfig(factor=4))
    guided = change(QUICK, ["guidance=3", "height=16", "width=24", "steps=2"])
    pictures = list(np.random.default_rng(0).integers(0, 256, (2, 16, 24, 3), dtype=np.uint8))

    def video(prompt: str = "a cat", swap: bool = False, seed: int = 0, negative: str = "blurred") -> np.ndarray:
        references = pictures[::-1] if swap else pictures
        config = change(guided, [f"negative={negative}"])
        return sample_video(model, encoder, text, prompt, references, config, seed)

    plain = video()
    assert (plain == video()).all()
    for other in (video("a dog"), video(swap=True), video(seed=1), video(negative="grey")):
        assert (plain != other).any()


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "there is no such picture"), (b"", "cannot be read"), (b"\x89PNG\r\n\x1a\n cut", "cannot be read")],
)
def test_what_is_no_picture_is_named(paster: Paster, tmp_path: Path, content: bytes | None, message: str) -> None:
    file = tmp_path / "cat.png"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(UnreadableReferenceError, match=rf"cat\.png.* {message}|cat\.png: {message}") as error:
        sample_video(paster, build_latents(PixelLatentsConfig()), build_text(WordsConfig()), "", [file], QUICK, 0)
    assert isinstance(error.value, UserError)


def test_a_picture_cut_short_and_a_folder_are_named(paster: Paster, tmp_path: Path) -> None:
    file = tmp_path / "cat.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(file)
    file.write_bytes(file.read_bytes()[:5000])
    for reference in (file, tmp_path):
        with pytest.raises(UnreadableReferenceError, match="cannot be read as a picture"):
            sample_video(
                paster, build_latents(PixelLatentsConfig()), build_text(WordsConfig()), "", [reference], QUICK, 0
            )


class Wan:
    """The shape of Wan's latents."""

    channels, spatial_factor, temporal_factor, fingerprint = 16, 8, 4, ""

    def encode(self, video: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError

    encode_references = decode = encode


def test_the_defaults_are_those_of_the_recipe() -> None:
    config = SamplerConfig()
    assert latent_shape(config, Wan(), (2, 2)) == (16, 21, 64, 112)
    assert (config.guidance, config.shift, config.fps) == (6, 7, 16)
    assert config.negative.startswith("色调艳丽，过曝")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("height=520", "height=520 .* multiple of 16, such as 512"),
        ("width=7", "width=7 .* multiple of 16, such as 16"),
        ("frames=80", r"frames=80 .* 4k \+ 1, such as 77"),
    ],
)
def test_sizes_that_do_not_fit_are_refused_with_one_that_does(override: str, message: str) -> None:
    with pytest.raises(UnfitVideoError, match=message):
        latent_shape(change(SamplerConfig(), [override]), Wan(), (2, 2))


@pytest.mark.parametrize("override", ["steps=0", "guidance=0.5", "shift=0", "fps=0", "frames=0", "size=3"])
def test_values_out_of_bounds_are_refused(override: str) -> None:
    with pytest.raises(ConfigError, match=override.partition("=")[0]):
        change(SamplerConfig(), [override])


def test_a_written_video_plays_as_it_was(tmp_path: Path) -> None:
    colours = np.array([(220, 30, 40), (30, 190, 50), (40, 60, 220), (250, 250, 250), (5, 5, 5)], np.uint8)
    frames = np.broadcast_to(colours[:, None, None], (5, 32, 48, 3))
    file = tmp_path / "new folder" / "out.mp4"
    write_video(frames, 16, file)
    found = probe(file)
    assert (found.codec, found.width, found.height, found.frames) == ("h264", 48, 32, 5)
    assert found.fps == pytest.approx(16)
    shown = [image for _, image in stream_frames(file, 0, 1, (48, 32))]
    assert len(shown) == 5
    for image, colour in zip(shown, colours, strict=True):
        assert np.abs(image.astype(int) - colour.astype(int)).max() <= 6
    assert [path.name for path in file.parent.iterdir()] == ["out.mp4"]


def test_a_video_that_cannot_be_written_leaves_the_old_one(tmp_path: Path) -> None:
    frames = np.zeros((2, 16, 16, 3), np.uint8)
    file = tmp_path / "out.mp4"
    file.write_bytes(b"old")
    with pytest.raises(EncodingError, match=r"out\.mp4 was not written"):
        write_video(frames, math.inf, file)
    with pytest.raises(UnfitVideoError, match="even sides"):
        write_video(np.zeros((2, 15, 16, 3), np.uint8), 16, file)
    with pytest.raises(UnfitVideoError, match="0 frames"):
        write_video(frames[:0], 16, file)
    assert [path.name for path in tmp_path.iterdir()] == ["out.mp4"]
    assert file.read_bytes() == b"old"
