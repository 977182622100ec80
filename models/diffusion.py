"""Pipelines of diffusers: loaded whole from local folders; one seeded generator per picture, equal sizes at once."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

import cv2
import numpy as np
import numpy.typing as npt
from pydantic import Field

from models.pretrained import UnusableWeightsError, load_network, refuse_missing, refuse_without_vocabulary
from models.protocols import EditRequest, Image
from models.torch_device import HubConfig, placed

WIDEST = 21 / 9
"""Ratio of a picture's longer to its shorter side that the networks have seen at most; beyond it, margins are added."""

Pixel = TypeVar("Pixel", np.uint8, np.float32)
Size = tuple[int, int]
"""``(height, width)`` in pixels."""


class DiffusionConfig(HubConfig):
    """Base of the configs of backends that run a pipeline of diffusers."""

    # A repository's root often holds the same weights once more, as one file for other programs.
    files: ClassVar[tuple[str, ...]] = (
        "model_index.json",
        "*/*.json",
        "*/*.txt",
        "*/*.model",
        "*/*.jinja",
        "*/*.safetensors",
    )
    speed: ClassVar[frozenset[str]] = HubConfig.speed | {"offload"}

    batch: int = Field(1, ge=1)
    """Pictures of one size that go through the pipeline at once."""
    side: int = Field(1024, ge=128)
    """The network works on about as many pixels as a square of this side has, in the picture's own aspect."""
    steps: int = Field(50, ge=1)
    """Denoising steps."""
    guidance: float = Field(3.5, ge=0)
    """How closely the picture follows the prompt."""
    offload: Literal["none", "model"] = "none"
    """`model` keeps each part of the pipeline in main memory while another runs on the GPU: slower, a fraction of the
    GPU's memory. No effect on a CPU."""


class DiffusionEditor(ABC):
    """What editors with a pipeline share: the canvas, the batches and the seeds.

    Every picture has about ``side`` times ``side`` pixels (never more) in the aspect of its request's image, or in
    21:9 where that is wider, and sides that the pipeline can make. The subject is centred on it, undistorted, on white.
    A picture depends on its request and the options alone, up to rounding: not on what else is asked for, nor on the
    device's random numbers.
    """

    def __init__(self, config: DiffusionConfig, pipeline: Any) -> None:
        self.config = config
        self._pipeline = pipeline
        self._multiple = multiple_of(pipeline)

    def edit(self, requests: Sequence[EditRequest]) -> list[Image]:
        """One picture per request, in order."""
        sizes = [working_size(request.image.shape, self.config.side, self._multiple) for request in requests]
        pictures: dict[int, Image] = {}
        for chosen in same_size(sizes, self.config.batch):
            size = sizes[chosen[0]]
            painted = self._paint(
                [on_white(requests[index].image, size) for index in chosen],
                [requests[index].prompt for index in chosen],
                generators([requests[index].seed for index in chosen]),
                size,
            )
            pictures.update(zip(chosen, as_pictures(painted, self.config), strict=True))
        return [pictures[index] for index in range(len(requests))]

    @abstractmethod
    def _paint(self, subjects: list[Image], prompts: list[str], seeded: list[Any], size: Size) -> Any:
        """Pictures of shape ``(subjects, height, width, 3)`` in [0, 1], of subjects that have this size."""


def load_pipeline(pipeline: Any, folder: Path, config: DiffusionConfig) -> Any:
    """A pipeline of diffusers with all of its parts, where and in what the config says.

    Args:
        pipeline: the class that the folder's ``model_index.json`` must name.
        folder: a repository in the format of diffusers, one folder per part; safetensors only.
        config: device, precision and ``offload``.

    Raises:
        UnusableWeightsError: if the folder holds another pipeline, or lacks a part, or a part lacks tensors, which
            would be left random.
    """
    device, dtype = placed(config)
    with _silence():
        networks = {
            name: _load_part(kind, folder / name, config, dtype)
            for name, kind in _parts(pipeline, folder).items()
            if _is_network(kind)
        }
        try:
            loaded = pipeline.from_pretrained(folder, local_files_only=True, **networks)
        except (OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError) as error:
            raise _does_not_load(folder, pipeline, config, error) from error
    for name, part in loaded.components.items():
        refuse_without_vocabulary(folder / name, part)
    loaded.set_progress_bar_config(disable=True)
    if config.offload == "model" and device.type != "cpu":
        loaded.enable_model_cpu_offload(device=device)
        return loaded
    return loaded.to(device)


