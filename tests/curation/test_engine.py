from __future__ import annotations

import json
import math
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path

import av
import pytest
from counting_backends import POISON, SECOND, CursedError, calls, forget, given, name_of
from hypothesis import given as hypothesis_given
from hypothesis import settings
from hypothesis import strategies as st

import curation.engine
import curation.steps
from curation.engine import SPREAD, SerialExecutor, group
from curation.guard import Item
from curation.shards import read_index, read_manifest
from curation.workspace import Workspace
from stages.media import encode_clip, stream_frames
from stages.records import (
    RECORDS,
    Annotation,
    Clip,
    Encoding,
    Failure,
    Proof,
    Reference,
    Score,
    Source,
    Subject,
    Verdict,
)

VERIFIERS = {"embedder", SECOND}
"""What the proofs of painted pictures ask."""


@pytest.fixture
def all_rows(table_of):
    """``all_rows(workspace)``: every table's rows by key."""
    return lambda workspace: {record: table_of(workspace, record) for record in RECORDS.values()}


@pytest.fixture
def clip_ids(table_of, video_names):
    """``clip_ids(workspace)``: ids of the clips by the name of their video."""

    def read(workspace: Workspace) -> dict[str, set[str]]:
        names, found = video_names(workspace), {}
        for clip, row in table_of(workspace, Clip).items():
            found.setdefault(names[row["video_id"]], set()).add(clip)
        return found

    return read


def without(rows: dict, *records: type) -> dict:
    return {record: found for record, found in rows.items() if record not in records}


