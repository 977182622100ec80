"""Random numbers that follow from a run's seed, a purpose and a number, whichever process asks for them."""

from __future__ import annotations

from enum import IntEnum

import numpy as np


class Purpose(IntEnum):
    """What random numbers are for: each purpose has its own."""

    EPOCH = 1
    MICRO_BATCH = 2
    SAMPLE = 3


def random_numbers(purpose: Purpose, seed: int, number: int) -> np.random.Generator:
    """A generator of its own for the ``number``-th of that purpose; ``number`` is at least 0, ``seed`` any integer.

    Ask it for ``random()`` alone: numpy keeps these numbers from version to version, but not what it makes of them.
    """
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence([purpose, seed % 2**64, number])))
