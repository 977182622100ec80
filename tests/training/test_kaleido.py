from __future__ import annotations

import argparse
import json
import re
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from models.errors import UserError
from models.pretrained import UnusableWeightsError
from training.kaleido import export_kaleido, import_kaleido, released_names
from training.model import S2VTransformer
from training.rope import GeometryError
from training.tensor_folder import INDEX, WEIGHTS

PREFIX = "model.diffusion_model."
RELEASED = "1/mp_rank_00_model_states.pt"
WIDTH = 12
HEAD_DIM = 6

Tensors = dict[str, torch.Tensor]


def save_released(folder: Path, tensors: Any, **others: Any) -> Path:
    """A folder as the released one: ``latest`` beside the folder that it names."""
    (folder / "1").mkdir(parents=True)
    (folder / "latest").write_text("1\n")
    torch.save({"module": tensors, **others}, folder / RELEASED)
    return folder


def prefixed(tensors: Tensors) -> Tensors:
    return {PREFIX + name: tensor for name, tensor in tensors.items()}


def read_released(folder: Path) -> Tensors:
    assert (folder / "latest").read_text() == "1"
    loaded: dict[str, Tensors] = torch.load(folder / RELEASED, weights_only=True)
    assert loaded.keys() == {"module"}
    return loaded["module"]


def toy(layers: int = 2, dtype: torch.dtype = torch.float32, width: int = WIDTH) -> Tensors:
    """The released network's tensors by the names that its code gives them, with tiny sizes and random values."""
    inner, text, freq = 2 * width, 7, 4
    shapes: dict[str, tuple[int, ...]] = {
        "mixins.patch_embed.proj.weight": (width, 3, 1, 2, 2),
        "mixins.patch_embed.proj.bias": (width,),
        "mixins.final_layer.adaLN_modulation": (1, 2, width),
        "mixins.final_layer.linear.weight": (12, width),
        "mixins.final_layer.linear.bias": (12,),
    }
    linear = {
        "text_embedding.0": (width, text),
        "text_embedding.2": (width, width),
        "time_embed.0": (width, freq),
        "time_embed.2": (width, width),
        "adaln_projection.1": (6 * width, width),
    }
    for i in range(layers):
        block = f"transformer.layers.{i}"
        shapes[f"mixins.adaln_layer.adaLN_modulations.{i}"] = (1, 6, width)
        for norm in ("query", "key", "cross_query", "cross_key"):
            shapes[f"mixins.adaln_layer.{norm}_layernorm_list.{i}.weight"] = (width,)
        linear[f"{block}.attention.query_key_value"] = (3 * width, width)
        linear[f"{block}.attention.dense"] = (width, width)
        linear[f"{block}.cross_attention.query"] = (width, width)
        linear[f"{block}.cross_attention.key_value"] = (2 * width, width)
        linear[f"{block}.cross_attention.dense"] = (width, width)
        linear[f"{block}.mlp.dense_h_to_4h"] = (inner, width)
        linear[f"{block}.mlp.dense_4h_to_h"] = (width, inner)
        shapes[f"{block}.post_cross_attention_layernorm.weight"] = (width,)
        shapes[f"{block}.post_cross_attention_layernorm.bias"] = (width,)
    for name, (rows, columns) in linear.items():
        shapes[f"{name}.weight"] = (rows, columns)
        shapes[f"{name}.bias"] = (rows,)
    draw = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=draw).to(dtype) for name, shape in shapes.items()}


@pytest.fixture(scope="module")
def golden() -> Tensors:
    """Weights, inputs and outputs of the released network."""
    file = Path(__file__).resolve().parents[2].parent / "shared" / "golden" / "kaleido_dit_golden.safetensors"
    if not file.is_file():
        pytest.skip(f"no outputs of the released network: {file} does not exist")
    with safe_open(file, framework="pt") as tensors:
        return {name: tensors.get_tensor(name) for name in tensors.keys()}  # noqa: SIM118