class TestFirstRun:
    def test_every_readable_file_is_a_source_and_the_torn_one_a_failure(self, workspace, table_of) -> None:
        sources = {Path(row["uri"]).stem: row for row in table_of(workspace, Source).values()}
        assert set(sources) == {"a", "b", "c", "d", "dark", "z_copy"}
        assert sources["a"]["caption"] == "A cat rolls over a wall."
        (failure,) = workspace.records(Failure)
        assert Path(failure.uri).name == "torn.mp4"
        assert (failure.step, failure.error) == ("ingest", "UnreadableVideo")
        assert "moov" in failure.message

    def test_a_copy_is_the_same_video(self, finished, workspace, table_of) -> None:
        sources = {Path(row["uri"]).stem: row for row in table_of(workspace, Source).values()}
        assert sources["a"]["video_id"] == sources["z_copy"]["video_id"]
        assert len({row["video_id"] for row in sources.values()}) == 5
        assert len(table_of(workspace, Clip)) == len(finished.seen["shots"]) == 5

    def test_the_dark_clip_is_scored_and_no_subject_model_sees_it(
        self, finished, workspace, config, clip_ids, clip_names, table_of
    ) -> None:
        (dark,), names = clip_ids(workspace)["dark"], clip_names(workspace, config)
        assert table_of(workspace, Verdict)[dark]["reasons"] == ["dark"]
        assert dark in table_of(workspace, Score)
        assert dark not in table_of(workspace, Annotation)
        seen = {task: {item for batch in batches for item in batch} for task, batches in finished.seen.items()}
        good = set.union(*(names[name] for name in "abcd"))
        assert names["dark"] < seen["text"]
        assert seen["detector"] == seen["segmenter"] == good

    def test_each_clip_is_shown_to_each_model_once(self, finished) -> None:
        for task in ("text", "detector", "segmenter"):
            given = Counter(item for batch in finished.seen[task] for item in batch)
            assert set(given.values()) == {1}, task

    def test_subjects_are_what_captions_name(self, workspace, clip_ids, table_of) -> None:
        ids = clip_ids(workspace)
        words = {name: [] for name in ids}
        for row in table_of(workspace, Subject).values():
            (name,) = (name for name, clips in ids.items() if row["clip_id"] in clips)
            words[name].append(row["word"])
        assert {name: sorted(found) for name, found in words.items()} == {
            "a": ["cat"], "b": ["cat"], "c": ["cat"], "d": ["cat", "dog"], "dark": []
        }  # fmt: skip

    def test_references_of_every_kind_and_pairs_only_of_one_individual(self, workspace, clip_ids, table_of) -> None:
        of_clip = {clip: name for name, clips in clip_ids(workspace).items() for clip in clips}
        subjects = table_of(workspace, Subject)
        kinds: dict[str, Counter[str]] = {subject: Counter() for subject in subjects}
        pairs = set()
        for row in table_of(workspace, Reference).values():
            kinds[row["subject_id"]][row["kind"]] += 1
            if row["kind"] == "cross_clip":
                target, source = (subjects[row[column]]["clip_id"] for column in ("subject_id", "source_subject_id"))
                pairs.add((of_clip[target], of_clip[source]))
                assert row["source_clip_id"] == source
            else:
                assert row["source_subject_id"] == row["subject_id"]
        assert pairs == {(one, other) for one in "abc" for other in "abc" if one != other}
        for subject, found in kinds.items():
            alone = of_clip[subjects[subject]["clip_id"]] == "d"
            expected = Counter(original=1, other_frame=2, inpainted=1)
            assert found == expected + Counter() if alone else found == expected + Counter(cross_clip=2)

    def test_references_prove_what_they_are(self, workspace, table_of) -> None:
        proofs, references = table_of(workspace, Proof), table_of(workspace, Reference)
        assert proofs.keys() == references.keys()
        for key, row in references.items():
            proof = proofs[key]
            assert row["image"].startswith(b"\x89PNG")
            assert proof["identity_similarity"] > 0.95
            assert proof["rival_similarity"] < 0.05
            if row["kind"] == "original":
                assert proof["context_difference"] == pytest.approx(0, abs=1e-6)
                assert proof["copy_risk"] is None
            else:
                assert proof["context_difference"] > 0.1
            # What keeps the subject's pixels is found in its frames; another clip's picture is not.
            if row["kind"] == "inpainted":
                assert proof["copy_risk"] > 0.9
                assert (proof["subject_change"], proof["second_subject"]) == (0, 0)
            if row["kind"] == "cross_clip":
                assert proof["copy_risk"] < 0.3
                assert proof["subject_change"] is None
            assert row["method"].startswith("fake@" if row["kind"] == "inpainted" else "cut_out")

    def test_each_subject_is_held_against_the_others_and_never_against_itself(
        self, workspace, clip_ids, table_of
    ) -> None:
        of_clip = {clip: name for name, clips in clip_ids(workspace).items() for clip in clips}
        subjects, references = table_of(workspace, Subject), table_of(workspace, Reference)
        shown = {key: (of_clip[row["clip_id"]], row["word"]) for key, row in subjects.items()}
        held = {
            (shown[references[key]["subject_id"]], shown[row["rival_subject_id"]])
            for key, row in table_of(workspace, Proof).items()
        }
        blue, dog, red = ("d", "cat"), ("d", "dog"), {(name, "cat") for name in "abc"}
        assert {target for target, _ in held} == {blue, dog} | red
        assert {other for target, other in held if target in red} == {blue}
        assert {other for target, other in held if target == blue} <= {dog} | red
        # No other clip has a dog, but another animal stands beside it.
        assert {other for target, other in held if target == dog} == {blue}

    def test_encodings_are_what_they_say(self, workspace, clip_ids, table_of, tmp_path) -> None:
        encodings, ids = table_of(workspace, Encoding), clip_ids(workspace)
        assert set(encodings) == set.union(*(ids[name] for name in "abcd"))
        for row in encodings.values():
            file = tmp_path / "clip.mp4"
            file.write_bytes(row["data"])
            with av.open(str(file)) as container:
                stream = container.streams.video[0]
                assert (stream.codec_context.name, stream.average_rate) == ("h264", row["fps"])
                assert (stream.width, stream.height) == (row["width"], row["height"]) == (160, 120)
                assert sum(1 for _ in container.decode(stream)) == row["frames"]
        assert sorted(row["frames"] for row in encodings.values()) == [24, 24, 24, 36]

    def test_every_good_clip_becomes_a_sample(self, workspace, clip_ids) -> None:
        ids = clip_ids(workspace)
        index = read_index(workspace.path("shards"))
        assert {row["key"] for row in index} == set.union(*(ids[name] for name in "abcd"))
        assert sum(read_manifest(workspace.path("shards"))["samples"].values()) == 4
        (two,) = (row for row in index if row["key"] in ids["d"])
        assert (two["subjects"], two["references"]) == (2, 8)

    def test_reports_count_items_and_failures(self, finished) -> None:
        items = {name: (report.items, report.failed) for name, report in finished.reports.items()}
        assert items["ingest"] == (7, 1)
        assert items["split"] == items["annotate"] == (5, 0)
        assert items["encode"] == (4, 0)
        assert all(report.seconds >= 0 for report in finished.reports.values())

    def test_nothing_is_left_lying_about(self, workspace) -> None:
        assert not workspace.exists("shards", ".next")
        assert not list(Path(workspace.uri).rglob("*.tmp"))
        assert not any(path.is_file() for path in Path(workspace.path("attempts")).rglob("*"))


