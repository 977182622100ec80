from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from pathlib import Path

import pytest
from fake_hub import FakeHub
from filelock import FileLock
from hypothesis import given
from hypothesis import strategies as st

from models.errors import UserError
from models.registry import RECORD, BackendConfig, Repository, fingerprint
from models.weights import catalogue
from models.weights import hub as hub_module
from models.weights.hub import HubError, Locked, fetch, locked_as, merged, read_lock, write_lock
from models.weights.stored import State, provenance, read_records, standing

NAME = "someone/network"
FILES = {
    "config.json": b'{"layers": 2}',
    "model.safetensors": bytes(range(256)) * 400,
    "part/weights.safetensors": b"second part" * 99,
    "README.md": b"# A network",
    "pytorch_model.bin": b"a pickle",
}
WANTED = ("*.json", "*.safetensors")
READ = ["config.json", "model.safetensors", "part/weights.safetensors"]
REPOSITORY = Repository(NAME, WANTED)


class Config(BackendConfig):
    """A backend that reads the repository."""

    backend: str = "network"
    revision: str | None = None

    def weights(self, root: Path) -> list[Path]:
        return [root / NAME]

    def repositories(self) -> list[Repository]:
        return [Repository(NAME, WANTED, self.revision)]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "weights"


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub's client waits a second before it tries again."""
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda seconds: None)


def tree(folder: Path) -> dict[str, bytes]:
    """What a backend may read: nothing of what is under way."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and hub_module.FETCHING not in path.parts
    }


def left_over(root: Path) -> list[str]:
    return sorted(path.name for path in (root / hub_module.FETCHING).rglob("*") if path.suffix != ".lock")


def test_what_the_patterns_name_lies_where_backends_look(hub: FakeHub, root: Path) -> None:
    commit = hub.put(NAME, FILES, card={"license": "mit"})

    done = fetch(REPOSITORY, root, endpoint=hub.endpoint)

    there = tree(root / NAME)
    record = json.loads(there.pop(RECORD))
    assert there == {path: FILES[path] for path in READ}
    assert done.downloaded == tuple(READ)
    assert record[NAME] == {
        "commit": commit,
        "licence": "mit",
        "patterns": list(WANTED),
        "files": {path: {"size": len(FILES[path]), "sha256": hashlib.sha256(FILES[path]).hexdigest()} for path in READ},
    }
    assert left_over(root) == []


def test_a_repository_may_lie_elsewhere_than_under_its_name(hub: FakeHub, root: Path) -> None:
    hub.put(NAME, FILES)
    fetch(Repository(NAME, ("config.json",), folder="elsewhere/of it"), root, endpoint=hub.endpoint)
    assert sorted(tree(root)) == ["elsewhere/of it/config.json", f"elsewhere/of it/{RECORD}"]


@pytest.mark.parametrize("folder", ["../evil", "/evil", "a/../../evil"])
def test_a_folder_outside_of_the_weights_is_refused(hub: FakeHub, root: Path, folder: str) -> None:
    hub.put(NAME, FILES)
    with pytest.raises(HubError, match="no folder under"):
        fetch(Repository(NAME, WANTED, folder=folder), root, endpoint=hub.endpoint)
    assert hub.requests == []


def test_a_second_fetch_does_not_ask_the_hub_at_all(hub: FakeHub, root: Path) -> None:
    hub.put(NAME, FILES)
    first = fetch(REPOSITORY, root, endpoint=hub.endpoint)
    hub.put(NAME, {**FILES, "config.json": b"newer"})
    hub.requests.clear()

    again = fetch(REPOSITORY, root, endpoint=hub.endpoint)

    assert hub.requests == []
    assert (again.record, again.downloaded) == (first.record, ())


def test_other_files_of_the_same_repository_join_the_record(hub: FakeHub, root: Path) -> None:
    hub.put(NAME, FILES)
    fetch(Repository(NAME, ("*.json",)), root, endpoint=hub.endpoint)
    done = fetch(Repository(NAME, ("*.bin",)), root, endpoint=hub.endpoint)

    assert done.downloaded == ("pytorch_model.bin",)
    assert sorted(done.record.files) == ["config.json", "pytorch_model.bin"]
    hub.requests.clear()
    assert fetch(Repository(NAME, ("*.json", "*.bin")), root, endpoint=hub.endpoint).downloaded == ()
    assert hub.requests == []


def test_repositories_in_one_folder_have_a_record_each(hub: FakeHub, root: Path) -> None:
    hub.put(NAME, {"a.json": b"1"})
    hub.put("someone/other", {"b.json": b"2"})
    for name in (NAME, "someone/other"):
        fetch(Repository(name, ("*.json",), folder="both"), root, endpoint=hub.endpoint)
    records = read_records(root / "both")
    assert {name: list(record.files) for name, record in records.items()} == {
        NAME: ["a.json"],
        "someone/other": ["b.json"],
    }


def test_a_file_of_the_record_s_name_is_not_fetched(hub: FakeHub, root: Path) -> None:
    hub.put(NAME, {"a.json": b"1", RECORD: b"{}"})
    assert list(fetch(Repository(NAME, ("*.json",)), root, endpoint=hub.endpoint).record.files) == ["a.json"]


@pytest.mark.usefixtures("impatient")
def test_a_connection_that_breaks_goes_on_from_where_it_broke(hub: FakeHub, root: Path, monkeypatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1024)
    hub.put(NAME, FILES)
    hub.drops["model.safetensors"] = 1
    fetch(REPOSITORY, root, endpoint=hub.endpoint)
    assert hub.ranges() == [f"bytes={len(FILES['model.safetensors']) // 2}-"]
    assert tree(root / NAME)["model.safetensors"] == FILES["model.safetensors"]


@pytest.mark.usefixtures("impatient")
def test_an_interrupted_fetch_goes_on_with_the_files_that_it_lacks(hub: FakeHub, root: Path) -> None:
    hub.put(NAME, FILES)
    hub.mute.add("part/weights.safetensors")
    with pytest.raises(HubError, match="cannot be reached"):
        fetch(REPOSITORY, root, endpoint=hub.endpoint)
    assert tree(root) == {}, "nothing is where a backend looks before all is there"

    hub.mute.clear()
    hub.requests.clear()
    done = fetch(REPOSITORY, root, endpoint=hub.endpoint)

    assert hub.gets() == ["part/weights.safetensors"]
    assert {path: tree(root / NAME)[path] for path in READ} == {path: FILES[path] for path in READ}
    assert sorted(done.record.files) == READ
    assert left_over(root) == []


def test_a_killed_fetch_leaves_nothing_half_in_place(hub: FakeHub, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a part of a file nor one of other bytes is taken for what the hub has."""
    hub.put(NAME, FILES)
    staging = root / ".fetching" / "someone--network"
    (staging / ".cache/huggingface/download").mkdir(parents=True)
    (staging / ".cache/huggingface/download/x.1234.incomplete").write_bytes(b"half")
    (staging / "config.json").write_bytes(b"x" * len(FILES["config.json"]))
    (staging / "model.safetensors").write_bytes(FILES["model.safetensors"])

    fetch(REPOSITORY, root, endpoint=hub.endpoint)

    assert "model.safetensors" not in hub.gets()
    assert tree(root / NAME)["config.json"] == FILES["config.json"]
    assert left_over(root) == []


