"""The released Kaleido checkpoint (SwissArmyTransformer's format) into diffusers' names, and back."""

from __future__ import annotations

import json
import math
import pickle
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from huggingface_hub.serialization import split_state_dict_into_shards_factory
from safetensors import SafetensorError
from safetensors.torch import save_file

from models.errors import UserError
from models.pretrained import UnusableWeightsError
from training.model import S2VTransformer
from training.rope import RELEASED_OFFSET, GeometryError, Offset
from training.tensor_folder import INDEX, WEIGHTS, Shapes, TensorFolder, first_of, refuse_differences

HEAD_DIM = 128
"""Channels of every head of every released Wan and Kaleido; no tensor's shape tells it."""

PREFIX = "model.diffusion_model."
TAG = "1"
RANK_FILE = "mp_rank_00_model_states.pt"

_GLOBAL: dict[str, tuple[str, ...]] = {
    "mixins.patch_embed.proj.{p}": ("patch_embedding.{p}",),
    "text_embedding.0.{p}": ("condition_embedder.text_embedder.linear_1.{p}",),
    "text_embedding.2.{p}": ("condition_embedder.text_embedder.linear_2.{p}",),
    "time_embed.0.{p}": ("condition_embedder.time_embedder.linear_1.{p}",),
    "time_embed.2.{p}": ("condition_embedder.time_embedder.linear_2.{p}",),
    "adaln_projection.1.{p}": ("condition_embedder.time_proj.{p}",),
    "mixins.final_layer.adaLN_modulation": ("scale_shift_table",),
    "mixins.final_layer.linear.{p}": ("proj_out.{p}",),
}
_PER_LAYER: dict[str, tuple[str, ...]] = {
    "mixins.adaln_layer.adaLN_modulations.{l}": ("scale_shift_table",),
    "mixins.adaln_layer.query_layernorm_list.{l}.weight": ("attn1.norm_q.weight",),
    "mixins.adaln_layer.key_layernorm_list.{l}.weight": ("attn1.norm_k.weight",),
    "mixins.adaln_layer.cross_query_layernorm_list.{l}.weight": ("attn2.norm_q.weight",),
    "mixins.adaln_layer.cross_key_layernorm_list.{l}.weight": ("attn2.norm_k.weight",),
    "transformer.layers.{l}.attention.query_key_value.{p}": ("attn1.to_q.{p}", "attn1.to_k.{p}", "attn1.to_v.{p}"),
    "transformer.layers.{l}.attention.dense.{p}": ("attn1.to_out.0.{p}",),
    "transformer.layers.{l}.cross_attention.query.{p}": ("attn2.to_q.{p}",),
    "transformer.layers.{l}.cross_attention.key_value.{p}": ("attn2.to_k.{p}", "attn2.to_v.{p}"),
    "transformer.layers.{l}.cross_attention.dense.{p}": ("attn2.to_out.0.{p}",),
    "transformer.layers.{l}.post_cross_attention_layernorm.{p}": ("norm2.{p}",),
    "transformer.layers.{l}.mlp.dense_h_to_4h.{p}": ("ffn.net.0.proj.{p}",),
    "transformer.layers.{l}.mlp.dense_4h_to_h.{p}": ("ffn.net.2.{p}",),
}


def released_names(layers: int) -> dict[str, tuple[str, ...]]:
    """Every tensor of the released network, and the diffusers tensors that it is cut into along its first axis."""
    names: dict[str, tuple[str, ...]] = {}
    for template, targets in _GLOBAL.items():
        for kind in _kinds(template):
            names[template.format(p=kind)] = tuple(target.format(p=kind) for target in targets)
    for layer in range(layers):
        for template, targets in _PER_LAYER.items():
            for kind in _kinds(template):
                names[template.format(l=layer, p=kind)] = tuple(
                    f"blocks.{layer}.{target.format(p=kind)}" for target in targets
                )
    return names


