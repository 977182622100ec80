"""A subject in another clip's scene, in place of the one that was there."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast

import cv2
import numpy as np
import numpy.typing as npt
from pydantic import Field

from models.masks import box_of, cut_edges
from models.protocols import FillRequest, Image, Mask
from stages.config import Section
from stages.matte import matte
from stages.measure import lab
from stages.seam import seamless

Edges = tuple[bool, bool, bool, bool]
"""Left, top, right and lower."""
_Floats = npt.NDArray[np.float32]

_CONTRAST = (0.8, 1.25)
"""How much a subject's contrast may change with the light."""

_FAINT = 0.02
"""Alpha up to which a subject's own colour is not known."""

_QUANTILES = np.linspace(0.02, 0.98, 25)
_WEIGHTS = (1.0, 0.5, 0.5)
"""How far histograms of lightness and the two axes of colour are matched."""


class FitConfig(Section):
    """Which subjects may stand in another's place."""

    max_aspect_ratio: float = Field(1.5, ge=1)
    """How many times wider or narrower the one's box may be for its height than the other's."""
    max_enlarge: float = Field(1.5, ge=1)
    """How many times higher, in pixels, the place may be than the subject: beyond, it would blur."""
    max_shrink: float = Field(3.0, ge=1)
    """How many times lower, in pixels, the place may be than the subject."""
    max_host_area: float = Field(0.45, gt=0, le=1)
    """Largest share of its crop that the subject to be removed may cover: where less than that is left, the scene
    cannot be told."""


class SwapConfig(Section):
    """How a subject is put into another's scene."""

    dilate: float = Field(0.025, ge=0, le=0.3)
    """Width around the scene's own subject that is painted anew with it, as a share of the longer side of its box."""
    size_by: Literal["height", "area"] = "height"
    """What of the subject is made equal to that of the one whose place it takes."""
    max_enlarge: float = Field(1.5, ge=1)
    """How many times larger than in its own picture the subject may be shown."""
    light: Literal["none", "reinhard", "histogram"] = "reinhard"
    """How the subject takes on the scene's light: by what would make the mean and spread of its own surroundings those
    of the scene (Reinhard 2001), or the whole distribution of their lightness and, by half, of their colours."""
    light_strength: float = Field(0.5, ge=0, le=1)
    """By which share of that it is changed."""
    max_light: float = Field(0.3, ge=0, le=1)
    """Largest such change that is looked for, relative to the subject's own lightness: beyond, surroundings differ by
    more than their light."""
    edge: float = Field(0.01, ge=0, le=0.1)
    """Half the width of the band in which the subject's outline is softened, as a share of the longer side of its
    box."""
    blend: Literal["alpha", "poisson"] = "alpha"
    """How the subject goes over into the scene: by its soft outline alone, or also in the gradient domain (Perez 2003)
    from there to `edge` inside, which spreads the step in colour."""


@dataclass(frozen=True, slots=True)
class Stance:
    """How a subject stands in its frame, as far as that decides in whose place it may be put."""

    width: int
    height: int
    """Sides of its box in pixels of its crop."""
    filled: float
    """Share of its crop; [0, 1]."""
    cut: Edges
    """By which of its frame's edges it is cut off."""

    @classmethod
    def of(cls, frame: Mapping[str, Any], frame_width: int, frame_height: int) -> Stance:
        """Of a row of ``subjects``, or one of its frames: its ``box``, ``crop_box`` and ``area``.

        ``frame_width`` and ``frame_height`` are the clip's, in pixels.
        """
        x0, y0, x1, y1 = frame["box"]
        left, top, right, bottom = frame["crop_box"]
        return cls(
            width=round(x1 - x0),
            height=round(y1 - y0),
            filled=frame["area"] * frame_width * frame_height / max(1, (right - left) * (bottom - top)),
            cut=cut_edges((x0, y0, x1, y1), frame_width, frame_height),
        )

    @property
    def aspect(self) -> float:
        """Width by height."""
        return self.width / self.height


def fits(source: Stance, host: Stance, config: FitConfig) -> bool:
    """Whether the source may stand in the host's place.

    Both are cut off by the same edges of their frames, or both are complete: a standing person cannot take a bust's
    place. Their boxes are of about the same shape, and their sizes not too far apart.
    """
    ratio = source.aspect / host.aspect
    return (
        source.cut == host.cut
        and 1 / config.max_aspect_ratio <= ratio <= config.max_aspect_ratio
        and source.height / config.max_shrink <= host.height <= source.height * config.max_enlarge
        and host.filled <= config.max_host_area
    )


