"""The steps of a run, in order. Each knows what it has still to do, which stages do it, and what rows come of it.

What is still to do follows from the tables alone: the rows that the input has and the output lacks, or has under
another fingerprint. So there is no state besides the tables, and running again resumes.
"""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, TypeVar

import pyarrow as pa

from curation.config import Config, StepRuntime, fingerprint
from curation.guard import Item, Stage
from curation.workspace import ROWS_PER_BATCH, Workspace
from models import registry
from stages.annotate import (
    CheapStage,
    ClipWork,
    GroundStage,
    LookStage,
    SegmentStage,
    SubjectStage,
    WordStage,
)
from stages.describe import DescribeStage
from stages.ingest import IngestStage, InputVideo
from stages.media import encode_clip, local_copy
from stages.records import Annotation, Clip, Encoding, Proof, Record, Reference, Score, Source, Subject, Verdict
from stages.score import ScoreStage
from stages.select import clip_reasons, decide
from stages.split import SplitStage, spans

R = TypeVar("R", bound=Record)

REVISION = {"ingest": 1, "split": 1, "score": 2, "annotate": 3, "references": 2, "verify": 1, "encode": 1, "pack": 3}
"""Raised when the code of a stage changes what it writes: the rows of the old code are then stale."""

SUBJECT_MEASURES = [
    name
    for name in Subject.schema().names
    if name not in ("crops", "frames", "face_embedding", "image_embedding", "surroundings")
]
"""What verdicts read: a thousandth of what pictures, frames and embeddings take."""
REFERENCE_NUMBERS = [name for name in Reference.schema().names if name not in ("image", "mask")]


class Step(ABC):
    """A step of the run.

    The driver calls :meth:`clean`, :meth:`plan` and :meth:`finish`; the workers call :meth:`stage` and :meth:`rows`.
    """

    name: ClassVar[str]
    outputs: ClassVar[tuple[type[Record], ...]] = ()
    """Tables that the step writes, in the order of committing. The last is the ledger: a row there means done."""
    models: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    """Per stage, the tasks whose models it may load."""

    def __init__(self, config: Config, workspace: Workspace) -> None:
        self.config = config
        self.workspace = workspace

    @property
    def runtime(self) -> StepRuntime:
        """How the config spreads this step."""
        runtime: StepRuntime = getattr(self.config.runtime, self.name)
        return runtime

    @property
    def is_light(self) -> bool:
        """Whether its workers load nothing worth keeping between units."""
        return True

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """Hash of all that the step's results depend on besides its input."""

    @abstractmethod
    def plan(self) -> list[Item]:
        """What is still to do, in a fixed order; failed items included."""

    @abstractmethod
    def stage(self, name: str) -> Stage:
        """Load a stage on the worker that will run it."""

    @abstractmethod
    def rows(self, value: Any) -> Sequence[Record]:
        """What a finished item adds to the tables."""

    def clean(self) -> None:  # noqa: B027 - most steps have something to clean, none must
        """Delete rows that are stale, and rows that a killed run committed without their ledger row."""

    def covers(self, uri: str) -> bool:
        """Whether :meth:`plan` would hold what came from there if it were still to do: then its failure is obsolete."""
        return True

    def finish(self) -> None:  # noqa: B027 - as above
        """What is left to do once every item is through."""

    def tasks(self, stage: str) -> tuple[str, ...]:
        """The tasks whose models a stage loads under this config."""
        return self.models.get(stage, ())

    def loaded(self, stage: str) -> list[Any]:
        """Load the models of a stage; nothing for a task without one."""
        return [self.model(task) for task in self.tasks(stage)]

    def model(self, task: str) -> Any:
        """Load the configured backend of a task; nothing if none is configured."""
        config = self.config.models.chosen().get(task)
        return None if config is None else registry.build(task, config, self.config.models.root)

    def model_fingerprint(self, *tasks: str) -> list[str]:
        """Hashes of the configured backends of these tasks, weights included."""
        chosen = self.config.models.chosen()
        return [registry.fingerprint(chosen[task], self.config.models.root) if task in chosen else "" for task in tasks]


@dataclass(frozen=True)
class Each:
    """A stage made of a function of one item."""

    function: Callable[[Any], Any]

    def run(self, batch: Sequence[Any]) -> list[Any]:
        """Apply it to one after the other."""
        return [self.function(value) for value in batch]


