"""The ``s2v`` command's part for curation, and how it parses.

Each command imports what it needs, so that help and statistics answer at once.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from models.errors import UserError

DONE, TOO_MANY_FAILURES, BAD_USAGE = 0, 1, 2
NOT_WHOLE = 1
"""Weights are missing or changed, could not be fetched, or a backend does not work."""
OVERRIDE = re.compile(r"^[a-z_]+(\.[a-z_0-9]+)*=")


Add = Callable[[str, Callable[[argparse.Namespace], int], str, str], argparse.ArgumentParser]
"""Adds a command, given its name, its function, a sentence of help and an example, and returns its parser."""


def run(adders: Sequence[Callable[[Add], None]], arguments: Sequence[str] | None = None) -> int:
    """Parse and run a command; returns 0 when done, 1 when too much failed, 2 for bad usage or config.

    Args:
        adders: add the commands that there are.
        arguments: of the command line.
    """
    parser = _parser(adders)
    options, rest = parser.parse_known_args(arguments)
    # argparse gives up on positionals that follow an option's values: overrides may stand anywhere.
    if unknown := [word for word in rest if not (OVERRIDE.match(word) and hasattr(options, "overrides"))]:
        parser.error(f"unknown arguments: {' '.join(unknown)}")
    if rest:
        options.overrides = [*options.overrides, *rest]
    command: Callable[[argparse.Namespace], int] = options.command
    try:
        return command(options)
    except KeyboardInterrupt:
        print("interrupted; what was committed is kept: run the same command again to go on", file=sys.stderr)
        return 130
    except UserError as error:
        print(f"s2v: {error}", file=sys.stderr)
        return BAD_USAGE


class UsageError(UserError):
    """A command was called in a way that makes no sense."""


def _curate(options: argparse.Namespace) -> int:
    from curation.engine import STEPS

    if options.dry_run:
        return _dry_run(options)
    if not options.input:
        raise UsageError("say what to curate: s2v curate --input videos/ (or `s2v demo videos/` for something to try)")
    return _run(options, STEPS[: STEPS.index(options.until) + 1])


def _dry_run(options: argparse.Namespace) -> int:
    from rich.console import Console

    from curation.config import load_config
    from curation.dry_run import show_plan

    _, late = _split_overrides(options.input or [])
    show_plan(load_config(options.config, [*options.overrides, *late]), options.gpu_gb, Console())
    return DONE


def _run_step(options: argparse.Namespace) -> int:
    if options.step == "ingest" and not options.input:
        raise UsageError("s2v run ingest needs --input")
    return _run(options, [options.step])


def _run(options: argparse.Namespace, steps: Sequence[str]) -> int:
    from rich.console import Console

    from curation.config import load_config
    from curation.engine import run_steps
    from curation.progress import Progress
    from curation.stats import collect, show, show_failures
    from curation.workspace import Workspace
    from models.registry import check_weights
    from stages.ingest import list_inputs

    inputs, late = _split_overrides(options.input or [])
    config = load_config(options.config, [*options.overrides, *late])
    for backend in config.models.chosen().values():
        check_weights(backend, config.models.root)
    # Listed before the workspace is made: a mistyped input must not leave an empty one behind.
    videos = list_inputs(inputs) if "ingest" in steps else []
    console = Console()
    workspace = Workspace.open(options.workspace, create=True)
    with workspace.locked():
        from curation.runtime import ray_session

        with ray_session(config, steps) as executor:
            reports = run_steps(
                steps,
                config,
                workspace,
                executor,
                Progress(console),
                videos=videos,
                retry_failed=options.retry_failed,
            )
    show(collect(workspace), workspace, console)
    items = sum(report.items for report in reports if report.step != "select")
    failed = sum(report.failed for report in reports)
    if failed > options.max_failed * items:
        show_failures(workspace, console)
        console.print(
            f"{failed} of {items} items failed, more than --max-failed {options.max_failed:g} allows", style="red"
        )
        return TOO_MANY_FAILURES
    return DONE


def _stats(options: argparse.Namespace) -> int:
    from rich.console import Console

    from curation.stats import collect, show
    from curation.workspace import Workspace

    if options.compare:
        from curation.compare import compare, show_comparison

        one, other = map(Workspace.open, options.compare)
        show_comparison(compare(one, other), [one.uri, other.uri], Console())
        return DONE
    workspace = Workspace.open(options.workspace)
    show(collect(workspace), workspace, Console())
    return DONE


def _failures(options: argparse.Namespace) -> int:
    from rich.console import Console

    from curation.stats import show_failures
    from curation.workspace import Workspace

    show_failures(Workspace.open(options.workspace), Console())
    return DONE


def _select(options: argparse.Namespace) -> int:
    from rich.console import Console

    from curation.config import load_config, select_with
    from curation.what_if import show_what_if
    from curation.workspace import Workspace

    config = load_config(options.config, options.overrides)
    show_what_if(Workspace.open(options.workspace), config, select_with(config, options.what_if), Console())
    return DONE


def _calibrate(options: argparse.Namespace) -> int:
    from rich.console import Console

    from curation.calibration.bounds import propose, show
    from curation.calibration.plot import draw
    from curation.workspace import Workspace

    if not 0 < options.far < 0.5:
        raise UsageError(f"--far {options.far:g} is no rate of false accepts: it lies between 0 and 0.5")
    proposal = propose(Workspace.open(options.workspace), options.pairs, options.far, across=options.across_videos)
    # In a log, lines that are not broken can be searched.
    show(proposal, Console(width=None if sys.stdout.isatty() else 200))
    draw(proposal, options.output)
    print(f"# {options.output}: cosines and errors of every category")
    return DONE


def _show(options: argparse.Namespace) -> int:
    from rich.console import Console

    from curation.provenance import show_row
    from curation.workspace import Workspace

    return DONE if show_row(Workspace.open(options.workspace), options.id, Console()) else BAD_USAGE


def _sheet(options: argparse.Namespace) -> int:
    from curation.sheets.proofs import draw_proofs
    from curation.sheets.samples import draw_sheet
    from curation.workspace import Workspace

    if options.proofs is not None:
        drawn = draw_proofs(Workspace.open(options.workspace), options.output, kinds=options.proofs, most=options.most)
        print(f"{options.output}: references of {drawn} subjects")
        return DONE
    drawn = draw_sheet(Workspace.open(options.workspace), options.output, rejected=options.rejected, most=options.most)
    print(f"{options.output}: {drawn} {'dropped' if options.rejected else 'samples'}")
    return DONE


def _demo(options: argparse.Namespace) -> int:
    from curation.demo import build_demo

    videos = build_demo(options.folder)
    print(f"{len(videos)} demo videos in {options.folder}")
    return DONE


def _models(options: argparse.Namespace) -> int:
    import os

    from rich.console import Console

    from curation.config import load_config
    from curation.weights import check_backends, fetch_weights, show_weights

    for name, where in (("lock", ("fetch",)), ("verify", ("list", "fetch"))):
        if getattr(options, name) and options.action not in where:
            raise UsageError(f"--{name} goes with `s2v models {'` or `s2v models '.join(where)}`")
    config = load_config(options.config, options.overrides).models
    # In a log, lines that are not broken can be searched.
    console = Console(width=None if sys.stdout.isatty() else 200)
    if options.action == "list":
        whole = show_weights(config, console, rehash=options.verify)
    elif options.action == "fetch":
        endpoint = os.environ.get("HF_ENDPOINT")
        whole = fetch_weights(config, console, lock=options.lock, rehash=options.verify, endpoint=endpoint)
    else:
        whole = check_backends(config, console)
    return DONE if whole else NOT_WHOLE


def _split_overrides(values: Sequence[str]) -> tuple[list[str], list[str]]:
    """``--input a b split.max_s=6`` takes all three words: tell overrides from inputs."""
    late = [value for value in values if OVERRIDE.match(value) and not Path(value).exists()]
    return [value for value in values if value not in late], late


def _parser(adders: Sequence[Callable[[Add], None]]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="s2v",
        description="Raw videos in, cross-paired shards for subject-to-video training out, and their trainer.",
        epilog="example: s2v demo videos && s2v curate --input videos --workspace workspace && s2v train",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, run: Callable[[argparse.Namespace], int], text: str, example: str) -> argparse.ArgumentParser:
        command = commands.add_parser(
            name,
            help=text[0].lower() + text[1:].rstrip("."),
            description=text,
            epilog=f"example: {example}",
            formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        )
        command.set_defaults(command=run)
        return command

    for adder in adders:
        adder(add)
    return parser


def add_commands(add: Add) -> None:
    """The commands of curation."""

    def add_workspace(command: argparse.ArgumentParser) -> None:
        command.add_argument("--workspace", default="workspace", metavar="W", help="folder or URI of tables and shards")

    def add_config(command: argparse.ArgumentParser) -> None:
        command.add_argument(
            "--config", default=None, metavar="FILE", help="YAML file; without one configs/embedded.yaml"
        )
        command.add_argument(
            "overrides", nargs="*", metavar="key=value", help="changes to the config, such as split.max_s=6"
        )

    def add_run(command: argparse.ArgumentParser) -> None:
        command.add_argument(
            "--input",
            nargs="+",
            metavar="PATH_OR_URI",
            help="videos, folders, globs, s3://-like URIs, or manifests (.jsonl, .csv, .parquet with a column `uri`)",
        )
        add_workspace(command)
        add_config(command)
        command.add_argument("--retry-failed", action="store_true", help="try again what failed before")
        command.add_argument(
            "--max-failed",
            type=float,
            default=0.1,
            metavar="SHARE",
            help="exit with 1 if more than this share of the items failed",
        )

    steps = ["ingest", "split", "annotate", "select", "references", "encode", "pack"]
    curate = add(
        "curate",
        _curate,
        "Turn raw videos into shards. Running again resumes, and takes up only what is new or changed.",
        "s2v curate --input videos/ --workspace workspace --config configs/cpu.yaml models.root=weights",
    )
    add_run(curate)
    curate.add_argument("--until", choices=steps, default="pack", help="stop after this step")
    curate.add_argument(
        "--dry-run",
        action="store_true",
        help="check config and weights and show the plan: workers, GPU shares, memory and the order of cost",
    )
    curate.add_argument(
        "--gpu-gb", type=float, default=80, metavar="GB", help="memory of a GPU that the plan is held against"
    )
    run = add(
        "run", _run_step, "Run a single step on what the tables hold.", "s2v run references --workspace workspace"
    )
    run.add_argument("step", choices=steps)
    add_run(run)
    stats = add(
        "stats", _stats, "Show the funnel: what went in, what is left, and why.", "s2v stats --workspace workspace"
    )
    stats.add_argument(
        "--compare",
        nargs=2,
        metavar=("W1", "W2"),
        help="show two workspaces side by side instead: what differs, and why",
    )
    add_workspace(stats)
    failures = add("failures", _failures, "List what could not be done, and why.", "s2v failures --workspace workspace")
    add_workspace(failures)
    select = add(
        "select",
        _select,
        "Tell what other thresholds would let through, from the stored scores; nothing is changed.",
        "s2v select --what-if subject.min_area=0.02 clip.min_motion=0.5",
    )
    select.add_argument("--what-if", nargs="+", default=[], metavar="name=value", help="thresholds to try")
    add_workspace(select)
    add_config(select)
    calibrate = add(
        "calibrate",
        _calibrate,
        "Propose the bounds of references.cross_clip from the workspace's own subjects; no network runs.",
        "s2v calibrate --workspace workspace --pairs pairs.csv -o calibration.png",
    )
    calibrate.add_argument(
        "--pairs", type=Path, metavar="CSV", help="labelled pairs: columns a, b (subject ids) and same (1 or 0)"
    )
    calibrate.add_argument(
        "-o", "--output", type=Path, default=Path("calibration.png"), metavar="PNG", help="plot to write"
    )
    calibrate.add_argument(
        "--far", type=float, default=0.0001, metavar="RATE", help="share of different pairs that may pass for the same"
    )
    calibrate.add_argument(
        "--across-videos",
        action="store_true",
        help="no individual is in two videos: count subjects of different videos as different",
    )
    add_workspace(calibrate)
    show = add(
        "show",
        _show,
        "Show a row of any table by its id, and what it was made from.",
        "s2v show 3f2a9c01d4e5b678",
    )
    show.add_argument("id", help="id of a source, video, clip, subject, reference or failure")
    add_workspace(show)
    sheet = add(
        "sheet",
        _sheet,
        "Draw a contact sheet: per sample a frame with its masks, the caption, and its references.",
        "s2v sheet -o sheet.png --rejected blurry",
    )
    sheet.add_argument("-o", "--output", type=Path, default=Path("sheet.png"), metavar="PNG", help="file to write")
    sheet.add_argument("--rejected", metavar="REASON", help="draw what was dropped for this reason instead")
    sheet.add_argument(
        "--proofs",
        nargs="*",
        metavar="KIND",
        help="draw each subject with its references of these kinds (of all, if none is named), passed and dropped, "
        "with what was measured of them",
    )
    sheet.add_argument("--most", type=int, default=24, metavar="N", help="rows at most")
    add_workspace(sheet)
    models = add(
        "models",
        _models,
        "List the weights of a config, fetch them from the model hub, or check that each backend works with them.",
        "s2v models list --config configs/cpu.yaml models.root=weights",
    )
    models.add_argument(
        "action",
        choices=["list", "fetch", "check"],
        help="list: what is there, and its licence; fetch: what is not there; check: load and call each backend",
    )
    models.add_argument(
        "--lock", type=Path, metavar="FILE", help="fetch exactly what this file names, and add what it does not name"
    )
    models.add_argument("--verify", action="store_true", help="read the files again and compare them with their sums")
    add_config(models)
    demo = add(
        "demo", _demo, "Build the demo videos from photographs that ship with scikit-image.", "s2v demo demo-videos"
    )
    demo.add_argument("folder", type=Path, help="where to put them")
