"""Pairs that are planted to be found, and pairs that are planted to be refused: each for its own reason.

Thresholds are the defaults. Rules are those that the shipped profiles have, but for their upper bounds, which are open:
what is a copy has to be found out by what is measured of the pictures.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import planted_clips
import pytest
from planted_clips import (
    CYAN,
    MAGENTA,
    Judged,
    MarkedFaces,
    Planted,
    changed,
    cropped,
    cutout,
    encoded_again,
    film,
    lit,
    marked,
    mirrored,
    recoloured,
    role,
)

from curation.config import Config, load_config
from models import registry
from models.colour_texture import ColourTexture
from models.registry import BackendConfig
from stages.config import CONFIG_FOLDER
from stages.select import ReferenceThresholds

SAND, GREEN, COLD = (1.0, 0.92, 0.75), (0.62, 1.0, 0.5), (0.85, 0.95, 1.1)

NO_PAINTING = [f"references.{kind}.count=0" for kind in ("other_frame", "inpainted", "augmented", "swapped")]

MOVING = ("cup", "pan")
"""Things that move otherwise in each of their two clips."""

COPIES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "mug": lambda picture: picture,
    "bowl": mirrored,
    "vase": lit,
    "pot": cropped,
    "jug": encoded_again,
    "can": lambda picture: mirrored(lit(cropped(encoded_again(picture)))),
}
"""Things whose second clip is the first one again, after this."""

PASTED = {"box": {}, "bag": {"height": 0.8, "turn": 10.0}}
"""Things whose second clip shows the same photograph of them in another scene, like this."""


def embedder() -> ColourTexture:
    return ColourTexture(ColourTexture.Config(), Path())


def config(profile: str, *overrides: str, **changes: Any) -> Config:
    """A profile's rules with these changes to each, and else the embedded profile without any painting."""
    rules = load_config(CONFIG_FOLDER / f"{profile}.yaml").references.cross_clip.rules
    open_rules = {category: rule.model_dump() | {"max": 1.0} | changes for category, rule in rules.items()}
    return load_config(
        CONFIG_FOLDER / "embedded.yaml", [*NO_PAINTING, f"references.cross_clip.rules={open_rules}", *overrides]
    )


def test_the_thresholds_are_the_defaults() -> None:
    assert config("embedded").select.reference == ReferenceThresholds()


@pytest.fixture(scope="module")
def things(tmp_path_factory: pytest.TempPathFactory) -> Judged:
    """Two clips, `a` and `b`, of each of many things, none of which may be paired with another: they have other words.
    All look like one cup."""
    cup, planted = cutout("cup"), Planted(embedder())
    for word in MOVING:
        first = role(cup, f"{word} a", start=(0.3, 0.5), end=(0.6, 0.5))
        second = role(cup, f"{word} b", start=(0.7, 0.5), end=(0.5, 0.45), height=0.75, turn=-12)
        planted.add(f"{word} a", [word], film([first], "wall", tint=SAND))
        planted.add(f"{word} b", [word], film([second], "stars"))
    once = film([role(cup, "once", start=(0.3, 0.5), end=(0.6, 0.5))], "wall", tint=SAND)
    for word, change in COPIES.items():
        planted.add(f"{word} a", [word], once)
        planted.add(f"{word} b", [word], changed(once, change))
    for word, how in PASTED.items():
        first, second = role(cup, start=(0.3, 0.5), end=(0.6, 0.5)), role(cup, start=(0.7, 0.5), end=(0.5, 0.45), **how)
        planted.add(f"{word} a", [word], film([first], "wall", tint=SAND))
        planted.add(f"{word} b", [word], film([second], "lawn", tint=GREEN))
    return planted.run(tmp_path_factory.mktemp("things") / "workspace", config("embedded"))


def both(word: str) -> set[tuple[str, str]]:
    return {(f"{word} a {word}", f"{word} b {word}"), (f"{word} b {word}", f"{word} a {word}")}


