"""Video files: what is in them, their frames, and short clips cut out of them.

Times are seconds from the first frame that can be shown, whatever the file's own clock says. The frame *displayed at* a
time is the last one that does not start later than it, to within a millisecond, for containers round their clocks to
that. Frames are RGB, turned and stretched as a player would show them (display matrix, pixel aspect ratio).

Headers are not believed: frames are counted, first frames are decoded. Nor are files: only containers of real video are
opened, so that a playlist or a picture under a video's name is refused and no file makes libav read another one.
"""

from __future__ import annotations

import io
import math
import os
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import Any, Literal, cast
from urllib.parse import unquote_to_bytes, urlsplit

import av
import av.error
import ffmpeg
import fsspec
import imageio_ffmpeg
import numpy as np
from av.codec.context import ThreadType
from av.container import InputContainer
from av.sidedata.sidedata import Type as SideDataType
from av.stream import Disposition
from av.video.frame import VideoFrame
from av.video.reformatter import Interpolation, VideoReformatter
from av.video.stream import VideoStream

from models.protocols import Image, Keyframe

_OPTIONS = {
    # A playlist (hls, dash, concat, sdp) names other files and URLs to read. No such format is here, and no picture.
    "protocol_whitelist": "file",
    "format_whitelist": "mov,matroska,avi,mpegts,mpeg,flv,asf,ogg,mxf,nut,rm,dv,gxf",
    # Twice 8K: a few bytes of a hostile header must not allocate gigabytes.
    "max_pixels": str(2 * 7680 * 4320),
}
_TOLERANCE_S = 0.001
_SEEK_BACK_S = (0.0, 1.0, 4.0, 16.0, 64.0)
_SOURCE = "file:source"
_STDERR_LINES = 20
_FAST = Interpolation.AREA | Interpolation.ACCURATE_RND | Interpolation.BITEXACT  # The same pixels on every processor.
_FINE = _FAST | Interpolation.FULL_CHR_H_INT


class UnreadableVideo(ValueError):  # noqa: N818
    """The file is no video, or none of it can be decoded; the message says which and why."""


class EncodingError(RuntimeError):
    """ffmpeg refused or failed; the message ends with the last lines that it printed."""


@dataclass(frozen=True, slots=True)
class Probe:
    """What a file really holds."""

    container: str
    """libav's name of the container, such as ``matroska,webm``."""
    codec: str
    width: int
    """As displayed: after rotation, with square pixels."""
    height: int
    rotation: int
    """Degrees clockwise that the file asks players to turn its frames by: 0, 90, 180 or 270."""
    fps: float
    """Average rate over the frames that are really there; greater than 0."""
    frames: int
    """Displayed frames, counted by demuxing: packets with data from the first decodable frame on; at least 1."""
    frames_announced: int
    """What the header says; 0 where it says nothing."""
    duration_s: float
    """From the start of the first frame to the end of the last; greater than 0."""
    audio_streams: int


@dataclass(frozen=True, slots=True)
class EncodedClip:
    """An MP4 file (H.264, yuv420p, constant frame rate, no sound) and what is in it."""

    data: bytes
    width: int
    height: int
    frames: int
    """Frames that the file really holds: fewer than asked for only where the video ended before the clip."""
    fps: float


@dataclass(frozen=True, slots=True)
class _Orientation:
    """How a stored frame becomes the displayed one: turned upside down or not, then turned clockwise."""

    flip: bool = False
    turns: int = 0
    """Quarter turns, 0 to 3."""

    def size(self, width: int, height: int) -> tuple[int, int]:
        """Displayed size of a stored one, and the other way round."""
        return (height, width) if self.turns % 2 else (width, height)

    def apply(self, image: Image) -> Image:
        return np.ascontiguousarray(np.rot90(image[::-1] if self.flip else image, -self.turns))

    def filters(self, frames: Any) -> Any:
        """The same as ffmpeg filters."""
        if self.flip:
            frames = frames.filter("vflip")
        if self.turns == 2:
            return frames.filter("hflip").filter("vflip")
        return frames.filter("transpose", "clock" if self.turns == 1 else "cclock") if self.turns else frames


