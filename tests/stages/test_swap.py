from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from planted import BLUE, GREEN, MAGENTA, RED, deep_inside, excess, subject, texture

from models.masks import box_of
from models.protocols import Image, Mask
from models.quilting import Quilting
from stages.swap import FitConfig, Stance, SwapConfig, Swapped, fits, swap_compose, swap_request

SHAPE = (180, 200)
GREY = (128, 128, 128)


def scene(centre: tuple[float, float] = (100, 95), radius: float = 40) -> tuple[Image, Mask]:
    """A magenta disc in a blue room."""
    return subject(SHAPE, centre, radius, front=MAGENTA, back=BLUE)


def empty(colour: tuple[int, int, int] = BLUE) -> Image:
    return texture(*SHAPE, colour, 2)


def swapped(
    config: SwapConfig,
    source: tuple[Image, Mask] | None = None,
    host: tuple[Image, Mask] | None = None,
    room: Image | None = None,
) -> Swapped:
    """The red disc of another picture in the room, which an inpainter painted well."""
    _, host_mask = host or scene()
    return swap_compose(empty() if room is None else room, host_mask, *(source or subject()), config)


def test_the_request_is_the_host_and_a_rim() -> None:
    picture, mask = scene()
    request = swap_request(picture, mask, SwapConfig(dilate=0.1), "an empty room", 4)
    assert np.array_equal(request.image, picture)
    assert (request.prompt, request.seed) == ("an empty room", 4)
    assert not (mask & ~request.mask).any()
    # A tenth of 80 pixels on each side.
    assert box_of(request.mask) == pytest.approx(
        [at + step for at, step in zip(box_of(mask), (-8, -8, 8, 8), strict=True)], abs=1
    )


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(("centre", "radius"), [((100, 95), 40), ((100, 150), 75)])
def test_the_host_is_gone(seed: int, centre: tuple[float, float], radius: float) -> None:
    picture, mask = scene(centre, radius)
    config = SwapConfig(dilate=0.05)
    request = swap_request(picture, mask, config, "", seed)
    (filled,) = Quilting(Quilting.Config(), Path()).fill([request])
    result = swap_compose(filled, mask, *subject(radius=30), config)
    magenta = np.minimum(excess(picture, 0), excess(picture, 2)) > -60
    assert magenta[mask].mean() > 0.9
    pixels = result.picture.astype(int)
    left = (pixels[..., 0] > pixels[..., 1] + 60) & (pixels[..., 2] > pixels[..., 1] + 60)
    assert left[~result.mask].mean() < 0.001


def test_inside_the_subject_and_away_from_it_nothing_changes() -> None:
    crop, mask = subject()
    result = swapped(SwapConfig(light="none", edge=0.02))
    x0, y0, x1, y1 = box_of(mask)
    a0, b0, a1, b1 = box_of(result.mask)
    assert result.scale == 1
    assert (a1 - a0, b1 - b0) == (x1 - x0, y1 - y0)
    inside = deep_inside(mask, 3)[y0:y1, x0:x1]
    assert np.array_equal(result.picture[b0:b1, a0:a1][inside], crop[y0:y1, x0:x1][inside])
    far = deep_inside(~result.mask, 4)
    assert np.array_equal(result.picture[far], empty()[far])


def test_no_rim_of_the_old_background_comes_along() -> None:
    pasted, soft = (swapped(SwapConfig(light="none", edge=edge), subject(soft=6)).picture for edge in (0, 0.04))
    # Half red and half blue are at -70; half red and half green are much above.
    assert (excess(pasted, 1) > -50).sum() > 150
    assert (excess(soft, 1) > -50).sum() < 5


def test_the_subject_stands_on_the_hosts_place() -> None:
    for centre, radius in (((100, 95), 40), ((70, 100), 30), ((120, 90), 50)):
        host = scene(centre, radius)
        left, top, right, bottom = box_of(host[1])
        x0, y0, x1, y1 = box_of(swapped(SwapConfig(), host=host).mask)
        assert abs(y1 - bottom) <= 1
        assert abs(y0 - top) <= 2
        assert abs((x0 + x1) - (left + right)) <= 2


