"""Pictures of subjects: PNG in and out, the crop that a subject's frame holds, and its cut-out on white."""

from __future__ import annotations

from typing import cast

import cv2
import numpy as np

from models.masks import box_of
from models.protocols import Image, Mask
from stages.measure import decode_rle
from stages.records import Subject

LEAST_WHITE_EDGE = 0.5
"""Share of a picture's edge that is white where its subject stands on white; it may touch two sides."""


def encode_png(image: Image) -> bytes:
    """PNG of an RGB picture, without loss."""
    done, data = cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    if not done:
        raise ValueError(f"cannot encode a picture of shape {image.shape}")
    return data.tobytes()


def decode_png(data: bytes) -> Image:
    """RGB picture of a PNG. Raises ``ValueError`` for bytes that are not a picture."""
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR) if data else None
    if image is None:
        raise ValueError(f"{len(data)} bytes that are not a picture")
    return cast(Image, cv2.cvtColor(image, cv2.COLOR_BGR2RGB))


def subject_crop(subject: Subject, frame: int) -> tuple[Image, Mask]:
    """The picture around a subject in one of its kept frames, and its mask there, both of one size."""
    crop = decode_png(subject.crops[frame])
    x0, y0, x1, y1 = subject.frames[frame].crop_box
    whole = decode_rle(subject.frames[frame].mask, subject.frame_height, subject.frame_width)
    # Large crops are stored smaller than they were in the frame.
    return crop, resized_mask(whole[y0:y1, x0:x1], crop)


def resized_mask(mask: Mask, picture: Image) -> Mask:
    """The mask in the size of a picture."""
    size = (picture.shape[1], picture.shape[0])
    return cast(Mask, cv2.resize(mask.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST) > 0)


def cut_out(crop: Image, mask: Mask, *, margin: float = 0.04, feather: float = 1.0) -> tuple[Image, Mask]:
    """The subject alone on white, its box in the middle of a small margin: RGB, and its mask there.

    ``margin`` is a share of the box's longer side. ``feather`` is the width in pixels (a Gaussian's sigma) over which
    the edge fades to white; 0 cuts hard. Raises ``ValueError`` for an empty mask.
    """
    x0, y0, x1, y1 = box_of(mask)
    pad = round(margin * max(x1 - x0, y1 - y0))
    white = np.full((y1 - y0 + 2 * pad, x1 - x0 + 2 * pad, 3), 255, np.uint8)
    inside = np.zeros(white.shape[:2], bool)
    inner = np.s_[pad : pad + y1 - y0, pad : pad + x1 - x0]
    white[inner] = crop[y0:y1, x0:x1]
    inside[inner] = mask[y0:y1, x0:x1]
    alpha = inside.astype(np.float32)
    if feather > 0:
        # Inwards only: a fade outwards would show a rim of the background.
        alpha *= np.clip(2 * cv2.GaussianBlur(alpha, (0, 0), feather, borderType=cv2.BORDER_CONSTANT) - 1, 0, 1)
    blended = white * alpha[..., None] + 255 * (1 - alpha[..., None])
    return cast(Image, np.rint(blended).astype(np.uint8)), inside


def foreground(picture: Image, *, tolerance: int = 12) -> Mask:
    """Where a subject on white is: all that is not white and not reached from the edge through white.

    A picture without a white edge is all foreground: what was to be alone on white got a scene around it.
    ``tolerance`` is how far from 255 a channel may be in white.
    """
    white: Mask = np.all(picture >= 255 - tolerance, axis=2)
    framed = np.pad(white, 1, constant_values=True).astype(np.uint8)
    cv2.floodFill(framed, None, (0, 0), 2)
    background = framed[1:-1, 1:-1] == 2
    edge = np.concatenate([white[[0, -1]].ravel(), white[:, [0, -1]].ravel()])
    if edge.mean() < LEAST_WHITE_EDGE or background.all():
        return np.ones(white.shape, bool)
    return cast(Mask, ~background)
