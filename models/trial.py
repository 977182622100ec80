"""Tries a backend: loads it, gives it one small drawn input, and looks at the form of what comes back.

``python -m models.trial`` does it in a process of its own, which reads what to try from its standard input and writes
what it found to its standard output: memory is then the backend's alone, and is free again at its end.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from models.errors import UserError
from models.protocols import (
    ClipCaption,
    Detection,
    EditRequest,
    Face,
    FillRequest,
    Image,
    Keyframe,
    Mask,
    Segmentation,
    TextRegion,
    Tracker,
)
from models.registry import BackendConfig, backend_config, build

HEIGHT, WIDTH = 240, 320
RADIUS = 50
SHOT_FRAMES = 60
"""Frames of the drawn video, with a cut in its middle."""


class TrialError(UserError):
    """What a backend gave back is not what its protocol promises."""


@dataclass(frozen=True, slots=True)
class Trial:
    """What it took to load a backend and to call it once."""

    load_s: float
    """Seconds until it stood ready."""
    call_s: float
    """Seconds of the first call, which may hold what later calls spare."""
    device: str
    """`cpu` or `cuda`."""
    memory_gb: float
    """Most memory of the process, or of the GPU where it ran on one."""


def run_trial(task: str, config: BackendConfig, root: Path) -> Trial:
    """Load a backend and call it once, in this process.

    Raises:
        TrialError: if what comes back has not the form that the task's protocol asks for.
        Exception: whatever the backend raises.
    """
    started = time.perf_counter()
    backend = build(task, config, root)
    loaded = time.perf_counter()
    TRIALS[task](backend)
    called = time.perf_counter()
    device, memory = _device_and_memory()
    return Trial(loaded - started, called - loaded, device, memory)


def run_apart(task: str, config: BackendConfig, root: Path) -> Trial:
    """Like :func:`run_trial`, in a process of its own.

    Raises:
        TrialError: with what went wrong there, in a line.
    """
    order = {"task": task, "options": config.model_dump(mode="json"), "root": str(root)}
    done = subprocess.run(
        [sys.executable, "-m", __name__], input=json.dumps(order), capture_output=True, text=True, check=False
    )
    try:
        answer = json.loads(done.stdout)
    except json.JSONDecodeError:
        raise TrialError(_died(done.returncode, done.stderr)) from None
    if "error" in answer:
        raise TrialError(answer["error"])
    return Trial(**answer)


def _died(code: int, said: str) -> str:
    if code == -signal.SIGKILL:
        return "its process was killed, as the system does where memory runs out"
    last = (said.strip() or "it said nothing").splitlines()[-1]
    return f"its process ended with {code}: {last}"


def _shots(backend: Any) -> None:
    width, height = backend.frame_size
    first, second = np.full((height, width, 3), 40, np.uint8), np.full((height, width, 3), 200, np.uint8)
    frames = [first] * (SHOT_FRAMES // 2) + [second] * (SHOT_FRAMES // 2)
    found = backend.transitions(iter(frames))
    _expect(isinstance(found, np.ndarray) and found.shape == (SHOT_FRAMES,), "one probability per frame")
    _expect(bool(np.all((found >= 0) & (found <= 1))), "probabilities in [0, 1]")


def _text(backend: Any) -> None:
    image = _scene().image.copy()
    cv2.putText(image, "A SIGN", (20, 220), cv2.FONT_HERSHEY_SIMPLEX, 1.5, (255, 255, 255), 4)
    regions = _only(backend.spot([image]))
    _expect(
        all(isinstance(region, TextRegion) and region.corners.shape == (4, 2) for region in regions), "text regions"
    )


def _aesthetic(backend: Any) -> None:
    _expect(bool(np.isfinite(_only(backend.aesthetic([_scene().image])))), "a finite score")


def _safety(backend: Any) -> None:
    _expect(0 <= _only(backend.nudity([_scene().image])) <= 1, "a score in [0, 1]")


def _captioner(backend: Any) -> None:
    caption = _only(backend.caption([_clip()]))
    _expect(isinstance(caption, ClipCaption) and bool(caption.text.strip()), "a caption")
    _expect(all(isinstance(word, str) for word in caption.words), "words")


def _detector(backend: Any) -> None:
    frames = _only(backend.detect([_clip()], [["ball"]]))
    _expect(len(frames) == len(_clip()), "detections for each keyframe")
    for detection in (each for found in frames for each in found):
        x0, y0, x1, y1 = detection.box
        _expect(0 <= x0 < x1 <= WIDTH and 0 <= y0 < y1 <= HEIGHT, "boxes inside the picture")


def _segmenter(backend: Any) -> None:
    clip = _clip()
    detections = [[_ball(shift)] for shift in range(len(clip))]
    if isinstance(backend, Tracker):
        tracked = _only(backend.track([clip], [detections]))
        _expect(len(tracked) == len(clip), "what is in each keyframe")
        for detection, segmentation in (each for found in tracked for each in found):
            _expect(detection.instance is not None, "an instance for each detection")
            _expect_mask(segmentation)
        return
    segmented = _only(backend.segment([clip], [detections]))
    _expect([len(found) for found in segmented] == [1] * len(clip), "one mask per detection")
    for found in segmented:
        _expect_mask(found[0])


def _faces(backend: Any) -> None:
    from skimage.data import astronaut

    faces: list[Face] = _only(backend.faces([astronaut()]))
    for face in faces:
        _expect(face.landmarks.shape == (5, 2), "five landmarks")
        _expect_unit(face.embedding)


def _embedder(backend: Any) -> None:
    _expect_unit(_only(backend.embed([_scene().image], [_ball_mask(0)])))


def _image_text(backend: Any) -> None:
    _expect(-1 <= _only(backend.similarity([_scene().image], ["a ball"])) <= 1, "a cosine in [-1, 1]")


def _inpainter(backend: Any) -> None:
    image, mask = _scene().image, ~_ball_mask(0)
    filled = _only(backend.fill([FillRequest(image, mask, "a meadow", seed=0)]))
    _expect(filled.shape == image.shape and filled.dtype == np.uint8, "a picture of the same size")
    _expect(bool(np.array_equal(filled[~mask], image[~mask])), "that the subject stays as it is")


def _editor(backend: Any) -> None:
    subject = np.where(_ball_mask(0)[..., None], _scene().image, 255).astype(np.uint8)
    edited = _only(backend.edit([EditRequest(subject, "the ball on a beach", seed=0)]))
    _expect(edited.ndim == 3 and edited.shape[2] == 3 and edited.dtype == np.uint8, "a picture in RGB")


TRIALS: dict[str, Callable[[Any], None]] = {
    "shots": _shots,
    "text": _text,
    "aesthetic": _aesthetic,
    "safety": _safety,
    "captioner": _captioner,
    "detector": _detector,
    "segmenter": _segmenter,
    "faces": _faces,
    "embedder": _embedder,
    "image_text": _image_text,
    "inpainter": _inpainter,
    "editor": _editor,
}
"""Per task: gives a loaded backend its input, and raises :class:`TrialError` if the answer has another form."""


def _clip() -> list[Keyframe]:
    return [_scene(0), _scene(1)]


def _scene(shift: int = 0) -> Keyframe:
    """A red ball before a textured wall; it moves from keyframe to keyframe, and a little until the neighbour."""
    return Keyframe(time=float(shift), image=_picture(shift), neighbour=_picture(shift + 0.1))


def _picture(shift: float) -> Image:
    noise = np.random.default_rng(0).integers(0, 40, (HEIGHT, WIDTH, 3), np.uint8)
    image = np.ascontiguousarray(noise + np.linspace(40, 160, WIDTH, dtype=np.uint8)[None, :, None])
    cv2.circle(image, _centre(shift), RADIUS, (210, 40, 30), -1, cv2.LINE_AA)
    return image


def _centre(shift: float) -> tuple[int, int]:
    return 140 + round(30 * shift), 110


def _ball_mask(shift: float) -> Mask:
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    cv2.circle(mask, _centre(shift), RADIUS, 1, -1)
    return mask.astype(bool)


def _ball(shift: float) -> Detection:
    x, y = _centre(shift)
    box = (x - RADIUS, y - RADIUS, x + RADIUS, y + RADIUS)
    return Detection("ball", box, 0.9, prior=_ball_mask(shift))


def _only(answers: Sequence[Any]) -> Any:
    _expect(len(answers) == 1, "one answer for one input")
    return answers[0]


def _expect_mask(found: Segmentation) -> None:
    _expect(found.mask.shape == (HEIGHT, WIDTH) and found.mask.dtype == np.bool_, "masks of the picture's size")
    _expect(0 <= found.score <= 1, "scores in [0, 1]")


def _expect_unit(vector: Any) -> None:
    _expect(vector.ndim == 1 and bool(np.isclose(np.linalg.norm(vector), 1, atol=1e-2)), "a vector of length 1")


def _expect(holds: bool, what: str) -> None:
    if not holds:
        raise TrialError(f"it should have given back {what}")


def _device_and_memory() -> tuple[str, float]:
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available() and (used := torch.cuda.max_memory_allocated()):
        return "cuda", used / 1e9
    if "onnxruntime" in sys.modules:
        from models.onnx_session import providers

        if providers()[0].startswith("CUDA"):
            return "cuda", _most_resident() / 1e9
    return "cpu", _most_resident() / 1e9


def _most_resident() -> int:
    """Most bytes that the process has had in memory."""
    try:
        # The process's own: what getrusage tells may be the parent's.
        for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    import resource

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def _main() -> None:
    # Whatever the backend's libraries print goes to stderr: stdout is for the answer alone.
    answer_to = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    order = json.load(sys.stdin)
    try:
        config = backend_config(order["task"], order["options"])
        answer = asdict(run_trial(order["task"], config, Path(order["root"])))
    except Exception as error:  # noqa: BLE001 - a backend may raise anything, and the row tells what
        said = str(error).strip() or type(error).__name__
        answer = {"error": said if isinstance(error, UserError) else f"{type(error).__name__}: {said}"}
    with answer_to:
        json.dump(answer, answer_to)


if __name__ == "__main__":
    _main()
