"""Whether a picture shows nudity, by the detector of NudeNet (github.com/notAI-tech/NudeNet), a YOLOv8.

The network is under the AGPL, as is its package; nothing here depends on the package's code.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Literal, get_args

import cv2
import numpy as np
from pydantic import Field

from models.onnx_session import open_session
from models.pretrained import UnusableWeightsError
from models.protocols import Image, Vector
from models.registry import BackendConfig, check_weights

Part = Literal[
    "FEMALE_GENITALIA_COVERED",
    "FACE_FEMALE",
    "BUTTOCKS_EXPOSED",
    "FEMALE_BREAST_EXPOSED",
    "FEMALE_GENITALIA_EXPOSED",
    "MALE_BREAST_EXPOSED",
    "ANUS_EXPOSED",
    "FEET_EXPOSED",
    "BELLY_COVERED",
    "FEET_COVERED",
    "ARMPITS_COVERED",
    "ARMPITS_EXPOSED",
    "FACE_MALE",
    "BELLY_EXPOSED",
    "MALE_GENITALIA_EXPOSED",
    "ANUS_COVERED",
    "FEMALE_BREAST_COVERED",
    "BUTTOCKS_COVERED",
]
"""What the network tells apart, in the order of its outputs."""
PARTS: tuple[Part, ...] = get_args(Part)
LEAST_SCORE = 0.25
MOST_OVERLAP = 0.45
"""NudeNet's own thresholds: below the one a box is nothing, above the other it is part of a surer one."""


class NudeNet:
    """Scores a picture by the surest box of a body part that counts as nudity."""

    class Config(BackendConfig):
        """Options of ``backend: nudenet``."""

        backend: Literal["nudenet"] = "nudenet"
        """Name of this backend."""
        network: str | None = None
        """ONNX file under `models.root`, such as NudeNet's larger 640m.onnx. Null is the 320n.onnx of the package
        `nudenet` where that is installed (`pip install 's2v-engine[safety]'`), else `nudenet/320n.onnx`."""
        side: int = Field(320, ge=32, multiple_of=32)
        """Pixels of a side of the square that pictures are scaled to: 320 for 320n, 640 for 640m."""
        counts: tuple[Part, ...] = (
            "BUTTOCKS_EXPOSED",
            "FEMALE_BREAST_EXPOSED",
            "FEMALE_GENITALIA_EXPOSED",
            "ANUS_EXPOSED",
            "MALE_GENITALIA_EXPOSED",
        )
        """Which of the network's classes count as nudity."""

        @property
        def packages(self) -> tuple[str, ...]:  # type: ignore[override]
            """The package, if it is its network that is read."""
            return ("nudenet",) if self.network is None and _packaged() is not None else ()

        def file(self, root: Path) -> Path:
            """Where the network lies."""
            if self.network is not None:
                return root / self.network
            return _packaged() or root / "nudenet" / "320n.onnx"

        def weights(self, root: Path) -> list[Path]:
            """The network, unless it is the package's."""
            return [] if self.packages else [self.file(root)]

    def __init__(self, config: NudeNet.Config, root: Path) -> None:
        """Load the network.

        Raises:
            UnusableWeightsError: if the network does not have NudeNet's classes.
        """
        check_weights(config, root)
        file = config.file(root)
        self._side = config.side
        self._counts = config.counts
        self._session = open_session(file)
        self._input = self._session.get_inputs()[0].name
        rows = self._session.get_outputs()[0].shape[1]
        if rows != 4 + len(PARTS):
            raise UnusableWeightsError(f"nudenet: {file} puts out {rows} rows, and NudeNet {4 + len(PARTS)}")

    def nudity(self, images: Sequence[Image]) -> list[float]:
        """The score of each picture's surest box of a class that counts: in (0.25, 1], or 0 if there is none."""
        return [self._nudity(image) if image.size else 0.0 for image in images]

    def _nudity(self, image: Image) -> float:
        output = self._session.run(None, {self._input: _blob(image, self._side)})[0][0]
        height, width = image.shape[:2]
        scale = self._side / max(height, width)
        found = body_parts(output, (width * scale, height * scale))
        return max((score for part, score in found if part in self._counts), default=0.0)


def body_parts(output: Vector, size: tuple[float, float]) -> list[tuple[Part, float]]:
    """What the network found, each once, with scores above 0.25; the surest first.

    Every candidate is of its best class alone, and of candidates that overlap, whatever their classes, the surest
    stays: a covered breast that is surer than an exposed one in its place is no nudity.

    Args:
        output: shape ``(22, candidates)``: x and y of the box's centre, its width and height in pixels of the
            network's input, and the scores of the 18 classes in [0, 1].
        size: width and height of the picture in the network's input, without what it is padded with.
    """
    scores = output[4:].max(axis=0)
    sure = np.flatnonzero(scores > LEAST_SCORE)
    if not sure.size:
        return []
    x, y, width, height = output[:4, sure].astype(np.float64)
    left, top = np.clip(x - width / 2, 0, size[0]), np.clip(y - height / 2, 0, size[1])
    width, height = np.minimum(width, size[0] - left), np.minimum(height, size[1] - top)
    boxes = np.stack([left, top, width, height], axis=1)
    kept = cv2.dnn.NMSBoxes(boxes.tolist(), scores[sure].tolist(), LEAST_SCORE, MOST_OVERLAP)
    best = output[4:].argmax(axis=0)
    return [(PARTS[best[sure[place]]], float(min(scores[sure[place]], 1.0))) for place in np.ravel(kept)]


def _blob(image: Image, side: int) -> Vector:
    """Network input of shape ``(1, 3, side, side)``: RGB in [0, 1], black to the right or below.

    The package itself swaps red and blue of files that it reads (its issue 203); the network was trained on RGB.
    """
    height, width = image.shape[:2]
    longest = max(height, width)
    square = cv2.copyMakeBorder(image, 0, longest - height, 0, longest - width, cv2.BORDER_CONSTANT)
    blob: Vector = cv2.dnn.blobFromImage(square, 1 / 255, (side, side))
    return blob


def _packaged() -> Path | None:
    """The network of the installed package, whose module is not imported: it loads ONNX Runtime at once."""
    try:
        return Path(str(distribution("nudenet").locate_file("nudenet/320n.onnx")))
    except PackageNotFoundError:
        return None
