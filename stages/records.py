"""The rows of every table: the only place where columns are named.

A record is a frozen dataclass; its Arrow schema follows from its type hints. ``fingerprint`` is the hash of
everything that the row was made from besides its key: configuration, weights and the rows upstream. A row whose
fingerprint is no longer the wanted one is stale and is made anew.

Frame numbers count displayed frames from the start of the video at its average rate; times are in seconds
from its first frame. Boxes are ``[x0, y0, x1, y1]``; boxes and masks are in pixels of the keyframe, which is the
displayed (rotated) frame, scaled down where ``annotate.look.max_side`` says so.
"""

from __future__ import annotations

import itertools
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, is_dataclass
from functools import cache
from typing import Any, ClassVar, Literal, Self

import pyarrow as pa

ROWS_PER_BATCH = 4096
"""Rows that are turned into Arrow at once: as Python dicts they take several times the memory."""


class Record:
    """A row. Subclasses name their table and the column that is unique in it."""

    table: ClassVar[str]
    key: ClassVar[str]

    @classmethod
    def schema(cls) -> pa.Schema:
        """Arrow schema of the table."""
        return pa.schema(_struct_fields(cls))

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Self:
        """Build a record from one of ``pyarrow.Table.to_pylist()``'s dicts."""
        return typing.cast(Self, _build(cls, row))

    @classmethod
    def to_table(cls, records: Iterable[Self]) -> pa.Table:
        """Arrow table of these records, in order."""
        left = iter(records)
        batches = []
        while part := [_plain(record) for record in itertools.islice(left, ROWS_PER_BATCH)]:
            batches.append(pa.RecordBatch.from_pylist(part, schema=cls.schema()))
        return pa.Table.from_batches(batches, schema=cls.schema())


@dataclass(frozen=True, slots=True)
class Source(Record):
    """An input file as it was found. Several sources with the same bytes are one video."""

    table: ClassVar[str] = "sources"
    key: ClassVar[str] = "source_id"

    source_id: str
    uri: str
    video_id: str
    bytes: int
    container: str
    codec: str
    width: int
    """As displayed, after rotation."""
    height: int
    rotation: int
    """Degrees clockwise that the file asks players to turn its frames by: 0, 90, 180 or 270."""
    fps: float
    """Average rate over the frames that are really there."""
    frames: int
    """Frames counted in the stream, not what the header says."""
    frames_announced: int
    duration_s: float
    audio_streams: int
    caption: str | None
    caption_source: str | None
    """Where the caption came from: ``manifest``, ``sidecar`` or nothing."""
    licence: str | None
    origin: str | None
    """The manifest's ``source``: where the file was got from."""
    fingerprint: str


@dataclass(frozen=True, slots=True)
class Clip(Record):
    """A stretch of one shot, or a stretch that was dropped, with the reason."""

    table: ClassVar[str] = "clips"
    key: ClassVar[str] = "clip_id"

    clip_id: str
    video_id: str
    span_id: str
    """The part of the video that was searched for shots in one go; long videos have several."""
    start_frame: int
    end_frame: int
    """Exclusive."""
    start_s: float
    end_s: float
    shot: int
    """Number of the shot within the span."""
    dropped: str | None
    """Why the stretch is not used (``too_short``, ``transition``), or nothing."""
    fingerprint: str


@dataclass(frozen=True, slots=True)
class Score(Record):
    """Numbers about a whole clip; no verdict."""

    table: ClassVar[str] = "scores"
    key: ClassVar[str] = "clip_id"

    clip_id: str
    motion: float
    """Mean optical flow, of camera and subjects alike, in thousandths of the frame's diagonal per 1/24 s."""
    brightness: float
    """Mean luma in [0, 255]."""
    sharpness: float
    """Variance of the Laplacian of luma at 360 lines, median over the keyframes."""
    text_area: float
    """Share of the frame inside text regions, largest of the keyframes; [0, 1]."""
    border: float
    """Share of the frame in constant letterbox or pillarbox bars; [0, 1]."""
    static: float
    """Share of pixels that never change over the clip; [0, 1]."""
    aesthetic: float | None
    """How much people like the frames, mean of those looked at, about 1 to 10; where a model for it is configured."""
    nudity: float | None
    """How sure a model is that a frame shows nudity, highest of those looked at; [0, 1]; where one is configured."""
    phashes: list[int]
    """64-bit perceptual hash of each keyframe, in order of time, as signed integers."""
    fingerprint: str


@dataclass(frozen=True, slots=True)
class Annotation(Record):
    """What a clip shows: its caption, its subject words and how many subjects were found."""

    table: ClassVar[str] = "annotations"
    key: ClassVar[str] = "clip_id"

    clip_id: str
    caption: str
    caption_source: str
    """``manifest``, ``sidecar``, ``model``, or ``template`` where there was none."""
    words: list[str]
    subjects: int
    fingerprint: str


