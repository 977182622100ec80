from __future__ import annotations

import io
from pathlib import Path

import av
import numpy as np
import pytest
from conftest import LANDSCAPE, PORTRAIT, Planned, frame_of, mp4_of

from stages.media import encode_clip
from training.clip import decode_window
from training.shard_reader import CorruptMemberError

CLIPS = Path(__file__).resolve().parents[2].parent / "shared" / "clips"


def window(data: bytes, start: int, frames: int, fps: float = 16, size: tuple[int, int] = (64, 96)) -> np.ndarray:
    into = np.zeros((frames, *size, 3), np.uint8)
    decode_window(data, start, fps, into)
    return into


def plain(data: bytes) -> list[np.ndarray]:
    with av.open(io.BytesIO(data)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


@pytest.fixture(scope="module")
def clip() -> bytes:
    return mp4_of(Planned("clip", frames=40))


@pytest.mark.parametrize("start", [0, 1, 17, 31])
def test_shows_the_frames_asked_for(clip: bytes, start: int) -> None:
    found = window(clip, start, 9)
    assert [frame_of(image) for image in found] == list(range(start, start + 9))
    whole = plain(clip)[start : start + 9]
    # Another conversion to RGB, which rounds otherwise.
    assert np.abs(found.astype(int) - np.array(whole)).mean() < 2


@pytest.mark.parametrize(("recorded", "fps"), [(24, 16), (16, 24), (30, 16), (15, 16), (32, 16), (25, 16)])
def test_at_another_rate_frames_are_those_displayed_then(recorded: int, fps: int) -> None:
    data = mp4_of(Planned("clip", frames=40, fps=recorded))
    found = [frame_of(image) for image in window(data, 3, 15, fps)]
    assert found == [int((3 + number) * recorded / fps + 1e-6) for number in range(15)]


def test_the_last_frame_counts_until_it_ends() -> None:
    data = mp4_of(Planned("clip", frames=10, fps=8))
    assert frame_of(window(data, 19, 1, 16)[0]) == 9
    with pytest.raises(CorruptMemberError, match="video too short: it ends before frame 20 at 16"):
        window(data, 19, 2, 16)


@pytest.mark.parametrize("video", [LANDSCAPE, PORTRAIT, (96, 96)])
@pytest.mark.parametrize("size", [(64, 96), (96, 64), (31, 45), (128, 200)])
def test_any_size_is_covered(video: tuple[int, int], size: tuple[int, int]) -> None:
    data = mp4_of(Planned("clip", size=video, frames=4))
    found = window(data, 2, 2, size=size)
    assert found.shape == (2, *size, 3)
    # The ground reaches every edge: nothing is left black.
    for edge in (found[:, 0], found[:, -1], found[:, :, 0], found[:, :, -1]):
        assert edge.min() > 15


def test_the_aspect_ratio_is_kept() -> None:
    """A square that is cut at the sides or above stays a square."""
    data = io.BytesIO()
    with av.open(data, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=16, options={"crf": "4"})
        stream.width, stream.height, stream.pix_fmt = 128, 96, "yuv420p"
        image = np.full((96, 128, 3), 40, np.uint8)
        image[32:64, 48:80] = 220
        container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    for size in ((96, 96), (64, 128), (192, 96), (48, 64)):
        bright = window(data.getvalue(), 0, 1, size=size)[0].mean(axis=2) > 130
        rows, columns = bright.any(axis=1).nonzero()[0], bright.any(axis=0).nonzero()[0]
        assert abs(len(rows) - len(columns)) <= 2
        assert abs(rows.mean() - (size[0] - 1) / 2) <= 1
        assert abs(columns.mean() - (size[1] - 1) / 2) <= 1


@pytest.mark.parametrize(
    "spoil",
    [
        lambda data: b"",
        lambda data: data[: data.index(b"moov") + 60],
        lambda data: data[:200],
        lambda data: b"RIFF" + data[4:],
        lambda data: b"#EXTM3U\n#EXTINF:1,\nfile:///etc/hostname\n",
        lambda data: data.replace(b"avc1", b"xxxx"),
    ],
)
def test_what_is_no_video(clip: bytes, spoil) -> None:
    with pytest.raises(CorruptMemberError, match="video unreadable"):
        window(spoil(clip), 0, 40)


def test_every_flipped_byte_either_shows_frames_or_is_told(clip: bytes) -> None:
    """Nothing hangs, crashes or escapes as another error."""
    random = np.random.default_rng(0)
    reasons = []
    for _ in range(150):
        torn = bytearray(clip)
        for place in random.integers(0, len(torn), 3):
            torn[place] ^= 1 << int(random.integers(0, 8))
        try:
            window(bytes(torn), 5, 9)
        except CorruptMemberError as error:
            reasons.append(error.reason)
    assert 10 < len(reasons) < 150
    assert set(reasons) <= {"video unreadable", "video too short"}


@pytest.mark.skipif(not CLIPS.is_dir(), reason="the real clips (../shared/clips) are not on this machine")
def test_clips_as_they_are_packed() -> None:
    source = next(path for path in sorted(CLIPS.glob("asl_person*.mkv")))
    clip = encode_clip(
        source, 0.5, 2.0, width=320, height=240, fit="keep", fps=16, crf=20, preset="veryfast", timeout_s=60
    )
    whole = plain(clip.data)
    found = window(clip.data, 4, 17, size=(clip.height, clip.width))
    assert np.abs(found.astype(int) - np.array(whole[4:21])).mean() < 2
    # Its own frame is nearer than the neighbour wherever there is motion at all.
    far = [[np.abs(one.astype(int) - other).mean() for other in whole] for one in found]
    assert [int(np.argmin(row)) for row in far] == list(range(4, 21))
