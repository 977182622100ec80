from __future__ import annotations

import hashlib
import json
import os
import tarfile
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from counting_backends import CursedError
from hypothesis import given, settings
from hypothesis import strategies as st

from curation.pack import Pack
from curation.shards import read_index, read_manifest
from curation.workspace import Workspace
from stages.records import Annotation, Clip, Encoding, Failure, Reference, Score, Source, Subject, Verdict
from stages.sample import split_by_identity


def shards(workspace: Workspace) -> list[Path]:
    return sorted(Path(workspace.path("shards")).glob("*.tar"))


def members(path: Path) -> dict[str, bytes]:
    with tarfile.open(path) as tar:
        return {member.name: tar.extractfile(member).read() for member in tar.getmembers()}


def assert_sound(workspace: Workspace) -> None:
    """What the manifest and the index say is what lies in ``shards/``, and nothing else lies there."""
    manifest, index = read_manifest(workspace.path("shards")), read_index(workspace.path("shards"))
    folder = Path(workspace.path("shards"))
    files = [shard["file"] for shard in manifest["shards"]]
    assert sorted(path.name for path in folder.iterdir()) == sorted([*files, "index.parquet", "manifest.json"])
    for shard in manifest["shards"]:
        data = (folder / shard["file"]).read_bytes()
        assert (len(data), hashlib.sha256(data).hexdigest()) == (shard["bytes"], shard["sha256"])
        rows = [row for row in index if row["shard"] == shard["file"]]
        assert len(rows) == shard["samples"]
        assert {row["split"] for row in rows} == {shard["split"]}
        found = members(folder / shard["file"])
        listed = {f"{row['key']}.{member['extension']}": member for row in rows for member in row["members"]}
        assert listed.keys() == found.keys()
        for name, member in listed.items():
            assert data[member["offset"] :][: member["size"]] == found[name]
    assert {row["shard"] for row in index} == set(files)
    for split in ("train", "val"):
        assert manifest["samples"][split] == sum(row["split"] == split for row in index)


