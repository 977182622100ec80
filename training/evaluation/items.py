"""What is to be evaluated: videos, the prompts that they were made from, and the references that they should show."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image as Pictures
from PIL import ImageOps

from models.errors import UserError
from models.protocols import Image, Keyframe, Mask
from models.vocabulary import subject_words
from stages.copy_score import subject_on_white
from stages.ingest import VIDEO_EXTENSIONS
from stages.media import UnreadableVideo, probe, read_keyframes
from training.picture import letterbox

PICTURE_EXTENSIONS = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp"})
MOST_PIXELS = 64_000_000
"""Of a reference file: a few bytes can announce a picture of gigabytes."""
LONGEST_SIDE = 1024
"""In pixels, to which larger references are scaled down."""


class InputError(UserError, ValueError):
    """Videos or references that are not where, or not what, they are said to be."""


@dataclass(frozen=True, slots=True)
class ReferenceFile:
    """A reference on disk. ``word`` names its subject as the detector knows it; empty where nothing says what it is."""

    path: Path
    word: str


@dataclass(frozen=True, slots=True)
class Reference:
    """A reference as RGB on white, with the mask of what it shows; both ``(height, width)``."""

    file: ReferenceFile
    image: Image
    subject: Mask


@dataclass(frozen=True, slots=True)
class Item:
    """One video to be evaluated. ``problem`` says what is wrong with a manifest's line that names no video."""

    name: str
    video: Path
    prompt: str = ""
    references: tuple[ReferenceFile, ...] = ()
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class Shown:
    """A video as the metrics see it.

    ``frames`` are evenly spaced, at least one. The ``neighbour`` of each is the video's next frame, ``neighbour_s``
    later; the last frame of a video is its own, 0 s later.
    """

    frames: tuple[Keyframe, ...]
    prompt: str
    references: tuple[Reference, ...]

    @property
    def images(self) -> list[Image]:
        """The frames' pictures."""
        return [frame.image for frame in self.frames]


def list_items(videos: Path, references: Path | None) -> list[Item]:
    """The videos with their prompts and references, in order of their names, or of the manifest's lines.

    ``videos`` is one of three:

    - a folder; its videos are those files right in it that end like one (``.mp4``, ``.mkv``, ...);
    - a video file;
    - a manifest that ends in ``.jsonl``, one object per line: ``{"video": "a.mp4", "prompt": "A cat runs.",
      "references": [{"image": "cat.png", "word": "cat"}]}``. Only ``video`` must be there, and a reference may be its
      path alone. Relative paths of videos start at the manifest's folder, those of images at ``references``, or at the
      manifest's folder if that is None. A line that says none of this becomes an item with a ``problem``.

    Without a manifest, ``references`` is a folder that holds for a video ``a.mp4``, in any mixture:

    - ``a/cat.png``, ``a/dog.png``: the pictures in a folder of the video's name;
    - ``a.cat.png``, ``a.dog.png``, ``a.png``: pictures whose name begins with it (of several such videos, the longest);
    - ``a.txt``: the prompt; it may lie beside the video instead.

    A word of the vocabulary in what a picture's name says after the video's names its subject: ``a/red_cat_2.png``
    shows a cat. A manifest may give any word that the detector understands. Without a word, whatever the detector finds
    may be the subject. Every reference is a subject of its own. A video may have none.

    Raises:
        InputError: if ``videos`` or ``references`` do not exist, or hold no video.
    """
    if not videos.exists():
        raise InputError(f"{videos} does not exist; name a folder of videos, a video file or a manifest (.jsonl)")
    if references is not None and not references.is_dir():
        raise InputError(f"{references} is no folder; name the folder of the reference images")
    if videos.suffix.lower() == ".jsonl":
        items = list(_manifest(videos, references or videos.parent))
    elif references is None:
        raise InputError(f"{videos} comes without references; name their folder, or give a manifest (.jsonl)")
    else:
        files = sorted(path for path in videos.iterdir() if _is_video(path)) if videos.is_dir() else [videos]
        found = _references_by_stem(references, [file.stem for file in files])
        items = [Item(file.name, file, _prompt(file, references), tuple(found[file.stem])) for file in files]
    if not items:
        raise InputError(f"{videos} holds no video; wanted are files that end in {', '.join(sorted(VIDEO_EXTENSIONS))}")
    return items


