"""Subjects with pictures: striped balls before speckled walls, and models that know them by their colour."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import cv2
import numpy as np
from blank import blank

from models.protocols import Detection, EditRequest, Face, FillRequest, Image, Keyframe, Mask, Vector
from stages.difference import shape_bits, surroundings
from stages.measure import area, encode_rle, perceptual_hash
from stages.picture import encode_png, resized_mask, subject_crop
from stages.records import Subject, SubjectFrame

HEIGHT, WIDTH = 120, 160
GREEN = (20, 160, 40)


def unit(*values: float) -> list[float]:
    return (np.array(values) / np.linalg.norm(values)).tolist()


def scene(
    x: int, colour: tuple[int, int, int] = (200, 40, 30), background: int = 0, radius: int = 30
) -> tuple[Image, Mask]:
    """A striped ball around ``x`` before a speckled wall."""
    rng = np.random.default_rng(background)
    wall = rng.integers(0, 255, (HEIGHT // 8, WIDTH // 8, 3)).astype(np.uint8) // 3 + np.array(GREEN, np.uint8) // 2
    image = np.asarray(cv2.resize(wall, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC))
    rows, columns = np.indices((HEIGHT, WIDTH))
    mask = np.hypot(rows - 60, columns - x) <= radius
    stripes = np.where((rows // 4 % 2)[..., None] > 0, np.array(colour, np.uint8), np.array(colour, np.uint8) // 2)
    image[mask] = stripes[mask]
    return image, mask


@dataclass
class Seen:
    """A kept frame: where the ball is, in what colour, and what it was found to look like."""

    x: int = 80
    colour: tuple[int, int, int] = (200, 40, 30)
    background: int = 0
    radius: int = 30
    image_embedding: Sequence[float] = (1.0, 0.0, 0.0)
    face_embedding: Sequence[float] | None = None
    time: float | None = None
    """Seconds; the number of the frame where nothing is said."""


def subject(name: str, *seen: Seen, best: int = 0, scale: int = 1, **changes: Any) -> Subject:
    """A subject whose crops are its whole frames but for ten pixels at the left and the top, scaled down."""
    shown = [scene(frame.x, frame.colour, frame.background, frame.radius) for frame in seen]
    pictures = [(image[10:, 10:], mask) for image, mask in shown]
    whole = pictured(name, pictures, (10, 10), best=best, scale=scale)
    frames = [
        replace(
            known,
            time=float(number) if frame.time is None else frame.time,
            image_embedding=list(frame.image_embedding),
            face_embedding=None if frame.face_embedding is None else list(frame.face_embedding),
        )
        for number, (known, frame) in enumerate(zip(whole.frames, seen, strict=True))
    ]
    told = frames[best]
    known = {"image_embedding": told.image_embedding, "face_embedding": told.face_embedding, "time": told.time}
    return replace(whole, **{"frames": frames, **known, **changes})


def pictured(
    name: str,
    pictures: Sequence[tuple[Image, Mask]],
    corner: tuple[int, int] = (0, 0),
    *,
    best: int = 0,
    scale: int = 1,
    **changes: Any,
) -> Subject:
    """A subject with these crops and the masks of whole frames, in which the crops' corner lies at ``(x, y)``."""
    x, y = corner
    frames, crops = [], []
    for number, (picture, mask) in enumerate(pictures):
        crop = picture if scale == 1 else np.asarray(cv2.resize(picture, None, fx=1 / scale, fy=1 / scale))
        inside = mask[y : y + picture.shape[0], x : x + picture.shape[1]]
        frames.append(
            blank(
                SubjectFrame,
                time=float(number),
                mask=encode_rle(mask),
                crop_box=[x, y, x + picture.shape[1], y + picture.shape[0]],
                image_embedding=[1.0, 0.0, 0.0],
                phash=perceptual_hash(crop),
                shape=shape_bits(mask),
                area=area(mask),
                surroundings=surroundings(crop, resized_mask(inside, crop)),
            )
        )
        crops.append(encode_png(crop))
    height, width = pictures[best][1].shape
    numbers = {"frame_width": width, "frame_height": height, "best": best, "word": "ball", "clip_id": f"clip-{name}"}
    known = {"image_embedding": [1.0, 0.0, 0.0], "subject_id": name}
    return blank(Subject, frames=frames, crops=crops, **{**numbers, **known, **changes})


