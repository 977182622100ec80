"""From videos to scored and described subjects, against decoding the same videos once.

Every step runs in this process, without Ray, with one thread per library as a worker has. The yardstick is one pass of
PyAV over every frame, in one thread, without turning frames into RGB: no curation can do without that. ``split``
watches every frame; ``look`` decodes from the seek point before each clip's first keyframe to its last.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median as middle
from typing import Any

import av
from _inputs import demo_videos, own_or
from _measure import Stopwatch, Timed, show, show_machine, silent, timed

from curation.config import Config, load_config
from curation.engine import SerialExecutor, make_step, run_step
from curation.guard import Stage
from curation.steps import Annotate, Split, Step
from curation.workspace import Workspace
from stages.ingest import list_inputs
from stages.records import Annotation, Clip, Score, Source, Subject

MODELS = ("shots", "text", "captioner", "detector", "segmenter", "faces", "embedder", "image_text")


def decode(videos: Sequence[Path]) -> None:
    """Decode every frame once and look at none."""
    for video in videos:
        with av.open(str(video)) as container:
            container.streams.video[0].codec_context.thread_count = 1
            for _ in container.decode(video=0):
                pass


def timed_step(step: type[Step], watch: Stopwatch) -> type[Step]:
    """The step with its stages and its models on the clock."""

    class OnTheClock(step):  # type: ignore[misc, valid-type]
        def stage(self, name: str) -> Stage:
            with watch.time("load models"):
                return Timed(super().stage(name), watch, f"{self.name}/{name}")

        def model(self, task: str) -> Any:
            loaded = super().model(task)
            return None if loaded is None else Timed(loaded, watch, f"model {task}")

    return OnTheClock


def run(videos: Sequence[Path], config: Config, folder: Path, watch: Stopwatch) -> Workspace:
    """Ingest off the clock, then split and annotate on it."""
    workspace = Workspace.open(folder, create=True)
    ingest = make_step("ingest", config, workspace, list_inputs([str(video) for video in videos]))
    assert ingest is not None
    run_step(ingest, SerialExecutor(), silent())
    for step in (Split, Annotate):
        with watch.time(f"step {step.name}"):
            report = run_step(timed_step(step, watch)(config, workspace), SerialExecutor(), silent())
        if report.failed:
            raise SystemExit(f"{report.failed} items failed in {step.name}; see them with `s2v failures`")
    return workspace


def measure(label: str, videos: Sequence[Path], config: Config, folder: Path, repeats: int) -> None:
    """One profile's table."""
    decoding: list[float] = []
    watches: list[Stopwatch] = []
    for number in range(repeats):
        decoding.append(timed(lambda: decode(videos)))
        watches.append(Stopwatch())
        workspace = run(videos, config, folder / f"{label}-{number}", watches[-1])
    bare = middle(decoding)
    seconds = sum(source.duration_s for source in workspace.records(Source))
    clips = workspace.table(Clip).count_rows("dropped IS NULL")

    def of(name: str) -> float:
        return middle([watch.seconds.get(name, 0.0) for watch in watches])

    def row(name: str, spent: float, *, indent: str = "") -> tuple[object, ...]:
        return f"{indent}{name}", spent, spent / bare, seconds / max(spent, 1e-9), clips / max(spent, 1e-9)

    split, annotate, load = of("step split"), of("step annotate"), of("load models")
    rows: list[Sequence[object]] = [row("decode once (PyAV)", bare), ()]
    rows += [
        row("split", split),
        row(f"of it {_model(config, 'shots')}, decoding included", of("model shots"), indent="  "),
    ]
    rows += [(), row("annotate", annotate)]
    for stage, tasks in (
        ("look", ()),
        ("score", ("text", "aesthetic", "safety")),
        ("caption", ("captioner",)),
        ("ground", ("detector",)),
        ("segment", ("segmenter",)),
        ("describe", ("faces", "embedder", "image_text")),
    ):
        rows.append(row(stage, of(f"annotate/{stage}"), indent="  "))
        rows += [
            row(f"of it {_model(config, task)}", spent, indent="    ")
            for task in tasks
            if (spent := of(f"model {task}")) > 0
        ]
    named = sum(of(name) for name in watches[0].seconds if name.startswith(("split/", "annotate/")))
    rows += [(), row("loading models, both steps", load), row("tables and units", split + annotate - named - load)]
    rows += [row("split + annotate without loading", split + annotate - load)]
    found = f"{workspace.table(Subject).count_rows()} subjects in {workspace.table(Annotation).count_rows()} clips"
    show(
        f"{label}: {seconds:.0f} s of video, {clips} clips, {workspace.table(Score).count_rows()} scored; {found}",
        ["", "seconds", "x decoding", "video s / s", "clips / s"],
        rows,
        f"medians of {repeats}",
    )


def main() -> None:
    """Build, measure each profile, print."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="example: python benchmarks/annotate_vs_decode.py --models-root weights --repeats 2",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--videos", type=Path, metavar="FOLDER", help="measure on these instead of the demo's")
    parser.add_argument("--most", type=int, metavar="N", help="only the first N videos")
    parser.add_argument(
        "--models-root", type=Path, metavar="FOLDER", help="also measure configs/cpu.yaml on its weights"
    )
    parser.add_argument("--repeats", type=int, default=2, metavar="N", help="rounds (default: 2)")
    options = parser.parse_args()
    profiles = {"embedded": load_config()}
    if options.models_root:
        cpu = Path(__file__).resolve().parent.parent / "configs" / "cpu.yaml"
        profiles["cpu"] = load_config(cpu, [f"models.root={options.models_root.resolve()}"])
    show_machine()
    with tempfile.TemporaryDirectory(prefix="s2v-benchmark-") as name:
        folder = Path(name)
        videos = own_or(options.videos, [] if options.videos else demo_videos(folder / "demo"))[: options.most]
        for label, config in profiles.items():
            measure(label, videos, config, folder, options.repeats)


def _model(config: Config, task: str) -> str:
    return config.models.chosen()[task].backend if task in config.models.chosen() else task


if __name__ == "__main__":
    main()