class TestAgain:
    def test_nothing_is_done(self, workspace, config, videos, curate, all_rows, shard_files) -> None:
        rows, files = all_rows(workspace), shard_files(workspace)
        tars = {path: path.stat().st_mtime_ns for path in Path(workspace.path("shards")).glob("*.tar")}
        versions = {record: workspace.table(record).version for record in RECORDS.values()}
        reports = curate(workspace, config, [videos])
        assert calls() == {}
        assert {name: report.items for name, report in reports.items() if name != "select" and report.items} == {}
        assert {record: workspace.table(record).version for record in RECORDS.values()} == versions
        assert all_rows(workspace) == rows
        assert shard_files(workspace) == files
        assert {path: path.stat().st_mtime_ns for path in tars} == tars

    def test_without_inputs_the_tables_are_gone_on_with(self, workspace, configure, curate) -> None:
        """`s2v run` needs no inputs: what was ingested stays."""
        curate(workspace, configure({"pack.crf": 40}), [], steps=("split", "annotate", "encode", "pack"))
        assert calls() == {}
        assert len(read_index(workspace.path("shards"))) == 4

    def test_a_video_added_later(
        self, workspace, config, videos, later_videos, curate, all_rows, clip_ids, clip_names
    ) -> None:
        before, samples = all_rows(workspace), len(read_index(workspace.path("shards")))
        curate(workspace, config, [videos, later_videos])
        after, new = all_rows(workspace), clip_names(workspace, config)["e"]
        assert len(given("shots")) == 1
        assert set(given("detector")) == set(given("segmenter")) == new
        assert new < set(given("text"))
        assert len(given("text")) == 3
        assert given("inpainter") == ["bird, a plain, natural background"]
        for record, rows in before.items():
            assert {key: after[record][key] for key in rows} == rows, record.table
        assert len(read_index(workspace.path("shards"))) == samples + 1
        assert {row["key"] for row in read_index(workspace.path("shards"))} >= clip_ids(workspace)["e"]

    def test_videos_that_are_not_named_again_stay(self, workspace, config, later_videos, curate, table_of) -> None:
        curate(workspace, config, [later_videos])
        assert len(table_of(workspace, Source)) == 7
        assert len(read_index(workspace.path("shards"))) == 5


