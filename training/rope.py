"""R-RoPE: rotary positions for a sequence of references followed by a video (Kaleido, arXiv:2510.18573, figure 3)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from diffusers.models.transformers.transformer_wan import WanRotaryPosEmbed
from pydantic import NonNegativeInt

from models.errors import UserError

Offset = tuple[NonNegativeInt, NonNegativeInt] | Literal["video_grid", "time", "none"]
"""Where the references lie; :class:`ReferenceRotaryPosEmbed` says what each means."""

RELEASED_OFFSET = (80, 80)
"""What the released Kaleido checkpoint was trained with."""

Triple = tuple[int, int, int]


class GeometryError(UserError, ValueError):
    """Tensors, positions or weights that do not fit the model."""


class ReferenceRotaryPosEmbed(WanRotaryPosEmbed):
    """Takes the place of ``WanRotaryPosEmbed`` where the first ``references`` frames of the sequence are pictures.

    In units of patches, with a video of T x H x W:

    ========================  =======  ==============  ==============
    token                     t        h               w
    ========================  =======  ==============  ==============
    video                     [0, T)   [0, H)          [0, W)
    reference i, `(a, b)`     i        a + [0, H)      b + [0, W)
    reference i, `video_grid` i        H + [0, H)      W + [0, W)
    reference i, `time`       T + i    [0, H)          [0, W)
    reference i, `none`       i        [0, H)          [0, W)
    ========================  =======  ==============  ==============

    `(80, 80)` is what the released checkpoint was trained with, `video_grid` what the paper's figure draws. `time`
    makes the references frames that follow the video, `none` gives them the positions of its first frames: both are
    there to be compared with.

    The tables are functions of the arguments alone, so every cast, move and materialisation of the module leaves them
    exact and in float32.
    """

    references: int
    """Frames at the start of the sequence that are references; set before each call."""
    freqs_cos: torch.Tensor
    freqs_sin: torch.Tensor

    def __init__(
        self,
        attention_head_dim: int,
        patch_size: Triple,
        max_seq_len: int = 1024,
        offset: Offset = RELEASED_OFFSET,
    ) -> None:
        super().__init__(attention_head_dim, patch_size, max_seq_len)
        self.offset = offset
        self.references = 0

    def forward(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosines and sines of every token's angles, each (1, tokens, 1, head dim) float32.

        Args:
            hidden_states: latents (B, C, references + T, h, w); only the shape is looked at.

        Raises:
            GeometryError: if a position lies beyond the end of the tables.
        """
        frames, height, width = (
            size // patch for size, patch in zip(hidden_states.shape[2:], self.patch_size, strict=True)
        )
        video = (frames - self.references, height, width)
        pictures = (self.references, height, width)
        start = self._start_of_references(video)
        self._check(video, pictures, start)
        tables = (self.freqs_cos, self.freqs_sin)
        cosines, sines = (self._cut(table, (0, 0, 0), video) for table in tables)
        if self.references:
            cosines, sines = (
                torch.cat([self._cut(table, start, pictures), of_video], dim=1)
                for table, of_video in zip(tables, (cosines, sines), strict=True)
            )
        return cosines, sines

    def _start_of_references(self, video: Triple) -> Triple:
        frames, height, width = video
        if self.offset == "video_grid":
            return 0, height, width
        if self.offset == "time":
            return frames, 0, 0
        if self.offset == "none":
            return 0, 0, 0
        return 0, *self.offset

    def _check(self, video: Triple, pictures: Triple, start: Triple) -> None:
        ends: tuple[int, ...] = video
        if self.references:
            ends = tuple(max(size, first + span) for size, first, span in zip(video, start, pictures, strict=True))
        for axis, end in zip(("frames", "rows", "columns"), ends, strict=True):
            if end > self.max_seq_len:
                raise GeometryError(
                    f"a video of {video[0]} frames of {video[1]} x {video[2]} patches with {self.references} "
                    f"references at offset {self.offset} needs rotary positions for {end} {axis}, but the model has "
                    f"{self.max_seq_len} (rope_max_seq_len in its config.json): take a smaller video or offset"
                )

    def _cut(self, table: torch.Tensor, start: Triple, size: Triple) -> torch.Tensor:
        """The table's rows for a box of positions, as (1, tokens, 1, head dim)."""
        frames, height, width = size
        t, h, w = (
            axis[first : first + count]
            for axis, first, count in zip(
                table.split([self.t_dim, self.h_dim, self.w_dim], dim=1), start, size, strict=True
            )
        )
        box = [
            t.view(frames, 1, 1, -1).expand(frames, height, width, -1),
            h.view(1, height, 1, -1).expand(frames, height, width, -1),
            w.view(1, 1, width, -1).expand(frames, height, width, -1),
        ]
        return torch.cat(box, dim=-1).reshape(1, frames * height * width, 1, -1)

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> ReferenceRotaryPosEmbed:
        super()._apply(fn, recurse)
        with torch.device("cpu"):
            exact = WanRotaryPosEmbed(self.attention_head_dim, self.patch_size, self.max_seq_len)
        self.freqs_cos = exact.freqs_cos.to(self.freqs_cos.device)
        self.freqs_sin = exact.freqs_sin.to(self.freqs_sin.device)
        return self