@pytest.mark.parametrize("path", ["config.json", "model.safetensors"])
def test_bytes_that_are_not_those_the_hub_lists_are_removed_and_told(hub: FakeHub, root: Path, path: str) -> None:
    """A file in git is told by its blob's SHA-1, one in large file storage by its SHA-256."""
    hub.put(NAME, FILES)
    hub.corrupt.add(path)
    with pytest.raises(HubError, match=rf"checksum of {path} .*Fetch again"):
        fetch(REPOSITORY, root, endpoint=hub.endpoint)
    assert tree(root) == {}
    assert path not in left_over(root)

    hub.corrupt.clear()
    hub.requests.clear()
    fetch(REPOSITORY, root, endpoint=hub.endpoint)
    assert hub.gets() == [path]
    assert tree(root / NAME)[path] == FILES[path]


@pytest.mark.parametrize("name", ["../evil.json", "/evil.json", "a/../../evil.json", "..\\evil.json", "C:evil.json"])
def test_a_listing_that_leads_out_of_its_folder_is_refused(hub: FakeHub, root: Path, name: str) -> None:
    hub.put(NAME, {**FILES, name: b"evil"})
    with pytest.raises(HubError, match="lies outside its folder: nothing was fetched"):
        fetch(REPOSITORY, root, endpoint=hub.endpoint)
    assert hub.gets() == []
    assert tree(root.parent) == {}