@dataclass(frozen=True, slots=True)
class Swapped:
    """A picture of the scene's size, and where in it the subject is."""

    picture: Image
    mask: Mask
    revealed: float
    """Share of the picture that was painted anew and shows beside the subject; [0, 1]."""
    scale: float
    """How many times larger the subject is than in its own picture."""


def swap_request(scene: Image, scene_mask: Mask, config: SwapConfig, prompt: str, seed: int) -> FillRequest:
    """What an inpainter is to paint: the scene without its own subject.

    Raises ``ValueError`` for an empty mask.
    """
    return FillRequest(image=scene, mask=_removed(scene_mask, config), prompt=prompt, seed=seed)


def swap_compose(
    filled_scene: Image, scene_mask: Mask, source_crop: Image, source_mask: Mask, config: SwapConfig
) -> Swapped:
    """The source before the scene, on the place of the scene's own subject.

    Its box stands on that one's lower edge, centred, and is moved inside. Where its own picture's edge cuts it off,
    it ends at the same edge of the scene. It takes on the scene's light by as much as the surroundings of the two
    differ; the colours of the other subject play no part.

    Args:
        filled_scene: the inpainter's answer to `swap_request`.
        scene_mask: the scene's own subject, as in the request.
        source_crop: the picture of the subject that is put in.
        source_mask: where in it the subject is.
        config: how.

    Raises:
        ValueError: for an empty mask.
    """
    x0, y0, x1, y1 = box_of(source_mask)
    # A crop has a margin around its subject wherever the frame has.
    cut = cut_edges((x0, y0, x1, y1), source_mask.shape[1], source_mask.shape[0])
    # Room for what the matte finds beyond the mask; where the picture's edge cuts it off, it ends with the mask.
    room = 1 + round(config.edge * max(x1 - x0, y1 - y0))
    left, top = (at if is_cut else max(0, at - room) for at, is_cut in zip((x0, y0), cut[:2], strict=True))
    right, bottom = (at if is_cut else at + room for at, is_cut in zip((x1, y1), cut[2:], strict=True))
    own = np.s_[top:bottom, left:right]
    removed = _removed(scene_mask, config)
    lit = _relit(source_crop, source_mask, filled_scene[~removed], config)
    alpha, colours = matte(lit[own], source_mask[own], band=config.edge)
    scale = _scale(source_mask, scene_mask, config)
    # Colours weighed by alpha, so that what surrounds the subject does not bleed into its edge.
    weighed = np.dstack([alpha, alpha[..., None] * colours]).astype(np.float32)
    weighed = _resized(weighed, scale)
    layer = np.zeros((*scene_mask.shape, 4), np.float32)
    x, y = _place(box_of(_mostly(weighed[..., 0])), box_of(scene_mask), scene_mask.shape, cut)
    _put(layer, weighed, x, y)
    picture = cast(_Floats, layer[..., 1:] + (1 - layer[..., :1]) * filled_scene)
    mask = _mostly(layer[..., 0])
    if config.blend == "poisson":
        picture = _seamless(picture, layer, mask, config.edge * max(x1 - x0, y1 - y0) * scale)
    return Swapped(
        picture=np.clip(np.rint(picture), 0, 255).astype(np.uint8),
        mask=mask,
        revealed=float((removed & ~mask).mean()),
        scale=scale,
    )


def _seamless(picture: _Floats, layer: _Floats, mask: Mask, reach: float) -> _Floats:
    """The picture, its subject solved anew from its outline to ``reach`` pixels inside.

    What is too thin to have an inside, such as fingers, would take on the scene's colour throughout, and stays.
    """
    alpha = layer[..., 0]
    # The picture's edge is no outline.
    deep = _distance_to(~mask) > reach
    band = mask & ~deep & (_distance_to(deep) <= reach + 1)
    own = cast(_Floats, layer[..., 1:] / np.maximum(alpha, _FAINT)[..., None])
    return seamless(picture, own, alpha > _FAINT, band)


def _distance_to(mask: Mask) -> _Floats:
    """Distance of each pixel to the nearest one of the mask; large where there is none."""
    return cast(_Floats, cv2.distanceTransform((~mask).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE))


def _mostly(alpha: _Floats) -> Mask:
    """Where the subject is more than half; of something thin, shrunk, half of what there is."""
    return cast(Mask, alpha > 0.5 * alpha.max())


def _removed(mask: Mask, config: SwapConfig) -> Mask:
    x0, y0, x1, y1 = box_of(mask)
    return _distance_to(mask) <= config.dilate * max(x1 - x0, y1 - y0)


def _scale(source: Mask, host: Mask, config: SwapConfig) -> float:
    """How many times larger the source becomes: to the host's size, and no larger than the host's picture."""
    x0, y0, x1, y1 = box_of(source)
    _, top, _, bottom = box_of(host)
    wanted = (bottom - top) / (y1 - y0)
    if config.size_by == "area":
        wanted = math.sqrt(np.count_nonzero(host) / np.count_nonzero(source))
    return float(min(wanted, config.max_enlarge, host.shape[1] / (x1 - x0), host.shape[0] / (y1 - y0)))


