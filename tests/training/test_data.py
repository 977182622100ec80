from __future__ import annotations

import gc
import itertools
import multiprocessing
import os
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from conftest import FPS, KINDS, LANDSCAPE, PORTRAIT, Planned, colour_of, frame_of, planned, write_shards
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stages.config import ConfigError, change
from training.batch import PixelBatch
from training.data import Data, DataConfig, open_data
from training.layout import Bucket
from training.shard_index import DataError
from training.shard_reader import SpanReader

BUCKETS = (Bucket(9, 32, 48), Bucket(9, 48, 32))
SAMPLES = {sample.key: sample for sample in planned()}
TRAIN = {key for key, sample in SAMPLES.items() if sample.split == "train"}
CONFIG = DataConfig(buckets=BUCKETS, micro_batch=2, workers=0)


def configured(**changes: Any) -> DataConfig:
    return DataConfig.model_validate({**CONFIG.model_dump(), **changes})


def take(batches: Iterator[PixelBatch], number: int) -> list[PixelBatch]:
    return list(itertools.islice(batches, number))


def assert_equal(one: list[PixelBatch], other: list[PixelBatch]) -> None:
    assert len(one) == len(other)
    for a, b in zip(one, other, strict=True):
        assert (a.keys, a.positions, a.captions, a.skipped) == (b.keys, b.positions, b.captions, b.skipped)
        for name in ("weights", "video", "references"):
            assert torch.equal(getattr(a, name), getattr(b, name))


@pytest.fixture
def data(shards: Path) -> Callable[..., Data[PixelBatch]]:
    """``data(seed=, split=, **changes)``: the session's shards, opened."""
    return lambda seed=0, split="train", **changes: open_data(configured(**changes), str(shards), split, seed=seed)


@pytest.fixture(scope="module")
def undisturbed(shards: Path) -> list[PixelBatch]:
    """The first 24 micro-batches (three epochs) of the stream with seed 0."""
    return take(open_data(CONFIG, str(shards), "train", seed=0).stream(), 24)