def test_a_bust_stands_on_the_lower_edge() -> None:
    source = subject((130, 140), (70, 100), 50)
    result = swapped(SwapConfig(edge=0.05), source, scene((100, 150), 60))
    assert result.mask[-1].sum() > 0.9 * source[1][-1].sum() * result.scale
    # No seam fades there: the last row is as red as the ones above.
    middle = np.flatnonzero(result.mask[-1])[5:-5]
    assert excess(result.picture, 0)[-1, middle].min() > 80


@pytest.mark.parametrize(
    ("centre", "edge"), [((-5, 95), "left"), ((205, 95), "right")], ids=["cut off on the left", "cut off on the right"]
)
def test_what_its_picture_cuts_off_at_a_side_ends_at_that_side(centre: tuple[float, float], edge: str) -> None:
    source = subject(SHAPE, (5 if edge == "left" else 195, 95), 45)
    result = swapped(SwapConfig(), source, scene(centre, 50))
    assert result.mask[:, 0 if edge == "left" else -1].any()
    assert not result.mask[:, -1 if edge == "left" else 0].any()


def test_it_is_kept_inside() -> None:
    wide = np.zeros((100, 240), bool)
    wide[30:70, 20:220] = True
    crop = np.where(wide[..., None], texture(100, 240, RED), texture(100, 240, GREEN))
    result = swapped(SwapConfig(), (crop, wide), scene((20, 95), 40))
    assert not np.concatenate([result.mask[0], result.mask[-1]]).any()
    x0, _, x1, _ = box_of(result.mask)
    assert x1 - x0 >= 0.97 * SHAPE[1]
    assert result.scale == pytest.approx(1.0, abs=0.01)
    near_edge = swapped(SwapConfig(), subject(radius=40), scene((30, 95), 28))
    assert box_of(near_edge.mask)[0] >= 0


def test_small_subjects_are_not_blown_up() -> None:
    small = subject((60, 60), (30, 30), 12)
    result = swapped(SwapConfig(max_enlarge=1.5), small, scene(radius=60))
    _, y0, _, y1 = box_of(result.mask)
    assert result.scale == 1.5
    assert y1 - y0 == pytest.approx(1.5 * 24, abs=2)
    assert abs(y1 - box_of(scene(radius=60)[1])[3]) <= 1


def test_sizes_may_be_equal_by_area() -> None:
    tall = np.zeros((200, 100), bool)
    tall[20:180, 40:60] = True
    crop = np.where(tall[..., None], texture(200, 100, RED), texture(200, 100, GREEN))
    _, host = scene(radius=30)
    result = swapped(SwapConfig(size_by="area"), (crop, tall), (scene()[0], host))
    assert result.mask.sum() == pytest.approx(host.sum(), rel=0.08)


def test_what_shows_of_the_painted_place_is_told() -> None:
    host = scene(radius=50)
    little = swapped(SwapConfig(dilate=0), subject(radius=50), host)
    much = swapped(SwapConfig(dilate=0), subject((60, 60), (30, 30), 12), host)
    share = host[1].mean()
    assert little.revealed < 0.03 * share
    assert 0.8 * share < much.revealed < share


def lightness(picture: Image, where: Mask) -> float:
    return float(cv2.cvtColor(picture, cv2.COLOR_RGB2LAB)[..., 0][where].mean()) / 2.55


def cast(picture: Image, where: Mask) -> float:
    """How yellow rather than blue."""
    return float(cv2.cvtColor(picture, cv2.COLOR_RGB2LAB)[..., 2][where].mean()) - 128


DARK, BRIGHT, WARM = (60, 60, 60), (210, 210, 210), (180, 120, 70)
both_ways = pytest.mark.parametrize("light", ["reinhard", "histogram"])


def lit(
    light: Any, strength: float, room: tuple[int, int, int], around: tuple[int, int, int] = GREY
) -> tuple[Image, Mask]:
    source = subject(front=(150, 110, 100), back=around)
    result = swapped(SwapConfig(light=light, light_strength=strength), source, room=empty(room))
    return result.picture, deep_inside(result.mask, 5)