@given(st.text(alphabet=["a", ".", "/", "\\", ":", "\0"], max_size=8))
def test_no_name_that_passes_leads_out(name: str) -> None:
    if hub_module._is_inside(name):
        joined = os.path.normpath(os.path.join("/weights/folder", name))  # noqa: PTH118 - what the system would make of it
        assert joined.startswith("/weights/folder/")


class TestRevisions:
    @pytest.fixture
    def commits(self, hub: FakeHub) -> list[str]:
        return [hub.put(NAME, {"config.json": b"%d" % number}) for number in range(3)]

    def fetched(self, hub: FakeHub, root: Path, revision: str | None = None, locked: Locked | None = None) -> bytes:
        fetch(Repository(NAME, ("*.json",), revision), root, locked=locked, endpoint=hub.endpoint)
        return (root / NAME / "config.json").read_bytes()

    def pin(self, monkeypatch: pytest.MonkeyPatch, commit: str) -> None:
        entry = catalogue.Entry(licence="MIT", commercial=True, revision=commit)
        monkeypatch.setattr(hub_module, "repository_entry", {NAME: entry}.get)

    def test_without_any_it_is_main(self, hub: FakeHub, root: Path, commits: list[str]) -> None:
        assert self.fetched(hub, root) == b"2"

    def test_that_of_an_earlier_fetch_stays(self, hub: FakeHub, root: Path, commits: list[str]) -> None:
        self.fetched(hub, root, commits[1])
        (root / NAME / "config.json").unlink()
        assert self.fetched(hub, root) == b"1"

    def test_that_of_the_catalogue_goes_before_the_earlier_fetch(
        self, hub: FakeHub, root, commits, monkeypatch
    ) -> None:
        self.fetched(hub, root, commits[1])
        self.pin(monkeypatch, commits[0])
        assert self.fetched(hub, root) == b"0"

    def test_that_of_the_config_goes_before_the_catalogue(self, hub: FakeHub, root, commits, monkeypatch) -> None:
        self.pin(monkeypatch, commits[0])
        assert self.fetched(hub, root, commits[1]) == b"1"

    def test_that_of_the_lock_goes_before_the_config(self, hub: FakeHub, root: Path, commits: list[str]) -> None:
        sums = {"config.json": hashlib.sha256(b"0").hexdigest()}
        assert self.fetched(hub, root, commits[1], Locked(commit=commits[0], files=sums)) == b"0"

    def test_a_branch_is_resolved_to_its_commit(self, hub: FakeHub, root: Path, commits: list[str]) -> None:
        hub.put(NAME, {"config.json": b"tried"}, ref="refs/pr/1")
        assert self.fetched(hub, root, "refs/pr/1") == b"tried"
        hub.put(NAME, {"config.json": b"tried again"}, ref="refs/pr/1")
        assert self.fetched(hub, root, "refs/pr/1") == b"tried again"

    def test_one_that_is_not_there_is_told(self, hub: FakeHub, root: Path, commits: list[str]) -> None:
        with pytest.raises(HubError, match=r"no revision 'v9'"):
            self.fetched(hub, root, "v9")

    def test_an_answer_for_another_commit_is_refused(self, hub: FakeHub, root: Path, commits: list[str]) -> None:
        hub.repos[NAME].refs[commits[0]] = commits[1]
        with pytest.raises(HubError, match=f"answered for {commits[1]} when asked for {commits[0]}"):
            self.fetched(hub, root, commits[0])

    def test_files_that_a_new_commit_has_no_more_are_removed(self, hub: FakeHub, root: Path) -> None:
        old = hub.put(NAME, {"config.json": b"{}", "model.safetensors": b"one", "notes.txt": b"n"})
        new = hub.put(NAME, {"config.json": b"{}", "model-1.safetensors": b"a", "model-2.safetensors": b"b"})
        fetch(Repository(NAME, WANTED, old), root, endpoint=hub.endpoint)
        (root / NAME / "mine.safetensors").write_bytes(b"the user's")

        done = fetch(Repository(NAME, WANTED, new), root, endpoint=hub.endpoint)

        assert done.removed == ("model.safetensors",)
        assert done.downloaded == ("model-1.safetensors", "model-2.safetensors")
        assert sorted(tree(root / NAME)) == [
            "config.json", "mine.safetensors", "model-1.safetensors", "model-2.safetensors", RECORD,
        ]  # fmt: skip

    def test_two_backends_may_not_want_two(self) -> None:
        with pytest.raises(HubError, match=f"{NAME} is wanted at a and at b"):
            merged([Repository(NAME, ("x",), "a"), Repository(NAME, ("y",), "b")])

    def test_two_backends_that_read_one_repository_fetch_it_once(self) -> None:
        assert merged(
            [Repository(NAME, ("x", "y")), Repository("a/b", ("z",)), Repository(NAME, ("y", "w"), "v1")]
        ) == [Repository(NAME, ("x", "y", "w"), "v1"), Repository("a/b", ("z",))]


