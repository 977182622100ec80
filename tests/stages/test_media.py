from __future__ import annotations

import bisect
import csv
import io
import os
import shutil
import struct
import subprocess
import wave
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import av
import fsspec
import imageio_ffmpeg
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stages import media
from stages.media import (
    EncodedClip,
    EncodingError,
    UnreadableVideo,
    encode_clip,
    local_copy,
    probe,
    read_keyframes,
    stream_frames,
)

CLIPS = Path(__file__).parents[2].parent / "shared" / "clips"
FRAMES = 200
needs_clips = pytest.mark.skipif(not CLIPS.is_dir(), reason="the real clips (../shared/clips) are not on this machine")


def clips() -> list[dict[str, str]]:
    index = CLIPS / "index.csv"
    return list(csv.DictReader(index.open(newline=""))) if index.exists() else []


def numbered(number: int) -> np.ndarray:
    """A picture of eight bars that are the bits of its number."""
    bits = [255 * (number >> bit & 1) for bit in range(8)]
    return np.repeat(np.tile(np.repeat(np.array(bits, np.uint8), 16), (64, 1))[..., None], 3, axis=2)


def number_of(image: np.ndarray) -> int:
    middle = image[image.shape[0] // 2].mean(axis=1)
    return sum(int(middle[int((bit + 0.5) * len(middle) / 8)] > 128) << bit for bit in range(8))


def write_numbered(
    path: Path, times: Sequence[float], codec: str = "libx264", clock: int = 90000, **options: str
) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=30, options=options)
        stream.width, stream.height, stream.pix_fmt = 128, 64, "yuv420p"
        stream.codec_context.time_base = Fraction(1, clock)
        stream.codec_context.gop_size = int(options.get("g", 30))
        for number, time in enumerate(times):
            frame = av.VideoFrame.from_ndarray(numbered(number), format="rgb24")
            frame.pts, frame.time_base = round(time * clock), Fraction(1, clock)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def ffmpeg(*arguments: str | Path) -> bytes:
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-nostdin", "-loglevel", "error", "-y", *map(str, arguments)]
    return subprocess.run(command, check=True, capture_output=True).stdout


