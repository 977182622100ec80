from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image as PILImage

from curation.sheets import samples as sheet
from curation.sheets import tiles
from curation.sheets.samples import (
    ABOUT,
    DETAILS,
    GAP,
    MARGIN,
    PAGE,
    PICTURE,
    RED,
    SUBJECT_COLOURS,
    NothingToDrawError,
    UnknownReasonError,
    draw_sheet,
)
from curation.workspace import Workspace
from stages.measure import encode_rle
from stages.picture import encode_png
from stages.records import Annotation, Clip, Proof, Reference, Score, Source, Subject, SubjectFrame, Verdict

WIDTH, HEIGHT, FPS = 320, 180, 10
GREEN, YELLOW, PURPLE = (20, 200, 60), (210, 190, 30), (90, 10, 160)
THUMBNAIL_X = MARGIN + PICTURE[0] + ABOUT + 2 * GAP
ROW_Y_MARGIN = 2 * GAP
HOSTILE = [
    "",
    "\0\x1b[31m\u202e\u2066 evil\r\n\t" * 50,
    "x" * 200_000,
    "Ein Männchen über dem Fluß — Привет, 世界, مرحبا, 🐼" * 20,
    "e" + "\u0301" * 5000,
    "世界" * 3000,
]


def write_video(path: Path) -> None:
    """Two seconds of black."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for _ in range(2 * FPS):
            frame = av.VideoFrame.from_ndarray(np.zeros((HEIGHT, WIDTH, 3), np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def box_mask(x0: int, y0: int, x1: int, y1: int) -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[y0:y1, x0:x1] = True
    return mask


def flat(colour: tuple[int, int, int], width: int = 60, height: int = 40) -> bytes:
    return encode_png(np.full((height, width, 3), colour, np.uint8))


def source(uri: Path, number: int = 0) -> Source:
    return Source(
        source_id=f"source-{number}",
        uri=str(uri),
        video_id=f"video-{number}",
        bytes=1,
        container="mp4",
        codec="h264",
        width=WIDTH,
        height=HEIGHT,
        rotation=0,
        fps=FPS,
        frames=2 * FPS,
        frames_announced=2 * FPS,
        duration_s=2.0,
        audio_streams=0,
        caption=None,
        caption_source=None,
        licence=None,
        origin=None,
        fingerprint="f",
    )


def clip(number: int, video: int = 0, dropped: str | None = None) -> Clip:
    return Clip(f"clip-{number}", f"video-{video}", "span", 0, 20, 0.0, 2.0, 0, dropped, "f")


def score(number: int) -> Score:
    return Score(f"clip-{number}", 1.5, 12.0, 345.6, 0.0, 0.0, 0.1, None, None, [1, 2], "f")


def subject_frame(mask: np.ndarray, time: float) -> SubjectFrame:
    return SubjectFrame(
        time=time,
        box=[0.0, 0.0, 1.0, 1.0],
        mask=encode_rle(mask),
        crop_box=[0, 0, WIDTH, HEIGHT],
        detection_score=0.9,
        mask_score=0.9,
        area=0.2,
        overlap=0.0,
        border=0.0,
        fragments=1,
        straightness=0.0,
        brightness=100.0,
        sharpness=100.0,
        face=0.0,
        face_embedding=None,
        face_pose=None,
        image_embedding=[1.0],
        image_text=None,
        phash=0,
        shape=0,
        surroundings=[0.0] * 24,
    )


def subject(name: str, number: int, mask: np.ndarray, *, word: str = "panda", time: float = 1.0) -> Subject:
    return Subject(
        subject_id=f"subject-{name}",
        clip_id=f"clip-{number}",
        word=word,
        category="animal",
        instance=0,
        frame_width=WIDTH,
        frame_height=HEIGHT,
        best=0,
        frames=[subject_frame(mask, time)],
        crops=[flat((60, 60, 60), WIDTH, HEIGHT)],
        seen=3,
        detection_score=0.9,
        mask_score=0.9,
        area=float(mask.mean()),
        overlap=0.0,
        border=0.0,
        fragments=1,
        straightness=0.0,
        stability=0.8,
        brightness=100.0,
        sharpness=100.0,
        face=0.0,
        short_side=80.0,
        image_text=None,
        face_embedding=None,
        face_turn=None,
        image_embedding=[1.0],
        time=time,
        box=[0.0, 0.0, 1.0, 1.0],
        crop_box=[0, 0, WIDTH, HEIGHT],
        phash=0,
        shape=0,
        surroundings=[0.0] * 24,
        content="drawn",
        fingerprint="f",
    )


def reference(name: str, target: str, *, kind: str = "original", image: bytes | None = None) -> Reference:
    return Reference(
        reference_id=f"reference-{name}",
        subject_id=f"subject-{target}",
        kind=kind,
        source_subject_id=f"subject-{target}",
        source_clip_id="clip-0",
        source_time=1.0,
        source_frame=0,
        scene_subject_id=None,
        revealed=None,
        image=flat(GREEN) if image is None else image,
        mask=encode_rle(np.ones((40, 60), bool)),
        width=60,
        height=40,
        method="cut out",
        seed=0,
        fingerprint="f",
    )


def proof(name: str) -> Proof:
    return Proof(
        reference_id=f"reference-{name}",
        identity_similarity=0.87,
        identity_by="image",
        rival_similarity=0.4,
        rival_subject_id="subject-cut",
        context_difference=0.31,
        pose_difference=0.2,
        background_difference=0.3,
        scale_difference=0.1,
        hash_distance=12,
        time_distance=None,
        copy_risk=0.1,
        image_text=None,
        nudity=None,
        brightness=100.0,
        sharpness=100.0,
        phash=0,
        subject_change=None,
        background_change=None,
        halo=None,
        second_subject=None,
        fingerprint="f",
    )


def verdict(name: str, kind: str, *reasons: str) -> Verdict:
    return Verdict(f"{kind}-{name}", kind, not reasons, list(reasons))


def annotation(caption: str) -> Annotation:
    return Annotation("clip-0", caption, "manifest", ["panda"], 3, "f")


def fill(workspace: Workspace, video: Path) -> None:
    """One sample of two subjects (left and right), one clip, one subject and one reference that were dropped."""
    workspace.append([source(video)])
    workspace.append([clip(0), clip(1)])
    workspace.append([score(0), score(1)])
    workspace.append([annotation("a panda eats bamboo")])
    workspace.append(
        [
            subject("left", 0, box_mask(20, 20, 150, 160)),
            subject("right", 0, box_mask(200, 60, 300, 160), word="ball"),
            subject("cut", 0, box_mask(100, 50, 220, 130), word="tree"),
        ]
    )
    workspace.append(
        [
            reference("a", "left"),
            reference("b", "right", kind="other_frame", image=flat(YELLOW)),
            reference("c", "right", kind="inpainted", image=flat(PURPLE)),
        ]
    )
    workspace.append([proof(name) for name in "abc"])
    workspace.append(
        [
            verdict("0", "clip"),
            verdict("1", "clip", "dark", "text"),
            verdict("left", "subject"),
            verdict("right", "subject"),
            verdict("cut", "subject", "cut_off"),
            verdict("a", "reference"),
            verdict("b", "reference"),
            verdict("c", "reference", "other_identity", "dark"),
        ]
    )


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("video") / "black.mp4"
    write_video(path)
    return path


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory, video: Path) -> Path:
    workspace = Workspace.open(tmp_path_factory.mktemp("filled"), create=True)
    fill(workspace, video)
    return Path(workspace.uri)


@pytest.fixture
def workspace(filled: Path, tmp_path: Path) -> Workspace:
    """A copy of the filled one, to change."""
    shutil.copytree(filled, tmp_path / "pandas")
    return Workspace.open(tmp_path / "pandas")


@pytest.fixture
def empty(tmp_path: Path) -> Workspace:
    return Workspace.open(tmp_path / "empty", create=True)


def drawn(path: Path) -> np.ndarray:
    return np.asarray(PILImage.open(path).convert("RGB"))


def where(page: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    """Rows and columns of the pixels of exactly this colour."""
    return np.argwhere((page == colour).all(axis=-1))


def first_frame(page: np.ndarray) -> tuple[int, int]:
    """Top of the first row's picture (below the first grey line) and the height of a 16:9 frame in it."""
    lines = np.flatnonzero((page[:, MARGIN : PAGE - MARGIN] == tiles.LINE).all(axis=(1, 2)))
    return int(lines[0]) + 1 + GAP, round(PICTURE[0] * HEIGHT / WIDTH)


