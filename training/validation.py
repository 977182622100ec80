"""What is looked at while a run goes on: the loss on shards that are not trained on, and samples made anew."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from PIL import Image as Pictures

from training import flow
from training.batch import LatentBatch, PixelBatch
from training.config import TrainConfig
from training.data import open_data
from training.encoding import Encoders
from training.feed import Feed, open_feed
from training.parallel import Ranks
from training.sampler import sample_latents, write_video
from training.shard_index import DataError
from training.student import Student

SEED = 0
"""Of the noise: the same at every validation of every run, so that losses can be compared."""


class Validation:
    """The val split of the shards. Without one there is nothing to look at, and ``missing`` says why."""

    def __init__(self, config: TrainConfig, shards: str, run: Path, encoders: Encoders, ranks: Ranks) -> None:
        self.config, self.run, self.encoders, self.ranks = config, run, encoders, ranks
        self._feed: Feed | None = None
        self.missing = ""
        try:
            self._feed = open_feed(config, shards, "val", encoders, seed=SEED)
            self._pixels = open_data(config.data, shards, "val", seed=SEED)
        except DataError as error:
            self.missing = str(error)

    def look(self, student: Student, step: int) -> tuple[dict[str, float], str]:
        """Measure the loss and generate samples; every rank must call this. Returns numbers, and words about them."""
        if self._feed is None:
            return {}, ""
        settings = self.config.validation
        numbers = self._loss(student, settings.batches) if settings.batches else {}
        words = [f"validation loss {numbers['val_loss']:.4f}"] if numbers else []
        if settings.videos:
            folder = self.run / "samples" / f"step-{step:08d}"
            for batch in islice(self._pixels.once(limit=settings.videos), settings.videos):
                self._generate(student, batch, folder)
            words.append(f"samples in {folder}")
        return numbers, ", ".join(words)

    @torch.no_grad()
    def _loss(self, student: Student, limit: int) -> dict[str, float]:
        total = torch.zeros(2, dtype=torch.float64)
        for batch in self._share(limit):
            latents = self.encoders.encoded(batch).to(self.ranks.device)
            noise, sigma = flow.draw(self.config.flow, SEED, batch.positions, latents.video.shape[1:])
            noisy = flow.add_noise(latents.video, noise.to(latents.video.device), sigma.to(latents.video.device))
            losses = flow.loss(student(latents, noisy.video, noisy.timestep), noisy.target)
            total += torch.stack([(losses * latents.weights).sum(), latents.weights.sum()]).cpu().double()
        loss, weight = self.ranks.sum(total).tolist()
        return {"val_loss": loss / weight} if weight else {}

    def _share(self, limit: int) -> Iterator[PixelBatch | LatentBatch]:
        assert self._feed is not None
        return self._feed.data.once(rank=self.ranks.reader, world=self.ranks.readers, limit=limit)

    def _generate(self, student: Student, batch: PixelBatch, folder: Path) -> None:
        """Generate the first sample of a batch from its caption and references, at the size of its video."""
        latents = self.encoders.encoded(batch).to(self.ranks.device)
        text = self.encoders.text if student.text is None else student.text
        video = sample_latents(
            student.transformer,
            text.encode(batch.captions[:1]),
            text.encode([self.config.sampler.negative]),
            latents.references[:1],
            shape=latents.video.shape[1:],
            config=self.config.sampler,
            seed=SEED,
        )
        if not self.ranks.is_first:
            return
        name = batch.keys[0]
        (frames,) = self.encoders.latents.decode(video).cpu().numpy()
        write_video(frames, self.config.data.fps, folder / f"{name}.mp4")
        _write_strip(batch, frames, folder / f"{name}.png")


def _write_strip(batch: PixelBatch, frames: np.ndarray, file: Path) -> None:
    """One picture to look at: the references, then three frames of the recorded video, and of the generated one."""
    recorded = batch.video[0].numpy()
    chosen = np.linspace(0, len(recorded) - 1, 3).round().astype(int)
    strip = [*batch.references[0].numpy(), *recorded[chosen], *frames[chosen]]
    Pictures.fromarray(np.concatenate(strip, axis=1)).save(file)
