import json
import shutil
import warnings

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_sam import CLIPS, DETECTIONS, SAM2_PARTS, detection, flat, keyframe, package_sam, sam2, transformers_sam

from models.pretrained import UnusableWeightsError
from models.protocols import Segmenter
from models.registry import MissingWeightsError, build
from models.sam2 import Sam2

MODEL = "owner/tiny-sam2"


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("weights")
    for part in sam2():
        part.save_pretrained(root / MODEL)
    return root


@pytest.fixture
def make(root):
    return lambda **options: build("segmenter", Sam2.Config(**{"model": MODEL, "device": "cpu", **options}), root)


@pytest.fixture(scope="module")
def segmenter(root):
    return build("segmenter", Sam2.Config(model=MODEL, device="cpu"), root)


def test_one_mask_per_detection_at_the_size_of_its_image(segmenter):
    assert isinstance(segmenter, Segmenter)
    found = segmenter.segment(CLIPS, DETECTIONS)

    assert [[len(frame) for frame in clip] for clip in found] == [[2, 1], [], [1, 0, 3, 1]]
    assert [one.mask.shape for one in flat(found)] == [(48, 64)] * 2 + [(90, 70), (100, 30)] + [(64, 64)] * 3 + [(3, 2)]
    assert all(one.mask.dtype == np.bool_ for one in flat(found))
    assert all(0.02 < one.mask.mean() < 0.98 for one in flat(found))
    assert all(type(one.score) is float and 0 < one.score < 1 for one in flat(found))


def test_masks_are_those_of_transformers_own_processor_for_a_single_mask(segmenter):
    from transformers import Sam2Processor

    network, image_processor = sam2()
    processor = Sam2Processor(image_processor)
    results = segmenter.segment(CLIPS, DETECTIONS)
    for keyframes, detections, frames in zip(CLIPS, DETECTIONS, results, strict=True):
        for frame, wanted, found in zip(keyframes, detections, frames, strict=True):
            if not wanted:
                continue
            inputs = processor(
                np.array(frame.image),
                input_boxes=[[list(map(float, one.box)) for one in wanted]],
                return_tensors="pt",
                input_data_format="channels_last",
            )
            with torch.no_grad():
                outputs = network(
                    pixel_values=inputs["pixel_values"],
                    input_boxes=inputs["input_boxes"].float(),
                    multimask_output=False,
                )
            (masks,) = image_processor.post_process_masks(outputs.pred_masks, inputs["original_sizes"])
            for one, mask, score in zip(found, masks[:, 0].numpy(), outputs.iou_scores.flatten(), strict=True):
                assert (mask != one.mask).mean() < 0.002
                assert one.score == pytest.approx(float(score), abs=1e-4)