class TestOneThing:
    def test_is_paired_with_itself_alone(self, things) -> None:
        assert things.rows().keys() == set.union(*map(both, [*MOVING, *COPIES, *PASTED]))

    @pytest.mark.parametrize("word", MOVING)
    def test_in_two_scenes_is_accepted(self, things, word) -> None:
        rows = things.rows()
        for pair in both(word):
            assert rows[pair]["reasons"] == []
            assert rows[pair]["identity_similarity"] > 0.95
            assert rows[pair]["copy_risk"] < 0.75

    @pytest.mark.parametrize("word", COPIES)
    def test_that_is_a_copy_is_refused_as_a_copy(self, things, word) -> None:
        for pair in both(word):
            row = things.rows()[pair]
            assert "copy" in row["reasons"]
            assert set(row["reasons"]) <= {"copy", "near_copy"}
            assert row["copy_risk"] > 0.9

    def test_that_is_the_very_same_is_no_other_picture_either(self, things) -> None:
        for pair in both("mug"):
            assert things.reasons()[pair] == ["near_copy", "copy"]

    @pytest.mark.parametrize("word", PASTED)
    def test_pasted_into_another_scene_is_a_copy_for_all_that_differs(self, things, word) -> None:
        for pair in both(word):
            row = things.rows()[pair]
            assert row["reasons"] == ["copy"]
            assert row["context_difference"] > 0.3


class TestLookAlikes:
    @pytest.fixture(scope="class")
    @staticmethod
    def cats(tmp_path_factory) -> Judged:
        cat, planted = cutout("cat"), Planted(embedder())
        kinds = {
            "tabby a": cat,
            "tabby b": cat,
            "grey": recoloured(cat, saturation=0.25, light=1.1),
            "brown": recoloured(cat, saturation=0.7, light=0.6),
        }
        for (name, picture), ground in zip(kinds.items(), ("wall", "gravel", "lawn", "moon"), strict=True):
            planted.add(name, ["cat"], film([role(picture, name, height=0.7)], ground, tint=COLD))
        return planted.run(tmp_path_factory.mktemp("cats") / "workspace", config("embedded"))

    def test_of_the_same_photograph_in_other_colours_are_not_paired(self, cats) -> None:
        assert cats.reasons() == {("tabby a cat", "tabby b cat"): [], ("tabby b cat", "tabby a cat"): []}

    def test_are_what_a_reference_is_held_against(self, cats) -> None:
        names = cats.names()
        for row in cats.rows().values():
            assert names[row["rival_subject_id"]] in {"grey cat", "brown cat"}
            assert row["rival_similarity"] < row["identity_similarity"] - 0.2

    def test_side_by_side_a_picture_of_the_one_is_no_reference_of_the_other(self, tmp_path) -> None:
        """Two cups so alike that the rule takes the one for the other: but they are seen together."""
        cup, planted = cutout("cup"), Planted(embedder())
        other = recoloured(cup, saturation=1.08, light=0.93)
        left = role(cup, "left", start=(0.25, 0.5), end=(0.3, 0.5), height=0.5)
        right = role(other, "right", start=(0.72, 0.55), end=(0.75, 0.5), height=0.45)
        planted.add("both", ["cup", "cup"], film([left, right], "wall", tint=SAND))
        planted.add("alone", ["cup"], film([role(other, "alone", height=0.75, turn=-12)], "stars"))
        judged = planted.run(tmp_path / "workspace", config("embedded"))
        rows = judged.rows()
        assert rows["both cup", "alone cup"]["identity_similarity"] > 0.85
        assert judged.reasons()["both cup", "alone cup"] == ["like_another"]
        assert judged.reasons()["both cup 1", "alone cup"] == []
        assert judged.names()[rows["both cup", "alone cup"]["rival_subject_id"]] == "both cup 1"
        # Of the two, only the more alike one can be the one that is alone.
        assert judged.reasons()["alone cup", "both cup 1"] == []
        assert ("alone cup", "both cup") not in rows
        # Nor are the two one another's references.
        assert not {("both cup", "both cup 1"), ("both cup 1", "both cup")} & rows.keys()


@pytest.fixture(scope="module", autouse=True)
def marked_faces():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(registry.BACKENDS["faces"], "marked", "planted_clips:MarkedFaces")
        for name in ("Impostor", "Faithful", "Mirroring", "Lazy"):
            patch.setitem(registry.BACKENDS["editor"], name.lower(), f"planted_clips:{name}")
        yield


