import numpy as np
import pytest
import torch
from diffusers import FluxKontextPipeline
from PIL import Image

from models.flux_kontext import FluxKontext
from models.protocols import EditRequest
from models.registry import build

SUBJECT = np.full((144, 112, 3), 255, np.uint8)
SUBJECT[30:110, 20:90] = (200, 40, 60)


@pytest.mark.parametrize("seed", [0, 2**32 - 1])
def test_it_paints_what_the_pipeline_paints(pipelines, seed):
    root = pipelines("flux_kontext")
    expected = FluxKontextPipeline.from_pretrained(root / "black-forest-labs/FLUX.1-Kontext-dev")(
        image=Image.fromarray(SUBJECT),
        prompt="asleep on a sofa",
        height=144,
        width=112,
        max_area=144 * 112,
        _auto_resize=False,
        num_inference_steps=2,
        guidance_scale=2.5,
        generator=torch.Generator("cpu").manual_seed(seed),
    ).images[0]
    editor = build("editor", FluxKontext.Config(side=128, steps=2), root)

    (picture,) = editor.edit([EditRequest(SUBJECT, "asleep on a sofa", seed)])

    assert picture.shape == SUBJECT.shape
    assert np.abs(picture.astype(int) - np.asarray(expected).astype(int)).max() <= 1
