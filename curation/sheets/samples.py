"""Contact sheets: what became samples, or what a filter dropped, in one picture to be judged by eye.

A row has three columns: a picture, what it is, and its references or its numbers. Everything is a *tile*, a picture of
its own that is pasted into the next larger one, so no text, however long or odd, reaches beyond its place.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pyarrow.parquet as pq

from curation.shards import read_manifest
from curation.sheets.tiles import (
    ABOUT,
    AMBER,
    BORDER,
    CELL,
    CELL_GAP,
    CELLS,
    DETAILS,
    GAP,
    GREY,
    INK,
    LARGE,
    MARGIN,
    NORMAL,
    PAGE,
    PICTURE,
    QUIET,
    RED,
    SPLIT_COLOURS,
    SUBJECT_COLOURS,
    Colour,
    Tile,
    below,
    beside,
    fit,
    flow,
    label_subjects,
    missing_tile,
    page,
    pill,
    row_tile,
    squared,
    text_tile,
    thumbnail,
    with_masks,
)
from curation.stats import stand_ins
from curation.steps import clips_with_references, kept_ids, proved_references
from curation.workspace import Workspace, among
from models.errors import UserError
from models.protocols import Image, Mask
from stages.measure import decode_rle
from stages.media import local_copy, read_keyframes
from stages.picture import subject_crop
from stages.records import KIND_ORDER, Annotation, Clip, Record, Reference, Score, Source, Subject, Verdict

Row = dict[str, Any]
R = TypeVar("R", bound=Record)

SCORES = ("motion", "sharpness", "brightness", "text_area", "border", "static")
KEY_SCORES = {"motion": "motion", "sharpness": "sharpness", "brightness": "brightness", "text_area": "text"}
SUBJECT_NUMBERS = (
    *("detection_score", "mask_score", "area", "short_side", "overlap", "border", "fragments", "straightness"),
    *("stability", "seen", "brightness", "sharpness", "face", "image_text"),
)
REFERENCE_NUMBERS = (
    *("identity_by", "identity_similarity", "rival_similarity", "context_difference", "pose_difference"),
    *(
        "background_difference",
        "scale_difference",
        "hash_distance",
        "time_distance",
        "copy_risk",
        "image_text",
        "nudity",
    ),
    *("subject_change", "background_change", "halo", "second_subject", "brightness", "sharpness", "width", "height"),
    "seed",
)
LEGEND = (
    "id: identity similarity to the subject in the video, by face or by the whole picture. "
    "diff: context difference from the subject's own picture, 0 the same, 1 nothing in common."
)


class NothingToDrawError(UserError, ValueError):
    """The workspace holds nothing that this sheet would show; the message says what to do."""


class UnknownReasonError(UserError, ValueError):
    """Nothing was dropped for this reason; the message lists the reasons that occur."""


@dataclass(frozen=True, slots=True)
class _Accepted:
    """A subject of a sample, the colour that it goes by, and its accepted references."""

    row: Row
    colour: Colour
    references: list[Row]


@dataclass(frozen=True, slots=True)
class _Sample:
    """What a row of the sheet shows of one sample."""

    clip: Clip
    source: Source | None
    caption: str
    score: Row | None
    split: str | None
    subjects: list[_Accepted]
    """At least one; the largest first."""

    @property
    def time(self) -> float:
        """When the frame is shown: at the best moment of the first subject."""
        first = self.subjects[0].row
        return float(first["frames"][first["best"]]["time"])


@dataclass(frozen=True, slots=True)
class _Frames:
    """Frames of clips; where there is none, ``errors`` says why."""

    images: dict[str, Image]
    errors: dict[str, str]

    def tile(self, clip_id: str) -> Tile:
        """The clip's frame, or a grey tile in its place."""
        if clip_id in self.images:
            return fit(self.images[clip_id], PICTURE)
        return missing_tile("video not readable", (PICTURE[0], PICTURE[0] * 9 // 16), self.errors.get(clip_id, ""))


def draw_sheet(workspace: Workspace, output: Path, *, rejected: str | None = None, most: int = 24) -> int:
    """Draw a contact sheet as a PNG file and return how many rows it has.

    Args:
        workspace: where the tables and, if something was packed, the shards are.
        output: the file to write.
        rejected: a reason; without one, samples are drawn (in the order of their clips' ids), with one the clips,
            subjects and references that were dropped for it (the first ``most`` by id, each kind by itself).
        most: rows at most; time and memory go with it.

    Raises:
        NothingToDrawError: if there are no samples, or nothing was dropped at all.
        UnknownReasonError: if nothing was dropped for ``rejected``.
    """
    if most < 1:
        raise NothingToDrawError(f"a sheet needs at least one row, not {most}")
    if rejected is None:
        counts, notes, rows = _samples_sheet(workspace, most)
    else:
        counts, notes, rows = _rejected_sheet(workspace, rejected, most)
    head = header(workspace, counts, notes)
    output.parent.mkdir(parents=True, exist_ok=True)
    page(head, rows).save(output, format="PNG")
    return len(rows)


def _samples_sheet(workspace: Workspace, most: int) -> tuple[str, str, list[Tile]]:
    """Counts for the header, the legend, and the rows."""
    passing = clips_with_references(workspace) & kept_ids(workspace, "clip")
    chosen = sorted(passing)[:most]
    samples = _read_samples(workspace, chosen)
    if not samples:
        raise NothingToDrawError(
            f"{workspace.uri} has no samples yet: no clip has an accepted reference. "
            f"`s2v stats --workspace {workspace.uri}` tells what was dropped and why."
        )
    frames = _read_frames([(sample.clip, sample.source, sample.time) for sample in samples])
    subjects = [subject for sample in samples for subject in sample.subjects]
    references = sum(len(subject.references) for subject in subjects)
    counts = (
        f"{len(samples)} of {_count(len(passing), 'sample')}, "
        f"with {_count(len(subjects), 'subject')} and {_count(references, 'reference')}"
    )
    return counts, LEGEND, [_sample_row(sample, frames) for sample in samples]


def _read_samples(workspace: Workspace, clip_ids: Sequence[str]) -> list[_Sample]:
    """The samples of these clips, with the pictures of their accepted references."""
    clips = {clip.clip_id: clip for clip in workspace.records(Clip, among("clip_id", clip_ids))}
    captions = _by(workspace, Annotation, "clip_id", clip_ids, ["caption"])
    scores = _by(workspace, Score, "clip_id", clip_ids)
    sources = _sources(workspace, clips.values())
    splits = _splits(workspace, clip_ids)
    subjects = _accepted_subjects(workspace, clip_ids)
    return [
        _Sample(
            clip=clips[clip_id],
            source=sources.get(clips[clip_id].video_id),
            caption=captions.get(clip_id, {"caption": ""})["caption"],
            score=scores.get(clip_id),
            split=splits.get(clip_id),
            subjects=subjects[clip_id],
        )
        for clip_id in clip_ids
        if clip_id in clips and clip_id in subjects
    ]


def _accepted_subjects(workspace: Workspace, clip_ids: Sequence[str]) -> dict[str, list[_Accepted]]:
    """Accepted subjects that have references, by clip, in the order in which a sample numbers them."""
    columns = ["subject_id", "clip_id", "word", "area", "face", "frame_width", "frame_height", "best", "frames"]
    rows = workspace.read(Subject, columns, among("clip_id", clip_ids)).to_pylist()
    kept = _passing(workspace, [row["subject_id"] for row in rows])
    references = _accepted_references(workspace, kept)
    found: dict[str, list[_Accepted]] = {}
    for row in sorted(rows, key=lambda row: (-row["area"], row["subject_id"])):
        if row["subject_id"] in references:
            others = found.setdefault(row["clip_id"], [])
            colour = SUBJECT_COLOURS[len(others) % len(SUBJECT_COLOURS)]
            others.append(_Accepted(row, colour, references[row["subject_id"]]))
    return found


def _accepted_references(workspace: Workspace, subject_ids: Iterable[str]) -> dict[str, list[Row]]:
    """By subject, in the order in which a sample numbers them. Pictures are read of the accepted ones alone."""
    rows = workspace.read(Reference, ["reference_id"], among("subject_id", subject_ids)).to_pylist()
    kept = _passing(workspace, [row["reference_id"] for row in rows])
    accepted = proved_references(
        workspace, ["reference_id", "subject_id", "kind", "image"], among("reference_id", kept)
    )
    found: dict[str, list[Row]] = defaultdict(list)
    for row in sorted(accepted, key=lambda row: (KIND_ORDER.index(row["kind"]), row["reference_id"])):
        found[row["subject_id"]].append(row)
    return found


def _rejected_sheet(workspace: Workspace, reason: str, most: int) -> tuple[str, str, list[Tile]]:
    """Counts for the header, nothing to explain, and the rows."""
    dropped = workspace.read(Verdict, ["id", "kind", "reasons"], "NOT keep").to_pylist()
    found = sorted((row for row in dropped if reason in row["reasons"]), key=lambda row: row["id"])
    if not found:
        raise _unknown(workspace, reason, dropped)
    reasons = {row["id"]: row["reasons"] for row in found[:most]}
    kinds = Counter(row["kind"] for row in found)
    chosen = {kind: [row["id"] for row in found[:most] if row["kind"] == kind] for kind in kinds}
    rows = [
        *_rejected_clips(workspace, chosen.get("clip", []), reasons, reason),
        *_rejected_subjects(workspace, chosen.get("subject", []), reasons, reason),
        *_rejected_references(workspace, chosen.get("reference", []), reasons, reason),
    ]
    counts = ", ".join(_count(kinds[kind], kind) for kind in ("clip", "subject", "reference") if kinds[kind])
    cut = f" (the first {len(rows)} by id)" if len(rows) < len(found) else ""
    return f"dropped for {reason}: {counts}{cut}", "", rows


def _unknown(workspace: Workspace, reason: str, dropped: Iterable[Row]) -> ValueError:
    counts = Counter(name for row in dropped for name in row["reasons"])
    if not counts:
        return NothingToDrawError(
            f"nothing was dropped in {workspace.uri}, or nothing was decided yet: `s2v run select`"
        )
    listed = ", ".join(f"{name} {count}" for name, count in counts.most_common())
    return UnknownReasonError(f"nothing was dropped for {reason!r}; the reasons that occur: {listed}")


def _rejected_clips(
    workspace: Workspace, ids: Sequence[str], reasons: Mapping[str, list[str]], asked: str
) -> Iterator[Tile]:
    clips = workspace.records(Clip, among("clip_id", ids))
    sources = _sources(workspace, clips)
    scores = _by(workspace, Score, "clip_id", ids)
    frames = _read_frames([(clip, sources.get(clip.video_id), (clip.start_s + clip.end_s) / 2) for clip in clips])
    for clip in sorted(clips, key=lambda clip: clip.clip_id):
        about = _rejected_about("clip", _where(clip, sources.get(clip.video_id)), clip.clip_id, reasons, asked)
        if clip.clip_id in scores:
            details = _numbers(scores[clip.clip_id], SCORES)
        else:
            details = text_tile("no scores: it was dropped when it was cut", DETAILS, colour=QUIET)
        yield row_tile(frames.tile(clip.clip_id), about, details)


def _rejected_subjects(
    workspace: Workspace, ids: Sequence[str], reasons: Mapping[str, list[str]], asked: str
) -> Iterator[Tile]:
    for subject in sorted(workspace.records(Subject, among("subject_id", ids)), key=lambda row: row.subject_id):
        where = f"subject of clip {subject.clip_id}"
        about = _rejected_about(f"{subject.word} ({subject.category})", where, subject.subject_id, reasons, asked)
        numbers = {name: getattr(subject, name) for name in SUBJECT_NUMBERS}
        yield row_tile(_crop_tile(subject, PICTURE), about, _numbers(numbers, SUBJECT_NUMBERS))


def _rejected_references(
    workspace: Workspace, ids: Sequence[str], reasons: Mapping[str, list[str]], asked: str
) -> Iterator[Tile]:
    references = list(proved_references(workspace, Reference.schema().names, among("reference_id", ids)))
    wanted = sorted({reference["subject_id"] for reference in references})
    targets = {subject.subject_id: subject for subject in workspace.records(Subject, among("subject_id", wanted))}
    for reference in references:
        target = targets.get(reference["subject_id"])
        where = f"for {target.word if target else 'a subject'} {reference['subject_id']}"
        about = _rejected_about(reference["kind"], where, reference["reference_id"], reasons, asked)
        told = [name for name in REFERENCE_NUMBERS if reference[name] is not None]
        details = below(
            [
                _numbers(reference, told),
                text_tile(f"method: {reference['method']}", DETAILS, colour=QUIET, lines=2),
            ],
            gap=GAP,
        )
        yield row_tile(_with_target(reference, target), about, details)


def _with_target(reference: Row, target: Subject | None) -> Tile:
    """The dropped picture beside the target's own, since what it lacks shows only in comparison."""
    side = (PICTURE[0] - GAP) // 2
    tiles = [below([text_tile("reference", side, colour=QUIET), thumbnail(reference["image"], side, RED)])]
    if target is not None:
        own = squared(_crop_tile(target, (side - 2 * BORDER, side - 2 * BORDER)), side, GREY)
        tiles.append(below([text_tile("target", side, colour=QUIET), own]))
    return beside(tiles, gap=GAP)


def _crop_tile(subject: Subject, box: tuple[int, int]) -> Tile:
    """The subject's best crop with its mask outlined."""
    try:
        crop, mask = subject_crop(subject, subject.best)
    except ValueError:
        return missing_tile("picture not readable", (min(box), min(box)))
    return with_masks(fit(crop, box), [(mask, RED)], opacity=0)


def _sample_row(sample: _Sample, frames: _Frames) -> Tile:
    """Frame with masks, caption and scores, references."""
    masks = [_mask_at(subject.row, sample.time) for subject in sample.subjects]
    frame = frames.tile(sample.clip.clip_id)
    if sample.clip.clip_id in frames.images:
        pairs = zip(sample.subjects, masks, strict=True)
        shown = [(mask, subject.colour, subject.row["word"]) for subject, mask in pairs if mask is not None]
        frame = with_masks(frame, [(mask, colour) for mask, colour, _ in shown], opacity=0.3)
        label_subjects(frame, shown)
    groups = [_references(subject, seen=mask is not None) for subject, mask in zip(sample.subjects, masks, strict=True)]
    return row_tile(frame, _sample_about(sample), flow(groups, DETAILS, CELL_GAP, line_gap=GAP))


def _sample_about(sample: _Sample) -> Tile:
    pills = [pill(sample.split, SPLIT_COLOURS.get(sample.split, INK))] if sample.split else []
    identity = text_tile(sample.clip.clip_id, 160, colour=QUIET)
    tiles = [
        flow([*pills, identity], ABOUT, CELL_GAP),
        text_tile(_where(sample.clip, sample.source), ABOUT, colour=QUIET),
        text_tile(sample.caption, ABOUT, size=NORMAL, lines=8),
    ]
    if sample.score is not None:
        scores = [f"{label} {_number(sample.score[name])}" for name, label in KEY_SCORES.items()]
        half = (ABOUT - CELL_GAP) // 2
        tiles.append(flow([text_tile(score, half, colour=QUIET) for score in scores], ABOUT, CELL_GAP, line_gap=0))
    return below(tiles, gap=CELL_GAP)


def _references(subject: _Accepted, *, seen: bool) -> Tile:
    """The subject's word, and under it its accepted references: as wide as half the column, or all of it."""
    row = subject.row
    cells = CELLS if len(subject.references) > CELLS // 2 else CELLS // 2
    width = cells * CELL + (cells - 1) * CELL_GAP
    name = pill(row["word"], subject.colour, most=CELL)
    facts = [f"area {row['area']:.2f}"]
    if row["face"] > 0:
        facts.append(f"face {row['face']:.2f}")
    if not seen:
        facts.append("not in the frame shown")
    told = text_tile(", ".join(facts), width - name.width - CELL_GAP, colour=QUIET)
    pictures = [_reference(reference, subject.colour) for reference in subject.references]
    return below([beside([name, told], gap=CELL_GAP), flow(pictures, width, CELL_GAP)], gap=4)


def _reference(reference: Row, colour: Colour) -> Tile:
    return below(
        [
            text_tile(reference["kind"], CELL),
            thumbnail(reference["image"], CELL, colour),
            text_tile(f"id {reference['identity_similarity']:.2f} {reference['identity_by']}", CELL),
            text_tile(f"diff {reference['context_difference']:.2f}", CELL, colour=QUIET),
        ]
    )


def _rejected_about(title: str, where: str, key: str, reasons: Mapping[str, list[str]], asked: str) -> Tile:
    """What was dropped, and every reason; the one that was asked for stands out."""
    pills = [pill(reason, RED if reason == asked else QUIET, most=ABOUT) for reason in reasons[key]]
    return below(
        [
            text_tile(title, ABOUT, size=NORMAL, lines=2),
            text_tile(key, ABOUT, colour=QUIET),
            text_tile(where, ABOUT, colour=QUIET, lines=2),
            flow(pills, ABOUT, CELL_GAP),
        ],
        gap=CELL_GAP,
    )


def _numbers(row: Mapping[str, Any], names: Iterable[str]) -> Tile:
    """Names above values, on the grid of the references."""
    cells = [
        below([text_tile(name.replace("_", " "), CELL, colour=QUIET), text_tile(_number(row[name]), CELL, size=NORMAL)])
        for name in names
        if row[name] is not None
    ]
    return flow(cells, DETAILS, CELL_GAP)


def header(workspace: Workspace, counts: str, notes: str) -> Tile:
    """What a sheet shows, how to read it, and what stood in for networks."""
    width = PAGE - 2 * MARGIN
    name = workspace.uri.rstrip("/").rsplit("/", 1)[-1]
    tiles = [text_tile(f"{name}: {counts}", width, size=LARGE)]
    if notes:
        tiles.append(text_tile(notes, width, colour=QUIET))
    if stand_in_notes := stand_ins(read_manifest(workspace.path("shards"))):
        tiles.append(text_tile(f"Stand-ins: {'; '.join(stand_in_notes)}.", width, colour=AMBER, lines=3))
    return below(tiles, gap=CELL_GAP)


def _read_frames(wanted: Iterable[tuple[Clip, Source | None, float]]) -> _Frames:
    """The frame of each clip at a time in seconds, video by video, so that a remote one is fetched once."""
    by_video: dict[str, list[tuple[str, float]]] = defaultdict(list)
    for clip, source, time in wanted:
        if source is not None:
            by_video[source.uri].append((clip.clip_id, time))
    frames = _Frames({}, {})
    for uri, moments in by_video.items():
        try:
            with local_copy(uri) as path:
                for clip_id, time in moments:
                    frames.images[clip_id] = read_keyframes(path, [time], 0.0, max(PICTURE))[0].image
        except Exception as error:  # noqa: BLE001 - each store and decoder has errors of its own; the rest is still drawn
            frames.errors.update(dict.fromkeys([clip_id for clip_id, _ in moments], type(error).__name__))
    return frames


def _sources(workspace: Workspace, clips: Iterable[Clip]) -> dict[str, Source]:
    """The sources of these clips' videos; of several with the same bytes, the one whose URI sorts first."""
    found: dict[str, Source] = {}
    videos = among("video_id", sorted({clip.video_id for clip in clips}))
    for source in sorted(workspace.records(Source, videos), key=lambda source: source.uri):
        found.setdefault(source.video_id, source)
    return found


def _splits(workspace: Workspace, clip_ids: Sequence[str]) -> dict[str, str]:
    """The split of each of these clips that was packed."""
    if not workspace.exists("shards", "index.parquet"):
        return {}
    with workspace.filesystem.open(workspace.path("shards", "index.parquet"), "rb") as file:
        rows = pq.read_table(file, columns=["key", "split"], filters=[("key", "in", list(clip_ids))]).to_pylist()
    return {row["key"]: row["split"] for row in rows}


def _passing(workspace: Workspace, ids: Sequence[str]) -> set[str]:
    rows = workspace.read(Verdict, ["id"], f"keep AND {among('id', ids)}").to_pylist()
    return {row["id"] for row in rows}


def _by(
    workspace: Workspace, record: type[R], column: str, values: Sequence[str], columns: Sequence[str] | None = None
) -> dict[str, Row]:
    """Rows whose ``column``, which is unique, holds one of these values, by that value."""
    names = None if columns is None else [column, *columns]
    return {row[column]: row for row in workspace.read(record, names, among(column, values)).to_pylist()}


def _where(clip: Clip, source: Source | None) -> str:
    name = source.uri.rstrip("/").rsplit("/", 1)[-1] if source else clip.video_id
    return f"{clip.start_s:.2f}-{clip.end_s:.2f} s of {name}"


def _mask_at(subject: Row, time: float) -> Mask | None:
    """The subject's mask in the frame at this time; nothing if it was not kept there."""
    for frame in subject["frames"]:
        if abs(frame["time"] - time) < 1e-6:
            return decode_rle(frame["mask"], subject["frame_height"], subject["frame_width"])
    return None


def _number(value: Any) -> str:
    if not isinstance(value, float):
        return str(value)
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.3f}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
