from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import Any, ClassVar

import cv2
import numpy as np
import pytest
from blank import blank
from shown_subjects import (
    Boxes,
    Faces,
    MeanColour,
    Painter,
    Redness,
    Seen,
    Whiteness,
    known_by_colour,
    pictured,
    subject,
    unit,
)
from skimage import data

from models.protocols import Image, Mask
from stages.difference import Look, difference
from stages.measure import brightness, encode_rle, perceptual_hash, picture_difference, subject_sharpness
from stages.picture import cut_out, encode_png, subject_crop
from stages.records import KIND_ORDER, Proof, Reference, Subject
from stages.repainted import halo, laid_over
from stages.verify import NEW_BACKGROUND, ON_WHITE, PAINTED, Claim, Other, Verifiers, VerifyConfig, VerifyStage

NO_COPIES = VerifyConfig(copies=False)
YELLOW = (240, 240, 10)


def claim(
    kind: str,
    target: Subject,
    source: Subject | None = None,
    frame: int = 0,
    *,
    shown: tuple[Image, Mask] | None = None,
    others: Sequence[Other] = (),
    same_video: bool | None = None,
) -> Claim:
    """A reference that shows this picture, or what is cut out of the source's frame, for a target."""
    source = source or target
    picture, mask = shown or cut_out(*subject_crop(source, frame))
    reference = blank(
        Reference,
        reference_id=f"{kind}-{target.subject_id}",
        subject_id=target.subject_id,
        kind=kind,
        source_subject_id=source.subject_id,
        source_frame=frame,
        image=encode_png(picture),
        mask=encode_rle(mask),
        height=picture.shape[0],
        width=picture.shape[1],
    )
    within = source is target if same_video is None else same_video
    return Claim(reference, target, source, within, list(others), f"fp-{kind}")


def prove(*claims: Claim, config: VerifyConfig = NO_COPIES, **models: Any) -> list[Proof]:
    return VerifyStage(config, Verifiers(**{"embedder": MeanColour(), **models})).run(claims)


def proof(*arguments: Any, config: VerifyConfig = NO_COPIES, models: dict[str, Any] | None = None, **how: Any) -> Proof:
    (only,) = prove(claim(*arguments, **how), config=config, **(models or {}))
    return only


BALL = known_by_colour(subject("a", Seen(), Seen(x=50, background=3, time=2.5)))
OTHER = subject("b", Seen(x=60, colour=(30, 40, 220), background=2, radius=20, image_embedding=unit(1, 1, 0)))


def repainted(ball: Subject, colour: tuple[int, int, int] = YELLOW, rim: int = 0) -> tuple[Image, Mask]:
    """Its best crop with another background, but for so many pixels around it."""
    crop, mask = subject_crop(ball, ball.best)
    picture = np.full_like(crop, colour)
    kept = cv2.dilate(mask.astype(np.uint8), np.ones((2 * rim + 1, 2 * rim + 1), np.uint8)) > 0
    picture[kept] = crop[kept]
    return picture, mask


def of_every_kind(ball: Subject, other: Subject) -> list[Claim]:
    shown = {
        "other_frame": {"frame": 1},
        "cross_clip": {"source": other},
        "inpainted": {"shown": repainted(ball)},
        "swapped": {"shown": repainted(ball, (10, 10, 200))},
    }
    return [claim(kind, ball, **shown.get(kind, {})) for kind in KIND_ORDER]  # type: ignore[arg-type]


class TestOriginal:
    def test_differs_in_nothing(self) -> None:
        told = proof("original", BALL)
        assert told.identity_similarity == pytest.approx(1, abs=0.05)
        assert (told.context_difference, told.pose_difference, told.background_difference) == (0, 0, 0)
        assert (told.scale_difference, told.hash_distance, told.time_distance) == (0, 0, 0)

    def test_is_no_copy_since_it_is_the_thing_itself(self) -> None:
        assert proof("original", BALL, config=VerifyConfig()).copy_risk is None


