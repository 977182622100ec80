"""Records of which only a few columns matter."""

from __future__ import annotations

import typing
from dataclasses import fields
from typing import Any

ZEROS: dict[Any, Any] = {str: "", int: 0, float: 0.0, bool: False, bytes: b""}


def blank(cls: Any, **values: Any) -> Any:
    """A record of zeros and nothings but for these values."""
    hints = typing.get_type_hints(cls)
    empty = {
        field.name: [] if typing.get_origin(hints[field.name]) is list else ZEROS.get(hints[field.name])
        for field in fields(cls)
    }
    return cls(**{**empty, **values})
