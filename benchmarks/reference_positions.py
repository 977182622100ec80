"""Does it matter where the references' rotary positions lie? The same tiny network, trained once for every choice.

The task is that of benchmarks/_sprites.py: two references, a caption that says which of them belongs where, a video
that shows each in its place. References are told apart by their rotary positions alone. For a seed all variants start
from the same weights and see the same samples and noise in the same order; only the positions differ. Scores are those
of videos generated for held-out sprites.
"""

from __future__ import annotations

import argparse
import multiprocessing
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

import numpy as np
import torch
from _measure import cpus, show, show_machine
from _sprites import CONFUSED_BY_CHANCE, FRAMES, HEIGHT, SUBJECTS, WIDTH, Score, Sprites, compose, draw_sprites, score
from PIL import Image, ImageDraw, ImageFont

from training import flow
from training.batch import LatentBatch
from training.config import OptimiserConfig, TrainConfig
from training.flow import FlowConfig
from training.latents import LatentEncoder, PixelLatentsConfig, build_latents
from training.model import ModelConfig, build_model
from training.optimiser import MovingAverage, finish_gradients, learning_rate, make_optimiser
from training.rope import RELEASED_OFFSET, Offset
from training.sampler import SamplerConfig, latent_shape, sample_latents
from training.student import Student
from training.text import Words, WordsConfig

VARIANTS: dict[str, Offset] = {
    "R-RoPE, (80, 80)": RELEASED_OFFSET,
    "R-RoPE, video grid": "video_grid",
    "shift in time only": "time",
    "no shift": "none",
}
COLOURS = ((31, 119, 180), (23, 160, 160), (255, 127, 14), (214, 39, 40))
HELD_OUT_SEED = 2**32

Curve = Mapping[int, Score]
"""Scores by the number of steps trained."""


@dataclass(frozen=True, slots=True)
class Size:
    """How much is trained and looked at."""

    steps: int
    batch: int
    every: int
    """Steps from one score to the next."""
    videos: int
    """Videos that a score is made of."""


@dataclass(frozen=True, slots=True)
class Run:
    """A network trained from one seed with one choice of positions."""

    variant: str
    seed: int
    curve: Curve
    seconds: float

    @property
    def final(self) -> Score:
        return self.curve[max(self.curve)]

    @property
    def understood(self) -> int | None:
        """Steps until subjects were confused less than half as often as by chance, or None if they never were."""
        return next((step for step, one in self.curve.items() if one.confusion < CONFUSED_BY_CHANCE / 2), None)


def recipe(offset: Offset, seed: int, steps: int) -> TrainConfig:
    """What is trained: all but the offset is the same for every variant."""
    shift = 10.0  # What belongs where is decided near pure noise: with a patch per sprite, little noise hides nothing.
    return TrainConfig(
        seed=seed,
        steps=steps,
        latents=PixelLatentsConfig(factor=8),
        text=WordsConfig(dim=64, length=2 * SUBJECTS, rows=64),
        model=ModelConfig(offset=offset, layers=3, heads=4, head_dim=18, ffn_dim=192, freq_dim=64, patch_size=(1, 1)),
        flow=FlowConfig(shift=shift),
        optimiser=OptimiserConfig(lr=2e-3, warmup=100, clip=1.0, ema=0.99),
        sampler=SamplerConfig(
            steps=12, guidance=1, shift=shift, negative="", height=HEIGHT, width=WIDTH, frames=FRAMES
        ),
    )


def train(variant: str, seed: int, size: Size) -> Run:
    """Train a network in this process, on one thread, and score it along the way."""
    torch.set_num_threads(1)
    started = time.perf_counter()
    config = recipe(VARIANTS[variant], seed, size.steps)
    encoder = build_latents(config.latents)
    torch.manual_seed(seed)
    words = Words(config.text)
    student = Student(build_model(config.model, encoder.channels, words.dim, device="cpu", seed=seed), words)
    trained = student.named_trained()
    optimiser = make_optimiser(trained, config.optimiser)
    average = MovingAverage(trained, config.optimiser.ema)
    held_out = draw_sprites(np.random.default_rng(HELD_OUT_SEED), size.videos, "held out")
    curve = {}
    for step in range(size.steps):
        samples = draw_sprites(np.random.default_rng([seed, step]), size.batch, "train")
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(step, config.optimiser)
        loss_of(student, encoded(samples, encoder, step * size.batch), config).backward()
        finish_gradients(trained.values(), 1.0, config.optimiser.clip)
        optimiser.step()
        optimiser.zero_grad()
        average.update(step)
        if (step + 1) % size.every == 0 or step + 1 == size.steps:
            average.swap()
            curve[step + 1] = score(generate(student, held_out, encoder, config), held_out)
            average.swap()
    return Run(variant, seed, curve, time.perf_counter() - started)