@pytest.fixture(scope="module")
def imported(golden: Tensors, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("kaleido")
    weights = {name.removeprefix("sat."): tensor for name, tensor in golden.items() if name.startswith("sat.")}
    save_released(folder / "released", prefixed(weights))
    import_kaleido(folder / "released", folder / "imported")
    return folder / "imported"


def distance(golden: Tensors, model: S2VTransformer, case: int, *, order: tuple[int, ...] | None = None) -> float:
    """Relative RMS between the model's output and the released network's."""
    video, references, timestep, context, output = (
        golden[f"case{case}.{name}"] for name in ("video", "references", "timestep", "context", "output")
    )
    if order is not None:
        references = references[:, :, list(order)]
    with torch.no_grad():
        velocity = model(video, references, timestep, context)
    return float(torch.linalg.norm(velocity - output) / torch.linalg.norm(output))


CASES = [(0, (80, 80)), (1, (80, 80)), (2, "video_grid")]


@pytest.mark.parametrize(("case", "offset"), CASES)
def test_it_computes_what_the_released_network_computes(
    golden: Tensors, imported: Path, case: int, offset: Any
) -> None:
    assert bool(golden[f"case{case}.follow_video_grid"]) == (offset == "video_grid")

    assert distance(golden, S2VTransformer.from_pretrained(imported, offset=offset), case) < 1e-5


@pytest.mark.parametrize(("case", "offset"), CASES)
def test_any_other_position_or_order_shows(golden: Tensors, imported: Path, case: int, offset: Any) -> None:
    right = S2VTransformer.from_pretrained(imported, offset=offset)
    count = golden[f"case{case}.references"].shape[2]
    others = [(79, 79), (80, 79), (0, 0), "none", "time", (80, 80) if offset == "video_grid" else "video_grid"]

    assert distance(golden, right, case, order=tuple(reversed(range(count)))) > 1e-2
    for other in others:
        assert distance(golden, S2VTransformer.from_pretrained(imported, offset=other), case) > 1e-2, other


def test_the_released_weights_come_back_bit_for_bit(golden: Tensors, imported: Path, tmp_path: Path) -> None:
    export_kaleido(imported, tmp_path / "back")

    back = read_released(tmp_path / "back")
    assert back.keys() == {PREFIX + name.removeprefix("sat.") for name in golden if name.startswith("sat.")}
    assert all(torch.equal(value, golden[name.replace(PREFIX, "sat.")]) for name, value in back.items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_key_of_40_layers_goes_there_and_back(tmp_path: Path, dtype: torch.dtype) -> None:
    released = prefixed(toy(40, dtype))
    assert len(released) == 855

    import_kaleido(save_released(tmp_path / "released", released), tmp_path / "ours", head_dim=HEAD_DIM)
    export_kaleido(tmp_path / "ours", tmp_path / "back")

    with safe_open(tmp_path / "ours" / WEIGHTS, framework="pt") as stored:
        names = list(stored.keys())
    assert len(names) == len(set(names)) == 1095
    back = read_released(tmp_path / "back")
    assert back.keys() == released.keys()
    assert all(value.dtype == dtype and torch.equal(value, released[name]) for name, value in back.items())
    assert (tmp_path / "back" / RELEASED).stat().st_size < 1.1 * (tmp_path / "released" / RELEASED).stat().st_size


def test_fused_tensors_are_cut_in_the_released_order(tmp_path: Path) -> None:
    tensors = toy()
    import_kaleido(save_released(tmp_path / "released", prefixed(tensors)), tmp_path / "ours", head_dim=HEAD_DIM)

    model = S2VTransformer.from_pretrained(tmp_path / "ours")
    block = model.blocks[1]
    fused = tensors["transformer.layers.1.attention.query_key_value.weight"]
    assert torch.equal(torch.cat([block.attn1.to_q.weight, block.attn1.to_k.weight, block.attn1.to_v.weight]), fused)
    fused = tensors["transformer.layers.1.cross_attention.key_value.bias"]
    assert torch.equal(torch.cat([block.attn2.to_k.bias, block.attn2.to_v.bias]), fused)
    assert torch.equal(block.norm2.bias, tensors["transformer.layers.1.post_cross_attention_layernorm.bias"])


def test_the_geometry_is_told_from_the_tensors(tmp_path: Path) -> None:
    import_kaleido(
        save_released(tmp_path / "released", prefixed(toy(3))), tmp_path / "ours", "video_grid", head_dim=HEAD_DIM
    )

    config = json.loads((tmp_path / "ours" / "config.json").read_text())
    assert {name: config[name] for name in config if not name.startswith("_") and config[name] is not None} == {
        "num_layers": 3,
        "num_attention_heads": 2,
        "attention_head_dim": HEAD_DIM,
        "ffn_dim": 24,
        "freq_dim": 4,
        "text_dim": 7,
        "in_channels": 3,
        "out_channels": 3,
        "patch_size": [1, 2, 2],
        "cross_attn_norm": True,
        "qk_norm": "rms_norm_across_heads",
        "eps": 1e-6,
        "rope_max_seq_len": 1024,
        "offset": "video_grid",
    }


def test_shards_hold_no_more_than_they_may(tmp_path: Path) -> None:
    limit = 4096
    released = prefixed(toy())
    source = save_released(tmp_path / "released", released, iteration=5)
    import_kaleido(source / RELEASED, tmp_path / "ours", head_dim=HEAD_DIM, max_shard_bytes=limit)

    index = json.loads((tmp_path / "ours" / INDEX).read_text())["weight_map"]
    files = sorted((tmp_path / "ours").glob("*.safetensors"))
    assert {path.name for path in files} == set(index.values())
    assert len(files) > 3
    for path in files:
        with safe_open(path, framework="pt") as stored:
            sizes = [stored.get_tensor(name).nbytes for name in stored.keys()]  # noqa: SIM118
        assert sum(sizes) <= limit
    export_kaleido(tmp_path / "ours", tmp_path / "back")
    assert all(torch.equal(value, released[name]) for name, value in read_released(tmp_path / "back").items())


def test_tensors_of_other_parts_are_left_out(tmp_path: Path) -> None:
    released = prefixed(toy())
    with_encoder = {"first_stage_model.encoder.weight": torch.zeros(3), **released}

    import_kaleido(save_released(tmp_path / "released", with_encoder), tmp_path / "ours", head_dim=HEAD_DIM)
    export_kaleido(tmp_path / "ours", tmp_path / "back")

    assert read_released(tmp_path / "back").keys() == released.keys()


QUERY = "transformer.layers.1.cross_attention.query.weight"
FIRST = "mixins.patch_embed.proj.weight"


def without(name: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {key: value for key, value in tensors.items() if key != name}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (without(QUERY), f"1 missing: {QUERY}"),
        (without(FIRST), f"1 missing: {FIRST}"),
        (lambda t: t | {"mixins.pos_embed.freqs": torch.zeros(2)}, "1 unexpected: mixins.pos_embed.freqs"),
        (lambda t: t | {QUERY: torch.zeros(3, 4)}, rf"1 of another shape: {QUERY} \(3, 4\) instead of \(12, 12\)"),
        (lambda t: t | {FIRST: torch.zeros(12, 3, 4)}, "another number of axes"),
        (lambda t: t | {FIRST: torch.zeros(13, 3, 1, 2, 2)}, "width 13 is no multiple of the heads' 6"),
        (lambda t: {k: v for k, v in t.items() if ".layers.0" not in k and ".0." not in k}, "missing: "),
        (lambda t: {k: v for k, v in t.items() if ".layers." not in k}, "no tensors transformer.layers"),
    ],
)
def test_other_tensors_than_the_networks_are_refused(
    tmp_path: Path, change: Callable[[Tensors], Tensors], says: str
) -> None:
    source = save_released(tmp_path / "released", prefixed(change(toy())))

    with pytest.raises(GeometryError, match=says) as error:
        import_kaleido(source, tmp_path / "ours", head_dim=HEAD_DIM)
    assert isinstance(error.value, UserError)
    assert str(source / RELEASED) in str(error.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["released"]


def truncate(folder: Path) -> None:
    file = folder / RELEASED
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def old_format(folder: Path) -> None:
    torch.save({"module": prefixed(toy())}, folder / RELEASED, _use_new_zipfile_serialization=False)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (truncate, "is damaged or no checkpoint of torch"),
        (old_format, "is damaged or no checkpoint of torch"),
        (lambda folder: (folder / RELEASED).write_bytes(b""), "is damaged or no checkpoint of torch"),
        (
            lambda folder: torch.save({"module": argparse.Namespace(a=1)}, folder / RELEASED),
            "other objects than tensors",
        ),
        (lambda folder: torch.save({"weights": {}}, folder / RELEASED), "has no `module`"),
        (lambda folder: torch.save({"module": {"a.b": torch.zeros(1)}}, folder / RELEASED), "but a.b:"),
        (lambda folder: torch.save({"module": {f"{PREFIX}a": 1}}, folder / RELEASED), "no checkpoint of the released"),
        (lambda folder: (folder / RELEASED).unlink(), "has 0 files"),
        (lambda folder: (folder / "1/mp_rank_01_model_states.pt").write_bytes(b""), "has 2 files"),
        (lambda folder: (folder / "latest").unlink(), "neither a file nor a folder with `latest`"),
    ],
)
def test_a_damaged_or_hostile_file_is_refused_in_words(
    tmp_path: Path, damage: Callable[[Path], None], says: str
) -> None:
    source = save_released(tmp_path / "released", prefixed(toy()))
    damage(source)

    with pytest.raises(UnusableWeightsError, match=says) as error:
        import_kaleido(source, tmp_path / "ours", head_dim=HEAD_DIM)
    assert isinstance(error.value, UserError)
    assert not (tmp_path / "ours").exists()


