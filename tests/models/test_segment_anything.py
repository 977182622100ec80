import importlib
import pickle
import warnings
from pathlib import Path

import numpy as np
import pytest
import segment_anything
import torch
from tiny_sam import CLIPS, DETECTIONS, detection, flat, keyframe, package_sam

from models.pretrained import UnusableWeightsError
from models.protocols import Segmenter
from models.registry import MissingWeightsError, build
from models.segment_anything import SegmentAnything
from models.torch_device import TorchConfig

FILE = SegmentAnything.Config().file


@pytest.fixture(autouse=True)
def tiny_architectures(monkeypatch):
    """The names of the real architectures stand for small ones, whose own weights are others than the checkpoint's."""
    registry = segment_anything.sam_model_registry
    monkeypatch.setitem(registry, "vit_b", lambda: package_sam(seed=1))
    monkeypatch.setitem(registry, "vit_l", lambda: package_sam(seed=1, depth=3))
    monkeypatch.setitem(registry, "vit_h", lambda: package_sam(seed=1, width=32))


def save(root, tensors, file=FILE):
    (root / file).parent.mkdir(parents=True, exist_ok=True)
    torch.save(tensors, root / file)
    return root


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return save(tmp_path_factory.mktemp("weights"), package_sam().state_dict())


@pytest.fixture
def make(root):
    return lambda **options: build("segmenter", SegmentAnything.Config(**{"device": "cpu", **options}), root)


@pytest.fixture
def segmenter(make):
    return make()


def test_one_mask_per_detection_at_the_size_of_its_image(segmenter):
    assert isinstance(segmenter, Segmenter)
    found = segmenter.segment(CLIPS, DETECTIONS)

    assert [[len(frame) for frame in clip] for clip in found] == [[2, 1], [], [1, 0, 3, 1]]
    assert [one.mask.shape for one in flat(found)] == [(48, 64)] * 2 + [(90, 70), (100, 30)] + [(64, 64)] * 3 + [(3, 2)]
    assert all(one.mask.dtype == np.bool_ for one in flat(found))
    assert all(0.02 < one.mask.mean() < 0.98 for one in flat(found))
    assert all(type(one.score) is float and 0 < one.score < 1 for one in flat(found))


def test_masks_are_those_of_the_package_s_own_predictor_for_a_single_mask(segmenter):
    predictor = segment_anything.SamPredictor(package_sam())
    results = segmenter.segment(CLIPS, DETECTIONS)
    for keyframes, detections, frames in zip(CLIPS, DETECTIONS, results, strict=True):
        for frame, wanted, found in zip(keyframes, detections, frames, strict=True):
            predictor.set_image(frame.image)
            for one, segmentation in zip(wanted, found, strict=True):
                masks, ious, _ = predictor.predict(box=np.array(one.box), multimask_output=False)
                assert (masks[0] != segmentation.mask).mean() < 0.002
                assert segmentation.score == pytest.approx(float(ious[0]), abs=1e-4)


@pytest.mark.parametrize("batch", [1, 2, 3, 8])
def test_micro_batches_of_all_clips_give_what_each_frame_gives_alone(make, batch):
    one_by_one = make(batch=1)
    alone = [
        one_by_one.segment([[frame]], [[wanted]])[0][0]
        for keyframes, detections in zip(CLIPS, DETECTIONS, strict=True)
        for frame, wanted in zip(keyframes, detections, strict=True)
    ]
    together = [frame for clip in make(batch=batch).segment(CLIPS, DETECTIONS) for frame in clip]

    assert len(alone) == len(together)
    for left, right in zip(flat([alone]), flat([together]), strict=True):
        assert (left.mask != right.mask).mean() < 0.002
        assert left.score == pytest.approx(right.score, abs=1e-4)