class TestShards:
    def test_are_what_index_and_manifest_say(self, workspace) -> None:
        assert_sound(workspace)

    def test_webdataset_and_tarfile_read_the_same(self, workspace) -> None:
        import webdataset  # Loads torch: not for every test.

        keys = []
        for path in shards(workspace):
            with_tar = members(path)
            samples = list(webdataset.WebDataset(str(path), shardshuffle=False))
            for sample in samples:
                parts = {name: data for name, data in sample.items() if not name.startswith("__")}
                assert {f"{sample['__key__']}.{name}" for name in parts} <= with_tar.keys()
                assert all(with_tar[f"{sample['__key__']}.{name}"] == data for name, data in parts.items())
                assert {"mp4", "txt", "json"} < parts.keys()
            assert sum(len(sample.keys() - {"__key__", "__url__", "__local_path__"}) for sample in samples) == len(
                with_tar
            )
            keys += [sample["__key__"] for sample in samples]
        assert sorted(keys) == sorted(row["key"] for row in read_index(workspace.path("shards")))
        assert len(set(keys)) == len(keys) == 4
        assert not any("." in key or "/" in key for key in keys)

    def test_hold_what_the_tables_hold(self, workspace, table_of) -> None:
        found = {name: data for path in shards(workspace) for name, data in members(path).items()}
        encodings, annotations, references, subjects = (
            table_of(workspace, record) for record in (Encoding, Annotation, Reference, Subject)
        )
        pictures = set()
        for key, row in encodings.items():
            assert found[f"{key}.mp4"] == row["data"]
            assert found[f"{key}.txt"].decode() == annotations[key]["caption"]
            about = json.loads(found[f"{key}.json"])
            assert about["clip"]["clip_id"] == key
            for subject in about["subjects"]:
                assert subjects[subject["subject_id"]]["clip_id"] == key
                assert subject["references"][0]["kind"] == "original"
                for reference in subject["references"]:
                    assert found[f"{key}.{reference['file']}"] == references[reference["reference_id"]]["image"]
                    pictures.add(reference["reference_id"])
        kept = workspace.rows(Verdict, ["id"], where="kind = 'reference' AND keep")
        assert pictures == {row["id"] for row in kept}

    def test_the_index_tells_of_the_clips(self, workspace, table_of) -> None:
        encodings, annotations = table_of(workspace, Encoding), table_of(workspace, Annotation)
        for row in read_index(workspace.path("shards")):
            for column in ("width", "height", "frames", "fps"):
                assert row[column] == encodings[row["key"]][column]
            assert row["caption"] == annotations[row["key"]]["caption"]
            assert row["references"] == sum(member["extension"].endswith("png") for member in row["members"])

    def test_samples_are_in_the_order_of_their_keys(self, workspace) -> None:
        index = read_index(workspace.path("shards"))
        assert all((one["shard"], one["key"]) < (other["shard"], other["key"]) for one, other in pairwise(index))
        for path in shards(workspace):
            names = [name.split(".")[0] for name in members(path)]
            assert names == sorted(names)

    def test_headers_tell_nothing_of_time_and_host(self, workspace) -> None:
        for path in shards(workspace):
            with tarfile.open(path) as tar:
                facts = {(m.mtime, m.uid, m.gid, m.uname, m.gname, m.mode, m.type) for m in tar.getmembers()}
            assert facts == {(0, 0, 0, "", "", 0o644, tarfile.REGTYPE)}

    def test_splits_share_no_video_and_no_individual(self, workspace, table_of) -> None:
        clips, subjects = table_of(workspace, Clip), table_of(workspace, Subject).values()
        splits = {row["key"]: row["split"] for row in read_index(workspace.path("shards"))}
        assert set(splits.values()) == {"train", "val"}
        videos = {
            split: {clips[key]["video_id"] for key in splits if splits[key] == split} for split in ("train", "val")
        }
        assert not videos["train"] & videos["val"]
        # The red cat is one individual in three videos.
        crowd = [row for row in table_of(workspace, Reference).values() if row["kind"] == "cross_clip"]
        assert crowd
        clip_of = {row["subject_id"]: row["clip_id"] for row in subjects}
        for row in crowd:
            assert splits[clip_of[row["subject_id"]]] == splits[clip_of[row["source_subject_id"]]]

    def test_the_manifest_names_the_config_and_no_runtime(self, workspace) -> None:
        manifest = read_manifest(workspace.path("shards"))
        assert manifest["config"]["pack"]["shard_samples"] == 2
        assert manifest["config"]["models"]["detector"] == {"backend": "fake", "strength": 1}
        assert "runtime" not in manifest["config"]
        assert set(manifest["fingerprints"]) == {"split", "annotate", "references", "verify", "encode", "pack"}

    def test_nothing_was_packed_yet(self, empty) -> None:
        assert read_manifest(empty.path("shards")) == {}
        assert read_index(empty.path("shards")) == []


@pytest.fixture
def pack(curate):
    """``pack(workspace, config)``: the last step alone; its report."""
    return lambda workspace, config: curate(workspace, config, [], steps=["pack"])["pack"]