class Ingest(Step):
    """Inputs into ``sources``: probed and hashed."""

    name = "ingest"
    outputs = (Source,)

    def __init__(self, config: Config, workspace: Workspace, videos: Sequence[InputVideo] = ()) -> None:
        super().__init__(config, workspace)
        self.videos = videos

    @cached_property
    def fingerprint(self) -> str:
        return fingerprint("ingest", REVISION["ingest"])

    @cached_property
    def _uris(self) -> set[str]:
        return {video.uri for video in self.videos}

    def clean(self) -> None:
        """Forget files that were replaced by others of the same name, and files whose caption or licence changed."""
        now = {video.uri: video.source_id for video in self.videos}
        rows = self.workspace.rows(Source, ["source_id", "uri", "fingerprint"])
        stale = [
            row["source_id"]
            for row in rows
            if now.get(row["uri"], row["source_id"]) != row["source_id"] or row["fingerprint"] != self.fingerprint
        ]
        self.workspace.delete(Source, "source_id", stale)

    def plan(self) -> list[Item]:
        known = set(self.workspace.column(Source, "source_id"))
        return [
            # What ingest costs is bytes to hash: 10 MB count as a second.
            Item(video.source_id, video.uri, max(video.size, 0) / 1e7, video)
            for video in self.videos
            if video.source_id not in known
        ]

    def covers(self, uri: str) -> bool:
        """Only what is listed: other videos of the workspace are not looked at."""
        return uri in self._uris

    def stage(self, name: str) -> Stage:
        return Each(IngestStage(self.fingerprint).run)

    def rows(self, value: Source) -> list[Record]:
        return [value]


class Split(Step):
    """Videos into ``clips``."""

    name = "split"
    outputs = (Clip,)
    models: ClassVar = {"split": ("shots",)}

    @property
    def is_light(self) -> bool:
        return self.config.split.by == "stride"

    @cached_property
    def fingerprint(self) -> str:
        shots = self.model_fingerprint("shots") if self.config.split.by == "shots" else []
        return fingerprint("split", REVISION["split"], self.config.split, shots)

    def clean(self) -> None:
        """Delete the clips of another configuration and of videos that are gone."""
        videos = {video.video_id for video in videos_of(self.workspace)}
        rows = self.workspace.rows(Clip, ["clip_id", "video_id", "fingerprint"])
        stale = [
            row["clip_id"] for row in rows if row["fingerprint"] != self.fingerprint or row["video_id"] not in videos
        ]
        self.workspace.delete(Clip, "clip_id", stale)

    def plan(self) -> list[Item]:
        known = set(self.workspace.column(Clip, "span_id"))
        return [
            Item(span.span_id, video.uri, video.duration_s / len(parts), span)
            for video in videos_of(self.workspace)
            for parts in [spans(video, self.config.split)]
            for span in parts
            if span.span_id not in known
        ]

    def tasks(self, stage: str) -> tuple[str, ...]:
        return super().tasks(stage) if self.config.split.by == "shots" else ()

    def stage(self, name: str) -> Stage:
        detector, *_ = [*self.loaded(name), None]
        return Each(SplitStage(self.config.split, detector, self.fingerprint).run)

    def rows(self, value: Sequence[Clip]) -> Sequence[Record]:
        return value


