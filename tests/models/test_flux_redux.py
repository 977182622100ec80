import json
import shutil
from functools import cache

import numpy as np
import pytest
import torch
from diffusers import FluxPipeline, FluxPriorReduxPipeline
from PIL import Image
from safetensors.torch import load_file, save_file

from models.flux_redux import FluxRedux
from models.pretrained import UnusableWeightsError
from models.protocols import EditRequest
from models.registry import MissingWeightsError, Repository, build

SUBJECT = np.full((144, 112, 3), 255, np.uint8)
SUBJECT[30:110, 20:90] = (200, 40, 60)
REDUX, BASE = "black-forest-labs/FLUX.1-Redux-dev", "black-forest-labs/FLUX.1-dev"


@cache
def editor(root, **options):
    return build("editor", FluxRedux.Config(side=128, steps=2, **options), root)


def edited(root, subject=SUBJECT, prompt="on a beach", **options):
    return editor(root, **options).edit([EditRequest(subject, prompt, 5)])[0].astype(int)


def test_it_paints_what_the_two_pipelines_paint(pipelines):
    root = pipelines("flux_redux")
    flux = FluxPipeline.from_pretrained(root / BASE)
    encoders = {name: getattr(flux, name) for name in ("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2")}
    prior = FluxPriorReduxPipeline.from_pretrained(root / REDUX, **encoders)
    expected = flux(
        **prior(image=Image.fromarray(SUBJECT), prompt="on a beach"),
        height=144,
        width=112,
        num_inference_steps=2,
        guidance_scale=2.5,
        generator=torch.Generator("cpu").manual_seed(5),
    ).images[0]

    assert np.abs(edited(root) - np.asarray(expected).astype(int)).max() <= 1


def test_without_likeness_only_the_prompt_decides(pipelines):
    root = pipelines("flux_redux")
    other = np.full_like(SUBJECT, 0)

    assert np.array_equal(edited(root, likeness=0), edited(root, other, likeness=0))
    assert not np.array_equal(edited(root, likeness=0), edited(root, prompt="in a kitchen", likeness=0))
    assert not np.array_equal(edited(root, likeness=5), edited(root, other, likeness=5))
    assert not np.array_equal(edited(root, likeness=0), edited(root))


def test_both_repositories_are_needed_and_fetched(pipelines, tmp_path):
    config = FluxRedux.Config(revision="a", base_revision="b")
    files = config.files
    assert config.repositories() == [Repository(REDUX, files, "a"), Repository(BASE, files, "b")]

    (tmp_path / "black-forest-labs").mkdir()
    (tmp_path / REDUX).symlink_to(pipelines("flux_redux") / REDUX)
    with pytest.raises(MissingWeightsError, match=r"FLUX\.1-dev"):
        build("editor", config, tmp_path)


def test_redux_may_name_text_encoders_that_it_does_not_have(pipelines):
    root = pipelines("flux_redux")
    index = json.loads((root / REDUX / "model_index.json").read_text())

    assert index["text_encoder"] == [None, None]
    assert not (root / REDUX / "text_encoder").exists()


@pytest.mark.parametrize("part", ["image_encoder", "image_embedder"])
def test_a_redux_that_lacks_a_tensor_is_refused(pipelines, tmp_path, part):
    root = pipelines("flux_redux")
    (tmp_path / REDUX).mkdir(parents=True)
    for path in (root / REDUX).iterdir():
        if path.name != part:
            (tmp_path / REDUX / path.name).symlink_to(path)
    (tmp_path / BASE).symlink_to(root / BASE)
    (tmp_path / REDUX / part).mkdir()
    for path in (root / REDUX / part).iterdir():
        if path.suffix != ".safetensors":
            (tmp_path / REDUX / part / path.name).symlink_to(path)
            continue
        tensors = load_file(path)
        tensors.pop(next(key for key, tensor in tensors.items() if tensor.ndim > 1))
        save_file(tensors, tmp_path / REDUX / part / path.name, {"format": "pt"})

    with pytest.raises(UnusableWeightsError, match=f"{part} lacks tensors"):
        build("editor", FluxRedux.Config(), tmp_path)


def test_tensors_may_have_the_names_of_the_published_files(pipelines, tmp_path):
    root = pipelines("flux_redux")
    shutil.copytree(root, tmp_path, dirs_exist_ok=True)
    for part, prefix in [(f"{BASE}/text_encoder", "text_model."), (f"{REDUX}/image_encoder", "vision_model.")]:
        (file,) = (tmp_path / part).glob("*.safetensors")
        named = {f"{prefix}{name.removeprefix(prefix)}": tensor for name, tensor in load_file(file).items()}
        save_file(named, file, {"format": "pt"})

    assert np.array_equal(edited(tmp_path), edited(root))
