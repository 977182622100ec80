import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models.caption_answer import AnswerError
from models.caption_request import REMINDER, shown
from models.pretrained import UnusableWeightsError
from models.protocols import ClipCaption, Keyframe
from models.qwen_vl import QwenVL
from models.registry import MissingWeightsError, backend_config, build, fingerprint

OF_TEXT = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
OF_PICTURES = ["<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]

# In the form of the templates that come with Qwen's checkpoints.
CHAT = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

TEXT = {
    "vocab_size": 263,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "bos_token_id": None,
    "eos_token_id": 258,
    "initializer_range": 0.5,
}
VISION = {
    "depth": 2,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_heads": 2,
    "out_hidden_size": 32,
    "patch_size": 14,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "initializer_range": 0.5,
}


def tokenizer() -> Any:
    """One token per byte, and the special ones."""
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import Qwen2Tokenizer

    letters = {letter: number for number, letter in enumerate(sorted(ByteLevel.alphabet()))}
    made = Qwen2Tokenizer(vocab=letters, merges=[], unk_token=None, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    made.add_special_tokens({"additional_special_tokens": [*OF_TEXT, *OF_PICTURES]})
    return made


def qwen2_5(folder: Path) -> None:
    from transformers import (
        Qwen2_5_VLConfig,
        Qwen2_5_VLForConditionalGeneration,
        Qwen2_5_VLProcessor,
        Qwen2VLImageProcessor,
        Qwen2VLVideoProcessor,
    )

    words = tokenizer()
    rotary = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]}
    config = Qwen2_5_VLConfig(
        text_config={**TEXT, "rope_parameters": rotary},
        vision_config={**VISION, "window_size": 56, "fullatt_block_indexes": [1]},
        **of_pictures(words),
    )
    save(folder, Qwen2_5_VLForConditionalGeneration, config, words)
    pictures = {"size": {"shortest_edge": 28 * 28, "longest_edge": 28 * 28 * 64}}
    Qwen2_5_VLProcessor(
        Qwen2VLImageProcessor(**pictures), words, Qwen2VLVideoProcessor(**pictures), chat_template=CHAT
    ).save_pretrained(folder)


def qwen3(folder: Path) -> None:
    from transformers import (
        Qwen2VLImageProcessor,
        Qwen3VLConfig,
        Qwen3VLForConditionalGeneration,
        Qwen3VLProcessor,
        Qwen3VLVideoProcessor,
    )

    words = tokenizer()
    rotary = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3], "mrope_interleaved": True}
    text = {key: value for key, value in TEXT.items() if key != "bos_token_id"}
    config = Qwen3VLConfig(
        text_config={**text, "head_dim": 16, "rope_parameters": rotary},
        vision_config={**VISION, "patch_size": 16, "num_position_embeddings": 64, "deepstack_visual_indexes": [0]},
        **of_pictures(words),
    )
    save(folder, Qwen3VLForConditionalGeneration, config, words)
    pictures = {"size": {"shortest_edge": 32 * 32, "longest_edge": 32 * 32 * 64}, "patch_size": 16}
    Qwen3VLProcessor(
        Qwen2VLImageProcessor(**pictures), words, Qwen3VLVideoProcessor(**pictures), chat_template=CHAT
    ).save_pretrained(folder)


def of_pictures(words: Any) -> dict[str, int]:
    names = ["vision_start_token_id", "vision_end_token_id", "image_token_id", "video_token_id"]
    return dict(zip(names, words.convert_tokens_to_ids(OF_PICTURES), strict=True))


def save(folder: Path, network: Any, config: Any, words: Any) -> None:
    import torch

    torch.manual_seed(0)
    made = network(config)
    # Sampling with a penalty, as Qwen ships it and stronger: neither must reach the answers.
    made.generation_config.update(
        do_sample=True, temperature=9.0, top_p=0.9, top_k=20, repetition_penalty=2.0,
        eos_token_id=words.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"]), pad_token_id=words.pad_token_id,
    )  # fmt: skip
    made.save_pretrained(folder)


CHECKPOINTS = {"Qwen/Qwen2.5-VL-tiny": qwen2_5, "Qwen/Qwen3-VL-tiny": qwen3}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("weights")
    for name, make in CHECKPOINTS.items():
        make(root / name)
    (root / "short.txt").write_text("What is it?")
    return root


