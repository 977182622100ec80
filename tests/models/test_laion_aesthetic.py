"""The aesthetic scorer with tiny networks of random weights, laid out on disk as the published ones."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image as Pictures
from safetensors.torch import load_file, save_file
from tiny_clip import write_head, write_rated_clip

from models.laion_aesthetic import LaionAesthetic
from models.pretrained import UnusableWeightsError
from models.registry import MissingWeightsError, Repository, backend_config, build, fingerprint

LENGTH = 24
SIDE = 32
CONFIG = LaionAesthetic.Config(batch=2)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole CLIP, as published, and a head."""
    root = tmp_path_factory.mktemp("weights")
    write_rated_clip(root / CONFIG.clip, LENGTH, SIDE)
    write_head(root / CONFIG.head, LENGTH)
    return root


@pytest.fixture(scope="module")
def scorer(weights: Path) -> LaionAesthetic:
    built: LaionAesthetic = build("aesthetic", CONFIG, weights)
    return built


@pytest.fixture
def copied(weights: Path, tmp_path: Path) -> Path:
    """The weights, to be damaged."""
    return Path(shutil.copytree(weights, tmp_path / "weights"))


def pictures() -> list[np.ndarray]:
    random = np.random.default_rng(0)
    coarse = [random.integers(0, 256, (5, 7, 3), dtype=np.uint8) for _ in range(3)]
    sizes = ((64, 40), (50, 90), (SIDE, SIDE))
    return [np.asarray(Pictures.fromarray(image).resize(size)) for image, size in zip(coarse, sizes, strict=True)]


def test_scores_are_the_head_s_of_clip_s_unit_embedding(weights: Path, scorer: LaionAesthetic) -> None:
    from transformers import CLIPImageProcessor, CLIPModel

    clip = CLIPModel.from_pretrained(weights / CONFIG.clip).eval()
    processor = CLIPImageProcessor.from_pretrained(weights / CONFIG.clip)
    head = write_head(weights / CONFIG.head, LENGTH)
    pixels = processor([Pictures.fromarray(image) for image in pictures()], return_tensors="pt")["pixel_values"]
    with torch.inference_mode():
        pooled = clip.vision_model(pixel_values=pixels).pooler_output
        expected = head(torch.nn.functional.normalize(clip.visual_projection(pooled), dim=-1))[:, 0]
    scores = scorer.aesthetic(pictures())
    assert np.ptp(scores) > 0.05
    assert scores == pytest.approx(expected.tolist(), abs=1e-3)
    assert all(type(score) is float for score in scores)


def test_batches_of_any_size_score_as_one_by_one_and_none_cost_nothing(scorer: LaionAesthetic) -> None:
    alone = [scorer.aesthetic([picture])[0] for picture in pictures()]
    assert scorer.aesthetic(pictures()) == pytest.approx(alone, abs=1e-3)
    assert scorer.aesthetic([]) == []


def test_half_precision_scores_nearly_the_same(weights: Path, scorer: LaionAesthetic) -> None:
    # The head's last layer is a hundred times as large as it would be, and so is the rounding.
    half = build("aesthetic", CONFIG.model_copy(update={"precision": "bfloat16"}), weights)
    assert half.aesthetic(pictures()) == pytest.approx(scorer.aesthetic(pictures()), abs=0.5)


def test_missing_files_are_named(weights: Path, tmp_path: Path) -> None:
    with pytest.raises(MissingWeightsError, match="clip-vit-large-patch14 does not exist"):
        LaionAesthetic(CONFIG, tmp_path)
    with pytest.raises(MissingWeightsError, match=r"other\.pth does not exist"):
        LaionAesthetic(CONFIG.model_copy(update={"head": "other.pth"}), weights)


def test_a_head_of_another_clip_is_refused(copied: Path) -> None:
    before = fingerprint(CONFIG, copied)
    write_head(copied / CONFIG.head, LENGTH + 1)
    with pytest.raises(UnusableWeightsError, match=f"takes {LENGTH + 1} numbers and gets {LENGTH}"):
        LaionAesthetic(CONFIG, copied)
    assert fingerprint(CONFIG, copied) != before


def test_a_head_that_is_none_is_refused_and_no_pickle_runs(copied: Path) -> None:
    file = copied / CONFIG.head
    torch.save({"other": torch.zeros(2)}, file)
    with pytest.raises(UnusableWeightsError, match=r"no head that loads.*layers\.0"):
        LaionAesthetic(CONFIG, copied)
    torch.save({"layers.0.weight": pytest.approx}, file)
    with pytest.raises(UnusableWeightsError, match="no head that loads"):
        LaionAesthetic(CONFIG, copied)
    file.write_bytes(b"nothing")
    with pytest.raises(UnusableWeightsError, match="no head that loads"):
        LaionAesthetic(CONFIG, copied)


def test_a_clip_that_lacks_a_tensor_or_its_processor_is_refused(copied: Path) -> None:
    (copied / CONFIG.clip / "preprocessor_config.json").unlink()
    with pytest.raises(UnusableWeightsError, match="CLIPImageProcessor"):
        LaionAesthetic(CONFIG, copied)
    file = copied / CONFIG.clip / "model.safetensors"
    tensors = load_file(file)
    del tensors["visual_projection.weight"]
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(UnusableWeightsError, match=r"lacks tensors of the model: visual_projection\.weight"):
        LaionAesthetic(CONFIG, copied)


def test_both_repositories_are_fetched_unless_the_head_is_one_s_own() -> None:
    clip, head = CONFIG.repositories()
    assert clip.name == "openai/clip-vit-large-patch14"
    assert head == Repository("camenduru/improved-aesthetic-predictor", ("sac+logos+ava1-l14-linearMSE.pth",))
    own = backend_config("aesthetic", {"backend": "laion_aesthetic", "head": "heads/mine.pth"})
    assert own.repositories() == [clip]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_said(weights: Path) -> None:
    with pytest.raises(ValueError, match="no GPU"):
        LaionAesthetic(CONFIG.model_copy(update={"device": "cuda"}), weights)
