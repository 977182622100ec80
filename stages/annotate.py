"""Clips into numbers and subjects, on one decode: look, score, caption, ground, segment, describe.

The stages pass :class:`ClipWork` along and each adds its part. A clip whose cheap scores already reject it keeps them
and goes no further: no subject model sees it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from pydantic import Field

from models.protocols import Captioner, Detection, Detector, Segmentation, Segmenter, Tracker
from stages.caption import CaptionStage, template
from stages.config import Section
from stages.describe import DescribeConfig, DescribeStage
from stages.media import local_copy, read_keyframes
from stages.records import Annotation, Clip, Score, Source, Subject
from stages.score import ScoreConfig, ScoreStage
from stages.view import ClipView


class LookConfig(Section):
    """Which frames of a clip the models look at."""

    keyframes: int = Field(8, ge=2)
    """Frames per clip, evenly spaced."""
    neighbour_s: float = Field(1 / 24, gt=0)
    """Least distance in seconds from a keyframe to the neighbour that its motion is measured against."""
    max_side: int = Field(1280, ge=64)
    """Frames are scaled down to this many pixels on their longer side."""


class AnnotateConfig(Section):
    """How clips are scored and their subjects found."""

    look: LookConfig = LookConfig()
    score: ScoreConfig = ScoreConfig()
    describe: DescribeConfig = DescribeConfig()


@dataclass(slots=True)
class ClipWork:
    """A clip on its way through the stages.

    ``view`` is there only between the first stage and the last. ``score`` and ``annotation`` may be there from an
    earlier run; then they are not made again, nor are the subjects.
    """

    clip: Clip
    source: Source
    score_fingerprint: str
    annotation_fingerprint: str
    score: Score | None = None
    annotation: Annotation | None = None
    scored_before: bool = False
    """Whether ``score`` is from an earlier run."""
    wanted: bool = True
    """Whether the subject models should see it: false once its scores reject it, or if an earlier run annotated it."""
    view: ClipView | None = None
    caption: tuple[str, str, list[str]] = ("", "template", [])
    detections: list[list[Detection]] = field(default_factory=list)
    segmentations: list[list[Segmentation]] = field(default_factory=list)
    subjects: list[Subject] = field(default_factory=list)


def keyframe_times(clip: Clip, count: int) -> list[float]:
    """Middles of ``count`` equal parts of the clip, in seconds of the video."""
    step = (clip.end_s - clip.start_s) / count
    return [clip.start_s + (number + 0.5) * step for number in range(count)]


class LookStage:
    """Decodes each clip's keyframes, once for everything that follows."""

    def __init__(self, config: LookConfig) -> None:
        self.config = config

    def run(self, works: Sequence[ClipWork]) -> list[ClipWork]:
        """Fill in ``view``."""
        return [replace(work, view=self._look(work)) for work in works]

    def _look(self, work: ClipWork) -> ClipView:
        with local_copy(work.source.uri) as path:
            times = keyframe_times(work.clip, self.config.keyframes)
            # In a slow video the next frame is further away: the same frame twice would look like a still.
            neighbour_s = max(self.config.neighbour_s, 1 / work.source.fps)
            keyframes = read_keyframes(path, times, neighbour_s, self.config.max_side)
        return ClipView(work.clip, work.source, keyframes)


class CheapStage:
    """Scores the clips that have no scores yet, and decides with ``passes`` which of them the models shall see."""

    def __init__(self, score: ScoreStage, passes: Callable[[Score], bool]) -> None:
        self.score = score
        self.passes = passes

    def run(self, works: Sequence[ClipWork]) -> list[ClipWork]:
        """Fill in ``score`` and ``wanted``."""
        new = iter(self.score.run([_view(work) for work in works if work.score is None]))
        scored = [(work, work.score or next(new)) for work in works]
        return [
            replace(work, score=score, wanted=work.annotation is None and self.passes(score)) for work, score in scored
        ]