def test_masks_lie_where_the_subjects_are(workspace: Workspace, tmp_path: Path) -> None:
    assert draw_sheet(workspace, tmp_path / "sheet.png") == 1
    page = drawn(tmp_path / "sheet.png")
    assert page.shape[1] == PAGE
    top, height = first_frame(page)
    scale = PICTURE[0] / WIDTH

    def at(x: int, y: int) -> np.ndarray:
        return page[round(top + y * scale), round(MARGIN + x * scale)].astype(int)

    for colour, (x, y) in zip(SUBJECT_COLOURS, [(85, 110), (250, 110)], strict=False):
        assert np.abs(at(x, y) - 0.3 * np.array(colour)).max() < 12
    assert at(175, 100).max() < 12  # between the two; the dropped subject there is not shown
    frame = page[top : top + height, MARGIN : MARGIN + PICTURE[0]]
    for colour, left, right in zip(SUBJECT_COLOURS, (20, 200), (150, 300), strict=False):
        outline = where(frame, colour)[:, 1]
        assert left - 3 <= outline.min() / scale <= left + 3
        assert right - 3 <= outline.max() / scale <= right + 3


def test_only_accepted_references_stand_under_their_subject(workspace: Workspace, tmp_path: Path) -> None:
    draw_sheet(workspace, tmp_path / "sheet.png")
    page = drawn(tmp_path / "sheet.png")
    for colour, picture in zip(SUBJECT_COLOURS, (GREEN, YELLOW), strict=False):
        border = where(page[:, THUMBNAIL_X:], colour)
        inside = where(page[:, THUMBNAIL_X:], picture)
        assert len(inside) > 1000
        assert (border.min(axis=0) < inside.min(axis=0)).all()
        assert (border.max(axis=0) > inside.max(axis=0)).all()
    for picture in (GREEN, YELLOW):
        assert (where(page, picture)[:, 1] >= THUMBNAIL_X).all()
    assert not len(where(page, PURPLE))


