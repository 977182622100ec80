"""The base of every section of a config."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """A part of a config: unknown keys are errors, values never change, and field docstrings become its reference."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)
