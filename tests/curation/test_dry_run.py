"""The plan of a run, which starts nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
from rich.console import Console

from curation.cli import BAD_USAGE, DONE
from curation.config import load_config
from curation.dry_run import expenses, plan, show_plan
from models.registry import MissingWeightsError
from stages.config import CONFIG_FOLDER
from training.cli import main

KALEIDO = CONFIG_FOLDER / "kaleido.yaml"


def groups(config_file: Path, *overrides: str) -> dict[str, list[str]]:
    """Per group of stages, the tasks whose models its workers hold."""
    return {
        "+".join(group.operator.stages): [held.task for held in group.held]
        for group in plan(load_config(config_file, overrides))
    }


def test_every_model_of_a_profile_is_held_by_the_workers_that_use_it() -> None:
    found = groups(KALEIDO)
    assert found["score"] == ["text", "aesthetic", "safety"]
    assert found["ground"] == ["detector"]
    assert found["describe"] == ["embedder", "faces", "image_text"]
    assert found["synthesise"] == ["inpainter", "editor"]
    assert found["verify"] == ["embedder", "faces", "image_text", "safety", "detector"]
    assert found["ingest"] == found["encode"] == found["write"] == []
    chosen = load_config(KALEIDO).models.chosen()
    assert {task for tasks in found.values() for task in tasks} == set(chosen)


def test_what_is_not_asked_for_is_not_held() -> None:
    assert "editor" not in groups(KALEIDO, "references.moved.count=0")["synthesise"]
    assert "inpainter" in groups(KALEIDO, "references.inpainted.count=0")["synthesise"]
    nothing_painted_behind = groups(KALEIDO, "references.inpainted.count=0", "references.swapped.count=0")
    assert "inpainter" not in nothing_painted_behind["synthesise"]
    assert "detector" not in nothing_painted_behind["verify"]
    assert "detector" not in groups(KALEIDO, "verify.second_subjects=false")["verify"]
    assert groups(KALEIDO, "split.by=stride")["split"] == []


def test_the_profile_fits_one_gpu_and_names_who_shares_it() -> None:
    planned = plan(load_config(KALEIDO))
    for step in ("annotate", "references", "verify", "split"):
        assert sum(group.operator.gpus for group in planned if group.step == step) <= 1
    (segment,) = (group for group in planned if group.operator.stages == ("segment",))
    assert segment.per_gpu == 5
    assert next(group for group in planned if group.step == "encode").per_gpu == 0


def test_weights_that_are_there_are_weighed(tmp_path: Path) -> None:
    folder = tmp_path / "IDEA-Research" / "grounding-dino-base"
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(bytes(3_000_000))
    config = load_config(KALEIDO, [f"models.root={tmp_path}"])
    (ground,) = (group for group in plan(config) if group.operator.stages == ("ground",))
    assert ground.gb == pytest.approx(0.003)


def test_costs_come_dearest_first_and_follow_what_is_asked_of_each_model() -> None:
    found = expenses(load_config(KALEIDO))
    costs = [expense.tflop_per_clip for expense in found]
    assert costs == sorted(costs, reverse=True)
    assert {"detector", "segmenter", "captioner", "editor"} <= {expense.task for expense in found}
    (few,) = (expense for expense in found if expense.task == "detector")
    (many,) = (e for e in expenses(load_config(KALEIDO, ["annotate.look.keyframes=16"])) if e.task == "detector")
    # Besides the keyframes, the detector looks for second subjects in what was painted.
    assert many.times - few.times == 8 < few.times
    assert many.tflop_per_clip - few.tflop_per_clip == pytest.approx(8 * few.tflop)


def test_missing_weights_are_told_after_the_plan(tmp_path: Path) -> None:
    console = Console(record=True, width=160, file=(tmp_path / "out").open("w"))
    with pytest.raises(MissingWeightsError, match="grounding-dino-base") as error:
        show_plan(load_config(KALEIDO, [f"models.root={tmp_path}"]), 80, console)
    told = console.export_text()
    assert "Workers" in told
    assert "Order of cost" in told
    # All of them, not only the first, and how to get them.
    assert "sam2.1-hiera-large" in str(error.value)
    assert "s2v models fetch" in str(error.value)


def test_a_gpu_that_is_too_small_is_told(tmp_path: Path) -> None:
    config = load_config(KALEIDO, ["models.root=nowhere"])
    console = Console(record=True, width=160, file=(tmp_path / "out").open("w"))
    with pytest.raises(MissingWeightsError):
        show_plan(config, 24, console)
    assert "> 24" in console.export_text()


def test_nothing_is_started_or_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["curate", "--dry-run", "--config", str(CONFIG_FOLDER / "embedded.yaml")]) == DONE
    assert list(tmp_path.iterdir()) == []
    assert main(["curate", "--dry-run", "--config", str(KALEIDO), "models.root=nowhere"]) == BAD_USAGE
    assert "not there under models.root" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
