"""What the stages ask of a network. A backend is any class that fits one of these protocols.

Images are ``uint8`` arrays of shape ``(height, width, 3)`` in RGB, masks are ``bool`` arrays of shape
``(height, width)``, boxes are ``(x0, y0, x1, y1)`` in pixels with exclusive ends. Every method takes a
batch that may mix clips of different sizes, and returns one result per input, in order.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

Image = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]
Vector = npt.NDArray[np.float32]
Box = tuple[float, float, float, float]


@dataclass(frozen=True, slots=True)
class Keyframe:
    """One frame of a clip that the models look at.

    ``neighbour`` is the same scene a moment later (same size), for whoever needs motion.
    """

    time: float
    """Seconds from the start of the video."""
    image: Image
    neighbour: Image
    neighbour_s: float = 1 / 24
    """Seconds from the image to the neighbour, as asked for; frames stand still between their times."""


@dataclass(frozen=True, slots=True)
class Detection:
    """A box around something that ``word`` names.

    ``prior`` is where the detector itself believes the subject to be, if it has an opinion; a segmenter may
    start from it.
    """

    word: str
    box: Box
    score: float
    prior: Mask | None = None
    instance: int | None = None
    """Which subject of the clip this is, where a network has followed it from keyframe to keyframe."""


@dataclass(frozen=True, slots=True)
class Segmentation:
    """A mask and how sure the segmenter is of it, in [0, 1]."""

    mask: Mask
    score: float


@dataclass(frozen=True, slots=True)
class Face:
    """A detected face: ``landmarks`` are five points (eyes, nose, mouth corners) of shape ``(5, 2)``.

    ``embedding`` has unit length; its size depends on the network. ``pose`` is ``(pitch, yaw, roll)`` in degrees, all 0
    for a face that looks into the camera, where the network tells.
    """

    box: Box
    score: float
    landmarks: npt.NDArray[np.float32]
    embedding: Vector
    pose: tuple[float, float, float] | None = None


@dataclass(frozen=True, slots=True)
class TextRegion:
    """A quadrilateral around written text, shape ``(4, 2)`` in pixels."""

    corners: npt.NDArray[np.float32]
    score: float


@dataclass(frozen=True, slots=True)
class ClipCaption:
    """A caption of a clip and the subjects that it names: lower-case nouns in the singular, each once."""

    text: str
    words: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class FillRequest:
    """Paint the pixels where ``mask`` is true anew; every other pixel comes back unchanged."""

    image: Image
    mask: Mask
    prompt: str
    seed: int


@dataclass(frozen=True, slots=True)
class EditRequest:
    """Make another picture of the subject that ``image`` shows alone on white, as ``prompt`` says."""

    image: Image
    prompt: str
    seed: int


class ShotDetector(Protocol):
    """Finds where one shot ends and the next begins."""

    frame_size: tuple[int, int]
    """``(width, height)`` of the frames that the detector wants."""

    def transitions(self, frames: Iterable[Image]) -> Vector:
        """Probability, per frame and in [0, 1], that the frame belongs to a cut, fade or dissolve.

        Consumes the frames as a stream: memory does not grow with their number. Shape ``(frames,)``.
        """
        ...


class TextSpotter(Protocol):
    """Finds written text: subtitles, captions, signs, logos."""

    def spot(self, images: Sequence[Image]) -> list[list[TextRegion]]: ...


class Captioner(Protocol):
    """Writes a caption of a clip from its keyframes."""

    def caption(self, clips: Sequence[Sequence[Keyframe]]) -> list[ClipCaption]: ...


class Detector(Protocol):
    """Finds the subjects that words name."""

    class_free: ClassVar[bool]
    """Whether it finds things without knowing what they are: then its words are only those that it was given."""

    def detect(
        self, clips: Sequence[Sequence[Keyframe]], words: Sequence[Sequence[str]]
    ) -> list[list[list[Detection]]]:
        """Detections per clip and keyframe. ``words`` holds each clip's subject words.

        An empty word list asks for whatever the detector knows, under the names it knows them by.
        """
        ...


@runtime_checkable
class Segmenter(Protocol):
    """Turns boxes into masks."""

    def segment(
        self, clips: Sequence[Sequence[Keyframe]], detections: Sequence[Sequence[Sequence[Detection]]]
    ) -> list[list[list[Segmentation]]]:
        """One segmentation per detection, per keyframe, per clip."""
        ...


@runtime_checkable
class Tracker(Protocol):
    """Turns boxes into masks and follows them through the clip. It is chosen in a :class:`Segmenter`'s place."""

    def track(
        self, clips: Sequence[Sequence[Keyframe]], detections: Sequence[Sequence[Sequence[Detection]]]
    ) -> list[list[list[tuple[Detection, Segmentation]]]]:
        """What there is in each keyframe of each clip, every detection with its ``instance``.

        A subject that the detector missed in a keyframe has a detection there if the tracker still sees it; one
        that the detector found several times is there once.
        """
        ...


class FaceAnalyser(Protocol):
    """Finds faces and says whose they are."""

    def faces(self, images: Sequence[Image]) -> list[list[Face]]: ...


class ImageEmbedder(Protocol):
    """Describes what a subject looks like, so that two pictures of it lie close together."""

    def embed(self, images: Sequence[Image], masks: Sequence[Mask]) -> list[Vector]:
        """Unit vectors of one length; only the pixels inside the mask count."""
        ...


class ImageTextScorer(Protocol):
    """Says how well a picture fits a text."""

    def similarity(self, images: Sequence[Image], texts: Sequence[str]) -> list[float]:
        """Cosine similarity of each picture and its text, in [-1, 1]."""
        ...


class Inpainter(Protocol):
    """Paints a part of a picture anew."""

    def fill(self, requests: Sequence[FillRequest]) -> list[Image]: ...


class AestheticScorer(Protocol):
    """Says how much people like a picture."""

    def aesthetic(self, images: Sequence[Image]) -> list[float]:
        """A score per picture, about 1 to 10."""
        ...


class SafetyScorer(Protocol):
    """Says how sure it is that a picture shows nudity."""

    def nudity(self, images: Sequence[Image]) -> list[float]:
        """A score per picture, in [0, 1]."""
        ...


class Editor(Protocol):
    """Makes another picture of a subject: the same individual in another pose, place or light."""

    def edit(self, requests: Sequence[EditRequest]) -> list[Image]: ...
