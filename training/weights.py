"""Folders of weights in the format of diffusers and transformers: are they there, and which ones are they."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from models.pretrained import UnusableWeightsError
from models.registry import MissingWeightsError


def require(folder: Path, *, file: str, setting: str, source: str) -> None:
    """Raise :class:`MissingWeightsError` where ``folder / file`` is missing.

    ``setting`` is the config key that points at the folder's parent, ``source`` a repository of the Hugging Face Hub
    that has the folder.
    """
    if not (folder / file).is_file():
        raise MissingWeightsError(
            f"{folder / file} does not exist. Point `{setting}` (now {str(folder.parent)!r}) at a folder that holds "
            f"{folder.name}/{file}, or fetch it: hf download {source} --include '{folder.name}/*' "
            f"--local-dir {folder.parent}"
        )


def read_settings(folder: Path) -> dict[str, Any]:
    """The folder's config.json. Raises :class:`UnusableWeightsError` if it is none."""
    try:
        settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except ValueError as error:
        raise UnusableWeightsError(f"{folder / 'config.json'} is no JSON: {error}; fetch it again") from None
    if not isinstance(settings, dict):
        raise UnusableWeightsError(f"{folder / 'config.json'} holds no settings; fetch it again")
    return settings


def fingerprint(settings: Mapping[str, Any], folders: Iterable[Path] = ()) -> str:
    """16 hex digits that change with any setting and any byte of the folders' files, but not with where they lie."""
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for folder in folders:
        for file in sorted(path for path in folder.rglob("*") if path.suffix in _CONTENT and path.is_file()):
            status = file.stat()
            digest.update(f"{folder.name}/{file.relative_to(folder).as_posix()}\0".encode())
            digest.update(_file_digest(file.resolve(), status.st_mtime_ns, status.st_size))
    return digest.hexdigest()[:16]


# Not the notes and download records that may lie beside them.
_CONTENT = frozenset({".json", ".safetensors", ".bin", ".model"})


@cache
def _file_digest(path: Path, mtime_ns: int, size: int) -> bytes:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").digest()
