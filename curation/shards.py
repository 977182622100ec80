"""The format of the published shards: what lies beside the tar files, and how to read it."""

from __future__ import annotations

import json
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

INDEX_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("split", pa.string()),
        ("shard", pa.string()),
        ("caption", pa.string()),
        ("width", pa.int64()),
        ("height", pa.int64()),
        ("frames", pa.int64()),
        ("fps", pa.float64()),
        ("subjects", pa.int64()),
        ("references", pa.int64()),
        (
            "members",
            pa.list_(pa.struct([("extension", pa.string()), ("offset", pa.int64()), ("size", pa.int64())])),
        ),
    ]
)
"""One row per sample. ``offset`` is where a member's bytes begin in its shard, so that any can be read alone."""


def read_manifest(shards: str) -> dict[str, Any]:
    """The manifest of the folder of shards at that path or URI; empty if nothing was packed yet."""
    filesystem, root = fsspec.core.url_to_fs(shards)
    if not filesystem.exists(f"{root}/manifest.json"):
        return {}
    with filesystem.open(f"{root}/manifest.json", "r", encoding="utf-8") as file:
        manifest: dict[str, Any] = json.load(file)
    return manifest


def read_index(shards: str) -> list[dict[str, Any]]:
    """The index's rows of the folder of shards at that path or URI; empty if nothing was packed yet."""
    filesystem, root = fsspec.core.url_to_fs(shards)
    if not filesystem.exists(f"{root}/index.parquet"):
        return []
    with filesystem.open(f"{root}/index.parquet", "rb") as file:
        rows: list[dict[str, Any]] = pq.read_table(file).to_pylist()
    return rows
