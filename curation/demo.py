"""Demo videos made from photographs that scikit-image ships: cut-out subjects that move over other pictures.

Nothing is downloaded. The same few subjects come back with other backgrounds, motion, size and light, so that
cross-clip pairs exist; a handful of videos are bad on purpose (dark, blurred, static, captioned over, truncated,
a duplicate), so that every kind of drop can be seen. A cat's head flying past bricks teaches no model anything:
the set is for trying the pipeline.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from math import cos, pi, radians, sin
from pathlib import Path

import numpy as np
import numpy.typing as npt

Picture = npt.NDArray[np.uint8]
Point = tuple[float, float]
Colour = tuple[float, float, float]
Field = npt.NDArray[np.float32]
"""Where each pixel comes from, relative to its own place: ``(height, width, 2)``, across and down."""

BEND = 0.06
"""How far a subject's parts move as it bends, as a share of its longer side."""
WAVES = 3
WAVES_ACROSS = (0.6, 1.6)
"""How many waves of a bend go over its longer side."""
EDGE_FADE = 8.0
"""Shares of its sides over which a bend fades out towards its edges: one in so many."""
STAMP = ".demo.json"
TRUNCATED, COPY = "broken/rocket_truncated.mp4", "again/cat_wall_copy.mp4"


def build_demo(folder: Path) -> list[Path]:
    """Write the demo videos and their sidecars under ``folder``, unless a complete set is there already.

    Every video has a sidecar beside it: ``name.txt`` (a caption) or ``name.json`` (caption, licence and source).
    The same machine and library versions give the same bytes.

    Returns:
        The videos' paths, sorted; among them one that cannot be opened and one that is a copy of another.

    Raises:
        OSError: if the folder cannot be written.
        RuntimeError: if ffmpeg fails.
    """
    if not _complete(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(_cutout, SUBJECTS))
            list(pool.map(lambda video: _write(video, folder), VIDEOS))
        _spoil(folder)
        _stamp(folder)
    return sorted(folder.rglob("*.mp4"))


@dataclass(frozen=True, slots=True)
class Photo:
    """A part of a photograph: ``box`` is ``(x0, y0, x1, y1)`` in its pixels; ``outline`` a subject's rough polygon."""

    file: str
    licence: str
    source: str
    box: tuple[int, int, int, int] | None = None
    outline: tuple[tuple[int, int], ...] = ()
    slack: int = 4
    """Pixels by which the true edge may lie outside the outline; as many and 4 more inside it."""
    lift: Colour = (0.0, 0.0, 0.0)
    """Added to every pixel: a sky that is quite black would make its clips too dark."""
    quarter_turns: int = 0
    """Anticlockwise: the bricks of the photograph stand on end."""


@dataclass(frozen=True, slots=True)
class Actor:
    """A subject on its way from ``start`` to ``end``: its centre, in shares of the frame's width and height.

    ``height`` is its height at the start, in shares of the frame's, and ``grow`` what that is multiplied by at the
    end; ``bob`` is a swing in shares of the frame's height, ``sway`` one in degrees.
    """

    subject: str
    start: Point
    end: Point
    height: float
    grow: float = 1.0
    turn: float = 0.0
    """Degrees turned clockwise over the shot."""
    bob: float = 0.0
    sway: float = 0.0


@dataclass(frozen=True, slots=True)
class Shot:
    """One take: a background under its own camera motion, and subjects over it.

    ``pan`` is the way of the camera in shares of the frame, ``zoom`` the final magnification, ``tint`` and ``light``
    factors of the colours of background and of everything.
    """

    seconds: float
    background: str
    actors: tuple[Actor, ...]
    pan: Point = (0.0, 0.0)
    zoom: float = 1.0
    tint: Colour = (1.0, 1.0, 1.0)
    light: Colour = (1.0, 1.0, 1.0)
    blur: float = 0.0
    """Standard deviation in pixels."""
    text: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Video:
    """A file: ``size`` is ``(width, height)`` in pixels, ``fps`` frames per second."""

    name: str
    caption: str
    shots: tuple[Shot, ...]
    size: tuple[int, int] = (640, 360)
    fps: int = 24
    detailed: bool = False
    """Whether the sidecar is JSON with licence and source, or the bare caption."""


