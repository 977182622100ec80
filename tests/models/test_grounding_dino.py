import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from models.grounding_dino import GroundingDino
from models.open_vocabulary import DEFAULT_WORDS
from models.pretrained import UnusableWeightsError
from models.protocols import Keyframe
from models.registry import MissingWeightsError, build

MODEL = GroundingDino.Config().model
LIMIT = 24
"""Tokens that the tiny network takes at once."""
PIECES = ["dog", "cat", "hot", "person", "ech", "##id", "##na", "##s", "horse", "fox", "red", "big", "toy"]
WORDS = [["dog"], ["hot dog", "person", "echidna", "cat", "red fox"], ["horse", "cat"]]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A tiny random checkpoint in the format of the real ones, and with BERT's ids of the special tokens."""
    from transformers import (
        BertConfig,
        BertTokenizer,
        GroundingDinoConfig,
        GroundingDinoForObjectDetection,
        GroundingDinoImageProcessor,
        SwinConfig,
    )

    torch.manual_seed(0)
    root = tmp_path_factory.mktemp("weights")
    vocabulary = {f"[unused{index}]": index for index in range(1100)}
    special = {"[PAD]": 0, "[UNK]": 100, "[CLS]": 101, "[SEP]": 102, "[MASK]": 103, ".": 1012, "?": 1029}
    for piece, index in {**special, **{piece: 1040 + place for place, piece in enumerate(PIECES)}}.items():
        del vocabulary[f"[unused{index}]"]
        vocabulary[piece] = index
    BertTokenizer(vocab=vocabulary).save_pretrained(root / MODEL)
    GroundingDinoImageProcessor(size={"shortest_edge": 48, "longest_edge": 96}).save_pretrained(root / MODEL)
    swin = {"embed_dim": 8, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 1, 1], "window_size": 4}
    bert = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    network = GroundingDinoForObjectDetection(
        GroundingDinoConfig(
            backbone_config=SwinConfig(image_size=64, out_indices=[2, 3, 4], **swin),
            text_config=BertConfig(vocab_size=1100, max_position_embeddings=64, **bert),
            num_queries=12,
            encoder_layers=1,
            decoder_layers=2,
            encoder_ffn_dim=32,
            decoder_ffn_dim=32,
            encoder_attention_heads=4,
            decoder_attention_heads=4,
            d_model=32,
            max_text_len=LIMIT,
        )
    )
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if "bbox_embed" in name:
                # They are zero at first, and all boxes alike.
                parameter.normal_(0, 0.1)
            if name.endswith(("vision_param", "text_param")):
                # At first the text hardly changes the picture.
                parameter.fill_(1.0)
    network.save_pretrained(root / MODEL)
    return root


@pytest.fixture(scope="module")
def load(root):
    def load(**options):
        return build("detector", GroundingDino.Config(**options), root)

    return load


@pytest.fixture(scope="module")
def detector(load):
    return load()


@pytest.fixture(scope="module")
def everything(load):
    """A detector that reports all boxes of the network that have some size in the image."""
    return load(min_score=0, min_text_score=0, nms_iou=1)


@pytest.fixture
def calls(monkeypatch):
    """``calls(detector)``: the arguments of every call of its network from now on."""

    def watch(detector):
        seen = []
        forward = detector._network.forward

        def watched(**inputs):
            seen.append(inputs)
            return forward(**inputs)

        monkeypatch.setattr(detector._network, "forward", watched)
        return seen

    return watch


@pytest.fixture
def answer(monkeypatch):
    """``answer(detector, boxes, fits)``: from now on its network gives these boxes and these fits of tokens.

    ``fits`` has for each box the probabilities of some tokens, by their places in the prompt.
    """

    def patch(detector, boxes, fits):
        probabilities = torch.zeros(len(boxes), LIMIT)
        for box, fit in enumerate(fits):
            for token, probability in fit.items():
                probabilities[box, token] = probability

        def forward(pixel_values, **_):
            images = len(pixel_values)
            return SimpleNamespace(
                logits=probabilities.logit().expand(images, -1, -1),
                pred_boxes=torch.tensor(boxes, dtype=torch.float32).expand(images, -1, -1),
            )

        monkeypatch.setattr(detector._network, "forward", forward)

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


