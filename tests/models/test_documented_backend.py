"""The backend that the documentation shows is one."""

import re
import sys
import types
from pathlib import Path

import numpy as np
import pytest

from models.registry import BACKENDS, MissingWeightsError, backend_config, build

DOCS = Path(__file__).resolve().parents[2] / "docs" / "models.md"


@pytest.fixture
def vit(monkeypatch: pytest.MonkeyPatch) -> str:
    """The code between the fences, as the module that the text says it is."""
    (code,) = re.findall(r"```python\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)
    module = types.ModuleType("models.vit")
    exec(code, module.__dict__)
    monkeypatch.setitem(sys.modules, "models.vit", module)
    monkeypatch.setitem(BACKENDS["embedder"], "vit", "models.vit:Vit")
    return code


def test_it_loads_a_checkpoint_and_embeds_what_is_inside_the_mask(vit: str, tmp_path: Path) -> None:
    from transformers import ViTConfig, ViTImageProcessor, ViTModel

    config = backend_config("embedder", {"backend": "vit", "model": "tiny/vit"})
    with pytest.raises(MissingWeightsError, match="tiny/vit"):
        build("embedder", config, tmp_path)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    ViTModel(ViTConfig(image_size=32, patch_size=8, **sizes)).save_pretrained(tmp_path / "tiny" / "vit")
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path / "tiny" / "vit")
    embedder = build("embedder", config, tmp_path)
    image = np.random.default_rng(0).integers(0, 255, (40, 60, 3), np.uint8)
    mask = np.zeros((40, 60), bool)
    mask[10:30, 20:50] = True
    elsewhere = np.where(mask[..., None], image, 255 - image)
    vectors = embedder.embed([image, elsewhere, image[:, ::-1]], [mask, mask, mask])
    assert [vector.shape for vector in vectors] == [(16,)] * 3
    assert np.linalg.norm(vectors, axis=1) == pytest.approx([1, 1, 1], abs=1e-5)
    assert vectors[0] == pytest.approx(vectors[1], abs=1e-5)
    assert vectors[0] != pytest.approx(vectors[2], abs=1e-3)


def test_it_is_as_short_as_is_told(vit: str) -> None:
    body = vit[vit.index("class Vit") :]
    assert len([line for line in body.splitlines() if line.strip()]) <= 20