class TestChangedConfig:
    def test_loosening_shows_the_models_only_what_is_let_through(
        self, workspace, configure, videos, curate, table_of, clip_ids, clip_names
    ) -> None:
        scores = table_of(workspace, Score)
        looser = configure({"select.clip.min_brightness": 0})
        curate(workspace, looser, [videos])
        assert "shots" not in calls()
        assert "text" not in calls()
        assert set(given("detector")) == set(given("segmenter")) == clip_names(workspace, looser)["dark"]
        assert table_of(workspace, Score) == scores
        (dark,) = clip_ids(workspace)["dark"]
        assert table_of(workspace, Verdict)[dark]["keep"]
        assert dark in table_of(workspace, Annotation)

    def test_tightening_runs_no_model_and_going_back_remakes_the_same_shards(
        self, workspace, configure, config, videos, curate, table_of, clip_ids, shard_files
    ) -> None:
        files = shard_files(workspace)
        brightness = {
            name: table_of(workspace, Score)[clip]["brightness"] for name, (clip,) in clip_ids(workspace).items()
        }
        least = sorted(brightness[name] for name in "abcd")[1]
        curate(workspace, configure({"select.clip.min_brightness": least}), [videos])
        kept = {row["key"] for row in read_index(workspace.path("shards"))}
        assert kept == {
            clip for name, clips in clip_ids(workspace).items() for clip in clips if brightness[name] >= least
        }
        assert len(kept) == 3
        # Who is left has fewer rivals, and is measured against those anew.
        assert set(calls()) <= VERIFIERS
        forget()
        curate(workspace, config, [videos])
        assert set(calls()) == VERIFIERS | {"inpainter"}
        dropped = [row["word"] for row in table_of(workspace, Subject).values() if row["clip_id"] not in kept]
        assert sorted(given("inpainter")) == sorted(f"{word}, a plain, natural background" for word in dropped)
        assert shard_files(workspace) == files

    def test_another_prompt_repaints_and_does_nothing_else(
        self, workspace, configure, videos, curate, all_rows
    ) -> None:
        before = all_rows(workspace)
        curate(workspace, configure({"references.inpainted.prompt": "the sea"}), [videos])
        after = all_rows(workspace)
        assert sorted(given("inpainter")) == ["cat, the sea"] * 4 + ["dog, the sea"]
        assert set(calls()) == VERIFIERS | {"inpainter"}
        assert without(after, Reference, Proof, Verdict) == without(before, Reference, Proof, Verdict)
        old, new = before[Proof], after[Proof]
        assert all(old[key] == new[key] for key in old.keys() & new.keys())
        assert new.keys() == after[Reference].keys()
        old, new = before[Reference], after[Reference]
        assert {row["kind"] for key, row in old.items() if key not in new} == {"inpainted"}
        assert {row["kind"] for key, row in new.items() if key not in old} == {"inpainted"}
        assert len(old) == len(new)
        assert all(old[key] == new[key] for key in old.keys() & new.keys())

    def test_another_description_remakes_subjects_and_keeps_scores(
        self, workspace, configure, videos, curate, all_rows
    ) -> None:
        before = all_rows(workspace)
        curate(workspace, configure({"annotate.describe.keep_frames": 2}), [videos])
        after = all_rows(workspace)
        assert not {"shots", "text"} & set(calls())
        assert len(given("detector")) == 4
        assert after[Score] == before[Score]
        assert after[Clip] == before[Clip]
        assert after[Encoding] == before[Encoding]
        assert {len(row["frames"]) for row in before[Subject].values()} == {4}
        assert {len(row["frames"]) for row in after[Subject].values()} == {2}

    def test_another_model_remakes_what_it_made(self, workspace, configure, videos, curate, all_rows) -> None:
        before = all_rows(workspace)
        curate(workspace, configure({"models.text.strength": 2}), [videos])
        after = all_rows(workspace)
        assert set(calls()) == {"text"}
        assert len(given("text")) == 15
        assert without(after, Score) == without(before, Score)
        assert {key: {**row, "fingerprint": ""} for key, row in after[Score].items()} == {
            key: {**row, "fingerprint": ""} for key, row in before[Score].items()
        }
        assert {row["fingerprint"] for row in after[Score].values()}.isdisjoint(
            {row["fingerprint"] for row in before[Score].values()}
        )

    def test_clips_that_are_cut_as_before_keep_all_they_have(
        self, workspace, configure, videos, curate, all_rows, clip_ids, clip_names
    ) -> None:
        before, old_ids = all_rows(workspace), clip_ids(workspace)
        shorter = configure({"split.max_s": 3})
        curate(workspace, shorter, [videos])
        after, ids, names = all_rows(workspace), clip_ids(workspace), clip_names(workspace, shorter)
        assert len(given("shots")) == 5
        assert {name: clips for name, clips in ids.items() if name != "b"} == {
            name: clips for name, clips in old_ids.items() if name != "b"
        }
        assert len(ids["b"]) == 2
        assert not ids["b"] & old_ids["b"]
        assert set(given("detector")) == names["b"]
        assert len(given("text")) == 6
        assert names["b"] < set(given("text"))
        (gone,) = old_ids["b"]
        for record in (Score, Annotation, Encoding):
            assert gone not in after[record]
            assert {key: row for key, row in after[record].items() if key not in ids["b"]} == {
                key: row for key, row in before[record].items() if key != gone
            }
        assert gone not in {row["clip_id"] for row in after[Subject].values()}
        assert gone not in {row["source_clip_id"] for row in after[Reference].values()}
        assert gone not in after[Verdict]
        assert len(read_index(workspace.path("shards"))) == 5

    def test_another_quality_encodes_and_packs_and_does_nothing_else(
        self, workspace, configure, videos, curate, all_rows, shard_files
    ) -> None:
        before, files = all_rows(workspace), shard_files(workspace)
        curate(workspace, configure({"pack.crf": 40}), [videos])
        after = all_rows(workspace)
        assert calls() == {}
        assert without(after, Encoding) == without(before, Encoding)
        assert after[Encoding].keys() == before[Encoding].keys()
        for key, row in after[Encoding].items():
            assert len(row["data"]) < len(before[Encoding][key]["data"])
        assert shard_files(workspace).keys() == files.keys()
        assert not set(shard_files(workspace).values()) & set(files.values())

    def test_smaller_shards_encode_nothing(self, workspace, configure, videos, curate, all_rows) -> None:
        before = all_rows(workspace)
        curate(workspace, configure({"pack.shard_samples": 1}), [videos])
        assert calls() == {}
        assert all_rows(workspace) == before
        assert len(read_manifest(workspace.path("shards"))["shards"]) == 4


