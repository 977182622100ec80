"""Pairs of subjects that somebody has looked at: which are one individual and which are not."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from models.errors import UserError

COLUMNS = ("a", "b", "same")
WORDS = {"1": True, "true": True, "same": True, "0": False, "false": False, "different": False}


class LabelError(UserError, ValueError):
    """A file of labelled pairs cannot be used; the message names the file and the line."""


@dataclass(frozen=True, slots=True)
class LabelledPair:
    """Two subjects, and whether they are one individual."""

    a: str
    b: str
    same: bool


def read_pairs(path: Path, categories: Mapping[str, str]) -> list[LabelledPair]:
    """The pairs of a CSV file with the columns ``a``, ``b`` (subject ids) and ``same``.

    Args:
        path: of the file.
        categories: category of every subject that there is.

    Raises:
        LabelError: if the file cannot be read or holds no pairs, or a line lacks a value, names an unknown subject,
            one subject twice, subjects of two categories, the pair of an earlier line, or says neither same nor
            different.
    """
    try:
        # Spreadsheets put a mark before the first letter.
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, skipinitialspace=True)
            names = [name.strip().lower() for name in reader.fieldnames or []]
            if lacking := [name for name in COLUMNS if name not in names]:
                raise LabelError(f"{path}, line 1: no column {' and no column '.join(lacking)} (a,b,same are needed)")
            reader.fieldnames = names
            pairs, lines = [], dict[frozenset[str], int]()
            for row in reader:
                try:
                    pair = _pair(row, categories)
                    if earlier := lines.get(frozenset((pair.a, pair.b))):
                        raise ValueError(f"the pair of line {earlier} again")
                except ValueError as error:
                    raise LabelError(f"{path}, line {reader.line_num}: {error}") from None
                lines[frozenset((pair.a, pair.b))] = reader.line_num
                pairs.append(pair)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise LabelError(f"{path} cannot be read as a CSV file: {error}") from error
    if not pairs:
        raise LabelError(f"{path} holds no pairs")
    return pairs


def _pair(row: Mapping[str, str | None], categories: Mapping[str, str]) -> LabelledPair:
    values = {name: (row[name] or "").strip() for name in COLUMNS}
    if empty := [name for name in COLUMNS if not values[name]]:
        raise ValueError(f"no value for {' and '.join(empty)}")
    same = WORDS.get(values["same"].lower())
    if same is None:
        raise ValueError(f"same is {values['same']!r}, and must be 1, true, same, 0, false or different")
    for name in ("a", "b"):
        if values[name] not in categories:
            raise ValueError(f"{name}: there is no subject {values[name]!r}")
    if values["a"] == values["b"]:
        raise ValueError("a subject with itself")
    kinds = categories[values["a"]], categories[values["b"]]
    if kinds[0] != kinds[1]:
        raise ValueError(f"{kinds[0]} and {kinds[1]} are never compared")
    return LabelledPair(values["a"], values["b"], same)