def known_by_colour(ball: Subject) -> Subject:
    """The subject with the embedding that `MeanColour` has for it."""
    (vector,) = MeanColour().embed(*([part] for part in subject_crop(ball, ball.best)))
    return replace(ball, image_embedding=vector.tolist())


@dataclass
class MeanColour:
    """Knows things by the mean colour inside their mask."""

    calls: list[int] = field(default_factory=list)

    def embed(self, images: Sequence[Image], masks: Sequence[Mask]) -> list[Vector]:
        self.calls.append(len(images))
        means = [image[mask].mean(axis=0).astype(np.float32) for image, mask in zip(images, masks, strict=True)]
        return [mean / max(float(np.linalg.norm(mean)), 1e-9) for mean in means]


@dataclass
class Faces:
    """Sees these faces in every picture."""

    embeddings: Sequence[Sequence[float]] = ()
    calls: list[int] = field(default_factory=list)

    def faces(self, images: Sequence[Image]) -> list[list[Face]]:
        self.calls.append(len(images))
        found = [
            Face((0, 0, 9, 9), 0.9, np.zeros((5, 2), np.float32), np.array(embedding, np.float32))
            for embedding in self.embeddings
        ]
        return [found for _ in images]


@dataclass
class Redness:
    """Finds that red pictures fit any text."""

    calls: list[list[tuple[tuple[int, ...], str]]] = field(default_factory=list)

    def similarity(self, images: Sequence[Image], texts: Sequence[str]) -> list[float]:
        self.calls.append([(image.shape, text) for image, text in zip(images, texts, strict=True)])
        return [float(image[..., 0].mean() / 255) for image in images]


@dataclass
class Whiteness:
    """Takes white for skin."""

    calls: list[int] = field(default_factory=list)

    def nudity(self, images: Sequence[Image]) -> list[float]:
        self.calls.append(len(images))
        return [float((image == 255).all(axis=2).mean()) for image in images]


@dataclass
class Boxes:
    """Finds these boxes, with these scores, in every picture."""

    found: Sequence[tuple[tuple[float, float, float, float], float]] = ()
    calls: list[list[list[str]]] = field(default_factory=list)
    class_free: ClassVar[bool] = False

    def detect(
        self, clips: Sequence[Sequence[Keyframe]], words: Sequence[Sequence[str]]
    ) -> list[list[list[Detection]]]:
        self.calls.append([list(each) for each in words])
        return [
            [[Detection(each[0], box, score) for box, score in self.found] for _ in clip]
            for clip, each in zip(clips, words, strict=True)
        ]


@dataclass
class Painter:
    """Paints the background in one colour; a careless one everything."""

    colour: tuple[int, int, int] = (240, 240, 10)
    careless: bool = False
    requests: list[FillRequest] = field(default_factory=list)
    calls: int = 0

    def fill(self, requests: Sequence[FillRequest]) -> list[Image]:
        self.calls += 1
        self.requests += requests
        painted = []
        for request in requests:
            image = request.image.copy()
            image[np.ones_like(request.mask) if self.careless else request.mask] = self.colour
            painted.append(image)
        return painted


@dataclass
class Mover:
    """Turns the picture upside down; one that makes a scene paints what is white."""

    scenery: bool = False
    requests: list[EditRequest] = field(default_factory=list)
    calls: int = 0

    def edit(self, requests: Sequence[EditRequest]) -> list[Image]:
        self.calls += 1
        self.requests += requests
        moved = [request.image[::-1].copy() for request in requests]
        for picture in moved if self.scenery else []:
            picture[(picture > 240).all(axis=2)] = (30, 160, 30)
        return moved