def decode(data: bytes) -> list[np.ndarray]:
    with av.open(io.BytesIO(data)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def encode(path: Path, start: float = 0.0, end: float = 0.5, **changes: object) -> EncodedClip:
    settings = {"width": 128, "height": 64, "fit": "keep", "fps": 24, "crf": 15, "preset": "ultrafast", "timeout_s": 60}
    return encode_clip(path, start, end, **{**settings, **changes})  # type: ignore[arg-type]


CONSTANT = [number / 30 for number in range(FRAMES)]
VARIABLE = list(np.cumsum(np.resize([1, 1, 2, 5, 0.5, 1, 3], FRAMES)) / 30)
NUMBERED: dict[str, Callable[[Path], Path]] = {
    "constant.mp4": lambda path: write_numbered(path, CONSTANT),
    "variable.mkv": lambda path: write_numbered(path, VARIABLE),
    "variable.mp4": lambda path: write_numbered(path, VARIABLE),
    "late.mkv": lambda path: write_numbered(path, [time + 10 for time in CONSTANT]),
    "negative.mkv": lambda path: write_numbered(path, [time - 1 for time in CONSTANT]),
    "edit-list.mp4": lambda path: write_numbered(path, [time - 1 for time in CONSTANT]),  # Hides the first second.
    "late.ts": lambda path: write_numbered(path, [time + 10 for time in CONSTANT]),
    "one-seek-point.ts": lambda path: write_numbered(path, CONSTANT, g="200"),
    "open-gop.ts": lambda path: write_numbered(path, CONSTANT, x264opts="open-gop=1:bframes=3:keyint=30"),
    "b-frames.avi": lambda path: write_numbered(path, CONSTANT, codec="mpeg4", clock=30, bf="2"),
    "windows.asf": lambda path: write_numbered(path, CONSTANT, codec="wmv2", clock=30),
    "flash.flv": lambda path: write_numbered(path, CONSTANT, clock=1000),
}


class Numbered:
    """A file with what a plain decode of all its frames sees."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with av.open(str(path)) as container:
            frames = [(frame.time, number_of(frame.to_ndarray(format="rgb24"))) for frame in container.decode(video=0)]
        self.times = [time - frames[0][0] for time, _ in frames]
        self.numbers = [number for _, number in frames]

    def shown(self, time: float) -> int:
        return self.numbers[max(0, bisect.bisect_right(self.times, time + 0.001) - 1)]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Numbered]]:
    folder = tmp_path_factory.mktemp("numbered")
    made: dict[str, Numbered] = {}

    def get(name: str) -> Numbered:
        if name not in made:
            made[name] = Numbered(NUMBERED[name](folder / name))
        return made[name]

    yield get
    shutil.rmtree(folder)


@pytest.fixture(params=NUMBERED)
def file(request: pytest.FixtureRequest, files: Callable[[str], Numbered]) -> Numbered:
    return files(request.param)


@pytest.fixture
def plain(files: Callable[[str], Numbered]) -> Numbered:
    return files("constant.mp4")


class TestProbe:
    @needs_clips
    @pytest.mark.parametrize("row", [row for row in clips() if row["frames_decoded"]], ids=lambda row: row["file"])
    def test_counts_what_decodes(self, row: dict[str, str]) -> None:
        found = probe(CLIPS / row["file"])
        assert found.frames == int(row["frames_decoded"])
        assert (found.width, found.height) == (int(row["width"]), int(row["height"]))
        assert found.audio_streams == int(row["audio_streams"])
        assert found.fps == pytest.approx(found.frames / found.duration_s)
        if row["seconds"]:
            assert found.duration_s == pytest.approx(float(row["seconds"]), abs=0.15)

    @needs_clips
    @pytest.mark.parametrize(
        ("name", "announced", "frames"), [("ocv_tree_cinepak.avi", 444, 68), ("bad_truncated_moov_front.mp4", 290, 166)]
    )
    def test_tells_what_the_header_claims_apart(self, name: str, announced: int, frames: int) -> None:
        found = probe(CLIPS / name)
        assert (found.frames_announced, found.frames) == (announced, frames)

    @needs_clips
    @pytest.mark.parametrize(
        ("name", "message"), [("bad_empty.mp4", "empty"), ("bad_truncated_moov_missing.mp4", r"index \(moov\)")]
    )
    def test_says_why_a_damaged_file_is_unreadable(self, name: str, message: str) -> None:
        with pytest.raises(UnreadableVideo, match=message):
            probe(CLIPS / name)

    def test_knows_every_container(self, file: Numbered) -> None:
        found = probe(file.path)
        assert found.frames == len(file.numbers)
        assert found.duration_s == pytest.approx(file.times[-1], abs=0.2)
        assert (found.width, found.height, found.rotation) == (128, 64, 0)

    def test_average_rate_of_a_variable_one(self, files: Callable[[str], Numbered]) -> None:
        found = probe(files("variable.mp4").path)
        assert found.fps == pytest.approx(FRAMES / found.duration_s)
        assert found.duration_s == pytest.approx(VARIABLE[-1] - VARIABLE[0], abs=0.11)

    def test_missing_file(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError):
            probe(tmp_path / "none.mp4")

    def test_frames_before_the_first_decodable_one_do_not_count(self, tmp_path: Path) -> None:
        whole = write_numbered(tmp_path / "whole.ts", CONSTANT, g="50", sc_threshold="0")
        data = whole.read_bytes()
        (tmp_path / "cut.ts").write_bytes(data[len(data) // 3 // 188 * 188 :])
        found, frames = probe(tmp_path / "cut.ts"), list(stream_frames(tmp_path / "cut.ts", 0, 99, (128, 64)))
        assert found.frames == len(frames)
        assert frames[0][0] == 0
        assert number_of(frames[0][1]) % 50 == 0

    def test_cover_art_is_no_video(self, tmp_path: Path) -> None:
        ffmpeg("-f", "lavfi", "-i", "color=red:s=32x32", "-frames:v", "1", tmp_path / "cover.jpg")
        sound = ("-f", "lavfi", "-i", "sine=d=1")
        ffmpeg(*sound, "-i", tmp_path / "cover.jpg", "-map", "0", "-map", "1", "-c:v", "copy",
               "-disposition:v", "attached_pic", "-f", "mp4", tmp_path / "song.mp4")  # fmt: skip
        ffmpeg(*sound, tmp_path / "sound.mp4")
        for name in ("song.mp4", "sound.mp4"):
            with pytest.raises(UnreadableVideo, match="no video stream"):
                probe(tmp_path / name)

    def test_a_stream_that_never_decodes(self, tmp_path: Path, plain: Numbered) -> None:
        data = bytearray(plain.path.read_bytes())
        start = data.index(b"mdat") + 4
        stop = data.index(b"moov") if data.index(b"moov") > start else len(data)
        data[start : stop - 4] = bytes(stop - 4 - start)
        (tmp_path / "zeros.mp4").write_bytes(data)
        with pytest.raises(UnreadableVideo, match="not a single frame"):
            probe(tmp_path / "zeros.mp4")

    def test_holes_in_a_stream_are_skipped(self, tmp_path: Path, plain: Numbered) -> None:
        data = bytearray(plain.path.read_bytes())
        middle = data.index(b"mdat") + (len(data) - data.index(b"mdat")) // 2
        data[middle : middle + 300] = bytes(300)
        (tmp_path / "hole.mp4").write_bytes(data)
        frames = list(stream_frames(tmp_path / "hole.mp4", 0, 99, (128, 64)))
        assert len(frames) > FRAMES // 2
        assert frames[-1][0] > 5
        assert encode(tmp_path / "hole.mp4", 0, 6).frames == 144


class TestHostileFiles:
    def refused(self, path: Path, message: str = "not a video") -> None:
        with pytest.raises(UnreadableVideo, match=message):
            probe(path)
        with pytest.raises(UnreadableVideo, match=message):
            read_keyframes(path, [0.0], 0.1, 64)
        with pytest.raises(UnreadableVideo, match=message):
            next(stream_frames(path, 0, 1, (64, 64)))
        with pytest.raises(UnreadableVideo, match=message):
            encode(path)

    @pytest.mark.parametrize("relative", [True, False])
    def test_playlists_read_no_other_file(self, tmp_path: Path, plain: Numbered, relative: bool) -> None:
        shutil.copy(plain.path, tmp_path / "secret.mp4")
        target = "secret.mp4" if relative else str(tmp_path / "secret.mp4")
        playlists = {
            "concat.mp4": f"ffconcat version 1.0\nfile '{target}'\n",
            "hls.mp4": f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:6.0,\n{target}\n#EXT-X-ENDLIST\n",
            "dash.mp4": "<?xml version='1.0'?><MPD xmlns='urn:mpeg:dash:schema:mpd:2011' type='static'><Period>"
            f"<AdaptationSet><Representation><BaseURL>{target}</BaseURL></Representation></AdaptationSet></Period></MPD>",
            "sdp.mp4": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\n",
        }
        for name, text in playlists.items():
            (tmp_path / name).write_text(text)
            self.refused(tmp_path / name)

    @pytest.mark.parametrize("name", ["picture.png", "picture.jpg", "picture.gif", "picture.bmp", "raw.h264"])
    def test_pictures_and_raw_streams_are_no_videos(self, tmp_path: Path, name: str) -> None:
        ffmpeg("-f", "lavfi", "-i", "testsrc=s=64x64:r=1", "-frames:v", "1", tmp_path / name)
        (tmp_path / name).rename(tmp_path / "named.mp4")
        self.refused(tmp_path / "named.mp4")

    def test_sound_and_noise_are_no_videos(self, tmp_path: Path) -> None:
        with wave.open(str(tmp_path / "sound.mp4"), "wb") as sound:
            sound.setparams((1, 2, 8000, 0, "NONE", ""))
            sound.writeframes(bytes(8000))
        (tmp_path / "noise.mp4").write_bytes(np.random.default_rng(0).bytes(9999))
        (tmp_path / "text.mp4").write_text("no video at all\n" * 99)
        (tmp_path / "nothing.mp4").touch()
        for name in ("sound.mp4", "noise.mp4", "text.mp4"):
            self.refused(tmp_path / name)
        self.refused(tmp_path / "nothing.mp4", "empty")

    def test_ffmpeg_gets_the_same_rules(self, tmp_path: Path, plain: Numbered) -> None:
        (tmp_path / "list.mp4").write_text(f"ffconcat version 1.0\nfile '{plain.path.name}'\n")
        shutil.copy(plain.path, tmp_path)
        rules = [word for key, value in media._OPTIONS.items() for word in (f"-{key}", value)]
        with pytest.raises(subprocess.CalledProcessError) as caught:
            ffmpeg(*rules, "-i", f"file:{tmp_path / 'list.mp4'}", "-f", "null", "-")
        assert b"whitelist" in caught.value.stderr

    @pytest.mark.parametrize(
        "name",
        ["-i.mp4", "a b 'c' \"d\".mp4", "übung 影片.mp4", "line\nbreak.mp4", "%d-%03d.mp4", "http:x.mp4",
         "concat:a|b.mp4", "[x];&$(y)`z`*?.mp4", "pipe:0", "ends with backslash\\",
         "crypto:a,b=c.mp4", os.fsdecode(b"latin-\xe9.mp4")],
    )  # fmt: skip
    def test_names_are_only_names(
        self, tmp_path: Path, plain: Numbered, name: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        shutil.copy(plain.path, tmp_path / name)
        monkeypatch.chdir(tmp_path)
        for path in (tmp_path / name, Path(name)):
            assert probe(path).frames == FRAMES
            assert number_of(read_keyframes(path, [3.0], 0, 128)[0].image) == plain.shown(3.0)
        assert encode(tmp_path / name, 2, 2.5).data == encode(plain.path, 2, 2.5).data

    def test_a_header_cannot_ask_for_gigabytes(self, tmp_path: Path) -> None:
        ffmpeg(
            "-f", "lavfi", "-i", "color=black:s=64x64:r=1", "-frames:v", "1", "-c:v", "mjpeg", tmp_path / "small.avi"
        )
        data = bytearray((tmp_path / "small.avi").read_bytes())
        size = data.index(b"\xff\xc0") + 5
        data[size : size + 4] = struct.pack(">HH", 16000, 16000)
        (tmp_path / "huge.avi").write_bytes(data)
        self.refused(tmp_path / "huge.avi", "not a single frame")


@pytest.fixture(scope="module")
def coloured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("coloured") / "plain.mp4"
    ffmpeg("-f", "lavfi", "-i", "testsrc=s=96x64:r=10:d=1", "-c:v", "libx264", "-qp", "0", "-pix_fmt", "yuv444p", path)
    return path


class TestOrientation:
    @pytest.mark.parametrize("flips", [(), ("-display_hflip",), ("-display_vflip",)])
    @pytest.mark.parametrize("turn", [0, 90, 180, 270])
    def test_frames_are_turned_as_players_turn_them(
        self, tmp_path: Path, coloured: Path, turn: int, flips: tuple[str, ...]
    ) -> None:
        turned = tmp_path / "turned.mp4"
        ffmpeg("-display_rotation", str(-turn), *flips, "-i", coloured, "-c", "copy", turned)
        found = probe(turned)
        width, height = (64, 96) if turn % 180 else (96, 64)
        assert (found.width, found.height) == (width, height)
        if not flips:
            assert found.rotation == turn
        raw = ffmpeg("-i", turned, "-frames:v", "1", "-f", "rawvideo", "-pix_fmt", "rgb24", "-")
        expected = np.frombuffer(raw, np.uint8).reshape(height, width, 3).astype(int)
        (keyframe,) = read_keyframes(turned, [0.0], 0.1, 999)
        assert np.abs(keyframe.image - expected).mean() < 2
        _, streamed = next(stream_frames(turned, 0, 1, (width, height)))
        assert np.abs(streamed - expected).mean() < 2
        clip = encode(turned, width=96, height=96, crf=1)
        assert (clip.width, clip.height) == (width, height)
        assert np.abs(decode(clip.data)[0] - expected).mean() < 8  # The clip has half the colour resolution.

    def test_pixels_come_out_square(self, tmp_path: Path, coloured: Path) -> None:
        wide = tmp_path / "wide.mp4"
        ffmpeg("-i", coloured, "-vf", "setsar=2", "-c:v", "libx264", wide)
        assert (probe(wide).width, probe(wide).height) == (192, 64)
        assert read_keyframes(wide, [0.0], 0.1, 999)[0].image.shape == (64, 192, 3)
        clip = encode(wide, width=400, height=400)
        assert (clip.width, clip.height) == (192, 64)


class TestKeyframes:
    @settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(data=st.data())
    def test_are_the_frames_on_display(self, file: Numbered, data: st.DataObject) -> None:
        end = file.times[-1] + 0.5
        times = data.draw(st.lists(st.floats(-0.2, end) | st.sampled_from(file.times), min_size=1, max_size=4))
        neighbour = data.draw(st.sampled_from([0.0, 0.04, 0.3]))
        keyframes = read_keyframes(file.path, times, neighbour, 128)
        assert [keyframe.time for keyframe in keyframes] == times
        seen = [(number_of(keyframe.image), number_of(keyframe.neighbour)) for keyframe in keyframes]
        assert seen == [(file.shown(time), file.shown(time + neighbour)) for time in times]

    @needs_clips
    @pytest.mark.parametrize(
        "name",
        ["asl_personA_again.mkv", "mdn_rabbit_vp8.webm", "ocv_tree_cinepak.avi",
         "ocv_vtest_first15s.avi", "bad_truncated_moov_front.mp4", "opens2v_three_women_badmeta.mp4"],
    )  # fmt: skip
    def test_of_real_clips_equal_a_full_decode(self, name: str) -> None:
        with av.open(str(CLIPS / name), metadata_errors="ignore") as container:
            frames = [
                (frame.time, frame.reformat(80, 60, "rgb24", interpolation="AREA").to_ndarray().astype(int))
                for frame in container.decode(video=0)
            ]
        starts = [time - frames[0][0] for time, _ in frames]
        for asked in (starts[-1] * 0.31, starts[-1] * 0.77, starts[-1] + 5):
            (keyframe,) = read_keyframes(CLIPS / name, [asked], 0.1, 9999)
            image = av.VideoFrame.from_ndarray(keyframe.image, format="rgb24")
            seen = image.reformat(80, 60, interpolation="AREA").to_ndarray()
            difference = [np.abs(seen - picture).mean() for _, picture in frames]
            shown = bisect.bisect_right(starts, asked + 0.001) - 1
            assert difference[shown] <= min(difference) + 0.05

    def test_are_never_enlarged(self, plain: Numbered) -> None:
        for side, shape in ((9999, (64, 128, 3)), (128, (64, 128, 3)), (50, (25, 50, 3)), (1, (1, 1, 3))):
            (keyframe,) = read_keyframes(plain.path, [1.0], 0.1, side)
            assert keyframe.image.shape == keyframe.neighbour.shape == shape
            assert keyframe.image.dtype == np.uint8
            assert keyframe.image.flags.c_contiguous

    def test_none_asked(self, plain: Numbered) -> None:
        assert read_keyframes(plain.path, [], 0.1, 64) == []


class TestStreamFrames:
    def test_streams_all_frames_in_order(self, file: Numbered) -> None:
        frames = list(stream_frames(file.path, 0, 1e9, (48, 27)))
        assert [number_of(image) for _, image in frames] == file.numbers
        assert [time for time, _ in frames] == pytest.approx(file.times, abs=0.002)
        assert {image.shape for _, image in frames} == {(27, 48, 3)}

    @pytest.mark.parametrize("file", ["constant.mp4", "variable.mkv", "open-gop.ts"], indirect=True)
    @settings(max_examples=5, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(cuts=st.lists(st.floats(0, 8) | st.sampled_from(CONSTANT), max_size=3).map(sorted))
    def test_adjoining_stretches_tile_the_video(self, file: Numbered, cuts: list[float]) -> None:
        edges = [0.0, *cuts, 1e9]
        parts = [stream_frames(file.path, start, end, (48, 27)) for start, end in pairwise(edges)]
        assert [number_of(image) for part in parts for _, image in part] == file.numbers

    def test_threads_change_nothing(self, plain: Numbered) -> None:
        one, two = (list(stream_frames(plain.path, 1, 4, (48, 27), threads)) for threads in (1, 2))
        assert [time for time, _ in one] == [time for time, _ in two]
        assert all(np.array_equal(a, b) for (_, a), (_, b) in zip(one, two, strict=True))

    def test_can_be_left_early(self, plain: Numbered) -> None:
        frames = stream_frames(plain.path, 0, 9, (48, 27))
        next(frames)
        frames.close()  # type: ignore[attr-defined]


class TestEncode:
    @pytest.mark.parametrize(
        ("start", "seconds", "fps"), [(0.0, 1.0, 24), (3.0, 1.5, 30), (4.4377, 0.7, 29.97), (2.1, 0.5, 60)]
    )
    def test_shows_the_frames_on_display(self, file: Numbered, start: float, seconds: float, fps: float) -> None:
        clip = encode(file.path, start, start + seconds, fps=fps)
        seen = [number_of(image) for image in decode(clip.data)]
        rate = float(Fraction(fps).limit_denominator(1001))
        assert seen == [file.shown(start + frame / rate) for frame in range(round(seconds * fps))]
        assert clip.frames == len(seen)

    @settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(start=st.floats(0, 4), seconds=st.floats(0.1, 1), fps=st.sampled_from([8, 23.976, 24, 25, 30, 59.94]))
    def test_frame_count(self, plain: Numbered, start: float, seconds: float, fps: float) -> None:
        clip = encode(plain.path, start, start + seconds, fps=fps)
        assert abs(clip.frames - seconds * fps) <= 0.5 + 1e-6
        assert clip.fps == pytest.approx(fps, rel=1e-4)

    @needs_clips
    @pytest.mark.parametrize(
        ("name", "size"),
        [("panda_person_dog.mp4", (480, 270)), ("dj_red_dress_portrait.mp4", (270, 480)),
         ("ocv_tree_cinepak.avi", (320, 240)), ("opens2v_three_women_badmeta.mp4", (480, 270)),
         ("mdn_rabbit_vp8.webm", (320, 240))],
    )  # fmt: skip
    def test_real_clips(self, name: str, size: tuple[int, int], tmp_path: Path) -> None:
        clip = encode(CLIPS / name, 0.5, 1.5, width=480, height=480)
        (tmp_path / "clip.mp4").write_bytes(clip.data)
        found = probe(tmp_path / "clip.mp4")
        assert (found.container.split(",")[1], found.codec, found.audio_streams) == ("mp4", "h264", 0)
        assert (found.frames, found.frames_announced) == (24, 24)
        assert found.fps == pytest.approx(24)
        assert (found.width, found.height) == (clip.width, clip.height)
        assert abs(clip.width - size[0]) <= 2
        assert abs(clip.height - size[1]) <= 2

    def test_same_bytes_every_time_and_none_that_tell_where_or_when(self, plain: Numbered, tmp_path: Path) -> None:
        tagged = tmp_path / "tagged.mp4"
        ffmpeg("-i", plain.path, "-c", "copy", "-metadata", "title=Secret", "-metadata", "creation_time=now", tagged)
        first, second = encode(plain.path, 1, 2), encode(tagged, 1, 2)
        assert first == second
        assert b"Secret" not in first.data
        assert first.data.index(b"moov") < first.data.index(b"mdat")

    @pytest.mark.parametrize(
        ("fit", "box", "size"),
        [("keep", (64, 64), (64, 32)), ("keep", (999, 999), (128, 64)), ("keep", (101, 63), (100, 50)),
         ("crop", (64, 64), (64, 64)), ("crop", (256, 256), (256, 256)), ("crop", (32, 64), (32, 64)),
         ("pad", (64, 64), (64, 64)), ("pad", (256, 200), (256, 200)), ("pad", (62, 90), (62, 90))],
    )  # fmt: skip
    def test_sizes(self, plain: Numbered, fit: str, box: tuple[int, int], size: tuple[int, int]) -> None:
        clip = encode(plain.path, 0, 0.2, width=box[0], height=box[1], fit=fit)
        image = decode(clip.data)[0]
        assert (clip.width, clip.height) == size == (image.shape[1], image.shape[0])

    def test_crop_keeps_the_middle_and_pad_keeps_all(self, tmp_path: Path) -> None:
        bars = tmp_path / "bars.mp4"
        write_numbered(bars, CONSTANT[:20])  # Frame 19 is 0b10011: three of eight bars are white.
        assert number_of(decode(encode(bars, 19 / 30, 20 / 30, fit="pad", width=128, height=128).data)[0]) == 19
        frames = decode(encode(bars, 0, 20 / 30, fit="crop", width=32, height=64, fps=30).data)
        for number, frame in enumerate(frames):
            middle = [int(frame[32, x].mean() > 128) for x in (8, 24)]
            assert middle == [number >> 3 & 1, number >> 4 & 1]

    def test_pad_is_black(self, plain: Numbered) -> None:
        frame = decode(encode(plain.path, 5, 5.2, fit="pad", width=128, height=128).data)[0]
        assert frame[:28].max() < 12
        assert frame[-28:].max() < 12

    @given(
        size=st.tuples(st.integers(2, 8192), st.integers(2, 8192)),
        box=st.tuples(st.integers(1, 2048), st.integers(1, 2048)).map(lambda half: (2 * half[0], 2 * half[1])),
        fit=st.sampled_from(["keep", "crop", "pad"]),
    )
    def test_fit(self, size: tuple[int, int], box: tuple[int, int], fit: str) -> None:
        picture, canvas = media._fit(size, box, fit)
        assert canvas[0] % 2 == canvas[1] % 2 == 0
        if fit == "crop":
            assert canvas == box
            assert picture[0] >= box[0]
            assert picture[1] >= box[1]
            assert picture[0] == box[0] or picture[1] == box[1]
        else:
            assert all(2 <= inner <= outer for inner, outer in zip(picture, box, strict=True))
            assert canvas == (picture if fit == "keep" else box)
        if fit == "keep":
            assert all(inner <= outer for inner, outer in zip(picture, size, strict=True))

    def test_ends_where_the_video_ends(self, plain: Numbered) -> None:
        clip = encode(plain.path, 6.0, 8.0, fps=30)
        assert clip.frames == 20
        assert [number_of(image) for image in decode(clip.data)] == list(range(180, 200))
        with pytest.raises(UnreadableVideo, match="no frame between"):
            encode(plain.path, 100, 101)

    @needs_clips
    def test_of_a_truncated_file_has_what_is_there(self) -> None:
        clip = encode(CLIPS / "bad_truncated_moov_front.mp4", 5.0, 7.0, fps=30)
        assert 10 <= clip.frames <= 18

    @pytest.mark.parametrize(
        "changes",
        [{"start": 1.0, "end": 1.0}, {"start": 2.0, "end": 1.0}, {"start": -1.0}, {"width": 0}, 
         {"width": 63, "fit": "pad"}, {"height": 63, "fit": "crop"}],
    )  # fmt: skip
    def test_no_clip(self, plain: Numbered, changes: dict[str, float]) -> None:
        with pytest.raises(ValueError, match=r"no clip|even sides"):
            encode(plain.path, **changes)

    def test_failure_tells_what_ffmpeg_said(self, plain: Numbered) -> None:
        with pytest.raises(EncodingError, match="no_such_preset"):
            encode(plain.path, preset="no_such_preset")

    def test_time_out_kills_and_cleans_up(
        self, plain: Numbered, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        stubborn = tmp_path / "ffmpeg"
        stubborn.write_text(f"#!/bin/sh\necho $$ > {tmp_path}/pid\nexec sleep 60\n")
        stubborn.chmod(0o755)
        monkeypatch.setattr(imageio_ffmpeg, "get_ffmpeg_exe", lambda: str(stubborn))
        (tmp_path / "tmp").mkdir()
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
        with pytest.raises(TimeoutError, match="killed"):
            encode(plain.path, timeout_s=1.5)
        assert list((tmp_path / "tmp").iterdir()) == []
        with pytest.raises(ProcessLookupError):
            os.kill(int((tmp_path / "pid").read_text()), 0)


class TestLocalCopy:
    @pytest.fixture
    def memory(self) -> Iterator[fsspec.AbstractFileSystem]:
        filesystem = fsspec.filesystem("memory")
        yield filesystem
        filesystem.store.clear()
        filesystem.pseudo_dirs[:] = [""]

    def test_local_files_stay_where_they_are(self, tmp_path: Path) -> None:
        path = tmp_path / "a b%20.mp4"
        path.write_bytes(b"video")
        for uri in (str(path), path.as_uri()):
            with local_copy(uri) as copy:
                assert copy == path
        assert path.exists()

    def test_remote_files_are_fetched_and_removed(self, memory: fsspec.AbstractFileSystem, plain: Numbered) -> None:
        memory.pipe("/folder/a.mp4", plain.path.read_bytes())
        with local_copy("memory://folder/a.mp4") as copy:
            assert probe(copy).frames == FRAMES
        assert not copy.parent.exists()

    def test_removed_after_an_error_too(self, memory: fsspec.AbstractFileSystem) -> None:
        memory.pipe("/a.mp4", b"x")
        with pytest.raises(KeyError), local_copy("memory://a.mp4") as copy:
            raise KeyError
        assert not copy.parent.exists()

    def test_nothing_there(self, memory: fsspec.AbstractFileSystem) -> None:
        with pytest.raises(FileNotFoundError), local_copy("memory://none.mp4"):
            pass