class WordStage:
    """Captions the wanted clips and takes the subject words from that."""

    def __init__(self, captioner: Captioner | None) -> None:
        self.caption = CaptionStage(captioner)

    def run(self, works: Sequence[ClipWork]) -> list[ClipWork]:
        """Fill in ``caption``."""
        captions = iter(self.caption.run([_view(work) for work in works if work.wanted]))
        return [replace(work, caption=next(captions)) if work.wanted else work for work in works]


class GroundStage:
    """Finds in the keyframes of the wanted clips what their captions name."""

    def __init__(self, detector: Detector) -> None:
        self.detector = detector

    def run(self, works: Sequence[ClipWork]) -> list[ClipWork]:
        """Fill in ``detections``."""
        wanted = [work for work in works if work.wanted]
        views = [_view(work) for work in wanted]
        captions = [work.caption for work in wanted]
        # A caption without a subject word asks for nothing; a missing caption asks for whatever there is.
        asked = [bool(words) or source == "template" for _, source, words in captions]
        found = iter(
            self.detector.detect(
                [view.keyframes for view, ask in zip(views, asked, strict=True) if ask],
                [words for (_, _, words), ask in zip(captions, asked, strict=True) if ask],
            )
        )
        none: list[Detection] = []
        detections = iter(
            [next(found) if ask else [none for _ in view.keyframes] for view, ask in zip(views, asked, strict=True)]
        )
        return [replace(work, detections=next(detections)) if work.wanted else work for work in works]


class SegmentStage:
    """Turns the detections of the wanted clips into masks; a tracker also follows them, and changes what there is."""

    def __init__(self, segmenter: Segmenter | Tracker) -> None:
        self.segmenter = segmenter

    def run(self, works: Sequence[ClipWork]) -> list[ClipWork]:
        """Fill in ``segmentations``; with a tracker, ``detections`` anew."""
        wanted = [work for work in works if work.wanted]
        clips, detections = [_view(work).keyframes for work in wanted], [work.detections for work in wanted]
        if isinstance(self.segmenter, Tracker):
            followed = iter(self.segmenter.track(clips, detections))
            return [_followed(work, next(followed)) if work.wanted else work for work in works]
        masks = iter(self.segmenter.segment(clips, detections))
        return [replace(work, segmentations=next(masks)) if work.wanted else work for work in works]


class SubjectStage:
    """Tracks and measures the subjects of the wanted clips, writes their annotation and lets the frames go."""

    def __init__(self, describe: DescribeStage) -> None:
        self.describe = describe

    def run(self, works: Sequence[ClipWork]) -> list[ClipWork]:
        """Fill in ``subjects`` and ``annotation``; empty ``view``."""
        wanted = [work for work in works if work.wanted]
        described = iter(
            self.describe.run(
                [_view(work) for work in wanted],
                [work.detections for work in wanted],
                [work.segmentations for work in wanted],
                [work.annotation_fingerprint for work in wanted],
            )
        )
        return [_annotated(work, next(described)) if work.wanted else replace(work, view=None) for work in works]


def _view(work: ClipWork) -> ClipView:
    if work.view is None:
        raise ValueError(f"clip {work.clip.clip_id} has not been decoded")
    return work.view


def _followed(work: ClipWork, frames: list[list[tuple[Detection, Segmentation]]]) -> ClipWork:
    return replace(
        work,
        detections=[[detection for detection, _ in frame] for frame in frames],
        segmentations=[[segmentation for _, segmentation in frame] for frame in frames],
    )


def _annotated(work: ClipWork, subjects: list[Subject]) -> ClipWork:
    text, source, words = work.caption
    if source == "template":
        words = list(dict.fromkeys(subject.word for subject in subjects))
        text = template(words)
    annotation = Annotation(
        clip_id=work.clip.clip_id,
        caption=text,
        caption_source=source,
        words=words,
        subjects=len(subjects),
        fingerprint=work.annotation_fingerprint,
    )
    return replace(work, view=None, detections=[], segmentations=[], subjects=subjects, annotation=annotation)
