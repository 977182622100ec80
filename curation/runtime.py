"""Ray: the only module that imports it. Carries a step's units through its operators.

Steps whose workers load models run on Ray Data: operators of different size and device, each with its own pool of
actors, fed as fast as the slowest takes. Steps without models are plain tasks: their workers need not import Ray Data,
nor does it need to start actors of its own, which for a short run was more work than the step's (docs/performance.md).
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import pickle
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from curation.config import Config, OperatorConfig
from curation.guard import Unit
from curation.operator import Operator, UnitResult, run_unit
from curation.steps import Step
from curation.workspace import Workspace
from models.errors import UserError

TOKEN = Path.home() / ".ray" / "auth_token"
"""Where Ray keeps the token of the clusters that it starts."""
if "RAY_ADDRESS" in os.environ and (TOKEN.exists() or "RAY_AUTH_TOKEN" in os.environ):
    # `ray start` asks for the token that it made; a driver sends it only if told so before it imports Ray.
    os.environ.setdefault("RAY_AUTH_MODE", "token")

import ray  # noqa: E402

CODE = ("curation", "stages", "models")
STARTS = 3
"""Times that a Ray of our own is tried to be started."""
SPARE_TASKS = 2
"""Tasks handed out beyond those that fit: the next one is there when a worker is done."""
RETRIES_PER_UNIT = 40
"""Ray's own cap on retries of a unit whose worker died. The guard gives up on the culprit long before."""


class NotEnoughResourcesError(UserError, RuntimeError):
    """A step's stages together ask for more than the cluster has: Ray would wait for ever."""


class NoClusterError(UserError, ConnectionError):
    """There is no Ray cluster where `RAY_ADDRESS` says."""


class RayExecutor:
    """Runs units on a Ray cluster: the one at ``RAY_ADDRESS``, or one of its own on this machine.

    It starts with the first unit: a run that finds nothing to do costs nothing.
    """

    def __init__(self, config: Config, steps: Sequence[str]) -> None:
        """``steps`` are the steps of this run: all of them are checked against the cluster before the first starts."""
        self.config = config
        self.steps = steps

    def run(self, step: Step, units: Sequence[Unit]) -> Iterator[UnitResult]:
        """Results in the order in which units finish. Starts Ray if nothing has yet; raises what :meth:`start` does."""
        self.start()
        return _as_tasks(step, units) if step.is_light else _as_stream(step, units)

    def start(self) -> None:
        """Connect to the cluster, or start Ray here, and check that every step of the run can be placed.

        Raises:
            NoClusterError: if nothing answers at ``RAY_ADDRESS``.
            NotEnoughResourcesError: if a step asks for more than there is.
        """
        if ray.is_initialized():
            return
        _connect(self.config)
        for name in self.steps:
            if (runtime := getattr(self.config.runtime, name, None)) is not None:
                check_resources(name, runtime.operators)


@contextlib.contextmanager
def ray_session(config: Config, steps: Sequence[str]) -> Iterator[RayExecutor]:
    """An executor for these steps; Ray is left, or stopped where it was started here, at the end."""
    try:
        yield RayExecutor(config, steps)
    finally:
        ray.shutdown()


def _connect(config: Config) -> None:
    address = os.environ.get("RAY_ADDRESS")
    options: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    if address:
        # On a cluster the workers get the driver's code; the packages it needs must be installed there.
        root = Path(__file__).resolve().parent.parent
        options |= {"address": address, "runtime_env": {"py_modules": [str(root / name) for name in CODE]}}
    else:
        store = config.runtime.store_gb
        options |= {"include_dashboard": False, "object_store_memory": int(store * 1e9) if store else None}
    # Ray's own log goes to its files; what concerns the user comes back as failures.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        with _silent_stderr():
            _init(options)
    except ConnectionError as error:
        raise NoClusterError(
            f"no Ray cluster lets us in at RAY_ADDRESS={address}: {error}. Is it up, and is its token in {TOKEN} "
            "or RAY_AUTH_TOKEN?"
        ) from None


def _init(options: dict[str, Any]) -> None:
    """Start Ray. Its processes give each other half a minute, which a busy machine may exceed: then once more."""
    for attempt in range(STARTS):
        try:
            ray.init(**options)
            return
        except ConnectionError:
            raise
        except Exception as error:
            ray.shutdown()
            if attempt + 1 == STARTS or "timed out" not in str(error):
                raise