@dataclass(frozen=True, slots=True)
class SubjectFrame:
    """A subject in one keyframe. ``crop_box`` is where its crop, the box with a margin around it, lies in the frame."""

    time: float
    box: list[float]
    mask: str
    """COCO run-length encoding (the ``counts`` string) of the mask over the whole frame."""
    crop_box: list[int]
    detection_score: float
    mask_score: float
    area: float
    """Share of the frame inside the mask; [0, 1]."""
    overlap: float
    """Largest IoU of its mask with another subject's in the same frame; [0, 1]."""
    border: float
    """Share of the mask's outline that lies on the frame's edge; [0, 1]."""
    fragments: int
    """Connected parts of the mask that each hold at least 1 % of it."""
    straightness: float
    """Share of the mask's outline in long horizontal or vertical runs, as where a box was cut out; [0, 1]."""
    brightness: float
    """Mean luma inside the mask; [0, 255]."""
    sharpness: float
    """Variance of the Laplacian of luma inside the mask, its box scaled to 256 lines."""
    face: float
    """Detector score of the subject's largest face; 0 if none; [0, 1]."""
    face_embedding: list[float] | None
    face_pose: list[float] | None
    """Pitch, yaw and roll of that face in degrees, where the face model tells."""
    image_embedding: list[float]
    image_text: float | None
    """Cosine of crop and word, where an image-text model is configured."""
    phash: int
    """64-bit perceptual hash of the crop, as a signed integer."""
    shape: int
    """The mask's shape on an 8 x 8 grid, centred and of one size: a bit per cell, as a signed integer."""
    surroundings: list[float]
    """Mean Lab colours around the subject, 8 places of the crop; 24 numbers."""


@dataclass(frozen=True, slots=True)
class Subject(Record):
    """One instance of a word, tracked through the clip. Its numbers are its best frame's unless they say otherwise."""

    table: ClassVar[str] = "subjects"
    key: ClassVar[str] = "subject_id"

    subject_id: str
    clip_id: str
    word: str
    category: str
    """``person``, ``animal``, ``vehicle``, ``plant`` or ``object``."""
    instance: int
    """0 for the largest instance of the word in the clip, then 1, ..."""
    frame_width: int
    frame_height: int
    best: int
    """Index of the best frame in ``frames``."""
    frames: list[SubjectFrame]
    """Kept frames, by time."""
    crops: list[bytes]
    """PNG of each kept frame's crop; apart from ``frames``, so that numbers can be read without pictures."""
    seen: int
    """Keyframes in which the subject was found, kept or not."""
    detection_score: float
    mask_score: float
    area: float
    overlap: float
    border: float
    fragments: int
    straightness: float
    stability: float
    """Median IoU of its masks in neighbouring keyframes, aligned on their centres; 0 if seen only once; [0, 1]."""
    brightness: float
    sharpness: float
    face: float
    short_side: float
    """Shorter side of the box in pixels."""
    image_text: float | None
    face_embedding: list[float] | None
    """Unit mean over the kept frames with a face."""
    face_turn: float | None
    """Degrees that the face is turned up, down or aside from the camera, where the face model tells; [0, 180]."""
    image_embedding: list[float]
    """Unit mean over the kept frames."""
    time: float
    """Seconds from the start of the video."""
    box: list[float]
    crop_box: list[int]
    phash: int
    shape: int
    surroundings: list[float]
    content: str
    """Hash of what pictures of the subject are made of: its word, and the crop, mask and place of each kept frame. It
    stays where only what describes them has changed, such as a face network."""
    fingerprint: str


@dataclass(frozen=True, slots=True)
class Verdict(Record):
    """Whether a clip, a subject or a reference passes, and every reason why it does not."""

    table: ClassVar[str] = "verdicts"
    key: ClassVar[str] = "id"

    id: str
    kind: str
    """``clip``, ``subject`` or ``reference``."""
    keep: bool
    reasons: list[str]


Kind = Literal["original", "other_frame", "cross_clip", "inpainted", "augmented", "moved", "swapped"]
KIND_ORDER: tuple[Kind, ...] = typing.get_args(Kind)
"""Kinds of references in the order in which a sample holds them: the surest first."""


@dataclass(frozen=True, slots=True)
class Reference(Record):
    """A picture of a subject for a model to look at, and where it came from. What it proves stands in ``proofs``."""

    table: ClassVar[str] = "references"
    key: ClassVar[str] = "reference_id"

    reference_id: str
    subject_id: str
    """The target: whose video the picture will stand beside."""
    kind: str
    """One of `KIND_ORDER`."""
    source_subject_id: str
    source_clip_id: str
    source_time: float
    source_frame: int
    """Number of the frame among the source's kept ones."""
    scene_subject_id: str | None
    """Of ``swapped``: the subject whose place the source has taken."""
    image: bytes
    """PNG, RGB."""
    mask: str
    """Where in the picture the subject is; COCO run-length encoding (the ``counts`` string)."""
    width: int
    height: int
    method: str
    """How the picture was made, with the model's name and revision where one was used."""
    revealed: float | None
    """Of ``swapped``: share of the picture that was painted where the scene's own subject was, and shows; [0, 1]."""
    seed: int
    fingerprint: str


