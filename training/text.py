"""Captions into what the model attends to: umT5, and a stand-in for it that is trained along with the model.

``backend: name`` in a config chooses between them.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol

import torch
from pydantic import Field
from torch import nn

from models.pretrained import UnusableWeightsError, refuse_missing
from stages.config import Section
from training.weights import fingerprint, read_settings, require

_WAN = "Wan-AI/Wan2.1-T2V-1.3B-Diffusers"


class TextEncoder(Protocol):
    """Captions into rows that the model attends to, always as many; results lie on the encoder's device."""

    @property
    def dim(self) -> int:
        """D of a row."""

    @property
    def length(self) -> int:
        """L, the rows of every caption."""

    @property
    def fingerprint(self) -> str:
        """Changes with whatever changes the embeddings: settings and frozen weights, not where they lie."""

    @property
    def trainable(self) -> bool:
        """Whether it is an ``nn.Module`` to be trained, and embeddings carry gradients. Nothing is cached then."""

    def encode(self, captions: Sequence[str]) -> torch.Tensor:
        """B captions, which may be empty, to (B, L, D) float32."""


class Umt5Config(Section):
    """The text encoder of Wan, frozen."""

    backend: Literal["umt5"] = "umt5"
    checkpoint: Path
    """Folder of a Wan model in diffusers' format: the one that holds `text_encoder` and `tokenizer`."""
    length: int = Field(512, ge=1)
    """Tokens of a caption: longer ones are cut, shorter ones end in rows of zeros. Wan was trained with 512."""
    precision: Literal["float32", "bfloat16"] = "bfloat16"
    """What the encoder computes in; embeddings are float32 either way."""


class WordsConfig(Section):
    """A table of words, trained along with the model: a stand-in for umT5, for tests and tiny models."""

    backend: Literal["words"] = "words"
    dim: int = Field(64, ge=1)
    """Numbers per token."""
    length: int = Field(32, ge=1)
    """Words of a caption: longer ones are cut, shorter ones filled up with a row that stands for no word."""
    rows: int = Field(4096, ge=2)
    """Rows of the table; words that fall into one row are the same to the model."""


TextChoice = Annotated[Umt5Config | WordsConfig, Field(discriminator="backend")]


def build_text(config: TextChoice, device: torch.device | str = "cpu") -> TextEncoder:
    """The encoder of a config. Weights are looked for now and loaded when they are first needed; one to be trained
    starts at random.

    Raises:
        models.registry.MissingWeightsError: if the checkpoint is not where the config says.
        training.weights.UnusableWeightsError: here or at the first use, if it does not load.
    """
    device = torch.device(device)
    return Umt5(config, device) if isinstance(config, Umt5Config) else Words(config, device)


