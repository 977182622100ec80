from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import pytest
from pydantic import ValidationError

from models.protocols import Image, Keyframe, TextRegion
from stages.media import probe, read_keyframes
from stages.records import Clip, Score, Source
from stages.score import ScoreConfig, ScoreStage, text_share
from stages.view import ClipView

CLIPS = Path(__file__).parents[2].parent / "shared" / "clips"
needs_clips = pytest.mark.skipif(not CLIPS.is_dir(), reason="the real clips (../shared/clips) are not on this machine")


class Spotter:
    """Finds what it is told to, and notes what it was shown."""

    def __init__(self, found: Sequence[list[TextRegion]] = ()) -> None:
        self.found = list(found)
        self.batches: list[int] = []

    def spot(self, images: Sequence[Image]) -> list[list[TextRegion]]:
        self.batches.append(len(images))
        return [self.found.pop(0) if self.found else [] for _ in images]


def clip(clip_id: str = "c", seconds: float = 3.0) -> Clip:
    return Clip(clip_id, "v", "s", 0, 90, 0.0, seconds, 0, None, "")


def source(fps: float = 24.0) -> Source:
    return Source(
        source_id="s",
        uri="",
        video_id="v",
        bytes=0,
        container="mp4",
        codec="h264",
        width=160,
        height=120,
        rotation=0,
        fps=fps,
        frames=90,
        frames_announced=90,
        duration_s=3.0,
        audio_streams=0,
        caption=None,
        caption_source=None,
        licence=None,
        origin=None,
        fingerprint="",
    )


def region(x0: float, y0: float, x1: float, y1: float) -> TextRegion:
    return TextRegion(np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], np.float32), 0.9)


