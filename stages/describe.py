"""Makes subjects of detections and masks: measures, tracks and describes them, and keeps a few frames of each."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import cast

import cv2
import numpy as np
import numpy.typing as npt
from pydantic import Field

from models.masks import box_of, mask_iou
from models.protocols import (
    Detection,
    Face,
    FaceAnalyser,
    Image,
    ImageEmbedder,
    ImageTextScorer,
    Mask,
    Segmentation,
    Vector,
)
from models.vocabulary import category_of
from stages.config import Section
from stages.difference import shape_bits, surroundings
from stages.measure import (
    area,
    border_contact,
    brightness,
    centred,
    encode_rle,
    fragments,
    perceptual_hash,
    straightness,
    subject_sharpness,
)
from stages.picture import encode_png, resized_mask
from stages.records import Subject, SubjectFrame
from stages.track import Candidate, Track, link, suppress
from stages.view import ClipView

CLASS_FREE = "subject"
"""The word of detectors that find things without naming them."""


class DescribeConfig(Section):
    """Which subjects and frames are kept, and how their crops are cut."""

    keep_frames: int = Field(4, ge=1)
    """Frames kept of each subject: the best one, then those that differ most."""
    max_subjects: int = Field(6, ge=1)
    """Subjects kept of each clip: those that cover most of it."""
    min_detection_score: float = Field(0.0, ge=0, le=1)
    """Detections below are not looked at: saves the work on what would never pass."""
    margin: float = Field(0.35, ge=0)
    """Border around the subject's box in a crop, as a share of the box's side."""
    crop_max_side: int = Field(1024, ge=64)
    """Larger crops are scaled down to this many pixels."""
    min_face_coverage: float = Field(0.3, ge=0, le=1)
    """A face belongs to the person whose mask covers most of its box, if at least this share of it."""


@dataclass(frozen=True, slots=True)
class _Sighting:
    """A member of a track, measured."""

    keyframe: int
    time: float
    image: Image
    candidate: Candidate
    face: Face | None
    area: float
    overlap: float
    border: float
    sharpness: float
    shape: Mask
    """Its mask, `stages.measure.centred`."""

    @property
    def mask(self) -> Mask:
        return self.candidate.mask


@dataclass(frozen=True, slots=True)
class _Kept:
    """A track and the frames kept of it, by time; ``best`` is an index into ``frames``."""

    view: ClipView
    word: str
    instance: int
    sightings: list[_Sighting]
    frames: list[_Sighting]
    best: int
    fingerprint: str


class DescribeStage:
    """Detections and masks in, subjects out. Without ``faces`` or ``image_text`` their columns stay empty."""

    def __init__(
        self,
        config: DescribeConfig,
        embedder: ImageEmbedder,
        faces: FaceAnalyser | None,
        image_text: ImageTextScorer | None,
    ) -> None:
        self._config = config
        self._embedder = embedder
        self._faces = faces
        self._image_text = image_text

    def run(
        self,
        views: Sequence[ClipView],
        detections: Sequence[Sequence[Sequence[Detection]]],
        segmentations: Sequence[Sequence[Sequence[Segmentation]]],
        fingerprints: Sequence[str],
    ) -> list[list[Subject]]:
        """Subjects of each clip, those that cover most of it first.

        ``detections`` and ``segmentations`` are per view, keyframe and detection; ``fingerprints`` per view. Each
        model is asked once, with the pictures of all the views.

        Raises:
            ValueError: if a mask has not its keyframe's size.
        """
        candidates = self._candidates(views, detections, segmentations)
        faces = self._assign_faces(views, candidates)
        kept = [
            self._keep(view, clip, owned, fingerprint)
            for view, clip, owned, fingerprint in zip(views, candidates, faces, fingerprints, strict=True)
        ]
        scores = iter(self._similarities([subject for clip in kept for subject in clip]))
        return [[_subject(subject, next(scores), self._config) for subject in clip] for clip in kept]

    def _candidates(
        self,
        views: Sequence[ClipView],
        detections: Sequence[Sequence[Sequence[Detection]]],
        segmentations: Sequence[Sequence[Sequence[Segmentation]]],
    ) -> list[list[list[Candidate]]]:
        """Candidates per view and keyframe: what is found, once, with its appearance."""
        pairs = [
            [
                self._distinct(keyframe.image, found, masks)
                for keyframe, found, masks in zip(view.keyframes, frames, frame_masks, strict=True)
            ]
            for view, frames, frame_masks in zip(views, detections, segmentations, strict=True)
        ]
        crops, masks = [], []
        for view, frames in zip(views, pairs, strict=True):
            for keyframe, frame in zip(view.keyframes, frames, strict=True):
                for _, segmentation in frame:
                    x0, y0, x1, y1 = box_of(segmentation.mask)
                    crops.append(keyframe.image[y0:y1, x0:x1])
                    masks.append(segmentation.mask[y0:y1, x0:x1])
        vectors = iter(self._embedder.embed(crops, masks) if crops else [])
        return [[[Candidate(*pair, next(vectors)) for pair in frame] for frame in frames] for frames in pairs]

    def _distinct(
        self, image: Image, detections: Sequence[Detection], segmentations: Sequence[Segmentation]
    ) -> list[tuple[Detection, Segmentation]]:
        for segmentation in segmentations:
            if segmentation.mask.shape != image.shape[:2]:
                raise ValueError(f"a mask of {segmentation.mask.shape} for a frame of {image.shape[:2]}")
        pairs = [
            pair
            for pair in zip(detections, segmentations, strict=True)
            if pair[0].score >= self._config.min_detection_score
        ]
        kept = suppress([detection for detection, _ in pairs], [segmentation for _, segmentation in pairs])
        return [pairs[index] for index in kept]

    def _assign_faces(
        self, views: Sequence[ClipView], candidates: Sequence[Sequence[Sequence[Candidate]]]
    ) -> list[list[dict[int, Face]]]:
        """Per view and keyframe: the largest face of each candidate that is a person and has one."""
        owned: list[list[dict[int, Face]]] = [[{} for _ in view.keyframes] for view in views]
        if self._faces is None:
            return owned
        peopled = [
            (view, keyframe)
            for view, frames in enumerate(candidates)
            for keyframe, frame in enumerate(frames)
            if any(category_of(candidate.detection.word) == "person" for candidate in frame)
        ]
        if not peopled:
            return owned
        found = self._faces.faces([views[view].keyframes[keyframe].image for view, keyframe in peopled])
        for (view, keyframe), faces in zip(peopled, found, strict=True):
            owned[view][keyframe] = _owners(candidates[view][keyframe], faces, self._config.min_face_coverage)
        return owned

    def _keep(
        self,
        view: ClipView,
        candidates: Sequence[Sequence[Candidate]],
        faces: Sequence[dict[int, Face]],
        fingerprint: str,
    ) -> list[_Kept]:
        areas = [[area(candidate.mask) for candidate in frame] for frame in candidates]
        tracks = sorted(link(candidates), key=lambda track: _coverage(track, areas), reverse=True)
        kept = []
        for track in tracks[: self._config.max_subjects]:
            sightings = [_sight(view, candidates, faces, keyframe, index) for keyframe, index in track.members]
            instance = _instance(track, tracks[: self._config.max_subjects], areas)
            frames, best = _choose(sightings, self._config.keep_frames)
            kept.append(_Kept(view, track.word, instance, sightings, frames, best, fingerprint))
        return kept

    def _similarities(self, kept: Sequence[_Kept]) -> list[list[float | None]]:
        """Per subject and kept frame, the similarity of crop and word; nothing where no word was asked for."""
        named = [subject for subject in kept if self._image_text is not None and subject.word != CLASS_FREE]
        crops, words = [], []
        for subject in named:
            for frame in subject.frames:
                x0, y0, x1, y1 = box_of(frame.mask)
                crops.append(frame.image[y0:y1, x0:x1])
                words.append(subject.word)
        scores: Iterator[float] = iter(self._image_text.similarity(crops, words) if self._image_text and crops else [])
        return [
            [float(next(scores)) if self._image_text and subject.word != CLASS_FREE else None for _ in subject.frames]
            for subject in kept
        ]


def subject_id(clip_id: str, word: str, instance: int) -> str:
    """16 hexadecimal digits that name the instance of a word in a clip."""
    return hashlib.sha256(f"{clip_id}\n{word}\n{instance}".encode()).hexdigest()[:16]


def _owners(candidates: Sequence[Candidate], faces: Sequence[Face], min_coverage: float) -> dict[int, Face]:
    owners: dict[int, Face] = {}
    people = [index for index, candidate in enumerate(candidates) if category_of(candidate.detection.word) == "person"]
    # Largest last, so that it replaces smaller ones of the same person.
    for face in sorted(faces, key=lambda face: (_face_area(face), face.score)):
        shares = {index: _coverage_of_face(candidates[index].mask, face) for index in people}
        owner = max(shares, key=lambda index: shares[index], default=None)
        if owner is not None and shares[owner] >= min_coverage:
            owners[owner] = face
    return owners


def _face_area(face: Face) -> float:
    x0, y0, x1, y1 = face.box
    return max(0.0, x1 - x0) * max(0.0, y1 - y0)


def _coverage_of_face(mask: Mask, face: Face) -> float:
    """Share of the face's box, as far as it lies in the frame, inside the mask."""
    x0, y0 = (max(0, round(value)) for value in face.box[:2])
    inside = mask[y0 : max(y0, round(face.box[3])), x0 : max(x0, round(face.box[2]))]
    return float(inside.mean()) if inside.size else 0.0


