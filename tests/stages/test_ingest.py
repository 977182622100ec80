from __future__ import annotations

import csv
import hashlib
import io
import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import fsspec
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from stages.ingest import VIDEO_EXTENSIONS, IngestStage, InputError, InputVideo, list_inputs
from stages.media import UnreadableVideo
from stages.records import Source

CLIPS = Path(__file__).parents[2].parent / "shared" / "clips"
needs_clips = pytest.mark.skipif(not CLIPS.is_dir(), reason="the real clips (../shared/clips) are not on this machine")
NOTES = {"caption": "A dog.", "licence": "CC0", "source": "camera"}


@pytest.fixture(scope="module")
def video() -> bytes:
    """A video of twelve frames."""
    data = io.BytesIO()
    with av.open(data, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=24)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for level in range(12):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.full((48, 64, 3), 20 * level, np.uint8))))
        container.mux(stream.encode(None))
    return data.getvalue()


@pytest.fixture
def memory() -> Iterator[fsspec.AbstractFileSystem]:
    filesystem = fsspec.filesystem("memory")
    yield filesystem
    filesystem.store.clear()
    filesystem.pseudo_dirs[:] = [""]


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"video")


def names(found: list[InputVideo], folder: Path) -> list[str]:
    return [os.path.relpath(video.uri, folder) for video in found]


def write_manifest(path: Path, rows: list[dict[str, Any]]) -> str:
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif path.suffix == ".csv":
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, sorted({key for row in rows for key in row}))
            writer.writeheader()
            writer.writerows(rows)
    else:
        parquet.write_table(pa.Table.from_pylist(rows), path)
    return str(path)


