"""The subject-to-video model: Wan's diffusion transformer (arXiv:2503.20314) on references and video together."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from diffusers.configuration_utils import register_to_config
from diffusers.models.transformers.transformer_wan import WanTransformer3DModel
from pydantic import Field, PositiveInt, TypeAdapter, ValidationError
from torch import nn
from torch.distributed.tensor import DTensor, distribute_tensor

from models.pretrained import UnusableWeightsError
from stages.config import Section
from training.rope import RELEASED_OFFSET, GeometryError, Offset, ReferenceRotaryPosEmbed, Triple
from training.tensor_folder import TensorFolder, refuse_differences
from training.weights import read_settings


class ModelConfig(Section):
    """The transformer: a checkpoint, or the geometry of one to train from scratch."""

    checkpoint: Path | None = None
    """Folder with a Wan transformer in diffusers' format (config.json and safetensors) or with one saved here; null
    starts from random weights of the geometry below."""
    offset: Offset | None = None
    """Where the references' rotary positions lie: `[rows, columns]` in patches from the video's corner, `video_grid`
    (just beyond the video), or, to compare with, `time` (frames after the video) and `none`. null: as the checkpoint
    says, else [80, 80] as the released Kaleido."""
    layers: PositiveInt = 30
    """Transformer blocks, without a checkpoint."""
    heads: PositiveInt = 12
    """Attention heads, without a checkpoint."""
    head_dim: int = Field(128, ge=6, multiple_of=2)
    """Channels of each head, without a checkpoint: a third of them turn with the row, a third with the column."""
    ffn_dim: PositiveInt = 8960
    """Inner channels of the feed-forward layers, without a checkpoint."""
    freq_dim: int = Field(256, ge=2, multiple_of=2)
    """Channels of the timestep's sinusoids, without a checkpoint."""
    patch_size: tuple[PositiveInt, PositiveInt] = (2, 2)
    """Rows and columns of latents that make a token, without a checkpoint."""


