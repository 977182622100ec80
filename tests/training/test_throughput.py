from __future__ import annotations

import pytest
import torch

from training.throughput import DENSE_BF16, peak_flops


class TestPeak:
    def test_of_a_cpu_is_measured(self) -> None:
        flops, source = peak_flops(torch.device("cpu"))
        assert 1e8 < flops < 1e14
        assert "measured" in source

    @pytest.mark.parametrize(
        ("name", "flops"),
        [
            ("NVIDIA H100 80GB HBM3", 989e12),
            ("NVIDIA H100 PCIe", 756e12),
            ("NVIDIA H200", 989e12),
            ("NVIDIA A100-SXM4-80GB", 312e12),
            ("NVIDIA B200", 2250e12),
        ],
    )
    def test_of_a_gpu_is_what_its_maker_states(self, monkeypatch: pytest.MonkeyPatch, name: str, flops: float) -> None:
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: name)
        assert peak_flops(torch.device("cuda", 0)) == (flops, f"stated for {name}")

    def test_a_part_of_a_name_hides_no_longer_one(self) -> None:
        """The first that fits counts: whoever adds a GPU must put the longer name in front."""
        names = list(DENSE_BF16)
        for place, name in enumerate(names):
            assert not any(earlier in name for earlier in names[:place])
