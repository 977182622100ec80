import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from models.dino import Dino
from models.pretrained import UnusableWeightsError
from models.registry import MissingWeightsError, build

SIDE = 28
WIDTH = 24


def write(folder, config, processor):
    """A network of random weights large enough for pictures to come out far apart."""
    from transformers import AutoModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = AutoModel.from_config(config)
        with torch.no_grad():
            for name, weight in network.named_parameters():
                if weight.dim() > 1 and "embeddings" not in name:
                    weight.copy_(torch.randn(weight.shape) * weight[0].numel() ** -0.5)
    network.save_pretrained(folder)
    processor.save_pretrained(folder)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    from transformers import (
        BitImageProcessor,
        Dinov2Config,
        Dinov2WithRegistersConfig,
        DINOv3ConvNextConfig,
        DINOv3ViTConfig,
        DINOv3ViTImageProcessor,
    )

    root = tmp_path_factory.mktemp("weights")
    two = {"hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": SIDE}
    # As published: the shorter edge a seventh longer than the crop.
    cropping = BitImageProcessor(
        size={"shortest_edge": 32},
        crop_size={"height": SIDE, "width": SIDE},
        image_mean=[0.485, 0.456, 0.406],
        image_std=[0.229, 0.224, 0.225],
    )
    whole = DINOv3ViTImageProcessor(size={"height": 32, "width": 32})
    write(root / "tiny/dinov2", Dinov2Config(**two, patch_size=14, mlp_ratio=2), cropping)
    write(root / "tiny/registers", Dinov2WithRegistersConfig(**two, patch_size=14, mlp_ratio=2), cropping)
    write(
        root / "tiny/dinov3",
        DINOv3ViTConfig(**two, patch_size=16, intermediate_size=48, num_register_tokens=4),
        whole,
    )
    write(root / "tiny/convnext", DINOv3ConvNextConfig(hidden_sizes=[8, 8, 16, WIDTH], depths=[1, 1, 1, 1]), whole)
    return root


@pytest.fixture(scope="module", params=["dinov2", "registers", "dinov3", "convnext"])
def config(request):
    return Dino.Config(model=f"tiny/{request.param}", batch=2, device="cpu")


@pytest.fixture(scope="module")
def embedder(root, config):
    return build("embedder", config, root)


@pytest.fixture
def copied(root, tmp_path):
    """A copy of the weights, to be damaged, and in it the folder of DINOv2."""
    shutil.copytree(root / "tiny/dinov2", tmp_path / "tiny/dinov2")
    return tmp_path, tmp_path / "tiny/dinov2"


def subjects():
    """Pictures of mixed sizes, and masks of which one is a line and one is empty."""
    random = np.random.default_rng(0)
    sizes = [(40, 64), (90, 50), (32, 32), (16, 16)]
    images = [random.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes]
    masks = [np.zeros(size, bool) for size in sizes]
    masks[0][5:30, 10:50] = random.random((25, 40)) > 0.3
    masks[1][7, 5:45] = True
    masks[2][:] = True
    return images, masks


def test_vectors_are_of_unit_length_and_differ(embedder):
    vectors = embedder.embed(*subjects())

    assert [vector.shape for vector in vectors] == [(WIDTH,)] * 4
    assert all(vector.dtype == np.float32 for vector in vectors)
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(1, abs=1e-5)
    cosines = np.array(vectors) @ np.array(vectors).T
    assert cosines[np.triu_indices(4, 1)].max() < 0.999


