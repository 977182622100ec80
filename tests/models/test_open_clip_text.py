import json
import logging
import shutil
import socket

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_clip import CLIP, SIGLIP, checkpoint, write_clip, write_tokenizer

from models.open_clip_text import OpenClipText, is_caption
from models.pretrained import UnusableWeightsError
from models.registry import MissingWeightsError, backend_config, build

CONFIGS = {
    "clip": OpenClipText.Config(model="tiny/clip", batch=2, device="cpu"),
    "siglip": OpenClipText.Config(model="tiny/siglip", batch=2, device="cpu"),
}
TEXTS = ["dog", "A cat on the road.", "bear", "dog", "a dog on the road on the road"]


@pytest.fixture(scope="module")
def networks(tmp_path_factory):
    """A folder of weights, and in it a CLIP and a SigLIP as open_clip made them."""
    root = tmp_path_factory.mktemp("weights")
    made = {"clip": write_clip(root / "tiny/clip", CLIP), "siglip": write_clip(root / "tiny/siglip", SIGLIP)}
    write_tokenizer(root / "tiny/siglip")
    return root, made


@pytest.fixture(scope="module")
def root(networks):
    return networks[0]


@pytest.fixture(scope="module", params=["clip", "siglip"])
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def scorer(root, kind):
    return build("image_text", CONFIGS[kind], root)


@pytest.fixture
def damaged(root, kind, tmp_path):
    """A copy of the weights and in it the folder to be damaged."""
    shutil.copytree(root / "tiny" / kind, tmp_path / "tiny" / kind)
    return tmp_path, tmp_path / "tiny" / kind


def pictures():
    random = np.random.default_rng(0)
    sizes = [(40, 64), (90, 50), (32, 32), (40, 64), (200, 3)]
    return [random.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes]


def test_scores_are_cosines_of_the_network_s_own_vectors(networks, scorer, kind):
    import open_clip
    from PIL import Image

    root, made = networks
    folder = f"local-dir:{root / 'tiny' / kind}"
    _, transform = open_clip.create_model_from_pretrained(folder)
    tokenize = open_clip.get_tokenizer(folder)
    asked = ["a photo of a dog", TEXTS[1], "a photo of a bear", "a photo of a dog", TEXTS[4]]
    with torch.inference_mode():
        seen = made[kind].encode_image(
            torch.stack([transform(Image.fromarray(image)) for image in pictures()]), normalize=True
        )
        named = made[kind].encode_text(tokenize(asked), normalize=True)

    scores = scorer.similarity(pictures(), TEXTS)

    assert scores == pytest.approx((seen * named).sum(dim=1).tolist(), abs=1e-4)
    assert np.ptp(scores) > 0.05
    assert all(type(score) is float and -1 <= score <= 1 for score in scores)


def test_batches_score_as_one_by_one_and_in_order(scorer):
    alone = [scorer.similarity([image], [text])[0] for image, text in zip(pictures(), TEXTS, strict=True)]

    assert scorer.similarity(pictures(), TEXTS) == pytest.approx(alone, abs=1e-4)
    assert scorer.similarity(pictures()[::-1], TEXTS[::-1]) == pytest.approx(alone[::-1], abs=1e-4)


def test_a_text_that_stands_there_often_is_embedded_once(scorer, monkeypatch):
    texts = []
    tokenize = scorer._tokenize
    monkeypatch.setattr(scorer, "_tokenize", lambda asked: texts.extend(asked) or tokenize(asked))

    scorer.similarity(pictures(), TEXTS)

    assert texts == ["a photo of a dog", TEXTS[1], "a photo of a bear", TEXTS[4]]


def test_nothing_to_score_costs_nothing(scorer, monkeypatch):
    monkeypatch.setattr(scorer, "_network", None)

    assert scorer.similarity([], []) == []
    with pytest.raises(ValueError, match="1 pictures and 0 texts"):
        scorer.similarity(pictures()[:1], [])


def test_half_precision_scores_nearly_the_same(root, kind, scorer):
    half = build("image_text", CONFIGS[kind].model_copy(update={"precision": "bfloat16"}), root)

    assert half.similarity(pictures(), TEXTS) == pytest.approx(scorer.similarity(pictures(), TEXTS), abs=0.03)


def test_texts_longer_than_the_context_are_cut_off(scorer):
    image = pictures()[:1]
    long = " ".join(["dog on the road"] * 40)

    assert scorer.similarity(image, [long]) == pytest.approx(scorer.similarity(image, [long + " cat"]), abs=1e-6)
    assert scorer.similarity(image, [""])[0] == pytest.approx(scorer.similarity(image, ["  "])[0], abs=1e-6)