def _place(
    box: tuple[int, int, int, int],
    host: tuple[int, int, int, int],
    shape: tuple[int, ...],
    cut: Edges,
) -> tuple[int, int]:
    """Where in the scene the corner of a cut-out goes whose subject lies in ``box``."""
    x0, y0, x1, y1 = box
    free_across, free_down = shape[1] - (x1 - x0), shape[0] - (y1 - y0)
    x = round((host[0] + host[2] - (x1 - x0)) / 2)
    y = host[3] - (y1 - y0)
    if cut[0] or cut[2]:
        x = 0 if cut[0] else free_across
    if cut[1] or cut[3]:
        y = free_down if cut[3] else 0
    return min(max(x, 0), max(free_across, 0)) - x0, min(max(y, 0), max(free_down, 0)) - y0


def _put(layer: _Floats, piece: _Floats, x: int, y: int) -> None:
    """Copy what of the piece falls into the layer, its corner at ``(x, y)``."""
    height, width = layer.shape[:2]
    top, left = max(0, y), max(0, x)
    bottom, right = min(height, y + piece.shape[0]), min(width, x + piece.shape[1])
    layer[top:bottom, left:right] = piece[top - y : bottom - y, left - x : right - x]


def _resized(planes: _Floats, scale: float) -> _Floats:
    size = (max(1, round(planes.shape[1] * scale)), max(1, round(planes.shape[0] * scale)))
    how = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    resized = cv2.resize(planes, size, interpolation=how)
    resized[..., 0] = np.clip(resized[..., 0], 0, 1)
    return cast(_Floats, resized)


def _relit(image: Image, mask: Mask, scene: Image, config: SwapConfig) -> Image:
    """The image in the light of the scene, whose pixels ``(pixels, 3)`` show no subject."""
    if config.light == "none" or not config.light_strength or mask.all() or not scene.size:
        return image
    own, theirs = lab(image), lab(scene[None])[0]
    around, centre = own[~mask], own[mask].mean(axis=0)
    if config.light == "reinhard":
        spread = np.clip(theirs.std(axis=0) / np.maximum(around.std(axis=0), 1), *_CONTRAST)
        moved = (centre - around.mean(axis=0)) * spread + theirs.mean(axis=0) - centre
        stretched = (own - centre) * (spread - 1)
    else:
        moved, stretched = _matched(own, mask, around, theirs)
    # Colour changes look twice as large as those of lightness.
    limits = config.max_light * centre[0] * np.array([1, 0.5, 0.5], np.float32)
    # As light does, it changes what is bright more than what is dark: black hair stays black.
    share = np.clip(own[..., :1] / max(float(centre[0]), 1), 0, 2)
    change = np.clip(moved, -limits, limits) * share + stretched
    return _rgb((own + config.light_strength * change).astype(np.float32))


def _matched(own: _Floats, mask: Mask, around: _Floats, theirs: _Floats) -> tuple[_Floats, _Floats]:
    """What the curves that bring the quantiles of ``around`` to those of ``theirs`` would do.

    To the subject's mean, shape ``(3,)``; and to each pixel beside that, of the shape of ``own``. Colours by half.
    """
    moved, stretched = np.zeros(3, np.float32), np.zeros_like(own)
    for channel, weight in enumerate(_WEIGHTS):
        levels, targets = (np.quantile(pixels[:, channel], _QUANTILES) for pixels in (around, theirs))
        # Many quantiles may be the same: their mean.
        levels, same = np.unique(levels, return_inverse=True)
        offsets = np.bincount(same, targets) / np.bincount(same) - levels
        # Beyond what its surroundings tell, the curves go on in parallel.
        moved[channel] = weight * np.interp(own[mask][:, channel], levels, offsets).mean()
        steps = np.diff(levels)
        slopes = np.clip(np.diff(offsets), (_CONTRAST[0] - 1) * steps, (_CONTRAST[1] - 1) * steps)
        bent = np.interp(own[..., channel], levels, np.concatenate([[0.0], np.cumsum(slopes)]))
        stretched[..., channel] = weight * (bent - bent[mask].mean())
    return moved, stretched


def _rgb(colours: _Floats) -> Image:
    colours[..., 0] = np.clip(colours[..., 0], 0, 100)
    pixels = cv2.cvtColor(colours, cv2.COLOR_LAB2RGB)
    return cast(Image, np.rint(np.clip(pixels, 0, 1) * 255).astype(np.uint8))