def test_a_new_caption_sidecar_grounds_only_its_own_clips_again(
    empty, config, videos, tmp_path, curate, table_of, clip_ids, clip_names
) -> None:
    folder = tmp_path / "some"
    folder.mkdir()
    for name in ("a", "d"):
        for file in videos.glob(f"{name}.*"):
            shutil.copy2(file, folder)
    curate(empty, config, [folder])
    ids = clip_ids(empty)
    scores, annotations, subjects = (table_of(empty, record) for record in (Score, Annotation, Subject))
    forget()
    (folder / "d.txt").write_text("Two horses on a field, and a rabbit.")
    curate(empty, config, [folder])
    assert set(given("detector")) == clip_names(empty, config)["d"]
    assert not {"shots", "text"} & set(calls())
    assert table_of(empty, Score) == scores
    assert len(table_of(empty, Source)) == 2
    after = table_of(empty, Annotation)
    assert {clip for clip in after if after[clip] != annotations[clip]} == ids["d"]
    now = table_of(empty, Subject)
    kept = {key: row for key, row in subjects.items() if row["clip_id"] in ids["a"]}
    assert {key: row for key, row in now.items() if row["clip_id"] in ids["a"]} == kept
    assert {row["word"] for row in now.values() if row["clip_id"] in ids["d"]} == {"horse", "rabbit"}
    texts = {row["key"]: row["caption"] for row in read_index(empty.path("shards"))}
    assert {texts[clip] for clip in ids["d"]} == {"Two horses on a field, and a rabbit."}


def test_shards_do_not_depend_on_order_units_batches_or_rounds(
    finished, empty, configure, videos, curate, shard_files, all_rows
) -> None:
    step = {"unit_items": 1, "unit_seconds": 1}
    first, second = {"stages": ["look", "score", "caption", "ground"], "batch": 3}, {"stages": ["segment", "describe"]}
    annotate = {"operators": [first, second], "unit_items": 3, "unit_seconds": 1000}
    other = configure(
        {
            "runtime.ingest": {"operators": [{"stages": ["ingest"], "batch": 2}], "unit_items": 3},
            "runtime.split": {"operators": [{"stages": ["split"]}], **step},
            "runtime.annotate": annotate,
            "runtime.references": {"operators": [{"stages": ["synthesise"], "batch": 5}], **step},
            "runtime.verify": {"operators": [{"stages": ["verify"], "batch": 2}], **step},
            "runtime.encode": {"operators": [{"stages": ["encode"]}], **step},
            "runtime.commit_s": 0,
        }
    )
    paths = sorted(videos.glob("*.mp4"), reverse=True)
    curate(empty, other, [paths[1], paths[3], paths[2]])
    assert 0 < len(read_index(empty.path("shards"))) < 4
    curate(empty, other, paths)
    whole = Workspace.open(finished.folder)
    assert shard_files(empty) == shard_files(whole)
    assert {name.rpartition(".")[2] for name in shard_files(empty)} == {"tar", "parquet", "json"}
    assert all_rows(empty) == all_rows(whole)


