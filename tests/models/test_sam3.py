import shutil

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from models.masks import box_of, mask_iou
from models.pretrained import UnusableWeightsError
from models.protocols import Keyframe
from models.registry import MissingWeightsError, backend_config, build
from models.sam3 import DUPLICATE_IOU, Sam3, without_duplicates
from models.vocabulary import VOCABULARY

MODEL = "owner/tiny-sam3"
SIDE = 56
LOW = 16
"""Side of the masks before they are enlarged."""
EASY = 0.02
"""A score that the random network gives to something in most pictures."""


def save_checkpoint(folder):
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import (
        CLIPTokenizer,
        Sam2VideoVideoProcessor,
        Sam3ImageProcessor,
        Sam3VideoConfig,
        Sam3VideoModel,
        Sam3VideoProcessor,
    )

    # The tracker wants 64 channels of memory, and more of everything else.
    width = 128
    vision = {
        "model_type": "sam3_vision_model",
        "backbone_config": {
            "model_type": "sam3_vit_model",
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": SIDE,
            "window_size": 2,
            "global_attn_indexes": [1],
            "pretrain_image_size": 28,
        },
        "fpn_hidden_size": width,
        "backbone_feature_sizes": [[16, 16], [8, 8], [4, 4]],
    }
    layer = {"hidden_size": width, "num_layers": 1, "num_attention_heads": 4, "intermediate_size": 16}
    alphabet = sorted(ByteLevel.alphabet())
    tokens = ["<|startoftext|>", "<|endoftext|>", *alphabet, *(letter + "</w>" for letter in alphabet)]
    config = Sam3VideoConfig(
        low_res_mask_size=LOW,
        detector_config={
            "model_type": "sam3",
            "vision_config": vision,
            "text_config": {
                "model_type": "clip_text_model",
                "vocab_size": len(tokens),
                "hidden_size": 16,
                "intermediate_size": 16,
                "projection_dim": 16,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "max_position_embeddings": 32,
                "bos_token_id": 0,
                "eos_token_id": 1,
                "pad_token_id": 1,
            },
            "geometry_encoder_config": layer,
            "detr_encoder_config": layer,
            "detr_decoder_config": {**layer, "num_queries": 4},
            "mask_decoder_config": {"hidden_size": width, "num_attention_heads": 4},
        },
        tracker_config={
            "model_type": "sam3_tracker_video",
            "vision_config": vision,
            "image_size": SIDE,
            "prompt_encoder_config": {"hidden_size": width, "image_size": SIDE, "mask_input_channels": 4},
            "mask_decoder_config": {
                "hidden_size": width,
                "mlp_dim": 16,
                "num_attention_heads": 2,
                "iou_head_hidden_dim": 16,
            },
            "num_maskmem": 3,
            "max_object_pointers_in_encoder": 4,
            "memory_attention_hidden_size": width,
            "memory_attention_num_layers": 1,
            "memory_attention_feed_forward_hidden_size": 16,
            "memory_attention_rope_feat_sizes": [4, 4],
            "memory_encoder_hidden_size": width,
            "mask_downsampler_embed_dim": width,
            "memory_fuser_num_layers": 1,
            "memory_fuser_embed_dim": width,
            "memory_fuser_intermediate_dim": 16,
        },
    )
    torch.manual_seed(0)
    network = Sam3VideoModel(config)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    network.config.save_pretrained(folder)
    # Under the network's own names; `save_pretrained` would write `tracker_model.` twice.
    save_file(network.state_dict(), folder / "model.safetensors", metadata={"format": "pt"})
    size = {"height": SIDE, "width": SIDE}
    half = [0.5, 0.5, 0.5]
    Sam3VideoProcessor(
        Sam3ImageProcessor(size=size),
        Sam2VideoVideoProcessor(size=size, image_mean=half, image_std=half),
        CLIPTokenizer(vocab={token: index for index, token in enumerate(tokens)}, merges=[]),
    ).save_pretrained(folder)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    save_checkpoint(root / MODEL)
    return root


