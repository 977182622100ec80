"""Neighbours of many vectors."""

from __future__ import annotations

from stages.search import exact as neighbours

__all__ = ["neighbours"]
