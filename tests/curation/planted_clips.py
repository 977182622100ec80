"""Clips made in code of photographs that scikit-image ships, with masks that are known, for `test_planted_pairs`.

The real stages describe, pair, cut out, measure and judge what they show; only finding subjects is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from rich.console import Console

from curation import demo
from curation.config import Config
from curation.engine import SerialExecutor, run_steps
from curation.progress import Progress
from curation.steps import proved_references
from curation.workspace import Workspace
from models.masks import box_of
from models.protocols import (
    Detection,
    EditRequest,
    Face,
    FaceAnalyser,
    Image,
    ImageEmbedder,
    Keyframe,
    Mask,
    Segmentation,
)
from models.registry import BackendConfig
from stages.describe import DescribeConfig, DescribeStage
from stages.records import Clip, Score, Source, Subject, Verdict
from stages.view import ClipView

WIDTH, HEIGHT, FPS, FRAMES = 480, 270, 24, 3
MAGENTA, CYAN = (255, 0, 255), (0, 255, 255)
Cutout = np.ndarray
"""RGBA, colours multiplied by alpha."""
Moments = list[tuple[Image, list[Mask]]]
"""Frames of a clip, each with the masks of its subjects."""


@dataclass(frozen=True)
class Role:
    """A subject in a scene: what of it is seen, how it bends, and which way it goes."""

    cutout: Cutout
    bend: str
    """A name for how it moves: another name is another motion. Without one, the photograph is only moved about."""
    way: demo.Actor


def role(
    cutout: Cutout,
    bend: str = "",
    *,
    start: tuple[float, float] = (0.35, 0.5),
    end: tuple[float, float] = (0.65, 0.5),
    height: float = 0.6,
    turn: float = 0.0,
) -> Role:
    return Role(cutout, bend, demo.Actor("", start, end, height, turn=turn))


def cutout(subject: str) -> Cutout:
    return demo._cutout(subject)


def recoloured(picture: np.ndarray, *, hue: float = 0, saturation: float = 1.0, light: float = 1.0) -> np.ndarray:
    """RGB or RGBA with its hues turned by so many degrees, and saturation and lightness multiplied."""
    hsv = cv2.cvtColor(np.ascontiguousarray(picture[..., :3]).astype(np.float32) / 255, cv2.COLOR_RGB2HSV)
    hsv[..., 0] = (hsv[..., 0] + hue) % 360
    hsv[..., 1] = np.clip(hsv[..., 1] * saturation, 0, 1)
    hsv[..., 2] = np.clip(hsv[..., 2] * light, 0, 1)
    colours = np.rint(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB) * 255).astype(np.uint8)
    if picture.shape[2] == 4:
        colours = np.minimum(colours, picture[..., 3:])
    return np.dstack([colours, picture[..., 3:]])


def film(cast: Sequence[Role], background: str, *, tint: demo.Colour = (1.0, 1.0, 1.0)) -> Moments:
    """What a camera sees that pans over a background, before which the cast goes its ways."""
    shot = demo.Shot(1, background, (), (0.06, 0.03), tint=tint)
    stage = demo._stage(shot, (WIDTH, HEIGHT))
    sprites = [_resized(player) for player in cast]
    poses = [
        demo._poses(sprite, player.bend, moves=True) if player.bend else None
        for sprite, player in zip(sprites, cast, strict=True)
    ]
    moments = []
    for number in range(FRAMES):
        time = number / (FRAMES - 1)
        frame, masks = demo._camera(stage, shot, (WIDTH, HEIGHT), time), []
        for sprite, player, pose in zip(sprites, cast, poses, strict=True):
            posed = sprite if pose is None else demo._bent(sprite, (1 - time) * pose[0] + time * pose[1])
            demo._paint(frame, posed, player.way, time, seconds=1)
            alone = np.zeros_like(frame)
            demo._paint(alone, np.repeat(posed[..., 3:], 4, axis=2), player.way, time, seconds=1)
            mask = alone[..., 0] > 127
            # Whoever comes later stands in front.
            masks = [other & ~mask for other in masks] + [mask]
        moments.append((frame, masks))
    return moments


def changed(moments: Moments, change: Callable[[np.ndarray], np.ndarray]) -> Moments:
    """The same clip with something done to every frame, and to the masks where it moves pixels."""
    return [(change(frame), [_moved(mask, change) for mask in masks]) for frame, masks in moments]


def mirrored(picture: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(picture[:, ::-1])


def cropped(picture: np.ndarray) -> np.ndarray:
    """All but 7 % on each side, enlarged to the size that it had."""
    height, width = picture.shape[:2]
    down, across = round(0.07 * height), round(0.07 * width)
    return cv2.resize(picture[down : height - down, across : width - across], (width, height))


def encoded_again(picture: np.ndarray) -> np.ndarray:
    """JPEG at quality 40."""
    data = cv2.imencode(".jpg", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 40])[1]
    return cv2.cvtColor(cv2.imdecode(data, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)


def lit(picture: np.ndarray) -> np.ndarray:
    """Warmer and brighter."""
    return recoloured(picture, hue=-8, saturation=1.15, light=1.15)


def _moved(mask: Mask, change: Callable[[np.ndarray], np.ndarray]) -> Mask:
    moved = change(np.repeat(mask[..., None].astype(np.uint8) * 255, 3, axis=2))
    return moved[..., 0] > 127


def _resized(player: Role) -> Cutout:
    scale = player.way.height * HEIGHT / player.cutout.shape[0]
    how = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    return cv2.resize(player.cutout, None, fx=scale, fy=scale, interpolation=how)


class MarkedFaces:
    """Finds faces that are marked by a square of magenta or cyan, and knows them by it: whoever wears one mark is one
    person."""

    class Config(BackendConfig):
        backend: str = "marked"

    def __init__(self, config: BackendConfig, root: Path) -> None:
        self.config = config

    def faces(self, images: Sequence[Image]) -> list[list[Face]]:
        return [
            [
                face
                for number, mark in enumerate((MAGENTA, CYAN))
                if (face := self._face(image, np.array(mark), number)) is not None
            ]
            for image in images
        ]

    def _face(self, image: Image, mark: np.ndarray, number: int) -> Face | None:
        where = (np.abs(image.astype(int) - mark) < 60).all(axis=2)
        if np.count_nonzero(where) < 60:
            return None
        x0, y0, x1, y1 = box_of(where)
        # Like real ones, no two pictures of a face come to quite the same.
        embedding = np.array([number == 0, number == 1, 0.2 * x0 / image.shape[1], 0.2], np.float32)
        box = (float(x0), float(y0), float(x1), float(y1))
        return Face(box, 0.95, np.zeros((5, 2), np.float32), embedding / np.linalg.norm(embedding), (0.0, 0.0, 0.0))


class Impostor:
    """An editor that shows somebody else: the wearer of the other mark."""

    class Config(BackendConfig):
        backend: str = "impostor"

    def __init__(self, config: BackendConfig, root: Path) -> None:
        self.config = config

    def edit(self, requests: Sequence[EditRequest]) -> list[Image]:
        return [self._edited(request.image) for request in requests]

    def _edited(self, image: Image) -> Image:
        turned = mirrored(image)
        for mark, other in ((MAGENTA, CYAN), (CYAN, MAGENTA)):
            where = (np.abs(turned.astype(int) - np.array(mark)) < 60).all(axis=2)
            if where.any():
                turned[where] = other
                break
        return turned


class Faithful(Impostor):
    """An editor that shows the same in another pose."""

    def _edited(self, image: Image) -> Image:
        height, width = image.shape[:2]
        down, across = np.mgrid[0:height, 0:width].astype(np.float32)
        swing = 0.12 * width * np.sin(2.5 * np.pi * down / height)
        return cv2.remap(image, across + swing.astype(np.float32), down, cv2.INTER_LINEAR, borderValue=(255, 255, 255))


class Mirroring(Impostor):
    """An editor that shows the same the other way round."""

    def _edited(self, image: Image) -> Image:
        return mirrored(image)


class Lazy(Impostor):
    """An editor that gives back what it was given."""

    def _edited(self, image: Image) -> Image:
        return image


def marked(person: Cutout, mark: tuple[int, int, int]) -> Cutout:
    """The astronaut with a mark on her face."""
    picture = person.copy()
    height, width = picture.shape[:2]
    top, left, side = round(0.18 * height), round(0.4 * width), round(0.12 * width)
    picture[top : top + side, left : left + side] = (*mark, 255)
    return picture


@dataclass
class Planted:
    """Clips with known subjects, on their way through the real steps."""

    embedder: ImageEmbedder
    faces: FaceAnalyser | None = None
    views: list[ClipView] = field(default_factory=list)
    words: dict[str, list[str]] = field(default_factory=dict)
    masks: dict[str, list[list[Mask]]] = field(default_factory=dict)

    def add(self, clip: str, words: Sequence[str], moments: Moments, *, video: str = "") -> None:
        """A clip of this name, of a video of its own where none is named; ``words`` name its subjects."""
        keyframes = [Keyframe(float(number), frame, frame) for number, (frame, _) in enumerate(moments)]
        self.views.append(ClipView(_clip(clip, video or clip), _source(video or clip), keyframes))
        self.words[clip] = list(words)
        self.masks[clip] = [masks for _, masks in moments]

    def run(self, folder: Path, config: Config) -> Judged:
        """Subjects described, then chosen, paired, cut out, measured and judged."""
        workspace = Workspace.open(folder, create=True)
        stage = DescribeStage(DescribeConfig(), self.embedder, self.faces, None)
        detections = [
            [[_detection(word, mask) for word, mask in zip(self.words[name], masks, strict=True)] for masks in frames]
            for name, frames in self.masks.items()
        ]
        segmentations = [
            [[Segmentation(mask, 0.95) for mask in masks] for masks in frames] for frames in self.masks.values()
        ]
        subjects = stage.run(self.views, detections, segmentations, ["planted"] * len(self.views))
        for number, (view, found) in enumerate(zip(self.views, subjects, strict=True)):
            workspace.append([_score(view.clip.clip_id, number)])
            workspace.append([view.clip])
            workspace.append(found)
        workspace.append(list({view.source.source_id: view.source for view in self.views}.values()))
        progress = Progress(Console(quiet=True))
        run_steps(("select", "references", "verify"), config, workspace, SerialExecutor(), progress)
        return Judged(workspace)


@dataclass(frozen=True)
class Judged:
    """What became of planted clips."""

    workspace: Workspace

    def names(self) -> dict[str, str]:
        """`clip word` by subject, with a number where a clip has the word twice."""
        rows = self.workspace.rows(Subject, ["subject_id", "clip_id", "word", "instance"])
        return {
            row["subject_id"]: f"{row['clip_id']} {row['word']}" + (f" {row['instance']}" if row["instance"] else "")
            for row in rows
        }

    def rows(self, kind: str = "cross_clip") -> dict[tuple[str, str], dict[str, Any]]:
        """By names of target and source: the references of a kind, with their proofs and the reasons against them."""
        names = self.names()
        reasons = {verdict.id: verdict.reasons for verdict in self.workspace.records(Verdict)}
        return {
            (names[row["subject_id"]], names[row["source_subject_id"]]): row | {"reasons": reasons[row["reference_id"]]}
            for row in proved_references(self.workspace)
            if row["kind"] == kind
        }

    def reasons(self, kind: str = "cross_clip") -> dict[tuple[str, str], list[str]]:
        """The same, reasons only."""
        return {pair: row["reasons"] for pair, row in self.rows(kind).items()}


def _detection(word: str, mask: Mask) -> Detection:
    x0, y0, x1, y1 = box_of(mask)
    return Detection(word, (float(x0), float(y0), float(x1), float(y1)), 0.9)


def _clip(name: str, video: str) -> Clip:
    return Clip(name, video, f"{video} 0", 0, FRAMES, 0.0, float(FRAMES), 0, None, "planted")


def _source(video: str) -> Source:
    return Source(
        source_id=video,
        uri=f"{video}.mp4",
        video_id=video,
        bytes=1,
        container="mp4",
        codec="h264",
        width=WIDTH,
        height=HEIGHT,
        rotation=0,
        fps=FPS,
        frames=FRAMES,
        frames_announced=FRAMES,
        duration_s=float(FRAMES),
        audio_streams=0,
        caption=None,
        caption_source=None,
        licence=None,
        origin=None,
        fingerprint="planted",
    )


def _score(clip: str, number: int) -> Score:
    """Of a clip that passes, and repeats no other: whole clips are told apart elsewhere."""
    phashes = np.random.default_rng(number).integers(-(2**63), 2**63, FRAMES, np.int64).tolist()
    return Score(clip, 5.0, 120.0, 400.0, 0.0, 0.0, 0.1, None, None, phashes, "planted")
