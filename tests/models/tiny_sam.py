"""Segment Anything, 1 and 2, with random weights: small enough for a test, their masks neither empty nor full."""

import numpy as np
import torch

from models.protocols import Detection, Keyframe

LOOKED_UP = ("pos_embed", "point_embed", "no_mask", "not_a_point", "no_memory", "token", "rel_pos", "positional")
"""Parts of the names of tensors that are added to something, and not multiplied with it."""


def randomise(network, seed=0):
    """Weights and buffers large enough for image and prompts to come through to the masks."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in network.state_dict().items():
            noise = torch.randn(weight.shape, generator=generator)
            if weight.dim() > 1:
                is_looked_up = any(part in name for part in LOOKED_UP)
                weight.copy_(noise if is_looked_up else noise * 2 * weight[0].numel() ** -0.5)
            else:
                weight.copy_(noise * 0.1 + name.endswith("weight"))
    return network


def package_sam(side=64, seed=9, width=16, depth=2):
    """The package's network; a window and global attention, as in the real ones."""
    from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer

    grid = side // 16
    sam = Sam(
        image_encoder=ImageEncoderViT(
            depth=depth,
            embed_dim=width,
            img_size=side,
            mlp_ratio=2,
            norm_layer=lambda size: torch.nn.LayerNorm(size, eps=1e-6),
            num_heads=2,
            patch_size=16,
            qkv_bias=True,
            use_rel_pos=True,
            global_attn_indexes=(1,),
            window_size=3,
            out_chans=width,
        ),
        prompt_encoder=PromptEncoder(width, (grid, grid), (side, side), 16),
        mask_decoder=MaskDecoder(
            num_multimask_outputs=3,
            transformer=TwoWayTransformer(depth=2, embedding_dim=width, mlp_dim=32, num_heads=2),
            transformer_dim=width,
            iou_head_depth=3,
            iou_head_hidden_dim=16,
        ),
    )
    randomise(sam, seed)
    surest = sam.mask_decoder.iou_prediction_head.layers[-1]
    with torch.no_grad():
        surest.weight.mul_(0.02)
        surest.bias.copy_(torch.tensor([0.6, 0.2, 0.4, 0.3]))
    return sam.eval()


RENAMED = [
    ("iou_prediction_head.layers.0", "iou_prediction_head.proj_in"),
    ("iou_prediction_head.layers.1", "iou_prediction_head.layers.0"),
    ("iou_prediction_head.layers.2", "iou_prediction_head.proj_out"),
    ("output_upscaling.0", "upscale_conv1"),
    ("output_upscaling.1", "upscale_layer_norm"),
    ("output_upscaling.3", "upscale_conv2"),
    ("mask_downscaling.0", "mask_embed.conv1"),
    ("mask_downscaling.1", "mask_embed.layer_norm1"),
    ("mask_downscaling.3", "mask_embed.conv2"),
    ("mask_downscaling.4", "mask_embed.layer_norm2"),
    ("mask_downscaling.6", "mask_embed.conv3"),
    ("point_embeddings", "point_embed"),
    ("pe_layer.positional_encoding_gaussian_matrix", "shared_embedding.positional_embedding"),
    ("image_encoder", "vision_encoder"),
    ("neck.0", "neck.conv1"),
    ("neck.1", "neck.layer_norm1"),
    ("neck.2", "neck.conv2"),
    ("neck.3", "neck.layer_norm2"),
    ("patch_embed.proj", "patch_embed.projection"),
    (".norm", ".layer_norm"),
    ("blocks", "layers"),
]
"""Names of the package's tensors and of transformers'."""