_NASA = ("public domain", "NASA, through scikit-image")
_CC0 = "CC0-1.0"
_MIDDLEBURY = ("research use", "Middlebury Stereo 2014, through scikit-image")

SUBJECTS = {
    "astronaut": Photo(
        "astronaut.png",
        *_NASA,
        outline=(
            *((14, 440), (16, 340), (48, 255), (115, 212), (112, 165), (146, 146), (162, 130), (150, 95), (162, 50)),
            *((198, 18), (242, 11), (282, 32), (302, 75), (294, 118), (266, 150), (296, 185), (306, 235), (345, 262)),
            *((362, 325), (400, 336), (452, 356), (488, 395), (502, 440), (480, 480), (400, 508), (250, 510)),
            *((120, 505), (50, 480)),
        ),
    ),
    "cat": Photo(
        "chelsea.png",
        _CC0,
        "Stefan van der Walt, through scikit-image",
        outline=(
            *((28, 120), (32, 60), (55, 25), (100, 6), (180, 2), (280, 2), (340, 10), (362, 40), (360, 75)),
            *((368, 105), (355, 160), (342, 205), (325, 240), (290, 272), (220, 286), (140, 272), (80, 235), (42, 180)),
        ),
        slack=0,
    ),
    "cup": Photo(
        "coffee.png",
        _CC0,
        "Rachel Michetti, through scikit-image",
        outline=(
            *((74, 230), (82, 190), (110, 150), (172, 105), (185, 60), (225, 28), (280, 16), (340, 22), (385, 48)),
            *((402, 85), (412, 68), (425, 70), (424, 90), (416, 108), (450, 140), (475, 180), (484, 230), (472, 290)),
            *((440, 340), (390, 372), (330, 388), (270, 388), (200, 372), (140, 340), (95, 295)),
        ),
    ),
    "rocket": Photo(
        "astronaut.png",
        *_NASA,
        outline=(
            *((398, 3), (432, 3), (444, 30), (453, 55), (456, 120), (454, 180), (464, 208), (476, 238), (452, 250)),
            *((448, 274), (372, 278), (352, 262), (345, 250), (355, 215), (372, 175), (374, 110), (380, 70), (395, 40)),
        ),
    ),
    "motorcycle": Photo("motorcycle_left.png", *_MIDDLEBURY),
}

BACKGROUNDS = {
    "wall": Photo("brick.png", _CC0, "CC0Textures, through scikit-image", quarter_turns=1),
    "lawn": Photo("grass.png", _CC0, "linolafett, through scikit-image"),
    "gravel": Photo("gravel.png", _CC0, "CC0Textures, through scikit-image"),
    "stars": Photo("hubble_deep_field.jpg", "public domain", "NASA and ESA, through scikit-image", lift=(18, 24, 46)),
    "moon": Photo("moon.png", *_NASA),
    "bench": Photo("motorcycle_left.png", *_MIDDLEBURY, box=(0, 0, 330, 185)),
    "tower": Photo("rocket.jpg", "public domain", "SpaceX, through scikit-image", box=(20, 0, 275, 427)),
}

RED, GREEN, SAND, COLD, WARM = (
    (1.0, 0.62, 0.5),
    (0.62, 1.0, 0.5),
    (1.0, 0.92, 0.75),
    (0.85, 0.95, 1.1),
    (1.1, 1.0, 0.85),
)

