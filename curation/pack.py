"""The last step: samples into WebDataset shards, with an index of every member and a manifest of the whole.

Shards are written beside the published ones and take their place only when all are there, the manifest last. A shard's
bytes follow from its samples alone, so one that is already published unchanged is kept.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import re
import sys
import tarfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from curation.config import fingerprint
from curation.guard import Item, Stage
from curation.individuals import Individuals
from curation.pairing import References, Verify
from curation.shards import INDEX_SCHEMA, read_manifest
from curation.steps import (
    REVISION,
    SUBJECT_MEASURES,
    Annotate,
    Each,
    Encode,
    Split,
    Step,
    kept_ids,
    videos_of,
)
from curation.workspace import Workspace
from models.weights.stored import provenance
from stages.mixture import Known, mix
from stages.records import Annotation, Clip, Encoding, Proof, Record, Reference, Score, Source, Subject
from stages.sample import Sample, SamplePlan, make_sample, plan_samples, split_by_identity, told_of_source

NEXT = ".next"
"""Folder of shards that are written but not yet published."""

SHARD_NAME = re.compile(r"(train|val)-\d{6,}\.tar")


PARTS: dict[type[Record], Callable[[SamplePlan], Sequence[str]]] = {
    Clip: lambda sample: [sample.key],
    Source: lambda sample: [sample.source_id],
    Score: lambda sample: [sample.key],
    Annotation: lambda sample: [sample.key],
    Encoding: lambda sample: [sample.key],
    Subject: lambda sample: sample.subjects,
    Reference: lambda sample: [
        *(name for names in sample.references for name in names),
        *(negative.reference_id for found in sample.negatives for negative in found),
    ],
    Proof: lambda sample: [name for names in sample.references for name in names],
}
"""Of which tables a sample is made, and which of their rows."""

SUBJECT_TOLD = [*SUBJECT_MEASURES, "frames"]
SOURCE_COLUMNS = Source.schema().names


@dataclass(frozen=True, slots=True)
class Rows:
    """Where rows lie in a version of their table."""

    version: int
    row_ids: npt.NDArray[np.uint64]


@dataclass(frozen=True, slots=True)
class ShardSpec:
    """A shard to be written. Its samples' rows stand in ``rows`` by table, in the order of the samples."""

    name: str
    split: str
    fingerprint: str
    samples: list[SamplePlan]
    rows: dict[str, Rows]


@dataclass(frozen=True, slots=True)
class Planned:
    """All the samples, by key."""

    samples: list[SamplePlan]
    val: set[str]
    """Keys of those for validation."""
    mixture: dict[str, Any]
    """What was asked of it, and what it got."""


