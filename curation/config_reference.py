"""Writes the config reference (docs/config.md) from the config classes: ``python -m curation.config_reference``."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from curation.config import Config, StepRuntime
from models.registry import BACKENDS, BackendConfig, backend_class

INTRODUCTION = """# Config reference

A config is a YAML file with the sections below; `configs/` has complete ones. Any value can also be given on the
command line as `section.key=value`, the value read as YAML. Unknown keys are errors. This page is made from the config
classes by `make docs`.
"""


def reference() -> str:
    """The whole page as Markdown."""
    lines = [INTRODUCTION, *sections(Config)]
    lines.append("## Backends\n\nOptions that stand beside `backend: name` in the section `models`.\n")
    for task, names in BACKENDS.items():
        for name in names:
            lines.extend(_backend(task, name))
    return "\n".join(lines).rstrip() + "\n"


def sections(config: type[BaseModel]) -> Iterator[str]:
    """Markdown of every section of a config class: its values first, then a heading and a table for each section."""
    values = {name: field for name, field in config.model_fields.items() if not _sections_of(field.annotation)}
    if values:
        yield from _table(values)
    for name, field in config.model_fields.items():
        chosen = _sections_of(field.annotation)
        for section in chosen:
            backend = section.model_fields.get("backend") if len(chosen) > 1 else None
            yield from _section(f"{name}: {{backend: {backend.default}}}" if backend else name, section)


def _sections_of(annotation: Any) -> list[type[BaseModel]]:
    """The sections that a value may be: one, none, or those to choose from."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if get_origin(annotation) in (Annotated, UnionType, Union):
        return [section for part in get_args(annotation) for section in _sections_of(part)]
    return []


def _section(name: str, section: type[BaseModel]) -> Iterator[str]:
    yield f"## `{name}`\n\n{_first_paragraph(section)}\n"
    yield from _table(section.model_fields)
    for child, member in section.model_fields.items():
        inner = member.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel) and not issubclass(inner, BackendConfig):
            yield f"### `{name}.{child}`\n\n{_first_paragraph(inner)}\n"
            yield from _table(inner.model_fields)


def _backend(task: str, name: str) -> Iterator[str]:
    yield f"### `models.{task}: {{backend: {name}}}`\n\n{_first_paragraph(backend_class(task, name))}\n"
    fields = {key for key in backend_class(task, name).Config.model_fields if key != "backend"}
    if fields:
        yield from _table(backend_class(task, name).Config.model_fields)


def _table(fields: Mapping[str, FieldInfo]) -> Iterator[str]:
    yield "| key | type | default | meaning |\n|---|---|---|---|"
    for name, field in fields.items():
        if name == "backend":
            continue
        yield f"| `{name}` | {_type(field)} | {_default(field)} | {_line(field.description or '')} |"
    yield ""


def _type(field: FieldInfo) -> str:
    bounds = [
        f"{sign} {getattr(limit, attribute):g}"
        for limit in field.metadata
        for attribute, sign in (("ge", ">="), ("gt", ">"), ("le", "<="), ("lt", "<"))
        if getattr(limit, attribute, None) is not None
    ]
    return ", ".join([_type_name(field.annotation), *bounds])


def _type_name(annotation: Any) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _type_name(arguments[0])
    if origin is Literal:
        return " \\| ".join(f"`{value}`" for value in arguments)
    if origin is UnionType or str(origin) == "typing.Union":
        return " or ".join(_type_name(part) for part in arguments)
    if annotation is type(None):
        return "null"
    if annotation is Path:
        return "path"
    if isinstance(annotation, type) and issubclass(annotation, BackendConfig):
        return "backend"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "section"
    if origin in (list, tuple):
        return f"list of {_type_name(arguments[0])}"
    if origin is dict:
        return "mapping"
    return str(getattr(annotation, "__name__", annotation))


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    default = field.get_default(call_default_factory=True)
    if isinstance(default, BaseModel):
        return "see below" if type(default) is not StepRuntime else f"`{_plain(default)}`"
    return f"`{_plain(default)}`"


def _plain(value: Any) -> str:
    if isinstance(value, BaseModel):
        value = value.model_dump(mode="json", exclude_defaults=True)
    return json.dumps(str(value) if isinstance(value, Path) else value).replace("|", "\\|")


def _first_paragraph(section: type) -> str:
    return _line((section.__doc__ or "").strip().split("\n\n")[0])


def _line(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


if __name__ == "__main__":
    print(reference(), end="")