class TestIdentity:
    def test_of_what_was_cut_out_is_told_by_what_is_stored(self) -> None:
        embedder = MeanColour()
        told = proof("cross_clip", replace(BALL, image_embedding=unit(1, 0, 0)), OTHER, models={"embedder": embedder})
        assert told.identity_similarity == pytest.approx(np.sqrt(0.5))
        assert told.identity_by == "image"
        assert embedder.calls == []

    def test_of_people_is_told_by_the_face_where_the_frame_shows_one(self) -> None:
        person = subject(
            "a",
            Seen(image_embedding=unit(1, 0), face_embedding=unit(1, 0)),
            Seen(image_embedding=unit(1, 1), face_embedding=unit(1, 3)),
            Seen(image_embedding=unit(1, 1), face_embedding=None),
        )
        facing = proof("other_frame", person, frame=1)
        assert (facing.identity_by, facing.identity_similarity) == ("face", pytest.approx(np.sqrt(0.1)))
        turned = proof("other_frame", person, frame=2)
        assert (turned.identity_by, turned.identity_similarity) == ("image", pytest.approx(np.sqrt(0.5)))
        faceless = replace(person, face_embedding=None)
        told = proof("other_frame", faceless, frame=1)
        assert (told.identity_by, told.identity_similarity) == ("image", pytest.approx(np.sqrt(0.5)))

    def test_of_what_was_painted_is_told_by_the_picture(self) -> None:
        kept = proof("inpainted", BALL, shown=repainted(BALL))
        assert (kept.identity_by, kept.identity_similarity) == ("image", pytest.approx(1, abs=1e-3))
        crop, mask = subject_crop(BALL, 0)
        spoilt = proof("inpainted", BALL, shown=(np.full_like(crop, (10, 10, 240)), mask))
        assert spoilt.identity_similarity < 0.4

    @pytest.mark.parametrize("kind", PAINTED)
    def test_of_a_painted_person_is_told_by_the_face_that_is_found(self, kind: str) -> None:
        person = known_by_colour(subject("a", Seen(face_embedding=unit(1, 0))))
        shown = {"shown": repainted(person)}
        kept = proof(kind, person, models={"faces": Faces([unit(0, 1), unit(3, 1)])}, **shown)
        assert (kept.identity_by, kept.identity_similarity) == ("face", pytest.approx(3 / np.sqrt(10)))
        gone = proof(kind, person, models={"faces": Faces()}, **shown)
        assert (gone.identity_by, gone.identity_similarity) == ("face", 0)
        unlooked = proof(kind, person, **shown)
        assert (unlooked.identity_by, unlooked.identity_similarity) == ("image", pytest.approx(1, abs=1e-3))

    def test_nobody_looks_for_the_face_of_a_thing_or_in_a_picture_that_was_cut_out(self) -> None:
        faces = Faces([unit(1, 0)])
        told = prove(*of_every_kind(BALL, OTHER), faces=faces)
        assert faces.calls == []
        assert {each.identity_by for each in told} == {"image"}
        person = subject("p", Seen(face_embedding=unit(1, 0)), Seen(face_embedding=unit(1, 0)))
        prove(claim("original", person), claim("other_frame", person, frame=1), faces=faces)
        assert faces.calls == []


