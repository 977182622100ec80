"""The weights of a profile: which there are and under which terms, fetched from the model hub, and tried."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from curation.config import ModelsConfig
from curation.stats import literal
from models.errors import UserError
from models.registry import BackendConfig, Repository
from models.weights.catalogue import UNKNOWN, Entry, Terms, own_files, place, repositories, repository_entry, terms
from models.weights.stored import State, installed, read_records, standing

PRESENT, INSTALLED, NONE = "present", "installed", "-"
BAD: set[str] = {State.MISSING, State.CHANGED}
COMMERCIAL = {True: "yes", False: "NO", None: "-"}
COLOURS: dict[str, str] = {
    State.VERIFIED: "green",
    State.MISSING: "red",
    State.CHANGED: "red",
    State.UNVERIFIED: "yellow",
}


@dataclass(frozen=True, slots=True)
class Row:
    """One thing that a backend loads."""

    task: str
    backend: str
    source: str
    """A repository, a package, or a file of the user's own."""
    files: str
    """Patterns of the files that are read."""
    licence: str
    commercial: bool | None
    size: str
    where: str
    state: str
    """One of :class:`models.weights.stored.State`, or `present`, `installed`, `-` where nothing can be compared."""
    detail: str = ""


def rows(config: ModelsConfig, *, rehash: bool = False) -> list[Row]:
    """Everything that the chosen backends load, and how it stands; without the network."""
    return [
        row for task, backend in config.chosen().items() for row in _backend_rows(task, backend, config.root, rehash)
    ]


def show_weights(config: ModelsConfig, console: Console, *, rehash: bool = False) -> bool:
    """Print the table of :func:`rows`; returns whether nothing is missing or changed."""
    found = rows(config, rehash=rehash)
    table = Table()
    for column in ("task", "backend", "weights", "licence", "commercial", "size", "where", "state"):
        table.add_column(column, overflow="fold")
    for row in found:
        source = f"{row.source}\n{row.files}" if row.files else row.source
        commercial = literal(COMMERCIAL[row.commercial])
        commercial.stylize("red" if row.commercial is False else "")
        state = literal(f"{row.state}: {row.detail}" if row.detail else row.state)
        state.stylize(COLOURS.get(row.state, ""))
        plain = [literal(cell) for cell in (row.task, row.backend, source, row.licence)]
        table.add_row(*plain, commercial, literal(row.size), literal(row.where), state)
    console.print(table)
    bad = [row for row in found if row.state in BAD]
    if any(row.state in BAD and row.files for row in bad):
        console.print("`s2v models fetch` with the same config gets what the hub has", highlight=False)
    return not bad


def fetch_weights(
    config: ModelsConfig,
    console: Console,
    *,
    lock: Path | None = None,
    rehash: bool = False,
    endpoint: str | None = None,
) -> bool:
    """Fetch what the chosen backends read of the hub; one that fails is told, and the others go on.

    Args:
        config: names the backends and `models.root`.
        console: to tell what happens.
        lock: file of commits and sums: what it names is fetched so, and what it does not name is added to it.
        rehash: read what is there already and compare it with its record.
        endpoint: address of the hub; without one `HF_ENDPOINT`, or the public hub.

    Returns:
        Whether everything that the backends load is there.

    Raises:
        UserError: if the lock file cannot be read, or two backends want one repository at different revisions.
    """
    from models.weights.hub import fetch, locked_as, merged, read_lock, write_lock

    _quiet_unless_terminal()
    locks = read_lock(lock) if lock is not None else {}
    before = dict(locks)
    wanted = merged(repository for backend in config.chosen().values() for repository in repositories(backend))
    _tell_terms(config, console)
    if not wanted:
        console.print("this config needs nothing of the model hub")
    whole = True
    for repository in wanted:
        entry = repository_entry(repository.name)
        console.print(literal(f"{repository.name} ({_about(entry)}) -> {place(repository, config.root)}"))
        locked = locks.get(repository.name)
        if locked is not None and repository.revision not in (None, locked.commit):
            console.print(literal(f"  the lock file decides: {locked.commit}, not {repository.revision}"))
        try:
            done = fetch(repository, config.root, locked=locked, rehash=rehash, endpoint=endpoint)
        except UserError as error:
            console.print(literal(f"  {error}"), style="red")
            whole = False
            continue
        for path in done.removed:
            console.print(literal(f"  removed {path}, which this commit does not have"))
        came = f"{len(done.downloaded)} files fetched" if done.downloaded else "nothing to fetch"
        console.print(literal(f"  {came}; all {len(done.record.files)} are those of {done.record.commit}"))
        locks[repository.name] = locked_as(done.record, locked)
    if lock is not None and locks != before:
        write_lock(lock, locks)
        console.print(literal(f"{lock}: written"))
    for row in rows(config):
        if row.state in BAD and not row.files:
            console.print(literal(f"{row.backend}: {row.where} is not there: put your own file there"), style="red")
            whole = False
    return whole


