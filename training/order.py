"""The order of the samples: a pure function of the seed and one integer, the number of the micro-batch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from training.seeds import Purpose, random_numbers


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """Samples that pass through the model together: all of one group, so that their tensors stack."""

    number: int
    """Its place in the endless order."""
    samples: tuple[int, ...]
    positions: tuple[int, ...]
    """The samples' own places in the endless order, counted in samples: no two are equal, in any epoch."""
    counts: bool = True
    """False for one that only keeps a rank in step with the others: nothing is read for it, its weights are 0."""


@dataclass(frozen=True, slots=True)
class _Epoch:
    """One epoch, laid out: its n-th micro-batch is ``samples[starts[turns[n]] : ends[turns[n]]]``."""

    number: int
    samples: npt.NDArray[np.uint32]
    turns: npt.NDArray[np.uint32]
    places: npt.NDArray[np.uint32]
    """Samples of this epoch that come before the micro-batch."""


class Order:
    """Epoch after epoch without end; in each, every sample exactly once.

    Within an epoch the samples are shuffled, those of one group are cut into micro-batches (the last of a group may be
    smaller), and the micro-batches are shuffled. The n-th micro-batch is ``order[n]``, for any n, at any time.

    Epochs are laid out when they are asked for; only the latest is kept. For 10 million samples that takes some
    seconds. Memory: 28 bytes a sample with micro-batches of one, 13 with large ones; twice that while it is made.
    """

    def __init__(self, groups: npt.NDArray[np.integer], micro_batch: int, *, seed: int | None) -> None:
        """
        Args:
            groups: (samples,) the group of every sample; samples of a negative group are left out.
            micro_batch: most samples of a micro-batch, at least 1.
            seed: None leaves the samples in their order, group after group.

        Raises:
            ValueError: if there is no sample.
        """
        self._rows = np.flatnonzero(groups >= 0).astype(np.uint32)
        if not self._rows.size:
            raise ValueError("an order of no samples")
        self._groups = np.unique(groups[self._rows], return_inverse=True)[1].astype(np.uint32)
        self._seed = seed
        sizes = np.bincount(self._groups)
        first = np.cumsum(sizes) - sizes
        cuts = [np.arange(size, step=micro_batch) + start for size, start in zip(sizes, first, strict=True)]
        self._starts = np.concatenate(cuts).astype(np.uint32)
        self._ends = np.append(self._starts[1:], np.uint32(self.samples))
        self._latest: _Epoch | None = None

    @property
    def samples(self) -> int:
        """Samples of an epoch."""
        return len(self._rows)

    @property
    def micro_batches(self) -> int:
        """Micro-batches of an epoch."""
        return len(self._starts)

    def __getitem__(self, number: int) -> MicroBatch:
        epoch_number, place = divmod(number, self.micro_batches)
        epoch = self._epoch(epoch_number)
        turn = epoch.turns[place]
        samples = epoch.samples[self._starts[turn] : self._ends[turn]].tolist()
        first = epoch_number * self.samples + int(epoch.places[place])
        return MicroBatch(number, tuple(samples), tuple(range(first, first + len(samples))))

    def _epoch(self, number: int) -> _Epoch:
        if self._latest is None or self._latest.number != number:
            self._latest = self._lay_out(number)
        return self._latest

    def _lay_out(self, number: int) -> _Epoch:
        if self._seed is None:
            samples = np.argsort(self._groups, kind="stable")
            turns = np.arange(self.micro_batches, dtype=np.uint32)
        else:
            random = random_numbers(Purpose.EPOCH, self._seed, number)
            samples = np.lexsort((random.random(self.samples), self._groups))
            turns = np.argsort(random.random(self.micro_batches), kind="stable").astype(np.uint32)
        sizes = (self._ends - self._starts)[turns]
        return _Epoch(number, self._rows[samples], turns, np.cumsum(sizes, dtype=np.uint32) - sizes)