class TestCopiedByHand:
    def test_files_that_are_right_are_kept_and_recorded(self, hub: FakeHub, root: Path) -> None:
        hub.put(NAME, FILES)
        for path in READ[:2]:
            (root / NAME / path).parent.mkdir(parents=True, exist_ok=True)
            (root / NAME / path).write_bytes(FILES[path])
        assert fetch(REPOSITORY, root, endpoint=hub.endpoint).downloaded == (READ[2],)
        assert sorted(read_records(root / NAME)[NAME].files) == READ

    @pytest.mark.parametrize("path", ["config.json", "model.safetensors"])
    def test_files_that_are_something_else_are_never_overwritten(self, hub: FakeHub, root: Path, path: str) -> None:
        hub.put(NAME, FILES)
        (root / NAME).mkdir(parents=True)
        (root / NAME / path).write_bytes(b"fine-tuned")
        with pytest.raises(HubError, match=rf"{path} is there, is not what .*move it away"):
            fetch(REPOSITORY, root, endpoint=hub.endpoint)
        assert tree(root) == {f"{NAME}/{path}": b"fine-tuned"}
        assert hub.gets() == []

    def test_the_record_is_no_part_of_a_fingerprint(self, hub: FakeHub, root: Path) -> None:
        hub.put(NAME, FILES)
        fetch(REPOSITORY, root, endpoint=hub.endpoint)
        fetched = fingerprint(Config(), root)
        (root / NAME / RECORD).unlink()
        assert fingerprint(Config(), root) == fetched


class TestStanding:
    @pytest.fixture
    def fetched(self, hub: FakeHub, root: Path) -> Path:
        hub.put(NAME, FILES)
        fetch(REPOSITORY, root, endpoint=hub.endpoint)
        hub.requests.clear()
        return root

    def stands(self, root: Path, *, rehash: bool = False, revision: str | None = None) -> tuple[State, str]:
        config = Config(revision=revision)
        found = standing(config.repositories()[0], config, root, rehash=rehash)
        return found.state, found.detail

    def test_missing(self, root: Path) -> None:
        assert self.stands(root) == (State.MISSING, "")

    def test_verified_without_the_hub(self, hub: FakeHub, fetched: Path) -> None:
        assert self.stands(fetched, rehash=True) == (State.VERIFIED, "")
        assert standing(REPOSITORY, Config(), fetched).size == sum(len(FILES[path]) for path in READ)
        assert hub.requests == []

    def test_a_file_that_is_gone_is_missing(self, fetched: Path) -> None:
        (fetched / NAME / "config.json").unlink()
        assert self.stands(fetched) == (State.MISSING, "config.json")

    def test_a_file_of_another_size_is_changed(self, fetched: Path) -> None:
        (fetched / NAME / "config.json").write_bytes(b"{}")
        assert self.stands(fetched) == (State.CHANGED, "config.json")

    def test_a_file_of_the_same_size_is_changed_once_it_is_read(self, hub: FakeHub, fetched: Path) -> None:
        (fetched / NAME / "config.json").write_bytes(FILES["config.json"].upper())
        assert self.stands(fetched)[0] == State.VERIFIED
        assert self.stands(fetched, rehash=True) == (State.CHANGED, "config.json")
        assert fetch(REPOSITORY, fetched, endpoint=hub.endpoint).downloaded == ()
        assert fetch(REPOSITORY, fetched, rehash=True, endpoint=hub.endpoint).downloaded == ("config.json",)
        assert self.stands(fetched, rehash=True)[0] == State.VERIFIED

    def test_copied_files_are_unverified(self, fetched: Path) -> None:
        (fetched / NAME / RECORD).unlink()
        assert self.stands(fetched) == (State.UNVERIFIED, "no record of a fetch")

    def test_files_fetched_for_another_backend_are_unverified(self, fetched: Path) -> None:
        wants_more = Repository(NAME, ("*.json", "*.txt"))
        assert standing(wants_more, Config(), fetched).state == State.UNVERIFIED

    def test_a_copy_without_weights_is_missing_some(self, fetched: Path) -> None:
        (fetched / NAME / RECORD).unlink()
        for path in READ[1:]:
            (fetched / NAME / path).unlink()
        assert self.stands(fetched) == (State.MISSING, "*.safetensors")

    def test_a_named_file_that_is_not_there_is_missing(self, fetched: Path) -> None:
        named = Repository(NAME, ("*.json", "vocab.txt"))
        assert standing(named, Config(), fetched).detail == "vocab.txt"

    def test_another_commit_than_the_config_s_is_told(self, fetched: Path) -> None:
        state, detail = self.stands(fetched, revision="0" * 40)
        assert state == State.UNVERIFIED
        assert "00000000" in detail

    def test_a_record_that_no_fetch_wrote_is_told(self, fetched: Path) -> None:
        (fetched / NAME / RECORD).write_text('{"a": 1}')
        with pytest.raises(UserError, match=r"weights\.json is no record of a fetch"):
            self.stands(fetched)

    def test_provenance_tells_the_commit_on_disk(self, fetched: Path, root: Path) -> None:
        commit = read_records(fetched / NAME)[NAME].commit
        known = {"repository": NAME, "revision": commit, "licence": "unknown", "commercial": None}
        assert provenance({"detector": Config()}, fetched) == [
            {"task": "detector", "backend": "network", "weights": [known]}
        ]
        shutil.rmtree(fetched / NAME)
        assert provenance({"detector": Config()}, fetched)[0]["weights"] == [{**known, "revision": None}]