@pytest.fixture(scope="module")
def captioner_of(root: Path) -> Callable[..., QwenVL]:
    def captioner(model: str, **options: Any) -> QwenVL:
        options = {"max_side": 56, "max_tokens": 16, "retries": 0, "device": "cpu", **options}
        built: QwenVL = build(
            "captioner", backend_config("captioner", {"backend": "qwen_vl", "model": model, **options}), root
        )
        return built

    return captioner


def clip(seed: int, frames: int = 2, height: int = 40, width: int = 60) -> list[Keyframe]:
    pictures = np.random.default_rng(seed).integers(0, 256, (frames, height, width, 3), np.uint8)
    return [Keyframe(7.0 + number / 2, picture, picture) for number, picture in enumerate(pictures)]


@pytest.fixture(params=CHECKPOINTS)
def model(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


def said(*words: str, caption: str = "A scene.") -> str:
    return json.dumps({"caption": caption, "subjects": [{"word": word} for word in words]})


def script(captioner: QwenVL, monkeypatch: pytest.MonkeyPatch, *answers: Sequence[str]) -> list[list[str]]:
    """Let the network answer these, call by call; gives the prompts that it gets, without padding."""
    import torch

    words = captioner._processor.tokenizer
    prompts: list[list[str]] = []

    def generate(input_ids: Any, attention_mask: Any, **rest: Any) -> Any:
        prompts.append([words.decode(ids[mask > 0]) for ids, mask in zip(input_ids, attention_mask, strict=True)])
        said = words(
            [f"{answer}<|im_end|>" for answer in answers[len(prompts) - 1]], padding=True, padding_side="right"
        )
        return torch.cat([input_ids, torch.tensor(said.input_ids)], 1)

    monkeypatch.setattr(captioner._network, "generate", generate)
    return prompts


def tokens(captioner: QwenVL, clips: Sequence[Sequence[Keyframe]], monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """What the network generates for each clip, up to the token that ends it."""
    found: list[list[int]] = []
    words = captioner._processor.tokenizer
    decode = words.batch_decode

    def noting(ids: Any, **options: Any) -> Any:
        found.extend([token for token in row if token != words.pad_token_id] for row in ids.tolist())
        return decode(ids, **options)

    with monkeypatch.context() as patched:
        patched.setattr(words, "batch_decode", noting)
        with pytest.raises(AnswerError):
            captioner.caption(clips)
    return found


MIXED = [clip(0), clip(1, 3, 60, 30), clip(2, 1, 200, 100), clip(3, 2), clip(4, 5)]


def test_a_random_network_runs_through_to_an_answer_that_does_not_fit(
    captioner_of: Callable[..., QwenVL], model: str
) -> None:
    with pytest.raises(AnswerError, match=rf"{model}: clip 1 of 2: the answer does not fit .no JSON object.*\): '"):
        captioner_of(model).caption([clip(0), clip(1)])


def test_batches_of_clips_of_any_size_give_what_one_by_one_gives(
    captioner_of: Callable[..., QwenVL], model: str, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    captioner = captioner_of(model, batch=3, prompt=str(root / "short.txt"))
    together = tokens(captioner, MIXED, monkeypatch)
    alone = [found for each in MIXED for found in tokens(captioner, [each], monkeypatch)]
    assert together == alone
    # The network does look at the pictures.
    assert len({tuple(found) for found in together}) == 5


def test_each_token_is_the_likeliest_whatever_the_checkpoint_says_about_sampling(
    captioner_of: Callable[..., QwenVL], model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    captioner = captioner_of(model)
    found = tokens(captioner, MIXED[:1], monkeypatch)
    inputs = captioner._inputs([shown(MIXED[0], 8, 56)], captioner._question)
    for _ in found[0]:
        with torch.inference_mode():
            following = captioner._network(**inputs).logits[:, -1:].argmax(-1)
        inputs["input_ids"] = torch.cat([inputs["input_ids"], following], 1)
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        inputs["mm_token_type_ids"] = torch.nn.functional.pad(inputs["mm_token_type_ids"], (0, 1))
    assert len(found[0]) > 8
    assert found == inputs["input_ids"][:, -len(found[0]) :].tolist()


def test_answers_become_captions_in_the_order_of_the_clips(
    captioner_of: Callable[..., QwenVL], model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    captioner = captioner_of(model, batch=2)
    answers = [said("Dogs", "axolotl", caption="Ein Hündchen \N{DOG FACE}."), f"```json\n{said('the car')}\n```"]
    prompts = script(captioner, monkeypatch, answers, [said()])
    assert captioner.caption(MIXED[:3]) == [
        ClipCaption("Ein Hündchen \N{DOG FACE}.", ("dog", "axolotl")),
        ClipCaption("A scene.", ("car",)),
        ClipCaption("A scene.", ()),
    ]
    assert [len(batch) for batch in prompts] == [2, 1]


def test_the_network_sees_each_frame_after_its_time_and_then_the_question(
    captioner_of: Callable[..., QwenVL], model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    captioner = captioner_of(model, frames=3, max_subjects=4)
    prompts = script(captioner, monkeypatch, [said(), said()])
    captioner.caption([clip(0, 5), clip(1, 1)])
    squeezed = [prompt.replace("<|image_pad|>", "") for prompt in prompts[0]]
    picture = "<|vision_start|><|vision_end|>"
    question = captioner._config.question()
    assert "at most" in question
    assert "4 at most" in question
    assert squeezed == [
        f"<|im_start|>user\n{notes}{question}<|im_end|>\n<|im_start|>assistant\n"
        for notes in (f"0.0 s:{picture}1.0 s:{picture}2.0 s:{picture}", f"0.0 s:{picture}")
    ]


def test_pictures_are_bounded(captioner_of: Callable[..., QwenVL], monkeypatch: pytest.MonkeyPatch) -> None:
    def pictures(max_side: int) -> int:
        captioner = captioner_of("Qwen/Qwen2.5-VL-tiny", max_side=max_side)
        prompts = script(captioner, monkeypatch, [said()])
        captioner.caption([clip(0, 1, 112, 224)])
        return prompts[0][0].count("<|image_pad|>")

    # One token for 28 x 28 pixels.
    assert [pictures(side) for side in (56, 112, 224, 500)] == [2, 8, 32, 32]


def test_only_answers_that_do_not_fit_are_asked_for_again_with_a_firmer_note(
    captioner_of: Callable[..., QwenVL], monkeypatch: pytest.MonkeyPatch
) -> None:
    captioner = captioner_of("Qwen/Qwen3-VL-tiny", batch=4, retries=2)
    prompts = script(
        captioner, monkeypatch, [said("dog"), "A cat.", said("car"), "{"], ["Sorry?", said("bus")], [said("cat")]
    )
    found = captioner.caption(MIXED[:4])
    assert [caption.words for caption in found] == [("dog",), ("cat",), ("car",), ("bus",)]
    assert [len(batch) for batch in prompts] == [4, 2, 1]
    assert [[REMINDER in prompt for prompt in batch] for batch in prompts] == [[False] * 4, [True] * 2, [True]]
    assert prompts[1][0].count("<|image_pad|>") == prompts[0][1].count("<|image_pad|>")


def test_an_answer_that_never_fits_is_named_with_its_clip(
    captioner_of: Callable[..., QwenVL], monkeypatch: pytest.MonkeyPatch
) -> None:
    captioner = captioner_of("Qwen/Qwen3-VL-tiny", retries=1)
    prompts = script(captioner, monkeypatch, [said("dog"), "A cat."], ["I said a cat."], [said("cat")])
    with pytest.raises(ValueError, match=r"Qwen/Qwen3-VL-tiny: clip 2 of 2: .*'I said a cat\.'"):
        captioner.caption(MIXED[:2])
    assert len(prompts) == 2
    # One by one, as failed batches are run again: only the clip without an answer goes through the network.
    assert captioner.caption(MIXED[:1]) == [ClipCaption("A scene.", ("dog",))]
    assert len(prompts) == 2
    assert captioner.caption(MIXED[1:2]) == [ClipCaption("A scene.", ("cat",))]
    assert len(prompts) == 3


def test_no_clips_do_not_reach_the_network(
    captioner_of: Callable[..., QwenVL], monkeypatch: pytest.MonkeyPatch
) -> None:
    captioner = captioner_of("Qwen/Qwen3-VL-tiny")
    prompts = script(captioner, monkeypatch)
    assert captioner.caption([]) == []
    assert prompts == []
    with pytest.raises(ValueError, match="without keyframes"):
        captioner.caption([[]])


def test_half_precision_runs(captioner_of: Callable[..., QwenVL], model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    captioner = captioner_of(model, precision="bfloat16")
    assert captioner._inputs([shown(clip(0), 8, 56)], "?")["pixel_values"].dtype == torch.bfloat16
    assert len(tokens(captioner, [clip(0)], monkeypatch)[0]) > 1


def test_a_gpu_that_is_not_there_is_an_error(captioner_of: Callable[..., QwenVL]) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(ValueError, match="device is cuda, and PyTorch sees no GPU"):
        captioner_of("Qwen/Qwen3-VL-tiny", device="cuda")


def test_missing_weights_are_named(tmp_path: Path) -> None:
    with pytest.raises(MissingWeightsError, match=r"Qwen2\.5-VL-7B-Instruct"):
        build("captioner", QwenVL.Config(), tmp_path)


def broken(root: Path, tmp_path: Path, model: str) -> Path:
    shutil.copytree(root / model, tmp_path / model)
    return tmp_path / model


def test_a_checkpoint_that_lacks_a_tensor_is_refused(root: Path, tmp_path: Path, model: str) -> None:
    from safetensors.numpy import load_file, save_file

    file = broken(root, tmp_path, model) / "model.safetensors"
    held = load_file(file)
    name = next(key for key in held if "mlp.gate_proj" in key)
    del held[name]
    save_file(held, file, {"format": "pt"})
    with pytest.raises(UnusableWeightsError, match=r"lacks tensors of the model: .*gate_proj"):
        build("captioner", QwenVL.Config(model=model), tmp_path)


def test_another_architecture_is_refused(root: Path, tmp_path: Path) -> None:
    folder = broken(root, tmp_path, "Qwen/Qwen3-VL-tiny")
    (folder / "config.json").write_text('{"model_type": "dinov2"}')
    with pytest.raises(UnusableWeightsError, match="does not load as AutoModelForImageTextToText"):
        build("captioner", QwenVL.Config(model="Qwen/Qwen3-VL-tiny"), tmp_path)


@pytest.mark.parametrize("name", ["tokenizer.json", "chat_template.jinja", "processor_config.json"])
def test_a_checkpoint_without_its_processor_is_refused(root: Path, tmp_path: Path, name: str) -> None:
    (broken(root, tmp_path, "Qwen/Qwen3-VL-tiny") / name).unlink()
    with pytest.raises(UnusableWeightsError, match="fetch it again"):
        build("captioner", QwenVL.Config(model="Qwen/Qwen3-VL-tiny"), tmp_path)


def test_the_prompt_s_text_is_part_of_the_fingerprint_and_speed_is_not(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("Describe it as JSON. $max_subjects")
    mine = QwenVL.Config(prompt=str(tmp_path / "mine.txt"))
    mine.weights(tmp_path)[0].mkdir(parents=True)
    before = fingerprint(mine, tmp_path)
    assert mine.question() == "Describe it as JSON. 6"
    assert fingerprint(mine.model_copy(update={"batch": 1, "device": "cpu"}), tmp_path) == before
    others = [{"frames": 3}, {"max_side": 300}, {"max_subjects": 1}, {"max_tokens": 99}]
    assert before not in [fingerprint(mine.model_copy(update=each), tmp_path) for each in others]
    assert fingerprint(QwenVL.Config(prompt="caption.txt"), tmp_path) != before
    (tmp_path / "mine.txt").write_text("Describe it as JSON, please. $max_subjects")
    assert fingerprint(QwenVL.Config(prompt=str(tmp_path / "mine.txt")), tmp_path) != before


def test_a_prompt_that_is_not_there_is_an_error_of_the_config() -> None:
    with pytest.raises(ValueError, match=r"models\.captioner\.prompt: .*no file .*nowhere\.txt"):
        backend_config("captioner", {"backend": "qwen_vl", "prompt": "nowhere.txt"})
