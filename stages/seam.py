"""Blending in the gradient domain."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from models.protocols import Mask

_Floats = npt.NDArray[np.float32]

_PULL = 1e-6
"""How much a pixel is held to what it was: next to nothing, but enough where nothing around holds it."""


def seamless(picture: _Floats, guide: _Floats, known: Mask, where: Mask) -> _Floats:
    """The picture, with the guide's texture where it is asked for and no step to what lies around.

    Solves Poisson's equation (Perez, Gangnet and Blake 2003, *Poisson image editing*, eq. 7) for the pixels of
    ``where``; the picture's pixels beside them are its boundary. The edge of the picture is none: nothing is held
    there.

    Args:
        picture: shape ``(height, width, channels)``.
        guide: of the same shape; the differences between its neighbouring pixels are followed.
        known: where the guide tells something; from and to other pixels, the difference that is followed is 0.
        where: what is solved for.

    Returns:
        The picture, its own values bit for bit outside of ``where``.
    """
    from scipy.sparse import coo_array  # Slow to import; few pictures are blended like this.
    from scipy.sparse.linalg import spsolve

    result = picture.copy()
    count = int(np.count_nonzero(where))
    if not count:
        return result
    number = np.full(where.shape, -1)
    number[where] = np.arange(count)
    diagonal = np.full(count, _PULL)
    sums = _PULL * picture[where].astype(np.float64)
    rows: list[npt.NDArray[Any]] = []
    columns: list[npt.NDArray[Any]] = []
    for here, beside in (
        (np.s_[:, :-1], np.s_[:, 1:]),
        (np.s_[:, 1:], np.s_[:, :-1]),
        (np.s_[:-1], np.s_[1:]),
        (np.s_[1:], np.s_[:-1]),
    ):
        pairs = where[here]
        own, other = number[here][pairs], number[beside][pairs]
        told = (known[here] & known[beside])[pairs]
        held = other < 0
        # No pixel is twice in ``own``.
        diagonal[own] += 1
        sums[own[told]] += guide[here][pairs][told].astype(np.float64) - guide[beside][pairs][told]
        sums[own[held]] += picture[beside][pairs][held]
        rows.append(own[~held])
        columns.append(other[~held])
    row, column = (np.concatenate([*ends, np.arange(count)]) for ends in (rows, columns))
    values = np.concatenate([np.full(len(row) - count, -1.0), diagonal])
    system = coo_array((values, (row, column)), shape=(count, count)).tocsc()
    result[where] = spsolve(system, sums).reshape(sums.shape)
    return result