def check_backends(config: ModelsConfig, console: Console) -> bool:
    """Load each chosen backend and call it once, each in a process of its own; returns whether all can do it."""
    from models.trial import run_apart

    table = Table("task", "backend", "load", "call", "device", "memory", "result")
    failed = 0
    chosen = config.chosen()
    for task, backend in chosen.items():
        if console.is_terminal:
            console.print(f"trying {task}: {backend.backend} ...", style="dim", highlight=False)
        try:
            trial = run_apart(task, backend, config.root)
        except UserError as error:
            failed += 1
            table.add_row(task, backend.backend, "", "", "", "", literal(str(error)), style="red")
            continue
        seconds = f"{trial.load_s:.1f} s", f"{trial.call_s:.2f} s"
        table.add_row(task, backend.backend, *seconds, trial.device, f"{trial.memory_gb:.2f} GB", "works")
    console.print(table)
    if failed:
        console.print(f"{failed} of {len(chosen)} backends do not work", style="red", highlight=False)
    return not failed


def _backend_rows(task: str, config: BackendConfig, root: Path, rehash: bool) -> Iterator[Row]:
    told = {term.source: term for term in terms(config)}
    if not told:
        yield Row(task, config.backend, "no weights", "", NONE, None, NONE, NONE, NONE)
    for repository in repositories(config):
        yield _repository_row(task, config, repository, told[repository.name], root, rehash)
    for package in config.packages:
        found = installed(package)
        state = INSTALLED if found else State.MISSING
        term = told[package]
        where = f"{package} {found}" if found else "pip install " + package
        yield Row(task, config.backend, "in its package", "", term.licence, term.commercial, NONE, where, state)
    for path in own_files(config, root):
        state, size = (PRESENT, _gigabytes(bytes_of(path))) if path.exists() else (State.MISSING, NONE)
        yield Row(task, config.backend, "your own file", "", UNKNOWN, None, size, str(path), state)


def _repository_row(
    task: str, config: BackendConfig, repository: Repository, term: Terms, root: Path, rehash: bool
) -> Row:
    folder = place(repository, root)
    stands = standing(repository, config, root, rehash=rehash)
    entry = repository_entry(repository.name)
    record = read_records(folder).get(repository.name)
    licence = record.licence if term.licence == UNKNOWN and record is not None and record.licence else term.licence
    size = _gigabytes(stands.size) if stands.size else _about(entry)
    return Row(
        task=task,
        backend=config.backend,
        source=repository.name,
        files=" ".join(repository.files),
        licence=licence,
        commercial=term.commercial,
        size=size,
        where=str(folder),
        state=stands.state,
        detail=stands.detail,
    )


def _tell_terms(config: ModelsConfig, console: Console) -> None:
    told: set[str] = set()
    for task, backend in config.chosen().items():
        for term in terms(backend):
            if term.source in told or (term.commercial and not term.note):
                continue
            told.add(term.source)
            use = ", NOT for commercial use" if term.commercial is False else ""
            note = f" ({term.note})" if term.note else ""
            style = "red" if term.commercial is False else None
            console.print(literal(f"{task}: {term.source}: licence {term.licence}{use}{note}"), style=style)


def _about(entry: Entry | None) -> str:
    return f"about {entry.gb:g} GB" if entry is not None and entry.gb is not None else "size unknown"


def bytes_of(path: Path) -> int:
    """Size of a file, or of all files in a folder."""
    files: Iterable[Path] = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"


def _quiet_unless_terminal() -> None:
    """A bar that is redrawn is for a terminal, not for a log."""
    if not sys.stderr.isatty():
        from huggingface_hub.utils import disable_progress_bars

        disable_progress_bars()