class Umt5:
    """umT5's encoder with Wan's clean-up of captions. Loaded when it is first needed.

    Rows of padding are zero, as the Wan transformer, which uses no mask, was trained.
    """

    trainable = False

    def __init__(self, config: Umt5Config, device: torch.device) -> None:
        self._weights = config.checkpoint / "text_encoder"
        self._tokenizer_folder = config.checkpoint / "tokenizer"
        require(self._weights, file="config.json", setting="text.checkpoint", source=_WAN)
        require(self._tokenizer_folder, file="tokenizer_config.json", setting="text.checkpoint", source=_WAN)
        self.dim: int = read_settings(self._weights)["d_model"]
        self.length = config.length
        self._config = config
        self._device = device

    @cached_property
    def fingerprint(self) -> str:
        """Hash of weights, tokenizer and the settings that embeddings depend on."""
        settings = self._config.model_dump(mode="json", exclude={"checkpoint"})
        return fingerprint(settings, [self._weights, self._tokenizer_folder])

    def encode(self, captions: Sequence[str]) -> torch.Tensor:
        from diffusers.pipelines.wan.pipeline_wan import prompt_clean

        if not captions:
            return torch.zeros(0, self.length, self.dim, device=self._device)
        tokens = self._tokenizer(
            [prompt_clean(caption) for caption in captions],
            padding="max_length",
            max_length=self.length,
            truncation=True,
            return_tensors="pt",
        ).to(self._device)
        rows: torch.Tensor = self._encoder(tokens.input_ids, tokens.attention_mask).last_hidden_state
        return rows.float().masked_fill(tokens.attention_mask.unsqueeze(-1) == 0, 0)

    @cached_property
    def _tokenizer(self) -> Any:
        from transformers import AutoTokenizer

        try:
            return AutoTokenizer.from_pretrained(self._tokenizer_folder, local_files_only=True)
        except Exception as error:  # Its loaders raise almost anything.
            raise UnusableWeightsError(
                f"the tokenizer in {self._tokenizer_folder} does not load ({error}); fetch it again"
            ) from error

    @cached_property
    def _encoder(self) -> Any:
        from transformers import UMT5EncoderModel

        dtype = getattr(torch, self._config.precision)
        try:
            encoder, info = UMT5EncoderModel.from_pretrained(
                self._weights, dtype=dtype, local_files_only=True, output_loading_info=True
            )
        except Exception as error:  # Its loaders raise almost anything.
            raise UnusableWeightsError(
                f"the umT5 in {self._weights} does not load ({error}); fetch it again"
            ) from error
        refuse_missing(self._weights, info["missing_keys"])
        return encoder.requires_grad_(False).eval().to(self._device)


class Words(nn.Module):
    """Words hashed into a learned table, plus a learned row for their place.

    Row 0 stands for "no word": it fills captions up to ``length``, and an empty caption is made of nothing else.
    """

    trainable = True

    def __init__(self, config: WordsConfig, device: torch.device | None = None) -> None:
        super().__init__()
        self.config = config
        self.dim = config.dim
        self.length = config.length
        self.table = nn.Embedding(config.rows, config.dim, device=device)
        self.places = nn.Embedding(config.length, config.dim, device=device)

    @classmethod
    def load(cls, file: Path, device: torch.device | None = None) -> Words:
        """What :meth:`save` wrote. Raises :class:`UnusableWeightsError` for anything else."""
        from safetensors import SafetensorError, safe_open
        from safetensors.torch import load_file

        try:
            with safe_open(file, framework="pt") as stored:
                words = cls(WordsConfig.model_validate_json((stored.metadata() or {})["words"]), device)
                words.load_state_dict(load_file(file))
        except (OSError, KeyError, ValueError, RuntimeError, SafetensorError) as error:
            raise UnusableWeightsError(f"{file} is no trained table of words: {error}") from error
        return words

    def save(self, file: Path) -> None:
        """Write table and config as safetensors."""
        from safetensors.torch import save_file

        state = {name: tensor.detach().cpu().contiguous() for name, tensor in self.state_dict().items()}
        save_file(state, file, metadata={"words": self.config.model_dump_json()})

    @property
    def fingerprint(self) -> str:
        """Hash of the config. The table changes as it is trained: nothing that follows from it is worth keeping."""
        return fingerprint(self.config.model_dump(mode="json"))

    def encode(self, captions: Sequence[str]) -> torch.Tensor:
        numbers = [word_rows(caption, self.config.rows)[: self.length] for caption in captions]
        filled = [row + [0] * (self.length - len(row)) for row in numbers]
        device = self.table.weight.device
        # Through the module's call, where sharding hooks in.
        embedded: torch.Tensor = self(torch.tensor(filled, device=device).view(-1, self.length).long())
        return embedded

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """(B, L) numbers of table rows to (B, L, D)."""
        embedded: torch.Tensor = self.table(rows) + self.places.weight
        return embedded


def word_rows(caption: str, rows: int) -> list[int]:
    """The table row of every word of a caption, in [1, rows), the same in every process and version of Python."""
    return [
        1 + int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest()) % (rows - 1)
        for word in re.findall(r"\w+", caption.casefold())
    ]
