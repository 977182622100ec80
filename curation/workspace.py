"""A workspace: one folder or object-store prefix that holds the Lance tables, and the shards made from them.

The tables are the ledger of the work. A step's workers write *fragments* (data files that no table knows yet);
the driver alone commits them. So there is one writer, and a table changes only from one whole state to the next.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import fsspec
import pyarrow as pa
import pyarrow.compute as pc

import curation.late_pandas  # noqa: F401 - before Lance, which makes arrays

import lance  # isort: skip
from lance.fragment import FragmentMetadata, write_fragments  # isort: skip

from models.errors import UserError
from stages.records import RECORDS, Record

R = TypeVar("R", bound=Record)

ROWS_PER_DELETE = 2000
ROWS_PER_BATCH = 256
READ_AHEAD = 32 * 2**20
"""Bytes of a table that may be read before they are asked for."""


class WorkspaceError(UserError, RuntimeError):
    """The workspace cannot be used: it is missing, of another schema, or another run holds it."""


@dataclass(frozen=True)
class Workspace:
    """Tables and files under one URI.

    Args:
        uri: a local path, or any URI that both fsspec and Lance understand (``s3://...``, ``gs://...``).
    """

    uri: str

    @classmethod
    def open(cls, uri: str | Path, *, create: bool = False) -> Workspace:
        """Open a workspace; with ``create`` make it and its empty tables if they are not there.

        Raises:
            WorkspaceError: if there is none at ``uri`` (without ``create``) or none can be made there, or if its tables
                have another schema.
        """
        text = str(uri)
        workspace = cls(text if "://" in text else str(Path(text).expanduser().resolve()))
        if not create and not workspace.exists("tables"):
            raise WorkspaceError(f"{text} is no workspace: it has no folder `tables`. `s2v curate` makes one.")
        if create:
            try:
                workspace._make_tables()
            except OSError as error:
                raise WorkspaceError(f"{text} cannot be made a workspace: {error}") from error
        workspace._check_tables()
        return workspace

    def path(self, *parts: str) -> str:
        """URI of something inside the workspace."""
        return "/".join([self.uri.rstrip("/"), *parts])

    @cached_property
    def filesystem(self) -> fsspec.AbstractFileSystem:
        """The file system that the workspace lies on."""
        return fsspec.core.url_to_fs(self.uri)[0]

    @property
    def is_local(self) -> bool:
        """Whether the workspace is a folder of this machine (or of a file system mounted here)."""
        return "://" not in self.uri

    def exists(self, *parts: str) -> bool:
        """Whether a file or folder is there."""
        return bool(self.filesystem.exists(self.path(*parts)))

    def table(self, record: type[Record]) -> lance.LanceDataset:
        """The newest version of a record's table."""
        return lance.dataset(self._table_uri(record))

    def read(self, record: type[R], columns: Sequence[str] | None = None, where: str | None = None) -> pa.Table:
        """Rows of a table as Arrow, optionally only some columns and those that fulfil a SQL condition."""
        return self.table(record).to_table(columns=list(columns) if columns is not None else None, filter=where)

    def batches(
        self, record: type[Record], columns: Sequence[str] | None = None, where: str | None = None
    ) -> Iterator[pa.RecordBatch]:
        """What :meth:`read` returns, in order and a few rows at a time."""
        scanner = self.table(record).scanner(
            columns=list(columns) if columns is not None else None,
            filter=where,
            batch_size=ROWS_PER_BATCH,
            batch_readahead=1,
            io_buffer_size=READ_AHEAD,
            scan_in_order=True,
        )
        yield from scanner.to_batches()

    def rows(
        self, record: type[Record], columns: Sequence[str] | None = None, where: str | None = None
    ) -> Iterator[dict[str, Any]]:
        """What :meth:`read` returns as dicts, in order: for tables of any length, as only a few are there at a time."""
        for batch in self.batches(record, columns, where):
            yield from batch.to_pylist()

    def records(self, record: type[R], where: str | None = None) -> list[R]:
        """Rows of a table as records."""
        return [record.from_row(row) for row in self.rows(record, where=where)]

    def column(self, record: type[Record], name: str) -> list[Any]:
        """One column of a table."""
        values: list[Any] = self.read(record, [name]).column(name).to_pylist()
        return values

    def write_fragments(self, record: type[R], rows: Sequence[R]) -> str:
        """Write rows as data files that no table knows yet. Returns what :meth:`commit` wants, as JSON."""
        fragments = write_fragments(record.to_table(rows), self._table_uri(record), schema=record.schema())
        return json.dumps([fragment.to_json() for fragment in fragments])

    def commit(self, record: type[Record], fragments: Iterable[str]) -> None:
        """Make fragments part of their table, in one step."""
        metadata = [FragmentMetadata.from_json(json.dumps(one)) for text in fragments for one in json.loads(text)]
        if metadata:
            dataset = self.table(record)
            lance.LanceDataset.commit(dataset.uri, lance.LanceOperation.Append(metadata), read_version=dataset.version)

    def append(self, rows: Sequence[Record]) -> None:
        """Add rows (all of one type) from the driver itself."""
        if rows:
            self.commit(type(rows[0]), [self.write_fragments(type(rows[0]), rows)])

    def replace(self, record: type[R], rows: Sequence[R]) -> None:
        """Put these rows in place of all that a table holds, in one step."""
        lance.write_dataset(record.to_table(rows), self._table_uri(record), schema=record.schema(), mode="overwrite")

    def delete(self, record: type[Record], column: str, values: Iterable[str]) -> int:
        """Delete the rows whose column holds one of these values; returns how many there were."""
        dataset = self.table(record)
        before = dataset.count_rows()
        wanted = sorted(set(values))
        for start in range(0, len(wanted), ROWS_PER_DELETE):
            quoted = ", ".join(
                "'" + value.replace("'", "''") + "'" for value in wanted[start : start + ROWS_PER_DELETE]
            )
            dataset.delete(f"{column} IN ({quoted})")
        return int(before - dataset.count_rows())

    def locate(self, record: type[Record], keys: Sequence[str]) -> tuple[pa.Table, int]:
        """Find the rows with these keys: ``_rowid`` and ``fingerprint``, in order, and the version they hold for.

        Raises:
            KeyError: if one is not there.
        """
        dataset = self.table(record)
        table = dataset.to_table(columns=[record.key, "fingerprint"], with_row_id=True)
        places = pc.index_in(pa.array(keys, pa.string()), value_set=table[record.key].combine_chunks())
        if places.null_count:
            raise KeyError(f"table {record.table}: no row {keys[places.is_null().index(True).as_py()]}")
        return table.select(["_rowid", "fingerprint"]).take(places), int(dataset.version)

    def take(self, record: type[R], row_ids: Sequence[int], version: int) -> list[R]:
        """Read rows by the ids that a scan of this version of the table gave them, without a search."""
        return [record.from_row(row) for row in self.take_rows(record, row_ids, version)]

    def take_rows(
        self, record: type[Record], row_ids: Sequence[int], version: int, columns: Sequence[str] | None = None
    ) -> list[dict[str, Any]]:
        """As :meth:`take`, as dicts with only these columns."""
        dataset = lance.dataset(self._table_uri(record), version=version)
        table = dataset._take_rows(list(row_ids), columns=list(columns) if columns is not None else None)
        rows: list[dict[str, Any]] = table.to_pylist()
        return rows

    def tidy(self) -> None:
        """Merge small fragments and remove files that no version of a table refers to.

        Only while no run is active: a fragment that a worker has just written looks like such a file.
        """
        for record in RECORDS.values():
            dataset = self.table(record)
            dataset.optimize.compact_files()
            dataset.cleanup_old_versions(older_than=timedelta(0), delete_unverified=True)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the workspace for one run; a killed run lets go by itself.

        On object stores there is no such lock: there, Lance refuses the second of two conflicting commits.

        Raises:
            WorkspaceError: if another run holds it.
        """
        if not self.is_local:
            yield
            return
        with Path(self.path(".lock")).open("a+") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                lock.seek(0)
                raise WorkspaceError(
                    f"another run (process {lock.read().strip() or 'unknown'}) is working on {self.uri}; "
                    "wait for it to end, or choose another --workspace"
                ) from None
            lock.truncate(0)
            lock.write(str(os.getpid()))
            lock.flush()
            yield

    @contextlib.contextmanager
    def writing(self, *parts: str) -> Iterator[Path]:
        """A local file to write; it appears in the workspace, whole, when the block ends without an error."""
        target = self.path(*parts)
        self.filesystem.makedirs(target.rsplit("/", 1)[0], exist_ok=True)
        if self.is_local:
            temporary = Path(f"{target}.{os.getpid()}.tmp")
            try:
                yield temporary
                temporary.replace(target)
            finally:
                temporary.unlink(missing_ok=True)
        else:
            with tempfile.TemporaryDirectory() as folder:
                temporary = Path(folder) / parts[-1]
                yield temporary
                with temporary.open("rb") as source, self.filesystem.open(target, "wb") as sink:
                    shutil.copyfileobj(source, sink)

    def _table_uri(self, record: type[Record]) -> str:
        return self.path("tables", f"{record.table}.lance")

    def _has_table(self, record: type[Record]) -> bool:
        return self.exists("tables", f"{record.table}.lance", "_versions")

    def _make_tables(self) -> None:
        self.filesystem.makedirs(self.path("tables"), exist_ok=True)
        for record in RECORDS.values():
            if not self._has_table(record):
                lance.write_dataset(record.schema().empty_table(), self._table_uri(record), schema=record.schema())

    def _check_tables(self) -> None:
        for record in RECORDS.values():
            if not self._has_table(record):
                raise WorkspaceError(f"{self.uri} lacks the table `{record.table}`. `s2v curate` makes it.")
            if self.table(record).schema != record.schema():
                raise WorkspaceError(
                    f"{self._table_uri(record)} was made by another version of this software: its columns differ "
                    f"({_difference(self.table(record).schema, record.schema())}). Choose a new --workspace."
                )


def among(column: str, values: Iterable[str]) -> str:
    """SQL for: the column holds one of these values."""
    quoted = ", ".join("'" + value.replace("'", "''") + "'" for value in sorted(values))
    return f"{column} IN ({quoted})" if quoted else "false"


def _difference(found: pa.Schema, wanted: pa.Schema) -> str:
    extra, missing = set(found.names) - set(wanted.names), set(wanted.names) - set(found.names)
    return f"unknown: {sorted(extra)}, missing: {sorted(missing)}" if extra or missing else "types changed"