@dataclass(frozen=True, slots=True)
class _Video:
    """An open file of which the first frame has been decoded."""

    path: Path
    threads: int
    container: InputContainer
    stream: VideoStream
    frames: Iterator[tuple[float, VideoFrame]]
    """All of them, by their time on the file's own clock. Of no use after a seek."""
    origin: float
    """Time of the first one."""
    orientation: _Orientation
    size: tuple[int, int]
    """Displayed width and height."""


def probe(path: Path) -> Probe:
    """Look into a file: demuxes all of it, decodes one frame and turns that into RGB.

    Raises `UnreadableVideo` for whatever is not a video of which at least one frame decodes, ``OSError`` where the file
    cannot be read.
    """
    with _opened(path) as video:
        rotation, (width, height), origin = video.orientation.turns * 90, video.size, video.origin
        _picture(VideoReformatter(), next(video.frames)[1], video.orientation, (16, 16), _FAST)
    with _demuxer(path) as (container, stream):
        clock = _clock(stream)
        frames, first, last, gap = 0, math.inf, -math.inf, 0.0
        for packet in _packets(container, stream):
            if packet.is_discard:  # Cut off by the container's edit list.
                continue
            if packet.pts is not None and float(packet.pts * clock) < origin - _TOLERANCE_S:
                continue  # What is cut out of a broadcast starts with frames that lack the ones they build on.
            frames += 1
            stamp = packet.pts if packet.pts is not None else packet.dts
            if stamp is not None:
                time = float(stamp * clock)
                first = min(first, time)
                if time > last:
                    last, gap = time, float((packet.duration or 0) * clock)
        frames = max(frames, 1)
        span = max(last - first, 0.0)  # Infinitely negative without a single time stamp.
        duration = span + (gap or span / max(frames - 1, 1)) if span > 0 else frames / float(_rate(stream))
        return Probe(
            container=container.format.name,
            codec=stream.codec_context.name,
            width=width,
            height=height,
            rotation=rotation,
            fps=frames / duration,
            frames=frames,
            frames_announced=stream.frames,
            duration_s=duration,
            audio_streams=len(container.streams.audio),
        )


def read_keyframes(path: Path, times: Sequence[float], neighbour_s: float, max_side: int) -> list[Keyframe]:
    """The frames displayed at ``times`` and ``neighbour_s`` seconds after each, in the order of ``times``.

    One decode pass, from the nearest seek point before the first time to the last one. Pictures keep their aspect
    ratio; the longer side is at most ``max_side`` pixels (area interpolation, never scaled up). A time before the first
    frame gives the first frame, a time after the last decodable frame gives that.

    Raises `UnreadableVideo` if not a single frame decodes.
    """
    instants = sorted({instant for time in times for instant in (time, time + neighbour_s)})
    pictures: dict[float, Image] = {}
    if not instants:
        return []
    with _opened(path) as video:
        scale = min(1.0, max_side / max(video.size))
        size = (max(1, round(video.size[0] * scale)), max(1, round(video.size[1] * scale)))
        reformatter = VideoReformatter()

        def show(frame: VideoFrame, shown: Sequence[float]) -> None:
            if shown:
                picture = _picture(reformatter, frame, video.orientation, size, _FINE)
                pictures.update(dict.fromkeys(shown, picture))

        frames = _frames_from(video, instants[0])
        _, current = next(frames)
        for time, following in frames:
            if len(pictures) == len(instants):
                break
            show(current, [t for t in instants[len(pictures) :] if t + _TOLERANCE_S < time])
            current = following
        show(current, instants[len(pictures) :])
    return [Keyframe(time, pictures[time], pictures[time + neighbour_s], neighbour_s) for time in times]