def assert_same(found, expected):
    assert [[len(frame) for frame in clip] for clip in found] == [[len(frame) for frame in clip] for clip in expected]
    for clip, other in zip(found, expected, strict=True):
        for frame, same in zip(clip, other, strict=True):
            assert [one.word for one in frame] == [one.word for one in same]
            assert np.allclose([row[1:] for row in listed(frame)], [row[1:] for row in listed(same)], atol=1e-3)


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
    assert listed(one) != listed(three)
    assert [row[1:] for row in listed(one)] != [row[1:] for row in listed(other)]


@pytest.mark.parametrize("batch", [2, 3, 8])
def test_batches_find_what_single_images_give(load, mixed, batch):
    options = {"min_score": 0, "min_text_score": 0, "nms_iou": 1}
    alone = load(batch=1, **options)
    one_by_one = [
        [alone.detect([[keyframe]], [words])[0][0] for keyframe in keyframes]
        for keyframes, words in zip(mixed, WORDS, strict=True)
    ]

    assert_same(load(batch=batch, **options).detect(mixed, WORDS), one_by_one)


def test_a_long_prompt_beside_a_short_one_changes_nothing(everything, mixed, calls):
    image = mixed[0][0]
    short, long = ["dog"], ["echidna", "hot dog", "big red fox", "person"]
    apart = [everything.detect([[image]], [words])[0] for words in (short, long)]
    seen = calls(everything)

    assert_same(everything.detect([[image], [image]], [short, long]), apart)
    assert [call["attention_mask"].sum(dim=1).tolist() for call in seen] == [[4, 15]]


def test_batches_hold_images_of_one_size_across_clips(everything, mixed, calls):
    seen = calls(everything)

    everything.detect(mixed, WORDS)

    assert [tuple(call["pixel_values"].shape) for call in seen] == [(4, 3, 48, 72), (1, 3, 72, 48), (1, 3, 41, 96)]
    assert all(call["pixel_mask"].all() for call in seen)


def test_boxes_are_those_of_the_processor_of_transformers(everything, mixed, calls, monkeypatch):
    kept = []
    forward = everything._network.forward
    monkeypatch.setattr(everything._network, "forward", lambda **inputs: kept.append(forward(**inputs)) or kept[-1])

    found = everything.detect([[mixed[1][0]]], [["dog"]])[0][0]

    expected = everything._processor.post_process_object_detection(kept[0], threshold=0, target_sizes=[(60, 40)])
    clipped = expected[0]["boxes"].clip(min=0).minimum(torch.tensor([40.0, 60, 40, 60])).tolist()
    assert found
    assert all(any(np.allclose(one.box, box, atol=1e-3) for box in clipped) for one in found)


def test_the_prompt_is_what_the_tokenizer_makes_of_the_whole_text(detector):
    words = ["hot dog", "echidna", "dog", "person"]
    [prompt] = detector.prompts(words)
    text = "hot dog . echidna . dog . person ."
    whole = detector._tokenizer(text, return_offsets_mapping=True)
    offsets = whole["offset_mapping"]

    assert list(prompt.tokens) == whole["input_ids"]
    assert prompt.words == tuple(words)
    assert [text[offsets[start][0] : offsets[end - 1][1]] for start, end in prompt.spans] == words
    assert prompt.spans == ((1, 3), (4, 7), (8, 9), (10, 11))


@pytest.mark.parametrize(
    ("words", "text", "names"),
    [
        (["Hot  DOG", "dog", "hot dog", "Dog"], "hot dog . dog .", ("Hot  DOG", "dog")),
        (["dog.", "cat?", "hot.dog"], "dog . cat . hot dog .", ("dog.", "cat?", "hot.dog")),
    ],
    ids=["case and space", "full stops"],
)
def test_words_are_asked_in_lower_case_once_and_found_as_they_were_asked(detector, words, text, names):
    [prompt] = detector.prompts(words)

    assert list(prompt.tokens) == detector._tokenizer(text)["input_ids"]
    assert prompt.words == names


DOG, HOT = 4, (1, 2)
"""Places of the tokens of "[CLS] hot dog . dog . [SEP]"; the full stops are at 3 and 5."""


