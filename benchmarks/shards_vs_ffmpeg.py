"""From videos to shards, against ffmpeg alone doing the same encoding.

Videos are cut every few seconds, and every clip is encoded and packed. The engine's time includes opening a new
workspace, probing and hashing the videos, cutting, the verdicts, encoding, checking what was encoded, the ledger of all
that, packing and tidying. It does not include starting Ray, nor the subject models: the rows that these would write are
planted between the steps, off the clock. ffmpeg's time is that of one command per clip writing one MP4 file.
"""

from __future__ import annotations

import argparse
import contextlib
import subprocess
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import median as middle
from unittest import mock

import imageio_ffmpeg
from _inputs import looped_demo, own_or, plant
from _measure import Stopwatch, cpu_seconds, cpus, median, running_ray, show, show_machine, silent

from curation.config import Config, load_config
from curation.engine import Executor, make_step, run_step
from curation.shards import read_manifest
from curation.steps import clips_of, write_verdicts
from curation.workspace import Workspace
from stages.ingest import list_inputs
from stages.media import UnreadableVideo, encode_clip, local_path
from stages.records import Clip, Source

Pair = tuple[Clip, Source]
STEPS = ("ingest", "split", "select", "encode", "pack")


@dataclass
class Round:
    """What a run took: seconds by step, and processor time of everything together."""

    watch: Stopwatch
    cpu: float

    @property
    def wall(self) -> float:
        """Seconds of all steps."""
        return sum(self.watch.seconds.values())


def engine(videos: Sequence[Path], config: Config, folder: Path, executor: Executor) -> tuple[Round, Workspace]:
    """A whole run into a new workspace."""
    watch = Stopwatch()
    before, planting = cpu_seconds(), 0.0
    with watch.time("open workspace"):
        workspace = Workspace.open(folder, create=True)
    for name in STEPS:
        if name == "select":
            started = cpu_seconds()
            plant(workspace, config)
            planting = cpu_seconds() - started
        with watch.time(name):
            found = list_inputs([str(video) for video in videos]) if name == "ingest" else ()
            step = make_step(name, config, workspace, found)
            if step is None:
                write_verdicts(workspace, config)
            elif (report := run_step(step, executor, silent())).failed:
                raise SystemExit(f"{report.failed} items failed in {name}")
    with watch.time("tidy"):
        workspace.tidy()
    return Round(watch, cpu_seconds() - before - planting), workspace


def plain_commands(pairs: Sequence[Pair], config: Config, folder: Path) -> list[list[str]]:
    """What a person would type for the same clips: same size, rate, codec, quality and speed."""
    pack = config.pack
    fit = f"'min({pack.width},iw)':'min({pack.height},ih)'"
    filters = f"fps={pack.fps:g},scale={fit}:force_original_aspect_ratio=decrease:force_divisible_by=2"
    return [
        [
            *(imageio_ffmpeg.get_ffmpeg_exe(), "-nostdin", "-y", "-loglevel", "error", "-threads", "1"),
            *(
                "-ss",
                f"{clip.start_s:.6f}",
                "-t",
                f"{clip.end_s - clip.start_s:.6f}",
                "-i",
                str(local_path(source.uri)),
            ),
            *("-vf", filters, "-an", "-c:v", "libx264", "-preset", pack.preset, "-crf", str(pack.crf)),
            *("-threads", "1", "-pix_fmt", "yuv420p", "-movflags", "+faststart", str(folder / f"{clip.clip_id}.mp4")),
        ]
        for clip, source in pairs
    ]


def own_commands(pairs: Sequence[Pair], config: Config, folder: Path) -> list[list[str]]:
    """The very commands that the engine runs, with other names for their outputs."""
    commands = []
    with mock.patch("stages.media.subprocess.run", return_value=subprocess.CompletedProcess([], 0)) as run:
        for clip, source in pairs:
            pack, path = config.pack, local_path(source.uri)
            assert path is not None
            # Nothing is encoded here, which encode_clip takes for a clip without a frame.
            with contextlib.suppress(UnreadableVideo):
                encode_clip(
                    path,
                    clip.start_s,
                    clip.end_s,
                    width=pack.width,
                    height=pack.height,
                    fit=pack.fit,
                    fps=pack.fps,
                    crf=pack.crf,
                    preset=pack.preset,
                    timeout_s=900,
                )
            *command, _ = run.call_args.args[0]
            commands.append([*command, "-y", str(folder / f"{clip.clip_id}.mp4")])
    return commands