def stream_frames(
    path: Path, start_s: float, end_s: float, size: tuple[int, int], threads: int = 1
) -> Iterator[tuple[float, Image]]:
    """Every frame that starts in ``[start_s, end_s)``, as ``(time, RGB image)``, in order; memory stays flat.

    ``size`` is ``(width, height)``; the aspect ratio is not kept. Adjoining stretches share no frame and miss none.
    ``threads`` are the decoder's. Raises `UnreadableVideo` if the file cannot be decoded at all.
    """
    with _opened(path, threads) as video:
        reformatter = VideoReformatter()
        for time, frame in _frames_from(video, start_s):
            if time >= end_s - _TOLERANCE_S:
                return
            if time >= start_s - _TOLERANCE_S:
                yield time, _picture(reformatter, frame, video.orientation, size, _FAST)


def encode_clip(
    path: Path,
    start_s: float,
    end_s: float,
    *,
    width: int,
    height: int,
    fit: Literal["keep", "crop", "pad"],
    fps: float,
    crf: int,
    preset: str,
    timeout_s: float,
) -> EncodedClip:
    """Cut ``[start_s, end_s)`` out of a video and encode it with libx264.

    Frame ``n`` is the one displayed at ``start_s + n / fps``; there are ``round((end_s - start_s) * fps)`` of them, or
    fewer if the video ends earlier. ``fit``: ``keep`` fits the picture inside ``width`` x ``height``, never enlarged,
    rounded down to even sides; ``crop`` fills the size and cuts off what stands out, equally on both sides; ``pad``
    fits the picture inside and adds black bars. The same file and arguments give the same bytes.

    Raises ``ValueError`` for sizes and times that make no clip, `UnreadableVideo` for a file of which nothing decodes,
    ``TimeoutError`` once ffmpeg took ``timeout_s`` (it is killed), `EncodingError` if it failed otherwise.
    """
    rate = Fraction(fps).limit_denominator(1001)
    count = math.floor((end_s - start_s) * fps + 0.5)
    if start_s < -_TOLERANCE_S or count < 1:
        raise ValueError(f"no clip of {fps} frames a second from {start_s} s to {end_s} s")
    if min(width, height) < 2 or (fit != "keep" and (width % 2 or height % 2)):
        raise ValueError(f"H.264 in yuv420p needs even sides of at least 2 pixels, not {width} x {height}")
    with _opened(path) as video:
        seek_s, _ = _seek(video, start_s)
        picture, canvas = _fit(video.size, (width, height), fit)
        # Unlike ffmpeg's own accurate seek, which starts with the first frame after the asked time, this keeps the
        # frames before it: one of them is displayed at that time.
        seek = {} if seek_s is None else {"ss": f"{seek_s:.6f}", "seek_timestamp": 1, "noaccurate_seek": None}
        source = ffmpeg.input(_SOURCE, threads=1, noautorotate=None, copyts=None, **seek, **_OPTIONS)
        frames = _constant_rate(source[str(video.stream.index)], video.origin + start_s, rate)
        frames = video.orientation.filters(frames)
    frames = frames.filter("scale", *picture, flags="lanczos+accurate_rnd+bitexact", out_range="tv")
    if fit == "crop":
        frames = frames.filter("crop", *canvas)
    elif fit == "pad":
        frames = frames.filter(
            "pad", *canvas, *((outer - inner) // 4 * 2 for outer, inner in zip(canvas, picture, strict=True))
        )
    frames = frames.filter("setsar", 1).filter("format", "yuv420p")
    data = _encode(path, frames, count, crf, preset, timeout_s)
    written = _count(data)
    if written == 0:
        raise UnreadableVideo(f"no frame between {start_s} s and {end_s} s")
    return EncodedClip(data=data, width=canvas[0], height=canvas[1], frames=written, fps=float(rate))


@contextmanager
def local_copy(uri: str) -> Iterator[Path]:
    """A local path to what ``uri`` names.

    Plain paths and ``file://`` URIs are used where they lie. Anything else that fsspec can open is downloaded to a
    temporary file, which is gone afterwards. Raises ``OSError`` (``FileNotFoundError``) where there is nothing.
    """
    if (path := local_path(uri)) is not None:
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="s2v-download-") as folder:
        copy = Path(folder) / "video"
        with fsspec.open(uri, "rb") as remote, copy.open("wb") as file:
            shutil.copyfileobj(remote, file, 1 << 20)
        yield copy