def test_boxes_of_one_frame_do_not_influence_one_another_and_choose_the_mask(segmenter):
    frame, wanted = CLIPS[2][2], DETECTIONS[2][2]
    together = segmenter.segment([[frame]], [[wanted]])[0][0]
    alone = [segmenter.segment([[frame]], [[[one]]])[0][0][0] for one in wanted]

    for left, right in zip(together, alone, strict=True):
        assert (left.mask != right.mask).mean() < 0.002
        assert left.score == pytest.approx(right.score, abs=1e-4)
    assert (together[0].mask != together[2].mask).mean() > 0.02


def test_only_frames_with_detections_are_encoded_and_in_micro_batches(make):
    segmenter = make(batch=2)
    encoded, decoded = [], []
    network = segmenter._network
    network.image_encoder.register_forward_pre_hook(lambda _, inputs: encoded.append(len(inputs[0])))
    network.mask_decoder.register_forward_hook(lambda _, inputs, outputs: decoded.append(len(outputs[0])))

    segmenter.segment(CLIPS, DETECTIONS)
    assert encoded == [2, 2, 1]
    assert decoded == [2, 1, 1, 3, 1]

    encoded.clear()
    assert segmenter.segment([], []) == []
    assert segmenter.segment([[], [keyframe(8, 8)]], [[], [[]]]) == [[], [[]]]
    assert encoded == []


def test_boxes_are_scaled_as_the_image_is(segmenter):
    boxes = []
    segmenter._network.prompt_encoder.register_forward_pre_hook(
        lambda _, __, inputs: boxes.append(inputs["boxes"].tolist()), with_kwargs=True
    )
    segmenter.segment(
        [[keyframe(32, 128), keyframe(32, 16)]], [[[detection(10, 4, 100.5, 30)], [detection(1, 2, 3, 4)]]]
    )

    assert boxes == [[[5, 2, 50.25, 15]], [[2, 4, 6, 8]]]


