"""What Ray costs: the same step on the same rows in this process, and on one and two Ray workers.

The ratio is Ray's wall time times its workers over the serial wall time: 1 would be no cost at all. Starting Ray is not
counted, and a first step has woken its workers; what a step itself costs is: its pipeline, its actors, loading the
models once in each. ``ingest`` is light (a small file to probe and hash), ``encode`` heavy in a process of its own
(ffmpeg), ``annotate`` heavy in actors that load models.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from statistics import median as middle

import ray
from _inputs import copy_workspace, looped_demo, plant, tiny_videos
from _measure import cpus, median, running_ray, show, show_machine, silent

from curation.config import Config, load_config
from curation.engine import Executor, SerialExecutor, make_step, run_step
from curation.workspace import Workspace
from stages.ingest import list_inputs

STRIDE = ("split.by=stride", "split.max_s=5", "split.min_s=1")
STEPS = ("ingest", "encode", "annotate")


def config_for(step: str, workers: int) -> Config:
    """The default config with exactly so many workers at a time for a step."""
    (operator,) = getattr(load_config().runtime, step).operators
    described = operator.model_dump(mode="json")
    if step == "annotate":
        described |= {"workers": workers}
    else:
        # Light steps run as tasks; how many at a time follows from the CPUs that each asks for.
        described |= {"cpus": ray.cluster_resources()["CPU"] / workers if ray.is_initialized() else 1}
    return load_config(overrides=[*STRIDE, f"runtime.{step}.operators={json.dumps([described])}"])


def seconds_of(
    name: str, config: Config, workspace: Workspace, executor: Executor, inputs: Sequence[Path] = ()
) -> float:
    """Run a step that must not fail."""
    step = make_step(name, config, workspace, list_inputs([str(path) for path in inputs]))
    assert step is not None
    report = run_step(step, executor, silent())
    if report.failed or not report.items:
        raise SystemExit(f"{report.failed} of {report.items} items failed in {name}")
    return report.seconds


def prepared(folder: Path, videos: Sequence[Path], *, planted: bool) -> Path:
    """A workspace whose clips are cut, and for encoding also annotated."""
    config = load_config(overrides=STRIDE)
    workspace = Workspace.open(folder, create=True)
    for name in ("ingest", "split"):
        seconds_of(name, config, workspace, SerialExecutor(), videos)
    if planted:
        plant(workspace, config)
    return folder


def main() -> None:
    """Build, measure in turns, print."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="example: python benchmarks/ray_overhead.py --files 300 --videos 4 --repeats 2",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--files", type=int, default=300, metavar="N", help="small files to ingest (default: 300)")
    parser.add_argument("--videos", type=int, default=4, metavar="N", help="videos of 30 s for the others (default: 4)")
    parser.add_argument("--seconds", type=float, default=30, metavar="S", help="length of these (default: 30)")
    parser.add_argument("--steps", nargs="+", choices=STEPS, default=STEPS, help="which steps (default: all)")
    parser.add_argument("--repeats", type=int, default=2, metavar="N", help="rounds (default: 2)")
    options = parser.parse_args()
    show_machine()
    walls: dict[tuple[str, int], list[float]] = defaultdict(list)
    with tempfile.TemporaryDirectory(prefix="s2v-benchmark-") as name:
        folder = Path(name)
        small = tiny_videos(folder / "tiny", options.files)
        large = looped_demo(folder, options.videos, options.seconds)
        start = {
            "encode": prepared(folder / "to-encode", large, planted=True),
            "annotate": prepared(folder / "to-annotate", large, planted=False),
        }

        def once(step: str, workers: int, executor: Executor) -> float:
            if step == "ingest":
                with tempfile.TemporaryDirectory(dir=folder) as fresh:
                    workspace = Workspace.open(fresh, create=True)
                    return seconds_of(step, config_for(step, workers or 1), workspace, executor, small)
            workspace = copy_workspace(start[step], folder / "run")
            return seconds_of(step, config_for(step, workers or 1), workspace, executor)

        for _ in range(options.repeats):
            for step in options.steps:
                walls[step, 0].append(once(step, 0, SerialExecutor()))
            with running_ray(load_config(), STEPS) as executor:
                for _ in range(2):
                    once("ingest", cpus(), executor)
                for step in options.steps:
                    for workers in (1, 2):
                        walls[step, workers].append(once(step, workers, executor))
    rows: list[Sequence[object]] = []
    for step in options.steps:
        serial = middle(walls[step, 0])
        rows.append((step, "this process", median(walls[step, 0]), "", ""))
        for workers in (1, 2):
            wall = middle(walls[step, workers])
            label = f"Ray, {workers} worker{'s'[: workers - 1]}"
            rows.append(("", label, median(walls[step, workers]), serial / wall, wall * workers / serial))
        rows.append(())
    items = f"{options.files} files; {options.videos} videos of {options.seconds:g} s in clips of 5 s"
    show(items, ["step", "where", "seconds", "times faster", "overhead ratio"], rows, f"medians of {options.repeats}")


if __name__ == "__main__":
    main()
