"""The frames of a packed clip that a training step looks at, cut to its size."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from typing import Any, cast

import av
import av.error
import numpy as np
import numpy.typing as npt
from av.codec.context import ThreadType
from av.video.frame import VideoFrame
from av.video.reformatter import Interpolation, VideoReformatter

from training.shard_reader import CorruptMemberError

_OPTIONS = {"max_pixels": str(2 * 7680 * 4320)}
_DECODER = {**_OPTIONS, "err_detect": "explode"}
"""Damage is an error: frames patched up by the decoder are nothing to learn from."""
_CONVERT = Interpolation.LANCZOS | Interpolation.BITEXACT
"""Without a change of size: a tenth of the work of what follows, and on average one level of 255 darker."""
_RESIZE = _CONVERT | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT
_TOLERANCE_S = 0.001


def decode_window(data: bytes, start: int, fps: float, into: npt.NDArray[np.uint8]) -> None:
    """Decode an MP4 file's frames ``start``, ``start + 1``, ... at ``fps`` frames a second.

    Frame n is the one displayed n / fps seconds after the first. Each is scaled (LANCZOS) to cover ``into``, which is
    (T, H, W, 3), and what stands out is cut off, equally on both sides. One thread.

    Raises:
        CorruptMemberError: ``video unreadable`` or ``video too short``.
    """
    reformatter = VideoReformatter()
    times = [(start + number) / fps for number in range(len(into))]
    done = 0
    try:
        for frame, end in _shown(data):
            shown = _count_before(times[done:], end)
            if shown:
                into[done : done + shown] = _covering(reformatter, frame, into.shape[1], into.shape[2])
                done += shown
            if done == len(times):
                return
    # PyAV trips over some damaged files with errors of its own.
    except (av.error.FFmpegError, IndexError, ValueError, OverflowError) as error:
        raise CorruptMemberError("video unreadable", str(error)) from error
    raise CorruptMemberError("video too short", f"it ends before frame {start + done} at {fps:g} frames a second")


def _shown(data: bytes) -> Iterator[tuple[VideoFrame, float]]:
    """Every frame, with the time at which it stops to be displayed, in seconds from the first."""
    with av.open(io.BytesIO(data), format="mp4", options=dict(_OPTIONS), metadata_errors="ignore") as container:
        stream = container.streams.video[0]
        if cast(Any, stream.codec_context) is None:
            raise ValueError("no decoder for its video stream")
        stream.codec_context.options = dict(_DECODER)
        stream.codec_context.thread_count = 1
        stream.codec_context.thread_type = ThreadType.NONE
        rate = stream.average_rate or stream.guessed_rate
        if not rate:
            raise ValueError("its frames have no rate")
        current, origin = None, 0.0
        for frame in container.decode(stream):
            if frame.is_corrupt or frame.time is None:
                raise ValueError("a frame is damaged")
            if current is None:
                origin = frame.time
            else:
                yield current, frame.time - origin
            current = frame
        if current is not None:
            yield current, current.time - origin + float(1 / rate)


def _count_before(times: Sequence[float], end: float) -> int:
    """How many of the ascending times come before ``end``."""
    count = 0
    while count < len(times) and times[count] < end - _TOLERANCE_S:
        count += 1
    return count


def _covering(reformatter: VideoReformatter, frame: VideoFrame, height: int, width: int) -> npt.NDArray[np.uint8]:
    scale = max(height / frame.height, width / frame.width)
    tall, wide = max(height, round(frame.height * scale)), max(width, round(frame.width * scale))
    how = _CONVERT if (tall, wide) == (frame.height, frame.width) else _RESIZE
    rgb = reformatter.reformat(frame, width=wide, height=tall, format="rgb24", interpolation=how, threads=1)
    top, left = (tall - height) // 2, (wide - width) // 2
    whole: npt.NDArray[Any] = rgb.to_ndarray()
    return whole[top : top + height, left : left + width]
