from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from curation.workspace import Workspace
from models.registry import MissingWeightsError
from training.cli import main

COMMANDS = ["curate", "run", "stats", "failures", "select", "calibrate", "show", "sheet", "models", "demo"]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Whatever a command makes by default, it makes here."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def s2v(capsys):
    """``s2v("stats", "--workspace", "w")``: exit code, stdout and stderr."""

    def run(*arguments: object) -> tuple[int, str, str]:
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as end:
            code = end.code
        out, err = capsys.readouterr()
        return code, out, err

    return run


class TestHelp:
    def test_lists_every_command_with_an_example(self, s2v) -> None:
        code, out, _ = s2v("--help")
        assert code == 0
        assert "example: s2v " in out
        assert all(f"    {command} " in out for command in COMMANDS)

    @pytest.mark.parametrize("command", COMMANDS)
    def test_of_every_command_has_an_example(self, s2v, command) -> None:
        code, out, _ = s2v(command, "--help")
        assert code == 0
        assert f"example: s2v {command}" in " ".join(out.split())

    @pytest.mark.parametrize("command", COMMANDS)
    def test_examples_are_understood(self, s2v, command) -> None:
        """Each parses: only files that are not there can be wrong with it."""
        from curation.cli import _parser, add_commands
        from training.cli import add_training

        _, out, _ = s2v(command, "--help")
        example = " ".join(out.split()).rpartition("example: s2v ")[2].split()
        options, rest = _parser([add_commands, add_training]).parse_known_args(example)
        assert all("=" in word for word in rest)
        assert callable(options.command)


class TestUsage:
    """Exit code 2, and on stderr one line that says what to do; nothing is made."""

    @pytest.mark.parametrize(
        ("arguments", "says"),
        [
            ([], ["required", "COMMAND"]),
            (["fly"], ["fly", "curate"]),
            (["curate"], ["--input", "s2v demo"]),
            (["curate", "pack.crf=3"], ["--input"]),
            (["run"], ["step"]),
            (["run", "dance"], ["dance", "annotate"]),
            (["run", "ingest"], ["--input"]),
            (["show"], ["id"]),
            (["stats", "--colour", "red"], ["--colour"]),
            (["stats", "pack.crf=3"], ["pack.crf=3"]),
            (
                ["curate", "--input", ".", "--config", "gone.yaml"],
                ["gone.yaml does not exist", "configs/embedded.yaml"],
            ),
            (["curate", "--input", ".", "split.max_seconds=6"], ["split.max_seconds", "no such key"]),
            (["curate", "split.max_seconds=6", "--input", "."], ["split.max_seconds", "no such key"]),
            (["run", "encode", "pack.crf=99"], ["pack.crf", "less than or equal to 51"]),
            (["run", "encode", "pack.crf=["], ["pack.crf=[", "YAML"]),
            (["run", "encode", "models.detector.backend=skynet"], ["skynet", "motion_saliency"]),
            (["run", "encode", "crf=3"], ["crf: there is no such key"]),
            (["curate", "--input", ".", "--max-failed", "some"], ["--max-failed"]),
            (["curate", "--input", ".", "--until", "lunch"], ["lunch", "pack"]),
        ],
        ids=" ".join,
    )
    def test_is_explained(self, s2v, elsewhere, arguments, says) -> None:
        code, _, err = s2v(*arguments)
        assert code == 2
        assert all(part in err for part in says), err
        assert "Traceback" not in err
        assert list(elsewhere.iterdir()) == []

    @pytest.mark.parametrize(
        "arguments",
        [["stats"], ["failures"], ["show", "abc"], ["sheet"], ["select", "--what-if", "subject.min_area=0.1"]],
        ids=" ".join,
    )
    def test_a_workspace_that_is_not_there(self, s2v, elsewhere, arguments) -> None:
        code, _, err = s2v(*arguments, "--workspace", elsewhere / "gone")
        assert code == 2
        assert f"{elsewhere / 'gone'} is no workspace" in err
        assert "s2v curate" in err
        assert list(elsewhere.iterdir()) == []

    @pytest.mark.parametrize("name", ["gone", "gone.mp4", "gone/*.mp4", "gone.jsonl"])
    def test_an_input_that_is_not_there(self, s2v, elsewhere, name) -> None:
        code, _, err = s2v("curate", "--input", elsewhere / name)
        assert code == 2
        assert name in err

    def test_a_folder_without_videos(self, s2v, elsewhere) -> None:
        (elsewhere / "notes.txt").write_text("no video")
        code, _, err = s2v("curate", "--input", elsewhere)
        assert code == 2
        assert f"no videos in {elsewhere}" in err

    def test_weights_that_are_not_there(self, s2v, elsewhere) -> None:
        config = Path(__file__).resolve().parents[2] / "configs" / "cpu.yaml"
        code, _, err = s2v("curate", "--input", ".", "--config", config, f"models.root={elsewhere}")
        assert code == 2
        assert f"{elsewhere}" in err
        assert "models.root" in err
        assert issubclass(MissingWeightsError, FileNotFoundError)

    def test_thresholds_that_make_no_sense(self, s2v, workspace) -> None:
        code, _, err = s2v("select", "--workspace", workspace.uri, "--what-if", "subject.min_aera=0.1")
        assert (code, "subject.min_aera" in err) == (2, True)

    def test_a_workspace_of_another_version(self, s2v, workspace) -> None:
        import lance
        import pyarrow as pa

        lance.write_dataset(pa.table({"a": [1]}), workspace.path("tables", "clips.lance"), mode="overwrite")
        code, _, err = s2v("stats", "--workspace", workspace.uri)
        assert (code, "another version" in err) == (2, True)

    def test_a_workspace_that_another_run_holds(self, s2v, workspace, videos) -> None:
        with workspace.locked():
            code, _, err = s2v("curate", "--input", videos, "--workspace", workspace.uri)
        assert code == 2
        assert "another run" in err
        assert workspace.uri in err


