from __future__ import annotations

from functools import cache
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage import data

from models.protocols import Image, Mask
from stages.copy_score import copy_score, copy_scores, subject_on_white
from stages.media import read_keyframes
from stages.picture import cut_out

CLIPS = Path(__file__).parents[2].parent / "shared" / "clips"
needs_clips = pytest.mark.skipif(not CLIPS.is_dir(), reason="the real clips (../shared/clips) are not on this machine")

OBJECTS = {
    "astronaut": data.astronaut()[0:260, 120:340],
    "cat": data.cat()[20:280, 100:400],
    "cup": data.coffee()[60:340, 120:480],
}


@cache
def scene(name: str) -> Image:
    """A picture without the object of that name, as large as a frame of a video."""
    whole = {"astronaut": data.coffee(), "cat": data.astronaut(), "cup": data.cat()}[name]
    return np.asarray(cv2.resize(whole, (832, 480), interpolation=cv2.INTER_AREA))


def pasted(
    reference: Image,
    ground: Image,
    *,
    mask: Mask | None = None,
    scale: float = 1.0,
    degrees: float = 0.0,
    gain: float = 1.0,
    bias: float = 0.0,
    shift: float = 0.0,
    quality: int = 80,
) -> Image:
    """The ground with the reference in its middle, ``shift`` pixels to the right, as JPEG leaves it."""
    height, width = reference.shape[:2]
    move = cv2.getRotationMatrix2D((width / 2, height / 2), degrees, scale)
    move[:, 2] += (ground.shape[1] - width) / 2 + shift, (ground.shape[0] - height) / 2
    size = (ground.shape[1], ground.shape[0])
    soft = cv2.GaussianBlur(reference, (0, 0), 0.5 / scale) if scale < 1 else reference
    inside = np.ones((height, width), np.float32) if mask is None else mask.astype(np.float32)
    share = cv2.warpAffine(inside, move, size)[..., None]
    shown = np.clip(cv2.warpAffine(soft, move, size) * gain + bias, 0, 255)
    both = (ground * (1 - share) + shown * share).astype(np.uint8)
    return np.asarray(cv2.imdecode(cv2.imencode(".jpg", both, [cv2.IMWRITE_JPEG_QUALITY, quality])[1], 1))


def frame(clip: str, seconds: float) -> Image:
    return read_keyframes(CLIPS / clip, [seconds], 0.05, 832)[0].image


def ellipse(height: int, width: int) -> Mask:
    y, x = np.mgrid[:height, :width]
    inside: Mask = ((x / (width - 1) - 0.5) ** 2 + (y / (height - 1) - 0.5) ** 2) < 0.25
    return inside


@pytest.mark.parametrize("name", OBJECTS)
@pytest.mark.parametrize(
    "how",
    [
        {},
        {"scale": 0.5, "degrees": 20.0, "gain": 0.7, "bias": 20.0},
        {"scale": 1.3, "degrees": -40.0, "gain": 1.2, "bias": -20.0, "quality": 40},
        {"scale": 0.4, "degrees": 90.0, "gain": 0.6, "bias": 40.0, "quality": 60},
    ],
)
def test_a_pasted_reference_is_a_copy(name: str, how: dict[str, float]) -> None:
    assert copy_score(OBJECTS[name], pasted(OBJECTS[name], scene(name), **how)) > 0.85  # type: ignore[arg-type]


@pytest.mark.parametrize("name", OBJECTS)
def test_a_frame_without_the_subject_is_none(name: str) -> None:
    assert copy_score(OBJECTS[name], scene(name)) < 0.1


@settings(max_examples=6, deadline=None)
@given(
    name=st.sampled_from(sorted(OBJECTS)),
    scale=st.floats(0.45, 1.4),
    degrees=st.floats(-180, 180),
    gain=st.floats(0.6, 1.2),
    bias=st.floats(0, 40),
)
def test_scale_turn_and_light_do_not_hide_a_copy(
    name: str, scale: float, degrees: float, gain: float, bias: float
) -> None:
    frame = pasted(OBJECTS[name], scene(name), scale=scale, degrees=degrees, gain=gain, bias=bias)
    # What the frame does not show of it counts 0.
    visible = pasted(np.full_like(OBJECTS[name], 255), np.zeros_like(scene(name)), scale=scale, degrees=degrees)
    height, width = OBJECTS[name].shape[:2]
    share = min(1.0, np.count_nonzero(visible[..., 0] > 127) / (height * width * scale**2))
    assert copy_score(OBJECTS[name], frame) > 0.8 * share - 0.05


def test_what_falls_outside_of_the_frame_counts_nothing() -> None:
    whole = copy_score(OBJECTS["cat"], pasted(OBJECTS["cat"], scene("cat")))
    half = copy_score(OBJECTS["cat"], pasted(OBJECTS["cat"], scene("cat"), shift=832 / 2))
    assert 0.3 < half / whole < 0.7


