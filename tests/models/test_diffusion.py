"""What all backends with a pipeline of diffusers share, each on a tiny pipeline of its own."""

import json
import shutil
from dataclasses import replace

import cv2
import diffusers.pipelines.qwenimage.pipeline_qwenimage_edit_plus as qwen_pipeline
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from models.diffusion import WIDEST, margins, on_white, same_size, working_size
from models.pretrained import UnusableWeightsError
from models.protocols import EditRequest, FillRequest
from models.registry import MissingWeightsError, backend_config, build, fingerprint
from models.weights.stored import fits

TASKS = {
    "flux_fill": "inpainter",
    "flux_redux": "editor",
    "flux_kontext": "editor",
    "flux2_klein": "editor",
    "qwen_image_edit": "editor",
}
REPOSITORIES = {
    "flux_fill": "black-forest-labs/FLUX.1-Fill-dev",
    "flux_redux": "black-forest-labs/FLUX.1-dev",
    "flux_kontext": "black-forest-labs/FLUX.1-Kontext-dev",
    "flux2_klein": "black-forest-labs/FLUX.2-klein-4B",
    "qwen_image_edit": "Qwen/Qwen-Image-Edit-2509",
}
COLOURS = {"red": (230, 20, 20), "green": (20, 200, 40), "blue": (30, 30, 240), "black": (0, 0, 0)}

every_backend = pytest.mark.parametrize("name", TASKS)
every_editor = pytest.mark.parametrize("name", [name for name, task in TASKS.items() if task == "editor"])


@pytest.fixture(autouse=True)
def small_reference_pictures(monkeypatch):
    """Qwen's pipeline would show its network a megapixel, however small the picture asked for."""
    monkeypatch.setattr(qwen_pipeline, "CONDITION_IMAGE_SIZE", 64 * 64)
    monkeypatch.setattr(qwen_pipeline, "VAE_IMAGE_SIZE", 64 * 64)


def options(name, **more):
    return backend_config(TASKS[name], {"backend": name, "side": 128, "steps": 2, **more})


@pytest.fixture(scope="module")
def loaded(pipelines):
    """``loaded(name, **options)``: a backend on its tiny pipeline."""
    cache = {}

    def load(name, **more):
        key = name, *sorted(more.items())
        if key not in cache:
            cache[key] = build(TASKS[name], options(name, **more), pipelines(name))
        return cache[key]

    return load


@pytest.fixture
def changed(loaded, monkeypatch):
    """``changed(name, **options)``: the backend that is loaded already, with other options for its calls."""

    def change(name, **more):
        backend = loaded(name)
        monkeypatch.setattr(backend, "config", options(name, **more))
        return backend

    return change