class TestFailures:
    def poisoned(self, videos: Path, task: str, names: dict[str, set[str]]) -> str:
        """What the fake of a task must not bear so that video `c`, or for the inpainter the dog in `d`, fails."""
        if task == "shots":
            return name_of(next(iter(stream_frames(videos / "c.mp4", 0, math.inf, (32, 24))))[1])
        return "dog, a plain, natural background" if task == "inpainter" else next(iter(names["c"]))

    @pytest.mark.parametrize(
        ("task", "step"),
        [
            ("shots", "split"),
            ("text", "annotate/score"),
            ("detector", "annotate/ground"),
            ("segmenter", "annotate/segment"),
            ("inpainter", "references/synthesise"),
        ],
    )
    def test_costs_only_its_own_item(
        self, workspace, configure, config, videos, curate, table_of, clip_ids, clip_names, task, step
    ) -> None:
        ids, names = clip_ids(workspace), clip_names(workspace, config)
        strange = self.poisoned(videos, task, names)
        changed = configure({f"models.{task}.strength": 2})
        POISON[task].add(strange)
        reports = curate(workspace, changed, [videos])
        assert reports[step.partition("/")[0]].failed == 1
        failures = [row for row in workspace.records(Failure) if row.step != "ingest"]
        (failure,) = failures
        assert (failure.step, failure.error) == (step, "CursedError")
        assert failure.message == f"{task} cannot bear {strange}"
        keys = {row["key"]: row for row in read_index(workspace.path("shards"))}
        if task == "inpainter":
            (dog,) = (row for row in table_of(workspace, Subject).values() if row["word"] == "dog")
            assert failure.item == f"{dog['subject_id']}:inpainted"
            assert keys.keys() == set.union(*(ids[name] for name in "abcd"))
            # Of the dog's pictures only the painted one was to be made again.
            assert [keys[clip]["references"] for clip in ids["d"]] == [7]
        else:
            assert "c.mp4" in failure.uri
            assert keys.keys() == ids["a"] | ids["b"] | ids["d"]

        forget()
        curate(workspace, changed, [videos])
        assert given(task) == [], "a second run tries it again"
        assert [row for row in workspace.records(Failure) if row.step != "ingest"] == failures

        POISON[task].add(strange)
        curate(workspace, changed, [videos], retry_failed=True)
        assert strange in given(task)
        assert [row for row in workspace.records(Failure) if row.step != "ingest"] == failures, "one row, not two"

        forget()
        curate(workspace, changed, [videos], retry_failed=True)
        assert [row.step for row in workspace.records(Failure)] == ["ingest"]
        assert len(read_index(workspace.path("shards"))) == 4
        assert sum(row["references"] for row in read_index(workspace.path("shards"))) == 26

    def test_another_config_tries_again_by_itself(
        self, workspace, configure, config, videos, curate, clip_names
    ) -> None:
        (strange,) = clip_names(workspace, config)["c"]
        POISON["detector"].add(strange)
        curate(workspace, configure({"models.detector.strength": 2}), [videos])
        assert len(workspace.records(Failure)) == 2
        forget()
        curate(workspace, configure({"models.detector.strength": 3}), [videos])
        assert strange in given("detector")
        assert [row.step for row in workspace.records(Failure)] == ["ingest"]

    def test_encoding(self, workspace, configure, videos, curate, clip_ids, table_of, monkeypatch) -> None:
        def encode(path: Path, *arguments, **options):
            if path.stem == "b":
                raise CursedError("no room")
            return encode_clip(path, *arguments, **options)

        monkeypatch.setattr(curation.steps, "encode_clip", encode)
        curate(workspace, configure({"pack.crf": 40}), [videos])
        (failure,) = (row for row in workspace.records(Failure) if row.step != "ingest")
        assert (failure.step, failure.error, failure.message) == ("encode", "CursedError", "no room")
        ids = clip_ids(workspace)
        assert {failure.item} == ids["b"]
        assert {row["key"] for row in read_index(workspace.path("shards"))} == ids["a"] | ids["c"] | ids["d"]

    def test_torn_file_is_not_read_again_until_asked(self, workspace, config, videos, curate) -> None:
        assert curate(workspace, config, [videos])["ingest"].items == 0
        assert curate(workspace, config, [videos], retry_failed=True)["ingest"].items == 1
        assert len(workspace.records(Failure)) == 1

    def test_torn_file_that_was_mended(self, empty, config, videos, tmp_path, curate, table_of) -> None:
        folder = tmp_path / "some"
        folder.mkdir()
        shutil.copy(videos / "torn.mp4", folder / "video.mp4")
        curate(empty, config, [folder], steps=["ingest"])
        assert len(empty.records(Failure)) == 1
        shutil.copy(videos / "a.mp4", folder / "video.mp4")
        curate(empty, config, [folder], steps=["ingest"])
        assert len(table_of(empty, Source)) == 1
        assert empty.records(Failure) == [], "the failure outlives the file that failed"

    def test_of_clips_that_are_gone_are_forgotten(
        self, workspace, configure, config, videos, curate, clip_names
    ) -> None:
        POISON["detector"] |= clip_names(workspace, config)["b"]
        curate(workspace, configure({"models.detector.strength": 2}), [videos])
        assert len(workspace.records(Failure)) == 2
        curate(workspace, configure({"models.detector.strength": 2, "split.max_s": 3}), [videos])
        assert [row.step for row in workspace.records(Failure)] == ["ingest"]


