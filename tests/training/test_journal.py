from __future__ import annotations

import json
import sys
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from training.config import LogConfig
from training.journal import METRICS, Journal, JsonLines, MissingTrackerError, TensorBoard, resident_gb

NUMBERS = {
    "loss": 0.5,
    "gradient_norm": 0.25,
    "samples_per_s": 2.0,
    "tokens_per_s": 300.0,
    "mfu": 0.125,
    "data_wait_share": 0.5,
    "memory_gb": 1.5,
}


def steps(file: Path) -> list[int]:
    return [json.loads(line)["step"] for line in file.read_text().splitlines()]


class TestJsonLines:
    def test_a_line_is_there_at_once(self, tmp_path: Path) -> None:
        lines = JsonLines(tmp_path / METRICS, 0)
        lines.write(1, {"loss": 0.1 + 0.2})
        assert json.loads((tmp_path / METRICS).read_text()) == {"step": 1, "loss": 0.1 + 0.2}
        lines.close()

    @pytest.mark.parametrize("resumed_from", [0, 2, 3, 9])
    def test_forgets_what_lies_behind_the_checkpoint(self, tmp_path: Path, resumed_from: int) -> None:
        file = tmp_path / METRICS
        # Validation writes a second line of a step.
        file.write_text("".join(f'{{"step": {step}, "loss": 1.0}}\n' for step in (1, 2, 2, 3, 4)))
        lines = JsonLines(file, resumed_from)
        lines.close()
        assert steps(file) == [step for step in (1, 2, 2, 3, 4) if step <= resumed_from]
        assert list(tmp_path.iterdir()) == [file]

    @given(cut=st.integers(1, 30))
    def test_a_line_that_was_cut_off_is_no_line(self, tmp_path_factory: pytest.TempPathFactory, cut: int) -> None:
        file = tmp_path_factory.mktemp("cut") / METRICS
        line = '{"step": 2, "loss": 0.125, "lr": 1e-5}\n'
        file.write_text('{"step": 1, "loss": 1.0}\n' + line[: len(line) - cut])
        lines = JsonLines(file, 2)
        lines.write(2, {"loss": 0.125})
        lines.close()
        assert steps(file) == [1, 2]


class TestTensorBoard:
    def test_hides_what_lies_behind_the_checkpoint(self, tmp_path: Path) -> None:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        for resumed_from, last, loss in ((0, 5, 1.0), (3, 6, 2.0)):
            board = TensorBoard(tmp_path, resumed_from)
            for step in range(resumed_from + 1, last + 1):
                board.write(step, {"loss": loss})
            board.close()
        events = EventAccumulator(str(tmp_path)).Reload()
        points = [(point.step, point.value) for point in events.Scalars("loss")]
        assert points == [(1, 1.0), (2, 1.0), (3, 1.0), (4, 2.0), (5, 2.0), (6, 2.0)]


class TestJournal:
    def journal(self, run: Path, **options: Any) -> tuple[Journal, StringIO]:
        said = StringIO()
        config = LogConfig(every=10, tensorboard=False)
        console = Console(file=said, width=300)
        return Journal(config, run, step=0, steps=25, settings={}, console=console, **options), said

    def test_tells_now_and_then_and_writes_always(self, tmp_path: Path) -> None:
        journal, said = self.journal(tmp_path)
        for step in range(1, 26):
            journal.step(step, NUMBERS, 3725.0)
        journal.note(25, {"val_loss": 0.75}, "validation loss 0.7500")
        journal.close()
        lines = said.getvalue().splitlines()
        assert [line.split()[1] for line in lines] == ["1/25", "10/25", "20/25", "25/25", "25/25"]
        assert lines[0] == (
            "step 1/25  loss 0.5000  gradient 0.25  2 samples/s  300 tokens/s  MFU 12.5%  "
            "waiting for data 50%  1.5 GB  1:02:05 left"
        )
        assert lines[-1] == "step 25/25  validation loss 0.7500"
        assert steps(tmp_path / METRICS) == [*range(1, 26), 25]

    def test_time_left_below_an_hour(self, tmp_path: Path) -> None:
        journal, said = self.journal(tmp_path)
        journal.step(10, NUMBERS, 61.4)
        journal.close()
        assert said.getvalue().endswith("  1:01 left\n")


class TestTracker:
    @pytest.mark.parametrize(
        ("tracker", "named"),
        # trackio goes on in the run of that name, wandb in that of that id, in which some letters may not stand.
        [("trackio", {"name": "my run:1"}), ("wandb", {"name": "my run:1", "id": "my-run-1"})],
    )
    def test_gets_settings_and_numbers_and_what_to_go_on_by(
        self,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        tracker: Literal["trackio", "wandb"],
        named: dict[str, str],
    ) -> None:
        calls: list[tuple[str, Any]] = []
        service = SimpleNamespace(
            init=lambda **given: calls.append(("init", given)),
            log=lambda numbers, step: calls.append(("log", (step, numbers))),
            finish=lambda: calls.append(("finish", None)),
        )
        monkeypatch.setitem(sys.modules, tracker, service)
        config = LogConfig(tensorboard=False, tracker=tracker, project="mine")
        run = tmp_path / "my run:1"
        run.mkdir()
        journal = Journal(config, run, step=0, steps=1, settings={"seed": 3}, console=Console(file=StringIO()))
        journal.step(1, NUMBERS, 0)
        journal.close()
        expected = {"project": "mine", "config": {"seed": 3}, "resume": "allow", **named}
        assert calls == [("init", expected), ("log", (1, NUMBERS)), ("finish", None)]

    def test_that_is_not_installed(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "wandb", None)
        config = LogConfig(tensorboard=False, tracker="wandb")
        with pytest.raises(MissingTrackerError, match=r"log.tracker=wandb .*pip install wandb"):
            Journal(config, tmp_path, step=0, steps=1, settings={}, console=Console(file=StringIO()))


def test_memory_of_this_process() -> None:
    before = resident_gb()
    held = bytearray(b"x") * 200_000_000
    assert 0.15 < resident_gb() - before < 0.25
    del held
