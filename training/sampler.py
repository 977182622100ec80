"""Videos out of a trained model: from noise along the learned velocity to latents, and from those to a file."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Protocol, cast

import ffmpeg
import imageio_ffmpeg
import numpy as np
import numpy.typing as npt
import torch
from PIL import Image as Pictures
from pydantic import Field

from models.errors import UserError
from models.protocols import Image
from stages.config import Section
from stages.media import EncodingError
from training.flow import TIMESTEPS, shifted, starting_noise
from training.latents import LatentEncoder, UnfitVideoError
from training.model import S2VTransformer
from training.picture import letterbox
from training.text import TextEncoder

WAN_NEGATIVE_PROMPT = (
    "色调艳丽，过曝，静态，细节模糊不清，字幕，风格，作品，画作，画面，静止，整体发灰，最差质量，低质量，"
    "JPEG压缩残留，丑陋的，残缺的，多余的手指，画得不好的手部，画得不好的脸部，畸形的，毁容的，形态畸形的肢体，"
    "手指融合，静止不动的画面，杂乱的背景，三条腿，背景人很多，倒着走"
)

Progress = Callable[[int, int], None]
"""Called after each step with the number of steps done and of all."""


class UnreadableReferenceError(UserError, ValueError):
    """A reference image that cannot be used; the message names it."""


class SamplerConfig(Section):
    """How videos are generated."""

    steps: int = Field(50, ge=1)
    """Euler steps."""
    guidance: float = Field(6.0, ge=1)
    """How far the prompt is preferred to the negative one; at 1 the negative one is not used and a step costs half."""
    shift: float = Field(7.0, gt=0)
    """Shift of the noise levels: above 1 more of the steps are spent near pure noise."""
    negative: str = WAN_NEGATIVE_PROMPT
    """What the video should not be. The default is Wan's own."""
    height: int = Field(512, ge=1)
    """Height of the video in pixels: a multiple of 16 for Wan."""
    width: int = Field(896, ge=1)
    """Width of the video in pixels: a multiple of 16 for Wan."""
    frames: int = Field(81, ge=1)
    """Frames of the video: 4k + 1 for Wan; 81 are 21 latent frames."""
    fps: float = Field(16, gt=0)
    """Frames per second of the written file."""


class Transformer(Protocol):
    """What sampling needs of a model: the velocity at a noise level."""

    def __call__(
        self, video: torch.Tensor, references: torch.Tensor, timestep: torch.Tensor, text: torch.Tensor
    ) -> torch.Tensor:
        """(B, C, T, h, w), (B, C, n, h, w), (B,), (B, L, D) to (B, C, T, h, w)."""


def noise_levels(steps: int, shift: float) -> list[float]:
    """The ``steps + 1`` noise levels from 1 to 0: evenly spaced, then shifted; the schedule of Wan's own sampler."""
    return [shifted(1 - step / steps, shift) for step in range(steps + 1)]


def sample_latents(
    transformer: Transformer,
    text: torch.Tensor,
    negative: torch.Tensor | None,
    references: torch.Tensor,
    *,
    shape: Sequence[int],
    config: SamplerConfig,
    seed: int,
    progress: Progress | None = None,
) -> torch.Tensor:
    """Follow the velocity from noise to data with Euler's method.

    Classifier-free guidance (Ho & Salimans 2022, arXiv 2207.12598) is on the text alone: the references are in both
    branches.

    Args:
        transformer: predicts the velocity noise - x; given float32 on the device of ``references``.
        text: embedded prompts (B, L, D).
        negative: embedded negative prompts (B, L, D); of no use with a guidance of 1.
        references: encoded references (B, C, n, h, w), n >= 0.
        shape: (C, T, h, w) of one video's latents.
        config: of its values, those on steps, shift and guidance.
        seed: at least 0; equal seeds give equal noise, on any device.
        progress: told after each step.

    Returns:
        Latents (B, C, T, h, w) float32.
    """
    if config.guidance != 1 and negative is None:
        raise ValueError(f"guidance {config.guidance} needs an embedded negative prompt")
    device = references.device
    latents = starting_noise(seed, len(text), shape).to(device)
    levels = noise_levels(config.steps, config.shift)

    def velocity(level: float, embedded: torch.Tensor) -> torch.Tensor:
        timestep = torch.full((len(text),), TIMESTEPS * level, device=device)
        return transformer(latents, references, timestep, embedded.to(device)).float()

    with torch.no_grad():
        for step, (level, following) in enumerate(pairwise(levels), 1):
            towards = velocity(level, text)
            if config.guidance != 1 and negative is not None:
                away = velocity(level, negative)
                towards = away + config.guidance * (towards - away)
            latents = latents + (following - level) * towards
            if progress is not None:
                progress(step, config.steps)
    return latents


