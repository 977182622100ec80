"""Parts of a picture painted over by LaMa (Suvorov et al., arXiv:2109.07161) as an ONNX file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
import numpy.typing as npt

from models.onnx_session import open_session
from models.pretrained import UnusableWeightsError
from models.protocols import FillRequest, Image, Mask
from models.registry import BackendConfig, Repository

STRIDE = 8
"""A network of no fixed size takes sides that are multiples of this."""


class Lama:
    """An inpainter that continues what lies around a hole: for objects to remove.

    It ignores prompt and seed: the same image and mask give the same picture. It invents nothing, so where the mask
    is everything but a subject, what it paints is a smear of the subject's rim.
    """

    class Config(BackendConfig):
        """Options of ``backend: lama``."""

        backend: Literal["lama"] = "lama"
        """Name of this backend."""
        model: str = "Carve/LaMa-ONNX"
        """Folder under `models.root`; on the model hub, the name of the repository to fetch it from."""
        file: str = "lama_fp32.onnx"
        """The network in it: `image` of shape 1x3xHxW in [0, 1] and `mask` of shape 1x1xHxW, 1 where to paint, to a
        picture of shape 1x3xHxW in [0, 255]. H and W may be fixed or free."""
        revision: str | None = None
        """Commit, branch or tag to fetch; null is the one that `models/weights/catalogue.yaml` pins."""

        def weights(self, root: Path) -> list[Path]:
            """The network."""
            return [root / self.model / self.file]

        def repositories(self) -> list[Repository]:
            """The repository that holds it."""
            return [Repository(self.model, (self.file,), self.revision)]

    def __init__(self, config: Config, root: Path) -> None:
        path = root / config.model / config.file
        self._session = open_session(path)
        shapes = {node.name: node.shape for node in self._session.get_inputs()}
        if sorted(shapes) != ["image", "mask"] or any(len(shape) != 4 for shape in shapes.values()):
            raise UnusableWeightsError(f"{path} takes {shapes}, and a LaMa takes `image` and `mask`, both of rank 4")
        self._fixed = [side if isinstance(side, int) else None for side in shapes["image"][2:]]

    def fill(self, requests: Sequence[FillRequest]) -> list[Image]:
        """One picture per request, of its size; pixels outside the mask are bit-identical to the request's."""
        return [self._fill(request.image, request.mask) for request in requests]

    def _fill(self, image: Image, mask: Mask) -> Image:
        filled = image.copy()
        if not mask.any():
            return filled
        height, width = mask.shape
        scale = min(
            (fixed / side for fixed, side in zip(self._fixed, mask.shape, strict=True) if fixed is not None),
            default=1.0,
        )
        inner = max(1, round(height * scale)), max(1, round(width * scale))
        outer = [fixed or -(-side // STRIDE) * STRIDE for fixed, side in zip(self._fixed, inner, strict=True)]
        painted = self._session.run(
            None,
            {
                "image": _letterboxed(image.astype(np.float32) / np.float32(255), inner, outer),
                # A pixel that holds anything of the masked ones is masked: nothing of what is to go may show.
                "mask": np.ceil(_letterboxed(mask.astype(np.float32), inner, outer)).clip(0, 1),
            },
        )[0]
        picture = painted[0, :, : inner[0], : inner[1]].transpose(1, 2, 0)
        picture = _resized(np.ascontiguousarray(picture, np.float32), (height, width))
        filled[mask] = np.rint(np.clip(picture[mask], 0, 255)).astype(np.uint8)
        return filled


def _letterboxed(
    pixels: npt.NDArray[np.float32], inner: tuple[int, int], outer: Sequence[int]
) -> npt.NDArray[np.float32]:
    """Pixels of shape ``(height, width, ...)`` at a size, mirrored below and to the right, channels first."""
    small = np.atleast_3d(_resized(pixels, inner))
    padding = [(0, whole - part) for whole, part in zip(outer, inner, strict=True)]
    padded = np.pad(small, (*padding, (0, 0)), mode="symmetric")
    return np.ascontiguousarray(padded.transpose(2, 0, 1)[None])


def _resized(pixels: npt.NDArray[np.float32], size: tuple[int, int]) -> npt.NDArray[np.float32]:
    if pixels.shape[:2] == size:
        return pixels
    smaller = size[0] * size[1] < pixels.shape[0] * pixels.shape[1]
    scaled: npt.NDArray[np.float32] = cv2.resize(
        pixels, size[::-1], interpolation=cv2.INTER_AREA if smaller else cv2.INTER_LINEAR
    )
    return scaled