class Pack(Step):
    """Everything that passed into ``shards/``."""

    name = "pack"

    @cached_property
    def fingerprint(self) -> str:
        return fingerprint("pack", REVISION["pack"], self.config.pack, self.config.mixture)

    @cached_property
    def made_with(self) -> list[dict[str, Any]]:
        """The models behind the samples, with the licences of their weights."""
        return provenance(self.config.models.chosen(), self.config.models.root)

    @cached_property
    def shards(self) -> list[ShardSpec]:
        """All the shards that the tables and the config make."""
        return list(self._cut(self._planned.samples, self._planned.val))

    @cached_property
    def _planned(self) -> Planned:
        videos = {row["clip_id"]: row["video_id"] for row in self._passing(Clip, ["clip_id", "video_id"], "clip")}
        sources = {video.video_id: video.source_id for video in videos_of(self.workspace)}
        whole = set(self.workspace.column(Encoding, "clip_id")) & set(self.workspace.column(Annotation, "clip_id"))
        class_of: dict[str, str] = {}
        kind_of: dict[str, str] = {}
        subjects = self._passing(Subject, ["subject_id", "clip_id", "area", "category"], "subject")
        references = self._passing(Reference, ["reference_id", "subject_id", "kind"], "reference")
        samples = plan_samples(
            {clip: sources[video] for clip, video in videos.items() if clip in whole},
            _noted(subjects, "subject_id", "category", class_of),
            _noted(references, "reference_id", "kind", kind_of),
            self.config.pack.max_subjects,
        )
        individuals = Individuals(self.workspace, self.config)
        val = split_by_identity(
            {sample.key: videos[sample.key] for sample in samples}, individuals.clips(), self.config.pack.val_share
        )
        mixture = mix(samples, val, Known(class_of, kind_of, individuals.names), self.config.mixture)
        report = mixture.report()
        if not self.config.mixture.negatives:
            return Planned(mixture.samples, val, report)
        originals = {
            subject: name
            for sample in samples
            for subject, names in zip(sample.subjects, sample.references, strict=True)
            for name in names
            if kind_of[name] == "original"
        }
        chosen = individuals.with_negatives(mixture.samples, samples, val, originals)
        report["negatives"] = sum(len(found) for sample in chosen for found in sample.negatives)
        return Planned(chosen, val, report)

    def plan(self) -> list[Item]:
        published = self._published()
        return [
            # Another content is another item: what kept the old one from being written need not hold for it.
            Item(f"{shard.name}-{shard.fingerprint}", f"shard {shard.name}", float(len(shard.samples)), shard)
            for shard in self.shards
            if published.get(f"{shard.name}.tar", {}).get("fingerprint") != shard.fingerprint
            and not self._is_written(shard)
        ]

    def stage(self, name: str) -> Stage:
        return Each(self._write)

    def rows(self, value: None) -> list[Record]:
        return []

    def finish(self) -> None:
        """Publish the shards if all of them are there, and drop what is no longer part of the set."""
        shards = self.shards
        published = self._published()
        kept: list[str] = []
        entries, index = [], [INDEX_SCHEMA.empty_table()]
        for shard in shards:
            if self._is_written(shard):
                with self.workspace.filesystem.open(self.workspace.path(*_sidecar(shard)), "r") as file:
                    written = json.load(file)
                entries.append(written["entry"])
                index.append(pa.Table.from_pylist(written["samples"], schema=INDEX_SCHEMA))
            elif published.get(f"{shard.name}.tar", {}).get("fingerprint") == shard.fingerprint:
                entries.append(published[f"{shard.name}.tar"])
                kept.append(f"{shard.name}.tar")
            else:
                return
        index.append(self._published_index(kept))
        self._publish(shards, entries, pa.concat_tables(index).sort_by([("shard", "ascending"), ("key", "ascending")]))

    def _publish(self, shards: Sequence[ShardSpec], entries: list[dict[str, Any]], index: pa.Table) -> None:
        files = self.workspace.filesystem
        new = [shard for shard in shards if self._is_written(shard)]
        current = {entry["file"]: entry for entry in read_manifest(self.workspace.path("shards")).get("shards", [])}
        untouched = [entry for file, entry in current.items() if file not in {f"{shard.name}.tar" for shard in new}]
        if len(untouched) < len(current):
            # Withdrawn first: if the run dies among the renames, the manifest names no shard of other content.
            self._write_manifest(untouched)
        for shard in new:
            files.mv(self.workspace.path(*_written(shard)), self.workspace.path("shards", f"{shard.name}.tar"))
        with self.workspace.writing("shards", "index.parquet") as file:
            pq.write_table(index.combine_chunks(), file)
        self._write_manifest(entries)
        # All that look like shards: those of a run that died before this point stand in no manifest.
        present = {path.rpartition("/")[2] for path in files.ls(self.workspace.path("shards"), detail=False)}
        for name in {name for name in present if SHARD_NAME.fullmatch(name)} - {entry["file"] for entry in entries}:
            files.rm(self.workspace.path("shards", name))
        if self.workspace.exists("shards", NEXT):
            files.rm(self.workspace.path("shards", NEXT), recursive=True)

    def _published(self) -> dict[str, dict[str, Any]]:
        """What the manifest says of each shard that is there."""
        entries = read_manifest(self.workspace.path("shards")).get("shards", [])
        return {entry["file"]: entry for entry in entries if self.workspace.exists("shards", entry["file"])}

    def _published_index(self, shards: Sequence[str]) -> pa.Table:
        """The rows of these shards in the published index."""
        if not shards:
            return INDEX_SCHEMA.empty_table()
        with self.workspace.filesystem.open(self.workspace.path("shards", "index.parquet"), "rb") as file:
            index = pq.read_table(file).cast(INDEX_SCHEMA)
        return index.filter(pc.is_in(index["shard"], pa.array(shards)))

    def _write_manifest(self, entries: Sequence[dict[str, Any]]) -> None:
        with self.workspace.writing("shards", "manifest.json") as file:
            file.write_text(json.dumps(self._manifest(entries), indent=1, sort_keys=True, ensure_ascii=False) + "\n")

    def _manifest(self, entries: Sequence[dict[str, Any]]) -> dict[str, Any]:
        steps = (Split, Annotate, References, Verify, Encode, Pack)
        samples: Counter[str] = Counter()
        for entry in entries:
            samples[entry["split"]] += entry["samples"]
        return {
            "format": "webdataset",
            "config": self.config.model_dump(mode="json", exclude={"runtime"}),
            "fingerprints": {step.name: step(self.config, self.workspace).fingerprint for step in steps},
            "samples": {"train": samples["train"], "val": samples["val"]},
            "mixture": self._planned.mixture,
            "shards": list(entries),
        }

    def _is_written(self, shard: ShardSpec) -> bool:
        return self.workspace.exists(*_sidecar(shard)) and self.workspace.exists(*_written(shard))

    def _passing(self, record: type[Record], columns: Sequence[str], kind: str) -> Iterator[dict[str, Any]]:
        kept = kept_ids(self.workspace, kind)
        return (row for row in self.workspace.rows(record, columns) if row[record.key] in kept)

    def _cut(self, samples: Sequence[SamplePlan], val: set[str]) -> Iterator[ShardSpec]:
        sides = {
            "train": [sample for sample in samples if sample.key not in val],
            "val": [sample for sample in samples if sample.key in val],
        }
        found = _Finder(self.workspace, [sample for side in sides.values() for sample in side])
        size = self.config.pack.shard_samples
        for split, side in sides.items():
            for number, start in enumerate(range(0, len(side), size)):
                chosen = side[start : start + size]
                rows, content = found.rows_of(chosen)
                yield ShardSpec(
                    name=f"{split}-{number:06d}",
                    split=split,
                    fingerprint=fingerprint(REVISION["pack"], content, self.made_with),
                    samples=chosen,
                    rows=rows,
                )

    def _write(self, shard: ShardSpec) -> None:
        with self.workspace.writing(*_written(shard)) as file:
            with tarfile.open(file, "w", format=tarfile.USTAR_FORMAT) as tar:
                samples = [_add_sample(tar, shard, *parts) for parts in self._parts(shard)]
            with file.open("rb") as written:
                digest = hashlib.file_digest(written, "sha256").hexdigest()
            size = file.stat().st_size
        entry = {
            "file": f"{shard.name}.tar",
            "split": shard.split,
            "samples": len(samples),
            "bytes": size,
            "sha256": digest,
            "fingerprint": shard.fingerprint,
        }
        with self.workspace.writing(*_sidecar(shard)) as file:
            file.write_text(json.dumps({"entry": entry, "samples": samples}))

    def _parts(self, shard: ShardSpec) -> Iterator[tuple[Sample, Encoding, dict[str, bytes]]]:
        """Each sample with its encoded clip and the pictures by id; what is large is read one sample at a time."""

        def take(record: type[Record], row_ids: Sequence[int], columns: Sequence[str] | None = None) -> dict[str, Any]:
            rows = self.workspace.take_rows(record, row_ids, shard.rows[record.table].version, columns)
            return {row[record.key]: row for row in rows}

        row_ids = {table: iter(rows.row_ids.tolist()) for table, rows in shard.rows.items()}
        clips, sources, scores, annotations = (
            take(record, list(row_ids[record.table])) for record in (Clip, Source, Score, Annotation)
        )
        for plan in shard.samples:
            encodings, subjects, references, proofs = (
                take(record, list(itertools.islice(row_ids[record.table], len(PARTS[record](plan)))), columns)
                for record, columns in ((Encoding, None), (Subject, SUBJECT_TOLD), (Reference, None), (Proof, None))
            )
            pictures = {name: row.pop("image") for name, row in references.items()}
            references = {name: {**references[name], **proof} for name, proof in proofs.items()}
            clip, source = clips[plan.key], sources[plan.source_id]
            sample = make_sample(
                plan, clip, source, scores[plan.key], annotations[plan.key], subjects, references, self.made_with
            )
            yield sample, Encoding.from_row(encodings[plan.key]), pictures