@dataclass(frozen=True, slots=True)
class Proof(Record):
    """What was measured of a reference: that it shows its target, and that it shows it differently. No verdict."""

    table: ClassVar[str] = "proofs"
    key: ClassVar[str] = "reference_id"

    reference_id: str
    identity_similarity: float
    """Cosine between the embeddings of the picture and of the target (of faces where ``identity_by`` says so)."""
    identity_by: str
    """``face`` or ``image``."""
    rival_similarity: float | None
    """The same cosine with the most alike of the subjects that are known to be others; nothing where none is known."""
    rival_subject_id: str | None
    context_difference: float
    """How unlike the target's own picture this one is; 0 for the same, 1 for nothing in common."""
    pose_difference: float
    """One minus the IoU of both masks, centred and of one size; [0, 1]."""
    background_difference: float
    """Mean distance of the colours around the subject; [0, 1]."""
    scale_difference: float
    """Octaves between the subject's sizes, as shares of their frames."""
    hash_distance: int
    """Bits of 64 in which the perceptual hashes differ."""
    time_distance: float | None
    """Seconds between both pictures, where they are of one video."""
    copy_risk: float | None
    """How well the picture, or its mirror image, can be laid over a frame of the target (of ``other_frame``, over one
    that it was not cut out of); [0, 1]. Nothing for ``original``, which is such a copy, and where copies are not looked
    for."""
    image_text: float | None
    """Cosine of the picture and the subject's word, where an image-text model is configured."""
    nudity: float | None
    """How sure a model is that the picture shows nudity; [0, 1]; where one is configured."""
    brightness: float
    sharpness: float
    phash: int
    """64-bit perceptual hash of the picture, as a signed integer."""
    subject_change: float | None
    """Of pictures that keep the subject's pixels: mean distance in Lab from those that it had; from 0."""
    background_change: float | None
    """Of pictures with a new background: share of it that is new; [0, 1]."""
    halo: float | None
    """Of pictures with a new background: how much more of the old one is left along the subject's edge than elsewhere;
    [0, 1]."""
    second_subject: float | None
    """Of pictures with a new background: score of the surest subject of the same word beside the one that belongs
    there; [0, 1]. Nothing where the detector knows no words."""
    fingerprint: str


@dataclass(frozen=True, slots=True)
class Encoding(Record):
    """A clip as it will stand in its sample: H.264 in MP4 at a constant rate, without sound."""

    table: ClassVar[str] = "encodings"
    key: ClassVar[str] = "clip_id"

    clip_id: str
    data: bytes
    width: int
    height: int
    frames: int
    fps: float
    fingerprint: str


@dataclass(frozen=True, slots=True)
class Failure(Record):
    """Something that could not be done. ``item`` names the row of the step's input that it happened to."""

    table: ClassVar[str] = "failures"
    key: ClassVar[str] = "failure_id"

    failure_id: str
    step: str
    item: str
    uri: str
    error: str
    """Class of the error: an exception's name, ``Timeout`` or ``WorkerCrash``."""
    message: str
    fingerprint: str


RECORDS: dict[str, type[Record]] = {
    record.table: record
    for record in (Source, Clip, Score, Annotation, Subject, Verdict, Reference, Proof, Encoding, Failure)
}

_PRIMITIVES: dict[type, pa.DataType] = {
    str: pa.string(),
    int: pa.int64(),
    float: pa.float64(),
    bool: pa.bool_(),
    bytes: pa.large_binary(),
}


@cache
def _hints(cls: Any) -> dict[str, Any]:
    names = {field.name for field in fields(cls)}
    return {name: hint for name, hint in typing.get_type_hints(cls).items() if name in names}


def _struct_fields(cls: type) -> list[pa.Field]:
    return [pa.field(name, *_arrow_type(hint)) for name, hint in _hints(cls).items()]


def _arrow_type(hint: Any) -> tuple[pa.DataType, bool]:
    if typing.get_origin(hint) is types.UnionType:
        inner, *_ = (part for part in typing.get_args(hint) if part is not type(None))
        return _arrow_type(inner)[0], True
    if typing.get_origin(hint) is list:
        (inner,) = typing.get_args(hint)
        return pa.list_(_arrow_type(inner)[0]), False
    if is_dataclass(hint):
        return pa.struct(_struct_fields(typing.cast(type, hint))), False
    return _PRIMITIVES[hint], False


def _build(cls: type, row: Mapping[str, Any]) -> Any:
    values = {}
    for name, hint in _hints(cls).items():
        value = row[name]
        if typing.get_origin(hint) is list and is_dataclass(typing.get_args(hint)[0]):
            value = [_build(typing.get_args(hint)[0], item) for item in value]
        values[name] = value
    return cls(**values)


def _plain(record: Any) -> dict[str, Any]:
    return {
        name: [_plain(item) for item in value]
        if isinstance(value, list) and value and is_dataclass(value[0])
        else value
        for name in _hints(record.__class__)
        for value in (getattr(record, name),)
    }