def local_path(uri: str) -> Path | None:
    """The path that a plain path or a ``file://`` URI (percent-encoded) names; nothing for remote URIs."""
    if uri.startswith("/") or "://" not in uri:
        return Path(uri)
    if urlsplit(uri).scheme == "file":
        return Path(os.fsdecode(unquote_to_bytes(uri.split("://", 1)[1].removeprefix("localhost"))))
    return None


@contextmanager
def _demuxer(path: Path, threads: int = 1) -> Iterator[tuple[InputContainer, VideoStream]]:
    """Open a file and choose its video stream."""
    with path.open("rb") as file:  # Tells what the system forbids from what the content makes libav say.
        if not file.read(1):
            raise UnreadableVideo("the file is empty")
    try:
        container = av.open(f"file:{path.absolute()}", "r", options=dict(_OPTIONS), metadata_errors="ignore")
    except av.error.ArgumentError as error:
        raise UnreadableVideo(
            "not a video: its content is that of a picture, a sound, a playlist or a raw stream"
        ) from error
    except (av.error.InvalidDataError, av.error.EOFError) as error:
        raise UnreadableVideo("not a video, or one whose index (moov) is missing or damaged") from error
    except av.error.FFmpegError as error:
        raise UnreadableVideo(f"cannot be opened: {error}") from error
    with container:
        streams = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
        if not streams:
            raise UnreadableVideo("no video stream")
        stream = streams[0]
        if cast(Any, stream.codec_context) is None:
            raise UnreadableVideo("no decoder for its video stream")
        stream.codec_context.options = {"max_pixels": _OPTIONS["max_pixels"]}
        stream.codec_context.thread_count = threads
        stream.codec_context.thread_type = ThreadType.AUTO if threads > 1 else ThreadType.NONE
        yield container, stream


@contextmanager
def _opened(path: Path, threads: int = 1) -> Iterator[_Video]:
    """Open a file and decode its first frame."""
    with _demuxer(path, threads) as (container, stream):
        frames = _decoded(container, stream)
        first = next(frames, None)
        if first is None:
            raise UnreadableVideo("not a single frame can be decoded")
        origin, frame = first
        orientation, ratio = _orientation(frame), stream.sample_aspect_ratio
        width = max(1, round(frame.width * ratio)) if ratio and 0.1 < ratio < 10 else frame.width
        size = orientation.size(width, frame.height)
        yield _Video(path, threads, container, stream, chain([first], frames), origin, orientation, size)


def _packets(container: InputContainer, stream: VideoStream) -> Iterator[av.Packet[VideoStream]]:
    """The stream's packets that hold data, until the file ends or breaks off."""
    try:
        for packet in container.demux(stream):
            if packet.size:
                yield packet
    except (av.error.FFmpegError, IndexError):  # PyAV trips over streams that turn up in the middle of damaged files.
        return


def _decoded(container: InputContainer, stream: VideoStream) -> Iterator[tuple[float, VideoFrame]]:
    """Frames from where the container stands, in order of display, by their time on the file's own clock."""
    time, clock, stamps = None, _clock(stream), _Stamps()
    for packet in chain(_packets(container, stream), [None]):  # Nothing: whatever the decoder still holds.
        try:
            frames = stream.decode(packet)
        except av.error.FFmpegError:  # One damaged packet; the next ones may be whole.
            continue
        for frame in frames:
            stamp = stamps.choose(frame.pts, frame.dts)
            if stamp is None:
                time = 0.0 if time is None else time + float(1 / _rate(stream))
            else:
                time = float(stamp * clock) if time is None else max(float(stamp * clock), time)
            yield time, frame