def import_kaleido(
    source: Path,
    out: Path,
    offset: Offset = RELEASED_OFFSET,
    *,
    head_dim: int = HEAD_DIM,
    max_shard_bytes: int = 4 * 2**30,
) -> None:
    """Write the released checkpoint as a folder that :meth:`S2VTransformer.from_pretrained` reads; dtypes stay.

    The file is mapped into memory and its tensors are written straight from there.

    Args:
        source: the file ``mp_rank_00_model_states.pt``, or the folder in which ``latest`` names its folder.
        out: a new or empty folder; appears only when it is complete.
        offset: what the network was trained with; no tensor tells it.
        head_dim: channels of each attention head, likewise.
        max_shard_bytes: tensors of a file together; larger ones get a file of their own.

    Raises:
        UnusableWeightsError: if there is no such checkpoint, it is damaged, or it holds more than tensors.
        GeometryError: if its tensors are not those of the network; the message lists them.
    """
    file = _released_file(source)
    tensors = _read_released(file)
    layers = _layers(file, tensors)
    names = released_names(layers)
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    refuse_differences(file, {name: found.get(name, ()) for name in names}, found)
    model = _model_of(file, found, layers, offset, head_dim)
    refuse_differences(file, _released_shapes(names, model), found)
    parts = {
        target: part
        for name, targets in names.items()
        for target, part in zip(targets, tensors[name].chunk(len(targets)), strict=True)
    }
    with _new_folder(out) as folder:
        model.save_config(folder)
        _write_shards(folder, parts, max_shard_bytes)


def export_kaleido(model_folder: Path, out: Path) -> None:
    """Write a trained model as the released code reads it: ``1/mp_rank_00_model_states.pt`` and ``latest``.

    Dtypes stay. The released config must be told the offset: ``rope_continue: True`` for `video_grid`, else ``max_h``
    and ``max_w``.
    Nothing is gathered in memory; the disk holds the tensors that are joined (about 40 % of all) twice for a while.

    Args:
        model_folder: as :meth:`S2VTransformer.from_pretrained` reads it.
        out: a new or empty folder; appears only when it is complete.

    Raises:
        UnusableWeightsError: if there is no such checkpoint, or it is damaged.
        GeometryError: if its tensors are not those of the network, or the released code has no such offset.
    """
    model = S2VTransformer.without_weights(model_folder)
    if model.rope.offset in ("time", "none"):
        raise GeometryError(
            f"{model_folder} was trained with offset {model.rope.offset}, which the released code does not have"
        )
    names = released_names(model.config.num_layers)
    own = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    with TensorFolder(model_folder) as stored, _new_folder(out) as folder:
        targets = [target for targets in names.values() for target in targets]
        refuse_differences(model_folder, {target: own.get(target, ()) for target in targets}, stored.shapes)
        (folder / TAG).mkdir()
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            module = {
                PREFIX + name: _join([stored.read(part) for part in parts], Path(scratch) / str(number))
                for number, (name, parts) in enumerate(names.items())
            }
            torch.save({"module": module}, folder / TAG / RANK_FILE)
        (folder / "latest").write_text(TAG, encoding="utf-8")


def _kinds(template: str) -> tuple[str, ...]:
    return ("weight", "bias") if "{p}" in template else ("",)


def _released_file(source: Path) -> Path:
    if source.is_file():
        return source
    latest = source / "latest"
    if not latest.is_file():
        raise UnusableWeightsError(
            f"{source} is neither a file nor a folder with `latest`: give {RANK_FILE}, or the folder above its folder"
        )
    folder = source / Path(latest.read_text(encoding="utf-8").strip()).name
    ranks = sorted(folder.glob("mp_rank_*_model_states.pt"))
    if ranks != [folder / RANK_FILE]:
        raise UnusableWeightsError(
            f"{latest} points at {folder}, which has {len(ranks)} files mp_rank_*_model_states.pt instead of one, "
            f"{RANK_FILE}: fetch it again, or merge a checkpoint that was cut for several ranks"
        )
    return folder / RANK_FILE


