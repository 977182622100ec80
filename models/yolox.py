"""Subjects by YOLOX (Ge et al., arXiv:2107.08430), which knows the 80 classes of COCO, in an ONNX file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
from pydantic import Field

from models.onnx_session import open_session
from models.protocols import Detection, Image, Keyframe, Vector
from models.registry import BackendConfig
from models.vocabulary import VOCABULARY

COCO = (
    "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat", "traffic light",
    "fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog", "horse", "sheep", "cow", "elephant",
    "bear", "zebra", "giraffe", "backpack", "umbrella", "handbag", "tie", "suitcase", "frisbee", "skis", "snowboard",
    "sports ball", "kite", "baseball bat", "baseball glove", "skateboard", "surfboard", "tennis racket", "bottle",
    "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple", "sandwich", "orange", "broccoli",
    "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch", "potted plant", "bed", "dining table", "toilet",
    "tv", "laptop", "mouse", "remote", "keyboard", "cell phone", "microwave", "oven", "toaster", "sink",
    "refrigerator", "book", "clock", "vase", "scissors", "teddy bear", "hair drier", "toothbrush",
)  # fmt: skip
"""COCO's class names in the order of the network's outputs."""

OPEN_CATEGORIES = ("animal", "vehicle")
"""Categories whose COCO classes stand in for a word that COCO does not know: an echidna is found as a bear."""

STRIDES = (8, 16, 32)
PADDING = 114


class Yolox:
    """Boxes of the subjects that a clip's words name.

    A box has one class, and a class belongs to one of the clip's words: to the word that is the class; else to one
    that is a kind of it (puppy for dog); else, for an animal or a vehicle, to a word of that category that COCO does
    not know. Between equals the first word wins, since the network cannot tell a man from a woman.
    """

    class_free = False

    class Config(BackendConfig):
        """Options of ``backend: yolox``."""

        backend: Literal["yolox"] = "yolox"
        """Name of this backend."""
        file: str = "yolox/yolox_nano.onnx"
        """Network under ``models.root``: any YOLOX exported with raw grid outputs, of a fixed square input."""
        min_score: float = Field(0.3, ge=0, le=1)
        """Objectness times class probability from which on a box is reported."""
        nms_iou: float = Field(0.45, ge=0, le=1)
        """Of two boxes of the same word that overlap more than this the weaker one is dropped."""

        def weights(self, root: Path) -> list[Path]:
            """The network."""
            return [root / self.file]

    def __init__(self, config: Yolox.Config, root: Path) -> None:
        self._config = config
        self._session = open_session(root / config.file)
        source = self._session.get_inputs()[0]
        self._input = source.name
        self._side = int(source.shape[-1])
        self._cells, self._strides = _grid(self._side)

    def detect(
        self, clips: Sequence[Sequence[Keyframe]], words: Sequence[Sequence[str]]
    ) -> list[list[list[Detection]]]:
        """Detections per clip and keyframe, best first, boxes inside the image, scores in [0, 1].

        ``words`` are canonical names of the vocabulary; one that COCO cannot express finds nothing. An empty list
        asks for every COCO class that is in the vocabulary.

        Raises:
            ValueError: if there are not as many word lists as clips.
        """
        found = []
        for keyframes, asked in zip(clips, words, strict=True):
            owners = word_of_class(asked)
            found.append([self._detect(keyframe.image, owners) for keyframe in keyframes])
        return found

    def _detect(self, image: Image, owners: dict[int, str]) -> list[Detection]:
        if not image.size or not owners:
            return []
        blob, scale = self._blob(image)
        raw: Vector = self._session.run(None, {self._input: blob})[0][0]
        classes = raw[:, 5:].argmax(axis=1)
        scores = np.clip(raw[:, 4] * raw[np.arange(len(raw)), 5 + classes], 0.0, 1.0)
        wanted = np.flatnonzero((scores >= self._config.min_score) & np.isin(classes, list(owners)))
        centres = (raw[wanted, :2] + self._cells[wanted]) * self._strides[wanted]
        halves = np.exp(raw[wanted, 2:4]) * self._strides[wanted] / 2
        height, width = image.shape[:2]
        corners = np.concatenate([centres - halves, centres + halves], axis=1) / scale
        boxes: Vector = corners.clip(0.0, (width, height, width, height)).astype(np.float32)
        kept = _suppress(boxes, scores[wanted], [owners[c] for c in classes[wanted]], self._config.nms_iou)
        return [
            Detection(owners[int(classes[wanted[k]])], tuple(boxes[k].tolist()), float(scores[wanted[k]]))
            for k in kept
            if (boxes[k, 2:] - boxes[k, :2]).min() >= 1.0
        ]

    def _blob(self, image: Image) -> tuple[Vector, float]:
        """Network input of shape ``(1, 3, side, side)`` and its scale: BGR in 0-255, grey below and to the right."""
        height, width = image.shape[:2]
        scale = self._side / max(height, width)
        size = max(1, int(width * scale)), max(1, int(height * scale))
        canvas = np.full((self._side, self._side, 3), PADDING, np.uint8)
        # Averaging keeps what a 4K frame holds; linear interpolation would skip most of its pixels.
        canvas[: size[1], : size[0]] = cv2.resize(
            image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
        )[:, :, ::-1]
        blob: Vector = np.ascontiguousarray(canvas.transpose(2, 0, 1)[None], np.float32)
        return blob, scale


def word_of_class(words: Sequence[str]) -> dict[int, str]:
    """The word that each COCO class goes to, by the class's index in :data:`COCO`; none where nothing asks for it.

    An empty list of words gives every class that has a word in the vocabulary.
    """
    if not words:
        return {index: word for index, name in enumerate(COCO) if (word := _vocabulary_name(name)) is not None}
    known = [(word, name) for word in words if (name := _class_of(word)) is not None]
    exact = [(word, [name]) for word, name in known if _vocabulary_name(name) == word]
    kinds = [(word, [name]) for word, name in known]
    strangers = [(word, _classes_like(word)) for word in words if _class_of(word) is None]
    owners: dict[int, str] = {}
    for word, names in [*exact, *kinds, *strangers]:
        for name in names:
            owners.setdefault(COCO.index(name), word)
    return owners


def _class_of(word: str) -> str | None:
    """The COCO class that a word names or is a kind of.

    The vocabulary goes before the spelling: its mouse is an animal, COCO's belongs to a computer.
    """
    if word in VOCABULARY:
        return VOCABULARY[word].coco
    return word if word in COCO else None


def _classes_like(word: str) -> list[str]:
    """The COCO classes of the word's category, if that category is an open one."""
    known = VOCABULARY.get(word)
    if known is None or known.category not in OPEN_CATEGORIES:
        return []
    return [name for name in COCO if (own := _vocabulary_name(name)) and VOCABULARY[own].category == known.category]


