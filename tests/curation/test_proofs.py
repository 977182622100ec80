"""What is measured of references, when it is measured anew, and what becomes of those that prove nothing."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from collections import Counter
from pathlib import Path

import pytest
from conftest import BLUE, write_video
from counting_backends import CROWD, POISON, SECOND, calls, given

from curation.shards import read_index
from curation.workspace import Workspace
from stages.records import KIND_ORDER, Annotation, Clip, Failure, Proof, Reference, Subject, Verdict
from stages.verify import PAINTED

AFTER_SUBJECTS = ("select", "references", "verify", "encode", "pack")
EVERYTHING = {"references.augmented.count": 1, "references.swapped.count": 1}


@pytest.fixture
def references_of(table_of):
    """``references_of(workspace)``: rows of ``references`` and ``proofs`` in one, with their verdicts, by id."""

    def read(workspace: Workspace) -> dict[str, dict]:
        proofs, verdicts = table_of(workspace, Proof), table_of(workspace, Verdict)
        return {
            key: row | proofs[key] | {"reasons": verdicts[key]["reasons"]}
            for key, row in table_of(workspace, Reference).items()
        }

    return read


def packed(workspace: Workspace) -> Counter[str]:
    """How many references of each kind the shards hold, as told by the samples and as there are pictures."""
    told, pictures = Counter(), Counter()
    for path in Path(workspace.path("shards")).glob("*.tar"):
        with tarfile.open(path) as shard:
            for member in shard:
                data = shard.extractfile(member).read()
                if member.name.endswith(".json"):
                    for subject in json.load(io.BytesIO(data))["subjects"]:
                        told.update(reference["kind"] for reference in subject["references"])
                elif member.name.endswith(".png"):
                    pictures[member.name.split(".")[-3]] += 1
    assert told == pictures
    return told


class TestMeasuredAnew:
    @pytest.mark.parametrize(
        "change", [{"verify.rivals": 1}, {"verify.copies": False}, {"verify.second_subjects": False}]
    )
    def test_another_way_of_measuring_paints_nothing(
        self, workspace, configure, videos, curate, table_of, change
    ) -> None:
        pictures, proofs = table_of(workspace, Reference), table_of(workspace, Proof)
        version = workspace.table(Reference).version
        curate(workspace, configure(change), [videos])
        assert set(calls()) == {"embedder"} | ({SECOND} if "verify.second_subjects" not in change else set())
        assert len(given("embedder")) == sum(row["kind"] in PAINTED for row in pictures.values()) == 5
        assert (table_of(workspace, Reference), workspace.table(Reference).version) == (pictures, version)
        after = table_of(workspace, Proof)
        assert after.keys() == proofs.keys()
        assert all(after[key]["fingerprint"] != proofs[key]["fingerprint"] for key in proofs)

    def test_another_embedder_describes_and_measures_anew_and_paints_nothing(
        self, workspace, configure, videos, curate, table_of
    ) -> None:
        pictures, proofs = table_of(workspace, Reference), table_of(workspace, Proof)
        subjects, version = table_of(workspace, Subject), workspace.table(Reference).version
        curate(workspace, configure({"models.embedder.strength": 2}), [videos])
        assert "inpainter" not in calls()
        assert all(
            row["fingerprint"] != subjects[key]["fingerprint"] for key, row in table_of(workspace, Subject).items()
        )
        assert (table_of(workspace, Reference), workspace.table(Reference).version) == (pictures, version)
        after = table_of(workspace, Proof)
        assert after.keys() == proofs.keys()
        assert all(after[key]["fingerprint"] != proofs[key]["fingerprint"] for key in proofs)

    def test_what_is_not_measured_is_told_to_be_unknown(self, workspace, configure, videos, curate, table_of) -> None:
        curate(workspace, configure({"verify": {"rivals": 0, "copies": False, "second_subjects": False}}), [videos])
        for row in table_of(workspace, Proof).values():
            unknown = ("rival_similarity", "rival_subject_id", "copy_risk", "second_subject")
            assert [row[name] for name in unknown] == [None] * 4
        assert packed(workspace)["inpainted"] == 5

    def test_a_new_subject_is_held_against_those_it_is_not_and_no_one_else_is_measured(
        self, workspace, config, videos, curate, table_of, tmp_path, video_names
    ) -> None:
        """Another blue cat: the red ones have a rival more, the blue one has none more, and the dog is no cat."""
        write_video(tmp_path / "f.mp4", 21, 3, [BLUE])
        (tmp_path / "f.txt").write_text("A cat under the sun.")
        pictures, proofs = table_of(workspace, Reference), table_of(workspace, Proof)
        curate(workspace, config, [videos, tmp_path])
        assert given("inpainter") == ["cat, a plain, natural background"]
        now = table_of(workspace, Reference)
        assert {key: now[key] for key in pictures} == pictures
        names = video_names(workspace)
        film = {key: names[row["video_id"]] for key, row in table_of(workspace, Clip).items()}
        shows = {key: (film[row["clip_id"]], row["word"]) for key, row in table_of(workspace, Subject).items()}
        after = table_of(workspace, Proof)
        anew = {shows[now[key]["subject_id"]] for key, proof in proofs.items() if after[key] != proof}
        assert anew == {(name, "cat") for name in "abc"}
        # Of those five painted pictures three are looked at again, and the new one for the first time.
        assert len(given(SECOND)) == 4


class TestRefused:
    @pytest.fixture
    def crowded(self, workspace, configure, videos, curate):
        """``crowded(changes)``: a run in which other animals are painted behind every subject."""

        def run(changes=()) -> Workspace:
            curate(workspace, configure({"references.inpainted.prompt": CROWD} | dict(changes)), [videos])
            return workspace

        return run

    def test_stays_with_its_reasons_and_reaches_no_shard(self, crowded, references_of) -> None:
        before = packed(crowded({"references.inpainted.prompt": "the sea"}))
        workspace = crowded()
        rows = references_of(workspace)
        refused = {key: row["reasons"] for key, row in rows.items() if row["reasons"]}
        assert set(refused) == {key for key, row in rows.items() if row["kind"] == "inpainted"}
        assert set(map(tuple, refused.values())) == {("second_subject",)}
        assert all(rows[key]["second_subject"] == pytest.approx(0.9) for key in refused)
        assert all(rows[key]["image"] for key in refused)
        assert packed(workspace) == before - Counter(inpainted=5)
        assert before["inpainted"] == 5

    def test_is_taken_where_the_gate_is_off(self, crowded, references_of) -> None:
        workspace = crowded({"select.reference.off": True})
        assert packed(workspace)["inpainted"] == 5
        assert all(row["reasons"] == [] for row in references_of(workspace).values())

    def test_nothing_is_left_of_a_subject_that_fails_though_the_gate_is_off(
        self, workspace, configure, curate, references_of
    ) -> None:
        changes = {"select.reference.off": True, "select.subject.min_short_side": 400}
        curate(workspace, configure(changes), [], steps=("select",))
        assert all(row["reasons"] == ["subject"] for row in references_of(workspace).values())
        curate(workspace, configure(changes), [], steps=AFTER_SUBJECTS)
        assert references_of(workspace) == {}
        assert read_index(workspace.path("shards")) == []

    def test_subjects_pass_where_their_thresholds_are_off(self, workspace, configure, curate) -> None:
        whole = packed(workspace)
        changes = {"select.subject.off": True, "select.subject.min_short_side": 400}
        curate(workspace, configure(changes), [], steps=AFTER_SUBJECTS)
        assert packed(workspace) == whole
        assert calls() == {}

    def test_clips_pass_where_their_thresholds_are_off(
        self, workspace, configure, videos, curate, table_of, clip_names
    ) -> None:
        """The dark one, too, and it is shown to the models that it was kept from."""
        changed = configure({"select.clip.off": True})
        curate(workspace, changed, [videos])
        assert set(given("detector")) == clip_names(workspace, changed)["dark"]
        assert {row["reasons"] == [] for row in table_of(workspace, Verdict).values() if row["kind"] == "clip"} == {
            True
        }
        assert len(table_of(workspace, Annotation)) == 5


class TestKinds:
    @pytest.fixture(scope="class")
    @staticmethod
    def of_every_kind(finished, run_apart, tmp_path_factory) -> Workspace:
        folder = tmp_path_factory.mktemp("everything") / "workspace"
        return run_apart(shutil.copytree(finished.folder, folder), EVERYTHING, [], AFTER_SUBJECTS)

    @pytest.fixture
    def all_kinds(self, of_every_kind, tmp_path) -> Workspace:
        return Workspace.open(shutil.copytree(of_every_kind.uri, tmp_path / "all_kinds"))

    def test_that_are_asked_for_appear(self, all_kinds, references_of, table_of) -> None:
        rows = references_of(all_kinds)
        found = Counter(row["kind"] for row in rows.values())
        assert found == Counter(original=5, other_frame=10, cross_clip=6, inpainted=5, augmented=5, swapped=5)
        clips = {key: row["video_id"] for key, row in table_of(all_kinds, Clip).items()}
        subjects = {key: clips[row["clip_id"]] for key, row in table_of(all_kinds, Subject).items()}
        for row in rows.values():
            if row["kind"] == "swapped":
                assert subjects[row["scene_subject_id"]] != subjects[row["subject_id"]]
                assert row["halo"] is not None
                assert row["method"].startswith("swap, fake@")
            else:
                assert row["scene_subject_id"] is None
            assert row["identity_similarity"] > 0.9
            # Small as the discs are, some lose too much by being turned and shrunk.
            assert row["reasons"] == [] or (row["kind"], row["reasons"]) == ("augmented", ["blurry"])
        assert packed(all_kinds) == Counter(row["kind"] for row in rows.values() if not row["reasons"])
        assert packed(all_kinds).keys() == found.keys()

    @pytest.mark.parametrize("kind", [kind for kind in KIND_ORDER if kind not in ("original", "moved")])
    def test_that_are_turned_off_are_gone_and_nothing_else_is(
        self, all_kinds, configure, curate, references_of, kind
    ) -> None:
        before, shown = references_of(all_kinds), packed(all_kinds)
        curate(all_kinds, configure(EVERYTHING | {f"references.{kind}.count": 0}), [], steps=AFTER_SUBJECTS)
        assert calls() == {}
        after = references_of(all_kinds)
        assert after == {key: row for key, row in before.items() if row["kind"] != kind}
        assert packed(all_kinds) == Counter({name: count for name, count in shown.items() if name != kind})

    def test_alone_an_original_is_left(self, all_kinds, configure, curate, references_of) -> None:
        none = {f"references.{kind}.count": 0 for kind in KIND_ORDER if kind != "original"}
        curate(all_kinds, configure(none), [], steps=AFTER_SUBJECTS)
        assert packed(all_kinds) == Counter(original=5)

    def test_a_painter_that_fails_at_one_kind_costs_that_kind(
        self, workspace, configure, curate, references_of
    ) -> None:
        POISON["inpainter"].add("the empty background, nobody there")
        reports = curate(workspace, configure(EVERYTHING), [], steps=AFTER_SUBJECTS)
        assert (reports["references"].items, reports["references"].failed) == (10, 5)
        failed = {row.item for row in workspace.records(Failure) if row.step == "references/synthesise"}
        assert failed == {f"{subject}:swapped" for subject in workspace.column(Subject, "subject_id")}
        found = Counter(row["kind"] for row in references_of(workspace).values())
        assert found == Counter(original=5, other_frame=10, cross_clip=6, inpainted=5, augmented=5)

    def test_do_not_depend_on_units_or_batches(
        self, finished, all_kinds, workspace, configure, curate, table_of, shard_files
    ) -> None:
        other = {
            "runtime.references": {"operators": [{"stages": ["synthesise"], "batch": 7}], "unit_items": 9},
            "runtime.verify": {"operators": [{"stages": ["verify"], "batch": 3}], "unit_items": 4},
            "runtime.commit_s": 0,
        }
        curate(workspace, configure(EVERYTHING | other), [], steps=AFTER_SUBJECTS)
        for record in (Reference, Proof, Verdict):
            assert table_of(workspace, record) == table_of(all_kinds, record)
        assert shard_files(workspace) == shard_files(all_kinds)
