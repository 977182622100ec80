from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from shown_subjects import HEIGHT, WIDTH, Mover, Painter, Seen, scene, subject

from models.masks import box_of
from models.protocols import Image, Mask
from models.quilting import Quilting
from stages.augment import augment
from stages.measure import decode_rle
from stages.picture import cut_out, decode_png, foreground, subject_crop
from stages.plan import AugmentedConfig, InpaintedConfig, MovedConfig, ReferencesConfig, ReferenceSpec, SwappedConfig
from stages.records import KIND_ORDER, Reference, Subject
from stages.synthesise import Painters, SynthesiseStage

CONFIG = ReferencesConfig(
    seed=5,
    inpainted=InpaintedConfig(prompt="a beach"),
    moved=MovedConfig(prompts=("a {word} that runs", "asleep")),
    swapped=SwappedConfig(prompt="nobody", light="none"),
)
BALL = subject("a", Seen(), Seen(x=60, background=1))
OTHER = subject("b", Seen(x=60, colour=(30, 40, 220), background=2), Seen(x=100, background=3))


def spec(kind: str, target: str = "a", source: str | None = None, **changes: Any) -> ReferenceSpec:
    whole = ReferenceSpec(f"id-{kind}", kind, target, source or target, None, 0, 0, 7, f"by {kind}", "fp")
    return replace(whole, **changes)


def stage(**models: Any) -> SynthesiseStage:
    config = models.pop("config", CONFIG)
    return SynthesiseStage(config, Painters(models.pop("inpainter", Painter()), models.pop("editor", Mover())))


def make(wanted: ReferenceSpec, *subjects: Subject, **models: Any) -> Reference:
    (reference,) = stage(**models).run([wanted], {subject.subject_id: subject for subject in subjects})
    return reference


def shown(reference: Reference) -> tuple[Image, Mask]:
    return decode_png(reference.image), decode_rle(reference.mask, reference.height, reference.width)


