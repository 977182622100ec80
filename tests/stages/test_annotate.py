from __future__ import annotations

import typing
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from fractions import Fraction
from functools import cache
from typing import Any

import av
import cv2
import numpy as np
import pytest
from pydantic import ValidationError

from models.protocols import ClipCaption, Detection, Image, Keyframe, Mask, Segmentation, TextRegion, Vector
from stages.annotate import (
    AnnotateConfig,
    CheapStage,
    ClipWork,
    GroundStage,
    LookConfig,
    LookStage,
    SegmentStage,
    SubjectStage,
    WordStage,
    keyframe_times,
)
from stages.describe import DescribeConfig, DescribeStage
from stages.media import probe
from stages.picture import decode_png
from stages.records import Annotation, Clip, Score, Source, Subject
from stages.score import ScoreConfig, ScoreStage

WIDTH, HEIGHT, FPS = 160, 120, 12
RED, BLUE = (220, 40, 30), (30, 60, 220)
COLOURS = {"dog": RED, "car": BLUE}


def blank(cls: Any, **values: Any) -> Any:
    """A record of zeros and nothings but for these values."""
    zeros = {str: "", int: 0, float: 0.0, bool: False, bytes: b""}
    hints = typing.get_type_hints(cls)
    empty = {
        field.name: [] if typing.get_origin(hints[field.name]) is list else zeros.get(hints[field.name])
        for field in fields(cls)
    }
    return cls(**{**empty, **values})


