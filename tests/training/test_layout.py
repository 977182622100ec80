from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curation.shards import INDEX_SCHEMA
from training.layout import Bucket, Layout, frames_at, nearest_bucket, window_start
from training.shard_index import ShardIndex, picture_name

BUCKETS = (Bucket(81, 480, 832), Bucket(81, 832, 480), Bucket(49, 480, 832), Bucket(49, 240, 416), Bucket(1, 512, 512))
KINDS = ("original", "cross_clip", "moved")


@pytest.mark.parametrize(
    ("width", "height", "room", "bucket"),
    [
        (832, 480, 100, 0),
        (1920, 1080, 81, 0),
        (480, 832, 81, 1),
        (832, 480, 80, 2),  # 81 frames do not fit.
        (400, 230, 60, 3),  # As long, but nearer in area.
        (480, 832, 60, 4),  # No upright bucket of that length: the square is nearest.
        (832, 480, 48, 4),
        (600, 590, 500, 4),
        (832, 480, 0, -1),
        (0, 480, 100, -1),
    ],
)
def test_nearest_bucket(width: int, height: int, room: int, bucket: int) -> None:
    assert nearest_bucket(width, height, room, BUCKETS) == bucket


@pytest.mark.parametrize(
    ("frames", "recorded", "fps", "there"),
    [
        (81, 16, 16, 81),
        (81, 24, 24, 81),
        (81, 32, 16, 41),
        (82, 32, 16, 41),
        (81, 24, 16, 54),
        (10, 8, 16, 20),
        (1, 30, 1, 1),
    ],
)
def test_frames_at(frames: int, recorded: float, fps: float, there: int) -> None:
    assert frames_at(frames, recorded, fps) == there


@given(
    frames=st.integers(1, 500),
    recorded=st.sampled_from([8, 12, 15, 16, 23.976, 24, 25, 29.97, 30, 60]),
    fps=st.sampled_from([8, 16, 24]),
)
def test_all_frames_at_a_rate_are_shown_before_the_video_ends(frames: int, recorded: float, fps: float) -> None:
    there = int(frames_at(frames, recorded, fps))
    assert (there - 1) / fps < frames / recorded
    assert there / fps >= frames / recorded - 1e-5


@given(
    there=st.integers(1, 300),
    frames=st.integers(1, 81),
    skip=st.integers(0, 5),
    place=st.floats(0, 1, exclude_max=True),
)
def test_windows_lie_between_what_is_skipped(there: int, frames: int, skip: int, place: float) -> None:
    if frames + 2 * skip > there:
        return
    start = window_start(there, frames, skip, place)
    assert skip <= start <= there - skip - frames


def test_windows_start_everywhere_equally_often() -> None:
    starts = [window_start(30, 9, 3, place) for place in np.arange(0, 1, 1 / 1600)]
    assert np.bincount(starts).tolist() == [0, 0, 0] + [100] * 16
    assert window_start(30, 9, 3, 0.5) == 11
    assert window_start(15, 9, 3, 0.5) == 3


def test_layout_groups_equal_shapes() -> None:
    layout = Layout(BUCKETS, 16, 3, np.array([0, 0, 1, 1, -1, 0], np.int16), np.array([2, 3, 2, 2, 2, 2], np.int16))
    groups = layout.groups.tolist()
    assert groups[4] == -1
    assert groups[0] == groups[5] != groups[1]
    assert groups[2] == groups[3]
    assert len(set(groups)) == 4
    assert layout.shapes == {(BUCKETS[0], 2): 2, (BUCKETS[0], 3): 1, (BUCKETS[1], 2): 2}


PICTURES = st.lists(
    st.builds("{}.{}.{}.png".format, st.integers(0, 7), st.sampled_from(KINDS), st.integers(0, 2)),
    max_size=9,
    unique=True,
)
ROW = st.fixed_dictionaries(
    {
        "width": st.sampled_from([0, 64, 480, 832]),
        "height": st.sampled_from([64, 480, 832]),
        "frames": st.integers(0, 200),
        "fps": st.sampled_from([0.0, 8.0, 16.0, 29.97, None]),
        "pictures": PICTURES,
    }
)


def index_of(rows: list[dict]) -> ShardIndex:
    """An index with these rows, in chunks of 3 as of a large file."""
    full = [
        {
            **{name: row[name] for name in ("width", "height", "frames", "fps")},
            "key": str(number),
            "shard": "train-000000.tar",
            "members": [
                {"extension": name, "offset": 512, "size": 10} for name in ("mp4", "txt", "json", *row["pictures"])
            ],
        }
        for number, row in enumerate(rows)
    ]
    chunks = [pa.Table.from_pylist(full[start : start + 3], INDEX_SCHEMA) for start in range(0, len(full), 3)]
    return ShardIndex(pa.concat_tables(chunks), KINDS)


@settings(deadline=None)
@given(
    rows=st.lists(ROW, min_size=1, max_size=10),
    weights=st.dictionaries(st.sampled_from(KINDS), st.sampled_from([0, 1.5])),
)
def test_columns_say_what_rows_say(rows, weights) -> None:
    """The order knows shapes from columns, batches are made from rows: they must agree."""
    index = index_of(rows)
    assert index.subjects_with(weights).tolist() == [len(index[row].pictures(weights)) for row in range(len(rows))]
    expected = [
        nearest_bucket(
            row["width"], row["height"], int(frames_at(row["frames"], row["fps"] or np.inf, 16)) - 6, BUCKETS
        )
        for row in rows
    ]
    assert index.buckets(BUCKETS, 16, 3).tolist() == expected


def test_pictures_are_told_by_their_names() -> None:
    names = ["1.moved.0.png", "0.original.1.png", "0.original.0.png", "0.cross_clip.0.png", "10.original.0.png"]
    sample = index_of([{"width": 1, "height": 1, "frames": 1, "fps": 16, "pictures": names}])[0]
    assert sample.pictures({"original": 1, "cross_clip": 1, "moved": 0}) == [
        {"cross_clip": ["0.cross_clip.0.png"], "original": ["0.original.0.png", "0.original.1.png"]},
        {"original": ["10.original.0.png"]},
    ]
    assert sample.pictures({}) == []


@pytest.mark.parametrize(
    "extension",
    ["mp4", "png", "0.png", "0.original.png", "x.original.0.png", "0.original.0.jpg", "0.original.0.png.bak"],
)
def test_what_is_no_picture(extension: str) -> None:
    assert picture_name(extension) is None