def bare(commands: Sequence[Sequence[str]], processes: int) -> Round:
    """Run commands, so many at a time."""
    watch, before = Stopwatch(), cpu_seconds()
    with watch.time("ffmpeg"), ThreadPoolExecutor(processes) as pool:
        list(pool.map(lambda command: subprocess.run(command, check=True, capture_output=True), commands))
    return Round(watch, cpu_seconds() - before)


def main() -> None:
    """Build, measure in turns, print."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="example: python benchmarks/shards_vs_ffmpeg.py --count 12 --seconds 30 --repeats 3",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--videos", type=Path, metavar="FOLDER", help="measure on these instead of built ones")
    parser.add_argument("--count", type=int, default=12, metavar="N", help="videos to build (default: 12)")
    parser.add_argument("--seconds", type=float, default=30, metavar="S", help="length of each (default: 30)")
    parser.add_argument("--clip", type=float, default=5, metavar="S", help="length of a clip (default: 5)")
    parser.add_argument("--repeats", type=int, default=3, metavar="N", help="rounds, each in a new Ray (default: 3)")
    parser.add_argument(
        "--processes", type=int, default=cpus(), metavar="N", help="ffmpeg commands at a time (default: one per CPU)"
    )
    options = parser.parse_args()
    stride = ("split.by=stride", f"split.max_s={options.clip}", f"split.min_s={options.clip / 2}")
    config = load_config(overrides=stride)
    show_machine()
    plain: list[Round] = []
    own: list[Round] = []
    first: list[Round] = []
    second: list[Round] = []
    with tempfile.TemporaryDirectory(prefix="s2v-benchmark-") as name:
        folder = Path(name)
        (folder / "mp4").mkdir()
        videos = own_or(options.videos, [] if options.videos else looped_demo(folder, options.count, options.seconds))
        for number in range(options.repeats):
            with running_ray(config, STEPS) as executor:
                for name, rounds in (("first", first), ("second", second)):
                    done, workspace = engine(videos, config, folder / f"{name}-{number}", executor)
                    rounds.append(done)
            pairs = list(clips_of(workspace))
            for commands, rounds in ((plain_commands, plain), (own_commands, own)):
                rounds.append(bare(commands(pairs, config, folder / "mp4"), options.processes))
        samples = sum(read_manifest(workspace.path("shards"))["samples"].values())
    seconds = sum(clip.end_s - clip.start_s for clip, _ in pairs)
    measured = {
        f"ffmpeg as one would type it, {options.processes} at a time": plain,
        "ffmpeg with the engine's own commands": own,
        "engine, Ray just started": first,
        "engine, a second run in that Ray": second,
    }
    wall, cpu = (middle([getattr(done, what) for done in plain]) for what in ("wall", "cpu"))
    rows = []
    for label, rounds in measured.items():
        walls, works = [done.wall for done in rounds], [done.cpu for done in rounds]
        rows.append((label, median(walls), middle(walls) / wall, median(works), middle(works) / cpu))
    show(
        f"{len(videos)} videos into {len(pairs)} clips ({samples} samples in shards), {seconds:.0f} s of video",
        ["", "seconds", "ratio", "CPU seconds", "CPU ratio"],
        rows,
        f"medians of {options.repeats}",
    )
    steps = [
        (name, *(middle([done.watch.seconds[name] for done in rounds]) for rounds in (first, second)))
        for name in first[0].watch.seconds
    ]
    show("Seconds per step of the engine", ["step", "Ray just started", "second run"], steps)


if __name__ == "__main__":
    main()