VIDEOS = (
    Video(
        "cat_wall",
        "A cat walks past a brick wall.",
        (Shot(6, "wall", (Actor("cat", (0.22, 0.55), (0.78, 0.5), 0.55, bob=0.03, sway=4),), (0.06, 0.0), tint=COLD),),
    ),
    Video(
        "cat_lawn_bench",
        "A cat runs over the lawn and looks around in front of a bench.",
        (
            Shot(3.5, "lawn", (Actor("cat", (0.75, 0.4), (0.3, 0.58), 0.48, 1.25, bob=0.05),), (0.0, 0.05), tint=GREEN),
            Shot(4, "bench", (Actor("cat", (0.3, 0.62), (0.68, 0.45), 0.68, sway=9),), (-0.05, 0.0), 1.05, light=WARM),
        ),
        detailed=True,
    ),
    Video(
        "cat_gravel",
        "A cat peers about on the gravel.",
        (Shot(5, "gravel", (Actor("cat", (0.3, 0.4), (0.65, 0.6), 0.62, 0.8, turn=-14),), (0.0, -0.06), tint=SAND),),
        (480, 360),
    ),
    Video(
        "astronaut_stars",
        "An astronaut floats among the stars.",
        (
            Shot(
                7, "stars", (Actor("astronaut", (0.25, 0.4), (0.7, 0.6), 0.62, turn=24, bob=0.02),), (0.05, 0.03), 1.06
            ),
        ),
        detailed=True,
    ),
    Video(
        "astronaut_moon_wall",
        "An astronaut crosses the moon, then stands before a wall.",
        (
            Shot(4, "moon", (Actor("astronaut", (0.72, 0.5), (0.3, 0.5), 0.7, bob=0.06),), (-0.04, 0.0), tint=SAND),
            Shot(4, "wall", (Actor("astronaut", (0.35, 0.6), (0.6, 0.48), 0.6, 1.2, sway=4),), (0.05, 0.0), tint=COLD),
        ),
        (480, 360),
    ),
    Video(
        "astronaut_lawn",
        "A smiling astronaut walks across the lawn in the evening.",
        (
            Shot(
                5,
                "lawn",
                (Actor("astronaut", (0.28, 0.54), (0.72, 0.52), 0.78, bob=0.03, sway=3),),
                (0.05, 0.02),
                tint=GREEN,
                light=(0.8, 0.62, 0.6),
            ),
        ),
        fps=30,
        detailed=True,
    ),
    Video(
        "cup_gravel",
        "A cup of coffee slides over gravel.",
        (Shot(5, "gravel", (Actor("cup", (0.3, 0.62), (0.7, 0.42), 0.55, bob=0.02),), (0.0, 0.06), tint=COLD),),
    ),
    Video(
        "cup_stars_wall",
        "A cup floats through space and lands in front of a wall.",
        (
            Shot(3.5, "stars", (Actor("cup", (0.7, 0.35), (0.35, 0.6), 0.5, 1.15, turn=-30),), (0.04, 0.0)),
            Shot(
                4, "wall", (Actor("cup", (0.32, 0.4), (0.64, 0.6), 0.66, sway=6),), (-0.05, 0.0), tint=SAND, light=WARM
            ),
        ),
        detailed=True,
    ),
    Video(
        "motorcycle_lawn",
        "A red motorcycle rides over the grass.",
        (Shot(5, "lawn", (Actor("motorcycle", (0.3, 0.55), (0.7, 0.5), 0.58, bob=0.02),), (-0.04, 0.0), tint=GREEN),),
        detailed=True,
    ),
    Video(
        "motorcycle_moon_gravel",
        "A motorcycle drives on the moon, then down a gravel road.",
        (
            Shot(4, "moon", (Actor("motorcycle", (0.3, 0.45), (0.68, 0.58), 0.52, 1.15, bob=0.04),), (0.04, 0.0)),
            Shot(4, "gravel", (Actor("motorcycle", (0.66, 0.5), (0.35, 0.5), 0.64, turn=-8),), (0.0, 0.05), 1.05, SAND),
        ),
    ),
    Video(
        "rocket_tower",
        "A rocket climbs into the night sky beside a tower.",
        (Shot(6, "tower", (Actor("rocket", (0.45, 0.68), (0.6, 0.36), 0.52, sway=3),), (0.03, 0.0), 1.05),),
        (360, 640),
        detailed=True,
    ),
    Video(
        "cat_rocket_moon",
        "A cat watches a rocket above the moon.",
        (
            Shot(
                6,
                "moon",
                (
                    Actor("cat", (0.22, 0.6), (0.36, 0.52), 0.5, sway=6),
                    Actor("rocket", (0.8, 0.58), (0.7, 0.46), 0.76, sway=5),
                ),
                (0.0, 0.04),
                light=(0.8, 0.85, 1.0),
            ),
        ),
    ),
    Video(
        "cat_dark",
        "A cat in the dark.",
        (
            Shot(
                4,
                "gravel",
                (Actor("cat", (0.3, 0.5), (0.7, 0.5), 0.55),),
                (0.04, 0.0),
                tint=(0.8, 0.8, 0.8),
                light=(0.12, 0.12, 0.12),
            ),
        ),
    ),
    Video(
        "motorcycle_blurred",
        "A motorcycle out of focus.",
        (Shot(4, "wall", (Actor("motorcycle", (0.35, 0.5), (0.65, 0.5), 0.6),), (0.03, 0.0), tint=COLD, blur=9),),
        detailed=True,
    ),
    Video(
        "cup_static",
        "A cup of coffee stands in front of a bench.",
        (Shot(4, "bench", (Actor("cup", (0.5, 0.55), (0.5, 0.55), 0.6),)),),
    ),
    Video(
        "rocket_text",
        "A rocket leaves the earth in the evening news.",
        (
            Shot(
                4,
                "stars",
                (Actor("rocket", (0.3, 0.45), (0.6, 0.38), 0.7, turn=15),),
                (0.03, 0.0),
                text=("BREAKING NEWS", "ROCKET LEAVES EARTH"),
            ),
        ),
        detailed=True,
    ),
)