def test_loading_reads_no_network_and_no_pickle_and_leaves_logging_alone(root, kind, monkeypatch, capfd):
    def refuse(*args, **options):
        raise AssertionError("not to be called")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(torch, "load", refuse)
    handlers, disabled = list(logging.root.handlers), logging.root.manager.disable

    build("image_text", CONFIGS[kind], root).similarity(pictures()[:1], ["dog"])

    assert logging.root.handlers == handlers
    assert logging.root.manager.disable == disabled
    assert capfd.readouterr() == ("", "")


def test_missing_folders_are_named(tmp_path):
    with pytest.raises(MissingWeightsError, match="CLIP-ViT-L-14-DataComp"):
        build("image_text", OpenClipText.Config(), tmp_path)


def test_a_folder_with_a_pickle_alone_is_refused(damaged, kind):
    root, folder = damaged
    checkpoint(folder).rename(folder / "open_clip_pytorch_model.bin")

    with pytest.raises(UnusableWeightsError, match=r"no open_clip_model\.safetensors.*pickles are not read"):
        build("image_text", CONFIGS[kind], root)


def test_a_checkpoint_that_lacks_a_tensor_is_refused(damaged, kind):
    root, folder = damaged
    tensors = load_file(checkpoint(folder))
    lost = next(name for name in tensors if name.endswith("ln_final.weight"))
    del tensors[lost]
    save_file(tensors, checkpoint(folder))

    with pytest.raises(UnusableWeightsError, match=lost):
        build("image_text", CONFIGS[kind], root)


def test_a_checkpoint_of_another_network_is_refused(damaged, kind):
    root, folder = damaged
    settings = json.loads((folder / "open_clip_config.json").read_text())
    settings["model_cfg"]["text_cfg"]["width"] = 48
    (folder / "open_clip_config.json").write_text(json.dumps(settings))

    with pytest.raises(UnusableWeightsError, match="loads as no network of open_clip") as caught:
        build("image_text", CONFIGS[kind], root)
    assert len(str(caught.value)) < 700


def test_a_torn_checkpoint_is_refused(damaged, kind):
    root, folder = damaged
    checkpoint(folder).write_bytes(checkpoint(folder).read_bytes()[:1000])

    with pytest.raises(UnusableWeightsError, match="loads as no network of open_clip"):
        build("image_text", CONFIGS[kind], root)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"model_cfg": {"embed_dim": 8}}'])
def test_a_configuration_that_is_none_is_refused(damaged, kind, text):
    root, folder = damaged
    (folder / "open_clip_config.json").write_text(text)

    with pytest.raises(UnusableWeightsError, match="no configuration of open_clip"):
        build("image_text", CONFIGS[kind], root)


@pytest.mark.parametrize(
    ("tower", "name", "value"),
    [("text_cfg", "hf_model_name", "xlm-roberta-large"), ("vision_cfg", "timm_model_name", "hf-hub:timm/some")],
)
def test_towers_that_lie_elsewhere_are_refused(damaged, kind, tower, name, value):
    root, folder = damaged
    settings = json.loads((folder / "open_clip_config.json").read_text())
    settings["model_cfg"][tower][name] = value
    (folder / "open_clip_config.json").write_text(json.dumps(settings))

    with pytest.raises(UnusableWeightsError, match=f"look its .* tower {value} up"):
        build("image_text", CONFIGS[kind], root)


def test_a_tokenizer_that_is_not_there_is_not_fetched(root, tmp_path):
    shutil.copytree(root / "tiny/siglip", tmp_path / "tiny/siglip")
    for file in (tmp_path / "tiny/siglip").glob("tokenizer*"):
        file.unlink()

    with pytest.raises(UnusableWeightsError, match="no tokenizer that loads"):
        build("image_text", CONFIGS["siglip"], tmp_path)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_said(root, kind):
    with pytest.raises(ValueError, match="no GPU"):
        build("image_text", CONFIGS[kind].model_copy(update={"device": "cuda"}), root)


@pytest.mark.parametrize("text", ["dog", "traffic light", "Dog.", "man in a hat", "", " "])
def test_names_go_into_the_template(text):
    assert not is_caption(text)


@pytest.mark.parametrize("text", ["a dog runs.", "dogs run!", "A dog runs", "a dog runs over the road", "who is it?"])
def test_captions_are_taken_as_they_are(text):
    assert is_caption(text)


@pytest.mark.parametrize("template", ["a photo", "{} and {}"])
def test_a_template_has_one_place(template):
    with pytest.raises(ValueError, match=r"models\.image_text\.template.*in one place"):
        backend_config("image_text", {"backend": "open_clip", "template": template})


def test_what_is_fetched_holds_no_pickle_and_no_other_checkpoint():
    (repository,) = OpenClipText.Config().repositories()

    assert repository.name == "laion/CLIP-ViT-L-14-DataComp.XL-s13B-b90K"
    assert repository.files == ("*.json", "*.txt", "*.model", "open_clip*.safetensors")
