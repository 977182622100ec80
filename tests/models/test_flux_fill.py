import cv2
import numpy as np
import pytest
import torch
from diffusers import FluxFillPipeline
from PIL import Image

from models.flux_fill import FluxFill, _canvas, _without_margins
from models.protocols import FillRequest
from models.registry import build


@pytest.fixture(scope="module")
def inpainter(pipelines):
    return build("inpainter", FluxFill.Config(side=128, steps=2), pipelines("flux_fill"))


def picture(height, width, seed=0):
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.float32)
    return cv2.GaussianBlur(noise, (0, 0), 3).astype(np.uint8)


def blob(height, width):
    mask = np.zeros((height, width), np.uint8)
    cv2.ellipse(mask, (width // 2, height // 3), (max(1, width // 4), max(1, height // 5)), 20, 0, 360, 1, -1)
    return mask > 0


@pytest.mark.parametrize("shape", [(128, 128), (90, 161), (400, 300), (33, 20), (20, 400), (500, 7), (1, 1)])
@pytest.mark.parametrize("inverted", [False, True])
def test_the_mask_is_painted_and_nothing_else(inpainter, shape, inverted):
    image, mask = picture(*shape), blob(*shape) ^ inverted
    before = image.copy()

    (filled,) = inpainter.fill([FillRequest(image, mask, "a dog", 3)])

    assert filled.shape == image.shape
    assert filled.dtype == np.uint8
    assert np.array_equal(filled[~mask], image[~mask])
    assert not mask.any() or not np.array_equal(filled[mask], image[mask])
    assert np.array_equal(image, before)


def test_nothing_to_paint_runs_no_network(inpainter, monkeypatch):
    image = picture(40, 60)
    monkeypatch.setattr(inpainter, "_paint", None)

    (filled,) = inpainter.fill([FillRequest(image, np.zeros((40, 60), bool), "a dog", 3)])

    assert np.array_equal(filled, image)
    assert filled is not image


def test_it_paints_what_the_pipeline_paints(inpainter, pipelines):
    image, mask = picture(128, 128), blob(128, 128)
    pipeline = FluxFillPipeline.from_pretrained(pipelines("flux_fill") / "black-forest-labs/FLUX.1-Fill-dev")
    expected = pipeline(
        image=Image.fromarray(image),
        mask_image=Image.fromarray(mask * np.uint8(255)),
        prompt="a dog",
        height=128,
        width=128,
        num_inference_steps=2,
        guidance_scale=30,
        generator=torch.Generator("cpu").manual_seed(3),
    ).images[0]

    (filled,) = inpainter.fill([FillRequest(image, mask, "a dog", 3)])

    assert np.abs(filled[mask].astype(int) - np.asarray(expected)[mask].astype(int)).max() <= 1


@pytest.mark.parametrize("shape", [(128, 128), (90, 161), (400, 300), (30, 20)])
def test_what_is_to_go_has_no_part_in_what_comes(inpainter, shape):
    image, mask = picture(*shape), blob(*shape)
    other = image.copy()
    other[mask] = 255 - other[mask]

    first, second = inpainter.fill([FillRequest(image, mask, "", 3), FillRequest(other, mask, "", 3)])

    assert np.array_equal(first, second)


@pytest.mark.parametrize("shape", [(128, 128), (90, 161), (400, 300), (20, 400), (500, 7)])
def test_what_is_painted_lies_where_it_belongs(shape):
    columns, rows = np.meshgrid(np.linspace(0, 255, shape[1]), np.linspace(0, 255, shape[0]))
    image = np.stack([columns, rows, rows], axis=2).astype(np.uint8)

    canvas, _ = _canvas(FillRequest(image, blob(*shape), "", 0), (112, 144))

    assert canvas.shape == (112, 144, 3)
    assert np.abs(_without_margins(canvas, shape).astype(int) - image.astype(int)).max() < 40
    assert np.abs(_without_margins(canvas, shape).astype(int) - image.astype(int)).mean() < 4


def test_the_margins_of_a_very_wide_picture_are_painted_too():
    request = FillRequest(picture(20, 400), np.zeros((20, 400), bool), "", 0)

    _, mask = _canvas(request, (80, 192))

    assert mask[:30].all()
    assert not mask[39:41].any()
    assert mask[-30:].all()