class TestCommands:
    def test_stats(self, s2v, workspace) -> None:
        code, out, _ = s2v("stats", "--workspace", workspace.uri)
        assert code == 0
        assert "4 samples" in out

    def test_failures(self, s2v, workspace) -> None:
        code, out, _ = s2v("failures", "--workspace", workspace.uri)
        assert code == 0
        assert "UnreadableVideo"[:8] in out

    def test_show(self, s2v, workspace) -> None:
        wanted = workspace.column(next(iter(_records("references"))), "reference_id")[0]
        assert s2v("show", wanted, "--workspace", workspace.uri)[0] == 0
        code, out, _ = s2v("show", "nothing", "--workspace", workspace.uri)
        assert (code, "nothing" in out) == (2, True)

    def test_select(self, s2v, workspace) -> None:
        code, out, _ = s2v("select", "--what-if", "clip.min_brightness=255", "--workspace", workspace.uri)
        assert code == 0
        assert "samples" in out
        code, out, _ = s2v("select", "--workspace", workspace.uri, "select.clip.min_sharpness=5")
        assert code == 0

    def test_sheet(self, s2v, workspace, elsewhere) -> None:
        code, out, _ = s2v("sheet", "--workspace", workspace.uri, "-o", elsewhere / "out.png")
        assert code == 0
        assert "4 samples" in out
        assert (elsewhere / "out.png").read_bytes().startswith(b"\x89PNG")

    def test_overrides_may_stand_anywhere(self, monkeypatch, videos) -> None:
        """Before the options, after them, and after several inputs."""
        from curation import cli

        seen = []

        def run(options, steps) -> int:
            inputs, late = cli._split_overrides(options.input)
            seen.append((inputs, sorted([*options.overrides, *late]), options.workspace))
            return 0

        monkeypatch.setattr(cli, "_run", run)
        a, b = str(videos / "a.mp4"), str(videos / "b.mp4")
        overrides = ["pack.crf=3", "split.max_s=6"]
        for words in (
            ["curate", *overrides, "--input", a, b, "--workspace", "w"],
            ["curate", "--workspace", "w", "--input", a, b, *overrides],
            ["curate", "--input", a, b, "--workspace", "w", *overrides],
            ["curate", overrides[0], "--input", a, b, "--workspace", "w", overrides[1]],
        ):
            assert main(words) == 0
            assert seen.pop() == ([a, b], overrides, "w"), words

    def test_a_file_that_looks_like_an_override_is_an_input(self, monkeypatch, elsewhere) -> None:
        from curation import cli

        (elsewhere / "pack.crf=3").write_text("")
        assert cli._split_overrides(["pack.crf=3", "pack.crf=4"]) == (["pack.crf=3"], ["pack.crf=4"])

    def test_an_interrupted_run_says_that_it_goes_on(self, s2v, monkeypatch, workspace) -> None:
        from curation import stats

        def interrupted(workspace) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(stats, "collect", interrupted)
        code, _, err = s2v("stats", "--workspace", workspace.uri)
        assert code == 130
        assert "again" in err


def _records(table: str):
    from stages.records import RECORDS

    return [RECORDS[table]]


HEAVY = ("torch", "ray", "transformers", "onnxruntime", "cv2", "rapidocr", "insightface")


QUICK = {
    "help": (
        [["--help"], *([command, "--help"] for command in COMMANDS)],
        (*HEAVY, "lance", "pyarrow", "pydantic", "numpy"),
    ),
    "looking": ([["stats"], ["failures"], ["show", "nothing"]], HEAVY),
    "configs": (
        [["select", "--what-if", "clip.min_motion=1"], ["run", "encode", "nonsense.key=1"]],
        ("torch", "ray", "transformers"),
    ),
}


@pytest.mark.parametrize(("commands", "forbidden"), QUICK.values(), ids=QUICK)
def test_quick_commands_load_nothing_heavy(workspace: Workspace, commands, forbidden) -> None:
    code = "\n".join(
        [
            "import json, sys",
            "from training.cli import main",
            "for words in json.loads(sys.argv[1]):",
            "    try:",
            "        main(words)",
            "    except SystemExit:",
            "        pass",
            "print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))",
        ]
    )
    words = json.dumps([[*command, "--workspace", workspace.uri] for command in commands])
    done = subprocess.run([sys.executable, "-c", code, words], capture_output=True, text=True, timeout=120, check=True)
    loaded = set(json.loads(done.stdout.splitlines()[-1]))
    assert "curation" in loaded
    assert not loaded & set(forbidden)