def _read_released(file: Path) -> dict[str, torch.Tensor]:
    try:
        stored = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError:
        raise UnusableWeightsError(
            f"{file} holds other objects than tensors, which could run code when read, and was refused: save its state "
            "dict alone"
        ) from None
    except (OSError, EOFError, RuntimeError, ValueError) as error:
        raise UnusableWeightsError(f"{file} is damaged or no checkpoint of torch: {error}; fetch it again") from None
    module = stored.get("module") if isinstance(stored, Mapping) else None
    if not isinstance(module, Mapping):
        raise UnusableWeightsError(f"{file} has no `module`: it is no checkpoint of the released code")
    tensors = {name.removeprefix(PREFIX): tensor for name, tensor in module.items() if name.startswith(PREFIX)}
    if not tensors or not all(isinstance(tensor, torch.Tensor) for tensor in tensors.values()):
        raise UnusableWeightsError(
            f"{file} has no tensors named {PREFIX}*, but {first_of(map(str, module), 5) or 'nothing'}: it is no "
            "checkpoint of the released network"
        )
    return tensors


def _layers(file: Path, tensors: Mapping[str, torch.Tensor]) -> int:
    found = {match[1] for name in tensors if (match := re.match(r"transformer\.layers\.(\d+)\.", name))}
    if not found:
        raise GeometryError(f"{file} has no tensors transformer.layers.*: it is no checkpoint of the released network")
    return len(found)


def _model_of(file: Path, shapes: Shapes, layers: int, offset: Offset, head_dim: int) -> S2VTransformer:
    try:
        width, channels, *patch_size = shapes["mixins.patch_embed.proj.weight"]
        ffn_dim, _ = shapes["transformer.layers.0.mlp.dense_h_to_4h.weight"]
        _, text_dim = shapes["text_embedding.0.weight"]
        _, freq_dim = shapes["time_embed.0.weight"]
        outputs, _ = shapes["mixins.final_layer.linear.weight"]
        if len(patch_size) != 3 or 0 in patch_size:
            raise ValueError
    except ValueError:
        raise GeometryError(
            f"{file}: the first or last layer's tensors have another number of axes than they should"
        ) from None
    if width % head_dim:
        raise GeometryError(f"{file}: width {width} is no multiple of the heads' {head_dim} channels")
    with torch.device("meta"):
        model: S2VTransformer = S2VTransformer(
            patch_size=tuple(patch_size),
            num_attention_heads=width // head_dim,
            attention_head_dim=head_dim,
            in_channels=channels,
            out_channels=outputs // math.prod(patch_size),
            text_dim=text_dim,
            freq_dim=freq_dim,
            ffn_dim=ffn_dim,
            num_layers=layers,
            offset=offset,
        )
    return model


def _released_shapes(names: Mapping[str, tuple[str, ...]], model: S2VTransformer) -> Shapes:
    own = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    return {name: (sum(own[target][0] for target in targets), *own[targets[0]][1:]) for name, targets in names.items()}


def _write_shards(folder: Path, tensors: Mapping[str, torch.Tensor], max_bytes: int) -> None:
    plan = split_state_dict_into_shards_factory(
        {name: tensor.nbytes for name, tensor in tensors.items()},
        get_storage_size=int,
        filename_pattern=WEIGHTS.replace(".", "{suffix}.", 1),
        max_shard_size=max_bytes,
    )
    for file, names in plan.filename_to_tensors.items():
        save_file({name: tensors[name].contiguous() for name in names}, folder / file, metadata={"format": "pt"})
    if plan.is_sharded:
        index = {"metadata": plan.metadata, "weight_map": plan.tensor_to_filename}
        (folder / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _join(parts: list[torch.Tensor], file: Path) -> torch.Tensor:
    """The parts behind one another along their first axis, in a file instead of memory."""
    if len(parts) == 1:
        return parts[0]
    first = parts[0]
    if any(part.dtype != first.dtype for part in parts):
        raise GeometryError(f"tensors to be joined differ in dtype: {', '.join(str(part.dtype) for part in parts)}")
    with file.open("wb") as joined:
        for part in parts:
            joined.write(part.flatten().view(torch.uint8).numpy())
    size = sum(part.numel() for part in parts)
    return torch.from_file(str(file), shared=False, size=size, dtype=first.dtype).view(-1, *first.shape[1:])


@contextmanager
def _new_folder(out: Path) -> Iterator[Path]:
    """A folder that takes the place of ``out`` when all went well and is gone otherwise."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} exists already: choose a new folder")
    partial = out.with_name(f"{out.name}.partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        yield partial
        partial.replace(out)
    except (OSError, SafetensorError, RuntimeError) as error:
        raise UserError(f"{out} could not be written: {error}; nothing of it was kept") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
