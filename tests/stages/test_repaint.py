from __future__ import annotations

from itertools import pairwise

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from planted import BLUE, deep_inside, excess, subject, texture

from models.protocols import FillRequest, Image
from stages.repaint import RepaintConfig, repaint_compose, repaint_request


def painted(request: FillRequest) -> Image:
    """What an inpainter answers that paints a blue room."""
    room = texture(*request.mask.shape, BLUE, 9)
    return np.where(request.mask[..., None], room, request.image)


def repainted(config: RepaintConfig, soft: float = 5) -> tuple[Image, Image, np.ndarray]:
    crop, mask = subject(soft=soft)
    request = repaint_request(crop, mask, config, "a room", 3)
    return repaint_compose(painted(request), crop, mask, config), crop, mask


@pytest.mark.parametrize("dilate", [0, 0.05])
@pytest.mark.parametrize("feather", [0, 0.5, 1])
@pytest.mark.parametrize("edge", [0, 0.05])
def test_the_subject_stays_bit_for_bit_and_the_rest_is_new(dilate: float, feather: float, edge: float) -> None:
    picture, crop, mask = repainted(RepaintConfig(dilate=dilate, feather=feather, edge=edge))
    assert picture.dtype == np.uint8
    assert np.array_equal(picture[mask], crop[mask])
    far = deep_inside(~mask, 2 + max(dilate, edge) * 80)
    assert np.array_equal(picture[far], texture(*mask.shape, BLUE, 9)[far])


def test_the_request_asks_for_all_but_the_subject() -> None:
    crop, mask = subject()
    request = repaint_request(crop, mask, RepaintConfig(), "a room", 3)
    assert np.array_equal(request.mask, ~mask)
    assert np.array_equal(request.image, crop)
    assert (request.prompt, request.seed) == ("a room", 3)


def test_what_is_kept_around_the_subject_is_not_asked_for() -> None:
    crop, mask = subject()
    kept = [
        ~repaint_request(crop, mask, RepaintConfig(dilate=0.1, feather=feather), "", 0).mask for feather in (0, 0.5, 1)
    ]
    # A tenth of a disc of 80 pixels is 8.
    areas = [np.sqrt(inside.sum() / np.pi) - np.sqrt(mask.sum() / np.pi) for inside in kept]
    assert areas == pytest.approx([8, 4, 0], abs=0.6)


def test_what_is_kept_fades_into_what_is_painted() -> None:
    picture, crop, mask = repainted(RepaintConfig(dilate=0.1, feather=0.5, edge=0))
    distance = cv2.distanceTransform((~mask).astype(np.uint8), cv2.DIST_L2, 5)
    blue = [excess(picture, 2)[(distance > low) & (distance <= low + 1)].mean() for low in range(3, 9)]
    assert np.array_equal(picture[(distance > 0) & (distance < 3.5)], crop[(distance > 0) & (distance < 3.5)])
    assert all(later > earlier + 10 for earlier, later in pairwise(blue))


def test_soft_edges_come_along_without_the_old_background() -> None:
    pictures = {edge: repainted(RepaintConfig(edge=edge), soft=8)[0] for edge in (0.0, 0.05)}
    crop, mask = subject(soft=8)
    distance = cv2.distanceTransform((~mask).astype(np.uint8), cv2.DIST_L2, 5)
    rim = (distance > 0) & (distance <= 2)
    assert (excess(pictures[0.0], 0)[rim] < 0).all()  # Cut along the mask: blue at once.
    # What is left of the red disc there is seen, and green is not.
    assert excess(pictures[0.05], 0)[rim].mean() > excess(pictures[0.0], 0)[rim].mean() + 60
    assert excess(crop, 1)[rim].mean() > 0
    assert (excess(pictures[0.05], 1)[rim] > 0).mean() < 0.01


@settings(max_examples=30, deadline=None)
@given(
    st.integers(2, 40),
    st.integers(2, 40),
    st.floats(0.1, 0.9),
    st.floats(0, 0.2),
    st.floats(0, 1),
    st.floats(0, 0.1),
    st.integers(0, 2**31),
)
def test_no_mask_and_no_config_changes_the_subject(
    height: int, width: int, share: float, dilate: float, feather: float, edge: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    crop = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    mask = cv2.GaussianBlur(rng.random((height, width)).astype(np.float32), (0, 0), 2) < share
    mask[height // 2, width // 2] = True
    config = RepaintConfig(dilate=dilate, feather=feather, edge=edge)
    request = repaint_request(crop, mask, config, "", seed)
    answer = painted(request)

    picture = repaint_compose(answer, crop, mask, config)

    assert not (request.mask & mask).any()
    assert picture.shape == crop.shape
    assert np.array_equal(picture[mask], crop[mask])
    assert np.array_equal(picture, repaint_compose(answer, crop, mask, config))


def test_an_empty_mask_is_refused() -> None:
    crop, mask = subject()
    with pytest.raises(ValueError, match="empty"):
        repaint_request(crop, np.zeros_like(mask), RepaintConfig(), "", 0)