def show(item: Item, count: int, max_side: int) -> Shown:
    """Decode ``count`` evenly spaced frames of a video, or all if it has fewer, and its references.

    Frames are the middles of as many equal parts, their longer side at most ``max_side`` pixels.

    Raises:
        InputError: if the video or a reference is missing or cannot be read.
    """
    if item.problem is not None:
        raise InputError(item.problem)
    references = tuple(read_reference(file) for file in item.references)
    try:
        info = probe(item.video)
        count = min(count, info.frames)
        places = [(2 * number + 1) * info.frames // (2 * count) for number in range(count)]
        # In the middle of a frame's time on screen, so that rounded clocks do not turn it into the one before.
        times = [(place + 0.5) / info.fps for place in places]
        frames = read_keyframes(item.video, times, 1 / info.fps, max_side)
    except FileNotFoundError:
        raise InputError(f"video {item.video} does not exist") from None
    except (UnreadableVideo, OSError, ValueError) as error:
        raise InputError(f"video {item.video} cannot be read: {error}") from error
    if places[-1] == info.frames - 1:
        frames[-1] = replace(frames[-1], neighbour=frames[-1].image, neighbour_s=0.0)
    return Shown(tuple(frames), item.prompt, references)


def read_reference(file: ReferenceFile) -> Reference:
    """The picture, upright and on white (transparent parts too), its longer side at most 1024 pixels.

    Raises:
        InputError: if the file is missing, no picture, or too large a one.
    """
    try:
        with Pictures.open(file.path) as picture:
            if picture.width * picture.height > MOST_PIXELS:
                raise InputError(f"reference {file.path}: {picture.width} x {picture.height} pixels are too many")
            upright = ImageOps.exif_transpose(picture)
            scale = min(1.0, LONGEST_SIDE / max(upright.size))
            image = letterbox(upright, *(max(1, round(side * scale)) for side in (upright.height, upright.width)))
    except FileNotFoundError:
        raise InputError(f"reference {file.path} does not exist") from None
    except InputError:
        raise
    except (OSError, ValueError, SyntaxError, Pictures.DecompressionBombError) as error:
        raise InputError(f"reference {file.path} cannot be read as a picture: {error}") from error
    return Reference(file, np.ascontiguousarray(image), subject_on_white(image))


def vocabulary_word(text: str) -> str:
    """The vocabulary's name of the first subject in a file name or a phrase: ``red_cat_2`` says cat; empty for none."""
    known = subject_words(re.sub(r"[\W\d_]+", " ", text).strip().lower())
    return known[0].name if known else ""


def _references_by_stem(folder: Path, stems: Sequence[str]) -> dict[str, list[ReferenceFile]]:
    found: dict[str, list[ReferenceFile]] = {stem: [] for stem in stems}
    for path in sorted(folder.iterdir()):
        if path.is_dir() and path.name in found:
            inside = sorted(child for child in path.iterdir() if _is_picture(child))
            found[path.name].extend(ReferenceFile(child, vocabulary_word(child.stem)) for child in inside)
        elif _is_picture(path):
            owners = [stem for stem in stems if path.name.startswith(f"{stem}.")]
            if owners:
                stem = max(owners, key=len)
                found[stem].append(ReferenceFile(path, vocabulary_word(path.stem[len(stem) :])))
    return found


def _prompt(video: Path, references: Path) -> str:
    for file in (references / f"{video.stem}.txt", video.with_suffix(".txt")):
        if file.is_file():
            return file.read_text(encoding="utf-8", errors="replace").strip()
    return ""


def _manifest(manifest: Path, pictures: Path) -> Iterator[Item]:
    with manifest.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                yield _item(json.loads(line.decode("utf-8-sig")), manifest.parent, pictures)
            except (ValueError, RecursionError) as error:
                yield Item(f"{manifest.name}, line {number}", manifest, problem=str(error) or type(error).__name__)


def _item(line: Any, videos: Path, pictures: Path) -> Item:
    if not isinstance(line, dict):
        raise ValueError('not an object such as {"video": "a.mp4", "references": [{"image": "cat.png"}]}')
    name, prompt, references = line.get("video"), line.get("prompt"), line.get("references") or []
    if not isinstance(name, str) or not name:
        raise ValueError("names no video")
    if not isinstance(prompt, str | None):
        raise ValueError(f"{name}: the prompt is no text")
    if not isinstance(references, list):
        raise ValueError(f"{name}: references are no list")
    files = tuple(_reference(name, reference, pictures) for reference in references)
    return Item(name, videos / name, (prompt or "").strip(), files)


def _reference(video: str, raw: Any, pictures: Path) -> ReferenceFile:
    entry = {"image": raw} if isinstance(raw, str) else raw
    image, word = (entry.get("image"), entry.get("word")) if isinstance(entry, dict) else (None, None)
    if not isinstance(image, str) or not image or not isinstance(word, str | None):
        raise ValueError(f'{video}: a reference is a path or {{"image": path, "word": word}}, not {raw!r:.100}')
    return ReferenceFile(pictures / image, vocabulary_word(word or Path(image).stem) or (word or "").strip())


def _is_video(path: Path) -> bool:
    return path.suffix.lower() in VIDEO_EXTENSIONS and path.is_file() and not path.name.startswith(".")


def _is_picture(path: Path) -> bool:
    return path.suffix.lower() in PICTURE_EXTENSIONS and path.is_file() and not path.name.startswith(".")