@both_ways
def test_the_subject_takes_on_the_scenes_light_by_the_strength(light: str) -> None:
    strengths = (0.0, 0.25, 0.5, 1.0)
    dark, bright, warm = ([lit(light, strength, room) for strength in strengths] for room in (DARK, BRIGHT, WARM))
    assert (np.diff([lightness(*picture) for picture in dark]) < -1).all()
    assert (np.diff([lightness(*picture) for picture in bright]) > 1).all()
    assert (np.diff([cast(*picture) for picture in warm]) > 0.5).all()


@both_ways
def test_without_strength_or_difference_the_light_stays(light: str) -> None:
    own = lightness(subject(front=(150, 110, 100))[0], deep_inside(subject()[1], 5))
    for room in (DARK, BRIGHT, WARM):
        assert np.array_equal(lit(light, 0, room)[0], lit("none", 1, room)[0])
    assert lightness(*lit("none", 1, DARK)) == pytest.approx(own, abs=0.5)
    assert lightness(*lit(light, 1, GREY)) == pytest.approx(own, abs=1.5)


@both_ways
def test_light_changes_within_its_limit(light: str) -> None:
    own = lightness(*lit("none", 1, DARK))
    assert lightness(*lit(light, 1, (0, 0, 0), (255, 255, 255))) == pytest.approx(0.7 * own, abs=2.5)
    assert lightness(*lit(light, 1, (255, 255, 255), (0, 0, 0))) == pytest.approx(1.3 * own, abs=2.5)


@both_ways
def test_the_colours_of_the_other_subject_play_no_part(light: Any) -> None:
    config = SwapConfig(light=light, light_strength=1)
    _, mask = scene()
    removed = swap_request(empty(), mask, config, "", 0).mask
    rooms = [np.where(removed[..., None], np.array(colour, np.uint8), empty()) for colour in (MAGENTA, (0, 0, 0))]
    results = [swapped(config, room=room) for room in rooms]
    inside = deep_inside(results[0].mask, 4)
    assert np.array_equal(results[0].picture[inside], results[1].picture[inside])


def halves(shape: tuple[int, int], left: int, right: int) -> Image:
    """A dark and a bright wall."""
    walls = [texture(*shape, (grey, grey, grey), 3, deviation=4) for grey in (left, right)]
    return np.where(np.arange(shape[1])[:, None] < shape[1] / 2, *walls)


def test_histograms_move_what_is_bright_by_what_is_bright() -> None:
    """The scene's dark wall is as dark as the subject's own, its bright wall is brighter."""

    def change(light: Any, grey: int) -> float:
        front = (grey, grey, grey)
        crop, mask = subject(front=front)
        crop = np.where(mask[..., None], crop, halves(mask.shape, 60, 150))
        ways: list[Any] = ["none", light]
        before, after = (
            swapped(SwapConfig(light=way, light_strength=1), (crop, mask), room=halves(SHAPE, 60, 210)) for way in ways
        )
        inside = deep_inside(before.mask, 5)
        return lightness(after.picture, inside) - lightness(before.picture, inside)

    assert abs(change("histogram", 60)) < 1.5
    assert change("histogram", 150) > 10
    # Means and spreads cannot tell the walls apart.
    assert abs(change("reinhard", 60)) > 3


def test_a_scene_of_one_colour_leaves_the_subject_its_contrast() -> None:
    flat = np.full((*SHAPE, 3), 128, np.uint8)
    source = subject(front=GREY, back=GREY)
    ways: list[Any] = ["none", "histogram"]
    own, result = (swapped(SwapConfig(light=way, light_strength=1), source, room=flat) for way in ways)
    inside = deep_inside(own.mask, 5)
    contrasts = [picture[inside].std() for picture in (own.picture, result.picture)]
    assert 0.75 * contrasts[0] < contrasts[1] < 0.9 * contrasts[0]


def blended(edge: float = 0.05, **pictures: Any) -> tuple[Swapped, Swapped]:
    """By alpha, and in the gradient domain."""
    ways: list[Any] = ["alpha", "poisson"]
    alpha, poisson = (swapped(SwapConfig(light="none", edge=edge, blend=way), **pictures) for way in ways)
    assert np.array_equal(alpha.mask, poisson.mask)
    return alpha, poisson


def slopes(picture: Image) -> Any:
    return cv2.Laplacian(picture.astype(np.float32), cv2.CV_32F)