def test_a_folder_with_anything_in_it_is_not_touched(tmp_path: Path) -> None:
    source = save_released(tmp_path / "released", prefixed(toy()))
    (tmp_path / "ours").mkdir()
    import_kaleido(source, tmp_path / "ours", head_dim=HEAD_DIM)
    before = {path: path.read_bytes() for path in (tmp_path / "ours").iterdir()}

    with pytest.raises(UserError, match="exists already"):
        import_kaleido(source, tmp_path / "ours", head_dim=HEAD_DIM)
    with pytest.raises(UserError, match="exists already"):
        export_kaleido(tmp_path / "ours", source)

    assert {path: path.read_bytes() for path in (tmp_path / "ours").iterdir()} == before


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Files that grow beyond fail to be written, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_is_told_and_leaves_nothing_behind(tmp_path: Path) -> None:
    source = save_released(tmp_path / "released", prefixed(toy(width=48)))
    import_kaleido(source, tmp_path / "ours", head_dim=HEAD_DIM)

    for write in (
        lambda out: import_kaleido(source, out, head_dim=HEAD_DIM),
        lambda out: export_kaleido(tmp_path / "ours", out),
    ):
        for size in (100, 20_000, 100_000):
            with largest_file(size), pytest.raises(UserError, match="could not be written"):
                write(tmp_path / "new")
            assert sorted(path.name for path in tmp_path.iterdir()) == ["ours", "released"]