@pytest.mark.parametrize("scale", [1, 2])
def test_the_original_is_the_subject_alone_on_white(scale: int) -> None:
    ball = subject("a", Seen(), scale=scale)
    reference = make(spec("original"), ball)
    picture, mask = shown(reference)
    assert picture.shape == (reference.height, reference.width, 3)
    assert reference.width == pytest.approx(66 / scale, abs=3)
    assert reference.height == pytest.approx(66 / scale, abs=3)
    corners = picture[[0, 0, -1, -1], [0, -1, 0, -1]]
    assert np.all(corners == 255)
    middle = picture[picture.shape[0] // 2, picture.shape[1] // 2].astype(int)
    assert middle[0] > 3 * middle[1]
    # Nothing of the green wall, but where scaling mixed it with the ball's own rim.
    assert np.mean(picture[..., 1] > picture[..., 0].astype(int) + 2) <= (0 if scale == 1 else 0.02)
    assert np.array_equal(picture, cut_out(*subject_crop(ball, 0))[0])
    assert np.array_equal(mask, cut_out(*subject_crop(ball, 0))[1])
    assert reference.method == "by original"


def test_what_the_spec_says_is_written_down() -> None:
    reference = make(spec("cross_clip", "a", "b", frame=1, seed=3), BALL, OTHER)
    told = (reference.reference_id, reference.subject_id, reference.kind, reference.seed, reference.fingerprint)
    assert told == ("id-cross_clip", "a", "cross_clip", 3, "fp")
    source = (reference.source_subject_id, reference.source_clip_id, reference.source_time, reference.source_frame)
    assert source == ("b", "clip-b", 1.0, 1)
    assert reference.scene_subject_id is None
    assert make(spec("swapped", scene_id="b"), BALL, OTHER).scene_subject_id == "b"
    assert Reference.to_table([reference]).num_rows == 1


def test_another_frame_is_taken_from_that_frame() -> None:
    ball = subject("a", Seen(), Seen(x=50, colour=(30, 40, 220)), Seen(x=110, background=3))
    pictures = [decode_png(make(spec("other_frame", frame=frame), ball).image) for frame in range(3)]
    means = [picture[20:-20, 20:-20].mean(axis=(0, 1)) for picture in pictures]
    assert means[1][2] > 2 * means[1][0]
    assert means[2][0] > 2 * means[2][2]


def test_a_cross_pair_shows_the_source() -> None:
    picture, mask = shown(make(spec("cross_clip", "a", "b"), BALL, OTHER))
    assert picture[mask][:, 2].mean() > 2 * picture[mask][:, 0].mean()


def test_painting_keeps_the_subject_s_pixels() -> None:
    painter = Painter()
    crop, mask = subject_crop(BALL, 0)
    reference = make(spec("inpainted"), BALL, inpainter=painter)
    picture, inside = shown(reference)
    assert np.array_equal(inside, mask)
    assert np.array_equal(picture[mask], crop[mask])
    # Beyond the soft edge of the subject.
    y, x = np.indices(mask.shape)
    assert np.all(picture[np.hypot(y - 50, x - 70) > 34] == painter.colour)
    (request,) = painter.requests
    assert np.array_equal(request.mask, ~mask)
    assert request.prompt == "ball, a beach"
    assert reference.method == "by inpainted"


def test_every_painting_has_a_seed_of_its_own() -> None:
    painter = Painter()
    specs = [spec("inpainted", name, seed=seed) for name in "ab" for seed in (0, 1)]
    for _ in range(2):
        stage(inpainter=painter).run(specs, {"a": BALL, "b": OTHER})
    seeds = [request.seed for request in painter.requests]
    assert len(set(seeds[:4])) == 4
    assert seeds[:4] == seeds[4:]


def test_a_moved_picture_is_asked_for_with_the_cut_out_and_the_next_prompt() -> None:
    mover = Mover()
    made = [make(spec("moved", number=number, seed=number), BALL, editor=mover) for number in range(3)]
    assert np.array_equal(mover.requests[0].image, cut_out(*subject_crop(BALL, 0))[0])
    assert [request.prompt for request in mover.requests] == ["a ball that runs", "asleep", "a ball that runs"]
    assert len({request.seed for request in mover.requests}) == 3
    assert {reference.method for reference in made} == {"by moved"}


def test_the_subject_of_a_moved_picture_is_what_stands_on_white() -> None:
    picture, mask = shown(make(spec("moved"), BALL))
    before, inside = cut_out(*subject_crop(BALL, 0))
    assert np.array_equal(picture, before[::-1])
    assert np.array_equal(mask, foreground(picture))
    # All of it but for the rim that fades to white.
    assert np.mean(mask ^ inside[::-1]) < 0.02
    # With a scene around it nobody can tell it from the subject.
    assert shown(make(spec("moved"), BALL, editor=Mover(scenery=True)))[1].all()


def test_an_augmented_picture_is_the_subject_on_white_and_another_one_for_each_seed() -> None:
    config = CONFIG.model_copy(update={"augmented": AugmentedConfig(max_rotation=30)})
    made = [make(spec("augmented", seed=seed), BALL, config=config) for seed in (1, 1, 2)]
    picture, mask = shown(made[0])
    assert made[0] == made[1]
    assert made[0].image != made[2].image
    # White but for its soft edge.
    assert (picture[~mask] == 255).mean() > 0.75
    assert picture[mask][:, 0].mean() > 2 * picture[mask][:, 1].mean()
    assert made[0].method == "by augmented"
    # The seed belongs to the subject, too.
    same = make(spec("augmented", "c", seed=1), replace(BALL, subject_id="c"), config=config)
    assert same.image != made[0].image


def test_the_config_says_how_far_an_augmented_picture_goes() -> None:
    still = AugmentedConfig(
        flip=0,
        max_rotation=0,
        min_scale=1,
        max_perspective=0,
        min_crop=1,
        max_brightness=0,
        max_contrast=0,
        max_saturation=0,
        max_hue=0,
        draws=1,
    )
    config = CONFIG.model_copy(update={"augmented": still})
    picture, mask = shown(make(spec("augmented"), BALL, config=config))
    expected, inside = augment(*subject_crop(BALL, 0), still, 0)
    assert np.array_equal(picture, expected)
    assert np.array_equal(mask, inside)


def test_a_swapped_picture_shows_the_subject_in_the_scene_in_place_of_the_one_there() -> None:
    painter = Painter()
    reference = make(spec("swapped", scene_id="b"), BALL, OTHER, inpainter=painter)
    picture, mask = shown(reference)
    crop, there = subject_crop(OTHER, 0)
    assert picture.shape == crop.shape
    # Asked for: the scene without its own subject.
    (request,) = painter.requests
    assert np.array_equal(request.image, crop)
    assert np.all(request.mask[there])
    assert request.mask.mean() < 2 * there.mean()
    assert request.prompt == "nobody"
    # The red ball stands where the blue one stood, of the same size, and the blue one is gone.
    assert box_of(mask) == pytest.approx(box_of(there), abs=2)
    assert picture[mask][:, 0].mean() > 2 * picture[mask][:, 2].mean()
    far = ~request.mask & ~mask
    assert np.abs(picture[far].astype(int) - crop[far]).mean() < 1
    assert reference.method == "by swapped"
    assert reference.revealed == pytest.approx((request.mask & ~mask).mean())
    assert make(spec("inpainted"), BALL).revealed is None


def test_the_scene_of_a_swap_is_the_host_s_best_frame() -> None:
    painter = Painter()
    make(spec("swapped", scene_id="b"), BALL, replace(OTHER, best=1), inpainter=painter)
    assert np.array_equal(painter.requests[0].image, scene(100, background=3)[0][10:, 10:])
    assert painter.requests[0].image.shape == (HEIGHT - 10, WIDTH - 10, 3)


def test_a_swap_without_a_scene_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"id-swapped.*scene"):
        make(spec("swapped"), BALL)


