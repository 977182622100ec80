"""The aesthetic scorer with tiny networks of random weights, laid out on disk as the published ones."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image as Pictures

from models.registry import MissingWeightsError, fingerprint
from training.evaluation.aesthetic import LaionAesthetic

LENGTH = 24
SIDE = 32
CONFIG = LaionAesthetic.Config(batch=2)


def write_head(file: Path, length: int) -> torch.nn.Sequential:
    sizes = (length, 16, 12, 8, 4, 1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        layers = [torch.nn.Linear(into, out) for into, out in pairwise(sizes)]
    layers[-1].weight.data *= 100  # So that scores differ by more than rounding.
    state = {
        f"layers.{place}.{name}": values
        for place, layer in zip((0, 2, 4, 6, 7), layers, strict=True)
        for name, values in layer.state_dict().items()
    }
    torch.save(state, file)
    return torch.nn.Sequential(*layers)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole CLIP, as published, and a head."""
    from transformers import CLIPConfig, CLIPModel

    root = tmp_path_factory.mktemp("weights")
    tower = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = CLIPConfig(
        text_config={**tower, "vocab_size": 50, "projection_dim": LENGTH},
        vision_config={**tower, "image_size": SIDE, "patch_size": 8, "projection_dim": LENGTH},
        projection_dim=LENGTH,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        CLIPModel(config).save_pretrained(root / CONFIG.clip)
    write_head(root / CONFIG.head, LENGTH)
    return root


def pictures() -> list[np.ndarray]:
    random = np.random.default_rng(0)
    coarse = [random.integers(0, 256, (5, 7, 3), dtype=np.uint8) for _ in range(3)]
    sizes = ((64, 40), (50, 90), (SIDE, SIDE))
    return [np.asarray(Pictures.fromarray(image).resize(size)) for image, size in zip(coarse, sizes, strict=True)]


def test_scores_are_the_head_s_of_clip_s_unit_embedding(weights: Path) -> None:
    from transformers import CLIPImageProcessor, CLIPModel

    size = {"size": {"shortest_edge": SIDE}, "crop_size": {"height": SIDE, "width": SIDE}}
    processor = CLIPImageProcessor(**size)
    clip = CLIPModel.from_pretrained(weights / CONFIG.clip).eval()
    head = write_head(weights / CONFIG.head, LENGTH)
    pixels = processor([Pictures.fromarray(image) for image in pictures()], return_tensors="pt")["pixel_values"]
    with torch.inference_mode():
        pooled = clip.vision_model(pixel_values=pixels).pooler_output
        expected = head(torch.nn.functional.normalize(clip.visual_projection(pooled), dim=-1))[:, 0]
    scores = LaionAesthetic(CONFIG, weights).aesthetic(pictures())
    assert np.ptp(scores) > 0.05
    assert scores == pytest.approx(expected.tolist(), abs=0.005)  # Two bicubic filters round differently.
    assert LaionAesthetic(CONFIG, weights).aesthetic([]) == []


def test_missing_files_are_named_and_a_head_of_another_clip_is_refused(weights: Path, tmp_path: Path) -> None:
    with pytest.raises(MissingWeightsError, match=r"config\.json does not exist"):
        LaionAesthetic(CONFIG, tmp_path)
    other = CONFIG.model_copy(update={"head": "aesthetic/other.pth"})
    write_head(weights / other.head, LENGTH + 1)
    with pytest.raises(ValueError, match=f"takes {LENGTH + 1} numbers and gets {LENGTH}"):
        LaionAesthetic(other, weights)
    assert fingerprint(CONFIG, weights) != fingerprint(other, weights)