def encoded(samples: Sprites, encoder: LatentEncoder, first: int) -> LatentBatch:
    """Samples as the model takes them; ``first`` is the place of the first in the order of all."""
    positions = tuple(range(first, first + len(samples.captions)))
    return LatentBatch(
        keys=tuple(map(str, positions)),
        positions=positions,
        weights=torch.ones(len(positions)),
        captions=samples.captions,
        video=encoder.encode(torch.from_numpy(samples.video)),
        references=encoder.encode_references(torch.from_numpy(samples.references)),
        text=None,
    )


def loss_of(student: Student, batch: LatentBatch, config: TrainConfig) -> torch.Tensor:
    """The rectified-flow loss of a batch."""
    noise, sigma = flow.draw(config.flow, config.seed, batch.positions, batch.video.shape[1:])
    noisy = flow.add_noise(batch.video, noise, sigma)
    return flow.loss(student(batch, noisy.video, noisy.timestep), noisy.target).mean()


def generate(student: Student, samples: Sprites, encoder: LatentEncoder, config: TrainConfig) -> np.ndarray:
    """The videos (B, T, H, W, 3) uint8 that the network makes of the samples' references and captions."""
    with torch.no_grad():
        latents = sample_latents(
            student.transformer,
            student.text.encode(samples.captions),
            None,
            encoder.encode_references(torch.from_numpy(samples.references)),
            shape=latent_shape(config.sampler, encoder, config.model.patch_size),
            config=config.sampler,
            seed=config.seed,
        )
        return encoder.decode(latents).numpy()


def guessed(videos: int) -> Score:
    """The score of the right sprites in places drawn at random."""
    generator = np.random.default_rng(HELD_OUT_SEED)
    samples = draw_sprites(generator, videos, "held out")
    shuffled = generator.permuted(np.tile(np.arange(samples.asked.shape[1]), (videos, 1)), axis=1)
    return score(compose(np.take_along_axis(samples.sprites, shuffled[..., None, None, None], axis=1)), samples)


def train_all(seeds: int, size: Size, workers: int) -> list[Run]:
    """Every variant from every seed, in processes of their own."""
    runs = []
    # Not forked: PyTorch's threads do not survive that.
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        started = [pool.submit(train, variant, seed, size) for seed in range(seeds) for variant in VARIANTS]
        for done in as_completed(started):
            run = done.result()
            runs.append(run)
            print(
                f"{len(runs)}/{len(started)} {run.variant}, seed {run.seed}: confusion {run.final.confusion:.1%}, "
                f"error {run.final.error:.1f}, {run.seconds:.0f} s",
                flush=True,
            )
    return sorted(runs, key=lambda run: run.seed)


def of_variant(runs: Sequence[Run], variant: str) -> list[Run]:
    return [run for run in runs if run.variant == variant]


def spread(values: Sequence[float]) -> str:
    """Mean and range."""
    return f"{mean(values):.1f} ({min(values):.1f}-{max(values):.1f})"


def until_understood(runs: Sequence[Run]) -> str:
    """Mean and range of the steps, and how many runs did not get there."""
    steps = [run.understood for run in runs if run.understood is not None]
    missing = f"{len(runs) - len(steps)} of {len(runs)} never" if len(steps) < len(runs) else ""
    known = f"{mean(steps):.0f} ({min(steps)}-{max(steps)})" if steps else ""
    return ", ".join(filter(None, [known, missing]))


