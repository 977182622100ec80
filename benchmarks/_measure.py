"""What is measured: seconds by name, memory of a process and all that it started, bytes on disk; and tables of it."""

from __future__ import annotations

import io
import os
import statistics
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil
from rich.console import Console
from rich.table import Table

from curation.config import Config
from curation.engine import Executor
from curation.progress import Progress

MB = 1e6
SAMPLE_EVERY_S = 0.2


class Stopwatch:
    """Adds up seconds by name."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)

    @contextmanager
    def time(self, name: str) -> Iterator[None]:
        """Count the block's time, also where it raises."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] += time.perf_counter() - started


class Timed:
    """An object whose methods' time is added up under one name; all else of it shows through."""

    def __init__(self, inner: Any, watch: Stopwatch, name: str) -> None:
        self._inner, self._watch, self._name = inner, watch, name

    def __getattr__(self, attribute: str) -> Any:
        value = getattr(self._inner, attribute)
        if not callable(value):
            return value

        def call(*arguments: Any, **named: Any) -> Any:
            with self._watch.time(self._name):
                return value(*arguments, **named)

        return call


@dataclass(slots=True)
class Peak:
    """Largest resident set sizes seen, in bytes.

    Pages that processes share, such as those of libraries, count once per process.
    """

    driver: int = 0
    """The watched process itself."""
    worker: int = 0
    """The largest of Ray's worker processes."""
    workers: int = 0
    """All of Ray's worker processes together, at one moment."""
    tree: int = 0
    """Everything at one moment: driver, workers, the ffmpeg processes that they start, Ray's own servers."""


class MemoryWatch:
    """Follows the memory of a process and its descendants from a thread until the block ends."""

    def __init__(self, pid: int | None = None) -> None:
        self.peak = Peak()
        self._root = psutil.Process(pid)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()

    def _follow(self) -> None:
        while not self._ended.wait(SAMPLE_EVERY_S):
            try:
                driver = self._root.memory_info().rss
                others = [_size(process) for process in self._root.children(recursive=True)]
            except psutil.NoSuchProcess:
                return
            workers = [size for size, is_worker in others if is_worker]
            peak = self.peak
            peak.driver = max(peak.driver, driver)
            peak.worker = max([peak.worker, *workers])
            peak.workers = max(peak.workers, sum(workers))
            peak.tree = max(peak.tree, driver + sum(size for size, _ in others))


def bytes_written() -> int:
    """Bytes that this process and its ended children have sent towards a disk: pages made dirty, in the kernel's count.

    Files in memory (tmpfs) are not among them. The kernel adds a child's count to its parent's when the parent waits.
    """
    return psutil.Process().io_counters().write_bytes


def cpu_seconds() -> float:
    """Processor time so far of this process, all that it started, and what these waited for the end of.

    Unlike wall time it hardly depends on what else the machine is doing.
    """
    total = 0.0
    for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
        with suppress(psutil.NoSuchProcess):
            total += sum(process.cpu_times()[:4])
    return total


def bytes_under(path: Path) -> int:
    """Bytes of all files below a folder."""
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def cpus() -> int:
    """CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def running_ray(config: Config, steps: Sequence[str]) -> Iterator[Executor]:
    """An executor whose Ray has started already."""
    from curation.runtime import ray_session

    with ray_session(config, steps) as executor:
        executor.start()
        yield executor


def silent() -> Progress:
    """Progress that says nothing."""
    return Progress(Console(file=io.StringIO()))


def timed(function: Callable[[], object]) -> float:
    """Seconds that a call takes."""
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


def median(values: Sequence[float]) -> str:
    """Median, with the range of what was measured where there is more than one."""
    middle = statistics.median(values)
    return f"{middle:.2f}" if len(values) == 1 else f"{middle:.2f} ({min(values):.2f}-{max(values):.2f})"


def show(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]], note: str = "") -> None:
    """Print a table; numbers are right-aligned, a row of nothing is a line."""
    table = Table(title=title, caption=note or None, title_justify="left", caption_justify="left")
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left", overflow="fold")
    for row in rows:
        if row:
            table.add_row(*(f"{cell:.2f}" if isinstance(cell, float) else str(cell) for cell in row))
        else:
            table.add_section()
    # A table in a file or a pipe must not be squeezed into 80 columns.
    Console(width=None if sys.stdout.isatty() else 132).print(table, new_line_start=True)


def show_machine() -> None:
    """Say what else the machine is doing: figures of a busy one are worth little."""
    load = os.getloadavg()[0]
    busy = (
        f"; load {load:.1f}: the machine is busy, repeat on an idle one" if load > cpus() / 2 else f"; load {load:.1f}"
    )
    Console().print(f"{cpus()} CPUs{busy}", highlight=False)


def _size(process: psutil.Process) -> tuple[int, bool]:
    try:
        return process.memory_info().rss, process.name().startswith("ray::")
    except psutil.NoSuchProcess:
        return 0, False