class Annotate(Step):
    """Clips into ``scores``, ``subjects`` and ``annotations``.

    ``scores`` has its own fingerprint, and a clip that only lacks its subjects is not scored again: so loosening a
    threshold sends exactly the clips that it lets through to the subject models.
    """

    name = "annotate"
    outputs = (Subject, Score, Annotation)
    models: ClassVar = {
        "score": ("text", "aesthetic", "safety"),
        "caption": ("captioner",),
        "ground": ("detector",),
        "segment": ("segmenter",),
        "describe": ("embedder", "faces", "image_text"),
    }

    @property
    def is_light(self) -> bool:
        return False

    @cached_property
    def score_fingerprint(self) -> str:
        """Hash of all that scores depend on."""
        annotate = self.config.annotate
        models = self.model_fingerprint("text", "aesthetic", "safety")
        return fingerprint("score", REVISION["score"], annotate.look, annotate.score, models)

    @cached_property
    def fingerprint(self) -> str:
        annotate = self.config.annotate
        models = self.model_fingerprint("captioner", "detector", "segmenter", "faces", "embedder", "image_text")
        return fingerprint("annotate", REVISION["annotate"], annotate.look, annotate.describe, models)

    def annotation_fingerprint(self, source: Source) -> str:
        """The step's fingerprint with the caption that the clip's video came with: its words decide what is found."""
        return fingerprint(self.fingerprint, source.caption, source.caption_source)

    def clean(self) -> None:
        """Delete stale scores and annotations, and subjects without an annotation."""
        wanted = {clip.clip_id: self.annotation_fingerprint(source) for clip, source in clips_of(self.workspace)}
        scores = self.workspace.rows(Score, ["clip_id", "fingerprint"])
        self.workspace.delete(
            Score,
            "clip_id",
            [
                row["clip_id"]
                for row in scores
                if row["fingerprint"] != self.score_fingerprint or row["clip_id"] not in wanted
            ],
        )
        annotations = self.workspace.rows(Annotation, ["clip_id", "fingerprint"])
        fresh = {row["clip_id"] for row in annotations if wanted.get(row["clip_id"]) == row["fingerprint"]}
        self.workspace.delete(Annotation, "clip_id", set(self.workspace.column(Annotation, "clip_id")) - fresh)
        self.workspace.delete(Subject, "clip_id", set(self.workspace.column(Subject, "clip_id")) - fresh)

    def plan(self) -> list[Item]:
        scored = set(self.workspace.column(Score, "clip_id"))
        annotated = set(self.workspace.column(Annotation, "clip_id"))
        # Of what is there already, only what goes along with a clip that lacks the other part.
        scores = {
            score.clip_id: score
            for score in map(Score.from_row, self.workspace.rows(Score))
            if score.clip_id not in annotated and self.passes(score)
        }
        annotations = {
            annotation.clip_id: annotation
            for annotation in map(Annotation.from_row, self.workspace.rows(Annotation))
            if annotation.clip_id not in scored
        }
        return [
            clip_item(
                clip,
                source,
                ClipWork(
                    clip,
                    source,
                    self.score_fingerprint,
                    self.annotation_fingerprint(source),
                    score=scores.get(clip.clip_id),
                    annotation=annotations.get(clip.clip_id),
                    scored_before=clip.clip_id in scored,
                ),
            )
            for clip, source in clips_of(self.workspace)
            if clip.clip_id not in scored or clip.clip_id in scores
        ]

    def passes(self, score: Score) -> bool:
        """Whether a clip's own numbers let it go on to the subject models."""
        return not clip_reasons({name: getattr(score, name) for name in Score.schema().names}, self.config.select.clip)

    def stage(self, name: str) -> Stage:
        annotate = self.config.annotate
        match name:
            case "look":
                return LookStage(annotate.look)
            case "score":
                return CheapStage(ScoreStage(annotate.score, self.score_fingerprint, *self.loaded(name)), self.passes)
            case "caption":
                return WordStage(*self.loaded(name))
            case "ground":
                return GroundStage(*self.loaded(name))
            case "segment":
                return SegmentStage(*self.loaded(name))
            case "describe":
                return SubjectStage(DescribeStage(annotate.describe, *self.loaded(name)))
        raise ValueError(f"annotate has no stage {name!r}")

    def rows(self, value: ClipWork) -> list[Record]:
        score = None if value.scored_before else value.score
        annotation = value.annotation if value.wanted else None
        return [row for row in (*value.subjects, score, annotation) if row is not None]


class Encode(Step):
    """Clips that samples are made of into ``encodings``."""

    name = "encode"
    outputs = (Encoding,)

    @cached_property
    def fingerprint(self) -> str:
        pack = self.config.pack
        return fingerprint(
            "encode", REVISION["encode"], [pack.width, pack.height, pack.fit, pack.fps, pack.crf, pack.preset]
        )

    def clean(self) -> None:
        """Delete encodings of another configuration, and of clips that are gone."""
        clips = set(self.workspace.column(Clip, "clip_id"))
        rows = self.workspace.rows(Encoding, ["clip_id", "fingerprint"])
        stale = [
            row["clip_id"] for row in rows if row["fingerprint"] != self.fingerprint or row["clip_id"] not in clips
        ]
        self.workspace.delete(Encoding, "clip_id", stale)

    def plan(self) -> list[Item]:
        known = set(self.workspace.column(Encoding, "clip_id"))
        wanted = clips_with_references(self.workspace)
        return [
            clip_item(clip, source, (clip, source))
            for clip, source in clips_of(self.workspace)
            if clip.clip_id in wanted and clip.clip_id not in known
        ]

    def stage(self, name: str) -> Stage:
        return Each(self._encode)

    def _encode(self, value: tuple[Clip, Source]) -> Encoding:
        clip, source = value
        pack = self.config.pack
        with local_copy(source.uri) as path:
            encoded = encode_clip(
                path,
                clip.start_s,
                clip.end_s,
                width=pack.width,
                height=pack.height,
                fit=pack.fit,
                fps=pack.fps,
                crf=pack.crf,
                preset=pack.preset,
                timeout_s=self.runtime.timeout_s,
            )
        return Encoding(
            clip_id=clip.clip_id,
            data=encoded.data,
            width=encoded.width,
            height=encoded.height,
            frames=encoded.frames,
            fps=encoded.fps,
            fingerprint=self.fingerprint,
        )

    def rows(self, value: Encoding) -> list[Record]:
        return [value]


