"""What an evaluation found: as JSON and as a table."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from statistics import fmean
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text


@dataclass(frozen=True, slots=True)
class Backend:
    """What a metric is measured with. ``fingerprint`` changes with its options and its weights."""

    task: str
    backend: str
    fingerprint: str


@dataclass(frozen=True, slots=True)
class MetricInfo:
    """A metric of the report; ``skipped`` says why it was measured on no video at all."""

    name: str
    backends: tuple[Backend, ...] = ()
    skipped: str | None = None


@dataclass(frozen=True, slots=True)
class VideoResult:
    """One video: its numbers by name, why a metric has none (``notes`` by metric), or why there are none at all."""

    name: str
    prompt: str = ""
    references: tuple[dict[str, str], ...] = ()
    """``image`` (path) and ``word`` of each."""
    values: Mapping[str, float] = field(default_factory=dict)
    notes: Mapping[str, str] = field(default_factory=dict)
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Report:
    """All the videos, and what was measured with what."""

    metrics: tuple[MetricInfo, ...]
    videos: tuple[VideoResult, ...]
    config: Mapping[str, Any]

    @property
    def means(self) -> dict[str, float]:
        """The mean of every number over the videos that have it."""
        names = dict.fromkeys(name for video in self.videos for name in video.values)
        return {name: fmean(video.values[name] for video in self.videos if name in video.values) for name in names}

    @property
    def counts(self) -> dict[str, int]:
        """Over how many videos each mean is."""
        return {name: sum(name in video.values for video in self.videos) for name in self.means}

    def to_json(self) -> str:
        """``{"metrics", "means", "counts", "videos", "config"}``; numbers as measured, never NaN."""
        whole = {
            "metrics": [asdict(metric) for metric in self.metrics],
            "means": self.means,
            "counts": self.counts,
            "videos": [asdict(video) for video in self.videos],
            "config": self.config,
        }
        return json.dumps(whole, indent=2, ensure_ascii=False, allow_nan=False)

    def table(self, console: Console) -> None:
        """Print each metric's main value per video and its mean, what measured it, and what is missing and why."""
        measured = [metric for metric in self.metrics if metric.skipped is None]
        table = Table("video")
        for metric in measured:
            table.add_column(metric.name, justify="right")
        for video in self.videos:
            if video.error is None:
                table.add_row(_literal(video.name), *(_number(video.values.get(metric.name)) for metric in measured))
        table.add_section()
        means, counts = self.means, self.counts
        table.add_row("mean", *(_number(means.get(metric.name)) for metric in measured), style="bold")
        table.add_row("of videos", *(str(counts.get(metric.name, 0)) for metric in measured))
        console.print(table)
        for metric in measured:
            parts = ", ".join(f"{part.task} {part.backend} ({part.fingerprint})" for part in metric.backends)
            console.print(_literal(f"{metric.name}: {parts}"), soft_wrap=True)
        for metric in self.metrics:
            if metric.skipped is not None:
                console.print(_literal(f"{metric.name} skipped: {metric.skipped}"), style="yellow", soft_wrap=True)
        for video in self.videos:
            for name, note in video.notes.items():
                console.print(_literal(f"{video.name}: no {name}: {note}"), style="yellow", soft_wrap=True)
            if video.error is not None:
                console.print(_literal(f"{video.name}: {video.error}"), style="red", soft_wrap=True)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _literal(text: str) -> Text:
    """Text from outside as it stands: brackets are no markup, and nothing in it steers the terminal."""
    return Text("".join(letter if letter.isprintable() else "?" for letter in text))