def config(**options):
    return Sam3.Config(model=MODEL, device="cpu", **options)


@pytest.fixture(scope="module")
def detector(root):
    return build("detector", config(min_score=EASY, batch=3), root)


def clip(seed, length, height, width):
    random = np.random.default_rng(seed)
    images = [random.integers(0, 255, (height, width, 3), dtype=np.uint8) for _ in range(length)]
    return [Keyframe(float(index), image, image) for index, image in enumerate(images)]


CLIPS = [clip(0, 5, 40, 60), clip(1, 2, 56, 30), clip(2, 1, 33, 33)]
WORDS = [["dog", "cat"], ["dog"], ["violin", "car"]]


def test_the_config_reads_its_options_and_names_the_repository():
    options = backend_config("detector", {"backend": "sam3", "min_score": 0.4, "default_words": ["dog"]})

    assert isinstance(options, Sam3.Config)
    assert options.default_words == ("dog",)
    assert options.repositories()[0].name == options.model == "facebook/sam3"
    with pytest.raises(ValueError, match="default_words"):
        backend_config("detector", {"backend": "sam3", "default_words": []})


def test_the_words_it_looks_for_by_itself_are_in_the_vocabulary():
    words = Sam3.Config().default_words

    assert set(words) <= set(VOCABULARY)
    assert {VOCABULARY[word].category for word in words} == {"person", "animal", "vehicle"}


def test_masks_have_the_image_s_size_and_boxes_lie_around_them(detector):
    result = detector.detect(CLIPS, WORDS)

    assert [len(per_frame) for per_frame in result] == [5, 2, 1]
    seen = 0
    for keyframes, per_frame, words in zip(CLIPS, result, WORDS, strict=True):
        for keyframe, in_frame in zip(keyframes, per_frame, strict=True):
            assert len({detection.instance for detection in in_frame}) == len(in_frame)
            for detection in in_frame:
                seen += 1
                assert detection.word in words
                assert detection.prior.shape == keyframe.image.shape[:2]
                assert detection.prior.dtype == np.bool_
                assert detection.box == box_of(detection.prior)
                assert 0 <= detection.score <= 1
                assert type(detection.score) is float
                assert type(detection.instance) is int
    assert seen >= 5


def test_an_instance_has_one_word_through_the_clip(detector):
    [per_frame] = detector.detect(CLIPS[:1], WORDS[:1])

    names = {(detection.instance, detection.word) for in_frame in per_frame for detection in in_frame}
    assert len({instance for instance, _ in names}) == len(names)
    assert sum(len(in_frame) for in_frame in per_frame) > len(names)


def test_it_finds_what_transformers_own_video_session_finds(root, detector, monkeypatch):
    from transformers import Sam3VideoModel

    network, processor = Sam3VideoModel.from_pretrained(root / MODEL).eval(), detector._processor
    network.new_det_thresh = network.score_threshold_detection = EASY
    network.hotstart_delay, network.fill_hole_area, network.det_nms_thresh = 0, 0, 0.0
    network.max_num_objects = detector.config.max_objects
    session = processor.init_video_session(video=[keyframe.image for keyframe in CLIPS[0]])
    processor.add_text_prompt(session, WORDS[0])
    expected = []
    for output in network.propagate_in_video_iterator(session):
        finished = processor.postprocess_outputs(session, output)
        words = {number: word for word, numbers in finished["prompt_to_obj_ids"].items() for number in numbers}
        expected.append(
            [
                (words[number], number, mask)
                for number, mask in zip(finished["object_ids"].tolist(), finished["masks"].numpy(), strict=True)
                if mask.any()
            ]
        )
    monkeypatch.setattr("models.sam3.DUPLICATE_IOU", 1.0)

    [found] = detector.detect(CLIPS[:1], WORDS[:1])

    assert sum(map(len, expected)) >= 5
    for in_frame, wanted in zip(found, expected, strict=True):
        assert [(detection.word, detection.instance) for detection in in_frame] == [entry[:2] for entry in wanted]
        for detection, (_, _, mask) in zip(in_frame, wanted, strict=True):
            assert mask_iou(detection.prior, mask) > 0.99