class TestChanges:
    def test_shards_that_no_longer_belong_go(self, workspace, configure, pack) -> None:
        before = {path.name for path in shards(workspace)}
        pack(workspace, configure({"pack.shard_samples": 256}))
        assert {path.name for path in shards(workspace)} < before
        assert_sound(workspace)

    def test_strangers_stay(self, workspace, configure, pack) -> None:
        strangers = [Path(workspace.path("shards", name)) for name in ("mine.tar", "train-000000.tar.bak", "notes.txt")]
        for path in strangers:
            path.write_text("mine")
        pack(workspace, configure({"pack.shard_samples": 1}))
        assert all(path.read_text() == "mine" for path in strangers)

    def test_only_shards_that_change_are_written(self, workspace, configure, curate, videos, later_videos) -> None:
        big = configure({"pack.val_share": 0, "pack.shard_samples": 1})
        curate(workspace, big, [], steps=["pack"])
        old = {path.name: path.stat().st_mtime_ns for path in shards(workspace)}
        keys = sorted(row["key"] for row in read_index(workspace.path("shards")))
        curate(workspace, big, [videos, later_videos])
        (new,) = {row["key"] for row in read_index(workspace.path("shards"))} - set(keys)
        place = sum(key < new for key in keys)
        now = {path.name: path.stat().st_mtime_ns for path in shards(workspace)}
        assert len(now) == 5
        assert [name for name in sorted(now) if now[name] == old.get(name)] == sorted(old)[:place]
        assert_sound(workspace)

    def test_a_shard_that_was_deleted_is_written_again(self, workspace, config, pack, shard_files) -> None:
        before = shard_files(workspace)
        shards(workspace)[0].unlink()
        assert pack(workspace, config).items == 1
        assert shard_files(workspace) == before

    def test_a_touched_file_changes_no_shard(self, workspace, config, curate, videos, tmp_path, shard_files) -> None:
        before = {path.name: path.stat().st_mtime_ns for path in shards(workspace)}
        sources = {row.source_id for row in workspace.records(Source)}
        old = {path: path.stat() for path in videos.iterdir()}
        try:
            for path in old:
                os.utime(path, (1, 1))
            assert curate(workspace, config, [videos])["pack"].items == 0
        finally:
            for path, stat in old.items():
                os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
        assert not sources & {row.source_id for row in workspace.records(Source)}
        assert {path.name: path.stat().st_mtime_ns for path in shards(workspace)} == before

    @pytest.mark.parametrize("record", [Clip, Score, Annotation, Subject, Reference, Encoding])
    def test_a_row_made_anew_makes_its_shard_anew(self, workspace, config, record) -> None:
        before = {shard.name: shard.fingerprint for shard in Pack(config, workspace).shards}
        chosen = Pack(config, workspace).shards[0].samples[0]
        key = {Subject: chosen.subjects[0], Reference: chosen.references[0][0]}.get(record, chosen.key)
        rows = workspace.records(record)
        workspace.replace(
            record, [replace(row, fingerprint="new") if getattr(row, record.key) == key else row for row in rows]
        )
        after = {shard.name: shard.fingerprint for shard in Pack(config, workspace).shards}
        assert [name for name in before if before[name] != after[name]] == ["train-000000"]

    def test_no_samples_left(self, workspace, configure, curate) -> None:
        curate(workspace, configure({"select.clip.min_brightness": 255}), [])
        assert shards(workspace) == []
        assert read_index(workspace.path("shards")) == []
        assert read_manifest(workspace.path("shards"))["samples"] == {"train": 0, "val": 0}
        assert_sound(workspace)

    def test_subjects_beyond_the_largest_are_left_out(self, workspace, configure, pack) -> None:
        pack(workspace, configure({"pack.max_subjects": 1}))
        assert [row["subjects"] for row in read_index(workspace.path("shards"))] == [1, 1, 1, 1]
        assert_sound(workspace)


class TestTrouble:
    @pytest.fixture
    def broken(self, monkeypatch):
        """The first shard for training cannot be written, until ``mend`` is called."""
        write = Pack._write

        def fail(self, shard) -> None:
            if shard.name == "train-000000":
                raise CursedError("disk full")
            write(self, shard)

        with monkeypatch.context() as patch:
            patch.setattr(Pack, "_write", fail)
            yield patch.undo

    def test_publishes_nothing_and_loses_nothing(self, workspace, configure, curate, shard_files, broken) -> None:
        before = shard_files(workspace)
        report = curate(workspace, configure({"pack.shard_samples": 1}), [], steps=["pack"])["pack"]
        assert report.failed == 1
        (failure,) = (row for row in workspace.records(Failure) if row.step != "ingest")
        assert (failure.step, failure.uri, failure.error) == ("pack/write", "shard train-000000", "CursedError")
        assert {
            name: digest for name, digest in shard_files(workspace).items() if not name.startswith(".next")
        } == before
        broken()
        again = curate(workspace, configure({"pack.shard_samples": 1}), [], steps=["pack"], retry_failed=True)["pack"]
        assert (again.items, again.failed) == (1, 0), "the others had been written"
        assert [row.step for row in workspace.records(Failure)] == ["ingest"]
        assert_sound(workspace)

    def test_does_not_outlive_the_shard_that_it_befell(
        self, workspace, configure, curate, later_videos, broken
    ) -> None:
        small = configure({"pack.shard_samples": 1, "pack.val_share": 0})
        curate(workspace, small, [], steps=["pack"])
        broken()
        curate(workspace, configure({"pack.shard_samples": 1, "pack.val_share": 0, "pack.crf": 40}), [])
        assert [row.step for row in workspace.records(Failure)] == ["ingest"]
        assert_sound(workspace)


class Killed(BaseException):
    """Stands for a run's sudden end."""


