"""What networks cost to run, as counted: operations per item, and memory for the weights.

The figures stand in ``costs.yaml``, which ``benchmarks/model_costs.py`` writes.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

import yaml


@dataclass(frozen=True, slots=True)
class Cost:
    """What one repository's network takes."""

    per: Literal["picture", "clip", "reference"]
    """What ``tflop`` is of."""
    tflop: float
    """Operations in units of 1e12, one multiplication and addition being two."""
    gb: float
    """GB of weights in bf16."""
    following: float = 0.0
    """Operations that following two subjects through a clip adds to those of each picture (backend ``sam2_video``)."""


def cost_of(repository: str) -> Cost | None:
    """The cost of a repository's network, by its name on the model hub; nothing where none was counted."""
    return _costs().get(repository)


@cache
def _costs() -> dict[str, Cost]:
    entries = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))
    return {repository: Cost(**entry) for repository, entry in entries.items()}