def _vocabulary_name(name: str) -> str | None:
    """What the vocabulary calls a COCO class: the same, or else the first word that is a kind of it."""
    kinds = [word.name for word in VOCABULARY.values() if word.coco == name]
    return name if name in kinds else next(iter(kinds), None)


def _grid(side: int) -> tuple[Vector, Vector]:
    """Top left corner in cells and cell size in pixels of every output of the network: ``(n, 2)`` and ``(n, 1)``."""
    corners, sizes = [], []
    for stride in STRIDES:
        cells = side // stride
        y, x = np.mgrid[:cells, :cells]
        corners.append(np.stack([x, y], axis=-1).reshape(-1, 2))
        sizes.append(np.full((cells * cells, 1), stride))
    return np.concatenate(corners).astype(np.float32), np.concatenate(sizes).astype(np.float32)


def _suppress(boxes: Vector, scores: Vector, words: Sequence[str], iou: float) -> list[int]:
    """Non-maximum suppression among the boxes of each word: indices that stay, best first."""
    names = {word: index for index, word in enumerate(dict.fromkeys(words))}
    sizes = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)
    kept = cv2.dnn.NMSBoxesBatched(sizes.tolist(), scores.tolist(), [names[word] for word in words], 0.0, iou)
    return sorted(map(int, kept), key=lambda index: -float(scores[index]))
