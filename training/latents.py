"""Videos and references into latents and back: the Wan VAE, and a stand-in for it without weights.

``backend: name`` in a config chooses between them.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol

import torch
from pydantic import Field

from models.errors import UserError
from models.pretrained import UnusableWeightsError, refuse_missing
from stages.config import Section
from training.weights import fingerprint, read_settings, require


class UnfitVideoError(UserError, ValueError):
    """A video or reference of a size or length that an encoder does not take; the message names those that it does."""


class LatentEncoder(Protocol):
    """Pixels into latents of about unit variance and back. Frozen; results lie on the encoder's device."""

    @property
    def channels(self) -> int:
        """C of the latents."""

    @property
    def spatial_factor(self) -> int:
        """Pixels per latent pixel along height and width, both of which must be multiples of it."""

    @property
    def temporal_factor(self) -> int:
        """f: a video of f k + 1 frames becomes k + 1 latent frames. At 1, any number of frames will do."""

    @property
    def fingerprint(self) -> str:
        """Changes with whatever changes the latents: settings and weights, not where they lie."""

    def encode(self, video: torch.Tensor) -> torch.Tensor:
        """Videos (B, T, H, W, 3) uint8 to (B, C, t, h, w) float32.

        Raises:
            UnfitVideoError: for a size or length that the encoder does not take.
        """

    def encode_references(self, references: torch.Tensor) -> torch.Tensor:
        """References (B, n, H, W, 3) uint8, n >= 0, to (B, C, n, h, w) float32, each encoded alone.

        Raises:
            UnfitVideoError: for a size that the encoder does not take.
        """

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents (B, C, t, h, w) to videos (B, T, H, W, 3) uint8."""


class PixelLatentsConfig(Section):
    """Pixels rearranged, without loss: a stand-in for the VAE that needs no weights, for tests and tiny models."""

    backend: Literal["pixel"] = "pixel"
    factor: int = Field(8, ge=1)
    """Pixels along either side of the square that becomes one latent pixel of 3 factor^2 channels."""


class WanLatentsConfig(Section):
    """The VAE of Wan."""

    backend: Literal["wan"] = "wan"
    checkpoint: Path
    """Folder of a Wan model in diffusers' format: the one that holds `vae`."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """What the VAE computes in; latents are float32 either way."""
    slicing: bool = True
    """One video or reference at a time: less memory, and latents that do not depend on what else is in the batch."""
    tiling: bool = False
    """Large frames in overlapping tiles: less memory, latents differ slightly."""


LatentsChoice = Annotated[WanLatentsConfig | PixelLatentsConfig, Field(discriminator="backend")]


def build_latents(config: LatentsChoice, device: torch.device | str = "cpu") -> LatentEncoder:
    """The encoder of a config. Weights are looked for now and loaded when they are first needed.

    Raises:
        models.registry.MissingWeightsError: if the checkpoint is not where the config says.
        training.weights.UnusableWeightsError: here or at the first use, if it does not load.
    """
    device = torch.device(device)
    return WanLatents(config, device) if isinstance(config, WanLatentsConfig) else PixelLatents(config, device)


