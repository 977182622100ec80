"""Planted pictures: discs with soft edges on textures, of which every colour and share is known."""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

from models.protocols import Image, Mask

RED, GREEN, BLUE, MAGENTA = (200, 40, 40), (40, 180, 50), (40, 60, 210), (230, 30, 230)


def texture(height: int, width: int, colour: tuple[int, int, int], seed: int = 0, deviation: float = 12.0) -> Image:
    """Soft noise around a colour."""
    noise = np.random.default_rng(seed).normal(0, 1, (height, width)).astype(np.float32)
    noise = cv2.GaussianBlur(noise, (0, 0), 1.5)
    pixels = np.array(colour) + deviation * noise[..., None] / noise.std()
    return np.clip(np.rint(pixels), 0, 255).astype(np.uint8)


def disc(shape: tuple[int, int], centre: tuple[float, float], radius: float, soft: float) -> npt.NDArray[np.float64]:
    """Share of a disc in each pixel; ``centre`` is ``(x, y)``, ``soft`` the width of its edge in pixels."""
    rows, columns = np.indices(shape)
    distance = np.hypot(columns - centre[0], rows - centre[1])
    return np.clip(0.5 + (radius - distance) / soft, 0, 1)


def over(share: npt.NDArray[np.float64], front: Image, back: Image) -> Image:
    return np.rint(share[..., None] * front + (1 - share[..., None]) * back).astype(np.uint8)


def subject(
    shape: tuple[int, int] = (160, 140),
    centre: tuple[float, float] = (70, 80),
    radius: float = 40,
    soft: float = 5,
    front: tuple[int, int, int] = RED,
    back: tuple[int, int, int] = GREEN,
) -> tuple[Image, Mask]:
    """A textured disc before a textured background, and its hard mask."""
    share = disc(shape, centre, radius, soft)
    return over(share, texture(*shape, front, 1), texture(*shape, back, 2)), share > 0.5


def excess(picture: Image, channel: int) -> npt.NDArray[np.int64]:
    """How far a channel stands out above both others; negative where it does not."""
    pixels = picture.astype(np.int64)
    others = np.delete(pixels, channel, axis=2).max(axis=2)
    return np.asarray(pixels[..., channel] - others)


def deep_inside(mask: Mask, pixels: int) -> Mask:
    """What of a mask is further from its outline than that; the picture's edge is no outline."""
    return np.asarray(cv2.distanceTransform(mask.astype(np.uint8), cv2.DIST_L2, 5) > pixels)
