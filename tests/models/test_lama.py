import cv2
import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from models.lama import Lama
from models.pretrained import UnusableWeightsError
from models.protocols import FillRequest
from models.registry import MissingWeightsError, Repository, build

COLOUR = (200, 30, 90)

PAINTS_IN_ONE_COLOUR = [
    helper.make_node("Mul", ["image", "white"], ["pixels"]),
    helper.make_node("Sub", ["one", "mask"], ["known"]),
    helper.make_node("Mul", ["pixels", "known"], ["kept"]),
    helper.make_node("Mul", ["colour", "mask"], ["new"]),
    helper.make_node("Add", ["kept", "new"], ["output"]),
]
INVERTS = [
    helper.make_node("Sub", ["one", "image"], ["negative"]),
    helper.make_node("Mul", ["negative", "white"], ["output"]),
]
SHOWS_THE_BRIGHTEST_KNOWN_PIXEL = [
    helper.make_node("Sub", ["one", "mask"], ["known"]),
    helper.make_node("Mul", ["image", "known"], ["seen"]),
    helper.make_node("ReduceMax", ["seen"], ["brightest"], keepdims=1),
    helper.make_node("Mul", ["image", "black"], ["nothing"]),
    helper.make_node("Add", ["nothing", "brightest"], ["everywhere"]),
    helper.make_node("Mul", ["everywhere", "white"], ["output"]),
]
SHOWS_THE_DARKEST_PIXEL = [
    helper.make_node("ReduceMin", ["image"], ["darkest"], keepdims=1),
    helper.make_node("Mul", ["image", "black"], ["nothing"]),
    helper.make_node("Add", ["nothing", "darkest"], ["everywhere"]),
    helper.make_node("Mul", ["everywhere", "white"], ["output"]),
]
FREE, FIXED = ("height", "width"), (64, 64)


@pytest.fixture
def inpainter(tmp_path):
    """``inpainter(nodes, size)``: a network of LaMa's signature, loaded."""

    def make(nodes, size, **names):
        save(tmp_path / "Carve" / "LaMa-ONNX" / "lama_fp32.onnx", nodes, size, **names)
        return build("inpainter", Lama.Config(), tmp_path)

    return make


def save(path, nodes, size, image="image", mask="mask"):
    def tensor(name, channels):
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, channels, *size])

    constants = {"white": 255, "black": 0, "one": 1, "colour": np.reshape(COLOUR, (1, 3, 1, 1))}
    weights = [numpy_helper.from_array(np.asarray(value, np.float32), name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "lama", [tensor(image, 3), tensor(mask, 1)], [tensor("output", 3)], weights)
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


def picture(height, width, seed=0):
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.float32)
    return cv2.GaussianBlur(noise, (0, 0), 4).astype(np.uint8)