class PixelLatents:
    """Space to depth with values of about unit variance. Lossless."""

    temporal_factor = 1

    _MIDDLE, _SPREAD = 127.5, 64.0  # A power of two keeps 256 values apart exactly.

    def __init__(self, config: PixelLatentsConfig, device: torch.device) -> None:
        self.channels = 3 * config.factor**2
        self.spatial_factor = config.factor
        self.fingerprint = fingerprint(config.model_dump(mode="json"))
        self._device = device

    def encode(self, video: torch.Tensor) -> torch.Tensor:
        _check_size(video, self.spatial_factor)
        height, width = (side // self.spatial_factor for side in video.shape[2:4])
        values = (video.to(self._device).float() - self._MIDDLE) / self._SPREAD
        squares = values.unflatten(3, (width, self.spatial_factor)).unflatten(2, (height, self.spatial_factor))
        return squares.permute(0, 6, 3, 5, 1, 2, 4).flatten(1, 3).contiguous()

    def encode_references(self, references: torch.Tensor) -> torch.Tensor:
        return self.encode(references)  # Every frame is encoded alone as it is.

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        squares = latents.float().unflatten(1, (3, self.spatial_factor, self.spatial_factor))
        values = squares.permute(0, 4, 5, 2, 6, 3, 1).flatten(4, 5).flatten(2, 3)
        return _to_uint8(values * self._SPREAD + self._MIDDLE)


class WanLatents:
    """Wan's VAE, frozen. Weights are loaded when they are first needed.

    Latents are the posterior's mode, shifted and scaled by the checkpoint's ``latents_mean`` and ``latents_std``, as in
    diffusers' Wan pipelines.
    """

    def __init__(self, config: WanLatentsConfig, device: torch.device) -> None:
        self._folder = config.checkpoint / "vae"
        require(
            self._folder, file="config.json", setting="latents.checkpoint", source="Wan-AI/Wan2.1-T2V-1.3B-Diffusers"
        )
        # What a checkpoint leaves out is as in Wan 2.1, whose configs are older than these keys.
        settings = {"z_dim": 16, "scale_factor_spatial": 8, "scale_factor_temporal": 4, **read_settings(self._folder)}
        self.channels: int = settings["z_dim"]
        self.spatial_factor: int = settings["scale_factor_spatial"]
        self.temporal_factor: int = settings["scale_factor_temporal"]
        self._config = config
        self._device = device

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the weights and of the settings that latents depend on."""
        settings = self._config.model_dump(mode="json", include={"backend", "precision", "tiling"})
        return fingerprint(settings, [self._folder])

    def encode(self, video: torch.Tensor) -> torch.Tensor:
        _check_size(video, self.spatial_factor)
        if video.shape[1] % self.temporal_factor != 1 % self.temporal_factor:
            # The VAE would drop the frames at the end without a word.
            raise UnfitVideoError(
                f"the Wan VAE takes {self.temporal_factor}k + 1 frames, such as {self.temporal_factor * 20 + 1}, not "
                f"{video.shape[1]}; choose such a number of frames"
            )
        values = (video.to(self._device).float() / 127.5 - 1).permute(0, 4, 1, 2, 3).to(self._vae.dtype)
        mode: torch.Tensor = self._vae.encode(values).latent_dist.mode()
        mean, std = self._statistics
        return (mode.float() - mean) / std

    def encode_references(self, references: torch.Tensor) -> torch.Tensor:
        batch, count, height, width, _ = references.shape
        _check_size(references, self.spatial_factor)
        if count == 0:
            size = (height // self.spatial_factor, width // self.spatial_factor)
            return torch.zeros(batch, self.channels, 0, *size, device=self._device)
        # As one clip, the VAE would fold four references into one latent frame.
        alone = self.encode(references.flatten(0, 1).unsqueeze(1))
        return alone.squeeze(2).unflatten(0, (batch, count)).transpose(1, 2).contiguous()

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        mean, std = self._statistics
        values = (latents.to(self._device).float() * std + mean).to(self._vae.dtype)
        video: torch.Tensor = self._vae.decode(values).sample
        return _to_uint8((video.float() + 1).permute(0, 2, 3, 4, 1) * 127.5)

    @cached_property
    def _statistics(self) -> tuple[torch.Tensor, torch.Tensor]:
        config = self._vae.config
        mean, std = torch.tensor([config.latents_mean, config.latents_std], device=self._device).view(2, 1, -1, 1, 1, 1)
        return mean, std

    @cached_property
    def _vae(self) -> Any:
        from diffusers import AutoencoderKLWan

        dtype = getattr(torch, self._config.precision)
        try:
            vae, info = AutoencoderKLWan.from_pretrained(
                self._folder, torch_dtype=dtype, local_files_only=True, output_loading_info=True
            )
        except Exception as error:  # Its loaders raise almost anything.
            raise UnusableWeightsError(f"the VAE in {self._folder} does not load ({error}); fetch it again") from error
        refuse_missing(self._folder, info["missing_keys"])
        if self._config.slicing:
            vae.enable_slicing()
        if self._config.tiling:
            vae.enable_tiling()
        return vae.requires_grad_(False).eval().to(self._device)


def _check_size(frames: torch.Tensor, factor: int) -> None:
    height, width = frames.shape[2:4]
    if height % factor or width % factor:
        raise UnfitVideoError(
            f"frames {height} pixels high and {width} wide cannot be encoded: both must be multiples of {factor}"
        )


def _to_uint8(values: torch.Tensor) -> torch.Tensor:
    return values.round().clamp(0, 255).to(torch.uint8)
