"""The one place that knows which backends exist. A config's ``backend: name`` is looked up here.

A backend is a class with a nested ``Config`` (a :class:`BackendConfig`) and ``__init__(self, config, root)``.
Its module must import in milliseconds: heavy libraries are imported inside ``__init__``.
"""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError

from models.errors import UserError

BACKENDS: dict[str, dict[str, str]] = {
    "shots": {
        "transnetv2": "models.transnetv2:TransNetV2",
        "pyscenedetect": "models.pyscenedetect:PySceneDetect",
    },
    "text": {"rapidocr": "models.rapid_ocr:RapidOCR"},
    "aesthetic": {"laion_aesthetic": "models.laion_aesthetic:LaionAesthetic"},
    "safety": {"nudenet": "models.nudenet:NudeNet"},
    "captioner": {
        "qwen_vl": "models.qwen_vl:QwenVL",
        "openai_server": "models.openai_server:OpenAIServer",
    },
    "detector": {
        "motion_saliency": "models.motion_saliency:MotionSaliency",
        "yolox": "models.yolox:Yolox",
        "grounding_dino": "models.grounding_dino:GroundingDino",
        "owlv2": "models.owlv2:Owlv2",
        "sam3": "models.sam3:Sam3",
    },
    "segmenter": {
        "grabcut": "models.grabcut:GrabCut",
        "sam_onnx": "models.sam_onnx:SamOnnx",
        "segment_anything": "models.segment_anything:SegmentAnything",
        "sam": "models.sam:Sam",
        "sam2": "models.sam2:Sam2",
        "sam2_video": "models.sam2_video:Sam2Video",
        "detector_masks": "models.detector_masks:DetectorMasks",
    },
    "faces": {"insightface": "models.insight_face:InsightFace"},
    "embedder": {
        "colour_texture": "models.colour_texture:ColourTexture",
        "dino": "models.dino:Dino",
        "open_clip": "models.open_clip_image:OpenClipImage",
    },
    "image_text": {"open_clip": "models.open_clip_text:OpenClipText"},
    "inpainter": {
        "quilting": "models.quilting:Quilting",
        "lama": "models.lama:Lama",
        "flux_fill": "models.flux_fill:FluxFill",
    },
    "editor": {
        "flux_redux": "models.flux_redux:FluxRedux",
        "flux_kontext": "models.flux_kontext:FluxKontext",
        "flux2_klein": "models.flux2_klein:Flux2Klein",
        "qwen_image_edit": "models.qwen_image_edit:QwenImageEdit",
    },
}

RECORD = "weights.json"
"""What a fetch notes beside the files of a repository; no part of a backend's fingerprint."""


class MissingWeightsError(UserError, FileNotFoundError):
    """A weight file that a backend needs is not where the config says."""


@dataclass(frozen=True, slots=True)
class Repository:
    """Files of a repository on the model hub, and where they lie under ``models.root``."""

    name: str
    """``owner/name`` on the hub."""
    files: tuple[str, ...]
    """Patterns of the files that the backend reads, such as ``*.json``."""
    revision: str | None = None
    """A commit, branch or tag; nothing for the one that `models/weights/catalogue.yaml` pins."""
    folder: str | None = None
    """Folder under ``models.root``; nothing for the one of the repository's name."""


class BackendConfig(BaseModel):
    """Base of every backend's config: ``backend`` names it."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    packages: ClassVar[tuple[str, ...]] = ()
    """Distributions that ship weights of this backend: their versions are part of its fingerprint."""
    speed: ClassVar[frozenset[str]] = frozenset()
    """Options that change how fast the backend is and not what it finds: they are no part of its fingerprint."""

    backend: str

    def weights(self, root: Path) -> list[Path]:
        """Files and folders under ``root`` that the backend loads; empty if its package ships them."""
        return []

    def repositories(self) -> list[Repository]:
        """Where its weights come from, for ``s2v models fetch``; empty if they are the user's own files."""
        return []

    def texts(self) -> list[str]:
        """What the files say that its options name and that are no weights, such as a prompt."""
        return []


def backend_class(task: str, name: str) -> Any:
    """The class behind ``backend: name`` for a task.

    Raises:
        ValueError: if there is no such task, or no backend of that name is registered for it.
    """
    known = _backends(task)
    if name not in known:
        names = ", ".join(sorted(known)) or "none yet"
        raise ValueError(f"models.{task}.backend: no backend {name!r}; known: {names}")
    module, _, attribute = known[name].partition(":")
    return getattr(importlib.import_module(module), attribute)


def choice(task: str) -> BeforeValidator:
    """Reads a config's entry for a task: ``backend: name`` with its options, or null."""

    def read(raw: Any) -> BackendConfig | None:
        if raw is None or isinstance(raw, BackendConfig):
            return raw
        if not isinstance(raw, Mapping):
            raise ValueError(f"models.{task}: expected `backend: name` with its options, or null")
        return backend_config(task, dict(raw))

    return BeforeValidator(read)


def backend_config(task: str, raw: dict[str, Any]) -> BackendConfig:
    """Validate the options that a config gives to a backend.

    Raises:
        ValueError: for an unknown backend, or options that it does not have.
    """
    if "backend" not in raw:
        names = ", ".join(sorted(_backends(task)))
        raise ValueError(f"models.{task}: say which one with `backend: name`; known: {names}")
    try:
        config: BackendConfig = backend_class(task, raw["backend"]).Config(**raw)
    except ValidationError as error:
        details = [(".".join(map(str, detail["loc"])), detail["msg"]) for detail in error.errors()]
        raise ValueError("; ".join(f"models.{task}.{where}: {message}" for where, message in details)) from None
    return config


def missing_weights(config: BackendConfig, root: Path) -> list[Path]:
    """Files and folders of a backend's weights that are not there."""
    return [path for path in config.weights(root) if not path.exists()]


def check_weights(config: BackendConfig, root: Path) -> None:
    """Raise :class:`MissingWeightsError` naming the first file that is not there."""
    for path in missing_weights(config, root):
        raise MissingWeightsError(
            f"{config.backend}: {path} does not exist. Put the file there, or point `models.root` "
            f"(now {str(root)!r}) at the folder that holds it. `s2v models fetch` gets what is on the model hub; "
            "docs/models.md says where the rest comes from."
        )


def build(task: str, config: BackendConfig, root: Path) -> Any:
    """Load a backend.

    Raises:
        MissingWeightsError: if a file it needs is not under ``root``.
    """
    check_weights(config, root)
    return backend_class(task, config.backend)(config, root)


def fingerprint(config: BackendConfig, root: Path) -> str:
    """Hash of the options, of texts, and of the weights, by their bytes or the version of the package with them."""
    digest = hashlib.sha256(config.model_dump_json(exclude=set(config.speed)).encode())
    for text in config.texts():
        digest.update(hashlib.sha256(text.encode()).digest())
    for package in config.packages:
        digest.update(f"{package}=={version(package)}".encode())
    for path in config.weights(root):
        for file in _files(path):
            digest.update(_file_digest(file, file.stat().st_mtime_ns, file.stat().st_size))
    return digest.hexdigest()[:16]


def _files(path: Path) -> Iterable[Path]:
    return sorted(p for p in path.rglob("*") if p.is_file() and p != path / RECORD) if path.is_dir() else [path]


@cache
def _file_digest(path: Path, mtime_ns: int, size: int) -> bytes:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").digest()


def _backends(task: str) -> Mapping[str, str]:
    if task not in BACKENDS:
        raise ValueError(f"models.{task}: no such task; known: {', '.join(sorted(BACKENDS))}")
    return BACKENDS[task]