@pytest.mark.parametrize("offset", ["time", "none"])
def test_offsets_that_the_released_code_lacks_are_not_exported(tmp_path: Path, offset: Any) -> None:
    source = save_released(tmp_path / "released", prefixed(toy()))
    import_kaleido(source, tmp_path / "ours", offset, head_dim=HEAD_DIM)

    with pytest.raises(GeometryError, match=f"offset {offset}"):
        export_kaleido(tmp_path / "ours", tmp_path / "back")


def test_the_table_names_every_tensor_once() -> None:
    for layers in (1, 40):
        with torch.device("meta"):
            model = S2VTransformer(num_layers=layers, num_attention_heads=1, attention_head_dim=6, ffn_dim=8)
        targets = [target for targets in released_names(layers).values() for target in targets]
        assert sorted(targets) == sorted(model.state_dict())


MEASURE = """
import re, sys, threading
from pathlib import Path
from training.kaleido import export_kaleido, import_kaleido
from training.model import S2VTransformer

def anonymous():
    status = Path("/proc/self/status").read_text()
    return sum(int(value) for value in re.findall(r"(?:RssAnon|RssShmem):\\s+(\\d+)", status)) * 1024

def peak_of(action):
    before, peaks, done = anonymous(), [0], threading.Event()
    def watch():
        while not done.wait(0.001):
            peaks.append(anonymous() - before)
    watcher = threading.Thread(target=watch)
    watcher.start()
    kept = action()
    done.set()
    watcher.join()
    return max(*peaks, anonymous() - before)

root = Path(sys.argv[1])
print(peak_of(lambda: import_kaleido(root / "released", root / "ours")))
print(peak_of(lambda: export_kaleido(root / "ours", root / "back")))
print(peak_of(lambda: S2VTransformer.from_pretrained(root / "ours")))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_no_second_copy_is_ever_in_memory(tmp_path: Path) -> None:
    source = save_released(tmp_path / "released", prefixed(toy(8, width=640)))
    size = (source / RELEASED).stat().st_size
    assert size > 100 * 2**20

    out = subprocess.run(
        [sys.executable, "-c", MEASURE, str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).resolve().parents[2],
    ).stdout
    for_import, for_export, for_load = (int(peak) for peak in re.findall(r"^-?\d+$", out, re.MULTILINE))

    assert for_import < 0.3 * size
    assert for_export < 0.3 * size
    assert 0.9 * size < for_load < 1.3 * size