class TestRivals:
    def other(self, name: str, image: Sequence[float], face: Sequence[float] | None = None) -> Other:
        return Other(name, face, list(image))

    def test_the_most_alike_of_them_is_named(self) -> None:
        target = replace(BALL, image_embedding=unit(1, 0, 0))
        others = [
            self.other("far", unit(0, 0, 1)),
            self.other("near", unit(1, 0.2, 0)),
            self.other("next", unit(0, 1, 0)),
        ]
        told = proof("cross_clip", target, OTHER, others=others)
        # It is the picture that is held against them, not the target.
        assert told.rival_subject_id == "near"
        assert told.rival_similarity == pytest.approx(np.dot(unit(1, 1, 0), unit(1, 0.2, 0)))
        assert told.rival_similarity > told.identity_similarity

    def test_without_any_there_is_none(self) -> None:
        told = proof("original", BALL)
        assert (told.rival_similarity, told.rival_subject_id) == (None, None)

    def test_faces_are_held_against_faces(self) -> None:
        person = subject("a", Seen(face_embedding=unit(1, 0)))
        others = [self.other("same clothes", unit(1, 0, 0)), self.other("twin", unit(0, 1, 0), unit(1, 1))]
        told = proof("original", person, others=others)
        assert (told.identity_by, told.rival_subject_id) == ("face", "twin")
        assert told.rival_similarity == pytest.approx(np.sqrt(0.5))
        assert proof("original", person, others=others[:1]).rival_similarity is None

    def test_what_was_painted_is_held_against_them_as_it_looks_now(self) -> None:
        crop, mask = subject_crop(BALL, 0)
        blue = np.full_like(crop, (0, 0, 240)), mask
        told = proof("inpainted", BALL, shown=blue, others=[self.other("blue one", unit(0, 0, 1))])
        assert told.rival_similarity == pytest.approx(1)

    def test_a_painting_without_a_face_is_like_nobody(self) -> None:
        person = subject("a", Seen(face_embedding=unit(1, 0)))
        others = [self.other("twin", unit(1, 0, 0), unit(1, 0))]
        told = proof("inpainted", person, shown=repainted(person), others=others, models={"faces": Faces()})
        assert (told.rival_similarity, told.rival_subject_id) == (None, None)


class TestDifferences:
    @pytest.mark.parametrize(("kind", "source", "frame"), [("other_frame", BALL, 1), ("cross_clip", OTHER, 0)])
    def test_of_what_was_cut_out_are_those_of_the_frames(self, kind: str, source: Subject, frame: int) -> None:
        told = proof(kind, BALL, source, frame)
        crop = subject_crop(source, frame)[0]
        assert told.context_difference == pytest.approx(picture_difference(crop, subject_crop(BALL, 0)[0]))
        assert told.context_difference > 0.1
        apart = difference(
            Look.of_frame(source.frames[frame]), Look.of_frame(BALL.frames[0]), same_video=source is BALL
        )
        assert (told.pose_difference, told.background_difference) == (apart.pose, apart.background)
        assert (told.scale_difference, told.hash_distance) == (apart.scale, apart.hash)
        assert told.background_difference > 0.02
        assert told.hash_distance > 0

    def test_in_size_are_those_in_the_frames(self) -> None:
        told = proof("cross_clip", BALL, OTHER)
        assert told.scale_difference == pytest.approx(np.log2(30 / 20), abs=0.05)

    def test_in_time_are_told_within_a_video_alone(self) -> None:
        assert proof("other_frame", BALL, frame=1).time_distance == 2.5
        assert proof("cross_clip", BALL, OTHER).time_distance is None
        near = replace(OTHER, frames=[replace(OTHER.frames[0], time=9.0)])
        assert proof("cross_clip", BALL, near, same_video=True).time_distance == 9
        for kind in PAINTED:
            assert proof(kind, BALL, shown=repainted(BALL)).time_distance is None

    @pytest.mark.parametrize("kind", ON_WHITE)
    def test_of_what_is_on_white_are_those_from_the_cut_out(self, kind: str) -> None:
        before, mask = cut_out(*subject_crop(BALL, 0))
        same = proof(kind, BALL, shown=(before, mask))
        assert same.context_difference == pytest.approx(0, abs=1e-6)
        assert (same.pose_difference, same.hash_distance) == (0, 0)
        turned = before[::-1].copy()
        told = proof(kind, BALL, shown=(turned, mask[::-1]))
        assert told.context_difference == pytest.approx(picture_difference(turned, before))
        assert (
            told.hash_distance
            == difference(Look.of_picture(turned, mask[::-1]), Look.of_picture(before, mask), same_video=False).hash
        )

    @pytest.mark.parametrize("kind", NEW_BACKGROUND)
    def test_of_what_has_a_background_are_those_from_the_crop(self, kind: str) -> None:
        crop = subject_crop(BALL, 0)[0]
        picture, mask = repainted(BALL)
        told = proof(kind, BALL, shown=(picture, mask))
        assert told.context_difference == pytest.approx(picture_difference(picture, crop))
        assert told.context_difference > 0.1
        assert told.background_difference > 0.3
        assert (told.pose_difference, told.scale_difference) == (0, 0)
        small = np.zeros_like(mask)
        small[20:60, 40:50] = True
        moved = proof(kind, BALL, shown=(picture, small))
        assert moved.pose_difference > 0
        assert moved.scale_difference > 0.5


