"""Progress of long work: a live bar with counts, rate and time left in a terminal, plain lines anywhere else."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

Advance = Callable[[int, int, float], None]
"""``advance(items, failed, seconds of video)``: more work is through."""

PLAIN_EVERY_S = 10.0


class Progress:
    """Tells a person how a run is getting on."""

    def __init__(self, console: Console) -> None:
        self.console = console

    @contextlib.contextmanager
    def step(self, name: str, items: int, seconds: float) -> Iterator[Advance]:
        """Follow a step of so many items and seconds of video."""
        with (self._bar if self.console.is_terminal else self._lines)(name, items, seconds) as advance:
            yield advance

    def passed(self, name: str, items: int) -> None:
        """A step that took no time worth following."""
        self.console.print(f"{name:<11}" + (f"{items} verdicts" if items else "nothing to do"), highlight=False)

    @contextlib.contextmanager
    def _bar(self, name: str, items: int, seconds: float) -> Iterator[Advance]:
        columns = (
            TextColumn("{task.description:<10}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            TimeRemainingColumn(),
        )
        tally = _Tally(items, seconds)
        with Bar(*columns, console=self.console) as bar:
            task = bar.add_task(name, total=items, note="")

            def advance(done: int, failed: int, done_seconds: float) -> None:
                tally.add(done, failed, done_seconds)
                bar.update(task, advance=done, note=tally.note())

            yield advance

    @contextlib.contextmanager
    def _lines(self, name: str, items: int, seconds: float) -> Iterator[Advance]:
        tally = _Tally(items, seconds)
        said = time.monotonic()

        def advance(done: int, failed: int, done_seconds: float) -> None:
            nonlocal said
            tally.add(done, failed, done_seconds)
            if time.monotonic() - said >= PLAIN_EVERY_S or tally.done == items:
                said = time.monotonic()
                self.console.print(f"{name:<11}{tally.done}/{items}  {tally.note()}  {tally.left()}", highlight=False)

        yield advance


class _Tally:
    def __init__(self, items: int, seconds: float) -> None:
        self.items, self.seconds = items, seconds
        self.done, self.failed, self.done_seconds = 0, 0, 0.0
        self.started = time.monotonic()

    def add(self, done: int, failed: int, seconds: float) -> None:
        self.done += done
        self.failed += failed
        self.done_seconds += seconds

    def note(self) -> str:
        elapsed = max(time.monotonic() - self.started, 1e-6)
        note = f"{self.done / elapsed:.1f}/s"
        return f"{note}, {self.failed} failed" if self.failed else note

    def left(self) -> str:
        elapsed = time.monotonic() - self.started
        if self.done == self.items:
            return f"in {elapsed:.1f} s"
        share = self.done_seconds / self.seconds if self.seconds else self.done / self.items
        return f"{elapsed / share - elapsed:.0f} s left" if share else ""
