"""Shot boundaries by PySceneDetect's content detectors: hard cuts only, no network."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field

from models.protocols import Image, Vector
from models.registry import BackendConfig


class PySceneDetect:
    """Marks a cut where hue, saturation and brightness jump from one frame to the next."""

    class Config(BackendConfig):
        """Options of ``backend: pyscenedetect``."""

        packages = ("scenedetect",)

        backend: Literal["pyscenedetect"] = "pyscenedetect"
        """Name of this backend."""
        method: Literal["adaptive", "content"] = "adaptive"
        """``content`` compares each frame's change with a fixed threshold, ``adaptive`` with its neighbours' change."""
        content_threshold: float = Field(27.0, gt=0, le=255)
        """``content``: mean change of the HSV channels, in 8-bit levels, from which on a frame is a cut."""
        adaptive_threshold: float = Field(3.0, gt=0)
        """``adaptive``: how many times the change must exceed the mean change of the frames around it."""
        min_content: float = Field(15.0, ge=0, le=255)
        """``adaptive``: change in 8-bit levels below which no frame is a cut."""

    frame_size: tuple[int, int] = (256, 144)

    def __init__(self, config: PySceneDetect.Config, root: Path) -> None:
        import scenedetect

        self._config = config
        self._scenedetect = scenedetect

    def transitions(self, frames: Iterable[Image]) -> Vector:
        """1 at the last frame of each shot that a cut ends, 0 elsewhere. Shape ``(frames,)``.

        PySceneDetect itself names the first frame of the next shot; the frame before it is where TransNet V2 marks a
        cut too. Shots of any length are reported: how short a shot may be is for the caller to say.

        Raises:
            ValueError: if a frame is not ``uint8`` of shape ``(height, width, 3)``.
        """
        detector = self._detector()
        cuts: list[int] = []
        count = 0
        for frame in frames:
            if frame.ndim != 3 or frame.shape[2] != 3 or frame.dtype != np.uint8:
                raise ValueError(f"PySceneDetect wants uint8 RGB frames, got {frame.dtype} {frame.shape}")
            # The rate is needed to make a timecode; with minimum lengths switched off no decision depends on it.
            timecode = self._scenedetect.FrameTimecode(count, fps=25.0)
            bgr = np.ascontiguousarray(frame[:, :, ::-1])
            cuts += [cut.frame_num for cut in detector.process_frame(timecode, bgr)]
            count += 1
        probabilities = np.zeros(count, np.float32)
        probabilities[[cut - 1 for cut in cuts]] = 1.0
        return probabilities

    def _detector(self) -> Any:
        if self._config.method == "content":
            return self._scenedetect.ContentDetector(threshold=self._config.content_threshold, min_scene_len=0)
        return self._scenedetect.AdaptiveDetector(
            adaptive_threshold=self._config.adaptive_threshold,
            min_content_val=self._config.min_content,
            min_scene_len=0,
        )
