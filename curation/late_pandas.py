"""Importing this keeps pandas out of the process until somebody asks for a DataFrame.

pyarrow looks for pandas with the first array that it makes, and importing pandas takes a second and more: as much as
the rest of a command's or worker's start. It looks once, so it is made to look now and to find nothing; ``to_pandas``
looks again and works as ever.
"""

import sys
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

import pyarrow


class _NoPandas(MetaPathFinder):
    def find_spec(self, name: str, path: Any, target: ModuleType | None = None) -> ModuleSpec | None:
        if name == "pandas":
            raise ModuleNotFoundError(name)
        return None


if "pandas" not in sys.modules:
    sys.meta_path.insert(0, _NoPandas())
    try:
        pyarrow.array([])
    finally:
        sys.meta_path.pop(0)
