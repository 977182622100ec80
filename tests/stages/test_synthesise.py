from __future__ import annotations

import typing
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from models.colour_texture import ColourTexture
from models.protocols import EditRequest, Face, FillRequest, Image, Mask, Vector
from models.quilting import Quilting
from stages.measure import encode_rle, picture_difference, subject_sharpness
from stages.pair import InpaintedConfig, MovedConfig, ReferencesConfig, ReferenceSpec
from stages.picture import cut_out, decode_png, encode_png, subject_crop
from stages.records import Reference, Subject, SubjectFrame
from stages.synthesise import Painters, SynthesiseStage

HEIGHT, WIDTH = 120, 160
GREEN = (20, 160, 40)


def blank(cls: Any, **values: Any) -> Any:
    """A record of zeros and nothings but for these values."""
    zeros = {str: "", int: 0, float: 0.0, bool: False, bytes: b""}
    hints = typing.get_type_hints(cls)
    empty = {
        field.name: [] if typing.get_origin(hints[field.name]) is list else zeros.get(hints[field.name])
        for field in fields(cls)
    }
    return cls(**{**empty, **values})


def unit(*values: float) -> list[float]:
    return (np.array(values) / np.linalg.norm(values)).tolist()


def scene(x: int, colour: tuple[int, int, int], background: int) -> tuple[Image, Mask]:
    """A striped disc around ``x`` before a speckled wall."""
    rng = np.random.default_rng(background)
    wall = rng.integers(0, 255, (HEIGHT // 8, WIDTH // 8, 3)).astype(np.uint8) // 3 + np.array(GREEN, np.uint8) // 2
    image = cv2.resize(wall, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC)
    rows, columns = np.indices((HEIGHT, WIDTH))
    mask = np.hypot(rows - 60, columns - x) <= 30
    stripes = np.where((rows // 4 % 2)[..., None] > 0, np.array(colour, np.uint8), np.array(colour, np.uint8) // 2)
    image[mask] = stripes[mask]
    return image, mask


@dataclass
class Look:
    """A kept frame: where the disc stands, in what colour, and what it was found to look like."""

    x: int = 80
    colour: tuple[int, int, int] = (200, 40, 30)
    background: int = 0
    image_embedding: Sequence[float] = (1.0, 0.0, 0.0)
    face_embedding: Sequence[float] | None = None


def subject(name: str, *looks: Look, best: int = 0, scale: int = 1, **changes: Any) -> Subject:
    """A subject whose crops are its whole frames but for ten pixels at the left and the top, scaled down."""
    frames, crops = [], []
    for number, look in enumerate(looks):
        image, mask = scene(look.x, look.colour, look.background)
        frames.append(
            blank(
                SubjectFrame,
                time=float(number),
                mask=encode_rle(mask),
                crop_box=[10, 10, WIDTH, HEIGHT],
                image_embedding=list(look.image_embedding),
                face_embedding=None if look.face_embedding is None else list(look.face_embedding),
            )
        )
        crops.append(encode_png(cv2.resize(image[10:, 10:], None, fx=1 / scale, fy=1 / scale)))
    known = {"image_embedding": list(looks[best].image_embedding), "face_embedding": looks[best].face_embedding}
    numbers = {"frame_width": WIDTH, "frame_height": HEIGHT, "best": best, "word": "ball", "clip_id": f"clip-{name}"}
    return blank(Subject, subject_id=name, frames=frames, crops=crops, **{**numbers, **known, **changes})


def spec(kind: str, target: str = "a", source: str | None = None, **changes: Any) -> ReferenceSpec:
    whole = ReferenceSpec(f"id-{kind}", kind, target, source or target, 0, 7, "image", "fp")
    return replace(whole, **changes)


@dataclass
class MeanColour:
    """Knows things by the mean colour inside their mask."""

    asked: int = 0

    def embed(self, images: Sequence[Image], masks: Sequence[Mask]) -> list[Vector]:
        self.asked += len(images)
        means = [image[mask].mean(axis=0).astype(np.float32) for image, mask in zip(images, masks, strict=True)]
        return [mean / max(float(np.linalg.norm(mean)), 1e-9) for mean in means]


@dataclass
class Faces:
    """Sees these faces in every picture."""

    embeddings: Sequence[Sequence[float]] = ()

    def faces(self, images: Sequence[Image]) -> list[list[Face]]:
        found = [
            Face((0, 0, 9, 9), 0.9, np.zeros((5, 2), np.float32), np.array(embedding, np.float32))
            for embedding in self.embeddings
        ]
        return [found for _ in images]


@dataclass
class Painter:
    """Paints the background in one colour; a careless one everything."""

    colour: tuple[int, int, int] = (240, 240, 10)
    careless: bool = False
    requests: list[FillRequest] = field(default_factory=list)

    def fill(self, requests: Sequence[FillRequest]) -> list[Image]:
        self.requests += requests
        painted = []
        for request in requests:
            image = request.image.copy()
            image[np.ones_like(request.mask) if self.careless else request.mask] = self.colour
            painted.append(image)
        return painted


@dataclass
class Mover:
    """Turns the picture upside down; one that makes a scene paints what is white."""

    scenery: bool = False
    requests: list[EditRequest] = field(default_factory=list)

    def edit(self, requests: Sequence[EditRequest]) -> list[Image]:
        self.requests += requests
        moved = [request.image[::-1].copy() for request in requests]
        for picture in moved if self.scenery else []:
            picture[(picture > 240).all(axis=2)] = (30, 160, 30)
        return moved


CONFIG = ReferencesConfig(
    seed=5, inpainted=InpaintedConfig(prompt="a beach"), moved=MovedConfig(prompts=("a {word} that runs", "asleep"))
)


def stage(**models: Any) -> SynthesiseStage:
    painters = Painters(models.pop("inpainter", Painter()), "paint@1", models.pop("editor", Mover()), "move@1")
    return SynthesiseStage(CONFIG, painters, **{"embedder": MeanColour(), "faces": None, **models})


def make(wanted: ReferenceSpec, *subjects: Subject, **models: Any) -> Reference:
    (reference,) = stage(**models).run([wanted], {subject.subject_id: subject for subject in subjects})
    return reference


@pytest.mark.parametrize("scale", [1, 2])
def test_the_original_is_the_subject_alone_on_white(scale: int) -> None:
    ball = subject("a", Look(), scale=scale)
    reference = make(spec("original"), ball)
    picture = decode_png(reference.image)
    assert picture.shape == (reference.height, reference.width, 3)
    assert reference.width == pytest.approx(66 / scale, abs=3)
    assert reference.height == pytest.approx(66 / scale, abs=3)
    corners = picture[[0, 0, -1, -1], [0, -1, 0, -1]]
    assert np.all(corners == 255)
    middle = picture[picture.shape[0] // 2, picture.shape[1] // 2].astype(int)
    assert middle[0] > 3 * middle[1]
    # Nothing of the green wall, but where scaling mixed it with the ball's own rim.
    assert np.mean(picture[..., 1] > picture[..., 0].astype(int) + 2) <= (0 if scale == 1 else 0.02)
    crop, mask = subject_crop(ball, 0)
    assert np.array_equal(picture, cut_out(crop, mask))


def test_the_original_is_no_other_picture_than_the_target_s_own() -> None:
    reference = make(spec("original"), subject("a", Look()))
    assert reference.context_difference == 0
    assert reference.identity_similarity == pytest.approx(1)
    assert reference.method == "cut_out"


def test_what_the_spec_says_is_written_down() -> None:
    ball, other = subject("a", Look()), subject("b", Look(x=60), Look(x=100))
    reference = make(spec("cross_clip", "a", "b", frame=1, seed=3), ball, other)
    told = (reference.reference_id, reference.subject_id, reference.kind, reference.seed, reference.fingerprint)
    assert told == ("id-cross_clip", "a", "cross_clip", 3, "fp")
    assert (reference.source_subject_id, reference.source_clip_id, reference.source_time) == ("b", "clip-b", 1.0)
    assert Reference.to_table([reference]).num_rows == 1


def test_another_frame_is_taken_from_that_frame() -> None:
    ball = subject("a", Look(), Look(x=50, colour=(30, 40, 220)), Look(x=110, background=3))
    pictures = [decode_png(make(spec("other_frame", frame=frame), ball).image) for frame in range(3)]
    means = [picture[20:-20, 20:-20].mean(axis=(0, 1)) for picture in pictures]
    assert means[1][2] > 2 * means[1][0]
    assert means[2][0] > 2 * means[2][2]


def test_another_frame_differs_by_its_scene() -> None:
    ball = subject("a", Look(), Look(), Look(x=110, background=3))
    same, other = (make(spec("other_frame", frame=frame), ball).context_difference for frame in (1, 2))
    assert same == 0
    assert other > 0.1
    crops = [subject_crop(ball, frame)[0] for frame in (2, 0)]
    assert other == pytest.approx(picture_difference(*crops))


def test_a_cross_pair_is_measured_against_the_target() -> None:
    target = subject("a", Look(image_embedding=unit(1, 0)))
    source = subject("b", Look(x=50, background=2, image_embedding=unit(1, 1)))
    reference = make(spec("cross_clip", "a", "b"), target, source)
    assert reference.identity_similarity == pytest.approx(np.sqrt(0.5))
    assert reference.identity_by == "image"
    assert reference.context_difference == pytest.approx(
        picture_difference(subject_crop(source, 0)[0], subject_crop(target, 0)[0])
    )


def test_people_are_known_by_face_where_the_frame_shows_one() -> None:
    person = subject(
        "a",
        Look(image_embedding=unit(1, 0), face_embedding=unit(1, 0)),
        Look(image_embedding=unit(1, 1), face_embedding=unit(1, 3)),
        Look(image_embedding=unit(1, 1), face_embedding=None),
    )
    facing = make(spec("other_frame", frame=1, identity_by="face"), person)
    assert (facing.identity_by, facing.identity_similarity) == ("face", pytest.approx(np.sqrt(0.1)))
    turned = make(spec("other_frame", frame=2, identity_by="face"), person)
    assert (turned.identity_by, turned.identity_similarity) == ("image", pytest.approx(np.sqrt(0.5)))
    asked = make(spec("other_frame", frame=1, identity_by="image"), person)
    assert (asked.identity_by, asked.identity_similarity) == ("image", pytest.approx(np.sqrt(0.5)))


def test_pictures_that_only_move_pixels_are_not_embedded_anew() -> None:
    embedder = MeanColour()
    ball = subject("a", Look(), Look(x=60))
    specs = [spec("original"), spec("other_frame", frame=1)]
    stage(embedder=embedder).run(specs, {"a": ball})
    assert embedder.asked == 0


def test_painting_keeps_the_subject_s_pixels() -> None:
    ball = subject("a", Look())
    crop, mask = subject_crop(ball, 0)
    painter = Painter()
    picture = decode_png(make(spec("inpainted"), ball, inpainter=painter).image)
    assert picture.shape == crop.shape
    assert np.array_equal(picture[mask], crop[mask])
    assert np.all(picture[~mask] == painter.colour)
    (request,) = painter.requests
    assert np.array_equal(request.mask, ~mask)
    assert request.prompt == "ball, a beach"


def test_the_painted_background_counts_as_another_scene() -> None:
    reference = make(spec("inpainted"), subject("a", Look()))
    assert reference.context_difference > 0.1
    assert reference.method == "paint@1"


def test_every_painting_has_a_seed_of_its_own() -> None:
    painter = Painter()
    balls = {name: subject(name, Look()) for name in "ab"}
    specs = [spec("inpainted", name, seed=seed) for name in "ab" for seed in (0, 1)]
    for _ in range(2):
        stage(inpainter=painter).run(specs, balls)
    seeds = [request.seed for request in painter.requests]
    assert len(set(seeds[:4])) == 4
    assert seeds[:4] == seeds[4:]


def known_by_colour(name: str, look: Look) -> Subject:
    """A subject with the embedding that `MeanColour` has for it."""
    ball = subject(name, look)
    crop, mask = subject_crop(ball, 0)
    (vector,) = MeanColour().embed([crop], [mask])
    return replace(ball, image_embedding=vector.tolist())


def test_a_painting_that_keeps_the_subject_is_like_it_and_one_that_does_not_is_not() -> None:
    ball = known_by_colour("a", Look())
    assert make(spec("inpainted"), ball).identity_similarity == pytest.approx(1, abs=1e-3)
    spoilt = make(spec("inpainted"), ball, inpainter=Painter((10, 10, 240), careless=True))
    assert spoilt.identity_similarity < 0.4
    assert spoilt.identity_by == "image"


def test_a_painted_person_is_known_by_the_face_that_is_found_in_the_painting() -> None:
    person = known_by_colour("a", Look(face_embedding=unit(1, 0)))
    wanted = spec("inpainted", identity_by="face")
    kept = make(wanted, person, faces=Faces([unit(0, 1), unit(3, 1)]))
    assert (kept.identity_by, kept.identity_similarity) == ("face", pytest.approx(3 / np.sqrt(10)))
    gone = make(wanted, person, faces=Faces())
    assert (gone.identity_by, gone.identity_similarity) == ("face", 0)
    unlooked = make(wanted, person, faces=None)
    assert (unlooked.identity_by, unlooked.identity_similarity) == ("image", pytest.approx(1, abs=1e-3))


def test_brightness_and_sharpness_are_the_subject_s_in_the_picture() -> None:
    ball = subject("a", Look())
    crop, mask = subject_crop(ball, 0)
    original = make(spec("original"), ball)
    assert original.sharpness == pytest.approx(subject_sharpness(crop, mask))
    assert original.sharpness > 1
    assert 30 < original.brightness < 100
    painted = make(spec("inpainted"), ball)
    assert (painted.brightness, painted.sharpness) == (original.brightness, original.sharpness)
    blackened = make(spec("inpainted"), ball, inpainter=Painter((0, 0, 0), careless=True))
    assert (blackened.brightness, blackened.sharpness) == (0, 0)


def test_without_an_inpainter_paintings_are_an_error_that_names_the_setting() -> None:
    with pytest.raises(ValueError, match=r"references\.inpainted .* models\.inpainter"):
        make(spec("inpainted"), subject("a", Look()), inpainter=None)
    assert make(spec("original"), subject("a", Look()), inpainter=None).kind == "original"


def test_a_moved_picture_is_asked_for_with_the_cut_out_and_the_next_prompt() -> None:
    ball, mover = known_by_colour("a", Look()), Mover()
    first, second = (make(spec("moved", seed=seed), ball, editor=mover) for seed in (5, 6))
    assert np.array_equal(mover.requests[0].image, cut_out(*subject_crop(ball, 0)))
    assert [request.prompt for request in mover.requests] == ["a ball that runs", "asleep"]
    assert mover.requests[0].seed != mover.requests[1].seed
    assert {first.method, second.method} == {"move@1"}


def test_a_moved_picture_is_measured_where_its_subject_is_and_against_the_cut_out() -> None:
    ball = known_by_colour("a", Look())
    moved = make(spec("moved", seed=5), ball)
    before = cut_out(*subject_crop(ball, 0))
    assert np.array_equal(decode_png(moved.image), before[::-1])
    assert moved.context_difference == pytest.approx(picture_difference(before[::-1], before))
    assert moved.identity_similarity == pytest.approx(1, abs=0.02)
    assert 30 < moved.brightness < 100
    # With a scene around it, the scene is measured too: nobody can tell it from the subject.
    assert make(spec("moved", seed=5), ball, editor=Mover(scenery=True)).identity_similarity < 0.95


def test_every_painter_is_asked_once_for_all() -> None:
    @dataclass
    class Counting(Mover):
        calls: int = 0

        def edit(self, requests: Sequence[EditRequest]) -> list[Image]:
            self.calls += 1
            return super().edit(requests)

    balls, mover = {name: subject(name, Look()) for name in "ab"}, Counting()
    stage(editor=mover).run([spec("moved", name, seed=seed) for name in "ab" for seed in (5, 6)], balls)
    assert (mover.calls, len(mover.requests)) == (1, 4)
    stage(editor=mover).run([spec("original", "a")], balls)
    assert mover.calls == 1


def test_without_an_editor_moved_pictures_are_an_error_that_names_the_setting() -> None:
    with pytest.raises(ValueError, match=r"references\.moved .* models\.editor"):
        make(spec("moved", seed=5), subject("a", Look()), editor=None)


def test_one_reference_per_spec_in_order() -> None:
    balls = {name: subject(name, Look(), Look(x=60)) for name in "ab"}
    specs = [
        spec("inpainted", "b"),
        spec("original", "a"),
        spec("cross_clip", "a", "b"),
        spec("other_frame", "b", frame=1),
    ]
    references = stage().run(specs, balls)
    assert [(row.kind, row.subject_id) for row in references] == [(each.kind, each.target_id) for each in specs]
    assert stage().run([], balls) == []
    assert references == stage().run(specs, balls)


def test_the_installed_models_keep_the_subject_too() -> None:
    embedder = ColourTexture(ColourTexture.Config(), Path())
    ball = subject("a", Look())
    crop, mask = subject_crop(ball, 0)
    (vector,) = embedder.embed([crop], [mask])
    ball = replace(ball, image_embedding=vector.tolist())
    reference = make(spec("inpainted"), ball, inpainter=Quilting(Quilting.Config(), Path()), embedder=embedder)
    picture = decode_png(reference.image)
    assert np.array_equal(picture[mask], crop[mask])
    assert not np.array_equal(picture[~mask], crop[~mask])
    assert reference.identity_similarity > 0.99
    assert reference.context_difference > 0.02
