from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from models.protocols import Image, Vector
from models.transnetv2 import TransNetV2
from stages.media import UnreadableVideo, probe
from stages.records import Clip, Source
from stages.split import Span, SplitConfig, SplitStage, Stretch, clip_id, spans, stretches

CLIPS = Path(__file__).parents[2].parent / "shared" / "clips"
MULTISHOT = CLIPS / "panda_blue_pickup_multishot.mp4"


def config(**changes: object) -> SplitConfig:
    return SplitConfig.model_validate({"min_s": 1.0, "max_s": 4.0, "span_s": 60.0, **changes})


def source(uri: str = "/nowhere.mp4", *, fps: float = 10.0, duration_s: float = 6.0) -> Source:
    return Source(
        source_id="s",
        uri=uri,
        video_id="v",
        bytes=0,
        container="mp4",
        codec="h264",
        width=64,
        height=48,
        rotation=0,
        fps=fps,
        frames=round(fps * duration_s),
        frames_announced=0,
        duration_s=duration_s,
        audio_streams=0,
        caption=None,
        caption_source=None,
        licence=None,
        origin=None,
        fingerprint="",
    )


def cut(
    transition: Sequence[float], luma: Sequence[float] | float = 128, fps: float = 10, **changes: object
) -> list[Stretch]:
    frames = len(transition)
    return stretches(
        np.array(transition, np.float32),
        np.broadcast_to(np.array(luma, np.float32), (frames,)),
        np.arange(frames + 1) / fps,
        config(**changes),
    )


def told(found: Iterable[Stretch]) -> list[tuple[int, int, int, str | None]]:
    return [(stretch.start, stretch.end, stretch.shot, stretch.dropped) for stretch in found]


@dataclass
class Footage:
    """Runs of like frames: probability of a transition, luma and seconds per frame."""

    transition: Vector
    luma: Vector
    times: np.ndarray
    config: SplitConfig

    @property
    def stretches(self) -> list[Stretch]:
        return stretches(self.transition, self.luma, self.times, self.config)

    def seconds(self, stretch: Stretch) -> float:
        return float(self.times[stretch.end] - self.times[stretch.start])

    def longest(self, stretch: Stretch) -> float:
        """Longest frame of the stretch's shot: between the two transitions around it."""
        marks = np.flatnonzero(self.transition >= self.config.threshold)
        before, after = marks[marks < stretch.start], marks[marks >= stretch.end]
        first = int(before[-1]) + 1 if before.size else 0
        last = int(after[0]) if after.size else len(self.transition)
        return float(np.diff(self.times[first : last + 1]).max())


@st.composite
def footage(draw: st.DrawFn, steps: st.SearchStrategy[float] | None = None) -> Footage:
    """With ``steps``, each run has a frame rate of its own."""
    constant = draw(st.sampled_from([0.02, 1 / 24, 0.1, 0.25, 1.0]))
    run = st.tuples(
        st.integers(1, 60),
        st.sampled_from([0.0, 0.0, 0.39, 0.4, 0.41, 1.0]),
        st.sampled_from([0.0, 15.9, 16.0, 16.1, 120.0, 120.0]),
        st.just(constant) if steps is None else steps,
    )
    runs = draw(st.lists(run, min_size=1, max_size=9))
    lengths = [length for length, *_ in runs]
    min_s = draw(st.sampled_from([0.1, 0.5, 1.0, 2.0]))
    max_s = min_s * draw(st.sampled_from([2.0, 2.5, 7.0]))
    start = draw(st.sampled_from([0.0, 600.0]))
    durations = np.repeat([step for *_, step in runs], lengths)
    return Footage(
        np.repeat(np.array([probability for _, probability, *_ in runs], np.float32), lengths),
        np.repeat(np.array([luma for *_, luma, _ in runs], np.float32), lengths),
        start + np.concatenate([[0.0], np.cumsum(durations)]),
        config(min_s=min_s, max_s=max_s, trim_frames=draw(st.integers(0, 5)), span_s=2 * max_s),
    )