def working_size(shape: tuple[int, ...], side: int, multiple: int) -> Size:
    """Height and width that a network works at for a picture of some shape, ``(height, width, ...)``.

    Both are multiples of ``multiple``; their product is at most ``side`` squared and short of it by rounding only;
    their ratio is the picture's, or 21:9 where that is more.
    """
    aspect = bounded_aspect(shape)
    wanted = side / aspect**0.5, side * aspect**0.5
    rows, columns = (max(multiple, int(length + 1e-6) // multiple * multiple) for length in wanted)
    return rows, columns


def bounded_aspect(shape: tuple[int, ...]) -> float:
    """Ratio of width to height, between 9:21 and 21:9."""
    return min(max(shape[1] / shape[0], 1 / WIDEST), WIDEST)


def margins(shape: tuple[int, ...], aspect: float) -> tuple[Size, Size]:
    """Rows above and below and columns left and right that bring a picture to a ratio of width to height, centred."""
    height, width = shape[:2]
    rows = max(0, round(width / aspect) - height)
    columns = max(0, round(height * aspect) - width)
    return (rows // 2, rows - rows // 2), (columns // 2, columns - columns // 2)


def on_white(image: Image, size: Size) -> Image:
    """The picture as large as it fits, undistorted and centred, on white."""
    around = margins(image.shape, size[1] / size[0])
    return resized(np.pad(image, (*around, (0, 0)), constant_values=255), size)


def resized(pixels: npt.NDArray[Pixel], size: Size) -> npt.NDArray[Pixel]:
    """Pixels of shape ``(height, width, ...)`` at another size."""
    if pixels.shape[:2] == size:
        return pixels
    smaller = size[0] * size[1] < pixels.shape[0] * pixels.shape[1]
    scaled: npt.NDArray[Pixel] = cv2.resize(
        pixels, size[::-1], interpolation=cv2.INTER_AREA if smaller else cv2.INTER_CUBIC
    )
    return scaled


def multiple_of(pipeline: Any) -> int:
    """What the sides of a pipeline's pictures are multiples of: two by two of the VAE's pixels are one token."""
    return 2 * int(pipeline.vae_scale_factor)


def same_size(sizes: Sequence[Size], batch: int) -> Iterator[list[int]]:
    """Positions of equal sizes, at most ``batch`` together."""
    for size in dict.fromkeys(sizes):
        alike = [index for index, other in enumerate(sizes) if other == size]
        yield from (alike[start : start + batch] for start in range(0, len(alike), batch))


def generators(seeds: Sequence[int]) -> list[Any]:
    """One generator per picture. They draw on the CPU, so that the noise is the same on every device."""
    import torch

    return [torch.Generator("cpu").manual_seed(seed) for seed in seeds]


def as_pillow(images: Sequence[Image]) -> list[Any]:
    """Pictures as the pipelines take them."""
    from PIL import Image as Pillow

    return [Pillow.fromarray(image) for image in images]


def as_pictures(painted: Any, config: DiffusionConfig) -> list[Image]:
    """A pipeline's output of shape ``(pictures, height, width, 3)`` in [0, 1] as pictures.

    Raises:
        ValueError: if it is not finite.
    """
    values = np.asarray(painted, np.float32)
    if not np.isfinite(values).all():
        raise ValueError(
            f"{config.backend}: {config.model} painted pixels that are no numbers. Where precision is float16, "
            "set it to bfloat16 or float32; otherwise the weights are broken."
        )
    return list(np.rint(np.clip(values, 0, 1) * 255).astype(np.uint8))


def _parts(pipeline: Any, folder: Path) -> dict[str, Any]:
    """Names and classes of the pipeline's parts that the folder has."""
    import diffusers
    import transformers

    path = folder / "model_index.json"
    try:
        index = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UnusableWeightsError(f"{path} does not read: {error}; fetch the repository again") from error
    named = index.get("_class_name") if isinstance(index, dict) else None
    if named != pipeline.__name__:
        raise UnusableWeightsError(
            f"{path} names the pipeline {named}, and a {pipeline.__name__} is needed; choose another model"
        )
    parts: dict[str, Any] = {}
    for name in sorted(pipeline._get_signature_types()):
        library, kind = index[name] if isinstance(index.get(name), list) else (None, None)
        if kind is None:
            if name in pipeline._get_signature_keys(pipeline)[0] and name not in pipeline._optional_components:
                raise UnusableWeightsError(f"{path} names no {name}; choose another model")
            continue
        known = getattr(transformers if library == "transformers" else diffusers, kind, None)
        if known is None:
            raise UnusableWeightsError(f"{path}: {name} is a {kind} of {library}, which is not known here")
        if not (folder / name).is_dir():
            raise UnusableWeightsError(f"{folder} lacks the folder {name}; fetch it again")
        parts[name] = known
    return parts


@contextmanager
def _silence() -> Iterator[None]:
    """No bars; no warnings either: what they would tell about tensors is raised."""
    from diffusers.utils import logging as of_diffusers
    from transformers.utils import logging as of_transformers

    before = [
        (logging, logging.get_verbosity(), logging.is_progress_bar_enabled())
        for logging in (of_diffusers, of_transformers)
    ]
    for logging, _, _ in before:
        logging.set_verbosity_error()
        logging.disable_progress_bar()
    try:
        yield
    finally:
        for logging, verbosity, bars in before:
            logging.set_verbosity(verbosity)
            if bars:
                logging.enable_progress_bar()


def _is_network(kind: Any) -> bool:
    import torch

    return isinstance(kind, type) and issubclass(kind, torch.nn.Module)


def _load_part(kind: Any, folder: Path, config: DiffusionConfig, dtype: Any) -> Any:
    import transformers

    if issubclass(kind, transformers.PreTrainedModel):
        # Parts move to the GPU with the whole pipeline, or one at a time.
        precision = str(dtype).removeprefix("torch.")
        return load_network(kind, folder, config.model_copy(update={"device": "cpu", "precision": precision}))
    try:
        network, info = kind.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, dtype=dtype, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError) as error:
        raise _does_not_load(folder, kind, config, error) from error
    refuse_missing(folder, info["missing_keys"])
    return network.eval().requires_grad_(False)


def _does_not_load(folder: Path, kind: Any, config: DiffusionConfig, error: Exception) -> UnusableWeightsError:
    return UnusableWeightsError(f"{config.backend}: {folder} does not load as {kind.__name__}: {error}; fetch it again")
