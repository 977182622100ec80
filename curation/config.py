"""The config of a run: what a YAML file and ``key=value`` overrides may say, checked before anything starts."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, SerializeAsAny, model_validator

from models import registry
from models.registry import BackendConfig
from stages.annotate import AnnotateConfig
from stages.config import CONFIG_FOLDER, Section, change, load
from stages.mixture import MixtureConfig
from stages.plan import ReferencesConfig
from stages.select import SelectConfig
from stages.split import SplitConfig
from stages.verify import VerifyConfig

DEFAULT_CONFIG = CONFIG_FOLDER / "embedded.yaml"


class ModelsConfig(Section):
    """Which network does what. Each entry is `backend: name` with that backend's options."""

    root: Path = Path("weights")
    """Folder of weight files. Relative paths start at the working directory."""
    shots: Annotated[SerializeAsAny[BackendConfig] | None, registry.choice("shots")] = None
    """Finds cuts and fades."""
    text: Annotated[SerializeAsAny[BackendConfig] | None, registry.choice("text")] = None
    """Finds written text; null leaves `text_area` at 0."""
    aesthetic: Annotated[SerializeAsAny[BackendConfig] | None, registry.choice("aesthetic")] = None
    """Scores how much people like a clip's frames; null leaves the score out."""
    safety: Annotated[SerializeAsAny[BackendConfig] | None, registry.choice("safety")] = None
    """Scores nudity; null leaves the score out."""
    captioner: Annotated[SerializeAsAny[BackendConfig] | None, registry.choice("captioner")] = None
    """Writes captions; null takes those that came with the videos."""
    detector: Annotated[SerializeAsAny[BackendConfig], registry.choice("detector")]
    """Finds what the subject words name."""
    segmenter: Annotated[SerializeAsAny[BackendConfig], registry.choice("segmenter")]
    """Turns boxes into masks; a tracker also follows them through the clip."""
    faces: Annotated[SerializeAsAny[BackendConfig] | None, registry.choice("faces")] = None
    """Finds and recognises faces; null leaves people without an identity across clips."""
    embedder: Annotated[SerializeAsAny[BackendConfig], registry.choice("embedder")]
    """Describes what a subject looks like."""
    image_text: Annotated[SerializeAsAny[BackendConfig] | None, registry.choice("image_text")] = None
    """Scores how well a subject fits its word; null leaves the score out."""
    inpainter: Annotated[SerializeAsAny[BackendConfig] | None, registry.choice("inpainter")] = None
    """Paints backgrounds anew."""
    editor: Annotated[SerializeAsAny[BackendConfig] | None, registry.choice("editor")] = None
    """Shows subjects in another pose."""

    def chosen(self) -> dict[str, BackendConfig]:
        """The configured backends by task."""
        return {task: config for task in registry.BACKENDS if (config := getattr(self, task)) is not None}


class PackConfig(Section):
    """How samples are encoded and packed."""

    width: int = Field(832, ge=16, multiple_of=2)
    """Widest that a clip is encoded, in pixels."""
    height: int = Field(480, ge=16, multiple_of=2)
    """Highest that a clip is encoded, in pixels."""
    fit: Literal["keep", "crop", "pad"] = "keep"
    """`keep` scales down to fit and keeps the aspect ratio, `crop` fills and cuts, `pad` fits and adds bars."""
    fps: float = Field(16, gt=0, le=120)
    """Frames per second, constant."""
    crf: int = Field(20, ge=0, le=51)
    """x264's quality: lower is better and larger."""
    preset: Literal["ultrafast", "superfast", "veryfast", "faster", "fast", "medium", "slow", "slower"] = "veryfast"
    """x264's speed."""
    shard_samples: int = Field(256, ge=1)
    """Samples per shard; the last one of a split holds the rest."""
    val_share: float = Field(0.05, ge=0, lt=1)
    """Share of the samples for validation. Identities and videos are never divided."""
    max_subjects: int = Field(6, ge=1)
    """Most subjects per sample, the largest first."""


class OperatorConfig(Section):
    """Stages that run in one worker, on the same rows, and what that worker gets."""

    stages: tuple[str, ...]
    """Names of the step's stages, in order."""
    cpus: float = Field(1, gt=0)
    """CPUs of one worker."""
    gpus: float = Field(0, ge=0)
    """GPUs of one worker; fractions share a GPU."""
    workers: int | None = Field(None, ge=1)
    """Workers. Where a step has one group of stages, the most at once; where it has several, those that are started
    and stay. Null lets them grow, from one each where there are several, to what the cluster has."""
    batch: int = Field(1, ge=1)
    """Items given to a stage in one call."""


