import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_clip import CLIP, SIGLIP, checkpoint, write_clip

from models.open_clip_image import OpenClipImage
from models.pretrained import UnusableWeightsError
from models.registry import MissingWeightsError, build

CONFIG = OpenClipImage.Config(model="tiny/clip", batch=2, device="cpu")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("weights")
    write_clip(root / "tiny/clip", CLIP)
    # The embedder needs no tokenizer.
    write_clip(root / "tiny/siglip", SIGLIP)
    return root


@pytest.fixture(scope="module")
def embedder(root):
    return build("embedder", CONFIG, root)


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


@pytest.mark.parametrize(("model", "length"), [("tiny/clip", 24), ("tiny/siglip", 64)])
def test_vectors_are_of_unit_length_and_differ(root, model, length):
    vectors = build("embedder", CONFIG.model_copy(update={"model": model}), root).embed(*subjects())

    assert [vector.shape for vector in vectors] == [(length,)] * 4
    assert all(vector.dtype == np.float32 for vector in vectors)
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(1, abs=1e-5)
    cosines = np.array(vectors) @ np.array(vectors).T
    assert cosines[np.triu_indices(4, 1)].max() < 0.99


def test_only_what_is_inside_the_mask_counts(embedder):
    images, masks = subjects()
    others = [np.where(mask[..., None], image, 255 - image) for image, mask in zip(images, masks, strict=True)]
    shifted = [np.roll(image, 1, axis=1) for image in images]

    vectors = embedder.embed(images, masks)

    assert np.allclose(embedder.embed(others, masks), vectors, atol=1e-6)
    assert not np.allclose(embedder.embed(shifted, masks)[:3], vectors[:3], atol=0.01)


def test_where_in_the_picture_the_subject_is_does_not_count(embedder):
    (image, *_), (mask, *_) = subjects()
    moved = np.pad(image, ((20, 5), (3, 40), (0, 0)), mode="edge")

    (here, there) = embedder.embed([image, moved], [mask, np.pad(mask, ((20, 5), (3, 40)))])

    assert np.allclose(here, there, atol=1e-5)


def test_the_surroundings_are_nearly_zero_for_the_network(embedder, monkeypatch):
    given = []
    monkeypatch.setattr(embedder, "_network", embedder._network)
    monkeypatch.setattr(
        embedder._network._network, "encode_image", lambda pixels: given.append(pixels) or torch.ones(len(pixels), 24)
    )

    embedder.embed([np.zeros((64, 64, 3), np.uint8)], [np.eye(64, dtype=bool)])

    (pixels,) = given
    assert pixels.shape == (1, 3, 32, 32)
    assert pixels[0, :, 4, 24].abs().max() < 0.02
    assert pixels[0, :, 16, 16].max() < -0.3


def test_batches_embed_as_one_by_one_and_in_order(embedder):
    images, masks = subjects()
    alone = [embedder.embed([image], [mask])[0] for image, mask in zip(images, masks, strict=True)]

    assert np.allclose(embedder.embed(images, masks), alone, atol=1e-4)
    assert np.allclose(embedder.embed(images[::-1], masks[::-1]), alone[::-1], atol=1e-4)


def test_half_precision_embeds_nearly_the_same(root, embedder):
    half = build("embedder", CONFIG.model_copy(update={"precision": "bfloat16"}), root).embed(*subjects())

    assert all(vector.dtype == np.float32 for vector in half)
    assert np.linalg.norm(half, axis=1) == pytest.approx(1, abs=1e-5)
    assert (np.array(half) * embedder.embed(*subjects())).sum(axis=1).min() > 0.99


def test_nothing_to_embed_costs_nothing_and_lists_must_match(embedder):
    images, masks = subjects()

    assert embedder.embed([], []) == []
    with pytest.raises(ValueError, match="zip"):
        embedder.embed(images, masks[:1])
    with pytest.raises(ValueError, match="does not belong"):
        embedder.embed(images[:1], masks[1:2])


def test_a_read_only_picture_is_embedded_in_silence(embedder, recwarn):
    images, masks = subjects()
    images[0].flags.writeable = False

    embedder.embed(images[:1], masks[:1])

    assert not recwarn.list


def test_missing_folders_are_named_and_damaged_ones_refused(root, tmp_path):
    with pytest.raises(MissingWeightsError, match="tiny/clip"):
        build("embedder", CONFIG, tmp_path)
    folder = tmp_path / "tiny/clip"
    shutil.copytree(root / "tiny/clip", folder)
    tensors = load_file(checkpoint(folder))
    del tensors["visual.proj"]
    save_file(tensors, checkpoint(folder))
    with pytest.raises(UnusableWeightsError, match=r"visual\.proj"):
        build("embedder", CONFIG, tmp_path)
