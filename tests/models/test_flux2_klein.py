from functools import cache

import numpy as np
import pytest
import tiny_pipelines
import torch
from diffusers import Flux2KleinPipeline
from PIL import Image

from models.flux2_klein import Flux2Klein
from models.protocols import EditRequest
from models.registry import build

SUBJECT = np.full((144, 112, 3), 255, np.uint8)
SUBJECT[30:110, 20:90] = (200, 40, 60)
OTHER = 255 - SUBJECT


@pytest.fixture(scope="module")
def base_network(tmp_path_factory):
    """Weights of a network that has not been distilled: it takes guidance."""
    root = tmp_path_factory.mktemp("base")
    tiny_pipelines.flux2_klein(root, distilled=False)
    return root


@cache
def pipeline(root):
    return Flux2KleinPipeline.from_pretrained(root / "black-forest-labs/FLUX.2-klein-4B")


def from_the_pipeline(root, subjects, guidance=1.0):
    picture = pipeline(root)(
        image=[Image.fromarray(subject) for subject in subjects],
        prompt="on a beach",
        height=144,
        width=112,
        num_inference_steps=2,
        guidance_scale=guidance,
        generator=torch.Generator("cpu").manual_seed(5),
    ).images[0]
    return np.asarray(picture).astype(int)


@cache
def editor(root, **options):
    return build("editor", Flux2Klein.Config(side=128, steps=2, **options), root)


def edited(root, subjects=(SUBJECT,), **options):
    requests = [EditRequest(subject, "on a beach", 5) for subject in subjects]
    return [picture.astype(int) for picture in editor(root, **options).edit(requests)]


def test_it_paints_what_the_pipeline_paints(pipelines):
    root = pipelines("flux2_klein")

    assert np.abs(edited(root)[0] - from_the_pipeline(root, [SUBJECT])).max() <= 1


def test_in_a_batch_each_prompt_sees_its_own_subject_alone(pipelines):
    root = pipelines("flux2_klein")
    alone = [from_the_pipeline(root, [subject]) for subject in (SUBJECT, OTHER)]
    all_at_once = from_the_pipeline(root, [SUBJECT, OTHER])

    pictures = edited(root, (SUBJECT, OTHER), batch=2)

    assert [np.abs(one - other).max() for one, other in zip(pictures, alone, strict=True)] == pytest.approx(
        [0, 0], abs=1
    )
    assert np.abs(alone[0] - alone[1]).max() > 3
    assert np.abs(alone[0] - all_at_once).max() > 3


def test_a_base_network_is_guided(base_network):
    guided = edited(base_network, guidance=4.0)[0]

    assert np.abs(guided - from_the_pipeline(base_network, [SUBJECT], guidance=4.0)).max() <= 1
    assert np.abs(guided - edited(base_network, guidance=1.0)[0]).max() > 1


def test_a_distilled_network_ignores_guidance_without_a_word(pipelines, capfd):
    root = pipelines("flux2_klein")

    assert np.array_equal(edited(root, guidance=4.0)[0], edited(root, guidance=1.0)[0])
    assert capfd.readouterr() == ("", "")
