from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as Pictures

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
SEEDS = st.integers(0, 2**32)


@pytest.fixture(scope="module")
def sprites() -> ModuleType:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        import _sprites

        return _sprites


@settings(max_examples=20, deadline=None)
@given(seed=SEEDS)
def test_caption_says_which_reference_is_where(sprites, seed):
    samples = sprites.draw_sprites(np.random.default_rng(seed), 4, "train")
    for caption, video, references in zip(samples.captions, samples.video, samples.references, strict=True):
        words = caption.split()
        for ordinal, place in zip(words[::2], words[1::2], strict=True):
            reference = references[sprites.ORDINALS.index(ordinal)]
            column = sprites.PLACES.index(place) * sprites.CELL
            shown = video[0, :, column : column + sprites.CELL]
            assert sorted(shown[(shown < 255).any(-1)].tolist()) == sorted(
                reference[(reference < 255).any(-1)].tolist()
            )


@settings(max_examples=20, deadline=None)
@given(seed=SEEDS)
def test_right_video_is_flawless_and_exchanged_sprites_are_all_confused(sprites, seed):
    samples = sprites.draw_sprites(np.random.default_rng(seed), 4, "held out")
    assert sprites.score(samples.video, samples) == sprites.Score(confusion=0, error=0)
    exchanged = np.take_along_axis(samples.sprites, np.roll(samples.asked, 1, axis=1)[..., None, None, None], axis=1)
    wrong = sprites.score(sprites.compose(exchanged), samples)
    assert wrong.confusion == 1
    assert wrong.error > 20


def test_error_is_in_pixel_values(sprites):
    samples = sprites.draw_sprites(np.random.default_rng(0), 3, "train")
    brighter = np.where(samples.video < 128, samples.video + 10, samples.video - 10).astype(np.uint8)
    assert sprites.score(brighter, samples).error == pytest.approx(10)


def test_guessing_confuses_as_often_as_chance_says(sprites):
    generator = np.random.default_rng(0)
    samples = sprites.draw_sprites(generator, 2000, "train")
    anywhere = sprites.compose(generator.permuted(samples.sprites, axis=0))
    score = sprites.score(anywhere, samples)
    assert score.confusion == pytest.approx(sprites.CONFUSED_BY_CHANCE, abs=0.03)


def test_order_of_references_is_told_by_nothing_else(sprites):
    """Every reference is asked for in every place equally often, and sprites look alike whatever their number."""
    samples = sprites.draw_sprites(np.random.default_rng(0), 3000, "train")
    for place in range(sprites.SUBJECTS):
        shares = np.bincount(samples.asked[:, place], minlength=sprites.SUBJECTS) / 3000
        assert shares == pytest.approx(1 / sprites.SUBJECTS, abs=0.04)
    means = samples.sprites.mean(axis=(0, 2, 3))
    assert np.ptp(means, axis=0).max() < 6


def test_held_out_sprites_look_like_none_to_train_on(sprites):
    masks = {
        split: {
            np.unique(sprite.reshape(-1, 3), axis=0, return_inverse=True)[1].tobytes()
            for sample in sprites.draw_sprites(np.random.default_rng(0), 500, split).sprites
            for sprite in sample
        }
        for split in ("train", "held out")
    }
    assert masks["held out"]
    assert not masks["train"] & masks["held out"]


@pytest.mark.timeout(900)
def test_quick_run_scores_every_variant_and_plots(tmp_path):
    plot = tmp_path / "plot.png"
    command = [sys.executable, str(BENCHMARKS / "reference_positions.py"), "--quick", "--plot", str(plot)]
    run = subprocess.run(
        command,
        cwd=BENCHMARKS.parent,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    for variant in ("R-RoPE, (80, 80)", "R-RoPE, video grid", "shift in time only", "no shift", "chance"):
        assert f"│ {variant}" in run.stdout
    with Pictures.open(plot) as picture:
        colours = {colour for _, colour in picture.getcolors(2**20)}
    assert len(colours) > 10