@pytest.mark.parametrize(
    ("fit", "expected"),
    [
        ({DOG: 0.8, 2: 0.75, 1: 0.05}, ("dog", 0.8)),
        ({DOG: 0.5, 2: 0.6, 1: 0.7}, ("hot dog", 0.65)),
        ({DOG: 0.6, 2: 0.9, 1: 0.1}, ("dog", 0.6)),
        ({2: 0.5, 1: 0.06}, ("hot dog", 0.28)),
        ({2: 0.29, 1: 0.29}, None),
        ({2: 0.48, 1: 0.0}, None),
        ({DOG: 0.29}, None),
        ({0: 0.9, 3: 0.9, 5: 0.9, 6: 0.9, 7: 0.9}, None),
    ],
    ids=[
        "half of another word fits as well",
        "all of a longer word fits better",
        "one token of a longer word fits better but not the word",
        "one token suffices for the box threshold",
        "no token reaches the box threshold",
        "the word does not reach the text threshold",
        "a word of one token needs both",
        "full stops, ends and padding are no words",
    ],
)
def test_a_box_goes_to_the_word_whose_tokens_fit_it_best(detector, answer, fit, expected):
    answer(detector, [[0.5, 0.5, 0.5, 0.5]], [fit])

    found = detector.detect([[noise(0, 40, 60)]], [["hot dog", "dog"]])[0][0]

    assert [(one.word, pytest.approx(one.score, abs=1e-4)) for one in found] == ([expected] if expected else [])


def test_boxes_come_in_pixels_inside_the_image_best_first(detector, answer):
    answer(
        detector,
        [
            [0.5, 0.5, 0.2, 0.5],
            [0.9, 0.1, 0.4, 0.4],
            [0.5, 0.5, 0.01, 0.5],
            [0.51, 0.5, 0.2, 0.5],
            [0.5, 0.5, 0.2, 0.5],
        ],
        [{1: 0.5}, {1: 0.9}, {1: 0.9}, {1: 0.4}, {3: 0.45}],
    )

    found = detector.detect([[noise(0, 40, 60), noise(0, 40, 60)], [noise(0, 20, 10)]], [["dog", "cat"]] * 2)

    here = [("dog", 0.9, 42, 0, 60, 12), ("dog", 0.5, 24, 10, 36, 30)]
    there = [("dog", 0.9, 7, 0, 10, 6), ("dog", 0.5, 4, 5, 6, 15)]
    for frame, expected in zip([*found[0], *found[1]], [here, here, there], strict=True):
        assert [row[0] for row in listed(frame)] == [row[0] for row in expected]
        assert np.allclose([row[1:] for row in listed(frame)], [row[1:] for row in expected], atol=1e-4)


MANY = ["hot dog", "echidna", "person", "big red fox", "cat", "red horse", "toy dog", "echidnas", "dog", "fox", "horse"]


def test_a_prompt_beyond_the_text_limit_is_split_between_words(detector):
    prompts = detector.prompts(MANY)

    assert len(prompts) == 2
    assert [word for prompt in prompts for word in prompt.words] == MANY
    assert all(len(prompt.tokens) <= LIMIT for prompt in prompts)
    for prompt in prompts:
        assert list(prompt.tokens) == detector._tokenizer(" . ".join(prompt.words) + " .")["input_ids"]


def test_a_prompt_as_long_as_the_limit_is_one_pass(detector):
    words = ["dog", "cat", "hot", "person", "horse", "fox", "red", "big", "toy dog", "red fox"]

    assert [len(prompt.tokens) for prompt in detector.prompts(words)] == [LIMIT]
    assert [len(prompt.tokens) for prompt in detector.prompts([*words, "toy"])] == [LIMIT, 4]


def test_a_word_that_needs_one_token_too_many_goes_to_the_next_pass(detector):
    words = ["dog", "cat", "hot", "person", "horse", "fox", "red", "big", "toy", "ech", "hot dog"]

    assert [len(prompt.tokens) for prompt in detector.prompts(words)] == [LIMIT - 2, 5]


def test_all_passes_of_an_image_are_one_answer(everything, calls, mixed):
    image = mixed[0][0]
    seen = calls(everything)
    found = everything.detect([[image]], [MANY])[0][0]
    passes = [everything.detect([[image]], [prompt.words])[0][0] for prompt in everything.prompts(MANY)]

    assert len(seen[0]["input_ids"]) == 2
    assert {one.word for one in found} <= set(MANY)
    assert found[0].score == pytest.approx(max(one[0].score for one in passes), abs=1e-4)
    assert len(found) > max(map(len, passes))