class TestPeople:
    @pytest.fixture(scope="class")
    @staticmethod
    def people() -> Callable[..., Judged]:
        """Two women together, one of them alone, and somebody twice whose face is not to be seen."""
        astronaut = cutout("astronaut")
        one, two = marked(astronaut, MAGENTA), marked(astronaut, CYAN)
        left = role(one, "left", start=(0.2, 0.5), end=(0.25, 0.5), height=0.75)
        right = role(two, "right", start=(0.72, 0.5), end=(0.75, 0.5), height=0.8)
        clips = {
            "together": film([left, right], "wall", tint=COLD),
            "alone": film([role(one, "alone", height=0.85)], "gravel", tint=SAND),
            "faceless a": film([role(astronaut, "faceless a", height=0.85)], "lawn", tint=GREEN),
            "faceless b": film([role(astronaut, "faceless b", height=0.7)], "stars"),
        }

        def run(folder: Path, *overrides: str, clips_of: tuple[str, ...] = tuple(clips)) -> Judged:
            planted = Planted(embedder(), MarkedFaces(BackendConfig(backend="marked"), Path()))
            for name in clips_of:
                planted.add(name, ["woman", "woman"] if name == "together" else ["woman"], clips[name])
            return planted.run(folder / "workspace", config("cpu", "models.faces={backend: marked}", *overrides))

        return run

    def names(self, judged: Judged) -> tuple[str, str]:
        """Who is who of the two that are seen together: the wearer of the magenta mark first."""
        faces = {
            row["subject_id"]: np.argmax(row["face_embedding"][:2])
            for row in judged.workspace.rows(planted_clips.Subject, where="clip_id = 'together'")
        }
        one, two = sorted(faces, key=lambda subject: faces[subject])
        return judged.names()[one], judged.names()[two]

    def test_seen_together_are_two_and_without_a_face_nobody(self, people, tmp_path) -> None:
        judged = people(tmp_path)
        one, two = self.names(judged)
        assert judged.reasons() == {(one, "alone woman"): [], ("alone woman", one): []}
        for row in judged.rows().values():
            assert row["identity_by"] == "face"
            assert judged.names()[row["rival_subject_id"]] == two
        originals = judged.rows("original")
        assert judged.names()[originals[one, one]["rival_subject_id"]] == two
        assert judged.names()[originals[two, two]["rival_subject_id"]] in {one, "alone woman"}
        assert originals["faceless a woman", "faceless a woman"]["identity_by"] == "image"

    @pytest.mark.parametrize(
        ("editor", "reasons"),
        [
            ("faithful", []),
            ("impostor", ["other_identity", "like_another", "copy"]),
            ("mirroring", ["copy"]),
            ("lazy", ["near_copy", "copy"]),
        ],
    )
    def test_a_painter_is_believed_only_what_its_pictures_show(self, people, tmp_path, editor, reasons) -> None:
        judged = people(
            tmp_path,
            f"models.editor={{backend: {editor}}}",
            "references.moved.count=1",
            "references.cross_clip.count=0",
            clips_of=("together",),
        )
        assert judged.reasons("moved") == {(name, name): reasons for name in self.names(judged)}


class TestAnimals:
    @pytest.fixture(scope="class")
    @staticmethod
    def cats() -> Planted:
        """A cat in two clips of one video, and in another video."""
        planted = Planted(embedder())
        for name, video, ground in (("one a", "one", "wall"), ("one b", "one", "gravel"), ("two", "two", "lawn")):
            planted.add(name, ["cat"], film([role(cutout("cat"), name, height=0.7)], ground, tint=SAND), video=video)
        return planted

    def test_are_paired_within_their_video_only(self, cats, tmp_path) -> None:
        found = cats.run(tmp_path / "workspace", config("cpu")).reasons()
        assert found == {("one a cat", "one b cat"): [], ("one b cat", "one a cat"): []}

    def test_are_paired_across_videos_where_looks_are_trusted(self, cats, tmp_path) -> None:
        found = cats.run(tmp_path / "workspace", config("cpu", scope="anywhere", trust_looks=True)).reasons()
        names = ("one a cat", "one b cat", "two cat")
        assert found.keys() == {(one, other) for one in names for other in names if one != other}
        # Two pictures of one pose are worth one.
        assert {reason for reasons in found.values() for reason in reasons} <= {"duplicate"}
