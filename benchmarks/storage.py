"""Bytes written against bytes kept: what a run costs its disk, and what is left of it.

A new run goes through every step in this process, on the demo videos, and the kernel counts what it and the ffmpeg
processes that it starts send towards the disk, temporary files included. With --workspace, the tables and shards of a
run that was made before are listed, and nothing is run.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from _inputs import demo_videos, own_or
from _measure import MB, bytes_under, bytes_written, show, show_machine, silent

from curation.config import load_config
from curation.engine import STEPS, SerialExecutor, make_step, run_step
from curation.shards import read_manifest
from curation.steps import write_verdicts
from curation.workspace import Workspace
from stages.ingest import list_inputs
from stages.records import RECORDS

TEMPORARY = ("*.tmp", "shards/.next/*", "attempts/*")


@dataclass(frozen=True)
class Table:
    """A table at one moment."""

    rows: int
    size: int
    """Bytes of its folder."""
    files: int
    versions: int


def tables(workspace: Workspace) -> dict[str, Table]:
    """Every table of a workspace."""
    found = {}
    for name, record in RECORDS.items():
        dataset, folder = workspace.table(record), Path(workspace.path("tables", f"{name}.lance"))
        files = sum(1 for path in (folder / "data").glob("*") if path.is_file()) if (folder / "data").exists() else 0
        found[name] = Table(dataset.count_rows(), bytes_under(folder), files, len(dataset.versions()))
    return found


def run(videos: Sequence[Path], workspace: Workspace, overrides: Sequence[str]) -> dict[str, Table]:
    """Run every step, print what each wrote, and return the tables as they were before tidying."""
    config = load_config(overrides=overrides)
    rows: list[Sequence[object]] = []
    total = 0

    def account(name: str, items: object, before: int) -> None:
        nonlocal total
        written = bytes_written() - before
        total += written
        rows.append((name, items, written / MB, bytes_under(Path(workspace.uri)) / MB))

    found = list_inputs([str(video) for video in videos])
    for name in STEPS:
        before = bytes_written()
        step = make_step(name, config, workspace, found if name == "ingest" else ())
        if step is None:
            items = len(write_verdicts(workspace, config))
        else:
            items = run_step(step, SerialExecutor(), silent()).items
        account(name, items, before)
    untidied = tables(workspace)
    before = bytes_written()
    workspace.tidy()
    account("tidy", "", before)
    kept = bytes_under(Path(workspace.uri))
    rows += [(), ("whole run", "", total / MB, kept / MB)]
    source = sum(video.stat().st_size for video in videos)
    show(
        f"A run over {len(videos)} videos ({source / MB:.1f} MB)",
        ["step", "items", "MB written", "MB in the workspace after it"],
        rows,
        f"written / kept: {total / kept:.2f}" if total else "this system does not count what is written",
    )
    return untidied


def show_workspace(workspace: Workspace, before: dict[str, Table] | None) -> None:
    """What is kept, and where."""
    now = tables(workspace)
    rows: list[Sequence[object]] = []
    for name, table in now.items():
        versions, files = (f"{table.versions}", f"{table.files}")
        if before is not None:
            versions, files = f"{before[name].versions} -> {versions}", f"{before[name].files} -> {files}"
        per_row = table.size / max(table.rows, 1) / 1e3
        rows.append((name, table.rows, table.size / MB, f"{per_row:.1f}", files, versions))
    root = Path(workspace.uri)
    shards = sum(path.stat().st_size for path in root.glob("shards/*.tar"))
    index = sum(path.stat().st_size for path in root.glob("shards/*") if path.suffix in {".parquet", ".json"})
    leftovers = [path for pattern in TEMPORARY for path in root.rglob(pattern) if path.is_file()]
    samples = sum(read_manifest(workspace.path("shards")).get("samples", {}).values())
    rows += [(), ("shards", samples, shards / MB, f"{shards / max(samples, 1) / 1e3:.1f}", "", "")]
    rows += [
        ("index and manifest", "", index / MB, "", "", ""),
        ("temporary files left", len(leftovers), "", "", "", ""),
    ]
    kept = bytes_under(root)
    ratio = f"kept / shards: {kept / shards:.2f}" if shards else "no shards"
    show("What is kept", ["", "rows", "MB", "kB per row", "data files", "versions"], rows, ratio)


def main() -> None:
    """Run or open, then print."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="example: python benchmarks/storage.py --workspace workspace",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--workspace", type=Path, metavar="W", help="list this workspace and run nothing")
    parser.add_argument("--videos", type=Path, metavar="FOLDER", help="run on these instead of the demo's")
    parser.add_argument("--most", type=int, metavar="N", help="only the first N videos")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="changes to the default config")
    options = parser.parse_args()
    if options.workspace:
        show_workspace(Workspace.open(options.workspace), None)
        return
    show_machine()
    with tempfile.TemporaryDirectory(prefix="s2v-benchmark-") as name:
        folder = Path(name)
        videos = own_or(options.videos, [] if options.videos else demo_videos(folder / "demo"))[: options.most]
        workspace = Workspace.open(folder / "workspace", create=True)
        before = run(videos, workspace, options.overrides)
        show_workspace(workspace, before)


if __name__ == "__main__":
    main()