BUST_IN_A_SCENE = {"source": subject((130, 140), (70, 100), 50), "host": scene((100, 150), 60)}
CUT_OFF_ON_THE_LEFT = {"source": subject(SHAPE, (5, 95), 45), "host": scene((-5, 95), 50)}
CUT_OFF_ON_THE_RIGHT = {"source": subject(SHAPE, (195, 95), 45), "host": scene((205, 95), 50)}


@pytest.mark.parametrize(
    "pictures",
    [{}, BUST_IN_A_SCENE, CUT_OFF_ON_THE_LEFT, CUT_OFF_ON_THE_RIGHT],
    ids=["complete", "a bust", "cut off on the left", "cut off on the right"],
)
def test_gradients_are_blended_in_a_band_inside_the_outline_alone(pictures: dict[str, Any]) -> None:
    alpha, poisson = blended(**pictures)
    x0, y0, x1, y1 = box_of(alpha.mask)
    # A pixel more, as the box was measured before the subject was resized.
    deep = deep_inside(alpha.mask, round(0.05 * max(x1 - x0, y1 - y0)) + 1)
    assert deep.any()
    assert not deep[0].any()
    changed = (alpha.picture != poisson.picture).any(axis=2)
    assert not changed[deep | ~alpha.mask].any()
    assert changed[alpha.mask & ~deep].mean() > 0.6


def test_gradients_are_the_subjects_and_the_step_at_its_outline_is_spread() -> None:
    crop, own = subject(soft=1)
    alpha, poisson = blended(source=(crop, own))
    mask = alpha.mask
    before, after = (deep_inside(where, 2) & ~deep_inside(where, 3) for where in (own, mask))
    x0, y0, x1, y1 = box_of(own)
    left, top, right, bottom = box_of(mask)
    assert np.array_equal(before[y0:y1, x0:x1], after[top:bottom, left:right])
    shift = poisson.picture[after].astype(int) - crop[before]
    # Rounding to whole levels alone makes up to 4.
    assert np.abs(shift).mean() > 8
    assert np.abs(slopes(poisson.picture)[after] - slopes(crop)[before]).max() <= 4
    steps = [
        np.abs(np.diff(result.picture.astype(int), axis=1))[mask[:, 1:] != mask[:, :-1]].mean()
        for result in (alpha, poisson)
    ]
    assert steps[1] < 0.6 * steps[0]


def test_fingers_do_not_fade_into_the_scene() -> None:
    crop, mask = subject()
    mask = mask.copy()
    mask[78:82, 70:135] = True
    crop = np.where(mask[..., None], texture(*mask.shape, RED, 1), crop)
    alpha, poisson = blended(source=(crop, mask))
    right = box_of(alpha.mask)[2]
    assert np.array_equal(alpha.picture[:, right - 15 :], poisson.picture[:, right - 15 :])
    assert not np.array_equal(alpha.picture, poisson.picture)


def test_without_an_outline_to_blend_along_nothing_changes() -> None:
    everything = np.ones((40, 40), bool)
    for edge, source in ((0, subject()), (0.1, (texture(40, 40, RED), everything))):
        alpha, poisson = blended(edge, source=source, host=(empty(), np.ones(SHAPE, bool)))
        if edge == 0:
            assert np.array_equal(alpha.picture, poisson.picture)
        assert np.isfinite(poisson.picture).all()