class _Finder:
    """Finds the rows of samples that are asked for one after the other in the order in which they were named."""

    def __init__(self, workspace: Workspace, samples: Sequence[SamplePlan]) -> None:
        self._found = {
            record: workspace.locate(record, [key for sample in samples for key in keys(sample)])
            for record, keys in PARTS.items()
        }
        self._passed = dict.fromkeys(PARTS, 0)
        # A file that was moved or touched is another source, but its shards need not be written again for that.
        self._told = {
            source.source_id: fingerprint(told_of_source({name: getattr(source, name) for name in SOURCE_COLUMNS}))
            for source in videos_of(workspace)
        }

    def rows_of(self, samples: Sequence[SamplePlan]) -> tuple[dict[str, Rows], list[Any]]:
        """Where the next samples' rows lie, and all that the samples' bytes follow from."""
        rows = {}
        content: list[Any] = [
            [
                [sample.key, sample.subjects, sample.references, self._told[sample.source_id], *_negatives(sample)]
                for sample in samples
            ]
        ]
        for record, keys in PARTS.items():
            table, version = self._found[record]
            part = table.slice(self._passed[record], sum(len(keys(sample)) for sample in samples))
            self._passed[record] += part.num_rows
            rows[record.table] = Rows(version, part["_rowid"].to_numpy())
            if record is not Source:
                content.append(part["fingerprint"].to_pylist())
        return rows, content


