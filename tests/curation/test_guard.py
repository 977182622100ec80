from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curation.guard import KILLED_BY_WATCHDOG, Attempts, Guard, Item, Unit, Watchdog
from curation.workspace import Workspace

NAME = "step-0-unit"


class Doubles:
    """Doubles numbers; raises for batches with a bad one in them, and notes the batches."""

    def __init__(self, bad: Sequence[Any] = (), error: type[Exception] = ValueError) -> None:
        self.bad, self.error = set(bad), error
        self.batches: list[list[Any]] = []

    def run(self, batch: Sequence[Any]) -> list[Any]:
        self.batches.append(list(batch))
        if found := self.bad & set(batch):
            raise self.error(f"cannot double {sorted(found)[0]}")
        return [2 * value for value in batch]


def unit(*values: Any) -> Unit:
    return Unit("unit", [Item(f"key-{value}", f"uri-{value}", 1.0, value) for value in values])


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(str(tmp_path))


@pytest.fixture
def guard(workspace: Workspace):
    def make(*stages: Any, batch: int = 4, timeout_s: float = 60, crashes: int = 2) -> Guard:
        names = ["first", "second", "third"]
        return Guard(workspace, list(zip(names, stages, strict=False)), batch, timeout_s, crashes)

    return make


def leave_note(workspace: Workspace, busy: Sequence[str], reason: str = "WorkerCrash", **more: Any) -> None:
    folder = Path(workspace.path("attempts"))
    folder.mkdir(exist_ok=True)
    note = {"busy": list(busy), "reason": reason, "deaths": {}, "timeouts": [], **more}
    (folder / NAME).write_text(json.dumps(note))


def notes(workspace: Workspace) -> list[Path]:
    return [path for path in Path(workspace.path("attempts")).rglob("*") if path.is_file()]


class TestErrors:
    def test_without_any_items_go_through_in_batches(self, guard, workspace) -> None:
        first, second = Doubles(), Doubles()
        result = guard(first, second).run(unit(1, 2, 3, 4, 5, 6), NAME)
        assert [item.value for item in result.items] == [4, 8, 12, 16, 20, 24]
        assert first.batches == [[1, 2, 3, 4], [5, 6]]
        assert second.batches == [[2, 4, 6, 8], [10, 12]]
        assert notes(workspace) == []

    def test_of_a_batch_costs_only_the_culprit(self, guard) -> None:
        first, second = Doubles(bad=[3]), Doubles()
        result = guard(first, second).run(unit(1, 2, 3, 4), NAME)
        assert [item.value for item in result.items if item.trouble is None] == [4, 8, 16]
        (bad,) = (item for item in result.items if item.trouble is not None)
        assert (bad.key, bad.trouble.stage, bad.trouble.error) == ("key-3", "first", "ValueError")
        assert bad.trouble.message == "cannot double 3"
        assert first.batches == [[1, 2, 3, 4], [1], [2], [3], [4]]
        assert second.batches == [[2, 4, 8]]

    def test_in_a_later_stage_repeats_no_earlier_one(self, guard) -> None:
        first, second = Doubles(), Doubles(bad=[4])
        result = guard(first, second).run(unit(1, 2, 3), NAME)
        assert first.batches == [[1, 2, 3]]
        assert [item.trouble and item.trouble.stage for item in result.items] == [None, "second", None]

    def test_of_everything_leave_nothing_to_later_stages(self, guard) -> None:
        second = Doubles()
        result = guard(Doubles(bad=[1, 2]), second).run(unit(1, 2), NAME)
        assert all(item.trouble is not None for item in result.items)
        assert second.batches == []

    def test_too_few_results_are_an_error(self, guard) -> None:
        class Loses:
            def run(self, batch: Sequence[Any]) -> list[Any]:
                return list(batch)[1:]

        result = guard(Loses()).run(unit(1, 2), NAME)
        assert [item.trouble.error for item in result.items] == ["ValueError", "ValueError"]

    def test_without_a_message_say_what_they_are(self, guard) -> None:
        class Mute:
            def run(self, batch: Sequence[Any]) -> list[Any]:
                raise KeyError

        (item,) = guard(Mute()).run(unit(1), NAME).items
        assert (item.trouble.error, item.trouble.message) == ("KeyError", "KeyError()")

    def test_interrupts_are_none(self, guard) -> None:
        class Interrupted:
            def run(self, batch: Sequence[Any]) -> list[Any]:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            guard(Interrupted()).run(unit(1), NAME)

    def test_items_in_trouble_are_passed_by(self, guard) -> None:
        first, second = guard(Doubles(bad=[2])), Doubles()
        again = guard(second).run(first.run(unit(1, 2, 3), NAME), "step-1-unit")
        assert [item.value for item in again.items] == [4, 2, 12]
        assert again.items[1].trouble.stage == "first"
        assert second.batches == [[2, 6]]

    @settings(deadline=None, max_examples=50)
    @given(st.lists(st.integers(0, 9), max_size=12), st.sets(st.integers(0, 9)), st.integers(1, 5))
    def test_order_and_fate_do_not_depend_on_the_batch(self, values, bad, batch) -> None:
        import tempfile

        with tempfile.TemporaryDirectory() as folder:
            stages = [("first", Doubles(bad)), ("second", Doubles([8]))]
            result = Guard(Workspace(folder), stages, batch, 60, 2).run(unit(*values), NAME)
        assert [item.key for item in result.items] == [f"key-{value}" for value in values]
        for item, value in zip(result.items, values, strict=True):
            if value in bad or value == 4:
                assert item.trouble.stage == ("first" if value in bad else "second")
            else:
                assert (item.trouble, item.value) == (None, 4 * value)


