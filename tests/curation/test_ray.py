"""What only a real Ray shows: kills, crashes, hangs, clusters, and that it changes no result."""

import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import psutil
import pytest
from rich.console import Console

from curation.config import load_config
from curation.engine import STEPS, SerialExecutor, run_step, run_steps
from curation.guard import Stage
from curation.progress import Progress
from curation.shards import read_manifest
from curation.steps import Each, Ingest, kept_ids
from curation.workspace import Workspace
from stages.ingest import IngestStage, InputVideo, list_inputs
from stages.records import KIND_ORDER, RECORDS, Annotation, Clip, Failure, Proof, Reference, Source, Subject

OVERRIDES = [
    "models.text=null",
    "split.by=stride",
    "split.max_s=4",
    "annotate.look.keyframes=3",
    "runtime.commit_s=0",
    "runtime.store_gb=0.2",
    "select.clip.min_sharpness=0",
    "select.subject={min_short_side: 20, max_straightness: 1, min_sharpness: 0}",
    "select.reference={min_sharpness: 0, min_difference: {inpainted: 0, swapped: 0}}",
    "pack.shard_samples=3",
    "pack.preset=ultrafast",
]


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    for number in range(6):
        _make_video(folder / f"video_{number}.mp4", number)
        (folder / f"video_{number}.txt").write_text("A cup moves over a table.")
    (folder / "broken.mp4").write_bytes((folder / "video_0.mp4").read_bytes()[:2000])
    return folder