def _coverage(track: Track, areas: Sequence[Sequence[float]]) -> float:
    """Area of the track over all its keyframes: brief or small things come last."""
    return sum(areas[keyframe][index] for keyframe, index in track.members)


def _mean_area(track: Track, areas: Sequence[Sequence[float]]) -> float:
    return _coverage(track, areas) / len(track.members)


def _instance(track: Track, tracks: Sequence[Track], areas: Sequence[Sequence[float]]) -> int:
    """0 for the track of its word with the largest mean area, and so on."""
    rivals = sorted(
        (other for other in tracks if other.word == track.word),
        key=lambda other: _mean_area(other, areas),
        reverse=True,
    )
    return next(place for place, other in enumerate(rivals) if other is track)


def _sight(
    view: ClipView,
    candidates: Sequence[Sequence[Candidate]],
    faces: Sequence[dict[int, Face]],
    keyframe: int,
    index: int,
) -> _Sighting:
    candidate = candidates[keyframe][index]
    image = view.keyframes[keyframe].image
    others = (other.mask for place, other in enumerate(candidates[keyframe]) if place != index)
    return _Sighting(
        keyframe=keyframe,
        time=view.keyframes[keyframe].time,
        image=image,
        candidate=candidate,
        face=faces[keyframe].get(index),
        area=area(candidate.mask),
        overlap=max((mask_iou(candidate.mask, other) for other in others), default=0.0),
        border=border_contact(candidate.mask),
        sharpness=subject_sharpness(image, candidate.mask),
        shape=centred(candidate.mask),
    )