class S2VTransformer(WanTransformer3DModel):
    """Wan's transformer with references in front of the video, told apart by their rotary positions alone.

    Names and shapes of its weights are those of ``WanTransformer3DModel``; its config has one key more, ``offset``.
    """

    # One timestep per sample: there is no sequence of them to divide.
    _cp_plan: ClassVar[dict[str, Any]] = {name: plan for name, plan in WanTransformer3DModel._cp_plan.items() if name}

    @register_to_config
    def __init__(
        self,
        patch_size: Triple = (1, 2, 2),
        num_attention_heads: int = 40,
        attention_head_dim: int = 128,
        in_channels: int = 16,
        out_channels: int = 16,
        text_dim: int = 4096,
        freq_dim: int = 256,
        ffn_dim: int = 13824,
        num_layers: int = 40,
        cross_attn_norm: bool = True,
        qk_norm: str = "rms_norm_across_heads",
        eps: float = 1e-6,
        rope_max_seq_len: int = 1024,
        offset: Offset = RELEASED_OFFSET,
    ) -> None:
        super().__init__(
            patch_size=patch_size,
            num_attention_heads=num_attention_heads,
            attention_head_dim=attention_head_dim,
            in_channels=in_channels,
            out_channels=out_channels,
            text_dim=text_dim,
            freq_dim=freq_dim,
            ffn_dim=ffn_dim,
            num_layers=num_layers,
            cross_attn_norm=cross_attn_norm,
            qk_norm=qk_norm,
            eps=eps,
            rope_max_seq_len=rope_max_seq_len,
        )
        if patch_size[0] != 1:
            raise GeometryError(f"patches of {patch_size[0]} frames would mix references; only 1 is possible")
        self.rope = ReferenceRotaryPosEmbed(attention_head_dim, patch_size, rope_max_seq_len, offset)

    def forward(
        self, video: torch.Tensor, references: torch.Tensor, timestep: torch.Tensor, text: torch.Tensor
    ) -> torch.Tensor:
        """Predict the velocity of every video token; the weights' dtype is computed in, ``video``'s comes back.

        Args:
            video: noisy latents (B, C, T, h, w).
            references: clean latents (B, C, n, h, w) with n >= 0, each encoded alone. With n = 0 this is plain Wan.
            timestep: (B,) in [0, 1000], float32.
            text: text embeddings (B, L, D).

        Returns:
            (B, C, T, h, w).

        Raises:
            GeometryError: if shapes do not fit the model or each other; before anything is computed.
        """
        self._check(video, references, timestep, text)
        dtype = self.patch_embedding.weight.dtype
        count = references.shape[2]
        self.rope.references = count
        latents = torch.cat([references, video], dim=2).to(dtype)
        (velocity,) = super().forward(latents, timestep, text.to(dtype), return_dict=False)
        # FSDP loses its hook on a view that is changed in place.
        return velocity[:, :, count:].to(video.dtype, copy=True)

    def _check(self, video: torch.Tensor, references: torch.Tensor, timestep: torch.Tensor, text: torch.Tensor) -> None:
        for name, tensor, axes in (
            ("video", video, "(B, C, T, h, w)"),
            ("references", references, "(B, C, n, h, w)"),
            ("timestep", timestep, "(B,)"),
            ("text", text, "(B, L, D)"),
        ):
            if tensor.ndim != len(axes.split(", ")):
                raise GeometryError(f"{name} has the shape {tuple(tensor.shape)} instead of {axes}")
        batch, channels, frames, height, width = video.shape
        _, rows, columns = self.config.patch_size
        if channels != self.config.in_channels:
            raise GeometryError(f"video has {channels} channels, but the model takes {self.config.in_channels}")
        if height % rows or width % columns or not video.numel():
            raise GeometryError(
                f"video latents of {frames} x {height} x {width} do not divide into patches of {rows} x {columns}"
            )
        if (*references.shape[:2], *references.shape[3:]) != (batch, channels, height, width):
            raise GeometryError(
                f"references {tuple(references.shape)} differ from the video {tuple(video.shape)} in more than their "
                "number: letterbox each onto the video's size"
            )
        if timestep.shape != (batch,):
            raise GeometryError(f"{tuple(timestep.shape)} timesteps for a batch of {batch}")
        if text.shape[0] != batch or text.shape[2] != self.config.text_dim:
            raise GeometryError(
                f"text is {tuple(text.shape)}, but the batch has {batch} samples and the model takes text of "
                f"{self.config.text_dim} channels"
            )

    @classmethod
    def without_weights(cls, folder: Path, offset: Offset | None = None) -> S2VTransformer:
        """The model that a checkpoint's config.json describes, on the device ``meta``.

        ``offset`` replaces the checkpoint's. Raises :class:`UnusableWeightsError` if there is no usable config.json.
        """
        settings = _settings(folder)
        try:
            settings["offset"] = TypeAdapter(Offset).validate_python(offset or settings.get("offset", RELEASED_OFFSET))
        except ValidationError:
            raise UnusableWeightsError(
                f"{folder / 'config.json'}: offset {settings['offset']!r} is neither [rows, columns] nor one of "
                "video_grid, time, none"
            ) from None
        known = inspect.signature(cls.__init__).parameters
        with torch.device("meta"):
            model: S2VTransformer = cls(**{name: value for name, value in settings.items() if name in known})
        return model

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        *,
        offset: Offset | None = None,
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
    ) -> S2VTransformer:
        """Load a Wan transformer in diffusers' format, or what ``save_pretrained`` wrote; in evaluation mode.

        Args:
            folder: holds config.json and safetensors, in one file or in shards with their index.
            offset: replaces the checkpoint's; a checkpoint of plain Wan has none, which means (80, 80).
            dtype: of the weights, except those that diffusers keeps in float32 (norms, timestep embedding, modulation).
            device: where they go. The tensors are read one by one: there is never a second copy of the model.

        Raises:
            UnusableWeightsError: if there is no such checkpoint, or it is damaged.
            GeometryError: if its tensors are not those that its config.json promises; the message lists them.
        """
        model = cls.without_weights(Path(folder), offset)
        for name, parameter in model.named_parameters():
            if not set(name.split(".")) & set(cls._keep_in_fp32_modules):
                parameter.data = parameter.data.to(dtype)
        model.to_empty(device=device)
        model.load_weights(Path(folder))
        model.eval()
        return model

    def load_weights(self, folder: Path) -> None:
        """Fill the parameters from a folder of safetensors, tensor by tensor.

        They may be sharded (FSDP2): each rank then reads the files and keeps its part, without communication.

        Raises:
            UnusableWeightsError: if the folder has no weights, or damaged ones.
            GeometryError: if names or shapes differ; the message lists them, and nothing was changed.
        """
        with TensorFolder(folder) as stored:
            refuse_differences(folder, {name: tuple(p.shape) for name, p in self.named_parameters()}, stored.shapes)
            for name, parameter in self.named_parameters():
                _put(parameter, stored.read(name))

    def init_weights(self, seed: int) -> None:
        """Random weights to train from scratch: the same for a seed on any device and any number of ranks.

        As Wan's own: Glorot-uniform matrices, no biases, modulation tables N(0, 1 / dim), a last layer of zeros. Its
        N(0, 0.02^2) for the embeddings of text and timestep fits only its own width and is Glorot's there.
        """
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in self.named_parameters():
            _put(parameter, _initial(name, parameter.shape, generator))