def test_a_batch_of_clips_gives_what_one_by_one_gives_in_order(detector):
    together = detector.detect(CLIPS, WORDS)
    alone = [detector.detect([keyframes], [words])[0] for keyframes, words in zip(CLIPS, WORDS, strict=True)]

    for left, right in zip(together, alone, strict=True):
        for these, those in zip(left, right, strict=True):
            assert [(one.word, one.instance) for one in these] == [(other.word, other.instance) for other in those]
            for one, other in zip(these, those, strict=True):
                assert one.score == pytest.approx(other.score, abs=1e-3)
                assert mask_iou(one.prior, other.prior) > 0.99


def test_pictures_are_encoded_in_batches_across_clips(detector, monkeypatch):
    sizes = []
    encoder = detector._network.detector_model.vision_encoder
    encode = encoder.forward

    def counted(pixels):
        sizes.append(len(pixels))
        return encode(pixels)

    monkeypatch.setattr(encoder, "forward", counted)
    detector.detect(CLIPS, WORDS)

    assert sizes == [3, 3, 2]


def test_no_pictures_cost_nothing(detector, monkeypatch):
    monkeypatch.setattr(detector, "_network", None)

    assert detector.detect([], []) == []
    with pytest.raises(TypeError):
        detector.detect(CLIPS, WORDS)


def test_a_clip_without_keyframes_has_an_empty_place(detector):
    result = detector.detect([[], CLIPS[1]], [["dog"], []])

    assert [len(per_frame) for per_frame in result] == [0, 2]


def test_it_asks_for_every_word_once_and_for_words_of_its_own_where_there_are_none(root, monkeypatch):
    detector = build("detector", config(default_words=("bird", "dog")), root)
    asked = []
    add = detector._processor.add_text_prompt

    def recorded(session, words):
        asked.append(words)
        return add(session, words)

    monkeypatch.setattr(detector._processor, "add_text_prompt", recorded)
    detector.detect(CLIPS[1:], [["cat", "dog", "cat"], []])

    assert asked == [["cat", "dog"], ["bird", "dog"]]


def test_what_scores_less_than_asked_for_is_not_found(root):
    detector = build("detector", config(min_score=0.999), root)

    assert detector.detect(CLIPS, WORDS) == [[[] for _ in keyframes] for keyframes in CLIPS]


def test_it_fetches_no_code(detector, monkeypatch):
    from transformers.models.sam3_video import modeling_sam3_video

    def refuse():
        raise AssertionError("it fetches a kernel from the hub")

    monkeypatch.setattr(modeling_sam3_video, "_load_cv_utils_kernel_once", refuse)

    assert any(detector.detect(CLIPS[:1], WORDS[:1])[0])


