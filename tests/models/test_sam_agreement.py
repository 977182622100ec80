"""Three implementations of Segment Anything, one set of weights.

They resize pictures differently (Pillow, PyTorch, OpenCV), which a random network magnifies, so the long side of the
pictures here is the network's own: nothing is resized before the encoder.
"""

import numpy as np
import pytest
import segment_anything
import torch
from tiny_sam import detection, flat, keyframe, package_sam, transformers_sam
from torch.nn.functional import interpolate

from models.registry import build
from models.sam import Sam
from models.sam_onnx import SIDE, SamOnnx
from models.segment_anything import SegmentAnything

BOXES = [[(5, 5, 40, 30), (25, 15, 60, 45)], [(3.5, 8, 30, 60)], [(10, 10, 50, 50), (0, 0, 63, 63), (40, 2, 63, 20)]]
SIZES = [(48, 64), (64, 40), (64, 64)]


def clip_of(scale):
    """Three pictures, landscape, portrait and square, and the boxes in them."""
    keyframes = [keyframe(height * scale, width * scale, seed) for seed, (height, width) in enumerate(SIZES)]
    detections = [[detection(*(scale * end for end in box)) for box in boxes] for boxes in BOXES]
    return [keyframes], [detections]


def assert_same(left, right, border):
    """Masks with something inside and something outside, equal but for a share of their pixels; equal scores."""
    for one, other in zip(flat(left), flat(right), strict=True):
        assert one.mask.shape == other.mask.shape
        assert 0.05 < one.mask.mean() < 0.95
        assert (one.mask != other.mask).mean() <= border
        assert one.score == pytest.approx(other.score, abs=1e-3)
        assert 0.05 < one.score < 0.95


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """A network for pictures of 1024 x 1024, as the package's checkpoint and as a pair of ONNX files."""
    from segment_anything.utils.onnx import SamOnnxModel

    class AnySize(SamOnnxModel):
        """Its mask's size follows ``orig_im_size``; version 1.0 bakes in that of the picture it was exported with."""

        def mask_postprocessing(self, masks, orig_im_size):
            masks = interpolate(masks, size=(self.img_size, self.img_size), mode="bilinear", align_corners=False)
            resized = self.resize_longest_image_size(orig_im_size, self.img_size)
            size = orig_im_size.to(torch.int64)
            return interpolate(
                masks[..., : resized[0], : resized[1]], size=(size[0], size[1]), mode="bilinear", align_corners=False
            )

    root = tmp_path_factory.mktemp("weights")
    sam = package_sam(SIDE, seed=11, depth=1).requires_grad_(False)
    torch.save(sam.state_dict(), root / "sam.pth")
    (root / "sam").mkdir()
    picture = torch.zeros(1, 3, SIDE, SIDE)
    torch.onnx.export(sam.image_encoder, (picture,), root / "sam/encoder.onnx", dynamo=False)
    width = sam.prompt_encoder.embed_dim
    inputs = {
        "image_embeddings": torch.zeros(1, width, 64, 64),
        "point_coords": torch.zeros(1, 2, 2),
        "point_labels": torch.tensor([[2.0, 3.0]]),
        "mask_input": torch.zeros(1, 1, 256, 256),
        "has_mask_input": torch.zeros(1),
        "orig_im_size": torch.tensor([48.0, 64.0]),
    }
    torch.onnx.export(
        AnySize(sam, return_single_mask=False),
        tuple(inputs.values()),
        root / "sam/decoder.onnx",
        input_names=list(inputs),
        output_names=["masks", "iou_predictions", "low_res_masks"],
        dynamic_axes={"point_coords": {1: "points"}, "point_labels": {1: "points"}},
        dynamo=False,
    )
    return root


def package_backend(monkeypatch, root, **shape):
    monkeypatch.setitem(segment_anything.sam_model_registry, "vit_b", lambda: package_sam(seed=1, **shape))
    return build("segmenter", SegmentAnything.Config(file="sam.pth", device="cpu"), root)


def test_transformers_and_the_package_give_the_same_logits():
    sam = package_sam()
    network, image_processor = transformers_sam(sam)
    for frame, boxes in zip(clip_of(1)[0][0], BOXES, strict=True):
        pixels = sam.preprocess(torch.tensor(frame.image).permute(2, 0, 1))[None]
        theirs = image_processor([np.array(frame.image)], return_tensors="pt")["pixel_values"]
        assert (pixels - theirs).abs().max() < 1e-4
        prompts = torch.tensor(boxes)
        with torch.no_grad():
            embedding = sam.image_encoder(pixels)
            assert (embedding - network.get_image_embeddings(pixels)).abs().max() < 1e-4
            sparse, dense = sam.prompt_encoder(points=None, boxes=prompts, masks=None)
            for several in (False, True):
                logits, ious = sam.mask_decoder(
                    image_embeddings=embedding,
                    image_pe=sam.prompt_encoder.get_dense_pe(),
                    sparse_prompt_embeddings=sparse,
                    dense_prompt_embeddings=dense,
                    multimask_output=several,
                )
                found = network(image_embeddings=embedding, input_boxes=prompts[None], multimask_output=several)
                assert logits.std() > 0.1
                assert (logits - found.pred_masks[0]).abs().max() < 1e-3 * logits.abs().max()
                assert (ious - found.iou_scores[0]).abs().max() < 1e-4


def test_transformers_and_the_package_give_the_same_masks(tmp_path, monkeypatch):
    sam = package_sam()
    torch.save(sam.state_dict(), tmp_path / "sam.pth")
    for part in transformers_sam(sam):
        part.save_pretrained(tmp_path / "owner/sam")
    theirs = build("segmenter", Sam.Config(model="owner/sam", device="cpu"), tmp_path)
    ours = package_backend(monkeypatch, tmp_path)

    assert_same(ours.segment(*clip_of(1)), theirs.segment(*clip_of(1)), border=0.002)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:Converting a tensor to a Python")
def test_the_package_and_its_onnx_export_give_the_same_masks(large, monkeypatch):
    """The ONNX backend takes the surest mask of all that the decoder gives; with these weights it is the single one."""
    ours = package_backend(monkeypatch, large, side=SIDE, depth=1)
    exported = build("segmenter", SamOnnx.Config(), large)

    assert_same(ours.segment(*clip_of(16)), exported.segment(*clip_of(16)), border=1e-4)
