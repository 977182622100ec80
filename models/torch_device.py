"""Where networks in PyTorch run, and in what precision: the options that all of their backends share."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from models.registry import BackendConfig, Repository


class TorchConfig(BackendConfig):
    """Base of the configs of backends in PyTorch."""

    speed: ClassVar[frozenset[str]] = frozenset({"device", "batch"})

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where it runs: `auto` is the GPU where there is one."""
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """What it computes in: `auto` is bfloat16 on a GPU that has it, float16 on another, float32 on a CPU."""
    batch: int = Field(8, ge=1)
    """Pictures that go through the network at once."""


class HubConfig(TorchConfig):
    """Base of the configs of backends whose weights are one repository in the format of transformers or diffusers."""

    files: ClassVar[tuple[str, ...]] = ("*.json", "*.txt", "*.model", "*.jinja", "*.safetensors")
    """What of the repository is read."""

    model: str
    """Folder under `models.root`; on the model hub, the name of the repository to fetch it from."""
    revision: str | None = None
    """Commit, branch or tag to fetch; null is the one that `models/weights/catalogue.yaml` pins."""

    def weights(self, root: Path) -> list[Path]:
        """The repository's folder."""
        return [root / self.model]

    def repositories(self) -> list[Repository]:
        """The repository."""
        return [Repository(self.model, self.files, self.revision)]


def placed(config: TorchConfig) -> tuple[Any, Any]:
    """The ``torch.device`` and ``torch.dtype`` that a config asks for.

    Raises:
        ValueError: if it asks for a GPU and there is none.
    """
    import torch

    if config.device == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            f"{config.backend}: device is cuda, and PyTorch sees no GPU here. Give the worker one "
            "(`gpus` of its operator under `runtime`), or set device to auto or cpu."
        )
    device = torch.device("cuda" if config.device != "cpu" and torch.cuda.is_available() else "cpu")
    if config.precision != "auto":
        return device, getattr(torch, config.precision)
    if device.type == "cpu":
        return device, torch.float32
    return device, torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