@cache
def wall() -> Image:
    coarse = np.random.default_rng(0).integers(90, 160, (HEIGHT // 8, WIDTH // 8, 1)).astype(np.uint8)
    return np.repeat(cv2.resize(coarse, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC)[..., None], 3, axis=2)


def picture(second: float) -> Image:
    """A red square that moves to the right and a blue one that stands; from the fourth second on it is night."""
    image = wall().copy()
    left = 10 + int(20 * (second % 2))
    image[20:60, left : left + 40] = RED
    image[75:105, 110:150] = BLUE
    return image if second < 4 else image // 16


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Source:
    """Six seconds, of which the last two are dark."""
    path = tmp_path_factory.mktemp("annotate") / "video.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS, options={"preset": "ultrafast", "crf": "12"})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for number in range(6 * FPS):
            frame = av.VideoFrame.from_ndarray(picture(number / FPS), format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, FPS)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    found = probe(path)
    return blank(Source, uri=str(path), video_id="v", fps=found.fps, duration_s=found.duration_s, caption=None)


def inside(image: Image, colour: tuple[int, int, int]) -> Mask:
    return np.abs(image.astype(int) - colour).max(axis=2) < 70


@dataclass
class Spotter:
    shown: int = 0

    def spot(self, images: Sequence[Image]) -> list[list[TextRegion]]:
        self.shown += len(images)
        return [[] for _ in images]


@dataclass
class Finder:
    """Finds squares by their colour under the words asked for, or under both; sees in the dark."""

    asked: list[list[str]] = field(default_factory=list)
    times: list[float] = field(default_factory=list)

    def detect(
        self, clips: Sequence[Sequence[Keyframe]], words: Sequence[Sequence[str]]
    ) -> list[list[list[Detection]]]:
        assert len(clips) == len(words)
        self.asked += [list(each) for each in words]
        self.times += [keyframe.time for clip in clips for keyframe in clip]
        return [
            [self._find(keyframe.image, wanted or list(COLOURS)) for keyframe in clip]
            for clip, wanted in zip(clips, words, strict=True)
        ]

    def _find(self, image: Image, words: Sequence[str]) -> list[Detection]:
        found = []
        for word in words:
            rows, columns = np.nonzero(inside(image, COLOURS[word])) if word in COLOURS else ((), ())
            if len(rows) > 50:
                box = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
                found.append(Detection(word, tuple(map(float, box)), 0.9))  # type: ignore[arg-type]
        return found


@dataclass
class Cutter:
    shown: int = 0

    def segment(
        self, clips: Sequence[Sequence[Keyframe]], detections: Sequence[Sequence[Sequence[Detection]]]
    ) -> list[list[list[Segmentation]]]:
        self.shown += sum(map(len, clips))
        return [
            [
                [Segmentation(inside(keyframe.image, COLOURS[each.word]), 0.8) for each in found]
                for keyframe, found in zip(clip, frames, strict=True)
            ]
            for clip, frames in zip(clips, detections, strict=True)
        ]


@dataclass
class MeanColour:
    shown: int = 0

    def embed(self, images: Sequence[Image], masks: Sequence[Mask]) -> list[Vector]:
        self.shown += len(images)
        means = [image[mask].mean(axis=0).astype(np.float32) for image, mask in zip(images, masks, strict=True)]
        return [mean / np.linalg.norm(mean) for mean in means]


@dataclass
class Writer:
    captions: dict[float, ClipCaption]
    """By the time of a clip's first keyframe, to the half second."""

    def caption(self, clips: Sequence[Sequence[Keyframe]]) -> list[ClipCaption]:
        return [self.captions[round(2 * clip[0].time) / 2] for clip in clips]


@dataclass
class House:
    """All stages in a row, with the models that they ask."""

    captioner: Any = None
    text: Spotter = field(default_factory=Spotter)
    detector: Finder = field(default_factory=Finder)
    segmenter: Cutter = field(default_factory=Cutter)
    embedder: MeanColour = field(default_factory=MeanColour)
    min_brightness: float = 40

    def stages(self) -> list[Any]:
        score = ScoreStage(ScoreConfig(), "score-fp", self.text)
        describe = DescribeStage(DescribeConfig(keep_frames=2), self.embedder, None, None)
        return [
            LookStage(LookConfig(keyframes=4)),
            CheapStage(score, lambda score: score.brightness >= self.min_brightness),
            WordStage(self.captioner),
            GroundStage(self.detector),
            SegmentStage(self.segmenter),
            SubjectStage(describe),
        ]

    def run(self, *works: ClipWork) -> list[ClipWork]:
        batch = list(works)
        for stage in self.stages():
            batch = stage.run(batch)
        return batch


def work(source: Source, start_s: float = 0.0, end_s: float = 2.0, **changes: Any) -> ClipWork:
    clip = blank(Clip, clip_id=f"clip-{start_s:g}", video_id="v", start_s=start_s, end_s=end_s)
    return ClipWork(clip, source, "score-fp", "annotation-fp", **changes)


def words_of(done: ClipWork) -> list[str]:
    return sorted(subject.word for subject in done.subjects)


class Follower:
    """Finds the detector's first subject in every keyframe, and calls it instance 7."""

    def track(
        self, clips: Sequence[Sequence[Keyframe]], detections: Sequence[Sequence[Sequence[Detection]]]
    ) -> list[list[list[tuple[Detection, Segmentation]]]]:
        both = zip(clips, detections, strict=True)
        return [[self._found(keyframe, frames) for keyframe in clip] for clip, frames in both]

    def _found(self, keyframe: Keyframe, frames: Sequence[Sequence[Detection]]) -> list[tuple[Detection, Segmentation]]:
        seed = next((found for frame in frames for found in frame), None)
        if seed is None:
            return []
        mask = inside(keyframe.image, COLOURS[seed.word])
        return [(replace(seed, instance=7), Segmentation(mask, 0.8))]


def test_a_tracker_s_subjects_take_the_place_of_the_detector_s(video: Source) -> None:
    (done,) = House(segmenter=Follower()).run(work(video))  # type: ignore[arg-type]
    assert len(done.subjects) == 1
    assert done.subjects[0].seen == 4
    (plain,) = House().run(work(video))
    assert done.subjects[0].word in words_of(plain)


def test_keyframes_are_the_middles_of_equal_parts() -> None:
    assert keyframe_times(blank(Clip, start_s=10.0, end_s=12.0), 4) == [10.25, 10.75, 11.25, 11.75]


def test_a_clip_is_decoded_at_its_own_times(video: Source) -> None:
    (looked,) = LookStage(LookConfig(keyframes=3, max_side=80)).run([work(video, 1.0, 4.0)])
    assert looked.view is not None
    assert [keyframe.time for keyframe in looked.view.keyframes] == [1.5, 2.5, 3.5]
    for keyframe in looked.view.keyframes:
        assert keyframe.image.shape == (60, 80, 3)
        # Twelve frames a second: the neighbour is the next one, 1/24 s would show the same frame again.
        for shown, second in ((keyframe.image, keyframe.time), (keyframe.neighbour, keyframe.time + 1 / FPS)):
            expected = cv2.resize(picture(second), (80, 60), interpolation=cv2.INTER_AREA)
            assert np.abs(shown.astype(int) - expected).mean() < 6
        assert not np.array_equal(keyframe.image, keyframe.neighbour)


def test_a_clip_becomes_scores_subjects_and_an_annotation(video: Source) -> None:
    (done,) = House().run(work(replace(video, caption="A dog beside a car.", caption_source="sidecar")))
    assert done.score is not None
    assert (done.score.clip_id, done.score.fingerprint) == ("clip-0", "score-fp")
    assert 90 < done.score.brightness < 160
    assert done.score.motion > 0.1
    assert len(done.score.phashes) == 4
    assert done.annotation == Annotation(
        clip_id="clip-0",
        caption="A dog beside a car.",
        caption_source="sidecar",
        words=["dog", "car"],
        subjects=2,
        fingerprint="annotation-fp",
    )
    assert words_of(done) == ["car", "dog"]
    for subject in done.subjects:
        assert (subject.clip_id, subject.fingerprint, subject.seen) == ("clip-0", "annotation-fp", 4)
        assert len(subject.frames) == len(subject.crops) == 2
        colour = COLOURS[subject.word]
        crop = decode_png(subject.crops[0])
        middle = crop[crop.shape[0] // 2, crop.shape[1] // 2]
        assert np.abs(middle.astype(int) - colour).max() < 40
    assert Subject.to_table(done.subjects).num_rows == 2


def test_frames_are_let_go_of_at_the_end(video: Source) -> None:
    for done in House().run(work(video), work(video, 4.0, 6.0)):
        assert done.view is None
        assert (done.detections, done.segmentations) == ([], [])


def test_a_clip_that_its_scores_reject_reaches_no_subject_model(video: Source) -> None:
    house = House()
    (dark,) = house.run(work(video, 4.0, 6.0))
    assert not dark.wanted
    assert dark.score is not None
    assert dark.score.brightness < 40
    assert (dark.annotation, dark.subjects) == (None, [])
    assert house.text.shown == 3
    assert house.detector.times == []
    assert (house.segmenter.shown, house.embedder.shown) == (0, 0)


def test_only_the_rejected_clip_of_a_batch_is_held_back(video: Source) -> None:
    house = House()
    first, dark, second = house.run(work(video, 0.0, 2.0), work(video, 4.0, 6.0), work(video, 2.0, 4.0))
    assert [done.clip.clip_id for done in (first, dark, second)] == ["clip-0", "clip-4", "clip-2"]
    assert [done.wanted for done in (first, dark, second)] == [True, False, True]
    assert house.detector.times == [0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3.25, 3.75]
    assert house.segmenter.shown == 8
    for done in (first, second):
        assert words_of(done) == ["car", "dog"]
        assert {subject.clip_id for subject in done.subjects} == {done.clip.clip_id}
    assert dark.subjects == []


def test_the_threshold_is_asked_after_the_fact(video: Source) -> None:
    (done,) = House(min_brightness=0).run(work(video, 4.0, 6.0))
    assert done.wanted
    assert done.annotation is not None


def test_scores_from_before_are_not_made_again(video: Source) -> None:
    house = House()
    before = blank(Score, clip_id="clip-0", brightness=77.0, fingerprint="score-fp")
    known, new = house.run(work(video, score=before), work(video, 2.0, 4.0))
    assert known.score is before
    assert new.score is not None
    assert new.score.clip_id == "clip-2"
    assert house.text.shown == 3  # Of the other clip alone.
    assert words_of(known) == ["car", "dog"]


def test_scores_from_before_decide_as_new_ones_do(video: Source) -> None:
    house = House()
    (done,) = house.run(work(video, score=blank(Score, clip_id="clip-0", brightness=1.0)))
    assert not done.wanted
    assert (house.text.shown, house.detector.times) == (0, [])


def test_a_clip_annotated_before_only_gets_its_scores(video: Source) -> None:
    house = House()
    before = blank(Annotation, clip_id="clip-0", caption="A dog.", subjects=1)
    (done,) = house.run(work(video, annotation=before))
    assert done.score is not None
    assert (done.annotation, done.subjects, done.view) == (before, [], None)
    assert (house.text.shown, house.detector.times, house.segmenter.shown) == (3, [], 0)


def test_without_a_caption_what_is_found_writes_it(video: Source) -> None:
    house = House()
    (done,) = house.run(work(video))
    assert house.detector.asked == [[]]
    assert done.annotation is not None
    assert done.annotation.caption_source == "template"
    # The red square is the larger one.
    assert done.annotation.words == ["dog", "car"]
    assert done.annotation.caption == "A video of a dog and a car."


def test_a_caption_without_subject_words_asks_for_nothing(video: Source) -> None:
    house = House()
    (done,) = house.run(work(replace(video, caption="Waves roll in slowly.", caption_source="manifest")))
    assert house.detector.asked == []
    assert done.subjects == []
    assert done.annotation is not None
    assert (done.annotation.caption, done.annotation.words) == ("Waves roll in slowly.", [])
    assert (done.annotation.caption_source, done.annotation.subjects) == ("manifest", 0)


def test_words_that_are_not_to_be_seen_yield_no_subjects(video: Source) -> None:
    house = House()
    (done,) = house.run(work(replace(video, caption="A horse and a dog.", caption_source="manifest")))
    assert house.detector.asked == [["horse", "dog"]]
    assert words_of(done) == ["dog"]
    assert done.annotation is not None
    assert done.annotation.words == ["horse", "dog"]


def test_each_clip_of_a_batch_keeps_its_own_words(video: Source) -> None:
    def captioned(caption: str | None) -> Source:
        return replace(video, caption=caption, caption_source=caption and "manifest")

    house = House()
    done = house.run(
        work(captioned("A car.")),
        work(captioned("Rain.")),
        work(captioned("A car."), 4.0, 6.0),
        work(captioned(None)),
        work(captioned("A dog.")),
    )
    assert house.detector.asked == [["car"], [], ["dog"]]
    assert [words_of(each) for each in done] == [["car"], [], [], ["car", "dog"], ["dog"]]
    captions = [each.annotation.caption if each.annotation else None for each in done]
    assert captions == ["A car.", "Rain.", None, "A video of a dog and a car.", "A dog."]


def test_a_captioner_has_the_last_word(video: Source) -> None:
    captions = {
        0.0: ClipCaption("A car waits.", ("car",)),
        0.5: ClipCaption("A car waits.", ("car",)),
        2.0: ClipCaption("Nothing.", ()),
        2.5: ClipCaption("Nothing.", ()),
    }
    house = House(captioner=Writer(captions))
    named = replace(video, caption="A dog.", caption_source="manifest")
    first, second = house.run(work(named), work(named, 2.0, 4.0))
    assert house.detector.asked == [["car"]]
    assert first.annotation is not None
    assert second.annotation is not None
    assert (first.annotation.caption, first.annotation.caption_source) == ("A car waits.", "model")
    assert (words_of(first), words_of(second)) == (["car"], [])
    assert second.annotation.caption == "Nothing."


def test_batches_give_what_one_by_one_gives(video: Source) -> None:
    captioned = replace(video, caption="A dog.", caption_source="manifest")
    rain = replace(video, caption="Rain.", caption_source="manifest")
    works = [
        work(video, 0.0, 2.0),
        work(video, 4.0, 6.0),
        work(captioned, 0.5, 3.5),
        work(rain, 2.0, 4.0),
        work(video, 1.0, 3.0, score=blank(Score, brightness=99.0)),
    ]
    house = House()
    assert house.run(*works) == [each for one in works for each in house.run(one)]
    assert [done.clip.clip_id for done in house.run(*works)] == [each.clip.clip_id for each in works]


def test_no_clips_are_no_trouble() -> None:
    assert House().run() == []


@pytest.mark.parametrize("place", [1, 2, 3, 4])
def test_a_clip_that_was_not_decoded_is_an_error_that_names_it(video: Source, place: int) -> None:
    with pytest.raises(ValueError, match="clip-0 has not been decoded"):
        House().stages()[place].run([work(video)])


@pytest.mark.parametrize("raw", [{"look": {"keyframes": 1}}, {"look": {"neighbour_s": 0}}, {"detect": {}}])
def test_configs_that_cannot_be_kept_are_refused(raw: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        AnnotateConfig.model_validate(raw)