class TestFailures:
    def fails(self, hub: FakeHub, root: Path, repository: Repository = REPOSITORY, endpoint: str = "") -> str:
        with pytest.raises(HubError) as caught:
            fetch(repository, root, endpoint=endpoint or hub.endpoint)
        assert isinstance(caught.value, UserError)
        assert tree(root) == {}
        return str(caught.value)

    def test_a_gated_repository_says_where_to_accept(self, hub: FakeHub, root: Path) -> None:
        hub.put(NAME, FILES)
        hub.repos[NAME].gated = True
        said = self.fails(hub, root)
        for part in (f"https://huggingface.co/{NAME}", "Accept its terms", "HF_TOKEN", str(root / NAME)):
            assert part in said

    def test_a_token_without_access_is_told_apart(self, hub: FakeHub, root: Path, monkeypatch) -> None:
        hub.put(NAME, FILES)
        hub.repos[NAME].gated = True
        monkeypatch.setenv("HF_TOKEN", "bad")
        assert "the account of your token has no access yet" in self.fails(hub, root)

    def test_a_token_with_access_fetches(self, hub: FakeHub, root: Path, monkeypatch) -> None:
        hub.put(NAME, FILES)
        hub.repos[NAME].gated = True
        monkeypatch.setenv("HF_TOKEN", "good")
        assert fetch(REPOSITORY, root, endpoint=hub.endpoint).downloaded == tuple(READ)

    def test_an_unknown_repository_says_where_to_put_one_s_own(self, hub: FakeHub, root: Path) -> None:
        said = self.fails(hub, root)
        assert f"no repository {NAME}" in said
        assert str(root / NAME) in said

    @pytest.mark.parametrize(("status", "says"), [(403, "refuses"), (429, "fewer requests"), (500, r"fails (500)")])
    def test_what_the_hub_answers_is_told(self, hub: FakeHub, root: Path, status: int, says: str) -> None:
        hub.status = status
        assert says in self.fails(hub, root)

    def test_no_network_says_how_to_do_without(self, hub: FakeHub, root: Path) -> None:
        said = self.fails(hub, root, endpoint="http://127.0.0.1:9")
        assert "cannot be reached" in said
        assert f"copy the repository's files by hand to {root / NAME}" in said

    def test_an_offline_client_says_so(self, hub: FakeHub, root: Path, monkeypatch) -> None:
        from huggingface_hub import constants

        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        hub.put(NAME, FILES)
        assert "HF_HUB_OFFLINE is set" in self.fails(hub, root)

    def test_a_repository_of_something_else_names_what_it_lacks(self, hub: FakeHub, root: Path) -> None:
        hub.put(NAME, FILES)
        said = self.fails(hub, root, Repository(NAME, ("*.json", "vocab.txt")))
        assert "holds no vocab.txt" in said
        assert "holds no *.gguf" in self.fails(hub, root, Repository(NAME, ("*.gguf",)))
        assert "holds no *.onnx" in self.fails(hub, root, Repository(NAME, ("*.json", "*.onnx")))

    def test_patterns_that_fit_nothing_are_no_error_beside_others(self, hub: FakeHub, root: Path) -> None:
        hub.put(NAME, FILES)
        assert fetch(Repository(NAME, ("*.json", "*.jinja")), root, endpoint=hub.endpoint).downloaded == (
            "config.json",
        )

    def test_too_small_a_disk_is_told_before_anything_comes(self, hub: FakeHub, root: Path, monkeypatch) -> None:
        hub.put(NAME, FILES)
        usage = shutil.disk_usage(root.parent)
        monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=100))
        assert "make room" in self.fails(hub, root)
        assert hub.gets() == []

    def test_a_disk_that_is_full_says_so(self, hub: FakeHub, root: Path, monkeypatch) -> None:
        def full(*args: object, **options: object) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        hub.put(NAME, FILES)
        monkeypatch.setattr("huggingface_hub.hf_hub_download", full)
        assert "is full" in self.fails(hub, root)

    def test_a_fetch_that_another_process_does_is_left_alone(self, hub: FakeHub, root: Path) -> None:
        hub.put(NAME, FILES)
        lock = root / ".fetching" / "someone--network.lock"
        lock.parent.mkdir(parents=True)
        with FileLock(lock):
            assert "another process" in self.fails(hub, root)


