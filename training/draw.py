"""What is drawn at random for a sample. All of it follows from the seed and the sample's place in the endless order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from PIL import Image as Pictures
from PIL import ImageEnhance
from pydantic import Field

from stages.config import Section
from training.order import MicroBatch
from training.seeds import Purpose, random_numbers
from training.shard_index import Sample

_WHITE = (255, 255, 255)


class AugmentConfig(Section):
    """How pictures of subjects are changed before the model sees them; a probability of 0 leaves that out."""

    flip: float = Field(0, ge=0, le=1)
    """Probability of mirroring left and right: of no use where writing or an asymmetric face is to be kept."""
    rotate: float = Field(0, ge=0, le=1)
    """Probability of a rotation; the corners become white."""
    rotate_degrees: float = Field(10, ge=0, le=180)
    """Largest angle, either way."""
    scale: float = Field(0, ge=0, le=1)
    """Probability of another size on the canvas: smaller with a white rim, or larger and cut."""
    scale_by: float = Field(0.1, ge=0, lt=1)
    """Largest change: 0.1 is a factor from 0.9 to 1.1."""
    colour: float = Field(0, ge=0, le=1)
    """Probability of other brightness and saturation. White stays white: pictures lie on a white canvas."""
    colour_by: float = Field(0.2, ge=0, lt=1)
    """Largest change: 0.2 is a gamma and a saturation from 0.8 to 1.2."""


@dataclass(frozen=True, slots=True)
class Augmentation:
    """The changes that one picture gets; the defaults leave it as it is."""

    flip: bool = False
    degrees: float = 0.0
    scale: float = 1.0
    gamma: float = 1.0
    saturation: float = 1.0

    def apply(self, picture: Pictures.Image) -> Pictures.Image:
        """An RGB picture, changed; its size may change too."""
        if self.flip:
            picture = picture.transpose(Pictures.Transpose.FLIP_LEFT_RIGHT)
        if self.gamma != 1:
            picture = picture.point([round(255 * (value / 255) ** self.gamma) for value in range(256)] * 3)
        if self.saturation != 1:
            picture = ImageEnhance.Color(picture).enhance(self.saturation)
        if self.degrees:
            picture = picture.rotate(self.degrees, Pictures.Resampling.BICUBIC, expand=True, fillcolor=_WHITE)
        if self.scale != 1:
            size = (max(1, round(picture.width / self.scale)), max(1, round(picture.height / self.scale)))
            canvas = Pictures.new("RGB", size, _WHITE)
            canvas.paste(picture, ((size[0] - picture.width) // 2, (size[1] - picture.height) // 2))
            picture = canvas
        return picture


@dataclass(frozen=True, slots=True)
class Draw:
    """What was drawn for a sample."""

    place: float
    """Where its window lies among all that are possible, in [0, 1)."""
    keep_text: bool
    pictures: tuple[str, ...]
    """Extensions of the pictures, in the order in which the model gets them."""
    augmentations: tuple[Augmentation, ...]
    """One for each."""


@dataclass(frozen=True, slots=True)
class DrawRules:
    """How samples are drawn. The defaults draw nothing but which pictures: for validation."""

    kinds: Mapping[str, float]
    """Weights; what is not here is never drawn."""
    max_references: int
    centre: bool = True
    """Always the middle window."""
    shuffle: bool = False
    """Whether references come in any order, or that of their subjects."""
    text_dropout: float = 0.0
    reference_dropout: float = 0.0
    augment: AugmentConfig = field(default_factory=AugmentConfig)


def draw_sample(subjects: Sequence[Mapping[str, Sequence[str]]], rules: DrawRules, seed: int, position: int) -> Draw:
    """Draw one picture for each of the first ``max_references`` subjects, and all else that a sample needs.

    A kind is drawn by its weight among those that the subject has, then one of its pictures. Changing one rule changes
    no draw of another: each has random numbers of its own.

    Args:
        subjects: each subject's pictures by kind, largest subject first; see :meth:`Sample.pictures`.
        position: the sample's place in the endless order.
    """
    random = random_numbers(Purpose.SAMPLE, seed, position)
    place, text = random.random(2)
    chosen = subjects[: rules.max_references]
    of_kind, of_picture, turn = random.random((3, len(chosen)))
    pictures = [
        _draw_picture(pictures, rules.kinds, kind, picture)
        for pictures, kind, picture in zip(chosen, of_kind, of_picture, strict=True)
    ]
    order = np.argsort(turn, kind="stable") if rules.shuffle else range(len(pictures))
    changes = [_draw_augmentation(rules.augment, random) for _ in pictures]
    return Draw(
        place=0.5 if rules.centre else float(place),
        keep_text=bool(text >= rules.text_dropout),
        pictures=tuple(pictures[number] for number in order),
        augmentations=tuple(changes),
    )


def draw_micro_batch(samples: Sequence[Sample], micro_batch: MicroBatch, rules: DrawRules, seed: int) -> list[Draw]:
    """Draw for each sample of a micro-batch; all or none go without references, so that they stay equal in shape."""
    draws = [
        draw_sample(sample.pictures(rules.kinds), rules, seed, position)
        for sample, position in zip(samples, micro_batch.positions, strict=True)
    ]
    if random_numbers(Purpose.MICRO_BATCH, seed, micro_batch.number).random() < rules.reference_dropout:
        return [replace(draw, pictures=(), augmentations=()) for draw in draws]
    return draws


def _draw_picture(
    pictures: Mapping[str, Sequence[str]], weights: Mapping[str, float], of_kind: float, of_picture: float
) -> str:
    kinds = sorted(pictures)
    sums = np.cumsum([weights[kind] for kind in kinds])
    kind = kinds[min(int(np.searchsorted(sums, of_kind * sums[-1], side="right")), len(kinds) - 1)]
    return pictures[kind][int(of_picture * len(pictures[kind]))]


def _draw_augmentation(config: AugmentConfig, random: np.random.Generator) -> Augmentation:
    flips, rotates, scales, colours, degrees, scale, gamma, saturation = random.random(8)
    return Augmentation(
        flip=bool(flips < config.flip),
        degrees=_between(config.rotate_degrees, degrees) if rotates < config.rotate else 0.0,
        scale=1 + _between(config.scale_by, scale) if scales < config.scale else 1.0,
        gamma=1 + _between(config.colour_by, gamma) if colours < config.colour else 1.0,
        saturation=1 + _between(config.colour_by, saturation) if colours < config.colour else 1.0,
    )


def _between(most: float, random: float) -> float:
    """From -most to most."""
    return most * (2 * float(random) - 1)
