"""What is known of the weights that backends read: licence, commercial use, size, and the commit to fetch.

The facts stand in ``catalogue.yaml``. Nothing here touches the network or the weights themselves.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import yaml
from pydantic import BaseModel, ConfigDict, Field

from models.registry import BackendConfig, Repository

UNKNOWN = "unknown"
"""The licence of what the catalogue does not know: a repository of the user's choice, or the user's own files."""

COMMIT = re.compile(r"[0-9a-f]{40}")
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


class Entry(BaseModel):
    """What the catalogue says of one repository or package."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    licence: str
    """SPDX identifier, or the name that its authors give it."""
    commercial: bool
    """Whether the licence lets one use the weights commercially."""
    gb: float | None = Field(None, gt=0)
    """What a fetch takes, in GB, about."""
    revision: str | None = Field(None, pattern=f"^{COMMIT.pattern}$")
    """Commit to fetch."""
    gated: bool = False
    """Whether the hub gives it only to accounts that accepted its terms."""
    note: str | None = None
    """What else to know before using it."""


class _Catalogue(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    repositories: dict[str, Entry]
    packages: dict[str, Entry]


@dataclass(frozen=True, slots=True)
class Terms:
    """Under which terms a backend's weights come."""

    source: str
    """Name of the repository on the hub, of the Python package, or path of the user's own file under `models.root`."""
    licence: str
    """As in the catalogue, or ``unknown``."""
    commercial: bool | None
    """Whether commercial use is allowed; nothing if that is unknown."""
    note: str | None = None
    """What else to know before using it."""


def repository_entry(name: str) -> Entry | None:
    """What the catalogue says of a repository on the hub."""
    return _catalogue().repositories.get(name)


def package_entry(name: str) -> Entry | None:
    """What the catalogue says of a Python package."""
    return _catalogue().packages.get(name)


def terms(config: BackendConfig) -> list[Terms]:
    """The terms of everything that a backend loads: repositories, packages, the user's own files; empty without any."""
    return [
        *(_terms(repository.name, repository_entry(repository.name)) for repository in repositories(config)),
        *(_terms(package, package_entry(package)) for package in config.packages),
        *(_terms(str(path), None) for path in own_files(config, Path())),
    ]


def repositories(config: BackendConfig) -> list[Repository]:
    """The repositories of a backend that the hub can have: a path of the user's own is none."""
    return [repository for repository in config.repositories() if _HUB_NAME.fullmatch(repository.name)]


def place(repository: Repository, root: Path) -> Path:
    """The folder where a repository's files lie."""
    return root / (repository.folder or repository.name)


def own_files(config: BackendConfig, root: Path) -> Iterator[Path]:
    """Files and folders that a backend loads and that no repository holds."""
    folders = [place(repository, root) for repository in repositories(config)]
    for path in config.weights(root):
        if not any(path.is_relative_to(folder) for folder in folders):
            yield path


def _terms(source: str, entry: Entry | None) -> Terms:
    if entry is None:
        return Terms(source, UNKNOWN, None)
    return Terms(source, entry.licence, entry.commercial, entry.note)


@cache
def _catalogue() -> _Catalogue:
    return _Catalogue.model_validate(yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8")))