class TestInterruptedPublishing:
    @pytest.fixture
    def die_after(self, monkeypatch, curate):
        """``die_after(workspace, config, steps)``: a run that ends after so many steps of publishing."""

        def run(workspace: Workspace, config, steps: int) -> None:
            done = 0

            def counted(function):
                def step(*arguments, **options):
                    nonlocal done
                    if done == steps:
                        raise Killed
                    done += 1
                    return function(*arguments, **options)

                return step

            publish = Pack._publish

            def guarded(self, *arguments) -> None:
                files, workspaces = type(self.workspace.filesystem), Workspace
                with monkeypatch.context() as patch:
                    patch.setattr(files, "mv", counted(files.mv))
                    patch.setattr(files, "rm", counted(files.rm))
                    patch.setattr(workspaces, "writing", counted(workspaces.writing))
                    publish(self, *arguments)

            with monkeypatch.context() as patch:
                patch.setattr(Pack, "_publish", guarded)
                with pytest.raises(Killed):
                    curate(workspace, config, [], steps=["pack"])

        return run

    @pytest.mark.parametrize("steps", range(8))
    def test_is_finished_by_the_next_run(self, workspace, configure, pack, die_after, steps) -> None:
        # Four shards instead of three, all of other content.
        many = configure({"pack.max_subjects": 1, "pack.shard_samples": 1})
        die_after(workspace, many, steps)
        pack(workspace, many)
        assert_sound(workspace)
        assert len(shards(workspace)) == 4

    @pytest.mark.parametrize("steps", [0, 1, 2, 3, 5])
    def test_leaves_no_lie_behind_when_the_config_goes_back(
        self, workspace, config, configure, pack, die_after, shard_files, steps
    ) -> None:
        """The manifest must not vouch for a shard that has been replaced meanwhile."""
        before = shard_files(workspace)
        die_after(workspace, configure({"pack.max_subjects": 1, "pack.shard_samples": 1}), steps)
        pack(workspace, config)
        assert shard_files(workspace) == before

    @pytest.mark.parametrize("steps", range(5))
    def test_of_fewer_shards(self, workspace, configure, pack, die_after, steps) -> None:
        few = configure({"pack.shard_samples": 256, "pack.val_share": 0})
        die_after(workspace, few, steps)
        pack(workspace, few)
        assert_sound(workspace)
        assert len(shards(workspace)) == 1


clips = st.dictionaries(st.text("abcdef", min_size=1, max_size=3), st.sampled_from("uvwxyz"), max_size=25)


class TestSplit:
    @settings(deadline=None, max_examples=50)
    @given(
        clips,
        st.lists(st.tuples(st.text("abcdef", min_size=1, max_size=3), st.text("abcdef", max_size=3))),
        st.floats(0, 0.9),
    )
    def test_divides_no_video_and_no_pair(self, clips, pairs, share) -> None:
        pairs = [*pairs, *zip(sorted(clips), sorted(clips)[2::3], strict=False)]
        chosen = split_by_identity(clips, pairs, share)
        assert chosen <= clips.keys()
        for one, other in [(a, b) for a in clips for b in clips if clips[a] == clips[b]]:
            assert (one in chosen) == (other in chosen)
        for one, other in pairs:
            assert one not in clips or other not in clips or (one in chosen) == (other in chosen)
        assert not clips or chosen < clips.keys(), "something stays for training"
        assert share > 0 or not chosen

    @settings(deadline=None, max_examples=50)
    @given(clips, st.floats(0, 0.9), st.randoms())
    def test_does_not_depend_on_order(self, clips, share, random) -> None:
        shuffled = list(clips.items())
        random.shuffle(shuffled)
        assert split_by_identity(dict(shuffled), [], share) == split_by_identity(clips, [], share)


def test_hostile_captions_and_names_reach_the_shard(empty, config, videos, tmp_path, curate) -> None:
    folder = tmp_path / "it's [bold]"
    folder.mkdir()
    name = "a.b [red] 'quoted' ü🐼.mp4"
    (folder / name).write_bytes((videos / "a.mp4").read_bytes())
    caption = 'A cat\u2028 says "[/red]" — \u202e ünd 🐼\n\tmore \\ \x1b[31m'
    (folder / name).with_suffix(".txt").write_text(caption)
    curate(empty, config, [folder])
    assert_sound(empty)
    (row,) = read_index(empty.path("shards"))
    (path,) = shards(empty)
    found = members(path)
    assert row["caption"] == found[f"{row['key']}.txt"].decode() == caption
    about = json.loads(found[f"{row['key']}.json"])
    assert about["source"]["uri"] == str(folder / name) == empty.records(Source)[0].uri
    assert about["caption"]["text"] == caption
