from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as PILImage

from curation.config import Config
from curation.engine import StepReport
from curation.sheets.proofs import GREEN, SIDE, UnknownKindError, draw_proofs
from curation.sheets.samples import NothingToDrawError
from curation.sheets.tiles import BORDER, RED
from curation.steps import kept_ids, proved_references
from curation.workspace import Workspace


def framed(page: np.ndarray, colour: tuple[int, int, int]) -> int:
    """How many pictures have a border of this colour: runs of it as long as a picture is wide, one above another."""
    inside = (page == colour).all(axis=2).astype(np.int32)
    sums = np.cumsum(np.pad(inside, ((0, 0), (1, 0))), axis=1)
    full = sums[:, SIDE:] - sums[:, :-SIDE] == SIDE
    # Each picture has a border above and one below, each of so many lines.
    return int(np.count_nonzero(full)) // (2 * BORDER)


def drawn(workspace: Workspace, output: Path, **asked: object) -> tuple[int, np.ndarray]:
    rows = draw_proofs(workspace, output, **asked)  # type: ignore[arg-type]
    return rows, np.asarray(PILImage.open(output))


def test_every_reference_is_there_and_its_frame_says_whether_it_passed(workspace: Workspace, tmp_path: Path) -> None:
    numbers = list(proved_references(workspace))
    kept = kept_ids(workspace, "reference")
    rows, page = drawn(workspace, tmp_path / "deep" / "proofs.png")
    assert rows == len({row["subject_id"] for row in numbers})
    assert framed(page, GREEN) == len(kept) > 0
    assert framed(page, RED) == len(numbers) - len(kept)


def test_only_the_kinds_that_are_asked_for(workspace: Workspace, tmp_path: Path) -> None:
    originals = [row for row in proved_references(workspace) if row["kind"] == "original"]
    _, page = drawn(workspace, tmp_path / "proofs.png", kinds=["original"])
    assert framed(page, GREEN) + framed(page, RED) == len(originals)


def test_no_more_rows_than_asked_for(workspace: Workspace, tmp_path: Path) -> None:
    assert drawn(workspace, tmp_path / "proofs.png", most=2)[0] == 2


def test_what_was_dropped_is_framed_in_red(
    workspace: Workspace,
    tmp_path: Path,
    configure: Callable[..., Config],
    curate: Callable[..., dict[str, StepReport]],
) -> None:
    curate(workspace, configure({"select.reference.min_sharpness": 1e6}), steps=["select"])
    _, page = drawn(workspace, tmp_path / "proofs.png")
    assert framed(page, GREEN) == 0
    assert framed(page, RED) == len(list(proved_references(workspace)))


def test_a_kind_that_there_is_not_is_refused_by_name(workspace: Workspace, tmp_path: Path) -> None:
    with pytest.raises(UnknownKindError, match=r"'crossclip'.*cross_clip"):
        draw_proofs(workspace, tmp_path / "proofs.png", kinds=["crossclip"])


def test_without_proofs_there_is_nothing_to_draw(empty: Workspace, tmp_path: Path) -> None:
    with pytest.raises(NothingToDrawError, match="s2v run verify"):
        draw_proofs(empty, tmp_path / "proofs.png")
    assert not (tmp_path / "proofs.png").exists()