def sample_video(
    model: S2VTransformer,
    latents_encoder: LatentEncoder,
    text_encoder: TextEncoder,
    prompt: str,
    references: Sequence[Path | Image],
    config: SamplerConfig,
    seed: int,
    progress: Progress | None = None,
) -> npt.NDArray[np.uint8]:
    """Generate a video that shows the references as the prompt says.

    Args:
        model: whole, on one device.
        latents_encoder: the one that it was trained with, as is ``text_encoder``.
        text_encoder: embeds prompt and negative prompt.
        prompt: what is to be seen.
        references: pictures, as files or as RGB arrays (H, W, 3) uint8, one per subject, in the model's order.
        config: size, length, steps, guidance.
        seed: at least 0; equal seeds give equal videos.
        progress: told after each step.

    Returns:
        Frames (T, H, W, 3) uint8.

    Raises:
        UnreadableReferenceError: for a file that is no picture.
        training.latents.UnfitVideoError: for a size or length that encoder or model do not take.
    """
    shape = latent_shape(config, latents_encoder, tuple(model.config["patch_size"][1:]))
    pictures = [letterbox(_open(reference), config.height, config.width) for reference in references]
    canvas = np.stack(pictures) if pictures else np.empty((0, config.height, config.width, 3), np.uint8)
    with torch.no_grad():
        encoded = latents_encoder.encode_references(torch.from_numpy(canvas).unsqueeze(0))
        latents = sample_latents(
            model,
            text_encoder.encode([prompt]),
            text_encoder.encode([config.negative]) if config.guidance != 1 else None,
            encoded.to(model.device),
            shape=shape,
            config=config,
            seed=seed,
            progress=progress,
        )
        video = latents_encoder.decode(latents)
    return cast("npt.NDArray[np.uint8]", video[0].cpu().numpy())


def latent_shape(
    config: SamplerConfig, encoder: LatentEncoder, patch_size: tuple[int, int]
) -> tuple[int, int, int, int]:
    """(C, T, h, w) of the latents of a video of the config's size and length.

    Raises:
        training.latents.UnfitVideoError: for a size or length that the encoder or the model's patches do not fit.
    """
    for name, size, patch in zip(("height", "width"), (config.height, config.width), patch_size, strict=True):
        multiple = encoder.spatial_factor * patch
        if size % multiple:
            near = max(1, round(size / multiple)) * multiple
            raise UnfitVideoError(
                f"{name}={size} does not fit the model: take a multiple of {multiple}, such as {near}"
            )
    before, rest = divmod(config.frames - 1, encoder.temporal_factor)
    if rest:
        step = encoder.temporal_factor
        raise UnfitVideoError(
            f"frames={config.frames} does not fit the model: take {step}k + 1, such as {step * before + 1}"
        )
    return encoder.channels, before + 1, config.height // encoder.spatial_factor, config.width // encoder.spatial_factor


def write_video(frames: npt.NDArray[np.uint8], fps: float, path: Path) -> None:
    """Write frames (T, H, W, 3) uint8 RGB as an MP4 file (H.264, yuv420p, BT.709), whole or not at all.

    Raises:
        training.latents.UnfitVideoError: for no frames, or an odd height or width, which yuv420p cannot hold.
        stages.media.EncodingError: if ffmpeg fails.
        OSError: if the file cannot be written.
    """
    count, height, width, _ = frames.shape
    if count == 0 or height % 2 or width % 2:
        raise UnfitVideoError(f"{count} frames of {height} x {width} pixels: a video needs even sides and a frame")
    source = ffmpeg.input("pipe:", format="rawvideo", pix_fmt="rgb24", s=f"{width}x{height}", r=fps)
    coloured = source.filter(
        "scale", out_color_matrix="bt709", out_range="tv", flags="lanczos+accurate_rnd+full_chroma_int+bitexact"
    )
    tags = {"colorspace": "bt709", "color_primaries": "bt709", "color_trc": "bt709", "color_range": "tv"}
    path.parent.mkdir(parents=True, exist_ok=True)
    # Beside the file, so that it can take its place at once.
    with tempfile.TemporaryDirectory(prefix=".writing-", dir=path.parent) as folder:
        output = Path(folder) / "video.mp4"
        command = ffmpeg.compile(
            ffmpeg.output(
                coloured, f"file:{output}", vcodec="libx264", crf=16, pix_fmt="yuv420p", movflags="+faststart", **tags
            ),
            cmd=[imageio_ffmpeg.get_ffmpeg_exe(), "-hide_banner", "-loglevel", "error"],
        )
        result = subprocess.run(command, input=np.ascontiguousarray(frames).tobytes(), capture_output=True, check=False)
        if result.returncode != 0:
            raise EncodingError(f"{path} was not written: {result.stderr.decode(errors='replace').strip()}")
        output.replace(path)


def _open(reference: Path | Image) -> Pictures.Image:
    if isinstance(reference, np.ndarray):
        return Pictures.fromarray(reference)
    try:
        with Pictures.open(reference) as picture:
            picture.load()
            return picture
    except FileNotFoundError:
        raise UnreadableReferenceError(f"{reference}: there is no such picture") from None
    except (OSError, SyntaxError, ValueError, Pictures.DecompressionBombError) as error:
        raise UnreadableReferenceError(f"{reference} cannot be read as a picture: {error}") from None
