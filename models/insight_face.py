"""Faces and whose they are by InsightFace: an SCRFD detector and an ArcFace-style recogniser from one model pack."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
from pydantic import Field

from models.onnx_session import providers, session_options
from models.protocols import Face, Image
from models.registry import BackendConfig, MissingWeightsError, Repository, check_weights

PUBLISHED = ("antelopev2", "buffalo_l")
"""Packs that `public-data/insightface` on the model hub has."""
SMALLEST = 16
"""Sides in pixels below which an image is not searched: no detector sees a face in it."""


class InsightFace:
    """Faces with unit embeddings. Where the detector finds none, it looks again at the image inside a wide border.

    Small detectors miss a face that fills the frame, and with the border it does not.
    """

    class Config(BackendConfig):
        """Options of ``backend: insightface``."""

        backend: Literal["insightface"] = "insightface"
        """Name of this backend."""
        pack: str = "tiny"
        """Folder ``insightface/models/{pack}`` under ``models.root``, with a detector and a recogniser in ONNX."""
        min_score: float = Field(0.5, gt=0, le=1)
        """Detector score from which on a face is reported."""
        input_sizes: tuple[tuple[int, int], ...] = Field(((640, 640),), min_length=1)
        """Widths and heights at which the detector looks; one exported with a fixed input looks at that alone."""
        border: float = Field(0.5, ge=0, le=2)
        """Border of the second look on each side, as a share of the image's longest side; 0 means no second look."""

        def weights(self, root: Path) -> list[Path]:
            """The pack's folder."""
            return [root / "insightface" / "models" / self.pack]

        def repositories(self) -> list[Repository]:
            """A mirror of the packs that InsightFace has published; none for another pack."""
            if self.pack not in PUBLISHED:
                return []
            return [Repository("public-data/insightface", (f"models/{self.pack}/*.onnx",), folder="insightface")]

    def __init__(self, config: InsightFace.Config, root: Path) -> None:
        check_weights(config, root)
        (pack,) = config.weights(root)
        from insightface.app import FaceAnalysis

        self._config = config
        self._analysis = FaceAnalysis(
            # A folder that is there: FaceAnalysis downloads what it finds nowhere.
            name=str(_networks(pack)),
            allowed_modules=["detection", "recognition", "landmark_3d_68"],
            providers=providers(),
            sess_options=session_options(),
        )
        self._analysis.prepare(ctx_id=0, det_thresh=config.min_score, det_size=list(config.input_sizes))
        if "recognition" not in self._analysis.models:
            raise ValueError(f"insightface pack {config.pack!r} holds no recogniser of 112x112 faces")

    def faces(self, images: Sequence[Image]) -> list[list[Face]]:
        """Faces per image, best first, boxes inside the image; none in an image of less than 16 pixels a side.

        They have a pose if the pack has a network of 68 landmarks in space, as antelopev2 and buffalo_l do.
        """
        return [self._faces(image) if min(image.shape[:2]) >= SMALLEST else [] for image in images]

    def _faces(self, image: Image) -> list[Face]:
        bgr = np.ascontiguousarray(image[:, :, ::-1])
        found = self._find(bgr)
        border = round(max(image.shape[:2]) * self._config.border)
        if found or not border:
            return [face for raw in found if (face := _face(raw, image.shape, 0)) is not None]
        wide = cv2.copyMakeBorder(bgr, border, border, border, border, cv2.BORDER_CONSTANT)
        return [face for raw in self._find(wide) if (face := _face(raw, image.shape, border)) is not None]

    def _find(self, bgr: Image) -> list[Any]:
        with warnings.catch_warnings():
            # insightface aligns faces with a call that scikit-image announces to rename.
            warnings.simplefilter("ignore", FutureWarning)
            found: list[Any] = self._analysis.get(bgr)
        return found


def _networks(pack: Path) -> Path:
    """The folder of a pack's ONNX files: antelopev2's archive holds another folder of its name."""
    for folder in (pack, pack / pack.name):
        if any(folder.glob("*.onnx")):
            return folder
    raise MissingWeightsError(f"insightface: {pack} holds no .onnx file")


def _face(raw: Any, shape: tuple[int, ...], border: int) -> Face | None:
    """A face in the coordinates of an image that had a border around it; none if it lies outside."""
    height, width = shape[:2]
    x0, y0, x1, y1 = (np.asarray(raw.bbox, np.float64) - border).clip(0, (width, height, width, height)).tolist()
    if x1 - x0 < 1 or y1 - y0 < 1:
        return None
    embedding = np.asarray(raw.embedding, np.float32)
    length = float(np.linalg.norm(embedding))
    if not length > 0:
        return None
    return Face(
        box=(x0, y0, x1, y1),
        score=float(np.clip(raw.det_score, 0.0, 1.0)),
        landmarks=np.asarray(raw.kps, np.float32) - border,
        embedding=embedding / np.float32(length),
        pose=None if raw.pose is None else (float(raw.pose[0]), float(raw.pose[1]), float(raw.pose[2])),
    )
