"""Configs: sections that are checked as a whole, read from YAML with ``key=value`` overrides on top."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from models.errors import UserError

CONFIG_FOLDER = Path(__file__).resolve().parent.parent / "configs"


class ConfigError(UserError, ValueError):
    """A config file or an override that cannot be used; the message names the key."""


class Section(BaseModel):
    """A part of a config: unknown keys are errors, values never change, and field docstrings become its reference."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


S = TypeVar("S", bound=Section)


def load(section: type[S], file: Path, overrides: Sequence[str] = ()) -> S:
    """Read a YAML file and apply ``dotted.key=value`` overrides; values are read as YAML.

    Raises:
        ConfigError: if the file is missing or no YAML, or a key or value is not valid; the message says which.
    """
    return _checked(section, _overridden(_read_yaml(file), overrides), f"{file}: ")


def change(values: S, overrides: Sequence[str]) -> S:
    """The same section with ``dotted.key=value`` overrides applied.

    Raises:
        ConfigError: for a key that does not exist or a value that does not fit.
    """
    return _checked(type(values), _overridden(values.model_dump(), overrides), "")


def _checked(section: type[S], raw: dict[str, Any], where: str) -> S:
    try:
        return section.model_validate(raw)
    except ValidationError as error:
        raise ConfigError(where + "; ".join(_explain(detail) for detail in error.errors())) from None


def _overridden(raw: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals or not key:
            raise ConfigError(f"{override!r} is no override: write key=value, such as split.max_s=6")
        _assign(raw, key.split("."), _parse(override, value))
    return raw


def _read_yaml(file: Path) -> dict[str, Any]:
    try:
        raw = yaml.safe_load(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        ships = sorted(str(path.relative_to(CONFIG_FOLDER.parent)) for path in CONFIG_FOLDER.rglob("*.yaml"))
        raise ConfigError(f"{file} does not exist; the configs that ship are {', '.join(ships)}") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{file} cannot be read as YAML: {error}") from None
    if not isinstance(raw, dict):
        raise ConfigError(f"{file} holds no mapping of sections")
    return raw


def _parse(override: str, value: str) -> Any:
    try:
        return yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise ConfigError(f"{override!r}: the value is no YAML: {error}") from None


def _assign(raw: dict[str, Any], keys: Sequence[str], value: Any) -> None:
    *parents, last = keys
    for key in parents:
        child = raw.get(key)
        if not isinstance(child, dict):
            child = raw[key] = {}
        raw = child
    raw[last] = value


def _explain(detail: Any) -> str:
    where = ".".join(str(part) for part in detail["loc"])
    if detail["type"] == "extra_forbidden":
        return f"{where}: there is no such key"
    message = detail["msg"].removeprefix("Value error, ")
    return f"{where}: {message}" if where else message