def _choose(sightings: Sequence[_Sighting], count: int) -> tuple[list[_Sighting], int]:
    """The kept frames by time and the best one's place among them.

    The best comes first, then again and again the one that differs most from all those kept, good ones preferred.
    """
    qualities = _qualities(sightings)
    chosen = [int(np.argmax(qualities))]
    while len(chosen) < min(count, len(sightings)):
        rest = [index for index in range(len(sightings)) if index not in chosen]
        gains = [
            qualities[index] * min(_difference(sightings[index], sightings[other]) for other in chosen)
            for index in rest
        ]
        chosen.append(rest[int(np.argmax(gains))])
    best = chosen[0]
    chosen.sort()
    return [sightings[index] for index in chosen], chosen.index(best)


def _qualities(sightings: Sequence[_Sighting]) -> npt.NDArray[np.float64]:
    """How well each sighting shows the subject, compared with the others; [0, 1]. Mean of sharpness, completeness,
    typical size, largeness, and the face where any frame shows one."""
    sharp = np.array([sighting.sharpness for sighting in sightings])
    areas = np.array([sighting.area for sighting in sightings])
    complete = 1 - np.array([sighting.border for sighting in sightings])
    # A mask of half or twice the usual size lost a part of the subject or took in something else.
    typical = np.minimum(areas / np.median(areas), np.median(areas) / areas)
    # Logarithmic: past a point, more detail is noise.
    terms = [np.log1p(sharp) / max(np.log1p(sharp.max()), 1e-9), complete, typical, np.sqrt(areas / areas.max())]
    faces = np.array(
        [0.0 if sighting.face is None else sighting.face.score * _frontality(sighting.face) for sighting in sightings]
    )
    if faces.any():
        # As much as sharpness and completeness together: a back of a head is no reference of a person.
        terms += [faces, faces]
    return cast(npt.NDArray[np.float64], np.mean(terms, axis=0))


def _frontality(face: Face) -> float:
    """1 where the nose lies midway between the eyes, 0 in profile."""
    left, right, nose = face.landmarks[:3].astype(np.float64)
    eyes = right - left
    length = float(eyes @ eyes)
    if length <= 0:
        return 0.0
    along = float((nose - left) @ eyes) / length
    return max(0.0, 1 - abs(2 * along - 1))


def _difference(a: _Sighting, b: _Sighting) -> float:
    """How much a second frame adds to a first one: another look, another pose, another moment."""
    look = min(1.0, 1 - float(a.candidate.appearance @ b.candidate.appearance))
    pose = 1 - mask_iou(a.shape, b.shape)
    # Saturates: two seconds are as good as ten.
    moment = min(1.0, abs(a.time - b.time) / 2)
    return look + pose + 0.25 * moment