@cache
def cat() -> Subject:
    """A cat in two frames that have little in common but itself."""
    return pictured("cat", [crop_of(0), crop_of(60)])


@cache
def crop_of(aside: int) -> tuple[Image, Mask]:
    whole = data.cat()[20:280, 80 + aside : 340 + aside]
    y, x = np.mgrid[:260, :260]
    inside: Mask = ((x - 150 + aside) / 80) ** 2 + ((y - 120) / 90) ** 2 < 1
    return np.ascontiguousarray(whole), inside


@cache
def astronaut() -> Subject:
    return pictured("astronaut", [(np.ascontiguousarray(data.astronaut()[0:260, 100:360]), crop_of(0)[1])])


def risks(*shown: tuple[str, Image, Mask]) -> list[float]:
    """Of pictures of these kinds, all of them references of the cat."""
    claims = [claim(kind, cat(), shown=(np.ascontiguousarray(picture), mask)) for kind, picture, mask in shown]
    return [told.copy_risk for told in prove(*claims, config=VerifyConfig()) if told.copy_risk is not None]


class TestCopyRisk:
    def test_of_a_copy_is_high_however_it_was_mirrored_recoloured_or_scaled(self) -> None:
        crop, mask = subject_crop(cat(), 0)
        lit = np.clip(crop * np.array([1.2, 1.0, 0.7]) + 10, 0, 255).astype(np.uint8)
        small = np.asarray(cv2.resize(crop, (130, 130), interpolation=cv2.INTER_AREA))
        small_mask = cv2.resize(mask.astype(np.uint8), (130, 130)) > 0
        found = risks(
            ("inpainted", crop, mask),
            ("inpainted", crop[:, ::-1], mask[:, ::-1]),
            ("inpainted", lit, mask),
            ("inpainted", lit[:, ::-1], mask[:, ::-1]),
            ("moved", small, small_mask),
            ("moved", *cut_out(crop, mask)),  # With an edge that fades to white.
            ("inpainted", *subject_crop(cat(), 1)),  # Of another frame.
        )
        assert np.all(np.array(found) > [0.95, 0.95, 0.9, 0.9, 0.85, 0.8, 0.95])

    def test_of_a_mirrored_copy_is_that_of_its_subject(self) -> None:
        crop, mask = subject_crop(cat(), 0)
        half = mask & (np.arange(260)[None] < 150 - np.arange(260)[:, None] // 4)
        upright, inside = cut_out(crop, half)
        straight, mirrored = risks(("moved", upright, inside), ("moved", upright[:, ::-1], inside[:, ::-1]))
        assert mirrored == pytest.approx(straight, abs=0.05)
        assert mirrored > 0.7

    def test_of_what_was_cut_out_of_the_same_picture_elsewhere_is_high(self) -> None:
        crop, mask = subject_crop(cat(), 0)
        repost = pictured("repost", [(crop, mask)])
        mirrored = pictured("mirrored", [(np.ascontiguousarray(crop[:, ::-1]), mask[:, ::-1])])
        for source in (repost, mirrored):
            assert proof("cross_clip", cat(), source, config=VerifyConfig()).copy_risk > 0.95

    def test_of_another_picture_is_low(self) -> None:
        assert proof("cross_clip", cat(), astronaut(), config=VerifyConfig()).copy_risk < 0.2

    def test_of_another_frame_is_how_like_yet_another_it_is(self) -> None:
        # It was cut out of a frame of its target, which is no news.
        crop, mask = crop_of(0)
        still = pictured("still", [(crop, mask), (crop, mask)])
        moving = pictured("moving", [subject_crop(astronaut(), 0), (crop, mask)])
        found = prove(
            claim("other_frame", still, frame=1), claim("other_frame", moving, frame=1), config=VerifyConfig()
        )
        assert found[0].copy_risk > 0.95
        assert found[1].copy_risk < 0.2

    def test_is_not_asked_for_where_nobody_wants_it(self) -> None:
        assert proof("cross_clip", BALL, OTHER).copy_risk is None

    def test_of_each_is_that_in_the_frames_of_its_own_target(self) -> None:
        shown = subject_crop(cat(), 0)
        mixed = [
            claim("inpainted", astronaut(), shown=shown),
            claim("original", cat()),
            claim("inpainted", cat(), shown=shown),
            claim("inpainted", astronaut(), shown=subject_crop(astronaut(), 0)),
        ]
        found = [told.copy_risk for told in prove(*mixed, config=VerifyConfig())]
        assert found == [prove(each, config=VerifyConfig())[0].copy_risk for each in mixed]
        assert found[1] is None
        assert found[0] < 0.2
        assert found[2] > 0.95
        assert found[3] > 0.95


class TestNewBackgrounds:
    def test_a_painting_that_keeps_the_subject_and_nothing_else(self) -> None:
        told = proof("inpainted", BALL, shown=repainted(BALL))
        assert told.subject_change == 0
        assert told.background_change == 1
        assert told.halo == 0

    def test_one_that_spoils_the_subject(self) -> None:
        crop, mask = subject_crop(BALL, 0)
        assert proof("inpainted", BALL, shown=(np.full_like(crop, YELLOW), mask)).subject_change > 30

    def test_one_that_leaves_the_background(self) -> None:
        told = proof("inpainted", BALL, shown=subject_crop(BALL, 0))
        assert (told.background_change, told.halo) == (0, 0)

    def test_one_that_leaves_a_rim_of_it(self) -> None:
        assert proof("inpainted", BALL, shown=repainted(BALL, rim=4)).halo > 0.9

    @pytest.mark.parametrize("frame", [0, 1])
    def test_a_swap_is_held_against_the_background_that_the_subject_came_from(self, frame: int) -> None:
        """The scene of a swap stays as it was: it is no new background that an old one could be left of."""
        ball = replace(BALL, best=frame)
        crop, mask = subject_crop(ball, frame)
        scene, there = subject_crop(OTHER, 0)
        # The red ball, half as large, on the other one's place; with and without some of its own wall.
        placed = laid_over(crop, mask, there)
        for rim, least, most in ((0, 0, 0.1), (4, 0.8, 1)):
            kept = cv2.dilate(there.astype(np.uint8), np.ones((2 * rim + 1, 2 * rim + 1), np.uint8)) > 0
            picture = scene.copy()
            picture[kept] = placed[kept]
            told = proof("swapped", ball, frame=frame, shown=(picture, there))
            assert told.halo == halo(picture, placed, there)
            assert least <= told.halo <= most
            assert (told.subject_change, told.background_change) == (None, None)

    @pytest.mark.parametrize("kind", [kind for kind in KIND_ORDER if kind not in NEW_BACKGROUND])
    def test_other_kinds_have_none(self, kind: str) -> None:
        (told,) = (each for each in prove(*of_every_kind(BALL, OTHER)) if each.reference_id == f"{kind}-a")
        assert (told.subject_change, told.background_change, told.halo, told.second_subject) == (None,) * 4


class TestSecondSubject:
    BESIDE = (0.0, 0.0, 30.0, 60.0)
    OWN = (40.0, 20.0, 101.0, 81.0)

    def test_is_looked_for_in_new_backgrounds_by_the_subject_s_word(self) -> None:
        detector = Boxes([(self.OWN, 0.9), (self.BESIDE, 0.7)])
        cat = replace(BALL, subject_id="cat", word="cat")
        claims = [*of_every_kind(BALL, OTHER), claim("inpainted", cat, shown=repainted(cat))]
        found = {each.reference_id: each.second_subject for each in prove(*claims, detector=detector)}
        assert detector.calls == [[["ball"], ["ball"], ["cat"]]]
        scores = {"inpainted-a": 0.7, "swapped-a": 0.7, "inpainted-cat": 0.7}
        assert {name: score for name, score in found.items() if score is not None} == scores

    def test_is_none_where_only_the_subject_is_found(self) -> None:
        for boxes in ([], [(self.OWN, 0.9)]):
            assert (
                proof("inpainted", BALL, shown=repainted(BALL), models={"detector": Boxes(boxes)}).second_subject == 0
            )

    def test_a_detector_that_knows_no_words_is_not_asked(self) -> None:
        class Blind(Boxes):
            class_free: ClassVar[bool] = True

        detector = Blind([(self.BESIDE, 0.7)])
        assert proof("inpainted", BALL, shown=repainted(BALL), models={"detector": detector}).second_subject is None
        assert detector.calls == []

    def test_nor_is_any_where_nobody_wants_it_or_there_is_no_new_background(self) -> None:
        detector = Boxes([(self.BESIDE, 0.7)])
        off = VerifyConfig(copies=False, second_subjects=False)
        (told,) = prove(claim("inpainted", BALL, shown=repainted(BALL)), config=off, detector=detector)
        assert told.second_subject is None
        prove(claim("original", BALL), claim("moved", BALL), detector=detector)
        assert detector.calls == []


class TestModels:
    def test_each_is_asked_once_for_a_whole_batch(self) -> None:
        person = known_by_colour(subject("p", *(Seen(face_embedding=unit(1, 0)),) * 2))
        models = {
            "embedder": MeanColour(),
            "faces": Faces([unit(1, 0)]),
            "image_text": Redness(),
            "safety": Whiteness(),
            "detector": Boxes(),
        }
        prove(*of_every_kind(BALL, OTHER), *of_every_kind(person, OTHER), **models)
        assert models["embedder"].calls == [8]
        assert models["faces"].calls == [4]
        assert [len(call) for call in models["image_text"].calls] == [14]
        assert models["safety"].calls == [14]
        assert [len(call) for call in models["detector"].calls] == [4]

    def test_none_is_asked_for_nothing(self) -> None:
        models = {
            "embedder": MeanColour(),
            "faces": Faces(),
            "image_text": Redness(),
            "safety": Whiteness(),
            "detector": Boxes(),
        }
        assert prove(**models) == []
        assert all(model.calls == [] for model in models.values())

    def test_without_them_nothing_is_told(self) -> None:
        for told in prove(*of_every_kind(BALL, OTHER)):
            assert (told.image_text, told.nudity, told.second_subject, told.copy_risk) == (None,) * 4

    def test_the_word_is_compared_with_the_subject_s_box_and_the_whole_is_looked_at_for_nudity(self) -> None:
        scorer = Redness()
        picture, mask = repainted(BALL, (255, 255, 255))
        told = proof("inpainted", BALL, shown=(picture, mask), models={"image_text": scorer, "safety": Whiteness()})
        assert scorer.calls == [[((61, 61, 3), "ball")]]
        assert told.image_text == pytest.approx(picture[20:81, 40:101, 0].mean() / 255)
        assert told.nudity == pytest.approx(np.mean((picture == 255).all(axis=2)))

    def test_the_word_is_the_target_s(self) -> None:
        scorer = Redness()
        proof("cross_clip", replace(BALL, word="globe"), OTHER, models={"image_text": scorer})
        assert scorer.calls[0][0][1] == "globe"


class TestProof:
    def test_brightness_and_sharpness_are_the_subject_s_where_it_was_seen(self) -> None:
        crop, mask = subject_crop(BALL, 0)
        expected = (brightness(crop, mask), subject_sharpness(crop, mask))
        original = proof("original", BALL)
        assert (original.brightness, original.sharpness) == expected
        assert 30 < original.brightness < 100
        assert original.sharpness > 1
        painted = proof("inpainted", BALL, shown=repainted(BALL))
        assert (painted.brightness, painted.sharpness) == expected
        blackened = proof("inpainted", BALL, shown=(np.zeros_like(crop), mask))
        assert (blackened.brightness, blackened.sharpness) == (0, 0)
        blurred = cv2.GaussianBlur(cut_out(crop, mask)[0], (0, 0), 3)
        moved = proof("moved", BALL, shown=(np.asarray(blurred), cut_out(crop, mask)[1]))
        assert moved.sharpness < 0.3 * original.sharpness

    def test_the_hash_is_the_picture_s(self) -> None:
        picture, mask = repainted(BALL)
        assert proof("inpainted", BALL, shown=(picture, mask)).phash == perceptual_hash(picture)
        assert proof("original", BALL).phash == perceptual_hash(cut_out(*subject_crop(BALL, 0))[0])

    def test_one_for_each_claim_in_order_whatever_else_is_proven(self) -> None:
        second = known_by_colour(subject("c", Seen(x=70, radius=24), Seen(x=90, colour=(10, 200, 200))))
        claims = [*of_every_kind(BALL, OTHER), claim("moved", second), claim("other_frame", second, frame=1)]
        models = {"image_text": Redness(), "safety": Whiteness(), "detector": Boxes([(TestSecondSubject.BESIDE, 0.7)])}
        found = prove(*claims, **models)
        assert [told.reference_id for told in found] == [each.reference.reference_id for each in claims]
        assert [told.fingerprint for told in found] == [each.fingerprint for each in claims]
        assert found == [prove(each, **models)[0] for each in claims]
        assert found == prove(*claims[::-1], **models)[::-1]
        assert Proof.to_table(found).num_rows == len(claims)

    def test_every_number_lies_in_its_range(self) -> None:
        for told in prove(*of_every_kind(BALL, OTHER), config=VerifyConfig(), detector=Boxes()):
            assert -1 <= told.identity_similarity <= 1 + 1e-9
            shares = (told.context_difference, told.pose_difference, told.background_difference, told.copy_risk)
            assert all(0 <= share <= 1 for share in (*shares, told.halo, told.background_change) if share is not None)
            assert 0 <= told.hash_distance <= 64


def test_what_the_installed_inpainter_paints_is_proven_to_keep_the_subject() -> None:
    from pathlib import Path

    from models.colour_texture import ColourTexture
    from models.quilting import Quilting
    from stages.repaint import RepaintConfig, repaint_compose, repaint_request

    embedder = ColourTexture(ColourTexture.Config(), Path())
    crop, mask = subject_crop(BALL, 0)
    (vector,) = embedder.embed([crop], [mask])
    ball = replace(BALL, image_embedding=vector.tolist())
    request = repaint_request(crop, mask, RepaintConfig(), "", 1)
    (painted,) = Quilting(Quilting.Config(), Path()).fill([request])
    shown = repaint_compose(painted, crop, mask, RepaintConfig()), mask
    told = proof("inpainted", ball, shown=shown, models={"embedder": embedder})
    assert told.identity_similarity > 0.99
    assert told.context_difference > 0.02
    assert told.subject_change == 0
    assert told.background_change > 0.3
    # One that paints all of it leaves no rim of what there was.
    (plain,) = Painter().fill([request])
    shown = repaint_compose(plain, crop, mask, RepaintConfig()), mask
    assert proof("inpainted", ball, shown=shown, models={"embedder": embedder}).halo < 0.1