@pytest.fixture(scope="module")
def undisturbed(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    workspace = Workspace.open(tmp_path_factory.mktemp("undisturbed"), create=True)
    run_steps(
        STEPS, load_config(None, OVERRIDES), workspace, SerialExecutor(), _quiet(), videos=list_inputs([str(videos)])
    )
    assert read_manifest(workspace.path("shards"))["samples"]["train"] > 3
    kept = kept_ids(workspace, "reference")
    kinds = {row.kind for row in workspace.records(Reference) if row.reference_id in kept}
    assert kinds == set(KIND_ORDER) - {"moved"}
    return workspace


@pytest.fixture(scope="module")
def ray_executor() -> Iterator[Any]:
    from curation.runtime import ray_session

    with ray_session(load_config(None, OVERRIDES), STEPS) as executor:
        yield executor


def test_killed_at_random_moments_it_ends_as_if_undisturbed(
    videos: Path, undisturbed: Workspace, tmp_path: Path
) -> None:
    chance = random.Random(7)
    for _ in range(3):
        _kill_after(_start(videos, tmp_path), chance.uniform(4, 12))
    assert _start(videos, tmp_path).wait(timeout=240) == 0, (tmp_path / "log").read_text()

    _assert_same(Workspace.open(tmp_path / "workspace"), undisturbed)


def test_a_killed_worker_costs_nothing(videos: Path, undisturbed: Workspace, tmp_path: Path, ray_executor: Any) -> None:
    workspace = Workspace.open(tmp_path, create=True)
    config = load_config(None, [*OVERRIDES, "runtime.annotate.unit_items=1"])
    killed: list[str] = []
    stop = threading.Event()
    thread = threading.Thread(target=_kill_workers, args=(2, killed, stop), daemon=True)
    thread.start()
    try:
        run_steps(STEPS, config, workspace, ray_executor, _quiet(), videos=list_inputs([str(videos)]))
    finally:
        stop.set()
        thread.join()

    assert len(killed) == 2
    _assert_same(workspace, undisturbed)


class Fragile(Ingest):
    """An ingest that crashes, hangs or raises on the videos named so."""

    def stage(self, name: str) -> Stage:
        ingest = IngestStage(self.fingerprint)

        def run(video: InputVideo) -> Source:
            name = Path(video.uri).name
            if name.startswith("crash"):
                os._exit(3)
            if name.startswith("hang"):
                time.sleep(3600)
            if name.startswith("raise"):
                raise RuntimeError("no good")
            return ingest.run(video)

        return Each(run)


class FragileActor(Fragile):
    """The same, on actors that are kept."""

    @property
    def is_light(self) -> bool:
        return False


@pytest.mark.parametrize("fragile", [Fragile, FragileActor])
def test_a_crash_a_hang_and_an_error_cost_their_own_video_only(
    videos: Path, tmp_path: Path, ray_executor: Any, fragile: type[Ingest]
) -> None:
    from ray import cloudpickle

    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    folder = tmp_path / "in"
    folder.mkdir()
    for name in ("crash", "hang", "raise", "good_1", "good_2", "good_3", "good_4"):
        (folder / f"{name}.mp4").write_bytes((videos / "video_1.mp4").read_bytes() + name.encode())
    config = load_config(
        None,
        [
            "runtime.ingest.operators=[{stages: [ingest], batch: 4}]",
            "runtime.ingest.timeout_s=2",
            "runtime.commit_s=0",
        ],
    )
    workspace = Workspace.open(tmp_path / "workspace", create=True)

    run_step(fragile(config, workspace, list_inputs([str(folder)])), ray_executor, _quiet())

    assert sorted(Path(uri).name for uri in workspace.column(Source, "uri")) == [f"good_{n}.mp4" for n in (1, 2, 3, 4)]
    failures = {Path(row.uri).stem: row.error for row in workspace.records(Failure)}
    assert failures == {"crash": "WorkerCrash", "hang": "Timeout", "raise": "RuntimeError"}
    assert not workspace.filesystem.ls(workspace.path("attempts"))


def test_stages_in_several_operators_make_the_same_rows(
    videos: Path, undisturbed: Workspace, tmp_path: Path, ray_executor: Any
) -> None:
    operators = (
        "[{stages: [look, score], cpus: 0.5, workers: 1},"
        " {stages: [caption, ground, segment], cpus: 0.5, batch: 3, workers: 1},"
        " {stages: [describe], cpus: 0.5, workers: 1}]"
    )
    workspace = Workspace.open(tmp_path, create=True)
    config = load_config(None, [*OVERRIDES, f"runtime.annotate.operators={operators}"])

    run_steps(STEPS[:3], config, workspace, ray_executor, _quiet(), videos=list_inputs([str(videos)]))

    for record in (Clip, Annotation, Subject):
        assert _rows(workspace, record) == _rows(undisturbed, record)


def test_two_workers_each_make_the_same_references_proofs_and_shards(
    undisturbed: Workspace, tmp_path: Path, ray_executor: Any
) -> None:
    workspace = Workspace.open(shutil.copytree(undisturbed.uri, tmp_path / "workspace"))
    few = sorted(workspace.column(Subject, "subject_id"))[::3]
    lost = [row for row in workspace.records(Reference) if row.subject_id in few]
    assert {row.kind for row in lost} == set(KIND_ORDER) - {"moved"}
    for record in (Reference, Proof):
        workspace.delete(record, "reference_id", [row.reference_id for row in lost])
    shutil.rmtree(workspace.path("shards"))
    two = [
        "runtime.references={unit_items: 5, operators: [{stages: [synthesise], cpus: 0.5, batch: 3, workers: 2}]}",
        "runtime.verify={unit_items: 2, operators: [{stages: [verify], cpus: 0.5, batch: 2, workers: 2}]}",
    ]

    run_steps(STEPS[3:], load_config(None, [*OVERRIDES, *two]), workspace, ray_executor, _quiet())

    _assert_same(workspace, undisturbed)


def test_asking_for_more_than_the_cluster_has_fails_before_anything_starts(
    tmp_path: Path, videos: Path, undisturbed: Workspace
) -> None:
    done = _start(videos, tmp_path, "runtime.encode.operators=[{stages: [encode], cpus: 500}]").wait(timeout=240)

    assert done == 2
    log = (tmp_path / "log").read_text()
    assert "encode needs 500 CPUs" in log
    assert "the cluster has" in log
    assert Workspace.open(tmp_path / "workspace").read(Source).num_rows == 0


def test_on_a_cluster_named_by_its_address_whose_gpu_two_groups_of_stages_share(
    videos: Path, undisturbed: Workspace, tmp_path: Path
) -> None:
    operators = (
        "[{stages: [look, score, caption], cpus: 0.5, gpus: 0.25, workers: 1},"
        " {stages: [ground, segment, describe], cpus: 0.5, gpus: 0.5, workers: 1}]"
    )
    port = 6390 + os.getpid() % 500
    # Ray keeps sockets there, whose paths may have a hundred letters at most.
    sockets = Path(tempfile.mkdtemp(prefix="ray"))
    ray = Path(sys.executable).with_name("ray")
    head = subprocess.Popen(
        [
            *(
                ray,
                "start",
                "--head",
                "--block",
                f"--port={port}",
                "--num-cpus=2",
                "--num-gpus=1",
                "--include-dashboard=false",
            ),
            *(f"--temp-dir={sockets}", "--object-store-memory=200000000", "--disable-usage-stats"),
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        _wait_for_cluster(ray, port)
        run = _start(videos, tmp_path, f"runtime.annotate.operators={operators}", RAY_ADDRESS=f"127.0.0.1:{port}")
        assert run.wait(timeout=240) == 0, (tmp_path / "log").read_text()
        assert head.poll() is None, "the cluster outlives the run"
        _assert_same(Workspace.open(tmp_path / "workspace"), undisturbed)
    finally:
        _kill_tree(head)
        shutil.rmtree(sockets, ignore_errors=True)


def _start(videos: Path, folder: Path, *overrides: str, **environment: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "training.cli", "curate", "--input", str(videos)]
    command += ["--workspace", str(folder / "workspace"), "--max-failed", "0.5", *OVERRIDES, *overrides]
    variables = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"} | environment
    with (folder / "log").open("ab") as log:
        return subprocess.Popen(command, stdout=log, stderr=log, env=variables, start_new_session=True)


def _kill_after(process: subprocess.Popen[bytes], seconds: float) -> None:
    try:
        process.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        children = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGKILL)
        process.wait()
        # Ray's own processes notice the death of their driver, but late: nothing may be left behind.
        for child in children:
            _kill(child)


def _kill_tree(process: subprocess.Popen[bytes]) -> None:
    for child in [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]:
        _kill(child)
    process.wait()


def _kill(process: psutil.Process) -> None:
    try:
        process.kill()
    except psutil.NoSuchProcess:
        return


def _kill_workers(count: int, killed: list[str], stop: threading.Event) -> None:
    """Kill a busy worker of ours every few seconds."""
    while len(killed) < count and not stop.wait(0.5):
        for process in psutil.Process().children(recursive=True):
            try:
                title = process.cmdline()[0] if process.cmdline() else ""
            except psutil.Error:
                continue
            if "_OperatorActor" in title and "MapWorker" in title and ".__init__" not in title:
                _kill(process)
                killed.append(title)
                time.sleep(2)
                break


def _wait_for_cluster(ray: Path, port: int) -> None:
    """Until the head knows what it has: its port answers long before."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        told = subprocess.run(
            [ray, "status", f"--address=127.0.0.1:{port}"], capture_output=True, text=True, timeout=60, check=False
        )
        if "/2.0 CPU" in told.stdout:
            return
        time.sleep(0.5)
    raise TimeoutError("the Ray head did not come up")


def _assert_same(workspace: Workspace, other: Workspace) -> None:
    for record in RECORDS.values():
        keys = workspace.column(record, record.key)
        assert len(keys) == len(set(keys)), f"{record.table}: a row twice"
        assert _rows(workspace, record) == _rows(other, record), record.table
    assert _checksums(workspace) == _checksums(other)


def _checksums(workspace: Workspace) -> dict[str, str]:
    return {shard["file"]: shard["sha256"] for shard in read_manifest(workspace.path("shards"))["shards"]}


def _rows(workspace: Workspace, record: type[Any]) -> list[Any]:
    return sorted(workspace.records(record), key=lambda row: str(getattr(row, record.key)))


def _quiet() -> Progress:
    return Progress(Console(quiet=True))


def _make_video(path: Path, seed: int) -> None:
    """Four seconds of a bright square that crosses a noisy ground; its spots are others in each frame."""
    chance = np.random.default_rng(seed)
    ground = chance.integers(60, 120, (180, 320, 3), np.uint8)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=12, options={"preset": "ultrafast", "threads": "1"})
        stream.width, stream.height, stream.pix_fmt = 320, 180, "yuv420p"
        for frame in range(96):
            picture = np.roll(ground, frame // 4, axis=1)
            x, y = 20 + frame * 2, 40 + int(20 * np.sin(frame / 9 + seed))
            picture[y : y + 80, x : x + 80] = (230, 40 + 8 * seed, 40)
            picture[y + 20 : y + 40, x + 20 : x + 60] = (250, 250, 90)
            spots = cv2.GaussianBlur(chance.normal(size=(80, 80)), (0, 0), 2.5) > 0
            picture[y : y + 80, x : x + 80][spots] -= 30
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