class StepRuntime(Section):
    """How a step is spread over the cluster."""

    operators: tuple[OperatorConfig, ...]
    """Groups of stages. Stages in one group share decoded frames; between groups, frames travel as PNG."""
    unit_seconds: float = Field(120, gt=0)
    """Seconds of video in one unit of work, about; a unit is what a crash can cost."""
    unit_items: int = Field(32, ge=1)
    """Most items in one unit."""
    timeout_s: float = Field(900, gt=0)
    """A single item that takes longer (seconds) has its worker killed and is recorded as a failure."""


def _step(*stages: str, batch: int = 1, **options: Any) -> StepRuntime:
    return StepRuntime(operators=(OperatorConfig(stages=stages, batch=batch),), **options)


class RuntimeConfig(Section):
    """How the steps run on Ray. Changes speed, never results."""

    ingest: StepRuntime = _step("ingest", unit_items=16)
    split: StepRuntime = _step("split")
    annotate: StepRuntime = _step("look", "score", "caption", "ground", "segment", "describe", batch=4, unit_seconds=60)
    references: StepRuntime = _step("synthesise", batch=4, unit_items=32)
    verify: StepRuntime = _step("verify", batch=4, unit_items=32)
    encode: StepRuntime = _step("encode")
    pack: StepRuntime = _step("write", unit_items=1)
    crashes: int = Field(2, ge=1)
    """Worker crashes on one item before it is recorded as a failure and left out."""
    commit_s: float = Field(10, ge=0)
    """Finished units are committed at least this often (seconds): what a killed run may lose."""
    store_gb: float | None = Field(None, gt=0)
    """Memory of Ray's object store on a local start, in GB; null lets Ray choose."""

    @model_validator(mode="before")
    @classmethod
    def _with_defaults(cls, raw: Any) -> Any:
        """What a step's section leaves out is that step's own default, not that of any step."""
        if not isinstance(raw, Mapping):
            return raw
        defaults = {name: field.default for name, field in cls.model_fields.items()}
        return {
            name: {**defaults[name].model_dump(), **value}
            if isinstance(defaults.get(name), StepRuntime) and isinstance(value, Mapping)
            else value
            for name, value in raw.items()
        }

    @model_validator(mode="after")
    def _stages_complete(self) -> RuntimeConfig:
        for step in ("ingest", "split", "annotate", "references", "verify", "encode", "pack"):
            wanted = type(self).model_fields[step].default
            have = [stage for operator in getattr(self, step).operators for stage in operator.stages]
            need = [stage for operator in wanted.operators for stage in operator.stages]
            if have != need:
                raise ValueError(f"runtime.{step}.operators: the stages must be {need} in this order, got {have}")
        return self


class Config(Section):
    """A whole run."""

    models: ModelsConfig
    split: SplitConfig = SplitConfig()
    annotate: AnnotateConfig = AnnotateConfig()
    select: SelectConfig = SelectConfig()
    references: ReferencesConfig = ReferencesConfig()
    verify: VerifyConfig = VerifyConfig()
    mixture: MixtureConfig = MixtureConfig()
    pack: PackConfig = PackConfig()
    runtime: RuntimeConfig = RuntimeConfig()

    @model_validator(mode="after")
    def _painters_there(self) -> Config:
        for kind, task in (("inpainted", "inpainter"), ("swapped", "inpainter"), ("moved", "editor")):
            if getattr(self.references, kind).count and getattr(self.models, task) is None:
                raise ValueError(
                    f"references.{kind}.count asks for pictures that models.{task} makes, and that is not set: "
                    f"choose a backend, or set references.{kind}.count to 0"
                )
        return self


def load_config(path: Path | str | None = None, overrides: Sequence[str] = ()) -> Config:
    """The config of a curation run; see :func:`stages.config.load`."""
    return load(Config, Path(path) if path is not None else DEFAULT_CONFIG, overrides)


def select_with(config: Config, overrides: Sequence[str]) -> SelectConfig:
    """The config's thresholds with ``subject.min_area=0.02``-like changes.

    Raises:
        ConfigError: for a threshold that does not exist or a value that does not fit.
    """
    return change(config.select, [override.removeprefix("select.") for override in overrides])


def fingerprint(*parts: Any) -> str:
    """16 hex digits that change when any part does. Parts are config sections, strings, numbers or lists of them."""
    plain = [part.model_dump(mode="json") if isinstance(part, Section | BackendConfig) else part for part in parts]
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:16]