class Killed(BaseException):
    """Stands for a run's sudden end."""


class Stops(SerialExecutor):
    """Ends the run in one step, after some of its units."""

    def __init__(self, step: str, after: int) -> None:
        self.step, self.after = step, after

    def run(self, step, units) -> Iterator:
        for number, result in enumerate(super().run(step, units)):
            if step.name == self.step and number == self.after:
                raise Killed
            yield result


REMADE = {
    "split": {"models.shots.strength": 2},
    "annotate": {"models.text.strength": 2, "models.detector.strength": 2},
    "references": {"models.inpainter.strength": 2},
    "verify": {"verify.rivals": 2},
    "encode": {"pack.crf": 40},
    "pack": {"pack.shard_samples": 1},
}
"""Per step, a change that makes it do all its work again."""

ONE_BY_ONE = {
    # A unit for each item, committed at once.
    **{
        f"runtime.{step}": {"operators": [{"stages": stages}], "unit_items": 1}
        for step, stages in {
            "ingest": ["ingest"],
            "split": ["split"],
            "annotate": ["look", "score", "caption", "ground", "segment", "describe"],
            "references": ["synthesise"],
            "verify": ["verify"],
            "encode": ["encode"],
        }.items()
    },
    "runtime.commit_s": 0,
}


@pytest.fixture(scope="module")
def undisturbed(finished, videos, run_apart, tmp_path_factory):
    """``undisturbed(step)``: the workspace after a run of that step alone, with its change, that ends well."""

    @cache
    def run(step: str) -> Workspace:
        folder = tmp_path_factory.mktemp("undisturbed") / "workspace"
        return run_apart(shutil.copytree(finished.folder, folder), REMADE[step], [videos], [step])

    return run


