from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import png_of
from tiny_runs import metrics, train, write_config

from curation.cli import _parser, add_commands
from stages.media import probe
from training.cli import add_training, main
from training.model import S2VTransformer
from training.trained import load_trained

COMMANDS = ["train", "encode", "sample", "evaluate", "import-kaleido", "export-kaleido", "export-model"]

S2V = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a command makes by default, it makes here."""
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")


@pytest.fixture
def s2v(capsys: pytest.CaptureFixture[str]) -> S2V:
    """``s2v("sample", "--checkpoint", ...)``: exit code, stdout and stderr."""

    def run(*arguments: object) -> tuple[int, str, str]:
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as end:
            code = int(end.code or 0)
        out, err = capsys.readouterr()
        return code, out, err

    return run


@pytest.fixture(scope="module")
def run(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    train(shards, folder, {"steps": 2, "optimiser.lr": 1e-2})
    return folder


class TestHelp:
    @pytest.mark.parametrize("command", COMMANDS)
    def test_has_an_example_that_is_understood(self, s2v: S2V, command: str) -> None:
        code, out, _ = s2v(command, "--help")
        assert code == 0
        said, _, example = " ".join(out.split()).partition(f"example: s2v {command} ")
        assert example, said
        options, rest = _parser([add_commands, add_training]).parse_known_args([command, *example.split()])
        assert options.command.__name__ == "_" + command.replace("-", "_")
        assert all("=" in word for word in rest) or command == "sample"

    def test_lists_them(self, s2v: S2V) -> None:
        code, out, _ = s2v("--help")
        assert code == 0
        assert all(f"    {command} " in out or f"    {command}\n" in out for command in COMMANDS)


class TestUsage:
    """Exit code 2, and on stderr a line that says what to do."""

    @pytest.mark.parametrize(
        ("arguments", "says"),
        [
            (["sample"], ["--checkpoint", "--prompt"]),
            (["sample", "--checkpoint", "nowhere", "--prompt", "A disc."], ["nowhere", "s2v train"]),
            (["train", "--config", "nowhere.yaml"], ["nowhere.yaml", "configs/train/tiny.yaml"]),
            (["train", "--data", "nowhere"], ["there is no folder nowhere", "s2v curate"]),
            (["train", "stpes=3"], ["stpes", "there is no such key"]),
            (["train", "--ray", "workers=2"], ["workers", "there is no such key"]),
            (["export-model", "nowhere", "out"], ["nowhere"]),
            (["import-kaleido", "nowhere", "out"], ["nowhere"]),
            (["export-kaleido", "nowhere", "out"], ["nowhere"]),
            (["evaluate", "videos"], ["s2v evaluate VIDEOS REFERENCES"]),
        ],
    )
    def test_is_wrong(self, s2v: S2V, arguments: list[str], says: list[str]) -> None:
        code, _, err = s2v(*arguments)
        assert code == 2
        assert all(words in err for words in says), err
        assert "Traceback" not in err


class TestTrain:
    def test_trains(self, s2v: S2V, shards: Path, tmp_path: Path) -> None:
        config = write_config(tmp_path / "mine.yaml")
        code, out, err = s2v("train", "--data", shards, "--config", config, "steps=2", "log.every=1")
        assert code == 0, err
        assert "step 2/2  loss" in out
        assert len(metrics(Path("runs/mine"))) == 2


class TestSample:
    def arguments(self, run: Path, tmp_path: Path, name: str, seed: int = 0) -> list[object]:
        pictures: list[object] = []
        for subject in "ab":
            file = tmp_path / f"{subject}.png"
            file.write_bytes(png_of(subject, "png"))
            pictures += ["--reference", file]
        prompt = ["--prompt", "A disc wanders over a grey ground."]
        return ["sample", "--checkpoint", run, *prompt, *pictures, "--seed", seed, "-o", tmp_path / name]

    def test_writes_a_video_of_the_models_size(self, s2v: S2V, run: Path, tmp_path: Path) -> None:
        code, out, err = s2v(*self.arguments(run, tmp_path, "out.mp4"))
        assert code == 0, err
        assert f"{tmp_path / 'out.mp4'}: 3 frames of 24 x 16" in out
        media = probe(tmp_path / "out.mp4")
        assert (media.width, media.height, media.fps) == (24, 16, 16)
        assert media.duration_s * media.fps == pytest.approx(3)

    def test_of_another_size(self, s2v: S2V, run: Path, tmp_path: Path) -> None:
        changes = ["sampler.width=32", "sampler.height=24", "sampler.frames=5", "sampler.fps=8"]
        code, _, err = s2v(*self.arguments(run, tmp_path, "out.mp4"), *changes)
        assert code == 0, err
        media = probe(tmp_path / "out.mp4")
        assert (media.width, media.height, media.fps) == (32, 24, 8)

    def test_the_same_seed_gives_the_same_file(self, s2v: S2V, run: Path, tmp_path: Path) -> None:
        for name, seed in (("one.mp4", 7), ("again.mp4", 7), ("other.mp4", 8)):
            assert s2v(*self.arguments(run, tmp_path, name, seed))[0] == 0
        one, again, other = ((tmp_path / name).read_bytes() for name in ("one.mp4", "again.mp4", "other.mp4"))
        assert one == again
        assert one != other

    def test_of_a_size_that_does_not_fit(self, s2v: S2V, run: Path, tmp_path: Path) -> None:
        code, _, err = s2v(*self.arguments(run, tmp_path, "out.mp4"), "sampler.width=33")
        assert code == 2
        assert "width=33" in err
        assert not (tmp_path / "out.mp4").exists()

    def test_without_a_picture_that_is_there(self, s2v: S2V, run: Path, tmp_path: Path) -> None:
        code, _, err = s2v("sample", "--checkpoint", run, "--prompt", "A disc.", "--reference", tmp_path / "no.png")
        assert code == 2
        assert "no.png: there is no such picture" in err


class TestExport:
    def test_is_what_was_trained(self, s2v: S2V, run: Path, tmp_path: Path) -> None:
        assert s2v("export-model", run, tmp_path / "model")[0] == 0
        exported = S2VTransformer.from_pretrained(tmp_path / "model").state_dict()
        trained = load_trained(run).student.transformer.state_dict()
        assert exported.keys() == trained.keys()
        assert all(torch.equal(exported[name], trained[name]) for name in trained)

    def test_can_be_trained_on(self, s2v: S2V, run: Path, shards: Path, tmp_path: Path) -> None:
        assert s2v("export-model", run, tmp_path / "model")[0] == 0
        changes = {"steps": 1, "optimiser.lr": 1e-9, "model.checkpoint": str(tmp_path / "model")}
        train(shards, tmp_path / "on", changes)
        assert np.isfinite(metrics(tmp_path / "on")[0]["loss"])
        after = load_trained(tmp_path / "on").student.transformer.state_dict()
        before = load_trained(run).student.transformer.state_dict()
        for name in before:
            torch.testing.assert_close(after[name], before[name], rtol=0, atol=1e-6)
