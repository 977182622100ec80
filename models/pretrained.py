"""Loads networks and processors of transformers from local folders, and only whole ones."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from models.errors import UserError
from models.torch_device import TorchConfig, placed


class UnusableWeightsError(UserError, ValueError):
    """Weights that are there but do not load, or lack tensors; the message names the folder."""


def load_network(network: Any, folder: Path, config: TorchConfig, **options: Any) -> Any:
    """A network of transformers, for inference, where and in what the config says.

    Args:
        network: a class of transformers with ``from_pretrained``.
        folder: its ``config.json`` and safetensors; pickles are not read.
        config: device and precision.
        options: further arguments of ``from_pretrained``.

    Raises:
        UnusableWeightsError: if the folder holds something else, or lacks tensors of the network, which
            transformers would leave random.
    """
    from safetensors import SafetensorError
    from transformers.utils import logging

    device, dtype = placed(config)
    before = logging.get_verbosity()
    # What it would report about tensors is raised below.
    logging.set_verbosity_error()
    try:
        loaded, info = network.from_pretrained(
            folder,
            local_files_only=True,
            use_safetensors=True,
            dtype=dtype,
            output_loading_info=True,
            # They are refused by name below.
            ignore_mismatched_sizes=True,
            **options,
        )
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        raise UnusableWeightsError(
            f"{config.backend}: {folder} does not load as {network.__name__}: {error}; fetch it again"
        ) from error
    finally:
        logging.set_verbosity(before)
    refuse_missing(folder, [*info["missing_keys"], *(str(found[0]) for found in info["mismatched_keys"])])
    return loaded.eval().requires_grad_(False).to(device)


def load_processor(processor: Any, folder: Path, config: TorchConfig, **options: Any) -> Any:
    """A processor, tokenizer or image processor of transformers.

    Raises:
        UnusableWeightsError: if its files are not there or do not fit.
    """
    try:
        loaded = processor.from_pretrained(folder, local_files_only=True, **options)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UnusableWeightsError(
            f"{config.backend}: {folder} holds no {processor.__name__} that loads: {error}; fetch it again"
        ) from error
    refuse_without_vocabulary(folder, loaded)
    return loaded


def refuse_missing(folder: Path, missing: Iterable[str]) -> None:
    """Raise :class:`UnusableWeightsError` naming tensors that a checkpoint lacks; loaders leave them random."""
    if names := sorted(missing):
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        raise UnusableWeightsError(f"{folder} lacks tensors of the model: {', '.join(names[:3])}{more}; fetch it again")


def refuse_without_vocabulary(folder: Path, part: Any) -> None:
    """Raise :class:`UnusableWeightsError` for a tokenizer, or a processor with one, whose files are not there.

    transformers loads it all the same, with an empty vocabulary.
    """
    files = dict(getattr(getattr(part, "tokenizer", part), "vocab_files_names", {}))
    whole = files.pop("tokenizer_file", None)
    if whole is not None and not (folder / whole).is_file():
        lacking = [file for file in files.values() if not (folder / file).is_file()]
        if lacking or not files:
            raise UnusableWeightsError(f"{folder} lacks {whole}, and {', '.join(lacking)} too; fetch it again")