def _negatives(sample: SamplePlan) -> Iterator[list[Any]]:
    for subject, found in zip(sample.subjects, sample.negatives, strict=False):
        yield [subject, [list(astuple(negative)) for negative in found]]


def _noted(rows: Iterable[dict[str, Any]], key: str, column: str, into: dict[str, str]) -> Iterator[dict[str, Any]]:
    """The rows as they come; what each has in a column is kept under its key."""
    for row in rows:
        into[row[key]] = sys.intern(row[column])
        yield row


def _add_sample(
    tar: tarfile.TarFile, shard: ShardSpec, sample: Sample, encoding: Encoding, pictures: Mapping[str, bytes]
) -> dict[str, Any]:
    members = [
        ("mp4", encoding.data),
        ("txt", sample.caption.encode()),
        ("json", sample.metadata.encode()),
        *((picture.name, pictures[picture.reference_id]) for picture in sample.pictures),
    ]
    return {
        "key": sample.key,
        "split": shard.split,
        "shard": f"{shard.name}.tar",
        "caption": sample.caption,
        "width": encoding.width,
        "height": encoding.height,
        "frames": encoding.frames,
        "fps": encoding.fps,
        "subjects": sample.subjects,
        "references": sample.references,
        "members": [_add_member(tar, sample.key, extension, data) for extension, data in members],
    }


def _add_member(tar: tarfile.TarFile, key: str, extension: str, data: bytes) -> dict[str, Any]:
    # Every header field besides name and size is a constant: the same samples make the same bytes.
    header = tarfile.TarInfo(f"{key}.{extension}")
    header.size = len(data)
    header.mode = 0o644
    header.mtime = 0
    offset = tar.offset + tarfile.BLOCKSIZE
    tar.addfile(header, io.BytesIO(data))
    return {"extension": extension, "offset": offset, "size": len(data)}


def _written(shard: ShardSpec) -> tuple[str, ...]:
    return "shards", NEXT, f"{shard.name}-{shard.fingerprint}.tar"


def _sidecar(shard: ShardSpec) -> tuple[str, ...]:
    return "shards", NEXT, f"{shard.name}-{shard.fingerprint}.json"