def plot(runs: Sequence[Run], chance: Score, path: Path) -> None:
    """Confusion and error over the steps: a thin line for every seed, a bold one for their mean."""
    panels = {
        "subject confusion, %": (lambda one: 100 * one.confusion, 100 * CONFUSED_BY_CHANCE),
        "error, pixel values": (lambda one: one.error, chance.error),
    }
    width, height, margin, legend = 640, 440, 70, 40
    # Drawn at twice the size, for smooth lines.
    image = Image.new("RGB", (2 * width, height + legend), "white").resize((4 * width, 2 * (height + legend)))
    pen = ImageDraw.Draw(image)
    font = ImageFont.load_default(28)
    last = max(max(run.curve) for run in runs)
    for number, (title, (value, by_chance)) in enumerate(panels.items()):
        highest = max([by_chance, *(value(one) for run in runs for one in run.curve.values())]) * 1.05
        left, right = 2 * (number * width + margin), 2 * ((number + 1) * width - margin // 2)
        top, bottom = 2 * (legend + margin // 2), 2 * (legend + height - margin)

        def at(step: float, level: float, box=(left, right, top, bottom), highest=highest) -> tuple[float, float]:
            return box[0] + step / last * (box[1] - box[0]), box[3] - level / highest * (box[3] - box[2])

        apart = next(size for size in (1, 2, 5, 10, 20, 50) if highest / size < 8)
        for level in range(0, int(highest) + 1, apart):
            pen.line([at(0, level), at(last, level)], fill=(230, 230, 230), width=2)
            pen.text((left - 12, at(0, level)[1]), str(level), "black", font, anchor="rm")
        for fifth in range(6):
            step = round(last * fifth / 5)
            pen.text((at(step, 0)[0], bottom + 12), str(step), "black", font, anchor="ma")
        pen.line([at(0, by_chance), at(last, by_chance)], fill=(120, 120, 120), width=4)
        pen.text((right, at(0, by_chance)[1] - 6), "chance", (120, 120, 120), font, anchor="rb")
        pen.text(((left + right) / 2, bottom + 60), "steps", "black", font, anchor="ma")
        pen.text((left, top - 12), title, "black", font, anchor="lb")
        for variant, colour in zip(VARIANTS, COLOURS, strict=True):
            curves = [run.curve for run in of_variant(runs, variant)]
            pale = tuple((part + 2 * 255) // 3 for part in colour)
            for curve in curves:
                pen.line([at(step, value(one)) for step, one in curve.items()], fill=pale, width=3)
        for variant, colour in zip(VARIANTS, COLOURS, strict=True):
            curves = [run.curve for run in of_variant(runs, variant)]
            pen.line(
                [at(step, mean(value(curve[step]) for curve in curves)) for step in curves[0]], fill=colour, width=7
            )
    for number, (variant, colour) in enumerate(zip(VARIANTS, COLOURS, strict=True)):
        start = 2 * margin + number * (width - margin)
        pen.line([(start, legend), (start + 60, legend)], fill=colour, width=8)
        pen.text((start + 76, legend), variant, "black", font, anchor="lm")
    path.parent.mkdir(parents=True, exist_ok=True)
    image.resize((2 * width, height + legend), Image.Resampling.LANCZOS).save(path)


def main() -> None:
    """Train, print, plot."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="example: python benchmarks/reference_positions.py --seeds 5 --plot reference_positions.png",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--seeds", type=int, default=5, metavar="N", help="networks per variant (default: 5)")
    parser.add_argument("--steps", type=int, default=1500, metavar="N", help="steps of each (default: 1500)")
    parser.add_argument("--batch", type=int, default=64, metavar="N", help="samples per step (default: 64)")
    parser.add_argument("--every", type=int, default=100, metavar="N", help="steps between scores (default: 100)")
    parser.add_argument("--videos", type=int, default=64, metavar="N", help="videos per score (default: 64)")
    parser.add_argument("--workers", type=int, default=cpus(), metavar="N", help="networks at once (default: CPUs)")
    parser.add_argument(
        "--plot", type=Path, default=Path("reference_positions.png"), metavar="FILE", help="where the plot goes"
    )
    parser.add_argument("--quick", action="store_true", help="a few steps of one seed, to see that it runs")
    options = parser.parse_args()
    if options.quick:
        seeds, size = 1, Size(steps=6, batch=4, every=3, videos=4)
    else:
        seeds, size = options.seeds, Size(options.steps, options.batch, options.every, options.videos)
    show_machine()
    runs = train_all(seeds, size, options.workers)
    chance = guessed(size.videos)
    rows = [
        (
            variant,
            spread([100 * run.final.confusion for run in of_variant(runs, variant)]),
            spread([run.final.error for run in of_variant(runs, variant)]),
            until_understood(of_variant(runs, variant)),
        )
        for variant in VARIANTS
    ]
    show(
        f"{size.videos} held-out videos after {size.steps} steps of {size.batch} samples",
        ["references' positions", "subject confusion, %", "error, pixel values", "steps to half of chance"],
        [
            *rows,
            (),
            ("chance: right sprites, random places", f"{100 * CONFUSED_BY_CHANCE:.1f}", f"{chance.error:.1f}", ""),
        ],
        f"mean of {seeds} seeds (lowest-highest)",
    )
    plot(runs, chance, options.plot)
    print(f"plot: {options.plot}")


if __name__ == "__main__":
    main()