def noise(seed: int, height: int = 240, width: int = 330) -> Image:
    coarse = np.random.default_rng(seed).integers(40, 215, (height // 12, width // 12, 3)).astype(np.uint8)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)


def moving(times: Sequence[float], fps: float, neighbour_s: float = 1 / 24, per_frame: int = 3) -> list[Keyframe]:
    """Keyframes of a video that moves by ``per_frame`` pixels a frame, sampled as a decoder does."""
    wide = noise(0)
    keyframes = []
    for time in times:
        frames = [int((instant + 1e-6) * fps) for instant in (time, time + neighbour_s)]
        step = (frames[1] - frames[0]) * per_frame
        keyframes.append(Keyframe(time, wide[:, :310], wide[:, step : 310 + step]))
    return keyframes


def score(keyframes: list[Keyframe], fps: float = 24.0, text: Spotter | None = None) -> Score:
    return ScoreStage(ScoreConfig(), "fp", text).run([ClipView(clip(), source(fps), keyframes)])[0]


def test_config_knows_no_other_keys() -> None:
    with pytest.raises(ValidationError):
        ScoreConfig(tex_frames=3)  # type: ignore[call-arg]


def test_one_score_per_view_in_order_with_the_stage_s_fingerprint() -> None:
    stage = ScoreStage(ScoreConfig(), "fp")
    views = [ClipView(clip(name), source(), moving([0.5, 1.0], 24)) for name in "bac"]
    scores = stage.run(views)
    assert [row.clip_id for row in scores] == ["b", "a", "c"]
    assert {row.fingerprint for row in scores} == {"fp"}
    assert scores[0].text_area == 0
    assert Score.to_table(scores).num_rows == 3
    assert stage.run([]) == []


def test_a_hash_per_keyframe() -> None:
    images = [noise(seed) for seed in range(3)]
    phashes = score([Keyframe(float(time), image, image) for time, image in enumerate(images)]).phashes
    assert len(phashes) == 3
    assert all(((a ^ b) % 2**64).bit_count() > 10 for a, b in pairwise(phashes))


@pytest.mark.parametrize("fps", [10.0, 24.0, 25.0, 29.97, 30.0, 50.0, 60.0])
def test_motion_does_not_depend_on_the_frame_rate(fps: float) -> None:
    # 72 pixels a second, drawn on a finer canvas: that is no whole number of pixels a frame at most of the rates.
    wide = cv2.resize(noise(0), None, fx=4, fy=4)

    def shown(time: float) -> Image:
        left = round(4 * 72 * int((time + 1e-6) * fps) / fps)
        return cv2.resize(wide[:, left : left + 1000], (250, 240), interpolation=cv2.INTER_AREA)

    times = [0.11 + 0.17 * number for number in range(6)]
    keyframes = [Keyframe(time, shown(time), shown(time + 1 / 24)) for time in times]
    assert score(keyframes, fps).motion == pytest.approx(1000 * 3 / np.hypot(250, 240), rel=0.2)


def test_frames_that_are_their_own_neighbours_say_nothing_about_motion() -> None:
    still = noise(3)[:, :310]
    keyframes = [*moving([0.09, 0.19], 10), Keyframe(0.2, still, still)]
    assert score(keyframes, 10).motion == pytest.approx(score(moving([0.09, 0.19], 10), 10).motion)
    assert score([Keyframe(0.2, still, still)], 10).motion == 0


def test_text_is_searched_for_in_a_few_frames_of_all_clips_at_once() -> None:
    spotter = Spotter()
    stage = ScoreStage(ScoreConfig(text_frames=3), "fp", spotter)
    lengths = (8, 2, 1)
    views = [ClipView(clip(str(length)), source(), moving([0.1 * n for n in range(length)], 24)) for length in lengths]
    stage.run(views)
    assert spotter.batches == [3 + 2 + 1]


def test_text_area_is_the_largest_of_the_frames() -> None:
    small, large = region(10, 10, 100, 20), region(10, 200, 300, 230)
    keyframes = moving([0.1, 0.2, 0.3], 24)
    found = score(keyframes, text=Spotter([[small], [large, small], []])).text_area
    assert found == pytest.approx(text_share([large, small], 240, 310))
    assert found == pytest.approx((290 * 30 + 90 * 10) / (240 * 310), rel=0.06)


@dataclass
class Judge:
    """Likes a picture by its red, and is sure of nudity by its green."""

    batches: list[int] = field(default_factory=list)

    def aesthetic(self, images: Sequence[Image]) -> list[float]:
        self.batches.append(len(images))
        return [float(image[..., 0].mean()) for image in images]

    def nudity(self, images: Sequence[Image]) -> list[float]:
        self.batches.append(len(images))
        return [float(image[..., 1].mean()) / 255 for image in images]


def plain(red: int, green: int) -> Keyframe:
    image = np.full((48, 64, 3), (red, green, 0), np.uint8)
    return Keyframe(0.0, image, image)


def test_frames_are_judged_in_one_call_the_mean_of_liking_and_the_worst_of_nudity() -> None:
    judge = Judge()
    stage = ScoreStage(ScoreConfig(judged_frames=2), "fp", None, judge, judge)
    first = [plain(2, 0), plain(9, 255), plain(9, 255), plain(6, 51)]
    views = [ClipView(clip("a"), source(), first), ClipView(clip("b"), source(), [plain(5, 102)])]
    scores = stage.run(views)
    # Of four keyframes the second and the fourth are looked at.
    assert [row.aesthetic for row in scores] == pytest.approx([7.5, 5])
    assert [row.nudity for row in scores] == pytest.approx([1, 0.4])
    assert judge.batches == [3, 3]


def test_what_no_model_judges_is_left_out() -> None:
    found = score(moving([0.1, 0.2], 24))
    assert (found.aesthetic, found.nudity) == (None, None)


def test_overlapping_text_counts_once() -> None:
    a, b = region(0, 0, 99, 9), region(50, 0, 149, 9)
    assert text_share([a, b], 100, 200) == pytest.approx(150 * 10 / 20000, rel=0.02)
    assert text_share([a, a], 100, 200) == text_share([a], 100, 200)
    assert text_share([], 100, 200) == 0


def test_regions_too_tall_for_a_line_of_text_are_no_text() -> None:
    assert text_share([region(0, 0, 199, 99)], 100, 200) == 0
    assert text_share([region(0, 0, 14, 99)], 100, 200) > 0.05  # A line that runs down is one.


@cache
def real(name: str) -> Score:
    path = CLIPS / name
    found = probe(path)
    times = [(number + 0.5) * found.duration_s / 6 for number in range(6)]
    keyframes = read_keyframes(path, times, max(1 / 24, 1 / found.fps), 640)
    return ScoreStage(ScoreConfig(), "").run([ClipView(clip(), source(found.fps), keyframes)])[0]


@needs_clips
def test_real_clips_fall_on_the_right_side_of_the_proposed_thresholds() -> None:
    good = [
        real(name)
        for name in ("panda_goalkeeper.mp4", "asl_personB_book.mkv", "panda_comedian.mp4", "koala_two_men.mp4")
    ]
    assert min(row.brightness for row in good) > 40 > real("panda_woman_headset_dark.mp4").brightness
    assert max(row.static for row in good) < 0.8 < real("panda_nes_game.mp4").static
    assert min(row.motion for row in good) > 0.12 > real("panda_nes_game.mp4").motion
    assert min(row.sharpness for row in good) > 40 > real("panda_bw_film.mp4").sharpness
    assert max(row.border for row in good) < 0.02 < real("panda_car_letterbox.mp4").border


@needs_clips
def test_a_slow_video_is_not_taken_for_a_still() -> None:
    assert 0.05 < real("ocv_vtest_first15s.avi").motion < 1
