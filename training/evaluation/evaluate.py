"""Measures generated videos against the references and prompts that they were made from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import cv2
from pydantic import Field, SerializeAsAny

from models import registry
from models.registry import BackendConfig
from stages.config import Section
from training.evaluation.items import InputError, Item, list_items, show
from training.evaluation.metrics import (
    Aesthetic,
    CopyScore,
    FaceSim,
    ImageText,
    Metric,
    Motion,
    NotMeasurable,
    SubjS,
)
from training.evaluation.report import Backend, MetricInfo, Report, VideoResult

_Chosen = SerializeAsAny[BackendConfig] | None


def _default(task: str, backend: str) -> Any:
    return Field(default_factory=partial(registry.backend_config, task, {"backend": backend}))


class EvaluationModels(Section):
    """Which network measures what. Each entry is `backend: name` with its options; null skips what needs it."""

    root: Path = Path("weights")
    """Folder of weight files. Relative paths start at the working directory."""
    faces: Annotated[_Chosen, registry.choice("faces")] = _default("faces", "insightface")
    """Finds and recognises faces, for `facesim`."""
    detector: Annotated[_Chosen, registry.choice("detector")] = _default("detector", "yolox")
    """Finds the references' words in the frames, for `subj_s`."""
    segmenter: Annotated[_Chosen, registry.choice("segmenter")] = None
    """Turns the detector's boxes into masks; null compares whole boxes."""
    embedder: Annotated[_Chosen, registry.choice("embedder")] = _default("embedder", "colour_texture")
    """Describes what a subject looks like, for `subj_s`."""
    image_text: Annotated[_Chosen, registry.choice("image_text")] = None
    """Scores how well a frame fits the prompt."""
    aesthetic: Annotated[_Chosen, registry.choice("aesthetic")] = _default("aesthetic", "laion_aesthetic")
    """Scores how pleasing a frame is."""


class EvaluateConfig(Section):
    """What is measured, and on how many frames."""

    models: EvaluationModels = EvaluationModels()
    frames: int = Field(32, ge=1)
    """Frames per video, evenly spaced; all of a shorter one."""
    copy_frames: int = Field(8, ge=1)
    """Of these, frames in which `copy_score` looks for pasted references."""
    max_side: int = Field(832, ge=64)
    """Longer side of a frame, in pixels, at which everything is measured; smaller videos stay as they are."""


@dataclass(frozen=True, slots=True)
class _Recipe:
    """How a metric is made: of the backends of some tasks, some of which it can do without."""

    name: str
    make: Callable[..., Metric]
    needs: tuple[str, ...]
    takes: tuple[str, ...] = ()


_RECIPES = (
    _Recipe("facesim", FaceSim, ("faces",)),
    _Recipe("subj_s", SubjS, ("detector", "embedder"), ("segmenter",)),
    _Recipe("image_text", ImageText, ("image_text",)),
    _Recipe("aesthetic", Aesthetic, ("aesthetic",)),
)


def evaluate(
    videos: Path,
    references: Path | None,
    config: EvaluateConfig,
    advance: Callable[[VideoResult], None] = lambda result: None,
) -> Report:
    """Measure every video; :func:`training.evaluation.items.list_items` says how files are to lie.

    Metrics: `facesim`, `subj_s`, `image_text`, `aesthetic`, `motion` and `copy_score`, each defined by its class in
    :mod:`training.evaluation.metrics`. One whose backend is not configured or whose weights are missing is skipped, and
    the report says why. A video or reference that cannot be read makes an error of that video; the rest goes on.
    ``advance`` is called after every video.

    Raises:
        InputError: if ``videos`` or ``references`` do not exist, or hold no video.
    """
    items = list_items(videos, references)
    metrics, infos = _prepare(config)
    results = []
    for item in items:
        results.append(_measure(item, metrics, config))
        advance(results[-1])
    return Report(tuple(infos), tuple(results), config.model_dump(mode="json"))


def _prepare(config: EvaluateConfig) -> tuple[dict[str, Metric], list[MetricInfo]]:
    """The metrics that can be measured by name, and what the report says of all."""
    metrics: dict[str, Metric] = {}
    infos = []
    for recipe in _RECIPES:
        try:
            metrics[recipe.name], backends = _make(recipe, config.models)
            infos.append(MetricInfo(recipe.name, backends))
        except _Unavailable as reason:
            infos.append(MetricInfo(recipe.name, skipped=str(reason)))
    library = f"opencv {cv2.__version__}"
    metrics["motion"] = Motion()
    infos.append(MetricInfo("motion", (Backend("flow", "dis", library),)))
    metrics["copy_score"] = CopyScore(config.copy_frames)
    infos.append(MetricInfo("copy_score", (Backend("alignment", "sift_ecc", library),)))
    return metrics, infos


class _Unavailable(Exception):  # noqa: N818 - a reason, not a fault
    """Why a metric cannot be measured here."""


def _make(recipe: _Recipe, models: EvaluationModels) -> tuple[Metric, tuple[Backend, ...]]:
    chosen: dict[str, BackendConfig | None] = {task: getattr(models, task) for task in (*recipe.needs, *recipe.takes)}
    for task in recipe.needs:
        if chosen[task] is None:
            raise _Unavailable(f"models.{task} is null: no backend is configured")
    try:
        loaded = [None if own is None else registry.build(task, own, models.root) for task, own in chosen.items()]
        backends = tuple(
            Backend(task, own.backend, registry.fingerprint(own, models.root))
            for task, own in chosen.items()
            if own is not None
        )
    except registry.MissingWeightsError as error:
        raise _Unavailable(str(error)) from None
    except Exception as error:
        raise _Unavailable(f"its network cannot be loaded: {type(error).__name__}: {error}") from error
    return recipe.make(*loaded), backends


def _measure(item: Item, metrics: Mapping[str, Metric], config: EvaluateConfig) -> VideoResult:
    references = tuple({"image": str(file.path), "word": file.word} for file in item.references)
    try:
        shown = show(item, config.frames, config.max_side)
    except InputError as error:
        return VideoResult(item.name, item.prompt, references, error=str(error))
    values: dict[str, float] = {}
    notes: dict[str, str] = {}
    for name, metric in metrics.items():
        try:
            values.update(metric.measure(shown))
        except NotMeasurable as error:
            notes[name] = str(error)
        except Exception as error:  # noqa: BLE001 - errors are data: whatever a network raises for this video is noted
            notes[name] = f"{type(error).__name__}: {error}"
    return VideoResult(item.name, item.prompt, references, values, notes)
