"""Tokens per second and MFU of a training step, against the device's peak and the published figures.

Whole steps on made-up latents: forward, backward, clipping, AdamW, sharded by FSDP2 over however many ranks there are
(one without torchrun). Nothing is read or encoded: what the loader costs is benchmarks/loader.py's. Model FLOPs are
counted without what is recomputed (training.model.training_flops), so that MFU can be compared with published ones: Wan
14B at 37,440 tokens on H100s reached 32.9 % (Megatron, 128 GPUs), 23.1 % (FSDP, 64) and 17.8 % (FSDP, 8).
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Iterator
from statistics import median

import torch
import torch.distributed as dist
from _measure import show

from training import flow
from training.batch import LatentBatch
from training.config import OptimiserConfig, ParallelConfig, TrainConfig
from training.launch import process_group
from training.model import ModelConfig, build_model, fill_weights, training_flops
from training.optimiser import finish_gradients, make_optimiser
from training.parallel import arrange, prepare
from training.student import Student
from training.text import WordsConfig
from training.throughput import peak_flops

GEOMETRIES = {
    "tiny": ModelConfig(layers=4, heads=4, head_dim=32, ffn_dim=512),
    "1.3b": ModelConfig(layers=30, heads=12, head_dim=128, ffn_dim=8960),
    "14b": ModelConfig(layers=40, heads=40, head_dim=128, ffn_dim=13824),
}
CHANNELS, TEXT_DIM, TEXT_ROWS = 16, 4096, 512


def batch_of(frames: int, height: int, width: int, references: int, device: torch.device) -> LatentBatch:
    """One made-up sample of pixels' size, encoded as by Wan's VAE."""
    size = height // 8, width // 8
    return LatentBatch(
        keys=("made up",),
        positions=(0,),
        weights=torch.ones(1, device=device),
        captions=("",),
        video=torch.randn(1, CHANNELS, (frames - 1) // 4 + 1, *size, device=device),
        references=torch.randn(1, CHANNELS, references, *size, device=device),
        text=torch.randn(1, TEXT_ROWS, TEXT_DIM, device=device),
    )


def seconds_of_steps(
    geometry: ModelConfig, parallel: ParallelConfig, batch: LatentBatch, device: torch.device, steps: int
) -> tuple[list[float], float]:
    """Seconds of each step after the first two, and the peak of memory in GB (0 on CPUs)."""
    transformer = build_model(geometry, CHANNELS, TEXT_DIM, device="meta")
    ranks = arrange(parallel, device, transformer.config["num_attention_heads"])
    student = Student(transformer, _FrozenText())
    prepare(student, ranks, parallel)
    transformer.to_empty(device=device)
    fill_weights(transformer, geometry)
    optimiser = make_optimiser(student.named_trained(), OptimiserConfig())
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    seconds = []
    for number in range(steps + 2):
        _synchronise(device)
        started = time.perf_counter()
        noise, sigma = flow.draw(flow.FlowConfig(), 0, (number,), batch.video.shape[1:])
        noisy = flow.add_noise(batch.video, noise.to(device), sigma.to(device))
        flow.loss(student(batch, noisy.video, noisy.timestep), noisy.target).sum().backward()
        finish_gradients(student.named_trained().values(), 1.0, 0.1)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        _synchronise(device)
        seconds.append(time.perf_counter() - started)
    memory = torch.cuda.max_memory_allocated(device) / 1e9 if device.type == "cuda" else 0.0
    return seconds[2:], memory


class _FrozenText:
    trainable = False


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def choices(options: argparse.Namespace) -> Iterator[ParallelConfig]:
    """Every combination that was asked for."""
    for compiled, recompute, attention in itertools.product(options.compile, options.recompute, options.attention):
        yield ParallelConfig(
            precision=options.precision,
            compile=compiled == "yes",
            recompute=recompute == "yes",
            attention=None if attention == "default" else attention,
        )


def main() -> None:
    """Measure every combination, print."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="example: python benchmarks/train_throughput.py --geometry 1.3b --recompute yes no --compile yes no "
        "--attention default _native_cudnn",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--geometry", choices=GEOMETRIES, default="tiny")
    parser.add_argument("--frames", type=int, help="pixel frames, 4 k + 1 (default: 81; 9 for tiny)")
    parser.add_argument("--height", type=int, help="pixels (default: 480; 64 for tiny)")
    parser.add_argument("--width", type=int, help="pixels (default: 832; 112 for tiny)")
    parser.add_argument("--references", type=int, default=3, metavar="N")
    parser.add_argument("--precision", choices=("bf16", "fp32"), help="default: bf16 on GPUs, else fp32")
    parser.add_argument("--compile", nargs="+", choices=("yes", "no"), default=["no"])
    parser.add_argument("--recompute", nargs="+", choices=("yes", "no"), default=["yes", "no"])
    parser.add_argument("--attention", nargs="+", default=["default"], metavar="BACKEND", help="diffusers' names")
    parser.add_argument("--steps", type=int, default=5, metavar="N", help="measured, after two that are not")
    options = parser.parse_args()
    tiny = options.geometry == "tiny"
    frames, height, width = options.frames or (9 if tiny else 81), options.height, options.width
    height, width = height or (64 if tiny else 480), width or (112 if tiny else 832)
    config = TrainConfig.model_validate({"latents": {"backend": "pixel"}, "text": WordsConfig().model_dump()})
    with process_group(config) as device:
        options.precision = options.precision or ("bf16" if device.type == "cuda" else "fp32")
        peak, source = peak_flops(device)
        batch = batch_of(frames, height, width, options.references, device)
        per_frame = (height // 16) * (width // 16)
        video, references = ((frames - 1) // 4 + 1) * per_frame, options.references * per_frame
        rows = []
        for parallel in choices(options):
            name = f"compile {'yes' if parallel.compile else 'no'}, recompute {'yes' if parallel.recompute else 'no'}, "
            name += f"attention {parallel.attention or 'default'}"
            try:
                seconds, memory = seconds_of_steps(GEOMETRIES[options.geometry], parallel, batch, device, options.steps)
            except torch.cuda.OutOfMemoryError:
                rows.append((name, "out of memory", "", "", ""))
                torch.cuda.empty_cache()
                continue
            flops = training_flops(_geometry(options.geometry), video, references, TEXT_ROWS)
            mfu = flops / median(seconds) / peak
            rows.append((name, median(seconds), (video + references) / median(seconds), f"{mfu:.1%}", memory))
        if dist.get_rank() == 0:
            show(
                f"{options.geometry}, {frames} x {height} x {width} with {options.references} references: "
                f"{video + references} tokens, {options.precision}, {dist.get_world_size()} ranks",
                ["", "seconds a step", "tokens/s a rank", "MFU", "GB"],
                rows,
                f"peak {peak / 1e12:.2f} TFLOP/s ({source}); medians of {options.steps}",
            )


def _geometry(name: str) -> dict[str, object]:
    return dict(build_model(GEOMETRIES[name], CHANNELS, TEXT_DIM, device="meta").config)


if __name__ == "__main__":
    main()