class TestInterrupted:
    """A run that remakes a step dies at one point or another; the next run ends as if nothing had happened."""

    @pytest.fixture
    def remake(self, workspace, configure, videos, curate):
        """``remake(step, executor=None)``: that step alone, with its change."""

        def run(step: str, executor: SerialExecutor | None = None) -> None:
            curate(workspace, configure(REMADE[step] | ONE_BY_ONE), [videos], steps=[step], executor=executor)

        return run

    @pytest.fixture
    def assert_recovers(self, workspace, undisturbed, remake, all_rows, shard_files):
        def check(step: str = "annotate") -> None:
            whole = undisturbed(step)
            forget()
            remake(step)
            assert all_rows(workspace) == all_rows(whole)
            assert shard_files(workspace) == shard_files(whole)

        return check

    @pytest.mark.parametrize(
        ("step", "after"),
        [("split", 2), ("annotate", 0), ("annotate", 3), ("references", 2), ("verify", 2), ("encode", 1), ("pack", 1)],
    )
    def test_between_units(self, workspace, remake, assert_recovers, table_of, step, after) -> None:
        with pytest.raises(Killed):
            remake(step, Stops(step, after))
        assert_recovers(step)
        if step == "annotate":
            assert len(given("text")) == 3 * (5 - after), "what was committed is done again"
        if step == "verify":
            assert len(given(SECOND)) == 5 - after, "what was committed is measured again"

    @pytest.mark.parametrize("dies_at", [1, 3])
    def test_in_the_middle_of_a_step_without_a_last_word(self, remake, assert_recovers, monkeypatch, dies_at) -> None:
        commits = []

        def commit(step, results) -> None:
            if step.name == "annotate":
                commits.append(step)
                if len(commits) >= dies_at:
                    raise Killed
            whole(step, results)

        whole = curation.engine._commit
        with monkeypatch.context() as patch:
            patch.setattr(curation.engine, "_commit", commit)
            with pytest.raises(Killed):
                remake("annotate")
        assert_recovers()

    @pytest.mark.parametrize("missing", [Score, Annotation])
    def test_between_the_tables_of_a_step(
        self, workspace, remake, assert_recovers, table_of, monkeypatch, missing
    ) -> None:
        dying = False

        def commit(workspace, record, fragments) -> None:
            nonlocal dying
            fragments = list(fragments)
            if record is missing and dying:
                raise Killed
            whole(workspace, record, fragments)
            dying = dying or (record is Subject and bool(fragments))

        whole = Workspace.commit
        with monkeypatch.context() as patch:
            patch.setattr(Workspace, "commit", commit)
            with pytest.raises(Killed):
                remake("annotate")
        orphans = {row["clip_id"] for row in table_of(workspace, Subject).values()} - set(
            table_of(workspace, Annotation)
        )
        assert orphans, "the run was to die after committing subjects"
        assert_recovers()

    def test_before_tidying(self, remake, assert_recovers, monkeypatch) -> None:
        def tidy(workspace) -> None:
            raise Killed

        with monkeypatch.context() as patch:
            patch.setattr(Workspace, "tidy", tidy)
            with pytest.raises(Killed):
                remake("annotate")
        assert_recovers()
        assert calls() == {}

    def test_notes_of_a_dead_run_say_nothing(self, workspace, assert_recovers) -> None:
        folder = Path(workspace.path("attempts"))
        folder.mkdir(exist_ok=True)
        for key in workspace.column(Clip, "clip_id"):
            (unit,) = group([Item(key, "", 1.0, None)], 10, 1)
            note = {"busy": [key], "reason": "Timeout", "deaths": {key: 9}, "timeouts": [key]}
            (folder / f"annotate-0-{unit.unit_id}").write_text(json.dumps(note))
        assert_recovers()
        assert not list(folder.glob("*"))

    def test_files_that_no_table_knows_are_swept_up(self, workspace, assert_recovers) -> None:
        row = workspace.records(Subject)[0]
        workspace.write_fragments(Subject, [replace(row, subject_id="never committed")])
        data = Path(workspace.path("tables", "subjects.lance", "data"))
        before = set(data.iterdir())
        assert_recovers()
        assert not before & set(data.iterdir())


items = st.lists(
    st.tuples(st.text("0123456789abcdef", min_size=1, max_size=4), st.floats(0, 1000, allow_subnormal=False)),
    max_size=40,
    unique_by=lambda pair: pair[0],
).map(lambda pairs: [Item(key, "", seconds, None) for key, seconds in pairs])


class TestGroup:
    @settings(deadline=None)
    @hypothesis_given(items, st.floats(0.1, 1000), st.integers(1, 10))
    def test_every_item_once_in_order_within_bounds(self, items, unit_seconds, unit_items) -> None:
        units = group(items, unit_seconds, unit_items)
        assert [item for unit in units for item in unit.items] == items
        for unit in units:
            assert 1 <= len(unit.items) <= unit_items
            # An item that is longer than a whole unit stands alone.
            assert len(unit.items) == 1 or sum(item.seconds for item in unit.items) <= unit_seconds * (1 + 1e-9)
        assert len({unit.unit_id for unit in units}) == len(units)

    @settings(deadline=None)
    @hypothesis_given(items, st.floats(0.1, 1000), st.integers(1, 10))
    def test_ids_follow_from_keys_alone(self, items, unit_seconds, unit_items) -> None:
        units = group(items, unit_seconds, unit_items)
        others = [replace(item, uri="elsewhere", value=object()) for item in items]
        again = group(others, unit_seconds, unit_items)
        assert [unit.unit_id for unit in again] == [unit.unit_id for unit in units]
        for unit in units:
            (whole,) = group(unit.items, 1e9, 1000) if len(unit.items) == 1 else (unit,)
            assert whole.unit_id == unit.unit_id

    @settings(max_examples=20, deadline=None)
    @hypothesis_given(st.integers(SPREAD, 100))
    def test_work_is_spread(self, count) -> None:
        """However large a unit may be, several workers get something to do."""
        assert len(group([Item(str(number), "", 1.0, None) for number in range(count)], 1e9, 1000)) >= SPREAD