def left(value=10.0):
    """Logits of the left half."""
    logits = torch.full((LOW, LOW), -value)
    logits[:, : LOW // 2] = value
    return logits


def script(detector, monkeypatch, detections, followed):
    """Let the network find and follow what the test says: per keyframe, by prompt and by object."""
    network = detector._network

    def find(inference_session, vision_embeds):
        index = len(found)
        found.append(index)
        answer = {}
        for prompt in inference_session.prompts:
            here = detections[index].get(prompt, [])
            masks = torch.stack([mask for mask, _ in here]) if here else torch.zeros(0, LOW, LOW)
            scores = torch.tensor([score for _, score in here])
            answer[prompt] = {"bbox": torch.zeros(len(here), 4), "mask": masks, "scores": scores}
        return answer

    def propagate(inference_session, frame_idx, reverse):
        count = len(inference_session.obj_ids)
        if not count:
            return torch.zeros(0, LOW, LOW), torch.zeros(0)
        network.tracker_model(
            inference_session=inference_session, frame_idx=frame_idx, reverse=reverse, run_mem_encoder=False
        )
        masks, logits = zip(*followed[frame_idx][:count], strict=True)
        return torch.stack(masks), torch.tensor(logits)

    found = []
    monkeypatch.setattr(network, "run_detection", find)
    monkeypatch.setattr(network, "run_tracker_propagation", propagate)


def test_words_boxes_scores_and_instances_come_from_what_is_found_and_followed(detector, monkeypatch):
    nothing = torch.full((LOW, LOW), -10.0)
    script(
        detector,
        monkeypatch,
        [{1: [(left(), 0.9)]}, {0: [(-left(), 0.75)]}, {}],
        [[], [(left(), 3.0)], [(nothing, -5.0), (-left(), -1.0)]],
    )

    [per_frame] = detector.detect([clip(0, 3, 32, 48)], [["dog", "cat"]])

    places = [[(found.word, found.instance, found.box) for found in in_frame] for in_frame in per_frame]
    assert places == [
        [("cat", 0, (0, 0, 24, 32))],
        [("cat", 0, (0, 0, 24, 32)), ("dog", 1, (24, 0, 48, 32))],
        [("dog", 1, (24, 0, 48, 32))],
    ]
    scores = [[found.score for found in in_frame] for in_frame in per_frame]
    assert scores[0] == pytest.approx([0.9])
    assert scores[1] == pytest.approx([0.9, 0.75])
    assert scores[2] == pytest.approx([1 / (1 + np.exp(1.0))])


def test_a_subject_that_the_words_find_once_is_followed_to_the_end(detector, monkeypatch):
    length = 12
    script(detector, monkeypatch, [{0: [(left(), 0.9)]}] + [{}] * (length - 1), [[(left(), 3.0)]] * length)

    [per_frame] = detector.detect([clip(0, length, 32, 48)], [["dog"]])

    assert [[found.instance for found in in_frame] for in_frame in per_frame] == [[0]] * length


def test_at_most_so_many_subjects_are_followed_and_they_are_the_best(root, monkeypatch):
    detector = build("detector", config(min_score=0.1, max_objects=1), root)
    script(detector, monkeypatch, [{0: [(left(), 0.5)], 1: [(-left(), 0.6)]}], [[]])

    [[in_frame]] = detector.detect([clip(0, 1, 32, 48)], [["dog", "cat"]])

    assert [found.word for found in in_frame] == ["cat"]


def test_one_thing_found_twice_is_one_subject(root, monkeypatch):
    detector = build("detector", config(min_score=0.1), root)
    decoder = detector._network.detector_model
    answer = decoder.forward

    def twice(**inputs):
        output = answer(**inputs)
        output.pred_logits = torch.full_like(output.pred_logits, -9.0)
        output.pred_logits[:, :2] = torch.tensor([2.0, 1.0])
        output.presence_logits = torch.full_like(output.presence_logits, 9.0)
        output.pred_masks[:, :2] = left()
        output.pred_masks[:, 1, :, LOW // 2 + 1] = 10.0
        return output

    monkeypatch.setattr(decoder, "forward", twice)
    [[in_frame]] = detector.detect([clip(0, 1, 32, 48)], [["dog", "cat"]])

    assert [(found.word, found.box) for found in in_frame] == [("dog", (0, 0, 24, 32)), ("cat", (0, 0, 24, 32))]
    assert [found.score for found in in_frame] == pytest.approx([0.8807, 0.8807], abs=1e-3)


def found_masks(*spans):
    """Masks of one row each, and their scores."""
    masks = torch.full((len(spans), 1, 40), -1.0)
    for index, (start, end, _) in enumerate(spans):
        masks[index, 0, start:end] = 1.0
    return {"mask": masks, "scores": torch.tensor([score for *_, score in spans])}


def test_of_overlapping_masks_the_best_stays_in_its_place():
    found = without_duplicates(found_masks((0, 10, 0.5), (20, 30, 0.4), (2, 12, 0.9), (11, 19, 0.3)))

    assert found["scores"].tolist() == pytest.approx([0.4, 0.9, 0.3])
    assert (found["mask"][1, 0] > 0).nonzero().flatten().tolist() == list(range(2, 12))


def test_a_mask_that_overlaps_only_one_that_went_stays():
    found = without_duplicates(found_masks((0, 10, 0.9), (5, 15, 0.8), (10, 20, 0.7)))

    assert found["scores"].tolist() == pytest.approx([0.9, 0.7])


def test_nothing_found_stays_nothing():
    found = without_duplicates({"mask": torch.zeros(0, 4, 4), "scores": torch.zeros(0), "bbox": torch.zeros(0, 4)})

    assert {name: tuple(tensor.shape) for name, tensor in found.items()} == {
        "mask": (0, 4, 4),
        "scores": (0,),
        "bbox": (0, 4),
    }


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 39), st.integers(1, 40), st.integers(1, 99)),
        max_size=6,
        unique_by=lambda span: span[2],
    )
)
def test_what_stays_is_apart_and_what_goes_has_a_better_one_in_its_place(spans):
    spans = [(start, max(end, start + 1), score / 100) for start, end, score in spans]
    found = found_masks(*spans) if spans else {"mask": torch.zeros(0, 1, 40), "scores": torch.zeros(0)}

    kept = without_duplicates(found)

    survivors = {
        round(score, 2): mask.numpy() > 0 for score, mask in zip(kept["scores"].tolist(), kept["mask"], strict=True)
    }
    assert list(survivors) == [score for *_, score in spans if score in survivors]
    for index, (*_, score) in enumerate(spans):
        mask = found["mask"][index].numpy() > 0
        rivals = [other for better, other in survivors.items() if better > score]
        assert (score in survivors) == all(mask_iou(mask, rival) <= DUPLICATE_IOU for rival in rivals)