class TestOrder:
    @pytest.mark.filterwarnings("ignore:This DataLoader will create")
    @pytest.mark.parametrize("workers", [0, 1, 3])
    @pytest.mark.parametrize("world", [1, 2, 4])
    def test_is_the_same_for_any_number_of_ranks_and_workers(self, data, undisturbed, world: int, workers: int) -> None:
        ranks = [data(workers=workers).stream(rank=rank, world=world, accumulate=4) for rank in range(world)]
        steps = [[take(rank, 4 // world) for rank in ranks] for _ in range(3)]
        # Within a step, the ranks' micro-batches alternate.
        together = [batch for step in steps for turn in zip(*step, strict=True) for batch in turn]
        assert_equal(together, undisturbed[:12])

    @settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(position=st.integers(0, 22))
    def test_resumes_anywhere(self, data, undisturbed, position: int) -> None:
        assert_equal(take(data().stream(position), 2), undisturbed[position : position + 2])

    @pytest.mark.parametrize(("position", "world"), [(4, 4), (6, 4), (3, 2)])
    def test_resumes_on_other_ranks(self, data, undisturbed, position: int, world: int) -> None:
        ranks = [
            take(data().stream(position, rank=rank, world=world, accumulate=4), 4 // world) for rank in range(world)
        ]
        found = sorted((batch for rank in ranks for batch in rank), key=lambda batch: batch.positions)
        assert_equal(found, undisturbed[position : position + 4])

    def test_every_sample_once_per_epoch(self, data, undisturbed) -> None:
        assert data().report.micro_batches == 8
        for epoch in range(3):
            keys = [key for batch in undisturbed[8 * epoch : 8 * epoch + 8] for key in batch.keys]
            assert sorted(keys) == sorted(TRAIN)
        assert [position for batch in undisturbed for position in batch.positions] == list(range(36))

    def test_leaves_the_random_state_of_the_run_alone(self, data) -> None:
        state = torch.get_rng_state(), np.random.get_state()[1].copy()
        take(data(workers=1).stream(), 2)
        assert torch.equal(torch.get_rng_state(), state[0])
        assert np.array_equal(np.random.get_state()[1], state[1])

    def test_steps_that_ranks_cannot_share(self, data) -> None:
        with pytest.raises(DataError, match=r"accumulate=6 .* multiple of 4"):
            data().stream(world=4, accumulate=6)


class TestBatches:
    def test_are_what_the_shards_hold(self, undisturbed) -> None:
        starts = Counter()
        for batch in undisturbed:
            assert batch.weights.tolist() == [1.0] * len(batch.keys)
            assert batch.skipped == ()
            for place, key in enumerate(batch.keys):
                sample = SAMPLES[key]
                height, width = (32, 48) if sample.size == LANDSCAPE else (48, 32)
                assert batch.video[place].shape == (9, height, width, 3)
                frames = [frame_of(image) for image in batch.video[place].numpy()]
                assert frames == list(range(frames[0], frames[0] + 9))
                assert frames[0] >= 3
                assert frames[-1] <= sample.frames - 4
                starts[key, frames[0]] += 1
                assert batch.captions[place] in {sample.caption, ""}
        assert len(starts) > 20, "windows move from epoch to epoch"

    def test_references_are_one_picture_of_each_subject(self, undisturbed) -> None:
        for batch in undisturbed:
            for place, key in enumerate(batch.keys):
                assert len(shown(batch, place)) == len({name.split(".")[0] for name in SAMPLES[key].pictures})
                subjects = [name.split(".")[0] for name in shown(batch, place)]
                assert len(set(subjects)) == len(subjects)

    def test_references_are_letterboxed_on_white(self, data) -> None:
        batch = next(batch for batch in data().stream() if batch.references.shape[1:4] == (3, 32, 48))
        canvas = batch.references[0, 0].numpy()
        # 40 x 30 pixels with a white rim of 4 become 43 x 32: 2 or 3 columns are left on each side.
        assert (canvas[:, :2] == 255).all()
        assert (canvas[:, -2:] == 255).all()
        assert (canvas[8:24, 12:36] < 160).all()

    def test_most_references_are_those_of_the_largest_subjects(self, data) -> None:
        for batch in take(data(max_references=2, micro_batch=1).stream(), 12):
            subjects = {name.split(".")[0] for name in shown(batch, 0)}
            there = {name.split(".")[0] for name in SAMPLES[batch.keys[0]].pictures}
            assert subjects == there & {"0", "1"}

    def test_no_references_wanted(self, data) -> None:
        assert {batch.references.shape[1] for batch in take(data(max_references=0).stream(), 8)} == {0}

    def test_text_dropout(self, data) -> None:
        never, always, half = (
            [caption for batch in take(data(text_dropout=share).stream(), 24) for caption in batch.captions]
            for share in (0, 1, 0.5)
        )
        assert all(never)
        assert not any(always)
        assert 5 < sum(map(bool, half)) < 31

    def test_reference_dropout_drops_all_of_a_micro_batch(self, data, undisturbed) -> None:
        dropped = 0
        for whole, batch in zip(undisturbed, take(data(reference_dropout=0.5).stream(), 24), strict=True):
            assert batch.references.shape[1] in {0, whole.references.shape[1]}
            assert torch.equal(batch.video, whole.video)
            dropped += batch.references.shape[1] < whole.references.shape[1]
        assert 3 < dropped < 20

    def test_seeds_change_everything_drawn(self, data, undisturbed) -> None:
        other = take(data(seed=1).stream(), 24)
        assert [batch.keys for batch in other] != [batch.keys for batch in undisturbed]

    def test_a_slower_rate_shows_every_other_frame(self, data) -> None:
        for batch in take(data(fps=FPS / 2, buckets=[(5, 32, 48)], skip=1).stream(), 4):
            for video in batch.video.numpy():
                frames = [frame_of(image) for image in video]
                assert np.diff(frames).tolist() == [2] * 4
                assert frames[0] % 2 == 0

    def test_augmentation_changes_pictures_alone(self, data, undisturbed) -> None:
        augment = {"flip": 1, "rotate": 1, "scale": 1, "colour": 1}
        changed = 0
        for plain, batch in zip(undisturbed, take(data(augment=augment).stream(), 24), strict=True):
            assert (batch.keys, batch.captions) == (plain.keys, plain.captions)
            assert torch.equal(batch.video, plain.video)
            assert batch.references.shape == plain.references.shape
            changed += not torch.equal(batch.references, plain.references)
            if batch.references.shape[1]:
                assert (batch.references[:, :, 0, 0] == 255).all()
        assert changed == sum(batch.references.shape[1] > 0 for batch in undisturbed)


class TestKinds:
    @pytest.mark.parametrize("kind", KINDS)
    def test_what_has_no_weight_is_never_drawn(self, data, kind: str) -> None:
        for batch in take(data(kinds={kind: 2.5}).stream(), 16):
            for place, key in enumerate(batch.keys):
                names = shown(batch, place)
                assert all(f".{kind}." in name for name in names)
                assert {name.split(".")[0] for name in names} == {
                    name.split(".")[0] for name in SAMPLES[key].pictures if f".{kind}." in name
                }

    def test_pictures_of_somebody_else_are_drawn_only_where_they_are_asked_for(self, tmp_path: Path) -> None:
        pictures = ("0.original.0.png", "0.negative.0.png", "0.negative.1.png")
        keys = [f"k{number}" for number in range(4)]
        folder = write_shards(tmp_path / "shards", [Planned(key=key, pictures=pictures) for key in keys])
        for kinds, expected in ((None, "original"), ({"negative": 1}, "negative")):
            for batch in take(open_data(configured(kinds=kinds), str(folder), "train", seed=0).stream(), 4):
                for place, key in enumerate(batch.keys):
                    (picture,) = batch.references[place].numpy()
                    far = np.abs(colours(key, pictures) - picture[16, 24].astype(int)).sum(axis=1)
                    assert f".{expected}." in pictures[int(far.argmin())]
                    assert far.min() <= 2

    def test_order_of_references(self, data) -> None:
        def subjects(**changes: Any) -> list[list[str]]:
            batches = take(data(**changes).stream(), 24)
            return [[name.split(".")[0] for name in shown(b, place)] for b in batches for place in range(len(b.keys))]

        assert all(names == sorted(names) for names in subjects(shuffle_references=False))
        assert not all(names == sorted(names) for names in subjects())


class TestValidation:
    @pytest.mark.parametrize("world", [1, 2, 4])
    def test_one_pass_with_ranks_in_step(self, data, world: int) -> None:
        ranks = [
            list(data(split="val", micro_batch=1, text_dropout=1).once(rank=rank, world=world)) for rank in range(world)
        ]
        assert {len(rank) for rank in ranks} == {-(-3 // world)}
        batches = [batch for turn in zip(*ranks, strict=True) for batch in turn]
        counted = [batch for batch in batches if batch.weights.any()]
        assert sorted(key for batch in counted for key in batch.keys) == sorted(SAMPLES.keys() - TRAIN)
        assert all(caption for batch in counted for caption in batch.captions)
        assert all(not batch.video.any() for batch in batches if not batch.weights.any())
        for batch in counted:
            sample = SAMPLES[batch.keys[0]]
            assert frame_of(batch.video[0, 0].numpy()) == 3 + (sample.frames - 6 - 9 + 1) // 2

    def test_is_the_same_every_time(self, data) -> None:
        assert_equal(list(data(split="val").once()), list(data(split="val", workers=2, augment={"flip": 1}).once()))

    def test_limit(self, data) -> None:
        data = data(split="val", micro_batch=1)
        assert_equal(list(data.once(limit=2)), list(data.once())[:2])
        assert len(list(data.once(limit=100))) == 3


class TestStorage:
    def test_object_storage_gives_the_same(self, shards: Path, undisturbed) -> None:
        filesystem = fsspec.filesystem("memory")
        filesystem.put(str(shards), "/bucket/shards", recursive=True)
        try:
            for workers in (0, 2):
                data = open_data(configured(workers=workers), "memory://bucket/shards", "train", seed=0)
                assert_equal(take(data.stream(), 8), undisturbed[:8])
        finally:
            filesystem.rm("/bucket", recursive=True)


@pytest.fixture(scope="module")
def victim() -> str:
    """A sample with three subjects."""
    return next(key for key in sorted(TRAIN) if len({name[0] for name in SAMPLES[key].pictures}) == 3)


class TestDamage:
    @pytest.fixture
    def own(self, shards: Path, tmp_path: Path) -> Path:
        return Path(shutil.copytree(shards, tmp_path / "shards"))

    def spans(self, folder: Path, key: str) -> tuple[Path, dict[str, tuple[int, int]]]:
        (row,) = (row for row in pq.read_table(folder / "index.parquet").to_pylist() if row["key"] == key)
        return folder / row["shard"], {m["extension"]: (m["offset"], m["size"]) for m in row["members"]}

    def spoil(self, folder: Path, key: str, extension: str, content: Callable[[bytes], bytes]) -> None:
        path, spans = self.spans(folder, key)
        offset, size = spans[extension]
        data = bytearray(path.read_bytes())
        new = content(bytes(data[offset : offset + size]))
        assert len(new) == size
        data[offset : offset + size] = new
        path.write_bytes(bytes(data))

    @pytest.mark.parametrize("workers", [0, 2])
    @pytest.mark.parametrize(
        ("extension", "content", "reason"),
        [
            ("mp4", lambda data: bytes(len(data)), "video unreadable"),
            ("mp4", lambda data: data[: len(data) // 3] + bytes(len(data) - len(data) // 3), "video unreadable"),
            ("mp4", lambda data: (b"<html>" * len(data))[: len(data)], "video unreadable"),
            ("png", lambda data: bytes(len(data)), "picture unreadable"),
            ("png", lambda data: data[: len(data) // 2] + bytes(len(data) - len(data) // 2), "picture unreadable"),
        ],
    )
    def test_of_a_member_costs_its_sample_alone(
        self, own: Path, undisturbed, victim: str, extension: str, content, reason: str, workers: int
    ) -> None:
        for name in ("mp4",) if extension == "mp4" else SAMPLES[victim].pictures:
            self.spoil(own, victim, name, content)
        found = take(open_data(configured(workers=workers), str(own), "train", seed=0).stream(), 8)
        skipped = [skip for batch in found for skip in batch.skipped]
        assert [(skip.key, skip.reason) for skip in skipped] == [(victim, reason)]
        for batch, whole in zip(found, undisturbed, strict=False):
            assert (batch.keys, batch.positions) == (whole.keys, whole.positions)
            for place, key in enumerate(batch.keys):
                assert batch.weights[place] == (key != victim)
                if key == victim:
                    assert not batch.video[place].any()
                    assert (batch.references[place] == 255).all()
                else:
                    assert torch.equal(batch.video[place], whole.video[place])
                    assert torch.equal(batch.references[place], whole.references[place])

    def test_of_one_frame(self, own: Path, undisturbed, victim: str) -> None:
        """Frames that the decoder would patch up are nothing to learn from."""

        def flip(data: bytes) -> bytes:
            start = data.index(b"mdat") + 4
            torn = bytearray(data)
            torn[start + 700 : start + 760] = bytes(60)
            return bytes(torn)

        self.spoil(own, victim, "mp4", flip)
        found = take(open_data(CONFIG, str(own), "train", seed=0).stream(), 8)
        assert [skip.reason for batch in found for skip in batch.skipped] == ["video unreadable"]

    def test_of_a_shard_that_was_cut_off(self, own: Path) -> None:
        path = own / "train-000001.tar"
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        found = take(open_data(CONFIG, str(own), "train", seed=0).stream(), 8)
        reasons = Counter(skip.reason for batch in found for skip in batch.skipped)
        assert set(reasons) == {"shard too short"}
        assert 1 <= reasons["shard too short"] <= 4

    def test_of_a_shard_that_is_gone(self, own: Path) -> None:
        (own / "train-000002.tar").unlink()
        data = open_data(configured(workers=2), str(own), "train", seed=0)
        assert data.report.missing_shards == ("train-000002.tar",)
        found = take(data.stream(), 8)
        assert Counter(skip.reason for batch in found for skip in batch.skipped) == {"no shard": 4}
        assert sum(float(batch.weights.sum()) for batch in found) == 8

    def test_of_the_index_against_the_video(self, make_shards) -> None:
        folder = make_shards([Planned("short", frames=16), Planned("whole", frames=24, pictures=("0.original.0.png",))])
        rows = pq.read_table(folder / "index.parquet")
        frames = rows.column_names.index("frames")
        pq.write_table(rows.set_column(frames, "frames", [[40, 24]]), folder / "index.parquet")
        found = list(open_data(CONFIG, str(folder), "train", seed=0).once())
        assert [(skip.key, skip.reason) for batch in found for skip in batch.skipped] == [("short", "video too short")]


def edit_index(folder: Path, **columns: list[Any]) -> str:
    table = pq.read_table(folder / "index.parquet")
    for name, values in columns.items():
        place = table.column_names.index(name)
        table = table.set_column(place, table.schema.field(place), [values])
    pq.write_table(table, folder / "index.parquet")
    return str(folder)


class TestNothingHangs:
    def test_storage_that_does_not_answer(self, data, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(SpanReader, "read", lambda *_: time.sleep(60))
        with pytest.raises(RuntimeError, match="timed out"):
            next(data(workers=1, timeout_s=1).stream())

    def test_a_worker_that_is_killed(self, data, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(SpanReader, "read", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
        with pytest.raises(RuntimeError, match=r"exited unexpectedly|killed by signal"):
            next(data(workers=1).stream())

    def test_workers_end_with_their_stream(self, data) -> None:
        stream = data(workers=2).stream()
        next(stream)
        workers = multiprocessing.active_children()
        assert len(workers) >= 2
        del stream
        gc.collect()
        assert not set(multiprocessing.active_children()) & set(workers)


class TestErrors:
    def expect(self, folder: Path | str, match: str, split: str = "train", **changes: Any) -> None:
        with pytest.raises(DataError, match=match):
            open_data(configured(**changes), str(folder), split, seed=0)

    def test_no_folder(self, tmp_path: Path) -> None:
        self.expect(tmp_path / "nowhere", "there is no folder .*nowhere")
        self.expect("memory://nowhere/at/all", "there is no folder memory://nowhere")

    def test_no_index(self, tmp_path: Path) -> None:
        self.expect(tmp_path, "has no index.parquet")

    def test_an_index_that_is_none(self, tmp_path: Path) -> None:
        (tmp_path / "index.parquet").write_bytes(b"PAR1 not really")
        self.expect(tmp_path, "cannot be read")

    def test_an_index_of_something_else(self, tmp_path: Path, shards: Path) -> None:
        pq.write_table(pq.read_table(shards / "index.parquet").drop_columns(["caption"]), tmp_path / "index.parquet")
        self.expect(tmp_path, "no column caption")

    def test_an_empty_split(self, shards: Path) -> None:
        self.expect(shards, "no samples of the split 'test'; its splits: train, val", split="test")

    def test_nothing_fits(self, shards: Path) -> None:
        self.expect(shards, "takes 81 frames and 6 .* longest video has 38", buckets=[(81, 32, 48)])

    def test_no_references(self, make_shards) -> None:
        folder = make_shards([Planned("bare")])
        self.expect(folder, "no sample .* has a reference .*max_references=0")
        assert open_data(configured(max_references=0), str(folder), "train", seed=0).report.samples == 1

    def test_kinds_that_there_are_not(self, shards: Path) -> None:
        self.expect(shards, "kind swapped; .*: cross_clip, inpainted, original", kinds={"swapped": 1, "original": 1})

    def test_missing_captions(self, make_shards) -> None:
        one = Planned("told", pictures=("0.original.0.png",))
        folder = make_shards([one, replace(one, key="untold", caption=" \n")])
        self.expect(folder, "1 samples .* no caption, such as untold")
        data = open_data(configured(without_caption="leave_out"), str(folder), "train", seed=0)
        assert (data.report.samples, data.report.left_out) == (1, {"no caption": 1})

    def test_no_caption_at_all(self, make_shards) -> None:
        folder = make_shards([Planned("untold", pictures=("0.original.0.png",), caption="")])
        self.expect(folder, "no caption", without_caption="leave_out")

    def test_all_shards_gone(self, tmp_path: Path, shards: Path) -> None:
        shutil.copy(shards / "index.parquet", tmp_path)
        self.expect(tmp_path, "none of the 3 shards")

    @pytest.mark.parametrize(
        "override",
        [
            "buckets=[]",
            "buckets=[[0,32,48]]",
            "buckets=[[9,32]]",
            "kinds={}",
            "kinds={original: -1}",
            "text_dropout=2",
            "micro_batch=0",
        ],
    )
    def test_configs_that_make_no_sense(self, override: str) -> None:
        with pytest.raises(ConfigError, match=override.split("=")[0]):
            change(CONFIG, [override])


class TestReport:
    def test_tells_what_there_is(self, make_shards) -> None:
        folder = make_shards(
            [
                Planned("a", pictures=("0.original.0.png",)),
                Planned("b", size=PORTRAIT, pictures=("0.original.0.png", "1.original.0.png")),
                Planned("c", frames=12),
                Planned("d"),
            ]
        )
        report = open_data(CONFIG, str(folder), "train", seed=0).report
        assert (report.samples, report.micro_batches) == (3, 3)
        assert report.left_out == {"too short for every bucket": 1}
        assert report.shapes == {(BUCKETS[0], 1): 1, (BUCKETS[1], 2): 1, (BUCKETS[0], 0): 1}
        assert report.missing_shards == ()


@cache
def colours(key: str, pictures: tuple[str, ...]) -> np.ndarray:
    return np.array([colour_of(key, name) for name in pictures])


def shown(batch: PixelBatch, place: int) -> list[str]:
    """Extensions of the pictures that a sample's references show, by the colour in their middle."""
    sample = SAMPLES[batch.keys[place]]
    names = []
    for reference in batch.references[place].numpy():
        middle = reference[reference.shape[0] // 2, reference.shape[1] // 2].astype(int)
        far = np.abs(colours(sample.key, sample.pictures) - middle).sum(axis=1)
        assert far.min() <= 2
        names.append(sample.pictures[int(far.argmin())])
    return names