def uneven() -> st.SearchStrategy[Footage]:
    return footage(st.sampled_from([0.001, 0.02, 0.04, 0.5, 3.0, 40.0]))


anything = settings(deadline=None, max_examples=150)


@anything
@given(st.one_of(footage(), uneven()))
def test_every_frame_is_in_exactly_one_stretch_in_order(video: Footage) -> None:
    found = video.stretches
    assert all(stretch.start < stretch.end for stretch in found)
    assert [stretch.start for stretch in found] == [0, *(stretch.end for stretch in found[:-1])]
    assert found[-1].end == len(video.transition)
    assert [stretch.shot for stretch in found] == sorted(stretch.shot for stretch in found)


@anything
@given(footage())
def test_clips_are_neither_too_short_nor_too_long(video: Footage) -> None:
    step = float(video.times[1] - video.times[0])
    for stretch in video.stretches:
        if stretch.dropped is None:
            assert video.seconds(stretch) >= video.config.min_s - step / 2 - 1e-6
            # Two rounded ends, and half a frame's tolerance spread over at least three clips.
            assert video.seconds(stretch) <= video.config.max_s + 1.2 * step + 1e-6
        if stretch.dropped == "too_short" and stretch.end - stretch.start > 2 * video.config.trim_frames:
            assert video.seconds(stretch) < video.config.min_s - step / 2 + 1e-6


@anything
@given(uneven())
def test_clips_of_uneven_frames_are_as_long_as_their_frames_allow(video: Footage) -> None:
    for stretch in video.stretches:
        if stretch.dropped is None:
            assert video.seconds(stretch) >= video.config.min_s - video.longest(stretch) / 2 - 1e-6
            assert video.seconds(stretch) <= video.config.max_s + 1.5 * video.longest(stretch) + 1e-6


@anything
@given(st.one_of(footage(), uneven()))
def test_no_frame_of_a_transition_or_beside_one_is_in_a_clip(video: Footage) -> None:
    marks = np.flatnonzero(video.transition >= video.config.threshold)
    for stretch in video.stretches:
        if stretch.dropped is None:
            around = (marks > stretch.start - 1 - video.config.trim_frames) & (
                marks < stretch.end + video.config.trim_frames
            )
            assert not around.any()


@anything
@given(st.one_of(footage(), uneven()))
def test_clips_begin_and_end_bright_or_are_dark_throughout(video: Footage) -> None:
    found = video.stretches
    for shot in {stretch.shot for stretch in found}:
        parts = [stretch for stretch in found if stretch.shot == shot and stretch.dropped != "transition"]
        if any(stretch.dropped is None for stretch in parts):
            lit = video.luma[parts[0].start : parts[-1].end] >= video.config.fade_luma
            assert (lit[0] and lit[-1]) or not lit.any()


def test_both_sides_of_a_transition_are_trimmed_but_not_the_ends_of_the_video() -> None:
    transition = [0.0] * 20 + [0.9] * 2 + [0.1] * 18
    assert told(cut(transition, trim_frames=3)) == [
        (0, 17, 0, None),
        (17, 20, 0, "transition"),
        (20, 22, 1, "transition"),
        (22, 25, 1, "transition"),
        (25, 40, 1, None),
    ]
    assert told(cut(transition, trim_frames=0)) == [(0, 20, 0, None), (20, 22, 1, "transition"), (22, 40, 1, None)]


def test_a_transition_is_what_reaches_the_threshold() -> None:
    shape = [0.0] * 20 + [0.5] + [0.0] * 19
    assert len(cut(shape, threshold=0.5)) == 5
    assert told(cut(shape, threshold=0.51)) == [(0, 40, 0, None)]