class TestFindingFiles:
    def test_folder_is_searched_to_the_bottom(self, tmp_path: Path) -> None:
        touch(tmp_path, "b.mp4", "a/c.MKV", "a/d/e.webm", "f.txt", "g.jpg", ".hidden.mp4", ".trash/h.mp4", "._b.mp4")
        assert names(list_inputs([str(tmp_path)]), tmp_path) == ["a/c.MKV", "a/d/e.webm", "b.mp4"]

    def test_every_extension_on_the_list(self, tmp_path: Path) -> None:
        touch(tmp_path, *(f"video{extension}" for extension in VIDEO_EXTENSIONS))
        assert len(list_inputs([str(tmp_path)])) == len(VIDEO_EXTENSIONS)

    def test_a_named_file_may_be_called_anything(self, tmp_path: Path) -> None:
        touch(tmp_path, "video", ".mp4", "what.bin")
        inputs = [str(tmp_path / name) for name in ("video", ".mp4", "what.bin")]
        assert len(list_inputs(inputs)) == 3

    def test_globs(self, tmp_path: Path) -> None:
        touch(tmp_path, "a1.mp4", "a2.mp4", "b.mp4", "deep/er/a3.mp4", "a4.txt", "[a].mp4")
        (tmp_path / "index.csv").write_text("no,manifest\n")
        assert names(list_inputs([str(tmp_path / "a*")]), tmp_path) == ["a1.mp4", "a2.mp4"]
        assert names(list_inputs([str(tmp_path / "**/a*.mp4")]), tmp_path) == ["a1.mp4", "a2.mp4", "deep/er/a3.mp4"]
        assert names(list_inputs([str(tmp_path / "d*")]), tmp_path) == ["deep/er/a3.mp4"]
        assert names(list_inputs([str(tmp_path / "[a].mp4")]), tmp_path) == ["[a].mp4"]

    def test_relative_paths_become_absolute(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        touch(tmp_path, "a/b.mp4")
        monkeypatch.chdir(tmp_path)
        for name in ("a", "a/b.mp4", "./a/../a/b.mp4", "a/*.mp4"):
            assert [video.uri for video in list_inputs([name])] == [str(tmp_path / "a/b.mp4")]

    def test_each_once_and_sorted(self, tmp_path: Path) -> None:
        touch(tmp_path, "c.mp4", "a.mp4", "b.mp4")
        inputs = [str(tmp_path / "c.mp4"), str(tmp_path), (tmp_path / "a.mp4").as_uri(), str(tmp_path / "*.mp4")]
        assert names(list_inputs(inputs), tmp_path) == ["a.mp4", "b.mp4", "c.mp4"]
        assert list_inputs(inputs) == list_inputs(inputs[::-1])

    def test_links_are_followed_and_loops_do_not_hang(self, tmp_path: Path) -> None:
        touch(tmp_path, "inside/a.mp4", "elsewhere/b.mp4")
        inside = tmp_path / "inside"
        (inside / "loop").symlink_to(inside, target_is_directory=True)
        (inside / "up").symlink_to(tmp_path, target_is_directory=True)
        (inside / "self.mp4").symlink_to(inside / "self.mp4")
        (inside / "broken.mp4").symlink_to(inside / "nothing.mp4")
        (inside / "linked.mp4").symlink_to(tmp_path / "elsewhere/b.mp4")
        assert names(list_inputs([str(inside)]), inside) == ["a.mp4", "linked.mp4", "up/elsewhere/b.mp4"]

    @pytest.mark.parametrize(
        "name", ["a\nb.mp4", "ü 'x' \"y\".mp4", "-x.mp4", "a::b.mp4", "%41.mp4", "a?b.mp4", "x:y.mp4"]
    )
    def test_strange_names(self, tmp_path: Path, name: str, video: bytes) -> None:
        (tmp_path / name).write_bytes(video)
        (tmp_path / name).with_suffix(".txt").write_text("A dog.")
        for found in (list_inputs([str(tmp_path)]), list_inputs([str(tmp_path / name)])):
            assert [(entry.uri, entry.caption) for entry in found] == [(str(tmp_path / name), "A dog.")]
        assert IngestStage("f").run(found[0]).frames == 12

    def test_a_name_that_is_no_text_becomes_a_uri(self, tmp_path: Path, video: bytes) -> None:
        path = tmp_path / os.fsdecode(b"caf\xe9.mp4")
        path.write_bytes(video)
        path.with_suffix(".txt").write_text("A dog.")
        (found,) = list_inputs([str(tmp_path)])
        assert found.uri == f"{tmp_path.as_uri()}/caf%E9.mp4"
        source = IngestStage("f").run(found)
        assert source.caption == "A dog."
        assert Source.to_table([source]).num_rows == 1
        assert list_inputs([found.uri]) == [found]

    @pytest.mark.parametrize("name", ["missing.mp4", "missing", "*.mp4", "empty", "missing.jsonl", "pipe.mp4"])
    def test_nothing_there(self, tmp_path: Path, name: str) -> None:
        (tmp_path / "empty").mkdir()
        os.mkfifo(tmp_path / "pipe.mp4")
        with pytest.raises(InputError, match=r"does not exist|no videos in|neither a file"):
            list_inputs([str(tmp_path / name)])

    def test_no_inputs(self) -> None:
        assert list_inputs([]) == []


class TestSidecars:
    def test_text_and_json(self, tmp_path: Path) -> None:
        touch(tmp_path, "a.mp4", "b.mp4", "c.mp4", "d.mp4")
        (tmp_path / "a.txt").write_text(" A cat.\n", encoding="utf-8-sig")
        (tmp_path / "b.json").write_text(json.dumps({**NOTES, "other": [1, 2]}))
        (tmp_path / "c.json").write_text(json.dumps({"license": "MIT", "caption": ""}))
        (tmp_path / "c.txt").write_text("A cow.")
        a, b, c, d = list_inputs([str(tmp_path)])
        assert (a.caption, a.caption_source, a.licence, a.origin) == ("A cat.", "sidecar", None, None)
        assert (b.caption, b.caption_source, b.licence, b.origin) == ("A dog.", "sidecar", "CC0", "camera")
        assert (c.caption, c.caption_source, c.licence) == ("A cow.", "sidecar", "MIT")
        assert (d.caption, d.caption_source) == (None, None)

    @pytest.mark.parametrize(
        "text",
        [b"{", b"[1]", b"\xff\xfe\x00", b"[" * 60000, b'{"caption": 5}', b'{"caption": null}', b'"x"', b"", b"NaN"],
    )
    def test_some_other_json_is_no_sidecar(self, tmp_path: Path, text: bytes) -> None:
        touch(tmp_path, "a.mp4")
        (tmp_path / "a.json").write_bytes(text)
        (found,) = list_inputs([str(tmp_path / "a.mp4")])
        assert found.caption is None

    def test_strange_text(self, tmp_path: Path) -> None:
        touch(tmp_path, "big.mp4", "latin.mp4", "surrogate.mp4", "pipe.mp4", "folder.mp4")
        (tmp_path / "big.txt").write_bytes(b"x" * 10_000_000)
        (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
        (tmp_path / "surrogate.json").write_text('{"caption": "a\\ud800b"}')
        os.mkfifo(tmp_path / "pipe.txt")
        (tmp_path / "folder.txt").mkdir()
        captions = {Path(video.uri).stem: video.caption for video in list_inputs([str(tmp_path)])}
        assert captions["big"] == "x" * 65536
        assert captions["latin"] == "caf\ufffd"
        assert captions["surrogate"] == "a?b"
        assert captions["pipe"] is captions["folder"] is None


class TestManifests:
    @pytest.fixture(params=["list.jsonl", "list.csv", "list.parquet"])
    def manifest(self, request: pytest.FixtureRequest, tmp_path: Path) -> Path:
        return tmp_path / "lists" / str(request.param)

    @pytest.fixture(autouse=True)
    def folder(self, tmp_path: Path) -> Path:
        (tmp_path / "lists").mkdir()
        return tmp_path / "lists"

    def test_rows(self, manifest: Path, tmp_path: Path) -> None:
        touch(tmp_path, "lists/a.mp4", "other/b.mp4", "c.mp4")
        rows: list[dict[str, Any]] = [
            {"uri": "a.mp4", **NOTES},
            {"uri": "../other/b.mp4", "caption": "", "licence": None, "source": None, "extra": 1},
            {"uri": str(tmp_path / "c.mp4"), "caption": "A café\nat night, “so”", "licence": " "},
        ]
        c, a, b = list_inputs([write_manifest(manifest, rows)])
        assert names([a, b, c], tmp_path) == ["lists/a.mp4", "other/b.mp4", "c.mp4"]
        assert (a.caption, a.caption_source, a.licence, a.origin) == ("A dog.", "manifest", "CC0", "camera")
        assert (b.caption, b.caption_source, b.licence, b.origin) == (None, None, None, None)
        assert (c.caption, c.licence) == ("A café\nat night, “so”", None)

    def test_wins_over_sidecars_field_by_field(self, manifest: Path, folder: Path) -> None:
        touch(folder, "a.mp4")
        (folder / "a.json").write_text(json.dumps(NOTES))
        (found,) = list_inputs([write_manifest(manifest, [{"uri": "a.mp4", "caption": "A cat."}])])
        assert (found.caption, found.caption_source, found.licence) == ("A cat.", "manifest", "CC0")

    def test_wins_over_folders_and_over_later_rows(self, manifest: Path, folder: Path) -> None:
        touch(folder, "a.mp4", "b.mp4")
        written = write_manifest(
            manifest, [{"uri": "a.mp4", "caption": "first"}, {"uri": "./a.mp4", "caption": "last"}]
        )
        for inputs in ([written, str(folder)], [str(folder), written]):
            assert [video.caption for video in list_inputs(inputs)] == ["first", None]

    def test_a_missing_file_fails_only_when_it_is_ingested(self, manifest: Path, folder: Path, video: bytes) -> None:
        (folder / "a.mp4").write_bytes(video)
        os.mkfifo(folder / "pipe.mp4")
        rows = [
            {"uri": name, **NOTES} for name in ("a.mp4", "gone.mp4", "pipe.mp4", "file:///no/such.mp4", "/dev/zero")
        ]
        found = {Path(entry.uri).name: entry for entry in list_inputs([write_manifest(manifest, rows)])}
        assert found["a.mp4"].size == len(video)
        for name in ("gone.mp4", "pipe.mp4", "such.mp4", "zero"):
            assert found[name].size == -1
            with pytest.raises(FileNotFoundError, match=f"not there: .*{name}"):
                IngestStage("f").run(found[name])

    def test_without_the_column(self, manifest: Path) -> None:
        with pytest.raises(InputError, match=rf"{manifest.name}.*no .*uri"):
            list_inputs([write_manifest(manifest, [{"path": "a.mp4"}])])

    def test_without_a_uri_in_a_row(self, manifest: Path, folder: Path) -> None:
        touch(folder, "a.mp4")
        written = write_manifest(manifest, [{"uri": "a.mp4", "caption": "x"}, {"uri": "", "caption": "x"}])
        with pytest.raises(InputError, match=r"row [23]: no uri"):
            list_inputs([written])

    @pytest.mark.parametrize(
        "line", [b"{", b"5", b'"a.mp4"', b"\xff", b'{"caption": "x"}', b'{"uri": 5}', b"[" * 99999], ids=repr
    )
    def test_bad_lines_are_named(self, folder: Path, line: bytes) -> None:
        touch(folder, "a.mp4")
        (folder / "list.jsonl").write_bytes(b'{"uri": "a.mp4"}\n\n' + line + b"\n")
        with pytest.raises(InputError, match=r"list\.jsonl, row 3: "):
            list_inputs([str(folder / "list.jsonl")])

    @pytest.mark.parametrize(
        ("name", "content", "message"),
        [
            ("list.parquet", b"PAR1", "list.parquet"),
            ("list.parquet", b"", "list.parquet"),
            ("list.csv", b"", "no column uri among none"),
            ("list.csv", b"uri\n\xff\xfe\n", "utf-8"),
            ("list.csv", b'uri\n"' + b"x" * 200_000 + b'"\n', "field larger"),
            ("list.csv", b"uri,caption\n", "no videos in"),
            ("list.jsonl", b"\n\n", "no videos in"),
        ],
    )
    def test_unreadable_ones(self, folder: Path, name: str, content: bytes, message: str) -> None:
        (folder / name).write_bytes(content)
        with pytest.raises(InputError, match=message):
            list_inputs([str(folder / name)])

    def test_with_a_byte_order_mark_and_a_null_byte(self, folder: Path) -> None:
        touch(folder, "a.mp4")
        (folder / "list.csv").write_text("uri,caption\r\na.mp4,A dog.\r\n", encoding="utf-8-sig")
        (folder / "list.jsonl").write_text('{"uri": "a.mp4"}\n{"uri": "a\\u0000.mp4"}\n', encoding="utf-8-sig")
        assert list_inputs([str(folder / "list.csv")])[0].caption == "A dog."
        assert sorted(video.size for video in list_inputs([str(folder / "list.jsonl")])) == [-1, 5]

    def test_several_by_glob(self, folder: Path) -> None:
        touch(folder, "a.mp4", "b.mp4", "c.mp4")
        for name in ("a", "b"):
            write_manifest(folder / f"list-{name}.jsonl", [{"uri": f"{name}.mp4", "caption": name}])
        assert [video.caption for video in list_inputs([str(folder / "list-*.jsonl")])] == ["a", "b"]


class TestRemote:
    def test_files_folders_and_globs(self, memory: fsspec.AbstractFileSystem) -> None:
        for name in ("a.mp4", "deep/b.mkv", "deep/.hidden.mp4", "c.txt", "[x].mp4"):
            memory.pipe(f"/videos/{name}", b"video")
        everything = ["memory://videos/[x].mp4", "memory://videos/a.mp4", "memory://videos/deep/b.mkv"]
        assert [video.uri.replace(":///", "://") for video in list_inputs(["memory://videos"])] == everything
        for uri in ("memory://videos/a.mp4", "memory://videos/a*", "memory://videos/*a.mp4"):
            (found,) = list_inputs([uri])
            assert found.uri.replace(":///", "://") == "memory://videos/a.mp4"
            assert (found.size, found.version != "") == (5, True)

    def test_sidecars_and_manifests(self, memory: fsspec.AbstractFileSystem, tmp_path: Path) -> None:
        memory.pipe(
            {"/v/a.mp4": b"video", "/v/b.mp4": b"video", "/v/a.txt": b"A dog.", "/v/b.json": b'{"licence": "MIT"}'}
        )
        rows = '{"uri": "../v/a.mp4"}\n{"uri": "b.mp4", "caption": "A cat."}\n{"uri": "gone/c.mp4"}\n{"uri": "d.mp4"}\n'
        memory.pipe("/v/list.jsonl", rows.replace("../v/", "").encode())
        a, b, d, c = list_inputs(["memory://v/list.jsonl"])
        assert (a.caption, a.caption_source, a.size) == ("A dog.", "sidecar", 5)
        assert (b.caption, b.licence, b.size) == ("A cat.", "MIT", 5)
        assert (c.size, d.size) == (-1, -1)
        local = write_manifest(tmp_path / "list.csv", [{"uri": "memory://v/a.mp4"}])
        assert list_inputs([local]) == [a]

    def test_ingest(self, memory: fsspec.AbstractFileSystem, video: bytes) -> None:
        memory.pipe("/v/a.mp4", video)
        source = IngestStage("f").run(list_inputs(["memory://v/"])[0])
        assert (source.frames, source.bytes) == (12, len(video))
        assert source.video_id == hashlib.sha256(video).hexdigest()[:16]

    def test_inside_an_archive(self, tmp_path: Path, video: bytes) -> None:
        archive = fsspec.filesystem("zip", fo=str(tmp_path / "videos.zip"), mode="w")
        for name, data in {"in/a.mp4": video, "in/a.txt": b"A dog."}.items():
            archive.pipe(name, data)
        archive.close()
        (found,) = list_inputs([f"zip://in::{(tmp_path / 'videos.zip').as_uri()}"])
        assert found.caption == "A dog."
        assert IngestStage("f").run(found).frames == 12

    @pytest.mark.parametrize(
        "uri", ["memory://none", "memory://none.mp4", "memory://n*", "memory://n.csv", "no-such://x"]
    )
    def test_nothing_there(self, memory: fsspec.AbstractFileSystem, uri: str) -> None:
        with pytest.raises(InputError, match=r"does not exist|no videos in|Protocol not known"):
            list_inputs([uri])


class TestIdentity:
    @given(st.text(), st.integers(-1), st.text(), st.none() | st.text(), st.none() | st.text(), st.none() | st.text())
    def test_depends_on_each_fact_and_on_nothing_else(
        self, uri: str, size: int, version: str, caption: str | None, licence: str | None, origin: str | None
    ) -> None:
        video = InputVideo(uri, size, version, caption, "manifest", licence, origin)
        assert len(video.source_id) == 16
        assert int(video.source_id, 16) >= 0
        assert replace(video, caption_source=None).source_id == video.source_id
        others = [
            replace(video, uri=uri + "x"),
            replace(video, size=size + 1),
            replace(video, version=version + "x"),
            replace(video, caption=(caption or "") + "x"),
            replace(video, licence=(licence or "") + "x"),
            replace(video, origin=(origin or "") + "x"),
            replace(video, caption=None if caption == "" else ""),
        ]
        assert len({other.source_id for other in [video, *others]}) == len(others) + 1

    def test_changes_when_the_file_is_replaced(self, tmp_path: Path) -> None:
        touch(tmp_path, "a.mp4")
        (before,) = list_inputs([str(tmp_path)])
        os.utime(tmp_path / "a.mp4", ns=(1, 1))
        (after,) = list_inputs([str(tmp_path)])
        assert before.source_id != after.source_id
        assert after.version == "1"


class TestIngest:
    def test_one_video_under_two_names(self, tmp_path: Path, video: bytes) -> None:
        (tmp_path / "a.mp4").write_bytes(video)
        (tmp_path / "b.mp4").write_bytes(video)
        a, b = (IngestStage("print").run(entry) for entry in list_inputs([str(tmp_path)]))
        assert a.video_id == b.video_id == hashlib.sha256(video).hexdigest()[:16]
        assert a.source_id != b.source_id
        assert a.fingerprint == "print"

    def test_fits_the_table(self, tmp_path: Path, video: bytes) -> None:
        (tmp_path / "a.mp4").write_bytes(video)
        (tmp_path / "a.json").write_text(json.dumps(NOTES))
        source = IngestStage("f").run(list_inputs([str(tmp_path)])[0])
        assert Source.from_row(Source.to_table([source]).to_pylist()[0]) == source
        assert (source.width, source.height, source.frames) == (64, 48, 12)
        assert source.fps == pytest.approx(24)
        assert (source.caption, source.caption_source, source.licence, source.origin) == (
            "A dog.",
            "sidecar",
            "CC0",
            "camera",
        )

    def test_what_is_no_video(self, tmp_path: Path) -> None:
        touch(tmp_path, "a.mp4")
        with pytest.raises(UnreadableVideo):
            IngestStage("f").run(list_inputs([str(tmp_path)])[0])

    @needs_clips
    def test_real_clips(self) -> None:
        found = list_inputs([str(CLIPS)])
        sources, failed = [], []
        for entry in found:
            try:
                sources.append(IngestStage("f").run(entry))
            except UnreadableVideo as error:
                failed.append((Path(entry.uri).name, str(error)))
        assert [name for name, _ in failed] == ["bad_empty.mp4", "bad_truncated_moov_missing.mp4"]
        assert len({source.video_id for source in sources}) == len(sources) == len(found) - 2
        captions = {Path(source.uri).name: source.caption for source in sources}
        for row in csv.DictReader((CLIPS / "index.csv").open(newline="")):
            if row["caption"] and row["file"] in captions and not row["file"].startswith("bad_"):
                assert captions[row["file"]] == row["caption"]