def test_the_largest_subject_chooses_the_frame(workspace: Workspace, tmp_path: Path) -> None:
    workspace.replace(
        Subject,
        [
            subject("left", 0, box_mask(20, 20, 150, 160), time=0.5),
            subject("right", 0, box_mask(200, 60, 300, 160), word="ball", time=1.5),
        ],
    )
    draw_sheet(workspace, tmp_path / "sheet.png")
    page = drawn(tmp_path / "sheet.png")
    top, height = first_frame(page)
    frame = page[top : top + height, MARGIN : MARGIN + PICTURE[0]]
    assert len(where(frame, SUBJECT_COLOURS[0]))
    assert not len(where(frame, SUBJECT_COLOURS[1]))
    assert len(where(page, SUBJECT_COLOURS[1]))


@pytest.mark.parametrize("broken", ["gone", "garbage", "no source"])
def test_video_that_cannot_be_read_is_a_grey_tile(broken: str, workspace: Workspace, tmp_path: Path) -> None:
    path = tmp_path / "broken.mp4"
    if broken == "garbage":
        path.write_bytes(b"nothing" * 1000)
    workspace.replace(Source, [] if broken == "no source" else [source(path)])
    assert draw_sheet(workspace, tmp_path / "sheet.png") == 1
    page = drawn(tmp_path / "sheet.png")
    top, _ = first_frame(page)
    assert (page[top + 20, MARGIN + 20 : MARGIN + PICTURE[0] - 20] == sheet.GREY).all()
    assert len(where(page, GREEN))


def test_one_broken_video_leaves_the_others(workspace: Workspace, tmp_path: Path) -> None:
    workspace.append([source(tmp_path / "gone.mp4", 7)])
    workspace.append([clip(7, video=7)])
    workspace.append([subject("g", 7, box_mask(20, 20, 150, 160))])
    workspace.append([reference("g", "g")])
    workspace.append([proof("g")])
    workspace.append([verdict("7", "clip"), verdict("g", "subject"), verdict("g", "reference")])
    assert draw_sheet(workspace, tmp_path / "sheet.png") == 2
    page = drawn(tmp_path / "sheet.png")
    assert len(where(page, sheet.GREY))
    assert (page[:, MARGIN : MARGIN + PICTURE[0]].max(axis=-1) < 8).sum() > 10_000  # the black frame


@pytest.mark.parametrize("caption", HOSTILE, ids=["empty", "control", "long", "scripts", "marks", "no spaces"])
def test_no_caption_breaks_the_grid(caption: str, workspace: Workspace, tmp_path: Path) -> None:
    workspace.replace(Annotation, [annotation(caption)])
    assert draw_sheet(workspace, tmp_path / "sheet.png") == 1
    page = drawn(tmp_path / "sheet.png")
    assert page.shape[0] < 900
    text_right = MARGIN + PICTURE[0] + GAP + ABOUT
    top, _ = first_frame(page)
    assert (page[top:, text_right : text_right + GAP] == 255).all()
    assert (page[:, :MARGIN] == 255).all()
    assert (page[:, PAGE - MARGIN :] == 255).all()


def test_word_and_path_of_any_length_stay_in_their_place(workspace: Workspace, video: Path, tmp_path: Path) -> None:
    long = subject("left", 0, box_mask(20, 20, 150, 160), word="ä\n" * 5000)
    workspace.replace(Subject, [long])
    workspace.replace(Source, [replace(source(video), uri="/" + "n" * 5000)])
    assert draw_sheet(workspace, tmp_path / "sheet.png") == 1
    assert drawn(tmp_path / "sheet.png").shape[1] == PAGE