def frames(video: Video) -> Iterator[Picture]:
    """The frames of a video, one at a time: RGB of shape ``(height, width, 3)``."""
    for shot in video.shots:
        yield from _shot_frames(shot, video, round(shot.seconds * video.fps))


def _shot_frames(shot: Shot, video: Video, count: int) -> Iterator[Picture]:
    stage = _stage(shot, video.size)
    sprites = [_sprite(actor, video.size[1]) for actor in shot.actors]
    poses = [
        _poses(sprite, f"{video.name} {shot.background} {actor.subject}", moves=actor.start != actor.end)
        for actor, sprite in zip(shot.actors, sprites, strict=True)
    ]
    finish = _finish(shot)
    for number in range(count):
        time = number / (count - 1)
        frame = _camera(stage, shot, video.size, time)
        for actor, sprite, (first, last) in zip(shot.actors, sprites, poses, strict=True):
            posed = _bent(sprite, (1 - time) * first + time * last)
            _paint(frame, posed, actor, time, seconds=shot.seconds)
        yield finish(frame)


def _stage(shot: Shot, size: tuple[int, int]) -> Picture:
    """The tinted background, a fifth larger than the frame."""
    import cv2

    photo = BACKGROUNDS[shot.background]
    picture = _read(photo)
    wanted = (round(size[0] * 1.2), round(size[1] * 1.2))
    scale = max(wanted[0] / picture.shape[1], wanted[1] / picture.shape[0])
    enlarged = cv2.resize(picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC)
    top, left = (enlarged.shape[0] - wanted[1]) // 2, (enlarged.shape[1] - wanted[0]) // 2
    cropped = enlarged[top : top + wanted[1], left : left + wanted[0]]
    return _relit(np.ascontiguousarray(cropped), shot.tint, photo.lift)


def _camera(stage: Picture, shot: Shot, size: tuple[int, int], time: float) -> Picture:
    import cv2

    zoom = 1 + (shot.zoom - 1) * time
    centre = (
        stage.shape[1] / 2 + shot.pan[0] * size[0] * (time - 0.5),
        stage.shape[0] / 2 + shot.pan[1] * size[1] * (time - 0.5),
    )
    affine = np.array([[1 / zoom, 0, centre[0] - size[0] / 2 / zoom], [0, 1 / zoom, centre[1] - size[1] / 2 / zoom]])
    frame: Picture = cv2.warpAffine(stage, affine, size, flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP)
    return frame