def test_half_precision_works_and_comes_back_as_plain_numbers(root):
    detector = build("detector", config(min_score=EASY, precision="bfloat16"), root)

    found = [detection for in_frame in detector.detect(CLIPS[:1], WORDS[:1])[0] for detection in in_frame]

    assert found
    assert all(detection.prior.dtype == np.bool_ and type(detection.score) is float for detection in found)


def test_words_must_match_the_clips(detector):
    with pytest.raises(ValueError, match="zip"):
        detector.detect(CLIPS, WORDS[:1])


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_asking_for_a_gpu_that_is_not_there_is_an_error(root):
    with pytest.raises(ValueError, match="sees no GPU"):
        build("detector", Sam3.Config(model=MODEL, device="cuda"), root)


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(MissingWeightsError, match="facebook/sam3"):
        build("detector", Sam3.Config(), tmp_path)


def test_a_checkpoint_that_lacks_a_tensor_is_refused(root, tmp_path):
    shutil.copytree(root / MODEL, tmp_path / MODEL)
    file = tmp_path / MODEL / "model.safetensors"
    tensors = load_file(file)
    del tensors["tracker_model.memory_encoder.projection.weight"]
    save_file(tensors, file, metadata={"format": "pt"})

    with pytest.raises(UnusableWeightsError, match=r"lacks tensors.*tracker_model\.memory_encoder\.projection\.weight"):
        build("detector", config(), tmp_path)


def test_a_checkpoint_without_its_processor_is_refused(root, tmp_path):
    shutil.copytree(root / MODEL, tmp_path / MODEL)
    (tmp_path / MODEL / "processor_config.json").unlink()

    with pytest.raises(UnusableWeightsError, match="Sam3VideoProcessor"):
        build("detector", config(), tmp_path)


def test_a_checkpoint_of_another_architecture_is_refused(root, tmp_path):
    shutil.copytree(root / MODEL, tmp_path / MODEL)
    save_file({"embed.weight": torch.zeros(2, 2)}, tmp_path / MODEL / "model.safetensors", metadata={"format": "pt"})

    with pytest.raises(UnusableWeightsError, match="owner/tiny-sam3"):
        build("detector", config(), tmp_path)