def build_model(
    config: ModelConfig, channels: int, text_dim: int, *, device: str | torch.device, seed: int = 0
) -> S2VTransformer:
    """The model that a config describes, float32, in training mode.

    On the device ``meta`` it has no weights yet: shard it, call ``to_empty(device=...)`` and then
    :func:`fill_weights`.

    Args:
        config: a checkpoint or a geometry.
        channels: of the latents, as the encoder gives them.
        text_dim: channels of the text embeddings, likewise.
        device: where the weights go.
        seed: determines the weights where there is no checkpoint.

    Raises:
        UnusableWeightsError: if the checkpoint is missing or damaged.
        GeometryError: if it does not fit the encoders, or its tensors not its config.json.
    """
    if config.checkpoint is not None:
        model: S2VTransformer = S2VTransformer.without_weights(config.checkpoint, config.offset)
        _refuse_other_encoders(config.checkpoint, model.config, channels, text_dim)
    else:
        with torch.device("meta"):
            model = S2VTransformer(
                patch_size=(1, *config.patch_size),
                num_attention_heads=config.heads,
                attention_head_dim=config.head_dim,
                in_channels=channels,
                out_channels=channels,
                text_dim=text_dim,
                freq_dim=config.freq_dim,
                ffn_dim=config.ffn_dim,
                num_layers=config.layers,
                offset=config.offset or RELEASED_OFFSET,
            )
    if torch.device(device).type != "meta":
        model.to_empty(device=device)
        fill_weights(model, config, seed)
    return model


def fill_weights(model: S2VTransformer, config: ModelConfig, seed: int = 0) -> None:
    """Load the checkpoint's weights into the model, or draw random ones; the parameters may be sharded (FSDP2).

    Raises:
        UnusableWeightsError: if the checkpoint is missing or damaged.
        GeometryError: if its tensors are not those of the model.
    """
    if config.checkpoint is not None:
        model.load_weights(config.checkpoint)
    else:
        model.init_weights(seed)


def training_flops(
    config: Mapping[str, Any], video_tokens: int, reference_tokens: int = 0, text_tokens: int = 512
) -> float:
    """Floating-point operations of one sample's forward and backward pass, all weights trained, nothing recomputed.

    With N = video + reference tokens, L text tokens, width d, inner width f and two operations per multiply-add::

        block   = 2 (N (6 d^2 + 2 d f) + 2 L d^2)  +  4 N (N + L) d
        outside = 2 (N d (patch in + patch out) + L d (text dim + d) + d (freq dim + 7 d))
        total   = 3 (layers * block + outside)

    A backward pass counts as two forward passes. Attention is counted in full; norms, activations and rotations are
    left out.

    Args:
        config: the model's ``config``.
        video_tokens: T x H x W patches.
        reference_tokens: n x H x W patches.
        text_tokens: length of the text embedding, padding included.
    """
    width = config["num_attention_heads"] * config["attention_head_dim"]
    patch = math.prod(config["patch_size"]) * (config["in_channels"] + config["out_channels"])
    tokens = video_tokens + reference_tokens
    linear = tokens * (6 * width**2 + 2 * width * config["ffn_dim"]) + 2 * text_tokens * width**2
    attention = 2 * tokens * (tokens + text_tokens) * width
    outside = (
        tokens * width * patch
        + text_tokens * width * (config["text_dim"] + width)
        + width * (config["freq_dim"] + 7 * width)
    )
    flops: float = 3.0 * 2.0 * (config["num_layers"] * (linear + attention) + outside)
    return flops


def _settings(folder: Path) -> dict[str, Any]:
    if (folder / "config.json").is_file():
        return read_settings(folder)
    if (folder / "transformer" / "config.json").is_file():
        raise UnusableWeightsError(f"{folder} is a whole pipeline: give its transformer, {folder / 'transformer'}")
    raise UnusableWeightsError(
        f"{folder} has no config.json: give the folder of a Wan transformer in diffusers' format, such as the folder "
        "transformer of Wan-AI/Wan2.1-T2V-1.3B-Diffusers, or one that this trainer saved"
    )


def _refuse_other_encoders(folder: Path, config: Mapping[str, Any], channels: int, text_dim: int) -> None:
    if (config["in_channels"], config["out_channels"], config["text_dim"]) != (channels, channels, text_dim):
        raise GeometryError(
            f"{folder} takes latents of {config['in_channels']} channels, gives {config['out_channels']} and reads "
            f"text of {config['text_dim']}, but the encoders give latents of {channels} and text of {text_dim}: choose "
            "the encoders that it was trained with"
        )


def _put(parameter: torch.Tensor, whole: torch.Tensor) -> None:
    if isinstance(parameter, DTensor):
        whole = distribute_tensor(whole, parameter.device_mesh, parameter.placements, src_data_rank=None)
    with torch.no_grad():
        parameter.copy_(whole)


def _initial(name: str, shape: torch.Size, generator: torch.Generator) -> torch.Tensor:
    if name == "proj_out.weight" or name.endswith("bias"):
        return torch.zeros(shape)
    if name.endswith("scale_shift_table"):
        return torch.randn(shape, generator=generator) / shape[-1] ** 0.5
    if len(shape) == 1:
        return torch.ones(shape)
    return nn.init.xavier_uniform_(torch.empty(shape).flatten(1), generator=generator).view(shape)