@settings(max_examples=60, deadline=None)
@given(
    *[st.integers(2, 40)] * 4,
    st.floats(0.1, 0.9),
    st.builds(
        SwapConfig,
        size_by=st.sampled_from(["height", "area"]),
        light=st.sampled_from(["none", "reinhard", "histogram"]),
        edge=st.sampled_from([0.01, 0.1]),
        blend=st.sampled_from(["alpha", "poisson"]),
    ),
    st.integers(0, 2**31),
)
def test_any_two_pictures_give_a_picture_of_the_scenes_size(
    height: int, width: int, rows: int, columns: int, share: float, config: SwapConfig, seed: int
) -> None:
    rng = np.random.default_rng(seed)

    def blob(shape: tuple[int, int]) -> tuple[Image, Mask]:
        mask = cv2.GaussianBlur(rng.random(shape).astype(np.float32), (0, 0), 2) < share
        mask[shape[0] // 2, shape[1] // 2] = True
        return rng.integers(0, 256, (*shape, 3), dtype=np.uint8), mask

    (crop, mask), (room, host) = blob((height, width)), blob((rows, columns))
    before = crop.copy(), room.copy()

    result = swap_compose(room, host, crop, mask, config)

    assert result.picture.shape == room.shape
    assert result.picture.dtype == np.uint8
    assert result.mask.shape == host.shape
    assert 0 <= result.revealed <= 1
    assert result.scale <= config.max_enlarge
    assert np.array_equal(crop, before[0])
    assert np.array_equal(room, before[1])
    again = swap_compose(room, host, crop, mask, config)
    assert np.array_equal(result.picture, again.picture)
    assert np.array_equal(result.mask, again.mask)


@pytest.mark.parametrize("which", [0, 1])
def test_an_empty_mask_is_refused(which: int) -> None:
    crop, mask = subject()
    masks = [mask, scene()[1]]
    masks[which] = np.zeros_like(masks[which])
    with pytest.raises(ValueError, match="empty"):
        swap_compose(empty(), masks[1], crop, masks[0], SwapConfig())


def frame(
    box: tuple[float, float, float, float], crop_box: tuple[int, int, int, int], share: float = 0.6
) -> dict[str, Any]:
    """A row of ``subjects`` in a frame of 640 by 480, whose mask fills a share of its box."""
    area = share * (box[2] - box[0]) * (box[3] - box[1]) / (640 * 480)
    return {"box": list(box), "crop_box": list(crop_box), "area": area}


STANDING = frame((280, 100, 360, 400), (252, 0, 388, 480))
BUST = frame((240, 200, 400, 480), (184, 102, 456, 480))
LEFT_BUST = frame((0, 200, 160, 480), (0, 102, 216, 480))


def stance(row: dict[str, Any]) -> Stance:
    return Stance.of(row, 640, 480)


def test_a_stance_tells_size_and_what_is_cut_off() -> None:
    standing, bust = stance(STANDING), stance(BUST)
    assert (standing.width, standing.height, standing.cut) == (80, 300, (False, False, False, False))
    assert (bust.width, bust.height, bust.cut) == (160, 280, (False, False, False, True))
    assert stance(LEFT_BUST).cut == (True, False, False, True)
    assert bust.filled == pytest.approx(0.6 * 160 * 280 / (272 * 378))
    # Segmenters stop a pixel or two before the edge.
    assert stance(frame((240, 200, 400, 478), (184, 102, 456, 480))).cut == (False, False, False, True)
    assert stance(frame((240, 200, 400, 470), (184, 102, 456, 480))).cut == (False, False, False, False)


def test_equals_fit_and_a_standing_person_is_no_bust() -> None:
    rules = FitConfig()
    rows = [STANDING, BUST, LEFT_BUST]
    found = [[fits(stance(source), stance(host), rules) for host in rows] for source in rows]
    assert found == [[True, False, False], [False, True, False], [False, False, True]]


@pytest.mark.parametrize(
    ("size", "ok"),
    [
        ((160, 280), True),
        ((110, 280), True),  # 1.45 times narrower.
        ((100, 280), False),
        ((250, 280), False),
        ((240, 420), True),  # 1.5 times higher: the source would have to be enlarged by as much.
        ((250, 440), False),
        ((80, 140), True),
        ((50, 90), False),  # 3.1 times lower.
    ],
)
def test_shapes_and_sizes_must_be_near(size: tuple[int, int], ok: bool) -> None:
    width, height = size
    host = frame((300, 480 - height, 300 + width, 480), (0, 0, 640, 480), 0.5)
    assert fits(stance(BUST), stance(host), FitConfig()) == ok


def test_a_scene_of_which_too_little_is_seen_is_no_host() -> None:
    close = frame((240, 200, 400, 480), (230, 190, 410, 480), 0.7)
    assert stance(close).filled > 0.45
    assert not fits(stance(BUST), stance(close), FitConfig())
    assert fits(stance(close), stance(BUST), FitConfig())
    assert fits(stance(BUST), stance(close), FitConfig(max_host_area=0.7))
