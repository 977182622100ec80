"""The last step: samples into WebDataset shards, with an index of every member and a manifest of the whole.

Shards are written beside the published ones and take their place only when all are there, the manifest last. A shard's
bytes follow from its samples alone, so one that is already published unchanged is kept.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import tarfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from curation.config import fingerprint
from curation.guard import Item, Stage
from curation.shards import INDEX_SCHEMA, read_index, read_manifest
from curation.steps import (
    REFERENCE_NUMBERS,
    REVISION,
    SUBJECT_NUMBERS,
    Annotate,
    Each,
    Encode,
    References,
    Split,
    Step,
    kept_ids,
    row_ids,
    videos_of,
)
from stages.pair import same_individuals
from stages.records import Annotation, Clip, Encoding, Record, Reference, Score, Subject
from stages.sample import SampleSpec, plan_samples, split_by_identity

NEXT = ".next"
"""Folder of shards that are written but not yet published."""

SHARD_NAME = re.compile(r"(train|val)-\d{6,}\.tar")


@dataclass(frozen=True, slots=True)
class PlannedSample:
    """A sample and where its parts lie in their tables."""

    spec: SampleSpec
    encoding: int
    pictures: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ShardSpec:
    """A shard to be written. ``versions`` are those of the tables of encodings and references."""

    name: str
    split: str
    fingerprint: str
    samples: list[PlannedSample]
    versions: tuple[int, int]


class Pack(Step):
    """Everything that passed into ``shards/``."""

    name = "pack"

    @cached_property
    def fingerprint(self) -> str:
        return fingerprint("pack", REVISION["pack"], self.config.pack)

    @cached_property
    def shards(self) -> list[ShardSpec]:
        """All the shards that the tables and the config make."""
        subjects = self._passing(Subject, SUBJECT_NUMBERS, "subject")
        encodings = {row["clip_id"]: row["fingerprint"] for row in self._rows(Encoding, ["clip_id", "fingerprint"])}
        samples = plan_samples(
            self._clips(encodings),
            subjects,
            self._passing(Reference, REFERENCE_NUMBERS, "reference"),
            self.config.pack.max_subjects,
        )
        videos = {row["clip_id"]: row["video_id"] for row in self._rows(Clip, ["clip_id", "video_id"])}
        val = split_by_identity(
            {sample.key: videos[sample.key] for sample in samples},
            same_individuals(subjects, self.config.references.cross_clip),
            self.config.pack.val_share,
        )
        return [
            shard
            for split in ("train", "val")
            for shard in self._cut(
                split, [sample for sample in samples if (sample.key in val) == (split == "val")], encodings
            )
        ]

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
        entries, index = [], []
        for shard in shards:
            if self._is_written(shard):
                with self.workspace.filesystem.open(self.workspace.path(*_sidecar(shard)), "r") as file:
                    written = json.load(file)
                entries.append(written["entry"])
                index.extend(written["samples"])
            elif published.get(f"{shard.name}.tar", {}).get("fingerprint") == shard.fingerprint:
                entries.append(published[f"{shard.name}.tar"])
            else:
                return
        kept = {entry["file"] for entry in entries} - {row["shard"] for row in index}
        index.extend(row for row in read_index(self.workspace.path("shards")) if row["shard"] in kept)
        self._publish(shards, entries, sorted(index, key=lambda row: (row["shard"], row["key"])))

    def _publish(self, shards: Sequence[ShardSpec], entries: list[dict[str, Any]], index: list[dict[str, Any]]) -> None:
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
            pq.write_table(pa.Table.from_pylist(index, schema=INDEX_SCHEMA), file)
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

    def _write_manifest(self, entries: Sequence[dict[str, Any]]) -> None:
        with self.workspace.writing("shards", "manifest.json") as file:
            file.write_text(json.dumps(self._manifest(entries), indent=1, sort_keys=True, ensure_ascii=False) + "\n")

    def _manifest(self, entries: Sequence[dict[str, Any]]) -> dict[str, Any]:
        steps = (Split, Annotate, References, Encode, Pack)
        samples: Counter[str] = Counter()
        for entry in entries:
            samples[entry["split"]] += entry["samples"]
        return {
            "format": "webdataset",
            "config": self.config.model_dump(mode="json", exclude={"runtime"}),
            "fingerprints": {step.name: step(self.config, self.workspace).fingerprint for step in steps},
            "samples": {"train": samples["train"], "val": samples["val"]},
            "shards": list(entries),
        }

    def _is_written(self, shard: ShardSpec) -> bool:
        return self.workspace.exists(*_sidecar(shard)) and self.workspace.exists(*_written(shard))

    def _rows(self, record: type[Record], columns: Sequence[str] | None = None) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = self.workspace.read(record, columns).to_pylist()
        return rows

    def _passing(self, record: type[Record], columns: Sequence[str] | None, kind: str) -> list[dict[str, Any]]:
        kept = kept_ids(self.workspace, kind)
        return [row for row in self._rows(record, columns) if row[record.key] in kept]

    def _clips(self, encodings: dict[str, str]) -> Iterator[tuple[Any, Any, Any, Any]]:
        sources = {
            source.video_id: {name: getattr(source, name) for name in type(source).schema().names}
            for source in videos_of(self.workspace)
        }
        scores = {row["clip_id"]: row for row in self._rows(Score)}
        annotations = {row["clip_id"]: row for row in self._rows(Annotation)}
        for clip in self._passing(Clip, None, "clip"):
            if clip["clip_id"] in encodings and clip["clip_id"] in annotations:
                yield clip, sources[clip["video_id"]], scores[clip["clip_id"]], annotations[clip["clip_id"]]

    def _cut(self, split: str, samples: Sequence[SampleSpec], encodings: dict[str, str]) -> Iterator[ShardSpec]:
        clip_rows, clip_version = row_ids(self.workspace, Encoding)
        picture_rows, picture_version = row_ids(self.workspace, Reference)
        size = self.config.pack.shard_samples
        for number, start in enumerate(range(0, len(samples), size)):
            chosen = samples[start : start + size]
            yield ShardSpec(
                name=f"{split}-{number:06d}",
                split=split,
                fingerprint=fingerprint(
                    REVISION["pack"], [sample.fingerprint(encodings[sample.key]) for sample in chosen]
                ),
                samples=[
                    PlannedSample(
                        sample,
                        clip_rows[sample.key],
                        tuple(picture_rows[picture.reference_id] for picture in sample.pictures),
                    )
                    for sample in chosen
                ],
                versions=(clip_version, picture_version),
            )

    def _write(self, shard: ShardSpec) -> None:
        with self.workspace.writing(*_written(shard)) as file:
            with tarfile.open(file, "w", format=tarfile.USTAR_FORMAT) as tar:
                samples = [self._add_sample(tar, shard, sample) for sample in shard.samples]
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

    def _add_sample(self, tar: tarfile.TarFile, shard: ShardSpec, sample: PlannedSample) -> dict[str, Any]:
        clip_version, picture_version = shard.versions
        (encoding,) = self.workspace.take(Encoding, [sample.encoding], clip_version)
        pictures = {
            reference.reference_id: reference.image
            for reference in self.workspace.take(Reference, sample.pictures, picture_version)
        }
        spec = sample.spec
        members = [
            ("mp4", encoding.data),
            ("txt", spec.caption.encode()),
            ("json", spec.metadata.encode()),
            *((picture.name, pictures[picture.reference_id]) for picture in spec.pictures),
        ]
        return {
            "key": spec.key,
            "split": shard.split,
            "shard": f"{shard.name}.tar",
            "caption": spec.caption,
            "width": encoding.width,
            "height": encoding.height,
            "frames": encoding.frames,
            "fps": encoding.fps,
            "subjects": spec.subjects,
            "references": len(spec.pictures),
            "members": [_add_member(tar, spec.key, extension, data) for extension, data in members],
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
