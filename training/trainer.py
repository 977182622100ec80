"""The training loop: read, encode, add noise, predict, step; and now and then save, validate and look.

All that is random in a step follows from the run's seed and the positions of its samples. So a run is a pure function
of its config and its shards: stopped at any moment and resumed, on any number of ranks, it goes on as if nothing had
been.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.distributed as dist
from rich.console import Console

from models.errors import UserError
from training import flow
from training.batch import LatentBatch, PixelBatch
from training.checkpoint import CheckpointError, Checkpoints, TrainState, check_space
from training.config import TrainConfig
from training.encoding import Encoders
from training.feed import open_feed
from training.journal import Journal, resident_gb
from training.latents import build_latents
from training.model import build_model, fill_weights, training_flops
from training.optimiser import MovingAverage, finish_gradients, learning_rate, make_optimiser
from training.parallel import Ranks, add_adapters, arrange, prepare
from training.shard_index import DataError
from training.student import Student
from training.text import build_text
from training.throughput import peak_flops
from training.validation import Validation


class DivergedError(UserError, ArithmeticError):
    """The loss is no longer a number."""


class LoaderError(UserError, RuntimeError):
    """The shards cannot be read any more, or too few of their samples can."""


@dataclass(slots=True)
class Tally:
    """What one rank counted in one step; the sum over the ranks tells about the step."""

    loss: float = 0.0
    samples: float = 0.0
    weight: float = 0.0
    tokens: float = 0.0
    flops: float = 0.0
    wait_s: float = 0.0
    band_loss: list[float] = field(default_factory=lambda: [0.0] * flow.BANDS)
    band_weight: list[float] = field(default_factory=lambda: [0.0] * flow.BANDS)

    def add(self, losses: torch.Tensor, weights: torch.Tensor, timestep: torch.Tensor) -> None:
        """Count a micro-batch: (B,) losses, weights and timesteps."""
        self.loss += float((losses * weights).sum())
        self.samples += len(weights)
        self.weight += float(weights.sum())
        for band, loss, weight in zip(flow.band(timestep).tolist(), losses.tolist(), weights.tolist(), strict=True):
            self.band_loss[band] += loss * weight
            self.band_weight[band] += weight

    def over(self, ranks: Ranks) -> Tally:
        """The sum over all ranks that read different data; waiting is the mean over them."""
        mine = [self.loss, self.samples, self.weight, self.tokens, self.flops, self.wait_s]
        numbers = torch.tensor([*mine, *self.band_loss, *self.band_weight], dtype=torch.float64)
        loss, samples, weight, tokens, flops, wait_s, *bands = ranks.sum(numbers).tolist()
        return Tally(
            loss, samples, weight, tokens, flops, wait_s / ranks.readers, bands[: flow.BANDS], bands[flow.BANDS :]
        )


class Trainer:
    """One run on one rank. Every rank has one of these, in a running process group."""

    def __init__(self, config: TrainConfig, shards: str, run: Path, device: torch.device, console: Console) -> None:
        """Build everything and check all that can be known before the first step.

        Args:
            config: of the run.
            shards: path or URI of the folder of shards.
            run: folder of the run, seen by all ranks; a checkpoint there is resumed from.
            device: of this rank.
            console: where the first rank tells how it goes.

        Raises:
            UserError: for what the user can mend: shards that do not fit, a checkpoint of another model, ranks that
                cannot be arranged, a disk that is too small.
        """
        self.config, self.run, self.device = config, run, device
        torch.manual_seed(config.seed)  # For a text embedding that is trained.
        self.encoders = Encoders(build_latents(config.latents, device), build_text(config.text, device))
        self.feed = open_feed(config, shards, "train", self.encoders, seed=config.seed)
        transformer = build_model(
            config.model,
            self.encoders.latents.channels,
            self.encoders.text.dim,
            device="meta" if config.lora is None else "cpu",
            seed=config.seed,
        )
        self.geometry = dict(transformer.config)
        self._check_buckets()
        self.ranks = arrange(config.parallel, device, transformer.config["num_attention_heads"])
        if config.accumulate % self.ranks.readers:
            raise DataError(
                f"accumulate={config.accumulate} micro-batches of a step cannot be divided among "
                f"{self.ranks.readers} ranks: set it to a multiple"
            )
        self.student = Student(transformer, self.encoders.text)
        if config.lora is not None:
            add_adapters(transformer, config.lora)
            transformer.to(device)
        prepare(self.student, self.ranks, config.parallel)
        if config.lora is None:
            # Only now, when each rank holds a part: a large model fits nowhere whole.
            transformer.to_empty(device=device)
            fill_weights(transformer, config.model, config.seed)
        trained = self.student.named_trained()
        self.optimiser = make_optimiser(trained, config.optimiser)
        self.average = MovingAverage(trained, config.optimiser.ema) if config.optimiser.ema else None
        self.state = TrainState(self.student, self.optimiser, self.average)
        run.mkdir(parents=True, exist_ok=True)
        size = sum(parameter.numel() for parameter in trained.values()) * 4 * (4 if self.average else 3)
        check_space(run, size, config.checkpoint.keep)
        self.checkpoints = Checkpoints(run / "checkpoints", config.checkpoint.keep, is_first=self.ranks.is_first)
        self.checkpoints.clean()
        self.done = self._resume()
        self.validation = Validation(config, shards, run, self.encoders, self.ranks)
        self.peak, self.peak_source = peak_flops(device)
        self.console = console
        self.skipped: Counter[str] = Counter()
        self.seen = self.lost = 0.0

    def train(self, stop: Callable[[], bool]) -> bool:
        """Go on to the last step, or until ``stop`` says so on any rank; then save. Returns whether all steps are done.

        Raises:
            DivergedError: if the loss is no longer a number.
            CheckpointError: if the last checkpoint could not be written.
        """
        config = self.config
        if self.done >= config.steps:
            self._say(None, f"{self.run}: all {config.steps} steps are done")
            return True
        journal = self._open_journal()
        self._introduce(journal)
        per_rank = config.accumulate // self.ranks.readers
        batches = self.feed.data.stream(
            self.done * config.accumulate,
            rank=self.ranks.reader,
            world=self.ranks.readers,
            accumulate=config.accumulate,
        )
        started, first = time.monotonic(), self.done
        stopping = False
        try:
            while self.done < config.steps and not stopping:
                numbers = self._step(self.done, batches, per_rank)
                self.done += 1
                if journal is not None:
                    left = (time.monotonic() - started) / (self.done - first) * (config.steps - self.done)
                    journal.step(self.done, numbers, left)
                self._finish_checkpoint(journal)
                if self.done % config.checkpoint.every == 0 and self.done < config.steps:
                    self._save(journal)
                if self.done % config.validation.every == 0 or self.done == config.steps:
                    self._validate(journal)
                stopping = self.ranks.any(stop())
            self._finish_checkpoint(journal, wait=True)
            if self.checkpoints.written != self.checkpoints.path(self.done):
                self.checkpoints.save(self.done, self.state, self._description())
                self.checkpoints.finish()
        finally:
            if journal is not None:
                journal.close()
        if self.skipped:
            self._say(None, "skipped samples: " + ", ".join(f"{count} x {why}" for why, count in self.skipped.items()))
        complete = self.done >= config.steps
        self._say(None, f"{'done' if complete else 'stopped'} at step {self.done}; saved in {self.checkpoints.written}")
        return complete

    def _step(self, number: int, batches: Iterator[PixelBatch | LatentBatch], count: int) -> dict[str, float]:
        """Step ``number``, counted from 0; returns its metrics, the same on every rank."""
        started = time.perf_counter()
        config, tally = self.config, Tally()
        for group in self.optimiser.param_groups:
            group["lr"] = learning_rate(number, config.optimiser)
        # Adapters may have dropout: then it, too, follows from the step alone.
        torch.manual_seed((config.seed * 1_000_003 + number) * 1009 + self.ranks.reader)
        keys: list[str] = []
        for _ in range(count):
            batch = self._next(batches, tally)
            keys.extend(batch.keys)
            self._backward(batch, tally)
        whole = tally.over(self.ranks)
        self._check_skipped(whole)
        if not math.isfinite(whole.loss):
            raise DivergedError(
                f"the loss of step {number + 1} is {whole.loss} (samples {', '.join(keys)} on rank {self.ranks.rank}); "
                f"the last checkpoint is {self.checkpoints.latest()}. Lower optimiser.lr, or lengthen its warmup"
            )
        nominal = config.accumulate * config.data.micro_batch
        norm = finish_gradients(
            self.student.named_trained().values(), nominal / max(whole.weight, 1.0), config.optimiser.clip
        )
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        if self.average is not None:
            self.average.update(number)
        seconds = time.perf_counter() - started
        return {
            "loss": whole.loss / max(whole.weight, 1.0),
            **{
                f"loss_band_{band}": whole.band_loss[band] / whole.band_weight[band]
                for band in range(flow.BANDS)
                if whole.band_weight[band]
            },
            "gradient_norm": norm,
            "lr": learning_rate(number, config.optimiser),
            "samples": whole.weight,
            "samples_per_s": whole.weight / seconds,
            "tokens_per_s": whole.tokens / seconds,
            "mfu": whole.flops / seconds / (self.peak * dist.get_world_size()),
            "data_wait_share": whole.wait_s / seconds,
            "memory_gb": self._memory_gb(),
            "seconds": seconds,
        }

    def _next(self, batches: Iterator[PixelBatch | LatentBatch], tally: Tally) -> LatentBatch:
        started = time.perf_counter()
        try:
            batch = next(batches)
        except (RuntimeError, OSError) as error:
            raise LoaderError(f"rank {self.ranks.rank} cannot read on: {error}") from error
        tally.wait_s += time.perf_counter() - started
        for skipped in batch.skipped:
            self.skipped[skipped.reason] += 1
            self.console.print(
                f"rank {self.ranks.rank} skipped {skipped.key}: {skipped.detail}", highlight=False, soft_wrap=True
            )
        return self.encoders.encoded(batch).to(self.device)

    def _check_skipped(self, step: Tally) -> None:
        """Count over all ranks, so that they give up together."""
        self.seen += step.samples
        self.lost += step.samples - step.weight
        if self.seen >= 100 and self.lost > self.config.max_skipped * self.seen:
            raise LoaderError(
                f"{self.lost:.0f} of {self.seen:.0f} samples could not be read, more than max_skipped="
                f"{self.config.max_skipped:g} allows: pack the shards again"
            )

    def _backward(self, batch: LatentBatch, tally: Tally) -> None:
        """Add a micro-batch's gradients. They are sums over samples, divided by the samples of a full step."""
        config = self.config
        noise, sigma = flow.draw(config.flow, config.seed, batch.positions, batch.video.shape[1:])
        noisy = flow.add_noise(batch.video, noise.to(self.device), sigma.to(self.device))
        losses = flow.loss(self.student(batch, noisy.video, noisy.timestep), noisy.target)
        ((losses * batch.weights).sum() / (config.accumulate * config.data.micro_batch)).backward()
        tally.add(losses.detach(), batch.weights, noisy.timestep)
        video, references = (self._tokens(latents) for latents in (batch.video, batch.references))
        tally.tokens += len(batch.keys) * (video + references)
        tally.flops += len(batch.keys) * training_flops(self.geometry, video, references, self.encoders.text.length)

    def _tokens(self, latents: torch.Tensor) -> int:
        return math.prod(
            size // patch for size, patch in zip(latents.shape[2:], self.geometry["patch_size"], strict=True)
        )

    def _validate(self, journal: Journal | None) -> None:
        if self.average is not None:
            self.average.swap()
        self.student.eval()
        try:
            numbers, text = self.validation.look(self.student, self.done)
        finally:
            self.student.train()
            if self.average is not None:
                self.average.swap()
        if journal is not None and text:
            journal.note(self.done, numbers, text)

    def _save(self, journal: Journal | None) -> None:
        """Start a checkpoint. A full disk ends no run: it is told, and tried again at the next one."""
        try:
            self.checkpoints.save(self.done, self.state, self._description())
        except CheckpointError as error:
            self._say(journal, f"{error} The run goes on.")

    def _finish_checkpoint(self, journal: Journal | None, *, wait: bool = False) -> None:
        try:
            self.checkpoints.finish(wait=wait)
        except CheckpointError as error:
            self._say(journal, f"{error} The run goes on.")

    def _resume(self) -> int:
        latest = self.checkpoints.latest()
        return 0 if latest is None else self.checkpoints.load(latest, self.state, self.geometry)

    def _description(self) -> dict[str, object]:
        return {"config": self.config.model_dump(mode="json"), "geometry": {**self.geometry}}

    def _open_journal(self) -> Journal | None:
        if not self.ranks.is_first:
            return None
        return Journal(
            self.config.log,
            self.run,
            step=self.done,
            steps=self.config.steps,
            settings=self.config.model_dump(mode="json"),
            console=self.console,
        )

    def _introduce(self, journal: Journal | None) -> None:
        report = self.feed.data.report
        parameters = sum(parameter.numel() for parameter in self.student.named_trained().values())
        left_out = "".join(f"; {count} left out: {why}" for why, count in report.left_out.items() if count)
        self._say(
            journal,
            f"{report.samples} samples, {parameters / 1e6:.1f} M trained parameters, {dist.get_world_size()} ranks on "
            f"{self.device.type}, peak {self.peak / 1e12:.2f} TFLOP/s each ({self.peak_source}){left_out}",
        )
        self._say(journal, f"latents: {self.feed.origin}")
        if self.validation.missing:
            self._say(journal, f"no validation: {self.validation.missing}")
        if self.done:
            self._say(journal, f"going on from step {self.done}")

    def _check_buckets(self) -> None:
        """Refuse buckets that the encoder or the model cannot take, before anything is loaded."""
        latents, (_, rows, columns) = self.encoders.latents, self.geometry["patch_size"]
        for frames, height, width in self.config.data.buckets:
            side = (latents.spatial_factor * rows, latents.spatial_factor * columns)
            if height % side[0] or width % side[1] or (frames - 1) % latents.temporal_factor:
                raise DataError(
                    f"data.buckets: [{frames}, {height}, {width}] does not fit: this encoder and model take heights in "
                    f"multiples of {side[0]}, widths of {side[1]}, and frames of {latents.temporal_factor} k + 1"
                )
            tokens, context = height // side[0] * (width // side[1]), self.config.parallel.context
            if tokens % context:
                raise DataError(
                    f"data.buckets: the {tokens} tokens of a frame of [{frames}, {height}, {width}] cannot be divided "
                    f"among parallel.context={context} ranks"
                )

    def _memory_gb(self) -> float:
        if self.device.type == "cuda":
            return float(torch.cuda.max_memory_allocated(self.device)) / 1e9
        return resident_gb()

    def _say(self, journal: Journal | None, text: str) -> None:
        if journal is not None:
            journal.say(text)
        elif self.ranks.is_first:
            self.console.print(text, highlight=False, soft_wrap=True)