def request(name, colour="red", shape=(128, 128), prompt="a dog on a beach", seed=1):
    height, width = shape
    image = np.full((height, width, 3), 255, np.uint8)
    cv2.circle(image, (width // 2, height // 2), min(shape) // 3, COLOURS[colour], -1)
    if TASKS[name] == "editor":
        return EditRequest(image, prompt, seed)
    mask = np.zeros(shape, bool)
    mask[: height // 2] = True
    return FillRequest(image, mask, prompt, seed)


def run(backend, requests):
    return backend.edit(requests) if hasattr(backend, "edit") else backend.fill(requests)


def differ(first, second):
    """Greatest difference of two pictures, of 255."""
    return int(np.abs(first.astype(int) - second.astype(int)).max())


@every_backend
def test_request_and_seed_decide_and_nothing_else(loaded, name):
    backend = loaded(name)
    asked = request(name)

    (first,) = run(backend, [asked])
    another_seed, another_prompt, another_subject = run(
        backend,
        [replace(asked, seed=2), replace(asked, prompt="zzz"), replace(asked, image=request(name, "blue").image)],
    )
    torch.manual_seed(7)
    (again,) = run(backend, [asked])

    assert np.array_equal(first, again)
    assert differ(first, another_seed) > 3
    assert differ(first, another_prompt) > 1
    assert differ(first, another_subject) > 1


@every_backend
def test_a_batch_of_mixed_sizes_equals_one_by_one(loaded, name):
    asked = [
        request(name, "red", (128, 128), "a dog", 1),
        request(name, "green", (90, 160), "a cat", 2),
        request(name, "blue", (60, 60), "a horse that runs", 4),
        request(name, "blue", (128, 128), "a dog", 1),
    ]
    backend = loaded(name, **({} if name == "qwen_image_edit" else {"batch": 2}))

    together = run(backend, asked)
    alone = [run(backend, [each])[0] for each in reversed(asked)][::-1]

    assert [differ(one, other) for one, other in zip(together, alone, strict=True)] == pytest.approx([0] * 4, abs=1)
    assert differ(alone[0], alone[3]) > 1


def test_pictures_of_one_size_share_a_call_of_the_pipeline(loaded, monkeypatch):
    backend = loaded("flux_kontext", batch=2)
    calls = []
    monkeypatch.setattr(
        backend, "_paint", lambda images, *_: calls.append(len(images)) or np.zeros((len(images), 8, 8, 3))
    )

    backend.edit([request("flux_kontext", shape=shape) for shape in [(90, 90), (90, 160), (90, 90), (50, 50)]])

    assert calls == [2, 1, 1]


def test_qwen_image_edit_takes_one_picture_at_once():
    with pytest.raises(ValueError, match="batch"):
        options("qwen_image_edit", batch=2)


@every_editor
@pytest.mark.parametrize(
    ("shape", "size"), [((90, 70), (144, 112)), ((300, 300), (128, 128)), ((40, 400), (80, 192)), ((1, 1), (128, 128))]
)
def test_an_edited_picture_has_the_aspect_of_its_subject_s(changed, name, shape, size):
    (picture,) = changed(name, steps=1).edit([request(name, shape=shape)])

    assert picture.dtype == np.uint8
    assert picture.shape == (*size, 3)


@every_backend
def test_no_request_runs_nothing(loaded, name, monkeypatch):
    backend = loaded(name)
    monkeypatch.setattr(backend, "_pipeline", None)

    assert run(backend, []) == []


@every_backend
def test_bfloat16_gives_about_the_same_picture(loaded, name):
    asked = [request(name)]

    exact, rough = (run(loaded(name, **more), asked)[0] for more in ({}, {"precision": "bfloat16"}))

    assert loaded(name)._pipeline.transformer.dtype == torch.float32
    assert loaded(name, precision="bfloat16")._pipeline.transformer.dtype == torch.bfloat16
    assert rough.dtype == np.uint8
    assert 0 < np.abs(exact.astype(int) - rough.astype(int)).mean() < 25


@every_backend
def test_steps_matter(changed, name):
    few, many = (run(changed(name, steps=steps), [request(name)])[0] for steps in (1, 2))

    assert differ(few, many) > 1


@pytest.mark.parametrize("name", [name for name in TASKS if name != "flux2_klein"])
def test_guidance_matters(changed, name):
    weak, strong = (run(changed(name, guidance=guidance), [request(name)])[0] for guidance in (1, 60))

    assert differ(weak, strong) > 1


@every_backend
def test_nothing_is_printed(pipelines, name, capfd):
    checkpoint = pipelines(name)
    capfd.readouterr()  # Writing a checkpoint prints; whichever test comes first writes it.

    run(build(TASKS[name], options(name), checkpoint), [request(name)])

    assert capfd.readouterr() == ("", "")


@every_backend
def test_how_fast_it_runs_is_no_part_of_the_fingerprint(pipelines, name):
    def printed(**more):
        return fingerprint(options(name, **more), pipelines(name))

    assert printed() == printed(offload="model", device="cpu")
    assert (
        len({printed(), printed(side=256), printed(steps=3), printed(guidance=9), printed(precision="bfloat16")}) == 5
    )


@pytest.mark.parametrize("name", ["flux_fill", "flux_redux"])
def test_offloading_is_nothing_on_a_cpu(loaded, name):
    plain, offloaded = (run(loaded(name, **more), [request(name)])[0] for more in ({}, {"offload": "model"}))

    assert np.array_equal(plain, offloaded)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@every_backend
def test_a_gpu_that_is_not_there_is_told(pipelines, name):
    with pytest.raises(ValueError, match="device is cuda"):
        build(TASKS[name], options(name, device="cuda"), pipelines(name))


@every_backend
def test_a_missing_folder_is_named(tmp_path, name):
    with pytest.raises(MissingWeightsError, match=REPOSITORIES[name].split("/")[0]):
        build(TASKS[name], options(name), tmp_path)


@pytest.fixture
def copied(pipelines, tmp_path):
    """``copied(name)``: weights of a backend that a test may break, and the folder of its pipeline in there."""

    def copy(name):
        shutil.copytree(pipelines(name), tmp_path, dirs_exist_ok=True)
        return tmp_path, tmp_path / REPOSITORIES[name]

    return copy


def refusal(name, root):
    with pytest.raises(UnusableWeightsError) as raised:
        build(TASKS[name], options(name), root)
    return str(raised.value)


def weight_file(folder):
    (file,) = folder.glob("*.safetensors")
    return file


@every_backend
@pytest.mark.parametrize("part", ["transformer", "vae", "text_encoder"])
def test_a_part_that_lacks_a_tensor_is_refused(copied, name, part):
    root, folder = copied(name)
    file = weight_file(folder / part)
    tensors = load_file(file)
    lost = next(key for key, tensor in tensors.items() if tensor.ndim > 1)
    del tensors[lost]
    save_file(tensors, file, {"format": "pt"})

    message = refusal(name, root)

    assert f"{folder / part} lacks tensors" in message
    assert lost.split(".")[-2] in message


@pytest.mark.parametrize("part", ["transformer", "vae", "text_encoder_2"])
def test_a_part_with_a_tensor_of_another_shape_is_refused(copied, part):
    root, folder = copied("flux_kontext")
    file = weight_file(folder / part)
    tensors = load_file(file)
    key = next(key for key, tensor in tensors.items() if tensor.ndim > 1)
    tensors[key] = tensors[key][:-1].contiguous()
    save_file(tensors, file, {"format": "pt"})

    assert str(folder / part) in refusal("flux_kontext", root)


@pytest.mark.parametrize("part", ["transformer", "text_encoder"])
def test_a_file_that_breaks_off_is_refused(copied, part):
    root, folder = copied("flux_kontext")
    file = weight_file(folder / part)
    file.write_bytes(file.read_bytes()[:-100])

    assert str(folder / part) in refusal("flux_kontext", root)


@pytest.mark.parametrize("part", ["transformer", "scheduler", "tokenizer_2"])
def test_a_part_that_is_not_there_is_named(copied, part):
    root, folder = copied("flux_kontext")
    shutil.rmtree(folder / part)

    assert f"{folder} lacks the folder {part}" in refusal("flux_kontext", root)


@pytest.mark.parametrize(("part", "file"), [("vae", "*.safetensors"), ("transformer", "config.json")])
def test_a_part_without_its_files_is_named(copied, part, file):
    root, folder = copied("flux_kontext")
    for each in (folder / part).glob(file):
        each.unlink()

    assert str(folder / part) in refusal("flux_kontext", root)


def test_pickles_are_not_read(copied):
    root, folder = copied("flux_kontext")
    file = weight_file(folder / "vae")
    torch.save(load_file(file), file.with_name("diffusion_pytorch_model.bin"))
    file.unlink()

    assert str(folder / "vae") in refusal("flux_kontext", root)


@pytest.mark.parametrize(
    ("name", "part"),
    [("flux_kontext", "tokenizer"), ("flux_kontext", "tokenizer_2"), ("qwen_image_edit", "processor")],
)
def test_a_tokenizer_without_its_vocabulary_is_refused(copied, name, part):
    root, folder = copied(name)
    (folder / part / "tokenizer.json").unlink()

    assert f"{folder / part} lacks tokenizer.json" in refusal(name, root)


def test_a_vocabulary_in_the_older_files_will_do(copied, loaded):
    root, folder = copied("flux_kontext")
    model = json.loads((folder / "tokenizer" / "tokenizer.json").read_text())["model"]
    (folder / "tokenizer" / "tokenizer.json").unlink()
    (folder / "tokenizer" / "vocab.json").write_text(json.dumps(model["vocab"]))
    (folder / "tokenizer" / "merges.txt").write_text("#version: 0.2\n")

    (picture,) = build("editor", options("flux_kontext"), root).edit([request("flux_kontext")])

    assert np.array_equal(picture, loaded("flux_kontext").edit([request("flux_kontext")])[0])


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"_class_name": "FluxPipeline"}, "names the pipeline FluxPipeline, and a FluxKontextPipeline is needed"),
        ({"_class_name": ["pipeline", "Mine"]}, "FluxKontextPipeline is needed"),
        ({"vae": ["my_package", "Vae"]}, "vae is a Vae of my_package, which is not known here"),
        ({"vae": ["subprocess", "Popen"]}, "vae is a Popen of subprocess, which is not known here"),
        ({"vae": [None, None]}, "names no vae"),
        ({"vae": None}, "names no vae"),
    ],
)
def test_an_index_of_something_else_is_refused(copied, change, told):
    root, folder = copied("flux_kontext")
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps({**index, **change}))

    assert told in refusal("flux_kontext", root)


