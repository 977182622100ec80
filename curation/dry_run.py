"""What a run would do: which workers hold which models, what that takes of a GPU, and in which order it costs.

Nothing is started: not Ray, no network, no GPU. Memory is that of the weights as they lie on disk, or as they are known
to be where they are missing; what a network needs besides for its work depends on batch and picture size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from curation.config import Config, OperatorConfig
from curation.engine import STEPS, make_step
from curation.weights import bytes_of
from curation.workspace import Workspace
from models.registry import BackendConfig, MissingWeightsError, missing_weights
from models.weights.catalogue import repository_entry
from models.weights.costs import Cost, cost_of

GPU_TFLOPS = 400.0
"""Rate at which costs are turned into time: 40 % of an H100's 989 TFLOP/s in bf16."""
SUBJECTS = 2
"""Subjects of a clip that costs are told for."""


@dataclass(frozen=True, slots=True)
class Held:
    """A backend that a worker holds: for a task, with the GB of its weights."""

    task: str
    config: BackendConfig
    gb: float


@dataclass(frozen=True, slots=True)
class Planned:
    """A group of stages of a step: what each of its workers gets and holds."""

    step: str
    operator: OperatorConfig
    held: tuple[Held, ...]

    @property
    def gb(self) -> float:
        """Weights of one worker."""
        return sum(held.gb for held in self.held)

    @property
    def per_gpu(self) -> int:
        """Workers that share one GPU; 0 for those that use none."""
        share = self.operator.gpus
        return 0 if share == 0 else max(1, int(1 / share + 1e-9))


@dataclass(frozen=True, slots=True)
class Expense:
    """What a model costs per clip, counted in floating point operations."""

    task: str
    backend: str
    repository: str
    times: float
    """How often it runs per clip, about."""
    tflop: float
    """Of one run."""

    @property
    def tflop_per_clip(self) -> float:
        """Of all its runs on a clip."""
        return self.times * self.tflop


def plan(config: Config, steps: Sequence[str] = STEPS) -> list[Planned]:
    """The workers of each step, in order."""
    # A step's plan for its workers follows from the config alone.
    nowhere = Workspace("nowhere")
    chosen = config.models.chosen()
    planned = []
    for name in steps:
        step = make_step(name, config, nowhere)
        for operator in step.runtime.operators if step else ():
            tasks = [task for stage in operator.stages for task in step.tasks(stage)] if step else []
            held = tuple(
                Held(task, chosen[task], _weights_gb(chosen[task], config)) for task in tasks if task in chosen
            )
            planned.append(Planned(name, operator, held))
    return planned


def expenses(config: Config) -> list[Expense]:
    """What is known of the costs of a config's models, the dearest first."""
    found = [
        Expense(task, backend.backend, repository.name, _times(config, task, cost.per), _tflop(backend, cost))
        for task, backend in config.models.chosen().items()
        for repository in backend.repositories()
        if (cost := cost_of(repository.name)) is not None
    ]
    return sorted(found, key=lambda expense: -expense.tflop_per_clip)


def show_plan(config: Config, gpu_gb: float, console: Console) -> None:
    """Print workers, memory and costs.

    Args:
        config: of the run.
        gpu_gb: memory of one GPU, to hold the plan against.
        console: to print on.

    Raises:
        MissingWeightsError: after printing, if weights are not there; names them all.
    """
    planned = plan(config)
    console.print(_workers(planned, gpu_gb))
    for line in _sums(planned):
        console.print(line, highlight=False)
    console.print(_costs(config))
    root = config.models.root
    missing = {path for backend in config.models.chosen().values() for path in missing_weights(backend, root)}
    if lacking := sorted(str(path.relative_to(root)) for path in missing):
        raise MissingWeightsError(
            f"not there under models.root ({str(root)!r}): {', '.join(lacking)}. `s2v models fetch` with this config "
            "gets what is on the model hub; docs/models.md says where the rest comes from."
        )