def _paint(frame: Picture, sprite: Picture, actor: Actor, time: float, *, seconds: float) -> None:
    """Blend a sprite (premultiplied RGBA) into the frame at its place at ``time`` in [0, 1]."""
    import cv2

    height, width = frame.shape[:2]
    swing = sin(2 * pi * time * max(1, round(seconds * 0.75)))
    x = width * (actor.start[0] + (actor.end[0] - actor.start[0]) * time)
    y = height * (actor.start[1] + (actor.end[1] - actor.start[1]) * time + actor.bob * swing)
    angle = radians(actor.turn * (time - 0.5) + actor.sway * swing)
    scale = 1 + (actor.grow - 1) * time
    c, s = scale * cos(angle), scale * sin(angle)
    middle = (sprite.shape[1] / 2, sprite.shape[0] / 2)
    reach = (abs(c) * middle[0] + abs(s) * middle[1], abs(s) * middle[0] + abs(c) * middle[1])
    x0, x1 = max(0, int(x - reach[0]) - 1), min(width, int(x + reach[0]) + 2)
    y0, y1 = max(0, int(y - reach[1]) - 1), min(height, int(y + reach[1]) + 2)
    affine = np.array([[c, -s, x - x0 - c * middle[0] + s * middle[1]], [s, c, y - y0 - s * middle[0] - c * middle[1]]])
    warped = cv2.warpAffine(sprite, affine, (x1 - x0, y1 - y0), flags=cv2.INTER_LINEAR)
    clear = cv2.cvtColor(255 - warped[..., 3], cv2.COLOR_GRAY2RGB)
    under = cv2.multiply(frame[y0:y1, x0:x1], clear, scale=1 / 255)
    frame[y0:y1, x0:x1] = cv2.add(under, cv2.cvtColor(warped, cv2.COLOR_RGBA2RGB))


def _finish(shot: Shot) -> Callable[[Picture], Picture]:
    """What happens to the whole frame: blur, light, then text."""
    import cv2

    def finish(frame: Picture) -> Picture:
        if shot.blur:
            frame = cv2.GaussianBlur(frame, (0, 0), shot.blur)
        if shot.light != (1.0, 1.0, 1.0):
            frame = _relit(frame, shot.light)
        if shot.text:
            _letter(frame, shot.text)
        return frame

    return finish


def _letter(frame: Picture, lines: Sequence[str]) -> None:
    """Write lines on a dark bar over the lower third."""
    import cv2

    height, width = frame.shape[:2]
    top, step = round(height * 0.68), round(height * 0.14)
    frame[top : top + step * len(lines) + 12] //= 5
    for number, line in enumerate(lines, start=1):
        place = (round(width * 0.05), top + step * number)
        cv2.putText(frame, line, place, cv2.FONT_HERSHEY_SIMPLEX, height / 250, (255, 255, 255), 3, cv2.LINE_AA)


def _relit(picture: Picture, factors: Colour, lift: Colour = (0.0, 0.0, 0.0)) -> Picture:
    import cv2

    levels = np.arange(256)[:, None] * np.array(factors) + np.array(lift)
    table = np.clip(np.rint(levels), 0, 255).astype(np.uint8)[:, None, :]
    relit: Picture = cv2.LUT(picture, table)
    return relit


def _poses(sprite: Picture, name: str, *, moves: bool) -> tuple[Field, Field]:
    """How a sprite is bent at the start and at the end of a shot: smooth fields that follow from the name.

    What does not move is bent alike throughout.

    A photograph that is only moved is the same picture wherever it goes, and every reference of it a copy. Bent, it
    stands in for a subject that moves.
    """
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big")
    random = np.random.default_rng(seed)
    height, width = sprite.shape[:2]
    down, across = np.mgrid[0:height, 0:width].astype(np.float32) / max(height, width)
    fields = []
    for _ in range(2):
        field = np.zeros((height, width, 2), np.float32)
        for axis in (0, 1):
            for _ in range(WAVES):
                turn, phase = random.uniform(0, 2 * pi, 2)
                way = across * cos(turn) + down * sin(turn)
                field[..., axis] += np.sin(2 * pi * random.uniform(*WAVES_ACROSS) * way + phase)
        fields.append(field * (BEND * max(height, width) / WAVES))
    return fields[0], fields[int(moves)]