def test_vectors_are_the_class_token_of_the_whole_square(root):
    from transformers import AutoModel

    image = np.random.default_rng(1).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    pixels = (image / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    network = AutoModel.from_pretrained(root / "tiny/dinov2").eval()
    with torch.inference_mode():
        given = torch.tensor(pixels.transpose(2, 0, 1)[None], dtype=torch.float32)
        token = network(given).last_hidden_state[0, 0].numpy()
    embedder = build("embedder", Dino.Config(model="tiny/dinov2", device="cpu"), root)

    (vector,) = embedder.embed([image], [np.ones((SIDE, SIDE), bool)])

    assert np.allclose(vector, token / np.linalg.norm(token), atol=1e-4)


def test_the_margin_counts_that_the_processor_would_crop_away(embedder):
    image = np.random.default_rng(1).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    other = image.copy()
    other[:3] = 255 - other[:3]

    one, two = embedder.embed([image, other], [np.ones((64, 64), bool)] * 2)

    assert not np.allclose(one, two, atol=1e-3)


def test_only_what_is_inside_the_mask_counts(embedder):
    images, masks = subjects()
    others = [np.where(mask[..., None], image, 255 - image) for image, mask in zip(images, masks, strict=True)]
    shifted = [np.roll(image, 1, axis=1) for image in images]

    vectors = embedder.embed(images, masks)

    assert np.allclose(embedder.embed(others, masks), vectors, atol=1e-6)
    assert not np.allclose(embedder.embed(shifted, masks)[:3], vectors[:3], atol=1e-3)


def test_the_surroundings_are_nearly_zero_for_the_network(root, monkeypatch):
    given = []
    embedder = build("embedder", Dino.Config(model="tiny/dinov2", device="cpu"), root)
    network = embedder._network
    monkeypatch.setattr(embedder, "_network", lambda pixel_values: given.append(pixel_values) or network(pixel_values))

    embedder.embed([np.zeros((56, 56, 3), np.uint8)], [np.eye(56, dtype=bool)])

    (pixels,) = given
    assert pixels.shape == (1, 3, SIDE, SIDE)
    assert pixels[0, :, 4, 24].abs().max() < 0.02
    assert pixels[0, :, 14, 14].max() < -0.3


def test_batches_embed_as_one_by_one_and_in_order(embedder):
    images, masks = subjects()
    alone = [embedder.embed([image], [mask])[0] for image, mask in zip(images, masks, strict=True)]

    assert np.allclose(embedder.embed(images, masks), alone, atol=1e-4)
    assert np.allclose(embedder.embed(images[::-1], masks[::-1]), alone[::-1], atol=1e-4)


def test_half_precision_embeds_nearly_the_same(root, config, embedder):
    half = build("embedder", config.model_copy(update={"precision": "bfloat16"}), root).embed(*subjects())

    assert all(vector.dtype == np.float32 for vector in half)
    assert np.linalg.norm(half, axis=1) == pytest.approx(1, abs=1e-5)
    assert (np.array(half) * embedder.embed(*subjects())).sum(axis=1).min() > 0.99


def test_nothing_to_embed_costs_nothing_and_lists_must_match(embedder, monkeypatch):
    monkeypatch.setattr(embedder, "_network", None)
    images, masks = subjects()

    assert embedder.embed([], []) == []
    with pytest.raises(ValueError, match="zip"):
        embedder.embed(images, masks[:1])
    with pytest.raises(ValueError, match="does not belong"):
        embedder.embed(images[:1], masks[1:2])


def test_missing_folders_are_named(tmp_path):
    with pytest.raises(MissingWeightsError, match="facebook/dinov2-base"):
        build("embedder", Dino.Config(), tmp_path)


def test_a_checkpoint_that_lacks_a_tensor_is_refused(copied):
    root, folder = copied
    tensors = load_file(folder / "model.safetensors")
    del tensors["layernorm.weight"]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})

    with pytest.raises(UnusableWeightsError, match=r"lacks tensors of the model: layernorm\.weight"):
        build("embedder", Dino.Config(model="tiny/dinov2"), root)


def test_a_network_of_another_kind_is_refused(copied):
    root, folder = copied
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**settings, "model_type": "vit"}))

    with pytest.raises(UnusableWeightsError, match=r"of kind 'vit'; known: dinov2,"):
        build("embedder", Dino.Config(model="tiny/dinov2"), root)


def test_a_torn_checkpoint_is_refused(copied):
    root, folder = copied
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])

    with pytest.raises(UnusableWeightsError, match="fetch it again"):
        build("embedder", Dino.Config(model="tiny/dinov2"), root)


@pytest.mark.parametrize("file", ["config.json", "preprocessor_config.json"])
def test_a_folder_without_one_of_its_files_is_refused(copied, file):
    root, folder = copied
    (folder / file).unlink()

    with pytest.raises(UnusableWeightsError, match="fetch it again"):
        build("embedder", Dino.Config(model="tiny/dinov2"), root)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_said(root):
    with pytest.raises(ValueError, match="no GPU"):
        build("embedder", Dino.Config(model="tiny/dinov2", device="cuda"), root)
