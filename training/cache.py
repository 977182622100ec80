"""Cached latents and text embeddings beside the shards: what is there, where it lies, and how it is written.

``{shards}/latents/{fingerprint}/`` holds ``parts.json``, which says what the fingerprint is made of,
``empty.safetensors`` with the embedding of the empty caption, and one safetensors file per shard. There, tensors have
the names of the members that they were made from: ``{key}.mp4`` (C, t, h, w), ``{key}.{subject}.{kind}.{n}.png``
(C, h, w), ``{key}.txt`` (rows, D). Rows of zeros at a text's end are left out. A file's name ends with the fingerprint
of its shard, so that latents of a shard that was packed anew are not taken for current.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import fsspec
import torch
from safetensors.torch import save

from curation.shards import read_manifest
from training.data import DataConfig
from training.latents import LatentEncoder
from training.layout import Bucket
from training.shard_index import TEXT, DataError
from training.shard_reader import Span
from training.text import TextEncoder

EMPTY = "empty.safetensors"
"""File with the embedding of the empty caption, under the name ``txt``."""
_PARTS = "parts.json"

Precision = Literal["float32", "bfloat16"]


@dataclass(frozen=True, slots=True)
class CacheParts:
    """All that cached tensors follow from, besides the shards."""

    latents: str
    """Fingerprint of the encoder."""
    channels: int
    spatial_factor: int
    temporal_factor: int
    text: str | None
    """Fingerprint of the text encoder; None where it is trained along with the model, and not cached."""
    text_shape: tuple[int, int]
    """Rows and D of an embedding."""
    buckets: tuple[Bucket, ...]
    fps: float
    skip: int
    precision: Precision
    """What tensors are stored in."""

    @classmethod
    def of(
        cls, config: DataConfig, latents: LatentEncoder, text: TextEncoder, precision: Precision = "float32"
    ) -> CacheParts:
        """Those of a config with its encoders."""
        return cls(
            latents=latents.fingerprint,
            channels=latents.channels,
            spatial_factor=latents.spatial_factor,
            temporal_factor=latents.temporal_factor,
            text=None if text.trainable else text.fingerprint,
            text_shape=(text.length, text.dim),
            buckets=config.buckets,
            fps=config.fps,
            skip=config.skip,
            precision=precision,
        )

    @property
    def fingerprint(self) -> str:
        """Hash of all of them."""
        return hashlib.sha256(self.json().encode()).hexdigest()[:16]

    def json(self) -> str:
        """All of them, to be read by people."""
        return json.dumps(asdict(self), indent=2, sort_keys=True)

    def latent_size(self, bucket: Bucket) -> tuple[int, int, int, int]:
        """(C, t, h, w) of a bucket's videos."""
        frames = (bucket.frames - 1) // self.temporal_factor + 1
        return self.channels, frames, bucket.height // self.spatial_factor, bucket.width // self.spatial_factor


class LatentCache:
    """The cache of a folder of shards for one set of parts. Nothing needs to be there yet."""

    def __init__(self, shards: str, parts: CacheParts) -> None:
        """
        Raises:
            DataError: if the shards have no manifest, which tells one packing of them from another.
        """
        self.parts = parts
        self.uri = f"{shards.rstrip('/')}/latents/{parts.fingerprint}"
        self._content = {entry["file"]: entry["fingerprint"] for entry in read_manifest(shards).get("shards", ())}
        if not self._content:
            raise DataError(f"{shards} has no manifest.json with its shards: pack them again")

    def file_of(self, shard: str) -> str:
        """Name of the file with the latents of a shard as it is now."""
        return f"{shard.removesuffix('.tar')}-{self._content.get(shard, 'unknown')}.safetensors"

    def missing(self, shards: Sequence[str]) -> list[str]:
        """Those of the shards that are not encoded yet, or were packed anew since; all if there is no empty caption."""
        filesystem, root = fsspec.core.url_to_fs(self.uri)
        if not filesystem.exists(root):
            return list(shards)
        there = {name.rsplit("/", 1)[-1] for name in filesystem.ls(root, detail=False, refresh=True)}
        if self.parts.text is not None and EMPTY not in there:
            return list(shards)
        return [shard for shard in shards if self.file_of(shard) not in there]

    def write_shard(self, shard: str, tensors: Mapping[str, torch.Tensor]) -> None:
        """Publish the tensors of a shard, by member name; texts (rows, D) lose their last rows of zeros."""
        self._write(
            self.file_of(shard),
            {name: trimmed(tensor) if name.endswith(f".{TEXT}") else tensor for name, tensor in tensors.items()},
        )

    def write_empty_caption(self, text: torch.Tensor) -> None:
        """Publish the (rows, D) embedding of the empty caption, and what the cache is made of."""
        self._write_bytes(_PARTS, self.parts.json().encode())
        self._write(EMPTY, {TEXT: trimmed(text)})

    def _write(self, name: str, tensors: Mapping[str, torch.Tensor]) -> None:
        dtype: torch.dtype = getattr(torch, self.parts.precision)
        self._write_bytes(name, save({key: tensor.to(dtype).cpu().contiguous() for key, tensor in tensors.items()}))

    def _write_bytes(self, name: str, data: bytes) -> None:
        """Write a file that is there as a whole or not at all, whoever else writes it at the same time."""
        filesystem, root = fsspec.core.url_to_fs(self.uri)
        filesystem.makedirs(root, exist_ok=True)
        written = f"{root}/.{name}.{secrets.token_hex(8)}.tmp"
        filesystem.pipe_file(written, data)
        filesystem.mv(written, f"{root}/{name}")


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor of a safetensors file."""

    span: Span
    dtype: torch.dtype
    shape: tuple[int, ...]

    def restore(self, data: bytes) -> torch.Tensor:
        """The tensor of the span's bytes, in float32."""
        if not data:
            return torch.zeros(self.shape)
        return torch.frombuffer(bytearray(data), dtype=self.dtype).reshape(self.shape).float()


def stored_tensors(file: str, header: bytes) -> dict[str, StoredTensor]:
    """The tensors of a safetensors file by name, of its header (after the 8 bytes that tell its length).

    Raises:
        ValueError: for what is no such header.
    """
    try:
        entries: dict[str, Any] = json.loads(header)
        start = 8 + len(header)
        return {
            name: StoredTensor(
                span=Span(file, start + entry["data_offsets"][0], entry["data_offsets"][1] - entry["data_offsets"][0]),
                dtype={"F32": torch.float32, "BF16": torch.bfloat16}[entry["dtype"]],
                shape=tuple(entry["shape"]),
            )
            for name, entry in entries.items()
            if name != "__metadata__"
        }
    except (KeyError, TypeError, IndexError, AttributeError) as error:
        raise ValueError(f"not the header of a safetensors file: {error!r}") from error


def trimmed(text: torch.Tensor) -> torch.Tensor:
    """(rows, D) without the rows of zeros at its end."""
    used = text.ne(0).any(dim=1).nonzero()
    return text[: int(used.max()) + 1 if len(used) else 0]
