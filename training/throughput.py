"""What the device could do at best, so that speed can be told as a share of it (MFU)."""

from __future__ import annotations

import time

import torch

DENSE_BF16 = {"H100 PCIe": 756e12, "H100": 989e12, "H200": 989e12, "A100": 312e12, "L40S": 362e12, "B200": 2250e12}
"""Dense bf16 FLOP/s that the makers state, by a part of the device's name; the first that fits counts."""

_SIDE = 1024
_SECONDS = 0.2


def peak_flops(device: torch.device) -> tuple[float, str]:
    """FLOP/s that one rank's device can do at best, and where that number is from.

    A GPU's is what its maker states for dense bf16. Where that is not known, and on CPUs, it is what a product of two
    matrices reaches, measured on the spot in fp32 (CPU) or bf16.
    """
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        for part, flops in DENSE_BF16.items():
            if part in name:
                return flops, f"stated for {name}"
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    matrix = torch.ones(_SIDE, _SIDE, device=device, dtype=dtype)
    best, started = 0.0, time.perf_counter()
    while time.perf_counter() - started < _SECONDS:
        before = time.perf_counter()
        matrix @ matrix
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = max(best, 2 * _SIDE**3 / (time.perf_counter() - before))
    return best, "measured on a product of matrices"