def _bent(sprite: Picture, field: Field) -> Picture:
    import cv2

    down, across = np.mgrid[0 : sprite.shape[0], 0 : sprite.shape[1]].astype(np.float32)
    # What is bent beyond the sprite's own edge would end there in a straight line.
    fade = np.minimum(
        1,
        EDGE_FADE
        * np.minimum(
            np.minimum(across, sprite.shape[1] - 1 - across) / sprite.shape[1],
            np.minimum(down, sprite.shape[0] - 1 - down) / sprite.shape[0],
        ),
    )
    bent: Picture = cv2.remap(
        sprite,
        across + fade * field[..., 0],
        down + fade * field[..., 1],
        cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_CONSTANT,
    )
    return bent


def _sprite(actor: Actor, frame_height: int) -> Picture:
    """The actor's cut-out at its starting size."""
    import cv2

    cutout = _cutout(actor.subject)
    scale = actor.height * frame_height / cutout.shape[0]
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    resized: Picture = cv2.resize(cutout, None, fx=scale, fy=scale, interpolation=method)
    return resized


@cache
def _cutout(subject: str) -> Picture:
    """A subject as RGBA with colours multiplied by alpha, cropped to it."""
    import cv2

    photo = SUBJECTS[subject]
    picture = _read(photo)
    rough = _outline_mask(photo, picture.shape[:2]) if photo.outline else _nearer_than_floor()
    mask = _largest_part(_grab_cut(picture, rough, photo.slack))
    smooth = cv2.GaussianBlur(mask, (0, 0), 2.5)
    inside = (smooth > 140).astype(np.uint8) * np.uint8(255)
    alpha = cv2.GaussianBlur(inside, (0, 0), 1.0)[..., None]
    rgba = np.concatenate([(picture * (alpha / 255)).astype(np.uint8), alpha], axis=-1)
    x, y, width, height = cv2.boundingRect(alpha)
    return np.ascontiguousarray(rgba[y : y + height, x : x + width])


def _outline_mask(photo: Photo, shape: tuple[int, ...]) -> Picture:
    import cv2

    mask = np.zeros(shape, np.uint8)
    cv2.fillPoly(mask, [np.array(photo.outline, np.int32)], (255,))
    return mask


def _nearer_than_floor() -> Picture:
    """The motorcycle, by the stereo disparity that comes with its photograph: nearer than the floor of its row."""
    import cv2

    with np.load(_data_folder() / "motorcycle_disp.npz") as stored:
        disparity = stored["arr_0"]
    disparity = np.where(np.isfinite(disparity), disparity, 0)
    beside = disparity[:, 700:]
    floor = np.array([np.median(row[row > 0]) if (row > 0).any() else 0 for row in beside])
    mask = (disparity > np.maximum(34, floor * 1.1 + 1)[:, None]).astype(np.uint8) * np.uint8(255)
    closed = cv2.morphologyEx(mask, cv2.MORPH_CLOSE, np.ones((9, 9), np.uint8))
    opened: Picture = cv2.morphologyEx(closed, cv2.MORPH_OPEN, np.ones((5, 5), np.uint8))
    return opened


def _grab_cut(picture: Picture, rough: Picture, slack: int) -> Picture:
    import cv2

    labels = np.full(rough.shape, cv2.GC_BGD, np.uint8)
    labels[cv2.dilate(rough, _disc(slack)) > 0] = cv2.GC_PR_BGD
    labels[rough > 0] = cv2.GC_PR_FGD
    labels[cv2.erode(rough, _disc(slack + 4)) > 0] = cv2.GC_FGD
    cv2.setRNGSeed(0)
    cv2.grabCut(picture, labels, None, np.zeros((1, 65)), np.zeros((1, 65)), 3, cv2.GC_INIT_WITH_MASK)
    return np.isin(labels, (cv2.GC_FGD, cv2.GC_PR_FGD)).astype(np.uint8) * np.uint8(255)


