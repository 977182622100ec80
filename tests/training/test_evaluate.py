"""Real videos, references and networks, from the folder ``shared`` beside the repository."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from functools import cache
from io import StringIO
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from pydantic import ValidationError
from rich.console import Console
from tiny_clip import CLIP, write_clip, write_head, write_rated_clip

from models import registry
from models.laion_aesthetic import LaionAesthetic
from models.protocols import Image
from models.registry import BackendConfig
from stages.config import ConfigError, change
from stages.media import read_keyframes
from stages.picture import encode_png
from training.evaluation.evaluate import EvaluateConfig, evaluate
from training.evaluation.items import list_items, show
from training.evaluation.report import MetricInfo, Report, VideoResult

SHARED = Path(__file__).resolve().parents[2].parent / "shared"
needs_shared = pytest.mark.skipif(
    not (SHARED / "clips").is_dir() or not (SHARED / "weights").is_dir(),
    reason="the real clips and weights (../shared) are not on this machine",
)
CLASSICAL = change(EvaluateConfig(), ["models.faces=null", "models.detector=null", "models.aesthetic=null"])
WHOLE = change(EvaluateConfig(), [f"models.root={SHARED / 'weights'}", "frames=3", "copy_frames=1", "max_side=480"])


@cache
def frame(clip: str, seconds: float) -> Image:
    return read_keyframes(SHARED / "clips" / clip, [seconds], 0.05, 640)[0].image


def save(image: Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encode_png(np.ascontiguousarray(image)))


def shown(report: Report) -> str:
    console = Console(file=StringIO(), width=160)
    report.table(console)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    return str(text)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Report:
    """One video under two names: with its own person from another clip, and with somebody else; and a torn file."""
    folder = tmp_path_factory.mktemp("evaluate")
    videos, references = folder / "videos", folder / "references"
    videos.mkdir()
    for name in ("right", "wrong"):
        shutil.copyfile(SHARED / "clips/asl_personA_help.mkv", videos / f"{name}.mkv")
    shutil.copyfile(SHARED / "clips/bad_truncated_moov_missing.mp4", videos / "torn.mp4")
    save(frame("asl_personA_no.mkv", 0.9)[40:440, 120:520], references / "right/man.png")
    save(frame("asl_personB_book.mkv", 0.9)[40:440, 120:520], references / "wrong/woman.png")
    (references / "right.txt").write_text("A man signs.")
    return evaluate(videos, references, WHOLE)


@needs_shared
def test_the_same_person_s_face_is_nearer_than_another_s(report: Report) -> None:
    values = {video.name: video.values for video in report.videos}
    assert values["right.mkv"]["facesim"] > 0.6
    assert values["right.mkv"]["facesim"] > values["wrong.mkv"]["facesim"] + 0.3
    assert values["right.mkv"]["face_frames"] == 1


@needs_shared
def test_the_same_subject_is_nearer_than_another(report: Report) -> None:
    values = {video.name: video.values for video in report.videos}
    assert values["right.mkv"]["subj_s"] > values["wrong.mkv"]["subj_s"] + 0.1
    assert values["right.mkv"]["subjects_found"] == 1
    assert values["right.mkv"]["subj_s_sum"] == pytest.approx(3 * values["right.mkv"]["subj_s"])


@needs_shared
def test_a_video_with_the_reference_pasted_in_is_a_copy_and_one_of_the_subject_is_less(tmp_path: Path) -> None:
    bear = np.ascontiguousarray(frame("davis_bear.mp4", 0.8)[158:334, 81:358])
    grounds = [frame("koala_echidna.mp4", 1.0 + number / 8).copy() for number in range(4)]
    with av.open(str(tmp_path / "pasted.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=8)
        stream.height, stream.width = grounds[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        for number, ground in enumerate(grounds):
            ground[100:276, 100 + 40 * number : 377 + 40 * number] = bear
            container.mux(stream.encode(av.VideoFrame.from_ndarray(ground, format="rgb24")))
        container.mux(stream.encode())
    shutil.copyfile(SHARED / "clips/davis_bear.mp4", tmp_path / "shown.mp4")
    for name in ("pasted", "shown"):
        save(bear, tmp_path / f"references/{name}.bear.png")
    report = evaluate(tmp_path, tmp_path / "references", change(CLASSICAL, ["frames=4", "max_side=640"]))
    pasted, shown_anew = (video.values["copy_score"] for video in report.videos)
    assert pasted > 0.85
    assert shown_anew < pasted - 0.25


@needs_shared
def test_what_cannot_be_measured_says_why(report: Report) -> None:
    skipped = {metric.name: metric.skipped for metric in report.metrics if metric.skipped is not None}
    assert set(skipped) == {"image_text", "aesthetic"}
    assert "models.image_text is null" in (skipped["image_text"] or "")
    assert "does not exist" in (skipped["aesthetic"] or "")
    torn = report.videos[1]
    assert torn.name == "torn.mp4"
    assert "index (moov) is missing" in (torn.error or "")
    assert not torn.values


@needs_shared
def test_the_report_names_backends_videos_and_means(report: Report) -> None:
    whole = json.loads(report.to_json())
    backends = {metric["name"]: metric["backends"] for metric in whole["metrics"]}
    assert [backend["backend"] for backend in backends["subj_s"]] == ["yolox", "colour_texture"]
    faces = WHOLE.models.faces
    assert faces is not None
    assert backends["facesim"][0]["fingerprint"] == registry.fingerprint(faces, SHARED / "weights")
    assert backends["copy_score"]
    assert backends["motion"]
    values = [video["values"]["facesim"] for video in whole["videos"] if not video["error"]]
    assert whole["means"]["facesim"] == pytest.approx(sum(values) / 2)
    assert whole["counts"]["facesim"] == 2
    assert whole["videos"][0]["prompt"] == "A man signs."
    assert whole["videos"][0]["references"][0]["word"] == "man"
    assert whole["config"]["frames"] == 3
    text = shown(report)
    for expected in ("right.mkv", f"{whole['means']['facesim']:.3f}", "insightface", "aesthetic skipped", "torn.mp4"):
        assert expected in text


@needs_shared
def test_hostile_input_costs_one_video_each(tmp_path: Path) -> None:
    clip = str(SHARED / "clips/mdn_rabbit_vp8.webm")
    (tmp_path / "no.png").write_text("no picture")
    save(frame("mdn_rabbit_vp8.webm", 1.0), tmp_path / "yes.png")
    lines: list[Any] = [
        {"video": clip, "references": ["no.png"]},
        {"video": clip, "references": ["missing.png"]},
        {"video": "missing.mp4"},
        {"video": str(SHARED / "clips/bad_empty.mp4")},
        "nothing",
        {"video": clip},
        {"video": clip, "references": ["yes.png"]},
    ]
    manifest = tmp_path / "list.jsonl"
    manifest.write_text("\n".join(map(json.dumps, lines)))
    seen: list[VideoResult] = []
    report = evaluate(manifest, None, change(CLASSICAL, ["frames=2"]), seen.append)
    assert seen == list(report.videos)
    assert [video.error is not None for video in report.videos] == [True] * 5 + [False] * 2
    assert all(
        reason in str(video.error)
        for reason, video in zip(
            (
                "cannot be read as a picture",
                "missing.png does not exist",
                "missing.mp4 does not exist",
                "empty",
                "not an",
            ),
            report.videos,
            strict=False,
        )
    )
    assert report.videos[5].notes == {"copy_score": "no references"}
    assert set(report.videos[6].values) == {"motion", "copy_score", "copy_score_max"}
    assert report.counts == {"motion": 2, "copy_score": 1, "copy_score_max": 1}


class Words:
    """Counts the letters of the prompt; fails where there is an x."""

    class Config(BackendConfig):
        backend: str = "words"

    def __init__(self, config: Config, root: Path) -> None: ...

    def similarity(self, images: Sequence[Image], texts: Sequence[str]) -> list[float]:
        if "x" in texts[0]:
            raise RuntimeError("out of letters")
        return [len(text) / 10 for text in texts]


@needs_shared
def test_backends_come_from_the_registry_and_their_errors_cost_one_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(registry.BACKENDS["image_text"], "words", f"{__name__}:Words")
    config = change(CLASSICAL, ["models.image_text={backend: words}", "frames=2"])
    clip = str(SHARED / "clips/mdn_rabbit_vp8.webm")
    manifest = tmp_path / "list.jsonl"
    manifest.write_text("\n".join(json.dumps({"video": clip, "prompt": prompt}) for prompt in ("abc", "xyz", "")))
    report = evaluate(manifest, None, config)
    assert report.videos[0].values["image_text"] == pytest.approx(0.3)
    assert report.videos[1].notes["image_text"] == "RuntimeError: out of letters"
    assert report.videos[2].notes["image_text"] == "no prompt"
    assert report.means["image_text"] == pytest.approx(0.3)
    assert [metric.backends[0].backend for metric in report.metrics if metric.name == "image_text"] == ["words"]


@needs_shared
def test_missing_and_damaged_weights_skip_what_needs_them(tmp_path: Path) -> None:
    (tmp_path / "weights/yolox").mkdir(parents=True)
    (tmp_path / "weights/yolox/yolox_nano.onnx").write_text("no network")
    manifest = tmp_path / "list.jsonl"
    manifest.write_text(json.dumps({"video": str(SHARED / "clips/mdn_rabbit_vp8.webm")}))
    report = evaluate(manifest, None, change(EvaluateConfig(), [f"models.root={tmp_path / 'weights'}", "frames=2"]))
    skipped = {metric.name: metric.skipped or "" for metric in report.metrics}
    assert "insightface" in skipped["facesim"]
    assert "does not exist" in skipped["facesim"]
    assert "cannot be loaded" in skipped["subj_s"]
    assert set(report.means) == {"motion"}


def test_image_text_similarity_and_aesthetic_score_come_from_the_registry_s_networks(tmp_path: Path) -> None:
    """Tiny ones of random weights: what is shown is that frames and prompt reach them, and their scores the report."""
    weights = tmp_path / "weights"
    write_clip(weights / "tiny/clip", CLIP)
    write_rated_clip(weights / "tiny/rated", length=24, side=32)
    write_head(weights / "tiny/head.pth", length=24)
    random = np.random.default_rng(0)
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=8)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for _ in range(4):
            image = random.integers(0, 256, (3, 4, 3), dtype=np.uint8).repeat(16, 0).repeat(16, 1)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    (tmp_path / "list.jsonl").write_text(json.dumps({"video": "a.mp4", "prompt": "A cat runs."}))
    chosen = [
        f"models.root={weights}",
        "models.image_text={backend: open_clip, model: tiny/clip, device: cpu}",
        "models.aesthetic={backend: laion_aesthetic, clip: tiny/rated, head: tiny/head.pth, device: cpu}",
    ]
    config = change(CLASSICAL, chosen)

    report = evaluate(tmp_path / "list.jsonl", None, config)

    assert {metric.name: metric.skipped for metric in report.metrics}["aesthetic"] is None
    frames = show(list_items(tmp_path / "list.jsonl", None)[0], config.frames, config.max_side).images
    assert len(frames) == 4
    assert config.models.image_text is not None
    assert config.models.aesthetic is not None
    scorer = registry.build("image_text", config.models.image_text, weights)
    rater = registry.build("aesthetic", config.models.aesthetic, weights)
    values = report.videos[0].values
    assert values["image_text"] == pytest.approx(np.mean(scorer.similarity(frames, ["A cat runs."] * 4)), abs=1e-4)
    assert values["aesthetic"] == pytest.approx(np.mean(rater.aesthetic(frames)), abs=1e-3)
    assert json.loads(report.to_json())["config"]["models"]["aesthetic"]["head"] == "tiny/head.pth"


def test_the_aesthetic_score_is_chosen_by_name_and_its_options() -> None:
    assert change(EvaluateConfig(), ["models.aesthetic.batch=3"]).models.aesthetic == LaionAesthetic.Config(batch=3)
    with pytest.raises(ConfigError, match="no backend 'eyes'"):
        change(EvaluateConfig(), ["models.aesthetic={backend: eyes}"])


def test_configs_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ConfigError, match="no backend 'eyes'"):
        change(EvaluateConfig(), ["models.detector={backend: eyes}"])
    with pytest.raises(ConfigError, match="expected `backend: name`"):
        change(EvaluateConfig(), ["models.faces=insightface"])
    with pytest.raises(ValidationError):
        EvaluateConfig(frames=0)
    assert change(EvaluateConfig(), ["models.segmenter={backend: grabcut}"]).models.segmenter is not None


def test_a_table_of_hostile_names_steers_no_terminal() -> None:
    report = Report(
        (MetricInfo("motion"),),
        (
            VideoResult("[red]a\x1b[2J.mp4", values={"motion": 1.5}, notes={"facesim": "[bold]\x07none"}),
            VideoResult("b.mp4", error="[/] bad\x1b]0;title"),
        ),
        {},
    )
    text = shown(report)
    assert "\x1b" not in text
    assert "[red]a?[2J.mp4" in text
    assert "[bold]?none" in text
    assert "[/] bad?" in text


def test_without_a_single_readable_video_there_are_no_means() -> None:
    report = Report((MetricInfo("motion"),), (VideoResult("b.mp4", error="bad"),), {})
    assert report.means == {}
    assert json.loads(report.to_json())["counts"] == {}
    assert "bad" in shown(report)
