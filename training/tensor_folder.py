"""Folders of safetensors in diffusers' layout: one file, or shards with an index; read one tensor at a time."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

import torch
from safetensors import SafetensorError, safe_open

from models.pretrained import UnusableWeightsError
from training.rope import GeometryError

WEIGHTS = "diffusion_pytorch_model.safetensors"
INDEX = f"{WEIGHTS}.index.json"
Shapes = Mapping[str, tuple[int, ...]]


class TensorFolder:
    """The tensors of a folder, mapped into memory: what is read stays on disk until it is looked at.

    Raises:
        UnusableWeightsError: if a file is missing or damaged.
    """

    def __init__(self, folder: Path) -> None:
        self._files = ExitStack()
        self._file_of = {}
        for name in _file_names(folder):
            try:
                file = self._files.enter_context(safe_open(folder / name, framework="pt"))
            except (OSError, SafetensorError) as error:
                self._files.close()
                raise UnusableWeightsError(f"{folder / name} is missing or damaged ({error}): fetch it again") from None
            self._file_of.update(dict.fromkeys(file.keys(), file))
        self.shapes: Shapes = {name: tuple(file.get_slice(name).get_shape()) for name, file in self._file_of.items()}

    def read(self, name: str) -> torch.Tensor:
        """One tensor, in the dtype in which it is stored."""
        tensor: torch.Tensor = self._file_of[name].get_tensor(name)
        return tensor

    def __enter__(self) -> TensorFolder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._files.close()


def refuse_differences(where: Path, expected: Shapes, found: Shapes) -> None:
    """Raise :class:`GeometryError` that lists missing and unexpected tensors and those of another shape."""
    differences = {
        "missing": [name for name in expected if name not in found],
        "unexpected": [name for name in found if name not in expected],
        "of another shape": [
            f"{name} {found[name]} instead of {shape}"
            for name, shape in expected.items()
            if name in found and found[name] != shape
        ],
    }
    if any(differences.values()):
        raise GeometryError(
            f"the tensors of {where} are not those of its model: "
            + "; ".join(f"{len(names)} {what}: {first_of(names)}" for what, names in differences.items() if names)
        )


def first_of(names: Iterable[str], limit: int = 30) -> str:
    """The names for a message, or the first of very many."""
    names = list(names)
    rest = len(names) - limit
    return ", ".join(names[:limit]) + (f" and {rest} more" if rest > 0 else "")


def _file_names(folder: Path) -> list[str]:
    index = folder / INDEX
    if index.is_file():
        try:
            return sorted(
                {Path(name).name for name in json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()}
            )
        except (ValueError, KeyError, TypeError, AttributeError):
            raise UnusableWeightsError(f"{index} is no index of shards: fetch it again") from None
    if (folder / WEIGHTS).is_file():
        return [WEIGHTS]
    raise UnusableWeightsError(f"{folder} holds neither {WEIGHTS} nor {INDEX}")
