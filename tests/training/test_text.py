import shutil
from pathlib import Path

import pytest
import torch
from diffusers import WanPipeline
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError
from safetensors.torch import load_file, save_file
from transformers import T5Tokenizer, UMT5Config, UMT5EncoderModel

from models.pretrained import UnusableWeightsError
from models.registry import MissingWeightsError
from training.text import TextChoice, Umt5, Umt5Config, Words, WordsConfig, build_text, word_rows

LENGTH = 12
CAPTIONS = ["A cat & a dog.", "", "  A &amp;amp; cat\n\t runs  ", "a cat " * 40]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wan")
    pieces = ["<pad>", "</s>", "<unk>", "▁", "▁a", "▁A", "▁cat", "▁dog", "▁&", ".", *"abcdefghijklmnopqrstuvwxyz;"]
    T5Tokenizer(vocab=[(piece, -float(n)) for n, piece in enumerate(pieces)], extra_ids=0).save_pretrained(
        folder / "tokenizer"
    )
    config = UMT5Config(vocab_size=len(pieces), d_model=16, d_kv=4, d_ff=32, num_layers=2, num_heads=4)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        UMT5EncoderModel(config).save_pretrained(folder / "text_encoder")
    return folder


@pytest.fixture
def copy(checkpoint: Path, tmp_path: Path) -> Path:
    return shutil.copytree(checkpoint, tmp_path / "copied")


def umt5(folder: Path, **options: object) -> Umt5:
    text = build_text(
        Umt5Config.model_validate({"checkpoint": folder, "length": LENGTH, "precision": "float32"} | options)
    )
    assert isinstance(text, Umt5)
    return text


def test_umt5_embeds_as_the_wan_pipeline_does(checkpoint: Path) -> None:
    text = umt5(checkpoint)
    assert (text.dim, text.length, text.trainable) == (16, LENGTH, False)
    tokenizer = T5Tokenizer.from_pretrained(checkpoint / "tokenizer")
    pipeline = WanPipeline(tokenizer, UMT5EncoderModel.from_pretrained(checkpoint / "text_encoder"), None, None)
    with torch.no_grad():
        expected = pipeline._get_t5_prompt_embeds(CAPTIONS, max_sequence_length=LENGTH, device=torch.device("cpu"))
    rows = text.encode(CAPTIONS)
    assert (rows.shape, rows.dtype, rows.requires_grad) == ((4, LENGTH, 16), torch.float32, False)
    assert torch.equal(rows, expected)


def test_what_follows_a_caption_is_rows_of_zeros(checkpoint: Path) -> None:
    rows = umt5(checkpoint).encode(["a cat", "", "a cat " * 40])
    assert (rows != 0).any(dim=2).sum(dim=1).tolist() == [3, 1, LENGTH]  # With the token that ends a caption.


def test_captions_are_cleaned_first(checkpoint: Path) -> None:
    text = umt5(checkpoint)
    assert torch.equal(text.encode(["  a\n cat &amp;amp; a\tdog "]), text.encode(["a cat & a dog"]))


def test_a_caption_does_not_depend_on_the_others(checkpoint: Path) -> None:
    text = umt5(checkpoint)
    together = text.encode(CAPTIONS)
    for place, caption in enumerate(CAPTIONS):
        assert torch.allclose(text.encode([caption])[0], together[place], atol=1e-6)
    assert text.encode([]).shape == (0, LENGTH, 16)


def test_bfloat16_is_the_default_near_and_told_apart(checkpoint: Path) -> None:
    exact, rough = umt5(checkpoint), umt5(checkpoint, precision="bfloat16")
    assert Umt5Config(checkpoint=checkpoint).precision == "bfloat16"
    assert Umt5Config(checkpoint=checkpoint).length == 512
    rows, expected = rough.encode(CAPTIONS), exact.encode(CAPTIONS)
    assert rows.dtype == torch.float32
    assert 0 < (rows - expected).square().mean().sqrt() < 0.05 * expected.std()
    assert len({text.fingerprint for text in (exact, rough, umt5(checkpoint, length=13))}) == 3


def test_the_fingerprint_covers_weights_and_tokenizer_wherever_they_lie(checkpoint: Path, copy: Path) -> None:
    original = umt5(checkpoint).fingerprint
    assert umt5(copy).fingerprint == original
    settings = copy / "tokenizer" / "tokenizer.json"
    settings.write_text(settings.read_text() + "\n")
    changed = umt5(copy).fingerprint
    weights = copy / "text_encoder" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert len({original, changed, umt5(copy).fingerprint}) == 3


@pytest.mark.parametrize(
    ("missing", "named"),
    [("text_encoder", "text_encoder/config.json"), ("tokenizer", "tokenizer/tokenizer_config.json")],
)
def test_a_missing_checkpoint_is_named_with_what_to_do(missing: str, named: str, copy: Path) -> None:
    shutil.rmtree(copy / missing)
    with pytest.raises(MissingWeightsError) as error:
        umt5(copy)
    for part in (named, "text.checkpoint", f"hf download Wan-AI/Wan2.1-T2V-1.3B-Diffusers --include '{missing}/*'"):
        assert part in str(error.value)