def test_read_only_frames_are_taken_as_they_are(segmenter):
    assert not CLIPS[0][0].image.flags.writeable
    torch.set_warn_always(True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            segmenter.segment(CLIPS, DETECTIONS)
    finally:
        torch.set_warn_always(False)


def test_bfloat16_is_for_the_encoder_alone_and_results_are_the_same_kind(make):
    inputs = {}
    for precision in ("float32", "bfloat16"):
        segmenter = make(precision=precision)
        network = segmenter._network
        network.mask_decoder.register_forward_pre_hook(
            lambda _, __, given, precision=precision: inputs.update({precision: given}), with_kwargs=True
        )
        found = flat(segmenter.segment(CLIPS[:1], DETECTIONS[:1]))
        assert [one.mask.shape for one in found] == [(48, 64), (48, 64), (90, 70)]
        assert all(one.mask.dtype == np.bool_ and type(one.score) is float for one in found)
        own = {p.dtype for n, p in network.named_parameters() if n.startswith("image_encoder")}
        rest = {p.dtype for n, p in network.named_parameters() if not n.startswith("image_encoder")}
        assert (own, rest) == ({getattr(torch, precision)}, {torch.float32})

    exact, coarse = inputs["float32"], inputs["bfloat16"]
    for prompts in ("sparse_prompt_embeddings", "dense_prompt_embeddings"):
        assert torch.equal(exact[prompts], coarse[prompts])
    image, rough = exact["image_embeddings"].flatten(), coarse["image_embeddings"].flatten()
    assert rough.dtype == torch.float32
    assert not torch.equal(image, rough)
    assert torch.corrcoef(torch.stack([image, rough]))[0, 1] > 0.99


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_cuda_without_a_gpu_is_an_error_that_says_so(make):
    with pytest.raises(ValueError, match="no GPU here"):
        make(device="cuda")


def test_a_missing_checkpoint_is_named(tmp_path):
    with pytest.raises(MissingWeightsError, match=r"sam_vit_b_01ec64\.pth"):
        build("segmenter", SegmentAnything.Config(), tmp_path)


@pytest.mark.parametrize("architecture", ["vit_l", "vit_h"])
@pytest.mark.parametrize("asked", ["vit_b", "vit_l", "vit_h"])
def test_a_checkpoint_of_another_architecture_is_refused(tmp_path, architecture, asked):
    save(tmp_path, segment_anything.sam_model_registry[architecture]().state_dict())
    config = SegmentAnything.Config(architecture=asked, device="cpu")

    if asked == architecture:
        build("segmenter", config, tmp_path)
    else:
        with pytest.raises(UnusableWeightsError, match=rf"sam_vit_b_01ec64\.pth is no {asked}.*set `architecture`"):
            build("segmenter", config, tmp_path)


@pytest.mark.parametrize(("saved", "asked"), [("vit_l", "vit_b"), ("vit_b", "vit_l"), ("vit_h", "vit_b")])
def test_the_real_architectures_are_told_apart(tmp_path, monkeypatch, saved, asked):
    build_sam = importlib.import_module("segment_anything.build_sam")
    real = {"vit_b": build_sam.build_sam_vit_b, "vit_l": build_sam.build_sam_vit_l, "vit_h": build_sam.build_sam_vit_h}

    def bare(name):
        with torch.device("meta"):
            return real[name]()

    monkeypatch.setitem(segment_anything.sam_model_registry, asked, lambda: bare(asked))
    # One number behind each tensor: the checkpoint has the real shapes and a few kilobytes.
    save(tmp_path, {name: torch.zeros(1).expand(tensor.shape) for name, tensor in bare(saved).state_dict().items()})

    with pytest.raises(UnusableWeightsError, match=f"is no {asked}"):
        build("segmenter", SegmentAnything.Config(architecture=asked, device="cpu"), tmp_path)


def test_a_checkpoint_that_lacks_a_tensor_is_refused(tmp_path):
    tensors = package_sam().state_dict()
    del tensors["mask_decoder.iou_token.weight"]
    save(tmp_path, tensors)

    with pytest.raises(UnusableWeightsError, match=r"lacks tensors.*mask_decoder\.iou_token\.weight"):
        build("segmenter", SegmentAnything.Config(device="cpu"), tmp_path)


class Burglar:
    def __reduce__(self):
        return Path.touch, (Path("burgled"),)


@pytest.mark.parametrize(
    "write",
    [
        lambda file: file.write_bytes(b""),
        lambda file: file.write_bytes(b"version https://git-lfs.github.com/spec/v1\n"),
        lambda file: file.write_bytes(pickle.dumps({"weights": Burglar()}, 2)),
        lambda file: torch.save({"weights": Burglar()}, file),
        lambda file: torch.save([torch.zeros(1)], file),
        lambda file: torch.save({"model": {"a": torch.zeros(1)}}, file),
    ],
    ids=["an empty file", "a pointer", "a pickle", "a checkpoint with code in it", "a list", "a nested checkpoint"],
)
def test_what_is_no_checkpoint_is_refused_and_never_run(tmp_path, monkeypatch, write):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / FILE
    file.parent.mkdir(parents=True)
    write(file)

    with pytest.raises(UnusableWeightsError, match=r"sam_vit_b_01ec64\.pth"):
        build("segmenter", SegmentAnything.Config(device="cpu"), tmp_path)
    assert not (tmp_path / "burgled").exists()


def test_checkpoints_come_from_the_hub_unless_they_are_one_s_own():
    (default,) = SegmentAnything.Config().repositories()
    assert (default.name, default.files) == ("ybelkada/segment-anything", ("checkpoints/sam_vit_b_01ec64.pth",))

    huge = SegmentAnything.Config(
        architecture="vit_h", file="ybelkada/segment-anything/checkpoints/sam_vit_h_4b8939.pth"
    )
    assert huge.repositories()[0].files == ("checkpoints/sam_vit_h_4b8939.pth",)
    assert SegmentAnything.Config(file="mine/tuned.pth").repositories() == []
    assert SegmentAnything.Config(file="mine/tuned.pth").weights(Path("root")) == [Path("root/mine/tuned.pth")]
    assert issubclass(SegmentAnything.Config, TorchConfig)
