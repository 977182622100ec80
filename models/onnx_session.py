"""How every ONNX network is opened: its threads, and the device that it runs on."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any


def providers() -> list[str]:
    """Execution providers in the order to try them: CUDA where this build of ONNX Runtime has it, then the CPU."""
    import onnxruntime

    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        return ["CPUExecutionProvider"]
    onnxruntime.preload_dlls()
    return ["CUDAExecutionProvider", "CPUExecutionProvider"]


def session_options() -> Any:
    """Options with as many threads as ``OMP_NUM_THREADS`` says, so that actors sharing a machine share its cores.

    Without that variable ONNX Runtime takes every core.

    Raises:
        ValueError: if ``OMP_NUM_THREADS`` is not a number.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.inter_op_num_threads = 1
    options.intra_op_num_threads = int(os.environ.get("OMP_NUM_THREADS") or 0)
    return options


def open_session(path: Path) -> Any:
    """An ``onnxruntime.InferenceSession`` of the network in a file."""
    import onnxruntime

    return onnxruntime.InferenceSession(str(path), sess_options=session_options(), providers=providers())
