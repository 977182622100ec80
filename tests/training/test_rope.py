from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers.models.transformers.transformer_wan import WanRotaryPosEmbed
from hypothesis import given, settings
from hypothesis import strategies as st

from models.errors import UserError
from training.rope import GeometryError, ReferenceRotaryPosEmbed

HEAD_DIM = 32
PATCH = (1, 2, 2)


def latents(frames: int, height: int, width: int) -> torch.Tensor:
    """Latents of that many patches; the rotary module looks at the shape only."""
    return torch.empty(1, 1, frames, 2 * height, 2 * width, device="meta")


def rope(offset: Any = (80, 80), references: int = 0, length: int = 1024) -> ReferenceRotaryPosEmbed:
    module = ReferenceRotaryPosEmbed(HEAD_DIM, PATCH, length, offset)
    module.references = references
    return module


def expected(positions: list[tuple[int, int, int]], head_dim: int = HEAD_DIM) -> torch.Tensor:
    """Angles of Su et al. (arXiv:2104.09864) for (t, h, w), a third of the pairs each, time taking what is left."""
    side = 2 * (head_dim // 6)
    columns = []
    for axis, dim in enumerate((head_dim - 2 * side, side, side)):
        steps = torch.tensor([float(position[axis]) for position in positions], dtype=torch.float64)
        rates = 10000.0 ** (-torch.arange(0, dim, 2, dtype=torch.float64) / dim)
        columns.append((steps[:, None] * rates).repeat_interleave(2, dim=1))
    return torch.cat(columns, dim=1)


def box(t: int, h: int, w: int, start: tuple[int, int, int] = (0, 0, 0)) -> list[tuple[int, int, int]]:
    return [(start[0] + i, start[1] + j, start[2] + k) for i in range(t) for j in range(h) for k in range(w)]


@pytest.mark.parametrize(
    ("offset", "start"),
    [
        ((80, 80), (0, 80, 80)),
        ((7, 0), (0, 7, 0)),
        ("video_grid", (0, 3, 5)),
        ("time", (4, 0, 0)),
        ("none", (0, 0, 0)),
    ],
)
def test_references_lie_where_the_offset_says(offset: Any, start: tuple[int, int, int]) -> None:
    cosines, sines = rope(offset, references=2)(latents(2 + 4, 3, 5))

    angles = expected(box(2, 3, 5, start) + box(4, 3, 5))
    assert cosines.shape == sines.shape == (1, 6 * 3 * 5, 1, HEAD_DIM)
    torch.testing.assert_close(cosines[0, :, 0], angles.cos().float(), rtol=0, atol=1e-6)
    torch.testing.assert_close(sines[0, :, 0], angles.sin().float(), rtol=0, atol=1e-6)


def test_heads_of_128_are_split_44_42_42() -> None:
    module = ReferenceRotaryPosEmbed(128, PATCH)

    assert (module.t_dim, module.h_dim, module.w_dim) == (44, 42, 42)
    cosines, _ = module(latents(2, 3, 2))
    torch.testing.assert_close(cosines[0, :, 0], expected(box(2, 3, 2), 128).cos().float(), rtol=0, atol=1e-6)


@settings(max_examples=25, deadline=None)
@given(
    size=st.tuples(st.integers(1, 6), st.integers(1, 9), st.integers(1, 9)),
    references=st.integers(0, 4),
    offset=st.one_of(
        st.tuples(st.integers(0, 90), st.integers(0, 90)), st.sampled_from(["video_grid", "time", "none"])
    ),
)
def test_the_videos_positions_are_plain_wans_whatever_the_references(
    size: tuple[int, int, int], references: int, offset: Any
) -> None:
    frames, height, width = size
    plain = WanRotaryPosEmbed(HEAD_DIM, PATCH, 1024)(latents(frames, height, width))

    ours = rope(offset, references)(latents(references + frames, height, width))

    for table, reference in zip(ours, plain, strict=True):
        assert torch.equal(table[:, references * height * width :], reference)


@pytest.mark.parametrize(
    "change",
    [
        lambda module: module.to(torch.bfloat16),
        lambda module: module.half(),
        lambda module: module.to("meta").to_empty(device="cpu"),
        lambda module: torch.nn.Sequential(module).to(torch.bfloat16)[0],
    ],
)
def test_casts_and_moves_leave_the_tables_exact(change: Any) -> None:
    untouched = rope(references=2)(latents(5, 3, 4))

    changed = change(rope(references=2))(latents(5, 3, 4))

    assert all(table.dtype == torch.float32 for table in changed)
    assert all(torch.equal(a, b) for a, b in zip(changed, untouched, strict=True))


def test_a_module_built_without_memory_is_exact_once_it_has_some() -> None:
    with torch.device("meta"):
        module = rope(references=2)
    assert module.freqs_cos.is_meta

    module.to_empty(device="cpu")

    untouched = rope(references=2)(latents(5, 3, 4))
    assert all(torch.equal(a, b) for a, b in zip(module(latents(5, 3, 4)), untouched, strict=True))


def test_nothing_of_it_is_stored_in_checkpoints() -> None:
    assert rope().state_dict() == {}


def test_one_compiled_graph_serves_every_number_of_references() -> None:
    module = rope("video_grid")
    compiled = torch.compile(module, backend="eager", fullgraph=True)

    for references in (0, 1, 3):
        module.references = references
        shape = torch.empty(1, 1, references + 2, 6, 8)
        assert all(torch.equal(a, b) for a, b in zip(compiled(shape), module(shape), strict=True))
    torch._dynamo.reset()


@pytest.mark.parametrize(
    ("offset", "references", "frames", "axis"),
    [
        ((80, 80), 1, 2, "84 rows"),
        ((0, 80), 1, 2, "85 columns"),
        ("time", 2, 9, "11 frames"),
        ("none", 11, 2, "11 frames"),
        ("none", 0, 11, "11 frames"),
    ],
)
def test_positions_beyond_the_table_are_refused(offset: Any, references: int, frames: int, axis: str) -> None:
    with pytest.raises(GeometryError, match=axis) as error:
        rope(offset, references, length=10)(latents(references + frames, 4, 5))
    assert isinstance(error.value, UserError)


def test_an_offset_beyond_the_table_matters_only_to_references() -> None:
    cosines, _ = rope((80, 80), references=0, length=10)(latents(3, 4, 5))

    assert cosines.shape[1] == 60
