"""Do several models that share GPUs by fractions keep the slowest of them busy?

The engine's own Ray pipeline carries units of clips through the groups of stages of `configs/kaleido.yaml`, with its
shares, on logical GPUs; in the place of each stage stands one that sleeps as long as such a model might take. What is
measured is the scheduling: how busy the workers of the slowest group are between its first clip and its last, and the
rate of clips against the best that any schedule could reach on these GPUs.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
import uuid
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import ray
from _measure import show, show_machine

from curation.config import Config, OperatorConfig, load_config
from curation.engine import group
from curation.guard import Item, Stage
from curation.runtime import RayExecutor
from curation.steps import Annotate
from curation.workspace import Workspace
from stages.config import CONFIG_FOLDER, change
from stages.records import Record

SECONDS = {"look": 0.05, "score": 0.05, "caption": 0.8, "ground": 0.2, "segment": 0.4, "describe": 0.2}
"""Per clip, each about its share of a GPU: then all groups are busy, which is the hardest to schedule."""
Busy = dict[str, list[tuple[float, float]]]


class Sleeper:
    """Takes its time for every clip, and writes down when it was busy."""

    def __init__(self, name: str, seconds: float, log: Path) -> None:
        self.seconds = seconds
        self.log = log / f"{name}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        self._note(time.time(), time.time())

    def run(self, batch: Sequence[Any]) -> Sequence[Any]:
        """The batch, after a while."""
        started = time.time()
        time.sleep(self.seconds * len(batch))
        self._note(started, time.time())
        return batch

    def _note(self, started: float, ended: float) -> None:
        with self.log.open("a") as file:
            file.write(f"{json.dumps([started, ended])}\n")


class Asleep(Annotate):
    """The step with sleepers for its stages."""

    seconds: ClassVar[dict[str, float]] = {}
    log: ClassVar[Path]

    def stage(self, name: str) -> Stage:
        return Sleeper(name, self.seconds[name], self.log)

    def rows(self, value: Any) -> list[Record]:
        return []


def busy_times(log: Path) -> dict[str, Busy]:
    """Per stage and worker, when it was busy; the first is the moment at which it was loaded."""
    found: dict[str, Busy] = defaultdict(dict)
    for file in log.iterdir():
        stage = file.name.partition("-")[0]
        found[stage][file.name] = [tuple(json.loads(line)) for line in file.read_text().splitlines()]
    return found


def utilisation(workers: Busy, start: float, end: float) -> float:
    """Share of the workers' time between two moments in which they were busy; one loaded later counts from then."""
    alive = busy = 0.0
    for spans in workers.values():
        loaded = max(start, spans[0][0])
        alive += max(0.0, end - loaded)
        busy += sum(max(0.0, min(end, stop) - max(loaded, begin)) for begin, stop in spans[1:])
    return busy / alive if alive else 0.0


def best_rate(operators: Sequence[OperatorConfig], seconds: dict[str, float], gpus: float) -> float:
    """Clips a second that the GPUs allow, were every share of them always busy."""
    return gpus / sum(operator.gpus * seconds[stage] for operator in operators for stage in operator.stages)


def main() -> None:
    """Run, read the logs, print."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="example: python benchmarks/gpu_packing.py --gpus 2 --clips 400",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--gpus", type=float, default=2, metavar="N", help="logical GPUs (default: 2)")
    parser.add_argument("--cpus", type=float, default=24, metavar="N", help="logical CPUs (default: 24)")
    parser.add_argument("--clips", type=int, default=400, metavar="N", help="clips (default: 400)")
    parser.add_argument("--unit", type=int, default=4, metavar="N", help="clips per unit (default: 4)")
    parser.add_argument(
        "--workers", nargs="+", default=[], metavar="STAGE=N", help="start so many; others grow from one"
    )
    parser.add_argument("--scale", type=float, default=1, metavar="X", help="times as long as the defaults")
    options = parser.parse_args()
    chosen = dict(pair.split("=") for pair in options.workers)
    config: Config = load_config(
        CONFIG_FOLDER / "kaleido.yaml",
        [f"runtime.annotate.unit_items={options.unit}", "runtime.annotate.unit_seconds=1e6"],
    )
    described = [
        {
            **operator.model_dump(mode="json"),
            "workers": int(count) if (count := chosen.get(operator.stages[0])) else None,
        }
        for operator in config.runtime.annotate.operators
    ]
    config = change(config, [f"runtime.annotate.operators={json.dumps(described)}"])
    operators = config.runtime.annotate.operators
    seconds = {stage: options.scale * value for stage, value in SECONDS.items()}
    show_machine()
    with tempfile.TemporaryDirectory(prefix="s2v-benchmark-") as name:
        log = Path(name) / "log"
        log.mkdir()
        Asleep.seconds, Asleep.log = seconds, log
        ray.init(
            num_cpus=options.cpus,
            num_gpus=options.gpus,
            include_dashboard=False,
            log_to_driver=False,
            logging_level="ERROR",
        )
        step = Asleep(config, Workspace.open(Path(name) / "workspace", create=True))
        items = [Item(f"{number:05d}", "clip", 1.0, number) for number in range(options.clips)]
        units = group(items, step.runtime.unit_seconds, step.runtime.unit_items)
        started = time.time()
        done = sum(result.items for result in RayExecutor(config, ["annotate"]).run(step, units))
        wall = time.time() - started
        ray.shutdown()
        assert done == options.clips
        found = busy_times(log)
    rows = []
    for operator in operators:
        (stage,) = operator.stages
        workers = found[stage]
        spans = [span for one in workers.values() for span in one[1:]]
        start, end = min(begin for begin, _ in spans), max(stop for _, stop in spans)
        used = [one for one in workers.values() if len(one) > 1]
        rows.append(
            (
                stage,
                operator.gpus,
                f"{seconds[stage]:.2f}",
                f"{len(used)} of {len(workers)}",
                len(used) / seconds[stage],
                100 * utilisation(workers, start, end),
                end - start,
            )
        )
    slowest = min(rows, key=lambda row: row[4])
    show(
        f"{options.clips} clips in units of {options.unit}, {options.gpus:g} logical GPUs",
        ["stage", "GPU share", "s per clip", "workers used", "clips/s they could", "busy, %", "s first to last"],
        rows,
    )
    best = best_rate(operators, seconds, options.gpus)
    first = min(begin for one in found["look"].values() for begin, _ in one[1:])
    last = max(stop for one in found["describe"].values() for _, stop in one[1:])
    rate = options.clips / (last - first)
    print(f"slowest: {slowest[0]}, busy {slowest[5]:.1f} % of its workers' time")
    print(f"{rate:.2f} clips/s; the GPUs allow {best:.2f}: {100 * rate / best:.0f} %. With start-up {wall:.0f} s.")


if __name__ == "__main__":
    main()