def _disc(radius: int) -> Picture:
    import cv2

    disc: Picture = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))
    return disc


def _largest_part(mask: Picture) -> Picture:
    """The largest component, its holes filled."""
    import cv2

    outlines, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    filled = np.zeros_like(mask)
    cv2.drawContours(filled, [max(outlines, key=cv2.contourArea)], -1, (255,), -1)
    return filled


@cache
def _read(photo: Photo) -> Picture:
    import cv2

    picture = cv2.cvtColor(cv2.imread(str(_data_folder() / photo.file), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
    x0, y0, x1, y1 = photo.box or (0, 0, picture.shape[1], picture.shape[0])
    return np.ascontiguousarray(np.rot90(picture[y0:y1, x0:x1], photo.quarter_turns))


def _data_folder() -> Path:
    return Path(str(files("skimage") / "data"))


def _write(video: Video, folder: Path) -> None:
    target = folder / f"{video.name}.mp4"
    _encode(video, target)
    if video.detailed:
        target.with_suffix(".json").write_text(json.dumps(_details(video), indent=2) + "\n", encoding="utf-8")
    else:
        target.with_suffix(".txt").write_text(video.caption + "\n", encoding="utf-8")


def _details(video: Video) -> dict[str, str]:
    photos = [BACKGROUNDS[shot.background] for shot in video.shots]
    photos += [SUBJECTS[actor.subject] for shot in video.shots for actor in shot.actors]
    return {
        "caption": video.caption,
        "licence": "; ".join(sorted({photo.licence for photo in photos})),
        "source": "; ".join(sorted({photo.source for photo in photos})),
    }


def _encode(video: Video, target: Path) -> None:
    """Encode as H.264 in one thread and without metadata: the bytes depend on the frames alone."""
    import cv2
    import ffmpeg
    import imageio_ffmpeg

    width, height = video.size
    raw = ffmpeg.input("pipe:", format="rawvideo", pix_fmt="yuv420p", s=f"{width}x{height}", r=video.fps)
    options = {"flags:v": "+bitexact", "fflags": "+bitexact", "map_metadata": -1, "threads": 1}
    command = raw.output(str(target), vcodec="libx264", preset="superfast", crf=22, loglevel="error", **options)
    with command.overwrite_output().run_async(cmd=imageio_ffmpeg.get_ffmpeg_exe(), pipe_stdin=True) as process:
        for frame in frames(video):
            process.stdin.write(cv2.cvtColor(frame, cv2.COLOR_RGB2YUV_I420).tobytes())
    if process.returncode != 0:
        raise RuntimeError(f"ffmpeg could not write {target}")


def _spoil(folder: Path) -> None:
    """Add a file cut at 60 % of its bytes (its index stood at the end) and an exact copy."""
    for name in (TRUNCATED, COPY):
        (folder / name).parent.mkdir(exist_ok=True)
    whole = (folder / "rocket_tower.mp4").read_bytes()
    (folder / TRUNCATED).write_bytes(whole[: len(whole) * 6 // 10])
    (folder / TRUNCATED).with_suffix(".txt").write_text("A rocket, cut short.\n", encoding="utf-8")
    shutil.copyfile(folder / "cat_wall.mp4", folder / COPY)
    (folder / COPY).with_suffix(".txt").write_text("A cat walks along a wall.\n", encoding="utf-8")


def _stamp(folder: Path) -> None:
    """Note what a complete set consists of."""
    sizes = {path.relative_to(folder).as_posix(): path.stat().st_size for path in _outputs(folder)}
    (folder / STAMP).write_text(json.dumps({"recipe": _recipe(), "bytes": sizes}, indent=2) + "\n", encoding="utf-8")


def _complete(folder: Path) -> bool:
    try:
        stamp = json.loads((folder / STAMP).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return False
    present = {name: size for name, size in stamp["bytes"].items() if _size(folder / name) == size}
    return bool(stamp["recipe"] == _recipe() and present == stamp["bytes"])


def _outputs(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.suffix in {".mp4", ".txt", ".json"} and path.name != STAMP)


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else -1


def _recipe() -> str:
    return hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:16]