def test_fades_are_trimmed_at_every_end_of_a_shot() -> None:
    luma = [0.0] * 4 + [16.0] * 20 + [15.0] * 6
    assert told(cut([0.0] * 30, luma)) == [(0, 4, 0, "transition"), (4, 24, 0, None), (24, 30, 0, "transition")]
    between = [100.0] * 12 + [2.0] * 4 + [100.0] * 14
    assert told(cut([0.0] * 30, between)) == [(0, 30, 0, None)]  # Lights out in the middle are part of the shot.


def test_an_all_dark_shot_is_kept_whole() -> None:
    assert told(cut([0.0] * 30, 3.0)) == [(0, 30, 0, None)]


def test_an_all_dark_shot_between_others_loses_no_more_than_they_do() -> None:
    transition = ([0.0] * 20 + [1.0]) * 2 + [0.0] * 20
    luma = [100.0] * 21 + [3.0] * 21 + [100.0] * 20
    assert told(cut(transition, luma, trim_frames=3)) == told(cut(transition, 100.0, trim_frames=3))
    assert (24, 38, 1, None) in told(cut(transition, luma, trim_frames=3))


def test_a_shot_that_is_all_trimmings_is_dropped() -> None:
    transition = [0.0] * 20 + [1.0] + [0.0] * 6 + [1.0] + [0.0] * 12
    # One frame a second: six of them would be long enough.
    found = told(cut(transition, fps=1, max_s=100, span_s=200, trim_frames=3))
    assert (21, 27, 1, "too_short") in found
    assert [(start, end) for start, end, _, dropped in found if dropped is None] == [(0, 17), (31, 40)]


def test_long_shots_are_cut_evenly() -> None:
    found = cut([0.0] * 90, fps=10, max_s=4)
    assert told(found) == [(0, 30, 0, None), (30, 60, 0, None), (60, 90, 0, None)]
    assert told(cut([0.0] * 40, fps=10, max_s=4)) == [(0, 40, 0, None)]


def test_half_a_frame_does_not_make_a_shot_too_short_or_too_long() -> None:
    assert [stretch.dropped for stretch in cut([0.0] * 10, fps=10.3, min_s=1)] == [None]
    assert [stretch.dropped for stretch in cut([0.0] * 9, fps=10, min_s=1)] == ["too_short"]
    assert len(cut([0.0] * 40, fps=9.95, max_s=4)) == 1
    assert len(cut([0.0] * 41, fps=10, max_s=4)) == 2


def test_one_long_frame_is_not_cut_and_leaves_nothing_empty() -> None:
    times = np.array([0.0, 0.5, 1.0, 1.5, 31.5, 32.0, 32.5])  # A still of half a minute.
    found = stretches(np.zeros(6, np.float32), np.full(6, 99, np.float32), times, config(min_s=2, max_s=10))
    assert told(found) == [(0, 4, 0, None), (4, 6, 0, "too_short")]


def test_uneven_frames_are_cut_by_time_and_not_by_number() -> None:
    times = np.concatenate([np.arange(0, 4, 0.02), np.arange(4, 8.1, 0.5)])  # 200 fast frames, then 8 slow ones.
    frames = len(times) - 1
    found = stretches(np.zeros(frames, np.float32), np.full(frames, 99, np.float32), times, config(max_s=4))
    assert told(found) == [(0, 200, 0, None), (200, 208, 0, None)]


@settings(deadline=None)
@given(st.floats(0.02, 100_000), st.floats(20, 5000))
@example(600.0, 600.0)
@example(600.0001, 600.0)
def test_spans_tile_a_video(duration_s: float, span_s: float) -> None:
    found = spans(source(duration_s=duration_s), config(span_s=span_s))
    assert found[0].start_s == 0
    assert found[-1].end_s == math.inf  # What the file holds beyond its announced end belongs to the last.
    assert all(a.end_s == b.start_s for a, b in pairwise(found))
    lengths = np.diff([*(span.start_s for span in found), duration_s])
    assert lengths.max() <= span_s * (1 + 1e-9)
    assert lengths.min() == pytest.approx(lengths.max(), rel=1e-6)
    assert len({span.span_id for span in found}) == len(found) == max(1, math.ceil(duration_s / span_s))


