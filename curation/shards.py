"""The format of the published shards: what lies beside the tar files, and how to read it."""

from __future__ import annotations

import json
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from curation.workspace import Workspace

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


def read_manifest(workspace: Workspace) -> dict[str, Any]:
    """The published manifest; empty if nothing was packed yet."""
    if not workspace.exists("shards", "manifest.json"):
        return {}
    with workspace.filesystem.open(workspace.path("shards", "manifest.json"), "r") as file:
        manifest: dict[str, Any] = json.load(file)
    return manifest


def read_index(workspace: Workspace) -> list[dict[str, Any]]:
    """The published index's rows; empty if nothing was packed yet."""
    if not workspace.exists("shards", "index.parquet"):
        return []
    with workspace.filesystem.open(workspace.path("shards", "index.parquet"), "rb") as file:
        rows: list[dict[str, Any]] = pq.read_table(file).to_pylist()
    return rows