@dataclass(slots=True)
class _Stamps:
    """Which of a frame's time stamps to believe: that of the kind that went backwards less often so far.

    AVI files with B-frames have wrong presentation stamps, others have none. This is ``guess_correct_pts`` of
    libavcodec, which ffmpeg goes by: what is looked at and what is encoded are to be the same frames.
    """

    last_pts: int | None = None
    last_dts: int | None = None
    faulty_pts: int = 0
    faulty_dts: int = 0

    def choose(self, pts: int | None, dts: int | None) -> int | None:
        if dts is not None:
            self.faulty_dts += self.last_dts is not None and dts <= self.last_dts
            self.last_dts = dts
        elif pts is not None:
            self.last_dts = pts
        if pts is not None:
            self.faulty_pts += self.last_pts is not None and pts <= self.last_pts
            self.last_pts = pts
        elif dts is not None:
            self.last_pts = dts
        return pts if pts is not None and (dts is None or self.faulty_pts <= self.faulty_dts) else dts


def _seek(video: _Video, start_s: float) -> tuple[float | None, Iterator[tuple[float, VideoFrame]]]:
    """Where to seek to on the file's clock, and the frames from there; the first one is displayed by ``start_s``.

    Some containers (MPEG transport streams, damaged indexes) land behind the asked time, so that what is decoded has
    the say. Without a place to seek to, the frames are those from the start. In MPEG program streams, where only some
    frames have time stamps, times after a seek may be wrong by a frame or two.
    """
    for back in _SEEK_BACK_S:
        target = video.origin + start_s - back
        if start_s <= _SEEK_BACK_S[1] or target <= video.origin:
            break
        try:
            video.container.seek(int(target / _clock(video.stream)), stream=video.stream)
        except av.error.FFmpegError:
            continue
        frames = _decoded(video.container, video.stream)
        first = next(frames, None)
        if first is not None and first[0] - video.origin <= start_s + _TOLERANCE_S:
            return target, chain([first], frames)
    return None, video.frames if start_s <= _SEEK_BACK_S[1] else _reopened(video)


def _reopened(video: _Video) -> Iterator[tuple[float, VideoFrame]]:
    with _opened(video.path, video.threads) as again:
        yield from again.frames


def _frames_from(video: _Video, start_s: float) -> Iterator[tuple[float, VideoFrame]]:
    """Frames from one that is displayed at ``start_s`` or earlier, by their time since the first frame of the video."""
    for time, frame in _seek(video, start_s)[1]:
        yield time - video.origin, frame


def _rate(stream: VideoStream) -> Fraction:
    """The header's frame rate, for want of anything better."""
    return stream.average_rate or stream.guessed_rate or Fraction(25)


def _clock(stream: VideoStream) -> Fraction:
    """Seconds per tick of the stream's time stamps."""
    return stream.time_base or Fraction(1, av.time_base)


def _orientation(frame: VideoFrame) -> _Orientation:
    """Nearest right-angled orientation to the frame's display matrix."""
    try:
        matrix = struct.unpack("9i", bytes(cast(Any, frame.side_data)[SideDataType.DISPLAYMATRIX]))
    except KeyError:
        return _Orientation()
    (a, b, _), (c, d, _) = matrix[:3], matrix[3:6]
    turns = round(math.atan2(b / (math.hypot(b, d) or 1), a / (math.hypot(a, c) or 1)) / (math.pi / 2)) % 4
    return _Orientation(flip=a * d - b * c < 0, turns=turns)