def _subject(kept: _Kept, similarities: Sequence[float | None], config: DescribeConfig) -> Subject:
    crops = [_crop(sighting, config) for sighting in kept.frames]
    frames = [_frame(*parts) for parts in zip(kept.frames, crops, similarities, strict=True)]
    pngs = [encode_png(crop) for crop, _ in crops]
    best = frames[kept.best]
    height, width = kept.frames[kept.best].image.shape[:2]
    with_face = [np.asarray(frame.face_embedding, np.float32) for frame in frames if frame.face_embedding is not None]
    return Subject(
        subject_id=subject_id(kept.view.clip.clip_id, kept.word, kept.instance),
        clip_id=kept.view.clip.clip_id,
        word=kept.word,
        category=category_of(kept.word),
        instance=kept.instance,
        frame_width=width,
        frame_height=height,
        best=kept.best,
        frames=frames,
        crops=pngs,
        seen=len(kept.sightings),
        detection_score=best.detection_score,
        mask_score=best.mask_score,
        area=best.area,
        overlap=best.overlap,
        border=best.border,
        fragments=best.fragments,
        straightness=best.straightness,
        stability=_stability(kept.sightings),
        brightness=best.brightness,
        sharpness=best.sharpness,
        face=best.face,
        short_side=min(best.box[2] - best.box[0], best.box[3] - best.box[1]),
        image_text=best.image_text,
        face_embedding=_unit_mean(with_face) if with_face else None,
        # Roll tilts a face, which still looks at the camera.
        face_turn=max(map(abs, best.face_pose[:2])) if best.face_pose else None,
        image_embedding=_unit_mean([np.asarray(frame.image_embedding, np.float32) for frame in frames]),
        time=best.time,
        box=best.box,
        crop_box=best.crop_box,
        phash=best.phash,
        shape=best.shape,
        surroundings=best.surroundings,
        content=_content(kept.word, frames, pngs),
        fingerprint=kept.fingerprint,
    )


def _content(word: str, frames: Sequence[SubjectFrame], pngs: Sequence[bytes]) -> str:
    digest = hashlib.sha256(word.encode())
    for frame, png in zip(frames, pngs, strict=True):
        digest.update(f"\n{frame.time}:{frame.crop_box}:{frame.mask}:".encode())
        digest.update(hashlib.sha256(png).digest())
    return digest.hexdigest()[:16]


def _crop(sighting: _Sighting, config: DescribeConfig) -> tuple[Image, tuple[int, int, int, int]]:
    """The subject's box with a margin, and where that lies in the frame."""
    height, width = sighting.image.shape[:2]
    crop_box = _with_margin(box_of(sighting.mask), config.margin, width, height)
    x0, y0, x1, y1 = crop_box
    return _at_most(sighting.image[y0:y1, x0:x1], config.crop_max_side), crop_box


def _frame(
    sighting: _Sighting, cropped: tuple[Image, tuple[int, int, int, int]], similarity: float | None
) -> SubjectFrame:
    crop, crop_box = cropped
    x0, y0, x1, y1 = crop_box
    box = box_of(sighting.mask)
    face = sighting.face
    return SubjectFrame(
        time=sighting.time,
        box=[float(value) for value in box],
        mask=encode_rle(sighting.mask),
        crop_box=list(crop_box),
        detection_score=float(sighting.candidate.detection.score),
        mask_score=float(sighting.candidate.segmentation.score),
        area=sighting.area,
        overlap=sighting.overlap,
        border=sighting.border,
        fragments=fragments(sighting.mask),
        straightness=straightness(sighting.mask),
        brightness=brightness(sighting.image, sighting.mask),
        sharpness=sighting.sharpness,
        face=float(face.score) if face else 0.0,
        face_embedding=face.embedding.tolist() if face else None,
        face_pose=list(face.pose) if face and face.pose else None,
        image_embedding=sighting.candidate.appearance.tolist(),
        image_text=similarity,
        phash=perceptual_hash(crop),
        shape=shape_bits(sighting.mask),
        surroundings=surroundings(crop, resized_mask(sighting.mask[y0:y1, x0:x1], crop)),
    )


def _with_margin(box: tuple[int, int, int, int], margin: float, width: int, height: int) -> tuple[int, int, int, int]:
    """The box grown by ``margin`` of its own sides, within the frame."""
    x0, y0, x1, y1 = box
    right, down = round(margin * (x1 - x0)), round(margin * (y1 - y0))
    return max(0, x0 - right), max(0, y0 - down), min(width, x1 + right), min(height, y1 + down)


def _at_most(image: Image, side: int) -> Image:
    height, width = image.shape[:2]
    scale = side / max(height, width)
    if scale >= 1:
        return image
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return cast(Image, cv2.resize(image, size, interpolation=cv2.INTER_AREA))


def _stability(sightings: Sequence[_Sighting]) -> float:
    """Median aligned IoU of one sighting's mask and the next one's; 0 for a single sighting."""
    if len(sightings) < 2:
        return 0.0
    return float(np.median([mask_iou(a.shape, b.shape) for a, b in pairwise(sightings)]))


def _unit_mean(vectors: Sequence[Vector]) -> list[float]:
    mean = np.mean(vectors, axis=0)
    return cast(list[float], (mean / max(float(np.linalg.norm(mean)), 1e-12)).tolist())