@pytest.mark.parametrize("text", [None, "{", "[]"])
def test_a_folder_without_an_index_is_refused(copied, text):
    root, folder = copied("flux_kontext")
    (folder / "model_index.json").unlink()
    if text is not None:
        (folder / "model_index.json").write_text(text)

    assert "model_index.json" in refusal("flux_kontext", root)


@every_backend
def test_pixels_that_are_no_numbers_are_an_error(copied, name):
    root, folder = copied(name)
    file = weight_file(folder / "transformer")
    tensors = load_file(file)
    tensors["proj_out.weight"][:] = float("nan")
    save_file(tensors, file, {"format": "pt"})
    backend = build(TASKS[name], options(name), root)

    with pytest.raises(ValueError, match="no numbers"):
        run(backend, [request(name)])


@pytest.mark.parametrize("name", ["flux_kontext", "flux_redux"])
def test_only_what_the_pipeline_reads_is_fetched(name):
    in_the_repository = {
        "model_index.json": True,
        "transformer/config.json": True,
        "transformer/diffusion_pytorch_model-00001-of-00003.safetensors": True,
        "transformer/diffusion_pytorch_model.safetensors.index.json": True,
        "tokenizer/merges.txt": True,
        "tokenizer/chat_template.jinja": True,
        "tokenizer_2/spiece.model": True,
        "flux1-kontext-dev.safetensors": False,
        "ae.safetensors": False,
        "README.md": False,
        "LICENSE.txt": False,
        "teaser.png": False,
        "transformer/model.onnx": False,
        "vae/diffusion_pytorch_model.bin": False,
    }
    for repository in options(name).repositories():
        assert {path: fits(path, repository.files) for path in in_the_repository} == in_the_repository