def test_damaged_weights_are_refused(copy: Path) -> None:
    file = copy / "text_encoder" / "model.safetensors"
    tensors = load_file(file)
    name = next(name for name in tensors if "block.1" in name)
    del tensors[name]
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(UnusableWeightsError, match=f"lacks tensors of the model: {name}"):
        umt5(copy).encode(["a cat"])
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(UnusableWeightsError, match="text_encoder does not load"):
        umt5(copy).encode(["a cat"])
    (copy / "tokenizer" / "tokenizer.json").write_text("{")
    with pytest.raises(UnusableWeightsError, match="tokenizer does not load"):
        umt5(copy).encode(["a cat"])


def words(**options: int) -> Words:
    text = build_text(WordsConfig.model_validate({"dim": 8, "length": 5, "rows": 1000} | options))
    assert isinstance(text, Words)
    return text


def test_words_are_told_apart_by_what_and_where_they_are() -> None:
    text = words()
    assert (text.dim, text.length, text.trainable) == (8, 5, True)
    rows = text.encode(["red cat", "Red, CAT!", "cat red", "blue cat"])
    assert (rows.shape, rows.dtype) == ((4, 5, 8), torch.float32)
    assert torch.equal(rows[0], rows[1])
    assert (rows[0] != rows[2]).any(dim=1).tolist() == [True, True, False, False, False]
    assert (rows[0] != rows[3]).any(dim=1).tolist() == [True, False, False, False, False]


def test_an_empty_caption_is_the_learned_row_for_no_word() -> None:
    text = words()
    rows = text.encode(["", "...", "cat"])
    assert torch.equal(rows[0], text.table.weight[0] + text.places.weight)
    assert torch.equal(rows[1], rows[0])
    assert torch.equal(rows[2, 1:], rows[0, 1:])
    assert text.encode([]).shape == (0, 5, 8)


def test_long_captions_are_cut() -> None:
    text = words()
    assert torch.equal(text.encode(["a b c d e f g"]), text.encode(["a b c d e"]))


def test_the_gradient_reaches_the_words_of_the_caption_only() -> None:
    text = words()
    text.encode(["cat"]).sum().backward()
    touched = text.table.weight.grad.abs().sum(dim=1).nonzero().flatten().tolist()
    assert touched == [0, *word_rows("cat", 1000)]
    assert (text.places.weight.grad == 1).all()


@given(st.text(max_size=60), st.integers(2, 5000))
def test_any_caption_has_rows_of_the_table(caption: str, rows: int) -> None:
    assert all(1 <= row < rows for row in word_rows(caption, rows))


def test_rows_never_change_and_spread_evenly() -> None:
    assert word_rows("A cat, über", 4096) == [3279, 3970, 3267]
    counts = torch.bincount(torch.tensor([word_rows(f"word{n}", 101)[0] for n in range(10_000)]), minlength=101)
    assert counts[0] == 0
    assert ((counts[1:] - 100).abs() < 50).all()


def test_words_are_saved_and_loaded_with_their_config(tmp_path: Path) -> None:
    text = words(rows=17)
    text.save(tmp_path / "words.safetensors")
    loaded = Words.load(tmp_path / "words.safetensors")
    assert loaded.config == text.config
    assert torch.equal(loaded.encode(["red cat"]), text.encode(["red cat"]))


@pytest.mark.parametrize("content", ["missing", "garbage", "without config", "without table"])
def test_what_is_no_saved_table_is_refused(content: str, tmp_path: Path) -> None:
    file = tmp_path / "words.safetensors"
    if content == "garbage":
        file.write_bytes(b"no tensors")
    elif content == "without config":
        save_file({"table.weight": torch.zeros(2, 2)}, file)
    elif content == "without table":
        save_file({"other": torch.zeros(2, 2)}, file, metadata={"words": WordsConfig().model_dump_json()})
    with pytest.raises(UnusableWeightsError, match=r"words\.safetensors is no trained table of words"):
        Words.load(file)


def test_the_fingerprint_of_words_is_that_of_their_config() -> None:
    assert words().fingerprint == words().fingerprint != words(rows=1001).fingerprint


def test_the_backend_chooses_the_encoder() -> None:
    choice: TypeAdapter[TextChoice] = TypeAdapter(TextChoice)
    assert choice.validate_python({"backend": "words", "dim": 4}) == WordsConfig(dim=4)
    assert isinstance(choice.validate_python({"backend": "umt5", "checkpoint": "wan"}), Umt5Config)
    for wrong in ({"backend": "t5"}, {"backend": "words", "rows": 1}, {"backend": "umt5"}):
        with pytest.raises(ValidationError):
            choice.validate_python(wrong)