def hole(height, width):
    mask = np.zeros((height, width), bool)
    mask[height // 4 : height // 2 + 1, width // 3 : width // 2 + 1] = True
    return mask


def interior(mask, reach):
    """The mask without its rim, where a network that works at fewer pixels cannot be sharp."""
    square = np.ones((2 * reach + 1, 2 * reach + 1), np.uint8)
    return cv2.erode(mask.astype(np.uint8), square, borderValue=1) > 0


SIZES = [(64, 64), (60, 41), (33, 150), (200, 300), (1, 1), (3, 90)]


@pytest.mark.parametrize("size", [FREE, FIXED, (64, 96)])
@pytest.mark.parametrize("shape", SIZES)
def test_the_mask_is_painted_and_nothing_else(inpainter, size, shape):
    image, mask = picture(*shape), hole(*shape)
    before = image.copy()

    (filled,) = inpainter(PAINTS_IN_ONE_COLOUR, size).fill([FillRequest(image, mask, "a beach", 1)])

    assert filled.dtype == np.uint8
    assert np.array_equal(filled[~mask], image[~mask])
    sharp = mask if size == FREE else interior(mask, 1 + max(shape) // min(size))
    assert (filled[sharp] == COLOUR).all()
    assert np.array_equal(image, before)


@pytest.mark.parametrize(("size", "shape"), [(FREE, (41, 83)), (FIXED, (64, 64)), (FIXED, (64, 20))])
def test_pixels_that_need_no_resizing_reach_the_network_as_they_are(inpainter, size, shape):
    image = picture(*shape)

    (filled,) = inpainter(INVERTS, size).fill([FillRequest(image, np.ones(shape, bool), "", 0)])

    assert np.array_equal(filled, 255 - image)


@pytest.mark.parametrize("shape", [(200, 300), (20, 45), (150, 30)])
def test_what_a_network_of_fixed_size_paints_lies_where_it_belongs(inpainter, shape):
    columns, rows = np.meshgrid(np.linspace(0, 255, shape[1]), np.linspace(0, 255, shape[0]))
    image = np.stack([columns, rows, rows], axis=2).astype(np.uint8)

    (filled,) = inpainter(INVERTS, FIXED).fill([FillRequest(image, np.ones(shape, bool), "", 0)])

    assert np.abs(filled.astype(int) - (255 - image.astype(int))).max() < 12


@pytest.mark.parametrize("size", [FREE, FIXED])
@pytest.mark.parametrize("shape", [(97, 61), (200, 300), (20, 45), (500, 3)])
def test_nothing_of_what_is_to_go_is_shown_to_the_network(inpainter, size, shape):
    mask = hole(*shape)
    image = np.where(mask[..., None], np.uint8(255), np.uint8(0)) * np.ones(3, np.uint8)

    (filled,) = inpainter(SHOWS_THE_BRIGHTEST_KNOWN_PIXEL, size).fill([FillRequest(image, mask, "", 0)])

    assert not filled.any()


@pytest.mark.parametrize("size", [FREE, FIXED])
@pytest.mark.parametrize("shape", [(97, 61), (20, 45), (1, 500)])
def test_the_picture_goes_on_as_its_mirror_image(inpainter, size, shape):
    white = np.full((*shape, 3), 255, np.uint8)

    (filled,) = inpainter(SHOWS_THE_DARKEST_PIXEL, size).fill([FillRequest(white, hole(*shape), "", 0)])

    assert (filled == 255).all()


def test_a_batch_of_many_sizes_equals_one_by_one(inpainter):
    lama = inpainter(PAINTS_IN_ONE_COLOUR, FIXED)
    requests = [FillRequest(picture(*shape, seed), hole(*shape), "", seed) for seed, shape in enumerate(SIZES)]

    together = lama.fill(requests)

    assert [filled.shape[:2] for filled in together] == SIZES
    for request, filled in zip(requests, together, strict=True):
        assert np.array_equal(filled, lama.fill([request])[0])


def test_nothing_to_paint_runs_no_network(inpainter, monkeypatch):
    lama = inpainter(PAINTS_IN_ONE_COLOUR, FIXED)
    image = picture(30, 40)
    monkeypatch.setattr(lama, "_session", None)

    assert lama.fill([]) == []
    (filled,) = lama.fill([FillRequest(image, np.zeros((30, 40), bool), "", 0)])
    assert np.array_equal(filled, image)
    assert filled is not image
    with pytest.raises(AttributeError):
        lama.fill([FillRequest(image, hole(30, 40), "", 0)])


@pytest.fixture(scope="module")
def fixed_network(tmp_path_factory):
    root = tmp_path_factory.mktemp("weights")
    save(root / "Carve" / "LaMa-ONNX" / "lama_fp32.onnx", PAINTS_IN_ONE_COLOUR, FIXED)
    return build("inpainter", Lama.Config(), root)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 90), st.integers(1, 90), st.floats(0, 1), st.integers(0, 2**31))
def test_pixels_outside_any_mask_never_change(fixed_network, height, width, share, seed):
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    mask = rng.random((height, width)) < share

    (filled,) = fixed_network.fill([FillRequest(image, mask, "", seed)])

    assert np.array_equal(filled[~mask], image[~mask])
    assert (filled[interior(mask, 2)] == COLOUR).all()


def test_a_network_of_another_signature_is_refused(inpainter):
    renamed = [helper.make_node("Mul", ["pixels", "holes"], ["output"])]
    with pytest.raises(UnusableWeightsError, match="pixels"):
        inpainter(renamed, FIXED, image="pixels", mask="holes")


def test_a_missing_network_is_named(tmp_path):
    with pytest.raises(MissingWeightsError, match=r"lama_fp32\.onnx"):
        build("inpainter", Lama.Config(), tmp_path)


def test_one_file_of_the_repository_is_fetched():
    assert Lama.Config(revision="abc").repositories() == [Repository("Carve/LaMa-ONNX", ("lama_fp32.onnx",), "abc")]