def _workers(planned: Sequence[Planned], gpu_gb: float) -> Table:
    table = _table(
        "Workers",
        ["step and stages", "models"],
        ["CPUs", "GPUs", "batch", "GB", "on a GPU"],
        "GB: weights alone. On a GPU: workers that share one, and their weights together.",
    )
    for group in planned:
        on_gpu = group.gb * group.per_gpu
        too_much = f" > {gpu_gb:g}" if on_gpu > gpu_gb else ""
        table.add_row(
            f"{group.step}: {'+'.join(group.operator.stages)}",
            "\n".join(held.config.backend for held in group.held),
            f"{group.operator.cpus:g}",
            f"{group.operator.gpus:g}" if group.operator.gpus else "",
            str(group.operator.batch),
            f"{group.gb:.1f}" if group.held else "",
            f"{group.per_gpu}: {on_gpu:.1f}{too_much}" if group.per_gpu else "",
            style="red" if too_much else None,
        )
    return table


def _sums(planned: Sequence[Planned]) -> Iterator[str]:
    yield "Needed at least, one worker of each group:"
    for step in dict.fromkeys(group.step for group in planned):
        groups = [group for group in planned if group.step == step]
        cpus, gpus = (sum(getattr(group.operator, key) for group in groups) for key in ("cpus", "gpus"))
        gb = sum(group.gb for group in groups if group.operator.gpus)
        yield f"  {step}: {cpus:g} CPUs" + (f", {gpus:g} GPUs with {gb:.1f} GB of weights" if gpus else "")


def _costs(config: Config) -> Table:
    table = _table(
        "Order of cost per clip",
        ["backend", "weights"],
        ["TFLOP", "runs", "GPU ms"],
        f"Operations as counted (benchmarks/model_costs.py); ms are an estimate, at {GPU_TFLOPS:g} TFLOP/s.\n"
        f"For a clip of {SUBJECTS} subjects. Networks that nothing was counted for are left out.",
    )
    for expense in expenses(config):
        table.add_row(
            expense.backend,
            expense.repository.rpartition("/")[2],
            f"{expense.tflop:,.3g}" if expense.tflop < 1000 else f"{expense.tflop:,.0f}",
            f"{expense.times:g}",
            f"{_ms(expense):,.0f}" if _ms(expense) >= 100 else f"{_ms(expense):.1f}",
        )
    return table


def _table(title: str, words: Sequence[str], numbers: Sequence[str], caption: str) -> Table:
    table = Table(
        box=SIMPLE_HEAD,
        collapse_padding=True,
        pad_edge=False,
        title=title,
        title_justify="left",
        caption=caption,
        caption_justify="left",
    )
    for column in words:
        table.add_column(column, no_wrap=True)
    for column in numbers:
        table.add_column(column, justify="right", no_wrap=True)
    return table


def _ms(expense: Expense) -> float:
    return 1000 * expense.tflop_per_clip / GPU_TFLOPS


def _times(config: Config, task: str, per: str) -> float:
    """Runs per clip: what the stages ask of a task."""
    keyframes, judged = config.annotate.look.keyframes, config.annotate.score.judged_frames
    kept, references = config.annotate.describe.keep_frames, config.references
    scenes = (references.inpainted.count + references.swapped.count) * SUBJECTS
    on_white = (references.augmented.count + references.moved.count) * SUBJECTS
    cut = (1 + references.other_frame.count + references.cross_clip.count) * SUBJECTS
    runs: dict[str, float] = {
        "aesthetic": judged,
        "safety": judged + cut + scenes + on_white,
        "detector": keyframes + (scenes if config.verify.second_subjects else 0),
        "segmenter": keyframes,
        "embedder": keyframes * SUBJECTS + scenes + on_white,
        "image_text": kept * SUBJECTS + cut + scenes + on_white,
        "inpainter": scenes,
        "editor": references.moved.count * SUBJECTS,
    }
    return 1 if per == "clip" else runs.get(task, 1)


def _tflop(backend: BackendConfig, cost: Cost) -> float:
    return cost.tflop + (cost.following if backend.backend == "sam2_video" else 0)


def _weights_gb(backend: BackendConfig, config: Config) -> float:
    paths = [path for path in backend.weights(config.models.root) if path.exists()]
    if paths:
        return sum(map(bytes_of, paths)) / 1e9
    known = (repository_entry(repository.name) for repository in backend.repositories())
    return sum(entry.gb for entry in known if entry and entry.gb)