@pytest.mark.parametrize("kind", ["inpainted", "swapped"])
def test_without_an_inpainter_paintings_are_an_error_that_names_the_setting(kind: str) -> None:
    with pytest.raises(ValueError, match=rf"references\.{kind} .* models\.inpainter"):
        make(spec(kind, scene_id="b"), BALL, OTHER, inpainter=None)
    assert make(spec("original"), BALL, inpainter=None).kind == "original"


def test_without_an_editor_moved_pictures_are_an_error_that_names_the_setting() -> None:
    with pytest.raises(ValueError, match=r"references\.moved .* models\.editor"):
        make(spec("moved"), BALL, editor=None)


def every_kind(*names: str) -> Sequence[ReferenceSpec]:
    """One spec of each kind per subject, the kinds mixed."""
    scenes = {"a": "b", "b": "a"}
    return [
        spec(
            kind,
            name,
            scenes[name] if kind == "cross_clip" else name,
            scene_id=scenes[name] if kind == "swapped" else None,
            frame=1 if kind == "other_frame" else 0,
        )
        for kind in reversed(KIND_ORDER)
        for name in names
    ]


def test_every_painter_is_asked_once_for_all_of_a_kind() -> None:
    painter, mover = Painter(), Mover()
    stage(inpainter=painter, editor=mover).run(every_kind("a", "b"), {"a": BALL, "b": OTHER})
    assert (painter.calls, len(painter.requests)) == (2, 4)
    assert (mover.calls, len(mover.requests)) == (1, 2)
    stage(inpainter=painter, editor=mover).run([spec("original")], {"a": BALL})
    assert (painter.calls, mover.calls) == (2, 1)


def test_one_reference_per_spec_in_order_whatever_else_is_made() -> None:
    specs, balls = every_kind("a", "b"), {"a": BALL, "b": OTHER}
    references = stage().run(specs, balls)
    assert [(row.kind, row.subject_id) for row in references] == [(each.kind, each.target_id) for each in specs]
    assert stage().run([], balls) == []
    assert references == [stage().run([each], balls)[0] for each in specs]
    assert references == stage().run(specs[::-1], balls)[::-1]
    # And all can be looked at.
    for reference in references:
        picture, mask = shown(reference)
        assert picture.shape[:2] == mask.shape
        assert 0 < mask.mean() < 1


def test_the_installed_inpainter_keeps_the_subject_too() -> None:
    crop, mask = subject_crop(BALL, 0)
    picture, _ = shown(make(spec("inpainted"), BALL, inpainter=Quilting(Quilting.Config(), Path())))
    assert np.array_equal(picture[mask], crop[mask])
    assert not np.array_equal(picture[~mask], crop[~mask])