def clip_item(clip: Clip, source: Source, value: Any) -> Item:
    """A clip on its way through a step."""
    return Item(clip.clip_id, f"{source.uri} @ {clip.start_s:.2f}-{clip.end_s:.2f} s", clip.end_s - clip.start_s, value)


def videos_of(workspace: Workspace) -> Iterator[Source]:
    """The distinct videos by id: of several sources with the same bytes, the one whose URI sorts first."""
    found = workspace.read(Source).sort_by([("video_id", "ascending"), ("uri", "ascending")])
    for _, sources in itertools.groupby(_records(Source, found), key=lambda source: source.video_id):
        yield next(sources)


def clips_of(workspace: Workspace) -> Iterator[tuple[Clip, Source]]:
    """The clips that were not dropped when they were cut, each with its video, in order of video and time."""
    found = workspace.read(Clip, where="dropped IS NULL")
    videos = videos_of(workspace)
    video = next(videos, None)
    for clip in _records(Clip, found.sort_by([("video_id", "ascending"), ("start_frame", "ascending")])):
        while video is not None and video.video_id < clip.video_id:
            video = next(videos, None)
        if video is not None and video.video_id == clip.video_id:
            yield clip, video


def kept_ids(workspace: Workspace, kind: str) -> set[str]:
    """Ids of the clips, subjects or references that passed."""
    return {row["id"] for row in workspace.rows(Verdict, ["id"], where=f"kind = '{kind}' AND keep")}


def videos_by_clip(workspace: Workspace) -> dict[str, str]:
    """The video of each clip."""
    return {row["clip_id"]: row["video_id"] for row in workspace.rows(Clip, ["clip_id", "video_id"])}


def proved_references(
    workspace: Workspace, columns: Sequence[str] = REFERENCE_NUMBERS, where: str | None = None
) -> Iterator[dict[str, Any]]:
    """The references that have been measured, in the order of their ids: these columns, and all of their proofs.

    ``where`` is an SQL condition on ``reference_id``.
    """
    proofs = workspace.read(Proof, where=where).drop_columns("fingerprint")
    whole = workspace.read(Reference, columns, where).join(proofs, "reference_id", join_type="inner")
    for batch in whole.sort_by("reference_id").to_batches(ROWS_PER_BATCH):
        yield from batch.to_pylist()


def clips_with_references(workspace: Workspace) -> set[str]:
    """Clips that pass and have a subject with a reference that passes: those that become samples."""
    references = kept_ids(workspace, "reference")
    rows = workspace.rows(Reference, ["reference_id", "subject_id"])
    subjects = {row["subject_id"] for row in rows if row["reference_id"] in references}
    pairs = workspace.rows(Subject, ["subject_id", "clip_id"])
    return {row["clip_id"] for row in pairs if row["subject_id"] in subjects}


def row_ids(workspace: Workspace, record: type[Record]) -> tuple[dict[str, int], int]:
    """Where each row lies by its key, and the version of the table in which that holds."""
    dataset = workspace.table(record)
    table = dataset.to_table(columns=[record.key], with_row_id=True)
    return dict(zip(table[record.key].to_pylist(), table["_rowid"].to_pylist(), strict=True)), int(dataset.version)


def write_verdicts(workspace: Workspace, config: Config) -> list[Verdict]:
    """Decide on everything that the tables hold, with the thresholds of the config."""
    verdicts = decide(
        workspace.rows(Clip, ["clip_id", "dropped"]),
        workspace.rows(Score),
        workspace.rows(Subject, SUBJECT_MEASURES),
        proved_references(workspace),
        config.select,
    )
    if not Verdict.to_table(verdicts).equals(workspace.read(Verdict)):
        workspace.replace(Verdict, verdicts)
    return verdicts


def _records(record: type[R], table: pa.Table) -> Iterator[R]:
    for batch in table.to_batches(ROWS_PER_BATCH):
        yield from map(record.from_row, batch.to_pylist())
