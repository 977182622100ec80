"""What is measured on: videos built on the spot, and rows that stand in for the subject models' findings."""

from __future__ import annotations

import shutil
import struct
import subprocess
from collections.abc import Sequence
from pathlib import Path

import imageio_ffmpeg
import numpy as np

from curation.config import Config
from curation.demo import VIDEOS, build_demo
from curation.steps import clips_of, clips_with_references, write_verdicts
from curation.workspace import Workspace
from stages.measure import encode_rle
from stages.picture import encode_png
from stages.records import Annotation, Clip, Proof, Reference, Score, Subject, SubjectFrame

PLANTED = "planted"
EMBEDDING = 512
"""Length of planted embeddings: that of common image and face networks."""


def ffmpeg(*arguments: str) -> None:
    """Run ffmpeg quietly."""
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-nostdin", "-y", "-loglevel", "error", *arguments]
    subprocess.run(command, check=True)


def own_or(own: Path | None, build: Sequence[Path]) -> list[Path]:
    """The videos of the user's folder, or those that were built."""
    if own is None:
        return list(build)
    found = sorted(path for path in own.rglob("*") if path.suffix.lower() in {".mp4", ".mkv", ".mov", ".webm", ".avi"})
    if not found:
        raise SystemExit(f"no videos in {own}")
    return found


def demo_videos(folder: Path) -> list[Path]:
    """The demo videos that can be decoded, each content once."""
    build_demo(folder)
    return [folder / f"{video.name}.mp4" for video in VIDEOS]


def looped_demo(folder: Path, count: int, seconds: float) -> list[Path]:
    """``count`` different videos of 640 x 360 at 24 frames a second: the demo's, strung together by stream copy."""
    build_demo(folder / "demo")
    parts = [f"{video.name}.mp4" for video in VIDEOS if video.size == (640, 360) and video.fps == 24]
    videos = []
    for number in range(count):
        turned = [parts[(number + place) % len(parts)] for place in range(len(parts))]
        playlist = folder / "demo" / f"{number:04d}.ffconcat"
        repeats = int(seconds // 40) + 1
        playlist.write_text("ffconcat version 1.0\n" + "".join(f"file {part}\n" for part in turned * repeats))
        videos.append(folder / f"looped-{number:04d}.mp4")
        ffmpeg("-f", "concat", "-i", str(playlist), "-t", str(seconds), "-c", "copy", str(videos[-1]))
    return videos


def tiny_videos(folder: Path, count: int, seconds: float = 2) -> list[Path]:
    """``count`` videos of 64 x 48 with the same pictures and other bytes: each ends with a box that players skip."""
    folder.mkdir(parents=True, exist_ok=True)
    base = _pattern(folder.parent / "pattern.mp4", seconds).read_bytes()
    videos = [folder / f"tiny-{number:06d}.mp4" for number in range(count)]
    for number, video in enumerate(videos):
        video.write_bytes(base + struct.pack(">I4sQ", 16, b"free", number))
    return videos


def long_video(folder: Path, minutes: float) -> Path:
    """One video of 64 x 48 that lasts so many minutes: a pattern of ten seconds looped by stream copy."""
    folder.mkdir(parents=True, exist_ok=True)
    pattern = _pattern(folder / "pattern-10s.mp4", 10)
    video = folder / f"long-{minutes:g}.mp4"
    ffmpeg("-stream_loop", "-1", "-i", str(pattern), "-t", f"{minutes * 60:g}", "-c", "copy", str(video))
    return video


def copy_workspace(source: Path, target: Path) -> Workspace:
    """A workspace of its own with the same tables."""
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target)
    return Workspace.open(target)


def plant(workspace: Workspace, config: Config, *, picture_side: int = 256, chunk: int = 100) -> int:
    """Give every clip scores, a caption, one subject and one proven reference, as the annotating steps would.

    Their numbers pass the thresholds, no two clips look alike, and no two subjects are one individual, so that
    exactly every clip becomes a sample. Rows are written in chunks: planting takes as little memory for many clips as
    for few. Returns how many clips there are.

    Raises:
        SystemExit: if the thresholds of the config let something fall.
    """
    random = np.random.default_rng(0)
    clips = [clip for clip, _ in clips_of(workspace)]
    picture = encode_png(_texture(picture_side))
    for start in range(0, len(clips), chunk):
        part = clips[start : start + chunk]
        subjects = [_subject(clip, picture, random) for clip in part]
        workspace.append([_score(clip, random) for clip in part])
        workspace.append([_annotation(clip) for clip in part])
        workspace.append(subjects)
        references = [_reference(subject, picture, picture_side) for subject in subjects]
        workspace.append(references)
        workspace.append([_proof(reference) for reference in references])
    write_verdicts(workspace, config)
    if len(clips_with_references(workspace)) != len(clips):
        raise SystemExit("planted rows do not pass the thresholds of the config")
    return len(clips)


