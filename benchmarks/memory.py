"""Whether memory stays flat: peak memory against the number of videos, and against the length of one video.

Every size runs in a process of its own with a Ray of its own, and is watched from outside. Many videos go through
ingest, split (by stride), encode and pack; what the subject models would write is planted. One long video goes through
ingest and split (PySceneDetect, which is quick; with --transnet the default detector on a shorter one).
"""

from __future__ import annotations

import argparse
import multiprocessing
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from _inputs import long_video, plant, tiny_videos
from _measure import MB, MemoryWatch, Peak, running_ray, show, show_machine, silent

STRIDE = ("split.by=stride", "split.max_s=5", "split.min_s=1")
QUICK_SHOTS = ("models.shots={backend: pyscenedetect}",)


@dataclass(frozen=True)
class Case:
    """A run to watch."""

    label: str
    inputs: list[str]
    steps: tuple[str, ...]
    overrides: tuple[str, ...]


def run(case: Case, workspace_folder: str) -> None:
    """What the watched process does."""
    from curation.config import load_config
    from curation.engine import make_step, run_step
    from curation.steps import write_verdicts
    from curation.workspace import Workspace
    from stages.ingest import list_inputs

    config = load_config(overrides=case.overrides)
    workspace = Workspace.open(workspace_folder, create=True)
    with running_ray(config, case.steps) as executor:
        for name in case.steps:
            if name == "encode":
                plant(workspace, config, picture_side=64)
                write_verdicts(workspace, config)
            step = make_step(name, config, workspace, list_inputs(case.inputs) if name == "ingest" else ())
            assert step is not None
            report = run_step(step, executor, silent())
            if report.failed:
                sys.exit(f"{report.failed} items failed in {name}")
        workspace.tidy()


def watched(case: Case, folder: Path) -> tuple[Peak, float]:
    """Peak memory and seconds of a case, Ray's start included."""
    started = time.perf_counter()
    workspace = folder / "workspace"
    process = multiprocessing.get_context("spawn").Process(target=run, args=(case, str(workspace)))
    process.start()
    with MemoryWatch(process.pid) as watch:
        process.join()
    shutil.rmtree(workspace, ignore_errors=True)
    if process.exitcode:
        raise SystemExit(f"{case.label}: the run ended with {process.exitcode}")
    return watch.peak, time.perf_counter() - started


def report(title: str, cases: Sequence[Case], folder: Path) -> None:
    """Watch cases from small to large and print their peaks, and the growth against the first."""
    rows: list[Sequence[object]] = []
    first: Peak | None = None
    for case in cases:
        peak, seconds = watched(case, folder)
        first = first or peak
        rows.append(
            (
                case.label,
                *(f"{size / MB:.0f}" for size in (peak.driver, peak.worker, peak.workers, peak.tree)),
                peak.driver / max(first.driver, 1),
                peak.worker / max(first.worker, 1),
                peak.tree / max(first.tree, 1),
                f"{seconds:.0f}",
            )
        )
    columns = ["", "driver MB", "largest worker MB", "workers MB", "all MB"]
    ratios = ["driver ratio", "worker ratio", "all ratio", "seconds"]
    show(
        title,
        [*columns, *ratios],
        rows,
        "Peaks of resident memory; shared pages count in each process. Ratios are to the first row.",
    )


def main() -> None:
    """Build, watch, print."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="example: python benchmarks/memory.py --full --transnet",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--videos", type=int, nargs="*", metavar="N", help="folders of so many videos (default: 50 500)"
    )
    parser.add_argument("--minutes", type=float, nargs="*", metavar="M", help="videos of such lengths (default: 2 20)")
    parser.add_argument("--full", action="store_true", help="50, 500 and 2000 videos; 2, 20 and 120 minutes")
    parser.add_argument("--transnet", action="store_true", help="also 1 and 5 minutes with TransNetV2")
    options = parser.parse_args()
    counts = options.videos if options.videos is not None else [50, 500, *([2000] if options.full else [])]
    lengths = options.minutes if options.minutes is not None else [2, 20, *([120] if options.full else [])]
    show_machine()
    with tempfile.TemporaryDirectory(prefix="s2v-benchmark-") as name:
        folder = Path(name)
        many = []
        for count in counts:
            tiny_videos(folder / f"many-{count}", count)
            inputs = [str(folder / f"many-{count}")]
            many.append(Case(f"{count} videos", inputs, ("ingest", "split", "encode", "pack"), STRIDE))
        if many:
            report("Many videos of 2 s: ingest, split, encode, pack", many, folder)

        def long(minutes: float, overrides: tuple[str, ...]) -> Case:
            return Case(f"{minutes:g} min", [str(long_video(folder / "long", minutes))], ("ingest", "split"), overrides)

        if lengths:
            report("One long video: ingest, split", [long(minutes, QUICK_SHOTS) for minutes in lengths], folder)
        if options.transnet:
            report("One long video, TransNetV2: ingest, split", [long(minutes, ()) for minutes in (1, 5)], folder)


if __name__ == "__main__":
    main()
