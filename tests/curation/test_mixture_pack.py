from __future__ import annotations

import io
import json
import tarfile
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from curation.shards import read_index, read_manifest
from curation.stats import collect, show
from curation.workspace import Workspace
from stages.records import Clip, Reference, Subject, Verdict


@pytest.fixture
def mixed(workspace, configure, curate):
    """``mixed({"kinds": ...})``: the workspace packed with this mixture, all for training."""

    def run(mixture: dict[str, Any], **changes: Any) -> Workspace:
        named = {f"mixture.{name}": value for name, value in mixture.items()}
        assert not curate(workspace, configure({"pack.val_share": 0, **named, **changes}), [], steps=["pack"])[
            "pack"
        ].failed
        return workspace

    return run


def members(workspace: Workspace) -> dict[str, bytes]:
    found = {}
    for path in sorted(Path(workspace.path("shards")).glob("*.tar")):
        with tarfile.open(path) as tar:
            found |= {member.name: tar.extractfile(member).read() for member in tar.getmembers()}
    return found


def pictures(workspace: Workspace) -> Counter[str]:
    """Pictures by kind, as their names in the shards have it."""
    return Counter(name.split(".")[2] for name in members(workspace) if name.endswith(".png"))


def shown(workspace: Workspace) -> str:
    console = Console(file=io.StringIO(), width=200)
    show(collect(workspace), workspace, console)
    return console.file.getvalue()


def subjects_with(workspace: Workspace, kind: str) -> set[str]:
    """Subjects that have a reference of this kind that passed."""
    kept = {row["id"] for row in workspace.rows(Verdict, ["id"], where="kind = 'reference' AND keep")}
    rows = workspace.rows(Reference, ["reference_id", "subject_id"], where=f"kind = '{kind}'")
    return {row["subject_id"] for row in rows if row["reference_id"] in kept}


def mixture(workspace: Workspace) -> dict[str, Any]:
    return read_manifest(workspace.path("shards"))["mixture"]


class TestDefaults:
    def test_say_what_there_is_and_drop_nothing(self, workspace) -> None:
        told = mixture(workspace)
        assert told["dropped"] == {"samples": {}, "references": {}}
        assert all(share["asked"] is None for part in ("kinds", "classes", "subjects") for share in told[part].values())
        assert sum(share["got"] for share in told["kinds"].values()) == pytest.approx(1, abs=0.001)
        assert "mixture" not in shown(workspace)
        assert not any("negative" in name for name in members(workspace))
        assert not any(b'"negatives"' in data for name, data in members(workspace).items() if name.endswith("json"))

    def test_a_mixture_that_changes_nothing_writes_no_shard(self, workspace, configure, curate, shard_files) -> None:
        before = shard_files(workspace)
        asked = {"mixture.max_per_video": 99, "mixture.max_per_identity": 99, "mixture.references_per_subject": 99}
        assert curate(workspace, configure(asked), [], steps=["pack"])["pack"].items == 0
        after = shard_files(workspace)
        assert {name for name in before if before[name] != after[name]} == {"manifest.json"}


class TestKinds:
    def test_weights_decide_what_is_in_the_shards(self, mixed) -> None:
        everything = pictures(mixed({}))
        assert set(everything) > {"original", "cross_clip"}
        workspace = mixed({"kinds": {"original": 1, "cross_clip": 3}})
        assert pictures(workspace) == {kind: everything[kind] for kind in ("original", "cross_clip")}
        told = mixture(workspace)
        dropped = everything.total() - everything["original"] - everything["cross_clip"]
        assert told["dropped"]["references"] == {"kind share": dropped}
        assert (told["kinds"]["cross_clip"]["asked"], told["kinds"]["other_frame"]["asked"]) == (0.75, 0)

    def test_one_reference_for_each_subject_in_the_asked_shares(self, mixed) -> None:
        asked = {"kinds": {"original": 4, "cross_clip": 1}, "references_per_subject": 1}
        index = read_index(mixed(asked).path("shards"))
        assert [row["references"] for row in index] == [row["subjects"] for row in index]
        assert pictures(mixed(asked)) == {"original": 4, "cross_clip": 1}
        workspace = mixed({**asked, "kinds": {"original": 1, "cross_clip": 9}})
        paired = len(subjects_with(workspace, "cross_clip"))
        assert 0 < paired < 5, "the others have nothing but the original"
        assert pictures(workspace) == {"original": 5 - paired, "cross_clip": paired}
        share = mixture(workspace)["kinds"]["cross_clip"]
        assert (share["asked"], share["got"]) == (0.9, paired / 5)

    def test_subjects_that_have_no_such_picture_are_in_no_sample(self, mixed, table_of) -> None:
        workspace = mixed({"kinds": {"cross_clip": 1}})
        paired = subjects_with(workspace, "cross_clip")
        wanted = {row["clip_id"] for row in table_of(workspace, Subject).values() if row["subject_id"] in paired}
        assert 0 < len(wanted) < 4
        assert {row["key"] for row in read_index(workspace.path("shards"))} == wanted
        assert sum(mixture(workspace)["dropped"]["samples"].values()) == 4 - len(wanted)

    def test_the_same_tables_make_the_same_shards(self, mixed, shard_files) -> None:
        asked = {"kinds": {"original": 1, "other_frame": 2}, "references_per_subject": 1, "max_per_identity": 2}
        first = shard_files(mixed(asked))
        mixed({})
        assert shard_files(mixed(asked)) == first


