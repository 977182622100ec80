import diffusers.pipelines.qwenimage.pipeline_qwenimage_edit_plus as qwen_pipeline
import numpy as np
import pytest
import torch
from diffusers import QwenImageEditPlusPipeline
from PIL import Image

from models.protocols import EditRequest
from models.qwen_image_edit import QwenImageEdit
from models.registry import build

SUBJECT = np.full((144, 112, 3), 255, np.uint8)
SUBJECT[30:110, 20:90] = (200, 40, 60)


@pytest.fixture(autouse=True)
def small_reference_pictures(monkeypatch):
    """The pipeline would show its network a megapixel, however small the picture asked for."""
    monkeypatch.setattr(qwen_pipeline, "CONDITION_IMAGE_SIZE", 96 * 96)
    monkeypatch.setattr(qwen_pipeline, "VAE_IMAGE_SIZE", 64 * 64)


@pytest.fixture(scope="module")
def editor(pipelines):
    return build("editor", QwenImageEdit.Config(side=128, steps=2), pipelines("qwen_image_edit"))


@pytest.fixture
def pipeline(pipelines):
    return QwenImageEditPlusPipeline.from_pretrained(pipelines("qwen_image_edit") / "Qwen/Qwen-Image-Edit-2509")


def positions_in(text_encoder, run):
    """Positions of the tokens that the language model gets first, shape ``(3, tokens)``, or nothing."""
    seen = []

    def note(module, args, inputs):
        seen.append(inputs["position_ids"])

    hook = text_encoder.model.language_model.register_forward_pre_hook(note, with_kwargs=True)
    run()
    hook.remove()
    return None if seen[0] is None else seen[0][:, 0]


def test_picture_tokens_lie_in_two_dimensions(editor):
    text_encoder, processor = editor._pipeline.text_encoder, editor._pipeline.processor
    positions = positions_in(text_encoder, lambda: editor.edit([EditRequest(SUBJECT, "on a beach", 5)]))

    text = editor._pipeline.prompt_template_encode.format(
        "Picture 1: <|vision_start|><|image_pad|><|vision_end|>on a beach"
    )
    inputs = processor(text=[text], images=[Image.fromarray(SUBJECT).resize((96, 96))], return_tensors="pt")
    expected, _ = text_encoder.model.get_rope_index(
        inputs["input_ids"], inputs["mm_token_type_ids"], image_grid_thw=inputs["image_grid_thw"]
    )
    pictures = (inputs["input_ids"][0] == text_encoder.config.image_token_id).nonzero().flatten()
    rows, columns = (inputs["image_grid_thw"][0, 1:] // 2).tolist()
    assert torch.equal(positions, expected[:, 0])
    first = int(pictures[0])
    assert (positions[1, pictures] - first).tolist() == [row for row in range(rows) for _ in range(columns)]
    assert (positions[2, pictures] - first).tolist() == list(range(columns)) * rows


def test_the_pipeline_alone_would_lay_them_in_a_row(pipeline):
    """Once this fails, diffusers says itself where pictures are, and the backend need not."""

    def run():
        pipeline(image=[Image.fromarray(SUBJECT)], prompt="on a beach", num_inference_steps=1, height=32, width=32)

    assert positions_in(pipeline.text_encoder, run) is None


@pytest.mark.parametrize("guidance", [4.0, 1.0])
def test_it_paints_what_the_pipeline_paints_once_told_where_pictures_are(pipelines, pipeline, guidance):
    text_encoder = pipeline.text_encoder
    inner = text_encoder.forward

    def told(*args, input_ids, **inputs):
        kinds = torch.tensor(pipeline.processor.create_mm_token_type_ids(input_ids.tolist()))
        return inner(*args, input_ids=input_ids, mm_token_type_ids=kinds, **inputs)

    text_encoder.forward = told
    expected = pipeline(
        image=[Image.fromarray(SUBJECT)],
        prompt="on a beach",
        negative_prompt=" ",
        true_cfg_scale=guidance,
        height=144,
        width=112,
        num_inference_steps=2,
        generator=torch.Generator("cpu").manual_seed(5),
    ).images[0]
    editor = build("editor", QwenImageEdit.Config(side=128, steps=2, guidance=guidance), pipelines("qwen_image_edit"))

    (picture,) = editor.edit([EditRequest(SUBJECT, "on a beach", 5)])

    assert np.abs(picture.astype(int) - np.asarray(expected).astype(int)).max() <= 1