@settings(deadline=None)
@given(st.floats(0.1, 10_000), st.floats(20, 5000), st.floats(1, 60), st.text(max_size=5), st.floats(0.1, 0.9))
def test_spans_follow_from_duration_and_length_alone(
    duration_s: float, span_s: float, fps: float, uri: str, threshold: float
) -> None:
    def bounds(video: Source, **changes: object) -> list[tuple[str, float, float]]:
        found = spans(video, config(span_s=span_s, **changes))
        assert all(span.source is video for span in found)
        return [(span.span_id, span.start_s, span.end_s) for span in found]

    other = replace(source(uri, fps=fps, duration_s=duration_s), source_id="other", width=9, fingerprint="other")
    assert bounds(source(duration_s=duration_s)) == bounds(other, threshold=threshold, trim_frames=0)


def test_clip_ids_follow_from_the_video_and_the_range() -> None:
    ranges = [("v", 0, 9), ("v", 0, 90), ("v", 9, 90), ("v0", 9, 90), ("w", 0, 9)]
    ids = [clip_id(*each) for each in ranges]
    assert len(set(ids)) == len(ranges)
    assert ids == [clip_id(*each) for each in ranges]
    assert all(set(each) <= set("0123456789abcdef") for each in ids)


@pytest.mark.parametrize(
    "changes", [{"max_s": 1.9}, {"span_s": 7.9}, {"threshold": 1}, {"min_s": 0}, {"treshold": 0.4}]
)
def test_configs_that_cannot_be_kept_are_refused(changes: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        config(**changes)


@dataclass
class Brightening:
    """Marks the last frame before the picture changes a lot, as TransNet V2 does; notes what it was shown."""

    frame_size: tuple[int, int] = (16, 8)
    shown: list[float] = field(default_factory=list)

    def transitions(self, frames: Iterable[Image]) -> Vector:
        levels = []
        for image in frames:
            assert image.shape == (8, 16, 3)
            levels.append(float(image.mean()))
        self.shown += levels
        return np.array([*(abs(b - a) > 40 for a, b in pairwise(levels)), False][: len(levels)], np.float32)


def write(path: Path, levels: Sequence[int], times: Sequence[float] | None = None, fps: int = 10) -> Source:
    """A video of even grey frames; the source that it makes."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=fps, options={"preset": "ultrafast", "crf": "10"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        for number, level in enumerate(levels):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), level, np.uint8), format="rgb24")
            frame.pts, frame.time_base = round(1000 * (times[number] if times else number / fps)), Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    found = probe(path)
    return replace(source(str(path), fps=found.fps, duration_s=found.duration_s), frames=found.frames)


def run(video: Source, detector: Brightening | None = None, **changes: object) -> list[Clip]:
    stage = SplitStage(config(**changes), detector or Brightening(), "fp")
    return [clip for span in spans(video, stage.config) for clip in stage.run(span)]


def test_a_video_is_cut_where_its_shots_are(tmp_path: Path) -> None:
    video = write(tmp_path / "video.mp4", [60] * 20 + [200] * 25 + [0] * 15)
    clips = run(video, trim_frames=2)
    assert [(clip.start_frame, clip.end_frame, clip.shot, clip.dropped) for clip in clips] == [
        (0, 17, 0, None),
        (17, 19, 0, "transition"),
        (19, 20, 1, "transition"),
        (20, 22, 1, "transition"),
        (22, 42, 1, None),
        (42, 44, 1, "transition"),
        (44, 45, 2, "transition"),
        (45, 47, 2, "transition"),
        (47, 60, 2, None),
    ]
    for clip in clips:
        assert clip.start_s == pytest.approx(clip.start_frame / 10, abs=1e-3)
        assert clip.end_s == pytest.approx(clip.end_frame / 10, abs=1e-3)
        assert clip.clip_id == clip_id("v", clip.start_frame, clip.end_frame)
        assert (clip.video_id, clip.span_id, clip.fingerprint) == ("v", "v-0000", "fp")
    assert len(Clip.to_table(clips)) == len(clips)
    assert run(video, trim_frames=2) == clips


def test_fades_of_a_video_are_trimmed_by_its_luma(tmp_path: Path) -> None:
    video = write(tmp_path / "video.mp4", [0] * 5 + [120] * 30, fps=10)

    class Blind(Brightening):
        def transitions(self, frames: Iterable[Image]) -> Vector:
            return np.zeros(len(list(frames)), np.float32)

    clips = run(video, Blind())
    assert [(clip.start_frame, clip.end_frame, clip.dropped) for clip in clips] == [(0, 5, "transition"), (5, 35, None)]


def test_the_spans_of_a_long_video_see_each_frame_once(tmp_path: Path) -> None:
    levels = [50 + number for number in range(100)]
    video = write(tmp_path / "video.mp4", levels, fps=10)
    detector = Brightening()
    clips = run(video, detector, min_s=0.5, max_s=2, span_s=4)
    assert [clip.span_id for clip in clips if clip.shot == 0][::2] == ["v-0000", "v-0001", "v-0002"]
    np.testing.assert_allclose(detector.shown, levels, atol=4)
    assert clips[0].start_frame == 0
    assert clips[-1].end_frame == 100
    # A span ends where it was told to, be it in the middle of a frame.
    assert all(0 <= b.start_frame - a.end_frame <= (a.span_id != b.span_id) for a, b in pairwise(clips))
    assert {clip.dropped for clip in clips} == {None}


def test_frames_closer_than_usual_make_no_two_clips_of_one_id(tmp_path: Path) -> None:
    # A screen recording: a frame a second, but twenty within a moment when something happens.
    times = [*range(30), *(29.5 + 0.02 * number for number in range(1, 21)), *range(30, 60)]
    video = write(tmp_path / "video.mkv", [60] * 40 + [200] * 40, times)
    clips = run(video, min_s=2, max_s=40, span_s=80, trim_frames=3)
    assert len({clip.clip_id for clip in clips}) == len(clips)
    assert all(clip.start_frame < clip.end_frame for clip in clips)
    used = [clip for clip in clips if not clip.dropped]
    assert [clip.shot for clip in used] == [0, 1]
    assert used[0].end_s == pytest.approx(29.5 + 0.02 * 7, abs=0.01)
    assert used[1].start_s == pytest.approx(29.5 + 0.02 * 14, abs=0.01)


def test_a_span_without_a_frame_is_an_error_that_names_the_video(tmp_path: Path) -> None:
    video = write(tmp_path / "video.mp4", [60] * 10)
    with pytest.raises(UnreadableVideo, match=r"video\.mp4.*from 5\.0 s"):
        SplitStage(config(), Brightening(), "").run(Span("v-0001", video, 5.0, math.inf))


def test_a_single_frame_is_a_stretch(tmp_path: Path) -> None:
    (clip,) = run(write(tmp_path / "video.mp4", [60]))
    assert (clip.start_frame, clip.end_frame, clip.dropped) == (0, 1, "too_short")


@settings(deadline=None)
@given(st.floats(0.02, 200), st.sampled_from([5.0, 10.0, 23.976, 59.94]))
@example(8.0, 10.0)
def test_strides_tile_a_video_without_looking_at_it(duration_s: float, fps: float) -> None:
    duration_s = max(1, round(duration_s * fps)) / fps
    clips = run(source(fps=fps, duration_s=duration_s), by="stride", min_s=1, max_s=4, span_s=50)
    assert clips[0].start_s == 0
    assert clips[-1].end_s == pytest.approx(duration_s)
    assert all(a.end_frame == b.start_frame for a, b in pairwise(clips))
    assert all(clip.end_s - clip.start_s <= 4 + 0.5 / fps + 1e-6 for clip in clips)
    assert all((clip.dropped is None) == (clip.end_s - clip.start_s >= 1) for clip in clips)
    assert all(clip.start_frame < clip.end_frame for clip in clips)
    assert len({clip.clip_id for clip in clips}) == len(clips)


@settings(deadline=None)
@given(st.floats(0.02, 1), st.integers(1, 60), st.sampled_from([1.0, 4.0]))
@example(0.1, 2, 4.0)
def test_strides_of_less_than_a_frame_make_no_clips_without_frames(fps: float, frames: int, max_s: float) -> None:
    clips = run(source(fps=fps, duration_s=frames / fps), by="stride", min_s=0.5, max_s=max_s, span_s=50)
    used = [clip for clip in clips if not clip.dropped]
    assert all(clip.start_frame < clip.end_frame for clip in used)
    assert all(a.end_frame <= b.start_frame for a, b in pairwise(used))
    assert len({clip.clip_id for clip in used}) == len(used)
    assert used


def test_seconds_of_less_than_an_average_frame_make_no_two_clips_of_one_id(tmp_path: Path) -> None:
    # A slide show: a slide a minute, and in between three shots of a few frames a second.
    times = [0, 60, 120, *(180 + number for number in range(9)), 240, 300, 360, 420, 480]
    levels = [60] * 3 + [200] * 3 + [60] * 3 + [200] * 3 + [60] * 5
    clips = run(write(tmp_path / "video.mkv", levels, times), min_s=1, max_s=600, span_s=1200, trim_frames=0)
    assert all(clip.start_frame < clip.end_frame for clip in clips)
    assert len({clip.clip_id for clip in clips}) == len(clips)
    assert [clip.shot for clip in clips if not clip.dropped]


def test_clips_of_one_range_have_one_id_whoever_cuts_them(tmp_path: Path) -> None:
    video = write(tmp_path / "video.mp4", [100] * 80)
    by_shots, by_stride = (run(video, by=by, max_s=4) for by in ("shots", "stride"))
    assert [clip.clip_id for clip in by_shots] == [clip.clip_id for clip in by_stride]
    assert len(by_shots) == 2


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Threads that wait for a busy core make the network several times slower."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.skipif(not MULTISHOT.is_file(), reason=f"the real clip ../shared/clips/{MULTISHOT.name} is not here")
def test_a_real_video_is_cut_at_its_cuts(one_thread: None) -> None:
    with (CLIPS / "index.csv").open(newline="") as handle:
        listed = next(row["cut_frames"] for row in csv.DictReader(handle) if row["file"] == MULTISHOT.name)
    # The first two of the three cuts: the network takes its time.
    cuts, frames = [int(frame) for frame in listed.split()][:2], 198
    found = probe(MULTISHOT)
    video = source(str(MULTISHOT), fps=found.fps, duration_s=found.duration_s)
    detector = TransNetV2(TransNetV2.Config(), Path())
    clips = SplitStage(config(), detector, "fp").run(Span("span", video, 0.0, frames / found.fps))

    used = [clip for clip in clips if clip.dropped is None]
    shots = list(pairwise([0, *cuts, frames]))
    assert len(used) == len(shots)
    # The last frame of the old shot counts as the transition, usually with its neighbour; three more are trimmed.
    for clip, (first, last) in zip(used, shots, strict=True):
        assert first <= clip.start_frame <= first + (5 if first else 0)
        assert last - (6 if last < frames else 0) <= clip.end_frame <= last
    assert all(a.end_frame == b.start_frame for a, b in pairwise([*clips, replace(clips[0], start_frame=frames)]))