@pytest.mark.parametrize("batch", [1, 2, 3, 8])
def test_micro_batches_of_all_clips_give_what_each_frame_gives_alone(make, segmenter, batch):
    alone = [
        segmenter.segment([[frame]], [[wanted]])[0][0]
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
    network.vision_encoder.register_forward_pre_hook(lambda _, inputs: encoded.append(len(inputs[0])))
    network.mask_decoder.register_forward_hook(lambda _, inputs, outputs: decoded.append(tuple(outputs[0].shape[:3])))

    segmenter.segment(CLIPS, DETECTIONS)
    assert encoded == [2, 2, 1]
    assert decoded == [(1, boxes, 1) for boxes in (2, 1, 1, 3, 1)]

    encoded.clear()
    assert segmenter.segment([], []) == []
    assert segmenter.segment([[], [keyframe(8, 8)]], [[], [[]]]) == [[], [[]]]
    assert encoded == []


def test_boxes_are_scaled_as_the_image_is(make):
    segmenter, boxes = make(), []
    segmenter._network.prompt_encoder.register_forward_pre_hook(
        lambda _, __, inputs: boxes.append(inputs["input_boxes"].tolist()), with_kwargs=True
    )
    segmenter.segment(
        [[keyframe(32, 128), keyframe(32, 16)]], [[[detection(10, 4, 100.5, 30)], [detection(1, 2, 3, 4)]]]
    )

    assert boxes == [[[[5, 8, 50.25, 60]]], [[[4, 4, 12, 8]]]]


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
        own = {p.dtype for n, p in network.named_parameters() if n.startswith("vision_encoder")}
        rest = {p.dtype for n, p in network.named_parameters() if not n.startswith("vision_encoder")}
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


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(MissingWeightsError, match=r"sam2\.1-hiera-large"):
        build("segmenter", Sam2.Config(), tmp_path)


@pytest.fixture
def copy(root, tmp_path):
    shutil.copytree(root / MODEL, tmp_path / MODEL)
    return tmp_path


def test_a_checkpoint_that_lacks_a_tensor_is_refused(copy):
    file = copy / MODEL / "model.safetensors"
    tensors = load_file(file)
    del tensors["mask_decoder.iou_token.weight"]
    save_file(tensors, file, {"format": "pt"})

    with pytest.raises(UnusableWeightsError, match=r"lacks tensors.*mask_decoder\.iou_token\.weight"):
        build("segmenter", Sam2.Config(model=MODEL, device="cpu"), copy)


def test_a_network_of_another_size_than_its_config_is_refused(copy):
    file = copy / MODEL / "config.json"
    config = json.loads(file.read_text())
    config["vision_config"]["backbone_config"]["blocks_per_stage"][2] += 1
    file.write_text(json.dumps(config))

    with pytest.raises(UnusableWeightsError, match=r"vision_encoder\.backbone\.blocks"):
        build("segmenter", Sam2.Config(model=MODEL, device="cpu"), copy)


def test_a_folder_without_an_image_processor_is_refused(copy):
    (copy / MODEL / "preprocessor_config.json").unlink()

    with pytest.raises(UnusableWeightsError, match="Sam2ImageProcessor"):
        build("segmenter", Sam2.Config(model=MODEL, device="cpu"), copy)


def as_once(folder, image_processor):
    """One file per processor, of names that transformers had then."""
    described = {**image_processor.to_dict(), "image_processor_type": "Sam2ImageProcessorFast"}
    described["processor_class"] = "Sam2VideoProcessor"
    (folder / "preprocessor_config.json").write_text(json.dumps(described, default=str))
    (folder / "processor_config.json").write_text('{"processor_class": "Sam2VideoProcessor", "target_size": 64}')


def as_now(folder, image_processor):
    """One file for all processors."""
    from transformers import Sam2VideoProcessor, Sam2VideoVideoProcessor

    Sam2VideoProcessor(image_processor, Sam2VideoVideoProcessor(size={"height": 64, "width": 64})).save_pretrained(
        folder
    )


@pytest.mark.parametrize("save_processors", [as_once, as_now])
def test_the_checkpoints_on_the_hub_which_are_of_the_video_model_are_taken(tmp_path, segmenter, save_processors):
    from transformers import Sam2VideoConfig, Sam2VideoModel

    image_network, image_processor = sam2()
    network = Sam2VideoModel(Sam2VideoConfig(**SAM2_PARTS, image_size=64))
    assert not network.load_state_dict(image_network.state_dict(), strict=False).unexpected_keys
    network.save_pretrained(tmp_path / MODEL)
    save_processors(tmp_path / MODEL, image_processor)
    from_video = build("segmenter", Sam2.Config(model=MODEL, device="cpu"), tmp_path)

    assert json.loads((tmp_path / MODEL / "config.json").read_text())["model_type"] == "sam2_video"
    for left, right in zip(
        flat(segmenter.segment(CLIPS, DETECTIONS)), flat(from_video.segment(CLIPS, DETECTIONS)), strict=True
    ):
        assert (left.mask != right.mask).mean() < 0.002
        assert left.score == pytest.approx(right.score, abs=1e-4)


def test_another_network_is_refused(tmp_path):
    for part in transformers_sam(package_sam()):
        part.save_pretrained(tmp_path / MODEL)

    with pytest.raises(UnusableWeightsError, match="owner/tiny-sam2"):
        build("segmenter", Sam2.Config(model=MODEL, device="cpu"), tmp_path)