def test_picture_that_is_none_is_a_grey_tile(workspace: Workspace, tmp_path: Path) -> None:
    workspace.replace(Reference, [reference("a", "left", image=b"no picture")])
    assert draw_sheet(workspace, tmp_path / "sheet.png") == 1
    assert len(where(drawn(tmp_path / "sheet.png"), sheet.GREY))


def test_split_and_stand_ins_are_told_once_packed(workspace: Workspace, tmp_path: Path) -> None:
    draw_sheet(workspace, tmp_path / "before.png")
    shards = Path(workspace.path("shards"))
    shards.mkdir()
    pq.write_table(pa.table({"key": ["clip-0", "clip-9"], "split": ["val", "train"]}), shards / "index.parquet")
    (shards / "manifest.json").write_text('{"config": {"models": {"segmenter": {"backend": "grabcut"}, "text": null}}}')
    draw_sheet(workspace, tmp_path / "after.png")
    before, after = drawn(tmp_path / "before.png"), drawn(tmp_path / "after.png")
    assert not len(where(before, sheet.SPLIT_COLOURS["val"]))
    assert len(where(after, sheet.SPLIT_COLOURS["val"]))
    assert not len(where(before, sheet.AMBER))
    assert len(where(after, sheet.AMBER))
    assert not len(where(after, sheet.SPLIT_COLOURS["train"]))


def test_most_bounds_the_rows(workspace: Workspace, tmp_path: Path) -> None:
    workspace.append([clip(2), clip(3)])
    workspace.append([verdict("2", "clip", "dark"), verdict("3", "clip", "dark")])
    assert draw_sheet(workspace, tmp_path / "three.png", rejected="dark") == 4
    assert draw_sheet(workspace, tmp_path / "one.png", rejected="dark", most=2) == 2
    with pytest.raises(NothingToDrawError, match="at least one"):
        draw_sheet(workspace, tmp_path / "none.png", most=0)


def test_rejected_subject_has_its_mask_outlined(workspace: Workspace, tmp_path: Path) -> None:
    workspace.replace(Source, [])  # the stored crop is enough
    assert draw_sheet(workspace, tmp_path / "sheet.png", rejected="cut_off") == 1
    page = drawn(tmp_path / "sheet.png")
    top, height = first_frame(page)
    scale = PICTURE[0] / WIDTH
    outline = where(page[top : top + height, MARGIN : MARGIN + PICTURE[0]], RED) / scale
    assert np.allclose([*outline.min(axis=0), *outline.max(axis=0)], [50, 100, 130, 220], atol=3)


def test_rejected_clip_and_reference_are_shown(workspace: Workspace, tmp_path: Path) -> None:
    assert draw_sheet(workspace, tmp_path / "text.png", rejected="text") == 1
    page = drawn(tmp_path / "text.png")
    top, height = first_frame(page)
    assert page[top + 5 : top + height - 5, MARGIN + 5 : MARGIN + PICTURE[0] - 5].max() < 12
    assert draw_sheet(workspace, tmp_path / "identity.png", rejected="other_identity") == 1
    page = drawn(tmp_path / "identity.png")
    assert len(where(page, PURPLE)) > 1000
    assert len(where(page, (60, 60, 60))) > 1000  # the target's own crop beside it


def test_clip_without_scores_is_shown(workspace: Workspace, tmp_path: Path) -> None:
    workspace.replace(Clip, [clip(0, dropped="too_short")])
    workspace.replace(Score, [])
    workspace.replace(Verdict, [verdict("0", "clip", "too_short")])
    assert draw_sheet(workspace, tmp_path / "sheet.png", rejected="too_short") == 1


@pytest.mark.parametrize("reason", ["ugly", "dark' OR '1'='1", ""])
def test_unknown_reason_lists_those_that_occur(reason: str, workspace: Workspace, tmp_path: Path) -> None:
    with pytest.raises(UnknownReasonError, match=r"dark 2, text 1, cut_off 1, other_identity 1"):
        draw_sheet(workspace, tmp_path / "sheet.png", rejected=reason)
    assert not (tmp_path / "sheet.png").exists()


def test_empty_workspace_has_nothing_to_draw(empty: Workspace, tmp_path: Path) -> None:
    with pytest.raises(NothingToDrawError, match="no samples yet"):
        draw_sheet(empty, tmp_path / "sheet.png")
    with pytest.raises(NothingToDrawError, match="nothing was dropped"):
        draw_sheet(empty, tmp_path / "sheet.png", rejected="dark")


def test_same_workspace_gives_the_same_bytes(workspace: Workspace, tmp_path: Path) -> None:
    for name in ("one.png", "two.png"):
        draw_sheet(workspace, tmp_path / name)
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()


def test_width_of_the_columns_fills_the_page() -> None:
    assert PICTURE[0] + ABOUT + DETAILS + 2 * GAP == PAGE - 2 * MARGIN