def _pattern(target: Path, seconds: float) -> Path:
    if not target.exists():
        source = f"testsrc2=size=64x48:rate=24:duration={seconds:g}"
        ffmpeg("-f", "lavfi", "-i", source, "-c:v", "libx264", "-g", "48", "-pix_fmt", "yuv420p", str(target))
    return target


def _texture(side: int) -> np.ndarray:
    """A picture that PNG compresses about as badly as a photograph."""
    noise = np.random.default_rng(0).normal(size=(side, side, 3))
    smooth = np.cumsum(np.cumsum(noise, axis=0), axis=1)
    return np.clip(128 + 2 * smooth / np.sqrt(side) + 2 * noise, 0, 255).astype(np.uint8)


def _score(clip: Clip, random: np.random.Generator) -> Score:
    return Score(
        clip_id=clip.clip_id,
        motion=5.0,
        brightness=120.0,
        sharpness=400.0,
        text_area=0.0,
        border=0.0,
        static=0.1,
        aesthetic=None,
        nudity=None,
        phashes=random.integers(-(2**63), 2**63, 8, np.int64).tolist(),
        fingerprint=PLANTED,
    )


def _annotation(clip: Clip) -> Annotation:
    return Annotation(
        clip_id=clip.clip_id,
        caption="A thing moves.",
        caption_source="sidecar",
        words=["thing"],
        subjects=1,
        fingerprint=PLANTED,
    )


def _subject(clip: Clip, picture: bytes, random: np.random.Generator) -> Subject:
    vector = random.normal(size=EMBEDDING)
    embedding = (vector / np.linalg.norm(vector)).tolist()
    frame = SubjectFrame(
        time=clip.start_s,
        box=[100.0, 50.0, 356.0, 306.0],
        mask="o" * 400,
        crop_box=[100, 50, 356, 306],
        detection_score=0.9,
        mask_score=0.9,
        area=0.2,
        overlap=0.0,
        border=0.0,
        fragments=1,
        straightness=0.0,
        brightness=120.0,
        sharpness=400.0,
        face=0.0,
        face_embedding=None,
        face_pose=None,
        image_embedding=embedding,
        image_text=None,
        phash=0,
        shape=0,
        surroundings=[0.0] * 24,
    )
    return Subject(
        subject_id=clip.clip_id[::-1],
        clip_id=clip.clip_id,
        word="thing",
        category="object",
        instance=0,
        frame_width=640,
        frame_height=360,
        best=0,
        frames=[frame] * 4,
        crops=[picture] * 4,
        seen=8,
        detection_score=0.9,
        mask_score=0.9,
        area=0.2,
        overlap=0.0,
        border=0.0,
        fragments=1,
        straightness=0.0,
        stability=0.9,
        brightness=120.0,
        sharpness=400.0,
        face=0.0,
        short_side=256.0,
        image_text=None,
        face_embedding=None,
        face_turn=None,
        image_embedding=embedding,
        time=frame.time,
        box=frame.box,
        crop_box=frame.crop_box,
        phash=frame.phash,
        shape=frame.shape,
        surroundings=frame.surroundings,
        content=clip.clip_id,
        fingerprint=PLANTED,
    )


def _reference(subject: Subject, picture: bytes, side: int) -> Reference:
    return Reference(
        reference_id=f"r{subject.subject_id[1:]}",
        subject_id=subject.subject_id,
        kind="original",
        source_subject_id=subject.subject_id,
        source_clip_id=subject.clip_id,
        source_time=subject.frames[0].time,
        source_frame=0,
        scene_subject_id=None,
        revealed=None,
        image=picture,
        mask=encode_rle(np.ones((side, side), bool)),
        width=side,
        height=side,
        method=PLANTED,
        seed=0,
        fingerprint=PLANTED,
    )


def _proof(reference: Reference) -> Proof:
    return Proof(
        reference_id=reference.reference_id,
        identity_similarity=1.0,
        identity_by="image",
        rival_similarity=None,
        rival_subject_id=None,
        context_difference=0.5,
        pose_difference=0.0,
        background_difference=0.0,
        scale_difference=0.0,
        hash_distance=0,
        time_distance=None,
        copy_risk=None,
        image_text=None,
        nudity=None,
        brightness=120.0,
        sharpness=400.0,
        phash=0,
        subject_change=None,
        background_change=None,
        halo=None,
        second_subject=None,
        fingerprint=PLANTED,
    )