@contextlib.contextmanager
def _silent_stderr() -> Iterator[None]:
    """Keep what Ray's processes say while they start off the terminal; what goes wrong is raised all the same."""
    # Ray forks only to start another program at once, which is what Lance's warning about forks allows.
    warnings.filterwarnings("ignore", message="lance is not fork-safe")
    kept = os.dup(2)
    try:
        with Path(os.devnull).open("w") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def check_resources(step: str, operators: Sequence[OperatorConfig]) -> None:
    """Compare what the operators need before any work can flow with what the cluster has.

    That is one worker of each, or as many as `workers` says where several operators hold theirs side by side.

    Raises:
        NotEnoughResourcesError: with both numbers.
    """
    have = ray.cluster_resources()
    for resource, key in (("CPU", "cpus"), ("GPU", "gpus")):
        counts = [operator.workers or 1 if len(operators) > 1 else 1 for operator in operators]
        need = sum(count * getattr(operator, key) for count, operator in zip(counts, operators, strict=True))
        if need > have.get(resource, 0):
            each = " + ".join(
                f"{f'{count} x ' if count > 1 else ''}{getattr(operator, key):g} ({'+'.join(operator.stages)})"
                for count, operator in zip(counts, operators, strict=True)
            )
            raise NotEnoughResourcesError(
                f"step {step} needs {need:g} {resource}s at once: {each}; the cluster has {have.get(resource, 0):g}. "
                f"Lower runtime.{step}.operators' {key}, put stages into one operator, or use a larger cluster."
            )


def _as_tasks(step: Step, units: Sequence[Unit]) -> Iterator[UnitResult]:
    """Each unit is one task. A few more than fit are handed out, so that none waits for us."""
    (operator,) = step.runtime.operators
    task = ray.remote(num_cpus=operator.cpus, num_gpus=operator.gpus or None, max_retries=RETRIES_PER_UNIT)(run_unit)
    arguments = ray.put(ray.cloudpickle.dumps((type(step), step.config, step.workspace)))
    waiting = iter(units)
    most = operator.workers or _fitting([operator], operator) + SPARE_TASKS
    running = [task.remote(arguments, pickle.dumps(unit)) for unit in itertools.islice(waiting, most)]
    while running:
        done, running = ray.wait(running)
        running.extend(task.remote(arguments, pickle.dumps(unit)) for unit in itertools.islice(waiting, len(done)))
        for result in ray.get(done):
            yield pickle.loads(result)  # noqa: S301 - written by our own workers a moment ago


def _as_stream(step: Step, units: Sequence[Unit]) -> Iterator[UnitResult]:
    """Units flow through one pool of actors per operator."""
    import ray.data

    _configure_data()
    blocks = [{"unit": pickle.dumps(unit)} for unit in units]
    stream = ray.data.from_items(blocks, override_num_blocks=len(blocks))
    for index, operator in enumerate(step.runtime.operators):
        stream = stream.map_batches(_OperatorActor, **_pool(step, index, operator, len(units)))
    for row in stream.iter_rows():
        yield pickle.loads(row["unit"])  # noqa: S301 - written by our own workers a moment ago


def _pool(step: Step, index: int, operator: OperatorConfig, units: int) -> dict[str, Any]:
    from ray.data import ActorPoolStrategy

    operators = step.runtime.operators
    most = min(units, operator.workers or _fitting(operators, operator))
    # Alone, a pool may as well start whole. Several grow from one worker each, as their work piles up: what each costs
    # is not known before, and pools that start whole leave nothing to those that start later. Who knows says so with
    # `workers`: these are started, and stay.
    least = most if operator.workers and len(operators) > 1 else 1
    first = most if len(operators) == 1 else least
    return {
        "fn_constructor_args": (type(step), step.config, step.workspace, index),
        "compute": ActorPoolStrategy(min_size=least, max_size=most, initial_size=first),
        "batch_size": 1,  # A block is one row: a unit. Ray Data wants a number wherever there are GPUs.
        "batch_format": "pyarrow",
        "num_cpus": operator.cpus,
        "num_gpus": operator.gpus or None,
        "max_restarts": -1,
        "max_task_retries": RETRIES_PER_UNIT,
    }


def _configure_data() -> None:
    from ray.data import DataContext

    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.enable_operator_progress_bars = False
    context.target_max_block_size = None  # A block is a unit: it must not be split.
    context.execution_options.preserve_order = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    # Retry caps have no named parameter yet; the pinned Ray takes them as it always did.
    warnings.filterwarnings("ignore", message="`ray_remote_args` is deprecated")


def _fitting(operators: Sequence[OperatorConfig], operator: OperatorConfig) -> int:
    """Workers of an operator that fit into the cluster once every other operator has one."""
    have = ray.cluster_resources()
    fits = [
        (have.get(resource, 0) - sum(getattr(other, key) for other in operators if other is not operator)) / share
        for resource, key in (("CPU", "cpus"), ("GPU", "gpus"))
        if (share := getattr(operator, key)) > 0
    ]
    return max(1, int(min(fits)))


class _OperatorActor:
    """A worker that keeps its stages, and so its models, from unit to unit."""

    def __init__(self, step: type[Step], config: Config, workspace: Workspace, index: int) -> None:
        self.operator = Operator(step, config, workspace, index)

    def __call__(self, block: pa.Table) -> pa.Table:
        (data,) = block.column("unit").to_pylist()
        unit = self.operator.run(pickle.loads(data))  # noqa: S301 - our own driver's
        result: Unit | UnitResult = self.operator.write(unit) if self.operator.is_last else unit
        return pa.table({"unit": pa.array([pickle.dumps(result)], pa.large_binary())})