class TestCaps:
    def test_a_frequent_individual_is_in_no_more_samples_than_it_may(self, mixed) -> None:
        # The red cat is in three of the four samples.
        workspace = mixed({"max_per_identity": 1})
        assert len(read_index(workspace.path("shards"))) == 2
        told = mixture(workspace)
        assert told["dropped"]["samples"] == {"max_per_identity": 2}
        assert told["largest_identity"] == {"before": 0.75, "got": 0.5}

    def test_the_split_does_not_move(self, mixed) -> None:
        asked = {"pack.val_share": 0.3}
        splits = [
            {row["key"]: row["split"] for row in read_index(mixed(mixture, **asked).path("shards"))}
            for mixture in ({}, {"subjects": {1: 1}}, {"max_per_identity": 2})
        ]
        assert set(splits[0].values()) == {"train", "val"}
        for split in splits[1:]:
            assert split.items() <= splits[0].items()
        assert [key for key, side in splits[0].items() if side == "val"] == [
            key for key, side in splits[1].items() if side == "val"
        ]


class TestStats:
    def test_tell_what_was_asked_and_what_was_got(self, mixed) -> None:
        text = shown(mixed({"subjects": {1: 0.5, 2: 0.5}, "min_keep": 0, "max_per_video": 5}))
        (row,) = (line for line in text.splitlines() if "subjects 2+" in line)
        assert [part.strip() for part in row.split("│")[2:5]] == ["25.0%", "50.0%", "50.0%"]
        assert "not in the mixture: 2 samples (class share 2)" in text
        assert "most frequent individual" in text


class TestNegatives:
    def test_show_another_of_the_same_word_from_another_video(self, mixed, table_of) -> None:
        workspace = mixed({"negatives": 2})
        found = members(workspace)
        references, subjects, clips = (table_of(workspace, record) for record in (Reference, Subject, Clip))
        counts = Counter()
        for name in (name for name in found if name.endswith(".json")):
            about = json.loads(found[name])
            for number, subject in enumerate(about["subjects"]):
                counts[len(subject["negatives"])] += 1
                for place, negative in enumerate(subject["negatives"]):
                    assert negative["file"] == f"{number}.negative.{place}.png"
                    other = subjects[negative["subject_id"]]
                    picture = references[negative["reference_id"]]
                    assert found[name.replace("json", negative["file"])] == picture["image"]
                    assert (picture["kind"], picture["subject_id"]) == ("original", negative["subject_id"])
                    assert other["word"] == subject["word"]
                    assert clips[other["clip_id"]]["video_id"] != about["clip"]["video_id"]
                    assert -1 <= negative["identity_similarity"] < 0.7
        # Three times the red cat beside the blue one, the blue one beside one of its pictures, and the dog, alone.
        assert counts == {1: 4, 0: 1}
        assert pictures(workspace)["negative"] == mixture(workspace)["negatives"] == 4

    def test_are_no_references(self, mixed) -> None:
        plain = {row["key"]: row["references"] for row in read_index(mixed({}).path("shards"))}
        index = read_index(mixed({"negatives": 1}).path("shards"))
        assert {row["key"]: row["references"] for row in index} == plain
        assert any(member["extension"] == "0.negative.0.png" for row in index for member in row["members"])

    def test_never_cross_the_split(self, mixed) -> None:
        # One of the cats stays alone on its side.
        workspace = mixed({"negatives": 1}, **{"pack.val_share": 0.3})
        assert {row["split"] for row in read_index(workspace.path("shards"))} == {"train", "val"}
        assert pictures(workspace)["negative"] == 0
        assert any(b'"negatives": []' in data for data in members(workspace).values())

    def test_keep_a_margin_from_who_may_be_the_same(self, mixed) -> None:
        assert pictures(mixed({"negatives": 1, "negative_margin": 2}))["negative"] == 0
