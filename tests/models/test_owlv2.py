import shutil

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file

from models.open_vocabulary import DEFAULT_WORDS
from models.owlv2 import Owlv2
from models.pretrained import UnusableWeightsError
from models.protocols import Keyframe
from models.registry import MissingWeightsError, build

MODEL = Owlv2.Config().model
PATCHES = 16
"""Boxes that the tiny network gives for an image."""
WORDS = [["dog"], ["hot dog", "person", "echidna", "cat"], ["cat", "dog"]]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A tiny random checkpoint in the format of the real ones: letters, some whole words, and "!" as padding."""
    from transformers import CLIPTokenizer, Owlv2Config, Owlv2ForObjectDetection, Owlv2ImageProcessor

    torch.manual_seed(0)
    root = tmp_path_factory.mktemp("weights")
    letters = [chr(code) for code in range(33, 127)]
    pieces = letters + [letter + "</w>" for letter in letters]
    merges = []
    for word in ("photo", "of", "dog", "person"):
        start, *rest = [*word[:-1], word[-1] + "</w>"]
        for letter in rest:
            merges.append((start, letter))
            start += letter
            pieces.append(start)
    pieces += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    CLIPTokenizer(vocab=vocabulary, merges=merges, pad_token="!", model_max_length=16).save_pretrained(root / MODEL)
    Owlv2ImageProcessor(size={"height": 32, "width": 32}).save_pretrained(root / MODEL)
    size = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    network = Owlv2ForObjectDetection(
        Owlv2Config(
            text_config={**size, "vocab_size": len(pieces), "max_position_embeddings": 16},
            vision_config={**size, "image_size": 32, "patch_size": 8},
            projection_dim=16,
        )
    )
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            # At first all words fit all boxes alike.
            if "head" in name and parameter.ndim == 2:
                parameter.normal_(0, 0.4)
            if name.endswith("logit_scale.bias"):
                parameter.fill_(4.0)
    network.save_pretrained(root / MODEL)
    return root


@pytest.fixture(scope="module")
def load(root):
    def load(**options):
        return build("detector", Owlv2.Config(**options), root)

    return load


@pytest.fixture(scope="module")
def detector(load):
    return load()


@pytest.fixture(scope="module")
def everything(load):
    """A detector that reports all boxes of the network that have some size in the image."""
    return load(min_score=0, nms_iou=1)


@pytest.fixture
def calls(monkeypatch):
    """``calls(detector)``: arguments and output of every call of its network from now on."""

    def watch(detector):
        seen = []
        forward = detector._network.forward

        def watched(**inputs):
            seen.append((inputs, forward(**inputs)))
            return seen[-1][1]

        monkeypatch.setattr(detector._network, "forward", watched)
        return seen

    return watch


@pytest.fixture
def answer(monkeypatch):
    """``answer(detector, boxes, fits)``: from now on its network gives these boxes, and no others, for every image.

    ``fits`` has for each box the probabilities of the first words.
    """

    def patch(detector, boxes, fits):
        centred = torch.zeros(PATCHES, 4)
        centred[: len(boxes)] = torch.tensor(boxes)

        def class_predictor(features, queries, mask):
            probabilities = torch.zeros(PATCHES, queries.shape[1])
            probabilities[: len(fits), : len(fits[0])] = torch.tensor(fits)
            logits = probabilities.logit().expand(len(features), -1, -1)
            return logits.masked_fill(~mask[:, None], torch.finfo(torch.float32).min), None

        monkeypatch.setattr(detector._network, "class_predictor", class_predictor)
        monkeypatch.setattr(
            detector._network, "box_predictor", lambda features, *_: centred.expand(len(features), -1, -1)
        )

    return patch


def noise(seed, height, width):
    image = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    image.flags.writeable = False
    return Keyframe(time=0.0, image=image, neighbour=image)


@pytest.fixture(scope="module")
def mixed():
    """Clips of three sizes and lengths."""
    return [
        [noise(1, 40, 60), noise(2, 40, 60), noise(3, 40, 60)],
        [noise(4, 60, 40)],
        [noise(5, 40, 60), noise(6, 30, 70)],
    ]


def listed(detections):
    return [(one.word, one.score, *one.box) for one in detections]


def assert_same(found, expected, atol=1e-3):
    assert [[len(frame) for frame in clip] for clip in found] == [[len(frame) for frame in clip] for clip in expected]
    for clip, other in zip(found, expected, strict=True):
        for frame, same in zip(clip, other, strict=True):
            assert [one.word for one in frame] == [one.word for one in same]
            assert np.allclose([row[1:] for row in listed(frame)], [row[1:] for row in listed(same)], atol=atol)


def test_there_is_one_list_per_keyframe_of_its_clips_words(everything, mixed):
    found = everything.detect(mixed, WORDS)

    assert [len(clip) for clip in found] == [3, 1, 2]
    for clip, keyframes, words in zip(found, mixed, WORDS, strict=True):
        for detections, keyframe in zip(clip, keyframes, strict=True):
            height, width = keyframe.image.shape[:2]
            assert detections
            assert {one.word for one in detections} <= set(words)
            assert [one.score for one in detections] == sorted((one.score for one in detections), reverse=True)
            assert all(0 <= one.score <= 1 and isinstance(one.score, float) for one in detections)
            assert all(0 <= one.box[0] <= one.box[2] - 1 <= width - 1 for one in detections)
            assert all(0 <= one.box[1] <= one.box[3] - 1 <= height - 1 for one in detections)


def test_the_words_and_the_picture_change_what_is_found(everything, mixed):
    one, two, three = (everything.detect([[mixed[0][frame]]], [["dog"]])[0][0] for frame in (0, 0, 1))
    other = everything.detect([[mixed[0][0]]], [["person"]])[0][0]

    assert listed(one) == listed(two)
    assert [row[2:] for row in listed(one)] != [row[2:] for row in listed(three)]
    assert sorted(row[1] for row in listed(one)) != sorted(row[1] for row in listed(other))


@pytest.mark.parametrize("batch", [2, 3, 8])
def test_batches_of_any_sizes_and_words_find_what_single_images_give(load, mixed, batch):
    alone = load(batch=1, min_score=0, nms_iou=1)
    one_by_one = [
        [alone.detect([[keyframe]], [words])[0][0] for keyframe in keyframes]
        for keyframes, words in zip(mixed, WORDS, strict=True)
    ]

    assert_same(load(batch=batch, min_score=0, nms_iou=1).detect(mixed, WORDS), one_by_one)


def test_images_with_fewer_words_get_no_queries_for_the_rest(everything, mixed, calls):
    seen = calls(everything)

    everything.detect(mixed, WORDS)

    assert [len(inputs["pixel_values"]) for inputs, _ in seen] == [6]
    masked = (seen[0][1].logits == torch.finfo(torch.float32).min).all(dim=1)
    assert (~masked).sum(dim=1).tolist() == [1, 1, 1, 4, 2, 2]


def test_what_is_found_is_what_transformers_makes_of_the_same_network(everything, mixed):
    for keyframe in (mixed[0][0], mixed[1][0], mixed[2][1]):
        height, width = keyframe.image.shape[:2]
        texts = everything._tokenizer(
            [f"a photo of a {word}" for word in WORDS[1]], padding="max_length", max_length=16, return_tensors="pt"
        )
        pixels = everything._processor(keyframe.image.copy(), return_tensors="pt")
        with torch.inference_mode():
            outputs = everything._network(**texts, **pixels)
        [expected] = everything._processor.post_process_object_detection(outputs, 0, target_sizes=[(height, width)])
        limits = torch.tensor([width, height, width, height])
        boxes = expected["boxes"].clip(min=0).minimum(limits)
        inside = ((boxes[:, 2:] - boxes[:, :2]) >= 1).all(dim=1).nonzero()[:, 0].tolist()
        inside.sort(key=lambda index: -float(expected["scores"][index]))

        found = everything.detect([[keyframe]], [WORDS[1]])[0][0]

        kept = [index for index in inside if any(np.allclose(boxes[index], one.box, atol=1e-3) for one in found)]
        assert [one.word for one in found] == [WORDS[1][int(expected["labels"][index])] for index in kept]
        assert np.allclose([one.score for one in found], expected["scores"][kept], atol=1e-4)
        assert len(kept) == len(inside)


def test_boxes_are_parts_of_the_square_around_the_image(detector, answer):
    # The box is the middle of a wide image's lower half, and of a high image's right half.
    answer(detector, [[0.5, 0.25, 0.5, 0.25]], [[0.9]])

    found = detector.detect([[noise(0, 40, 80)], [noise(0, 80, 40)], [noise(0, 8, 8)]], [["dog"]] * 3)

    boxes = [frame[0].box for [frame] in found]
    assert np.allclose(boxes, [(20, 10, 60, 30), (20, 10, 40, 30), (2, 1, 6, 3)], atol=1e-4)


def test_boxes_in_the_padding_are_none(detector, answer):
    answer(detector, [[0.5, 0.8, 0.2, 0.2], [0.5, 0.5, 0.5, 0.2]], [[0.9], [0.8]])

    [[found]] = detector.detect([[noise(0, 40, 80)]], [["dog"]])

    assert [(one.word, one.box) for one in found] == [("dog", pytest.approx((20, 32, 60, 40), abs=1e-4))]


def test_a_box_goes_to_its_best_word_if_that_fits_well_enough(detector, answer):
    left, right, middle = [0.2, 0.2, 0.2, 0.2], [0.8, 0.2, 0.2, 0.2], [0.5, 0.2, 0.2, 0.2]
    answer(detector, [left, right, middle], [[0.3, 0.7], [0.25, 0.1], [0.19, 0.19]])

    [[found]] = detector.detect([[noise(0, 40, 80)]], [["dog", "hot dog"]])

    assert [(one.word, pytest.approx(one.score, abs=1e-4)) for one in found] == [("hot dog", 0.7), ("dog", 0.25)]
    assert [one.box[0] for one in found] == pytest.approx([8, 56], abs=1e-4)


def test_of_two_boxes_of_one_thing_the_better_stays(detector, answer):
    answer(
        detector, [[0.5, 0.2, 0.4, 0.2], [0.51, 0.2, 0.4, 0.2], [0.5, 0.2, 0.4, 0.2]], [[0.5, 0], [0.6, 0], [0, 0.4]]
    )

    [[found]] = detector.detect([[noise(0, 40, 80)]], [["dog", "cat"]])

    assert [(one.word, pytest.approx(one.score, abs=1e-4)) for one in found] == [("dog", 0.6)]


def test_words_are_read_in_the_prompt(load, mixed, calls):
    detector = load(prompt="one {} here")
    seen = calls(detector)

    detector.detect([[mixed[0][0]]], [["dog", "person"]])

    assert detector._tokenizer.batch_decode(seen[0][0]["input_ids"], skip_special_tokens=True) == [
        "one dog here",
        "one person here",
    ]


@pytest.mark.parametrize("prompt", ["a photo", "{} and {}", "a {word}"])
def test_a_prompt_without_one_place_for_the_word_is_refused(prompt):
    with pytest.raises(ValidationError, match="prompt"):
        Owlv2.Config(prompt=prompt)


def test_a_word_beyond_the_text_limit_is_read_as_far_as_it_goes(everything, mixed, calls):
    seen = calls(everything)

    found = everything.detect([[mixed[0][0]]], [["dog " * 30]])

    tokens = seen[0][0]["input_ids"]
    assert tokens.shape == (1, 16)
    assert tokens[0, -1] == everything._tokenizer.eos_token_id
    assert found[0][0]


def test_a_word_that_is_asked_twice_is_one_query(everything, mixed, calls):
    seen = calls(everything)

    everything.detect([[mixed[0][0]]], [["dog", "cat", "dog"]])

    assert len(seen[0][0]["input_ids"]) == 2


def test_a_clip_without_words_is_searched_for_the_default_words(load, detector, mixed, calls):
    few = load(default_words=["person", "cat"], min_score=0)
    found = few.detect([[mixed[0][0]]], [[]])
    seen = calls(detector)
    detector.detect([[mixed[0][0]]], [[]])

    assert found == few.detect([[mixed[0][0]]], [["person", "cat"]])
    assert found[0][0]
    assert len(seen[0][0]["input_ids"]) == len(DEFAULT_WORDS)


@pytest.mark.parametrize(
    ("clips", "words", "expected"),
    [([], [], []), ([[], []], [["dog"], []], [[], []])],
    ids=["no clips", "no keyframes"],
)
def test_nothing_to_look_at_costs_nothing(detector, calls, clips, words, expected):
    seen = calls(detector)

    assert detector.detect(clips, words) == expected
    assert seen == []


def test_word_lists_must_match_the_clips(detector, mixed):
    with pytest.raises(ValueError, match="zip"):
        detector.detect(mixed, WORDS[:2])


def test_bfloat16_finds_much_the_same_and_places_boxes_in_float32(load, mixed, monkeypatch):
    options = {"min_score": 0, "nms_iou": 1}
    half = load(precision="bfloat16", **options)
    placed = []
    predict = half._network.box_predictor
    monkeypatch.setattr(half._network, "box_predictor", lambda *args: placed.append(predict(*args)) or placed[-1])

    found = half.detect([[mixed[0][0]]], [["dog"]])[0][0]

    assert [boxes.dtype for boxes in placed] == [torch.bfloat16, torch.float32]
    exact = load(**options).detect([[mixed[0][0]]], [["dog"]])[0][0]
    assert np.allclose([one.score for one in found], [one.score for one in exact], atol=0.05)
    x0 = placed[1][0, :, 0] - placed[1][0, :, 2] / 2
    assert {one.box[0] for one in found} <= set((x0.clip(0) * 60).tolist())


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_a_clear_error(load):
    with pytest.raises(ValueError, match="owlv2: device is cuda, and PyTorch sees no GPU"):
        load(device="cuda")


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(MissingWeightsError, match="owlv2-base-patch16-ensemble"):
        build("detector", Owlv2.Config(), tmp_path)


def test_a_checkpoint_that_lacks_a_tensor_is_refused(root, tmp_path):
    shutil.copytree(root, tmp_path, dirs_exist_ok=True)
    file = tmp_path / MODEL / "model.safetensors"
    tensors = load_file(file)
    del tensors["class_head.dense0.weight"]
    save_file(tensors, file, {"format": "pt"})

    with pytest.raises(UnusableWeightsError, match=r"lacks tensors of the model: class_head\.dense0\.weight"):
        build("detector", Owlv2.Config(), tmp_path)


def test_a_checkpoint_of_another_network_is_refused(tmp_path):
    from transformers import BertConfig, BertModel

    tiny = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    BertModel(BertConfig(vocab_size=50, **tiny)).save_pretrained(tmp_path / MODEL)

    with pytest.raises(UnusableWeightsError, match="owlv2-base-patch16-ensemble"):
        build("detector", Owlv2.Config(), tmp_path)


@pytest.mark.parametrize("part", ["tokenizer", "preprocessor"])
def test_a_checkpoint_without_a_processor_is_refused(root, tmp_path, part):
    shutil.copytree(root, tmp_path, dirs_exist_ok=True)
    for file in (tmp_path / MODEL).glob(f"{part}*"):
        file.unlink()

    with pytest.raises(UnusableWeightsError, match="owlv2-base-patch16-ensemble"):
        build("detector", Owlv2.Config(), tmp_path)