class TestLock:
    def test_what_was_fetched_comes_back_byte_for_byte(self, hub: FakeHub, root: Path, tmp_path: Path) -> None:
        hub.put(NAME, FILES)
        first = fetch(REPOSITORY, root, endpoint=hub.endpoint)
        write_lock(tmp_path / "weights.lock", {NAME: locked_as(first.record, None)})
        hub.put(NAME, {**FILES, "config.json": b"newer"})

        locked = read_lock(tmp_path / "weights.lock")[NAME]
        other = fetch(REPOSITORY, tmp_path / "team", locked=locked, endpoint=hub.endpoint)

        assert other.record == first.record
        assert tree(tmp_path / "team") == tree(root)

    def test_another_sum_in_large_storage_is_refused_before_it_comes(self, hub: FakeHub, root: Path) -> None:
        commit = hub.put(NAME, FILES)
        with pytest.raises(HubError, match=r"model\.safetensors: the hub has .* the lock file says 000000000000"):
            fetch(
                REPOSITORY,
                root,
                locked=Locked(commit=commit, files={"model.safetensors": "0" * 64}),
                endpoint=hub.endpoint,
            )
        assert hub.gets() == []

    def test_another_sum_in_git_is_not_put_in_place(self, hub: FakeHub, root: Path) -> None:
        commit = hub.put(NAME, FILES)
        locked = Locked(commit=commit, files={"config.json": "0" * 64})
        with pytest.raises(HubError, match=r"config\.json has the SHA-256 .* it was not put in place"):
            fetch(REPOSITORY, root, locked=locked, endpoint=hub.endpoint)
        assert tree(root) == {}
        fetch(REPOSITORY, root, endpoint=hub.endpoint)
        with pytest.raises(HubError, match=r"config\.json has the SHA-256"):
            fetch(REPOSITORY, root, locked=locked, endpoint=hub.endpoint)

    def test_a_locked_file_that_the_commit_lacks_is_told(self, hub: FakeHub, root: Path) -> None:
        commit = hub.put(NAME, FILES)
        with pytest.raises(HubError, match=r"holds no gone\.json, which the lock file names"):
            fetch(REPOSITORY, root, locked=Locked(commit=commit, files={"gone.json": "0" * 64}), endpoint=hub.endpoint)

    @pytest.mark.parametrize(
        "text",
        [
            "[1, 2]",
            "a: [",
            "a: {commit: main, files: {}}",
            f"a: {{commit: {'0' * 40}}}",
            f"a: {{commit: {'0' * 40}, files: {{x: 1f}}}}",
        ],
    )
    def test_a_file_that_is_no_lock_is_told(self, tmp_path: Path, text: str) -> None:
        (tmp_path / "lock.yaml").write_text(text)
        with pytest.raises(HubError, match=r"lock\.yaml"):
            read_lock(tmp_path / "lock.yaml")

    def test_there_need_not_be_one(self, tmp_path: Path) -> None:
        assert read_lock(tmp_path / "none.yaml") == {}