def test_what_is_covered_counts_nothing() -> None:
    frame = pasted(OBJECTS["cat"], scene("cat"))
    covered = frame.copy()
    covered[:, 832 // 2 :] = scene("cup")[:, 832 // 2 :][:, ::-1]
    assert 0.25 < copy_score(OBJECTS["cat"], covered) / copy_score(OBJECTS["cat"], frame) < 0.75


def test_a_mirrored_picture_is_no_copy() -> None:
    assert copy_score(OBJECTS["cat"], pasted(OBJECTS["cat"][:, ::-1], scene("cat"))) < 0.3


def test_only_the_subject_is_looked_for() -> None:
    cat = OBJECTS["cat"]
    mask = ellipse(*cat.shape[:2])
    frame = pasted(cat, scene("cat"), mask=mask, scale=0.8)
    assert copy_score(cat, frame, mask) > 0.85
    assert copy_score(cat, frame, mask) > copy_score(cat, frame) + 0.05


def test_a_cut_out_on_white_needs_no_mask() -> None:
    cat = OBJECTS["cat"]
    mask = ellipse(*cat.shape[:2])
    frame = pasted(cat, scene("cat"), mask=mask, scale=0.8)
    # Its rim fades to white, and that is not in the frame.
    assert copy_score(cut_out(cat, mask)[0], frame) > copy_score(cat, frame, mask) - 0.1


@needs_clips
def test_another_pose_is_less_of_a_copy_and_another_animal_is_none() -> None:
    bear = frame("davis_bear.mp4", 0.8)[205:435, 105:470]
    echidna = frame("koala_echidna.mp4", 2.0)
    copy = copy_score(bear, pasted(bear, echidna, scale=0.8, degrees=10, gain=0.8))
    same_frame = copy_score(bear, frame("davis_bear.mp4", 0.8))
    later = copy_score(bear, frame("davis_bear.mp4", 2.2))
    assert same_frame > 0.95
    assert copy > 0.85
    assert later < copy - 0.3
    assert copy_score(bear, echidna) < 0.1


@needs_clips
def test_a_face_that_moves_on_is_less_and_less_of_a_copy() -> None:
    first = frame("panda_comedian.mp4", 0.96)
    comedian = first[8:352, 170:620]
    moments = [copy_score(comedian, frame("panda_comedian.mp4", seconds)) for seconds in (0.96, 1.96, 2.6)]
    assert moments[0] > 0.95
    assert moments[0] - 0.3 > moments[1]
    assert moments[0] - 0.3 > moments[2]


def test_many_at_once_are_as_many_alone() -> None:
    references = [(OBJECTS["cat"], None), (OBJECTS["cup"], ellipse(*OBJECTS["cup"].shape[:2]))]
    frames = [pasted(OBJECTS["cat"], scene("cat"), scale=0.6), scene("cup"), pasted(OBJECTS["cup"], scene("cup"))]
    scores = copy_scores(references, frames)
    assert scores.tolist() == [[copy_score(image, frame, mask) for frame in frames] for image, mask in references]
    assert scores[0, 0] > 0.85
    assert scores[1, 2] > 0.85
    assert copy_scores([], frames).shape == (0, 3)
    assert copy_scores(references, []).shape == (2, 0)


def test_nothing_to_align_is_no_copy() -> None:
    flat = np.full((200, 200, 3), 90, np.uint8)
    frame = scene("cat").copy()
    frame[100:300, 100:300] = 90
    assert copy_score(flat, frame) == 0
    assert copy_score(OBJECTS["cat"], flat) == 0
    assert copy_score(OBJECTS["cat"], scene("cat"), np.zeros(OBJECTS["cat"].shape[:2], bool)) == 0


def test_a_mask_of_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match="mask of"):
        copy_score(OBJECTS["cat"], scene("cat"), np.ones((5, 5), bool))


@settings(max_examples=15, deadline=None)
@given(st.tuples(*[st.integers(1, 90)] * 4), st.integers(0, 2**32 - 1), st.booleans())
def test_any_two_pictures_have_a_score(sizes: tuple[int, int, int, int], seed: int, part: bool) -> None:
    random = np.random.default_rng(seed)
    frame = random.integers(0, 256, (sizes[0], sizes[1], 3), dtype=np.uint8)
    reference = random.integers(0, 256, (sizes[2], sizes[3], 3), dtype=np.uint8)
    reference = frame[: sizes[2], : sizes[3]] if part else reference
    assert 0 <= copy_score(reference, frame) <= 1


def test_white_background_is_what_hangs_together_with_the_edge() -> None:
    image = np.full((40, 60, 3), 255, np.uint8)
    image[10:30, 20:50] = 100
    image[15:20, 30:35] = 255
    expected = np.zeros((40, 60), bool)
    expected[10:30, 20:50] = True
    assert np.array_equal(subject_on_white(image), expected)


def test_pictures_without_white_background_or_without_a_subject_are_whole() -> None:
    assert subject_on_white(OBJECTS["cat"]).all()
    assert subject_on_white(np.full((9, 7, 3), 255, np.uint8)).all()
