import json
import os
import subprocess
import sys
import typing
from pathlib import Path
from typing import Literal

import pytest

from models import registry
from models.errors import UserError
from models.registry import (
    BACKENDS,
    BackendConfig,
    MissingWeightsError,
    backend_class,
    backend_config,
    build,
    check_weights,
    fingerprint,
)

REGISTERED = [(task, name) for task, backends in BACKENDS.items() for name in backends]


class Guesser:
    """A backend of a weight file and a folder of them."""

    class Config(BackendConfig):
        backend: Literal["guesser"] = "guesser"
        file: str = "guess.bin"
        folder: str | None = None
        threshold: float = 0.5

        def weights(self, root: Path) -> list[Path]:
            return [root / self.file, *([root / self.folder] if self.folder else [])]

    def __init__(self, config: BackendConfig, root: Path) -> None:
        self.config, self.root = config, root


class Packaged:
    class Config(BackendConfig):
        packages = ("numpy",)

        backend: Literal["packaged"] = "packaged"


@pytest.fixture(autouse=True)
def guesser(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(BACKENDS["detector"], "guesser", f"{__name__}:Guesser")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "guess.bin").write_bytes(b"one")
    (tmp_path / "parts" / "deep").mkdir(parents=True)
    (tmp_path / "parts" / "a.bin").write_bytes(b"two")
    (tmp_path / "parts" / "deep" / "b.bin").write_bytes(b"three")
    return tmp_path


@pytest.mark.parametrize(("task", "name"), REGISTERED)
def test_every_backend_is_there_under_its_own_name(task: str, name: str) -> None:
    backend = backend_class(task, name)
    assert issubclass(backend.Config, BackendConfig)
    field = backend.Config.model_fields["backend"]
    assert typing.get_args(field.annotation) == (name,)
    assert field.default == name


@pytest.mark.parametrize(("task", "name"), REGISTERED)
def test_every_backend_s_defaults_are_valid_and_told(task: str, name: str) -> None:
    # Backends without weights in their package must be told where these lie; nothing else may be needed.
    config_class = backend_class(task, name).Config
    required = {key: "some/file" for key, field in config_class.model_fields.items() if field.is_required()}
    config = backend_config(task, {"backend": name, **required})
    assert type(config) is config_class
    assert all(isinstance(path, Path) for path in config.weights(Path("root")))
    assert all(path.is_relative_to("root") for path in config.weights(Path("root")))


def test_backends_import_without_what_is_heavy() -> None:
    modules = sorted({path.partition(":")[0] for backends in BACKENDS.values() for path in backends.values()})
    modules = [module for module in modules if module != __name__]
    assert len(modules) > 5
    code = f"""
import importlib, json, sys
for module in {modules!r}:
    importlib.import_module(module)
print(json.dumps(sorted(sys.modules)))
"""
    root = Path(registry.__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True, timeout=120
    )
    loaded = {name.partition(".")[0] for name in json.loads(done.stdout)}
    heavy = {"torch", "torchvision", "onnxruntime", "transformers", "diffusers", "insightface", "rapidocr", "open_clip"}
    assert "numpy" in loaded
    assert loaded & heavy == set()


def test_an_unknown_backend_is_named_beside_those_that_there_are() -> None:
    with pytest.raises(ValueError, match=r"models\.segmenter\.backend: no backend 'samm'; known: .*grabcut.*sam_onnx"):
        backend_config("segmenter", {"backend": "samm"})


def test_an_unknown_task_is_named() -> None:
    for ask in (lambda: backend_class("colouriser", "any"), lambda: backend_config("colouriser", {})):
        with pytest.raises(ValueError, match=r"models\.colouriser: no such task; known: aesthetic, .*text"):
            ask()


def test_a_task_without_backends_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(BACKENDS, "captioner", {})
    with pytest.raises(ValueError, match=r"models\.captioner\.backend: no backend 'llava'; known: none yet"):
        backend_config("captioner", {"backend": "llava"})


def test_a_backend_must_be_named() -> None:
    with pytest.raises(ValueError, match=r"models\.shots: .*`backend: name`; known: pyscenedetect, transnetv2"):
        backend_config("shots", {})


def test_an_unknown_option_is_named() -> None:
    with pytest.raises(ValueError, match=r"models\.detector\.treshold: Extra inputs"):
        backend_config("detector", {"backend": "guesser", "treshold": 0.3})