def test_a_word_longer_than_the_limit_is_read_as_far_as_it_goes(detector):
    endless = " ".join(["big"] * 40 + ["dog"])
    first, second = detector.prompts([endless, "cat"])

    assert len(first.tokens) == LIMIT
    assert first.spans == ((1, LIMIT - 2),)
    assert (first.words, second.words) == ((endless,), ("cat",))


def test_a_clip_without_words_is_searched_for_the_default_words(load, detector, mixed):
    few = load(default_words=["person", "echidna"], min_score=0, min_text_score=0)
    found = few.detect([[mixed[0][0]]], [[]])

    assert [word for prompt in detector.prompts([]) for word in prompt.words] == list(DEFAULT_WORDS)
    assert found == few.detect([[mixed[0][0]]], [["person", "echidna"]])
    assert found[0][0]


@pytest.mark.parametrize(
    ("clips", "words", "expected"),
    [([], [], []), ([[], []], [["dog"], []], [[], []]), ([[noise(0, 40, 60)]], [[" ", "..."]], [[[]]])],
    ids=["no clips", "no keyframes", "words without a letter"],
)
def test_nothing_to_look_for_costs_nothing(detector, calls, clips, words, expected):
    seen = calls(detector)

    assert detector.detect(clips, words) == expected
    assert seen == []


def test_word_lists_must_match_the_clips(detector, mixed):
    with pytest.raises(ValueError, match="zip"):
        detector.detect(mixed, WORDS[:2])


def test_bfloat16_multiplies_in_bfloat16_and_places_boxes_in_float32(load, mixed, monkeypatch):
    detector = load(precision="bfloat16", min_score=0, min_text_score=0)
    outputs, projected = [], []
    forward = detector._network.forward
    monkeypatch.setattr(detector._network, "forward", lambda **inputs: outputs.append(forward(**inputs)) or outputs[-1])
    detector._network.model.text_projection.register_forward_hook(lambda *args: projected.append(args[2].dtype))

    found = detector.detect(mixed, WORDS)

    assert set(projected) == {torch.bfloat16}
    assert {output.pred_boxes.dtype for output in outputs} == {torch.float32}
    assert all(frame for clip in found for frame in clip)
    assert all(isinstance(value, float) for clip in found for frame in clip for one in frame for value in one.box)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_a_clear_error(load):
    with pytest.raises(ValueError, match="grounding_dino: device is cuda, and PyTorch sees no GPU"):
        load(device="cuda")


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(MissingWeightsError, match="grounding-dino-base"):
        build("detector", GroundingDino.Config(), tmp_path)


def test_a_checkpoint_that_lacks_a_tensor_is_refused(root, tmp_path):
    shutil.copytree(root, tmp_path, dirs_exist_ok=True)
    file = tmp_path / MODEL / "model.safetensors"
    tensors = load_file(file)
    del tensors["model.text_projection.weight"]
    save_file(tensors, file, {"format": "pt"})

    with pytest.raises(UnusableWeightsError, match=r"lacks tensors of the model: model\.text_projection\.weight"):
        build("detector", GroundingDino.Config(), tmp_path)


def test_a_checkpoint_of_another_network_is_refused(tmp_path):
    from transformers import BertConfig, BertModel

    tiny = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    BertModel(BertConfig(vocab_size=50, **tiny)).save_pretrained(tmp_path / MODEL)

    with pytest.raises(UnusableWeightsError, match="grounding-dino-base"):
        build("detector", GroundingDino.Config(), tmp_path)


@pytest.mark.parametrize("part", ["tokenizer", "preprocessor"])
def test_a_checkpoint_without_a_processor_is_refused(root, tmp_path, part):
    shutil.copytree(root, tmp_path, dirs_exist_ok=True)
    for file in (tmp_path / MODEL).glob(f"{part}*"):
        file.unlink()

    with pytest.raises(UnusableWeightsError, match="grounding-dino-base"):
        build("detector", GroundingDino.Config(), tmp_path)


def test_the_repository_to_fetch_is_the_model():
    config = GroundingDino.Config(model="owner/other", revision="abc")

    assert [(found.name, found.revision) for found in config.repositories()] == [("owner/other", "abc")]