def _picture(
    reformatter: VideoReformatter,
    frame: VideoFrame,
    orientation: _Orientation,
    size: tuple[int, int],
    how: Interpolation,
) -> Image:
    """A frame as RGB of the given displayed size, ``(height, width, 3)``."""
    width, height = orientation.size(*size)
    try:
        rgb = reformatter.reformat(frame, width=width, height=height, format="rgb24", interpolation=how, threads=1)
    except av.error.FFmpegError as error:  # Such as ICtCp, which swscale does not know.
        raise UnreadableVideo(
            f"no way to RGB from {frame.format.name} with colour matrix {frame.colorspace}"
        ) from error
    return orientation.apply(cast(Image, rgb.to_ndarray()))


def _fit(size: tuple[int, int], box: tuple[int, int], fit: str) -> tuple[tuple[int, int], tuple[int, int]]:
    """Sizes of the scaled picture and of what is made of it by cropping or padding."""
    ratios = [outer / inner for outer, inner in zip(box, size, strict=True)]
    if fit == "crop":
        scale = max(ratios)
        return (max(box[0], round(size[0] * scale)), max(box[1], round(size[1] * scale))), box
    scale = min(ratios) if fit == "pad" else min(1.0, *ratios)
    width, height = (max(2, int(side * scale + 1e-6) // 2 * 2) for side in size)
    return (width, height), (box if fit == "pad" else (width, height))


def _constant_rate(frames: Any, start: float, rate: Fraction) -> Any:
    """Filters that show, ``n / rate`` seconds after ``start`` on the file's clock, the frame that is displayed then."""
    frames = frames.filter("settb", "AVTB").filter("setpts", f"PTS-({round((start + _TOLERANCE_S) * 1e6)})")
    return frames.filter("fps", fps=f"{rate.numerator}/{rate.denominator}", start_time=0, round="up")


def _encode(path: Path, frames: Any, count: int, crf: int, preset: str, timeout_s: float) -> bytes:
    """Run ffmpeg on a filter graph and return the MP4 file."""
    with tempfile.TemporaryDirectory(prefix="s2v-clip-") as folder:
        output = Path(folder) / "clip.mp4"  # Not a pipe, which cannot be rewound to put the index in front.
        options: dict[str, Any] = {
            "f": "mp4",
            "vcodec": "libx264",
            "preset": preset,
            "crf": crf,
            "threads": 1,
            "frames:v": count,
            "fps_mode": "passthrough",
            "map_metadata": -1,
            "map_chapters": -1,
            "fflags": "+bitexact",
            "flags:v": "+bitexact",
            "movflags": "+faststart",
        }
        quiet = ("-nostdin", "-hide_banner", "-loglevel", "error", "-filter_complex_threads", "1")
        command = ffmpeg.compile(
            ffmpeg.output(frames, f"file:{output}", **options), cmd=[imageio_ffmpeg.get_ffmpeg_exe(), *quiet]
        )
        # With "file:" before it, a name that looks like an option, a URL or a pattern is a name. It is put in only
        # here, for ffmpeg-python takes no name that is not UTF-8.
        command = [f"file:{path.absolute()}" if word == _SOURCE else word for word in command]
        try:
            result = subprocess.run(
                command, stdin=subprocess.DEVNULL, capture_output=True, timeout=timeout_s, check=False
            )
        except subprocess.TimeoutExpired as error:
            raise TimeoutError(f"ffmpeg was killed after {timeout_s} s") from error
        if result.returncode != 0:
            lines = result.stderr.decode(errors="replace").strip().splitlines()[-_STDERR_LINES:]
            raise EncodingError("\n".join([f"ffmpeg ended with {result.returncode}", *lines]))
        return output.read_bytes() if output.exists() else b""


def _count(data: bytes) -> int:
    """Frames in an MP4 file."""
    if not data:
        return 0
    with av.open(io.BytesIO(data), "r", format="mp4") as container:
        return sum(packet.size > 0 for packet in container.demux(video=0)) if container.streams.video else 0