def test_all_options_that_do_not_fit_are_named() -> None:
    with pytest.raises(ValueError, match=r"models\.detector\.threshold: .*; models\.detector\.size: ") as caught:
        backend_config("detector", {"backend": "guesser", "threshold": "high", "size": 1})
    assert "pydantic" not in str(caught.value)


def test_options_arrive(root: Path) -> None:
    config = backend_config("detector", {"backend": "guesser", "threshold": 0.25})
    built = build("detector", config, root)
    assert isinstance(built, Guesser)
    assert (built.config, built.root) == (config, root)
    assert built.config.threshold == 0.25  # type: ignore[attr-defined]


@pytest.mark.parametrize("missing", [{"file": "gone.bin"}, {"folder": "gone"}])
def test_missing_weights_are_named_with_the_folder_to_put_them_into(root: Path, missing: dict[str, str]) -> None:
    config = Guesser.Config(**missing)  # type: ignore[arg-type]
    with pytest.raises(MissingWeightsError) as caught:
        build("detector", config, root)
    message = str(caught.value)
    assert "guesser" in message
    assert str(root / next(iter(missing.values()))) in message
    assert "models.root" in message
    assert repr(str(root)) in message
    assert isinstance(caught.value, UserError)
    assert isinstance(caught.value, FileNotFoundError)


def test_weights_that_are_there_are_no_error(root: Path) -> None:
    check_weights(Guesser.Config(folder="parts"), root)
    check_weights(Packaged.Config(), root / "nowhere")


def test_every_registered_backend_names_its_missing_weights(tmp_path: Path) -> None:
    lacking = []
    for task, name in REGISTERED:
        config_class = backend_class(task, name).Config
        required = {key: "some/file" for key, field in config_class.model_fields.items() if field.is_required()}
        config = backend_config(task, {"backend": name, **required})
        if config.weights(tmp_path):
            lacking.append(name)
            with pytest.raises(MissingWeightsError, match=name):
                build(task, config, tmp_path)
    assert len(lacking) >= 3


def test_options_change_the_fingerprint(root: Path) -> None:
    prints = [
        fingerprint(Guesser.Config(**options), root)  # type: ignore[arg-type]
        for options in ({}, {"threshold": 0.6}, {"folder": "parts"}, {"folder": "parts/deep"})
    ]
    assert len(set(prints)) == len(prints)
    assert prints[0] == fingerprint(Guesser.Config(threshold=0.5), root)
    assert all(len(each) == 16 for each in prints)


@pytest.mark.parametrize("name", ["guess.bin", "parts/a.bin", "parts/deep/b.bin"])
def test_the_bytes_of_weights_change_the_fingerprint(root: Path, name: str) -> None:
    config = Guesser.Config(folder="parts")
    before = fingerprint(config, root)
    (root / name).write_bytes(b"other")
    changed = fingerprint(config, root)
    assert changed != before
    (root / name).write_bytes({"guess.bin": b"one", "parts/a.bin": b"two", "parts/deep/b.bin": b"three"}[name])
    assert fingerprint(config, root) == before


def test_bytes_of_the_same_size_are_told_apart(root: Path) -> None:
    before = fingerprint(Guesser.Config(), root)
    (root / "guess.bin").write_bytes(b"eno")
    os.utime(root / "guess.bin", ns=(1, 1))
    assert fingerprint(Guesser.Config(), root) != before


def test_one_more_file_in_a_folder_changes_the_fingerprint(root: Path) -> None:
    config = Guesser.Config(folder="parts")
    before = fingerprint(config, root)
    (root / "parts" / "c.bin").write_bytes(b"")
    assert fingerprint(config, root) != before


def test_neither_time_nor_place_changes_the_fingerprint(root: Path) -> None:
    config = Guesser.Config(folder="parts")
    before = fingerprint(config, root)
    os.utime(root / "guess.bin", ns=(10**18, 10**18))
    assert fingerprint(config, root) == before
    moved = root.rename(root.with_name("moved"))
    assert fingerprint(config, moved) == before


def test_the_version_of_a_package_with_weights_is_part_of_the_fingerprint(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = fingerprint(Packaged.Config(), root)
    assert fingerprint(Packaged.Config(), root / "nowhere") == before
    monkeypatch.setattr(registry, "version", lambda package: f"{package} of tomorrow")
    assert fingerprint(Packaged.Config(), root) != before
