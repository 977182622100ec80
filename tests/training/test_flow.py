import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from stages.config import ConfigError, change
from training.flow import FlowConfig, add_noise, band, draw, loss, resolution_shift, shifted, starting_noise

SHAPE = (4, 3, 6, 10)
LEVELS = st.floats(0, 1)
SHIFTS = st.floats(0.1, 20)
GOLDEN_SIGMA = [0.31092620, 0.49937519]
GOLDEN_NOISE = [0.18690819, -0.85418355, -1.23944604]


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [
        (480, 832, math.exp(0.5 + (1560 - 256) * 0.65 / 3840)),
        (480, 832, 2.056),
        (512, 896, 2.138),
        (256, 256, math.exp(0.5)),
        (1024, 1024, math.exp(1.15)),
    ],
)
def test_the_shift_follows_the_tokens_of_a_frame(height: int, width: int, expected: float) -> None:
    assert resolution_shift(height // 8, width // 8) == pytest.approx(expected, abs=5e-4)
    assert FlowConfig().shift_at(height // 8, width // 8) == resolution_shift(height // 8, width // 8)


def test_the_exponent_at_480p() -> None:
    assert math.log(resolution_shift(60, 104)) == pytest.approx(0.7207, abs=5e-5)


@given(sigma=LEVELS, shift=SHIFTS)
def test_shifting_multiplies_the_odds(sigma: float, shift: float) -> None:
    moved = shifted(sigma, shift)
    assert moved * (1 - sigma) == pytest.approx(shift * sigma * (1 - moved), abs=1e-9)


@given(sigma=LEVELS, first=SHIFTS, second=SHIFTS)
def test_shifts_compose_and_can_be_undone(sigma: float, first: float, second: float) -> None:
    assert shifted(shifted(sigma, first), second) == pytest.approx(shifted(sigma, first * second), abs=1e-9)
    assert shifted(shifted(sigma, first), 1 / first) == pytest.approx(sigma, abs=1e-9)


def test_shifting_leaves_the_ends_and_is_the_exponential_form_of_the_recipe() -> None:
    assert (shifted(0.0, 7), shifted(1.0, 7)) == (0.0, 1.0)
    u = 0.7207
    assert shifted(0.3, math.exp(u)) == pytest.approx(math.exp(u) / (math.exp(u) + (1 / 0.3 - 1)))


def test_noise_levels_are_shifted_sigmoids_of_normal_numbers() -> None:
    config = FlowConfig(mean=0.4, std=0.7, shift=3)
    _, sigma = draw(config, 1, range(20_000), (1, 1, 1, 1))
    logits = torch.logit(shifted(sigma.double(), 1 / 3))
    assert logits.mean().item() == pytest.approx(0.4, abs=0.03)
    assert logits.std().item() == pytest.approx(0.7, abs=0.03)
    normal = torch.distributions.Normal(0.4, 0.7)
    ranks = normal.cdf(logits.sort().values)
    expected = (torch.arange(len(ranks)) + 0.5) / len(ranks)
    assert (ranks - expected).abs().max() < 1.63 / math.sqrt(len(ranks))  # Kolmogorov-Smirnov at 1 %.


def test_noise_is_standard_normal_and_independent() -> None:
    noise, sigma = draw(FlowConfig(), 0, range(200), (16, 2, 16, 16))
    assert noise.mean().item() == pytest.approx(0, abs=0.005)
    assert noise.var().item() == pytest.approx(1, abs=0.005)
    flat = noise.flatten(1)
    correlation = (flat @ flat.T / flat.shape[1]).fill_diagonal_(0)
    assert correlation.abs().max() < 0.06
    assert torch.corrcoef(torch.stack([sigma, flat.mean(1)]))[0, 1].abs() < 0.25


@given(st.lists(st.integers(0, 2**40), min_size=1, max_size=5), st.integers(0, 2**63))
def test_a_sample_has_its_draw_whatever_batch_it_is_in(positions: list[int], seed: int) -> None:
    noise, sigma = draw(FlowConfig(), seed, positions, SHAPE)
    for place, position in enumerate(positions):
        alone, level = draw(FlowConfig(), seed, [position], SHAPE)
        assert torch.equal(noise[place], alone[0])
        assert torch.equal(sigma[place], level[0])


def test_draws_differ_by_seed_and_position_and_are_not_those_of_sampling() -> None:
    draws = [draw(FlowConfig(), seed, [position], SHAPE)[0] for seed in (0, 1) for position in (0, 1, 2**32)]
    draws += [starting_noise(0, 1, SHAPE)]
    for place, one in enumerate(draws):
        assert all(not torch.equal(one, other) for other in draws[:place])


def test_draws_leave_the_global_generator_alone_and_are_known() -> None:
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    noise, sigma = draw(FlowConfig(shift=1), 0, [0, 5], SHAPE)
    assert torch.equal(torch.rand(1), expected)
    assert (noise.shape, noise.dtype) == ((2, *SHAPE), torch.float32)
    assert (sigma.shape, sigma.dtype) == ((2,), torch.float32)
    # A resumed run must go on with the numbers that it began with, also after an update of what draws them.
    assert sigma.tolist() == pytest.approx(GOLDEN_SIGMA, rel=1e-6)
    assert noise[1].flatten()[:3].tolist() == pytest.approx(GOLDEN_NOISE, rel=1e-6)


def test_noisy_latents_lie_on_the_line_between_data_and_noise() -> None:
    video, noise = torch.randn(3, *SHAPE), torch.randn(3, *SHAPE)
    sigma = torch.tensor([0.0, 0.25, 1.0])
    noisy = add_noise(video, noise, sigma)
    assert torch.equal(noisy.video[0], video[0])
    assert torch.allclose(noisy.video[1], 0.75 * video[1] + 0.25 * noise[1])
    assert torch.equal(noisy.video[2], noise[2])
    assert torch.equal(noisy.target, noise - video)
    assert noisy.timestep.tolist() == [0, 250, 1000]
    # The velocity is the derivative along that line, so data and noise can be had back from any point of it.
    level = sigma.view(-1, 1, 1, 1, 1)
    assert torch.allclose(noisy.video - level * noisy.target, video, atol=1e-6)


def test_half_precision_latents_are_mixed_in_float32() -> None:
    video, noise = torch.randn(1, *SHAPE).bfloat16(), torch.randn(1, *SHAPE)
    noisy = add_noise(video, noise, torch.tensor([0.3]))
    assert {noisy.video.dtype, noisy.target.dtype, noisy.timestep.dtype} == {torch.float32}
    assert torch.equal(noisy.target, noise - video.float())


def test_loss_is_the_plain_mean_of_squares_per_sample_in_float32() -> None:
    target = torch.zeros(2, *SHAPE)
    prediction = torch.stack([torch.full(SHAPE, 2.0), torch.full(SHAPE, 0.5)])
    assert loss(prediction, target).tolist() == [4.0, 0.25]
    # 257 is no bfloat16: the difference must be taken in float32.
    ones, far = torch.full((1, *SHAPE), 1.0).bfloat16(), torch.full((1, *SHAPE), -256.0).bfloat16()
    assert loss(ones, far).item() == pytest.approx(257**2, rel=1e-6)


@given(st.lists(st.floats(0, 1, width=32), min_size=1, max_size=20))
def test_bands_are_quarters_of_the_noise_levels(levels: list[float]) -> None:
    sigma = torch.tensor(levels, dtype=torch.float32)
    latents = torch.zeros(len(levels), 1, 1, 1, 1)
    bands = band(add_noise(latents, latents, sigma).timestep)
    for level, number in zip(sigma.tolist(), bands.tolist(), strict=True):
        assert number in range(4)
        assert number / 4 - 1e-6 <= level <= (number + 1) / 4 + 1e-6


def test_the_config_takes_resolution_or_a_positive_number() -> None:
    assert change(FlowConfig(), ["shift=3"]).shift_at(60, 104) == 3
    assert change(FlowConfig(shift=3), ["shift=resolution"]).shift_at(60, 104) == resolution_shift(60, 104)
    for wrong in ("shift=0", "shift=size", "std=0"):
        with pytest.raises(ConfigError):
            change(FlowConfig(), [wrong])
    with pytest.raises(ValidationError):
        FlowConfig(shift=-1)