shapes = st.tuples(st.integers(1, 5000), st.integers(1, 5000))


@given(shapes, st.integers(128, 2048), st.sampled_from([2, 4, 16, 32]))
def test_working_sizes_keep_aspect_and_area(shape, side, multiple):
    height, width = working_size(shape, side, multiple)

    assert height % multiple == width % multiple == 0
    assert 0 < height * width <= side * side
    assert (height + multiple) * (width + multiple) > side * side
    aspect = min(max(shape[1] / shape[0], 1 / WIDEST), WIDEST)
    assert (width / (height + multiple)) < aspect < ((width + multiple) / height) * (1 + 1e-6)


@given(shapes, st.floats(0.2, 5))
def test_margins_bring_a_picture_to_an_aspect_and_centre_it(shape, aspect):
    (above, below), (left, right) = margins(shape, aspect)

    assert min(above, below, left, right) >= 0
    assert 0 <= below - above <= 1
    assert 0 <= right - left <= 1
    assert above + below == 0 or left + right == 0
    height, width = shape[0] + above + below, shape[1] + left + right
    assert abs(width - aspect * height) <= 0.5 * max(1, aspect) + 1e-6


@given(st.lists(st.tuples(st.integers(1, 3), st.integers(1, 3)), max_size=20), st.integers(1, 4))
def test_every_picture_is_in_one_batch_of_its_size(sizes, batch):
    batches = list(same_size(sizes, batch))

    assert sorted(index for chosen in batches for index in chosen) == list(range(len(sizes)))
    assert all(len({sizes[index] for index in chosen}) == 1 for chosen in batches)
    assert all(0 < len(chosen) <= batch for chosen in batches)


@pytest.mark.parametrize("shape", [(100, 100), (100, 400), (300, 40)])
def test_a_subject_lies_undistorted_and_centred_on_white(shape):
    image = np.full((*shape, 3), 255, np.uint8)
    radius = min(shape) // 2 - 6
    cv2.circle(image, (shape[1] // 2, shape[0] // 2), radius, (0, 0, 0), -1)

    canvas = on_white(image, (128, 192))

    rows, columns = np.nonzero(canvas.max(axis=2) < 128)
    assert abs((rows.max() - rows.min()) - (columns.max() - columns.min())) <= 1
    assert abs(rows.mean() - 64) < 2
    assert abs(columns.mean() - 96) < 2
    assert (canvas[[0, -1]] == 255).all()