class TestCrashes:
    def test_of_a_batch_makes_it_go_one_by_one(self, guard, workspace) -> None:
        leave_note(workspace, ["key-1", "key-2"])
        stage = Doubles()
        result = guard(stage).run(unit(1, 2, 3), NAME)
        assert stage.batches == [[1], [2], [3]]
        assert all(item.trouble is None for item in result.items)
        assert notes(workspace) == []

    def test_are_counted_until_the_item_is_given_up(self, guard, workspace) -> None:
        leave_note(workspace, ["key-2"])
        stage = Doubles()
        assert all(item.trouble is None for item in guard(stage, crashes=2).run(unit(1, 2), NAME).items)
        assert stage.batches == [[1], [2]]
        leave_note(workspace, ["key-2"], deaths={"key-2": 1})
        stage = Doubles()
        good, bad = guard(stage, crashes=2).run(unit(1, 2), NAME).items
        assert stage.batches == [[1]]
        assert good.trouble is None
        assert (bad.trouble.error, bad.value) == ("WorkerCrash", 2)
        assert "2 times" in bad.trouble.message

    def test_add_up_over_attempts(self, workspace) -> None:
        for expected in (1, 2, 3):
            attempts = Attempts.resume(workspace, NAME)
            attempts.note(["key-7"])
            assert Attempts.resume(workspace, NAME).deaths == {"key-7": expected}

    def test_of_other_units_mean_nothing(self, guard, workspace) -> None:
        leave_note(workspace, ["key-1"], deaths={"key-1": 9})
        stage = Doubles()
        assert all(item.trouble is None for item in guard(stage).run(unit(1, 2), "step-1-unit").items)
        assert stage.batches == [[1, 2]]

    def test_that_lasted_too_long_are_given_up_at_once(self, guard, workspace) -> None:
        leave_note(workspace, ["key-2"], reason="Timeout")
        stage = Doubles()
        good, bad = guard(stage, timeout_s=7.5).run(unit(1, 2), NAME).items
        assert stage.batches == [[1]]
        assert good.trouble is None
        assert bad.trouble.error == "Timeout"
        assert "7.5 s" in bad.trouble.message

    def test_that_lasted_too_long_as_a_batch_tell_of_no_culprit(self, guard, workspace) -> None:
        leave_note(workspace, ["key-1", "key-2"], reason="Timeout")
        stage = Doubles()
        assert all(item.trouble is None for item in guard(stage).run(unit(1, 2), NAME).items)
        assert stage.batches == [[1], [2]]

    def test_are_told_by_the_note_of_the_batch_in_hand(self, guard, workspace) -> None:
        seen = []

        class Looks:
            def run(self, batch: Sequence[Any]) -> list[Any]:
                (note,) = notes(workspace)
                seen.append(json.loads(note.read_text())["busy"])
                return list(batch)

        guard(Looks(), batch=2).run(unit(1, 2, 3), NAME)
        assert seen == [["key-1", "key-2"], ["key-3"]]


WORKER = """
import json, os, sys, time
from curation.guard import Guard, Item, Unit
from curation.workspace import Workspace

class Stage:
    def run(self, batch):
        if "hangs" in batch:
            time.sleep(60)
        if "dies" in batch:
            os._exit(3)
        return [value.upper() for value in batch]

def attempt(values):
    guard = Guard(Workspace(sys.argv[1]), [("shout", Stage())], 3, float(sys.argv[2]), 2)
    unit = guard.run(Unit("u", [Item(value, value, 1.0, value) for value in values]), "step-0-unit")
    return [item.value if item.trouble is None else item.trouble.error for item in unit.items]

for values in sys.argv[3:]:
    if (child := os.fork()) == 0:
        print(json.dumps(attempt(values.split(","))), flush=True)
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class TestDeaths:
    """With real processes that die."""

    @pytest.fixture
    def attempts(self, workspace):
        """``attempts("a,b", "a,c", timeout_s=)``: what worker after worker printed, and its exit code."""

        def run(*units: str, timeout_s: float = 30) -> list[Any]:
            command = [sys.executable, "-c", WORKER, workspace.uri, str(timeout_s), *units]
            done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
            return [json.loads(line) for line in done.stdout.splitlines()]

        return run

    def test_a_worker_that_dies_is_put_down_to_its_item_in_the_end(self, attempts, workspace) -> None:
        # Once as a batch, twice alone: then it is given up, and the others have gone through.
        assert attempts(*4 * ["a,dies,b"]) == [3, 3, 3, ["A", "WorkerCrash", "B"], 0]
        assert notes(workspace) == []

    def test_a_worker_that_hangs_kills_itself_and_says_why(self, attempts, workspace) -> None:
        started = time.monotonic()
        assert attempts("hangs", timeout_s=0.3) == [KILLED_BY_WATCHDOG]
        assert time.monotonic() - started < 50
        (note,) = notes(workspace)
        assert json.loads(note.read_text()) == {"busy": ["hangs"], "reason": "Timeout", "deaths": {}, "timeouts": []}
        good, bad = (
            Guard(workspace, [("double", Doubles())], 2, 0.3, 2)
            .run(Unit("u", [Item("a", "", 1.0, 1), Item("hangs", "", 1.0, 2)]), NAME)
            .items
        )
        assert (good.value, bad.trouble.error) == (2, "Timeout")


def test_the_watchdog_sleeps_after_the_block() -> None:
    deaths = []
    with Watchdog(0.05, lambda: deaths.append(1)):
        pass
    time.sleep(0.2)
    assert deaths == [], "and this process lives"