def transformers_sam(sam):
    """The package's network as a ``SamModel`` with the same weights, and its image processor."""
    from transformers import SamConfig, SamImageProcessor, SamModel

    encoder, width, side = sam.image_encoder, sam.prompt_encoder.embed_dim, sam.image_encoder.img_size
    config = SamConfig(
        vision_config={
            "hidden_size": width,
            "output_channels": width,
            "num_hidden_layers": len(encoder.blocks),
            "num_attention_heads": 2,
            "image_size": side,
            "patch_size": 16,
            "mlp_dim": 2 * width,
            "window_size": 3,
            "global_attn_indexes": [1],
            "num_pos_feats": width // 2,
        },
        prompt_encoder_config={"hidden_size": width, "image_size": side, "patch_size": 16},
        mask_decoder_config={
            "hidden_size": width,
            "mlp_dim": 32,
            "num_attention_heads": 2,
            "iou_head_hidden_dim": 16,
        },
    )
    tensors = {}
    for name, tensor in sam.state_dict().items():
        for old, new in RENAMED:
            name = name.replace(old, new)
        if "output_hypernetworks_mlps" in name:
            name = name.replace("layers.0", "proj_in").replace("layers.1", "layers.0").replace("layers.2", "proj_out")
        tensors[name] = tensor
    tensors["shared_image_embedding.positional_embedding"] = tensors[
        "prompt_encoder.shared_embedding.positional_embedding"
    ]
    network = SamModel(config)
    network.load_state_dict(tensors)
    square = {"height": side, "width": side}
    return network.eval(), SamImageProcessor(size={"longest_edge": side}, pad_size=square)


SAM2_PARTS = {
    "vision_config": {
        "model_type": "sam2_vision_model",
        "backbone_config": {
            "model_type": "sam2_hiera_det_model",
            "hidden_size": 8,
            "num_attention_heads": 1,
            "image_size": [64, 64],
            "blocks_per_stage": [1, 1, 2, 1],
            "embed_dim_per_stage": [8, 16, 24, 32],
            "num_attention_heads_per_stage": [1, 1, 1, 1],
            "window_size_per_stage": [4, 2, 2, 2],
            "global_attention_blocks": [3],
            "window_positional_embedding_background_size": [2, 2],
        },
        "backbone_channel_list": [32, 24, 16, 8],
        "backbone_feature_sizes": [[16, 16], [8, 8], [4, 4]],
        "fpn_hidden_size": 32,
    },
    "prompt_encoder_config": {"hidden_size": 32, "image_size": 64, "patch_size": 16},
    "mask_decoder_config": {"hidden_size": 32, "mlp_dim": 32, "num_attention_heads": 2, "iou_head_hidden_dim": 16},
}


def sam2(seed=58):
    """A ``Sam2Model`` for pictures of 64 x 64, and its image processor."""
    from transformers import Sam2Config, Sam2ImageProcessor, Sam2Model

    network = randomise(Sam2Model(Sam2Config(**SAM2_PARTS)), seed)
    with torch.no_grad():
        network.mask_decoder.iou_prediction_head.proj_out.weight.mul_(0.1)
    return network.eval(), Sam2ImageProcessor(size={"height": 64, "width": 64})


def keyframe(height, width, seed=0):
    """A read-only picture with some large and small shapes."""
    random = np.random.default_rng(seed)
    image = np.full((height, width, 3), random.integers(0, 256, 3), np.uint8)
    for _ in range(12):
        y, x = random.integers(0, height), random.integers(0, width)
        image[y : y + height // 3, x : x + width // 4] = random.integers(0, 256, 3)
    image.flags.writeable = False
    return Keyframe(time=0.0, image=image, neighbour=image)


def detection(*box):
    return Detection("thing", box, 0.9)


CLIPS = [
    [keyframe(48, 64, 1), keyframe(90, 70, 2)],
    [],
    [keyframe(100, 30, 3), keyframe(48, 64, 4), keyframe(64, 64, 5), keyframe(3, 2, 6)],
]
DETECTIONS = [
    [[detection(5, 5, 40, 30), detection(25, 15, 60, 45)], [detection(5, 5, 40, 80)]],
    [],
    [[detection(3, 3, 25, 70)], [], [detection(x, 8, x + 30, 50) for x in (2, 12, 30)], [detection(0, 0, 2, 3)]],
]
"""Frames of several sizes with several numbers of detections; one frame has none."""


def flat(nested):
    return [found for clip in nested for frame in clip for found in frame]
