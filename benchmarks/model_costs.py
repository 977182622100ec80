"""What every network that a profile can choose costs: operations of one item, counted and not guessed, and memory.

Each network is built from its configuration on PyTorch's `meta` device, where tensors have shapes and no values:
nothing is downloaded and nothing is computed. PyTorch's FlopCounterMode adds up the products of matrices and the
convolutions that one item takes at the size that the pipeline gives it; one multiplication and addition are two
operations. What is not among those products (norms, activations, sampling at points) is not counted, and attention that
may look back only is counted as if it looked both ways.

With --write, models/weights/costs.yaml is written anew.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from _measure import show
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.flop_counter import FlopCounterMode

from models.flux2_klein import Flux2Klein
from models.flux_fill import FluxFill
from models.flux_kontext import FluxKontext
from models.flux_redux import FluxRedux
from models.qwen_image_edit import QwenImageEdit
from models.qwen_vl import QwenVL

COSTS = Path(__file__).resolve().parents[1] / "models" / "weights" / "costs.yaml"
SUSTAINED = 400e12
"""Operations a second that are taken for reached: 40 % of the 989e12 that an H100 could do at best in bf16."""

KEYFRAME = 720, 1280
"""Height and width of a keyframe."""
KEYFRAMES = 8
"""Keyframes of a clip that subjects are followed through."""
SUBJECTS = 2
"""Boxes in a keyframe, subjects that are followed, words that are searched for."""
PROMPT_TOKENS = 330
"""The caption prompt (309 tokens of CLIP's tokenizer) and the chat template around it."""
FRAME_TOKENS = 8
"""What stands around a frame's own tokens: its time and two marks."""
ANSWER_TOKENS = 200
"""Length of a caption with its subjects."""
EDIT_PROMPT_TOKENS = 25
"""Length of an editor's prompt, for the one editor that does not pad it."""
SIDE = 1024
"""Pixels of a side of the picture that is painted."""
REDUX_TOKENS = (384 // 14) ** 2
"""Tokens of the subject's picture that FLUX.1 Redux puts behind the prompt's."""

HEADER = """\
# What the networks cost, per item: operations in units of 1e12 (one multiplication and addition are two), and GB of
# weights in bf16. Made by `python benchmarks/model_costs.py --write`, which counts them on PyTorch's `meta` device in
# the published architectures; nothing here was measured on a GPU.
# picture: a keyframe of 1280x720 as the network's processor scales it, with two words or two boxes; or one picture
# that is embedded or scored, without texts. clip: 8 frames with the prompt, and 200 tokens of answer. reference: one
# picture of 1024x1024 with the backend's own steps, text encoders and VAE. `following` is what backend sam2_video adds
# to each picture: two subjects followed through 8 keyframes.
"""


@dataclass(frozen=True, slots=True)
class Count:
    """What one network, or a pipeline of several, takes."""

    per: str
    """What the operations are of: ``picture``, ``clip`` or ``reference``."""
    flops: float
    parameters: int
    following: float = 0
    """Operations that following subjects through a clip adds to those of a picture."""


_ASKING = {
    torch.ops.aten.item.default,
    torch.ops.aten.is_nonzero.default,
    torch.ops.aten._local_scalar_dense.default,
}
"""What reads the value of a tensor of one."""


class _WithoutValues(TorchDispatchMode):
    """Lets tensors that have values, such as token ids and grid sizes, work along with those that have none.

    Checks of values that are not there pass.
    """

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        if any(tensor.is_meta for tensor in tensors):
            if function in _ASKING and tensors[0].dtype == torch.bool:
                return True
            args, kwargs = tree_map_only(torch.Tensor, lambda tensor: tensor.to("meta"), (args, kwargs))
        return function(*args, **kwargs)


def count(call: Callable[..., Any], *inputs: Any, **named: Any) -> tuple[int, Any]:
    """Operations of a call, and what it gives."""
    counter = FlopCounterMode(display=False)
    with torch.inference_mode(), counter, _WithoutValues():
        output = call(*inputs, **named)
    return counter.get_total_flops(), output


def flops(call: Callable[..., Any], *inputs: Any, **named: Any) -> int:
    """Operations of a call."""
    return count(call, *inputs, **named)[0]


def built(network: Callable[..., Any], *options: Any, **named: Any) -> Any:
    """A network without weights."""
    with torch.device("meta"):
        return network(*options, **named).eval().requires_grad_(False)


def of(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """A tensor without values."""
    return torch.empty(shape, device="meta", dtype=dtype)


def tokens(texts: int, length: int) -> torch.Tensor:
    """Token ids; which ones does not matter."""
    return of(texts, length, dtype=torch.long)


def parameters(*networks: Any) -> int:
    """Parameters of networks, shared ones once."""
    return sum(parameter.numel() for network in networks for parameter in network.parameters())


def grounding_dino(**backbone: Any) -> Count:
    """The image is scaled to 800 pixels on its shorter side or 1333 on its longer; "[CLS] person . dog . [SEP]"."""
    from transformers import GroundingDinoConfig, GroundingDinoForObjectDetection
    from transformers.models.grounding_dino.image_processing_grounding_dino import get_size_with_aspect_ratio

    swin = {"model_type": "swin", "out_indices": [2, 3, 4], **backbone}
    network = built(GroundingDinoForObjectDetection, GroundingDinoConfig(backbone_config=swin))
    height, width = get_size_with_aspect_ratio(KEYFRAME, 800, 1333)
    prompt = torch.tensor([[101, 2711, 1012, 3899, 1012, 102]])
    taken = flops(
        network,
        pixel_values=of(1, 3, height, width),
        pixel_mask=of(1, height, width, dtype=torch.long),
        input_ids=prompt,
        attention_mask=torch.ones_like(prompt),
    )
    return Count("picture", taken, parameters(network))


def owlv2() -> Count:
    """The image is padded to a square of 960 pixels."""
    from transformers import Owlv2Config, Owlv2ForObjectDetection

    network = built(Owlv2ForObjectDetection, Owlv2Config(vision_config={"image_size": 960}))
    taken = flops(network, pixel_values=of(1, 3, 960, 960), input_ids=tokens(SUBJECTS, 16))
    return Count("picture", taken, parameters(network))


def sam(**vision: Any) -> Count:
    """The image is padded to a square of 1024 pixels."""
    from transformers import SamConfig, SamModel

    network = built(SamModel, SamConfig(vision_config=vision))
    encoding, embeddings = count(network.get_image_embeddings, of(1, 3, 1024, 1024))
    boxes = of(1, SUBJECTS, 4)
    decoding = flops(network, image_embeddings=embeddings, input_boxes=boxes, multimask_output=False)
    return Count("picture", encoding + decoding, parameters(network))


def sam2(width: int, **hiera: Any) -> Count:
    """The image is scaled to a square of 1024 pixels.

    Args:
        width: channels of the first of Hiera's four stages; each has twice those of the one before.
        hiera: further options of the backbone.
    """
    from transformers import Sam2Config, Sam2Model, Sam2VideoConfig, Sam2VideoModel

    widths = [width * 2**stage for stage in range(4)]
    vision = {
        "model_type": "sam2_vision_model",
        "backbone_config": {
            "model_type": "sam2_hiera_det_model",
            "hidden_size": width,
            "embed_dim_per_stage": widths,
            **hiera,
        },
        "backbone_channel_list": widths[::-1],
    }
    network = built(Sam2Model, Sam2Config(vision_config=vision))
    encoding, embeddings = count(network.get_image_embeddings, of(1, 3, 1024, 1024))
    boxes = of(1, SUBJECTS, 4)
    decoding = flops(network, image_embeddings=embeddings, input_boxes=boxes, multimask_output=False)
    tracker = built(Sam2VideoModel, Sam2VideoConfig(vision_config=vision))
    return Count("picture", encoding + decoding, parameters(tracker), SUBJECTS * _remembering(tracker, 64))


def sam3() -> Count:
    """The image is scaled to a square of 1008 pixels; each word is looked for, and what it finds is followed."""
    from transformers import Sam3VideoConfig, Sam3VideoModel

    network = built(Sam3VideoModel, Sam3VideoConfig())
    detector, tracker = network.detector_model, network.tracker_model
    side = 1008 // 14
    # It reads the grid's size from a tensor, which would have no value.
    detector.detr_decoder.register_forward_pre_hook(
        lambda _, args, named: (args, {**named, "spatial_shapes": torch.tensor([[side, side]])}), with_kwargs=True
    )
    encoding, seen = count(detector.get_vision_features, of(1, 3, 1008, 1008))
    reading, text = count(detector.get_text_features, tokens(1, 32), return_dict=True)
    finding = flops(detector, vision_embeds=seen, text_embeds=text)
    sharing, (levels, _) = count(network.get_vision_features_for_tracker, vision_embeds=seen)
    maps = [
        level.permute(1, 2, 0).unflatten(2, (size, size)) for level, size in zip(levels, (288, 144, 72), strict=True)
    ]
    masking = flops(tracker._single_frame_forward, image_embeddings=maps, multimask_output=True)
    each = finding + reading / KEYFRAMES + masking + _remembering(tracker, side)
    return Count("picture", encoding + sharing + SUBJECTS * each, parameters(network))


def _remembering(tracker: Any, side: int) -> float:
    """What memory takes per keyframe of a subject that is followed from the first one on.

    Keyframe number n looks back at the n before it, at seven at most: at ``side`` times ``side`` vectors of each, and
    at the subject itself, a vector of 256 as four of 64.
    """
    pixels, wide, narrow = side * side, 256, 64
    looking = 0
    for keyframe in range(1, KEYFRAMES):
        before = min(keyframe, 7)
        pointers = keyframe * wide // narrow
        memory = of(before * pixels + pointers, 1, narrow)
        looking += flops(
            tracker.memory_attention,
            current_vision_features=of(pixels, 1, wide),
            current_vision_position_embeddings=of(pixels, 1, wide),
            memory=memory,
            memory_posision_embeddings=memory,
            num_object_pointer_tokens=pointers,
        )
    return looking / KEYFRAMES + flops(tracker.memory_encoder, of(1, wide, side, side), of(1, 1, 16 * side, 16 * side))


def open_clip(architecture: str) -> Count:
    """A picture, and no text; the weights are those of both towers."""
    import open_clip as library

    settings = library.get_model_config(architecture)
    network = built(library.CustomTextCLIP if settings.pop("custom_text", False) else library.CLIP, **settings)
    side = network.visual.image_size[0]
    return Count("picture", flops(network.encode_image, of(1, 3, side, side)), parameters(network))


def dinov2() -> Count:
    """The crop of its processor, 224 pixels, and not the 518 that its position embeddings are made for."""
    from transformers import Dinov2Config, Dinov2Model

    network = built(Dinov2Model, Dinov2Config(image_size=518))
    return Count("picture", flops(network, pixel_values=of(1, 3, 224, 224)), parameters(network))


def dinov3() -> Count:
    """ViT-B/16 with four registers."""
    from transformers import DINOv3ViTConfig, DINOv3ViTModel

    options = {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12, "num_register_tokens": 4}
    network = built(DINOv3ViTModel, DINOv3ViTConfig(**options))
    return Count("picture", flops(network, pixel_values=of(1, 3, 224, 224)), parameters(network))


def clip_large() -> Count:
    """The image tower, which is all that the aesthetic score loads."""
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    config = CLIPVisionConfig(
        hidden_size=1024,
        intermediate_size=4096,
        projection_dim=768,
        num_hidden_layers=24,
        num_attention_heads=16,
        patch_size=14,
    )
    network = built(CLIPVisionModelWithProjection, config)
    return Count("picture", flops(network, pixel_values=of(1, 3, 224, 224)), parameters(network))


def qwen2_5_vl() -> Any:
    """Qwen2.5-VL with 7 billion parameters in its language model."""
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    config = Qwen2_5_VLConfig(
        vision_config={"hidden_size": 1280, "out_hidden_size": 3584},
        text_config={
            "hidden_size": 3584,
            "intermediate_size": 18944,
            "num_hidden_layers": 28,
            "num_attention_heads": 28,
            "num_key_value_heads": 4,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
        },
    )
    return built(Qwen2_5_VLForConditionalGeneration, config)


def qwen3_vl() -> Any:
    """Qwen3-VL with 8 billion parameters in its language model."""
    from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

    config = Qwen3VLConfig(
        vision_config={"out_hidden_size": 4096},
        text_config={
            "intermediate_size": 12288,
            "num_hidden_layers": 36,
            "num_key_value_heads": 8,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 5e6,
                "mrope_section": [24, 20, 20],
                "mrope_interleaved": True,
            },
        },
    )
    return built(Qwen3VLForConditionalGeneration, config)


def captioner(make: Callable[[], Any]) -> Count:
    """Frames of at most the backend's ``max_side``; the answer token by token, with the keys and values kept."""
    network = make()
    options = QwenVL.Config()
    scale = options.max_side / max(KEYFRAME)
    seeing, of_frames = _seeing(network, round(KEYFRAME[0] * scale), round(KEYFRAME[1] * scale), options.frames)
    language, width = network.model.language_model, network.config.text_config.hidden_size
    asked = of_frames + options.frames * FRAME_TOKENS + PROMPT_TOKENS
    naming = flops(network.lm_head, of(1, 1, width))
    reading = flops(language, inputs_embeds=of(1, asked, width), use_cache=True) + naming
    # A token costs the more the more stand before it, in proportion: all of them cost as many of the middle one.
    _, half = count(language, inputs_embeds=of(1, asked + ANSWER_TOKENS // 2, width), use_cache=True)
    writing = flops(language, inputs_embeds=of(1, 1, width), past_key_values=half.past_key_values) + naming
    return Count("clip", seeing + reading + (ANSWER_TOKENS - 1) * writing, parameters(network))


def _seeing(network: Any, height: int, width: int, pictures: int) -> tuple[int, int]:
    """Operations of the image encoder of a Qwen-VL for pictures of one size, and the tokens that they make."""
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

    vision = network.config.vision_config
    height, width = smart_resize(height, width, vision.patch_size * vision.spatial_merge_size)
    grid = torch.tensor([[1, height // vision.patch_size, width // vision.patch_size]] * pictures)
    patches = int(grid.prod(1).sum())
    values = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
    return flops(network.model.visual, of(patches, values), grid_thw=grid), patches // vision.spatial_merge_size**2


def flux1(steps: int, channels: int = 64, encoded: int = 0, more_seen: int = 0, more_read: int = 0) -> Count:
    """FLUX.1 [dev] and its kin, whose guidance is distilled: one pass a step.

    Args:
        steps: of denoising.
        channels: of what the transformer sees in a place.
        encoded: pictures that the VAE encodes.
        more_seen: places beside those of the picture that is painted.
        more_read: tokens behind the 512 of the prompt.
    """
    from diffusers import AutoencoderKL, FluxTransformer2DModel
    from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

    painter = built(FluxTransformer2DModel, in_channels=channels, out_channels=64, guidance_embeds=True)
    clip = built(
        CLIPTextModel,
        CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_attention_heads=12, projection_dim=768),
    )
    t5_xxl = built(
        T5EncoderModel,
        T5Config(d_model=4096, d_kv=64, d_ff=10240, num_layers=24, num_heads=64, feed_forward_proj="gated-gelu"),
    )
    vae = built(
        AutoencoderKL,
        block_out_channels=(128, 256, 512, 512),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
        latent_channels=16,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )
    latent, prompt = SIDE // 8, 512
    seen, read = (latent // 2) ** 2 + more_seen, prompt + more_read
    step = flops(
        painter,
        hidden_states=of(1, seen, channels),
        encoder_hidden_states=of(1, read, 4096),
        pooled_projections=of(1, 768),
        timestep=of(1),
        guidance=of(1),
        img_ids=of(seen, 3),
        txt_ids=of(read, 3),
    )
    reading = flops(clip, tokens(1, 77)) + flops(t5_xxl, tokens(1, prompt))
    pixels = encoded * flops(vae.encode, of(1, 3, SIDE, SIDE)) + flops(vae.decode, of(1, 16, latent, latent))
    return Count("reference", steps * step + reading + pixels, parameters(painter, clip, t5_xxl, vae))


def flux_redux() -> Count:
    """SigLIP and the two layers that make tokens of what it sees; what paints is FLUX.1 [dev]."""
    from diffusers.pipelines.flux.modeling_flux import ReduxImageEncoder
    from transformers import SiglipVisionConfig, SiglipVisionModel

    siglip = built(
        SiglipVisionModel,
        SiglipVisionConfig(
            hidden_size=1152,
            intermediate_size=4304,
            num_hidden_layers=27,
            num_attention_heads=16,
            image_size=384,
            patch_size=14,
        ),
    )
    embedder = built(ReduxImageEncoder, redux_dim=1152, txt_in_features=4096)
    seeing = flops(siglip, of(1, 3, 384, 384)) + flops(embedder, of(1, REDUX_TOKENS, 1152))
    return Count("reference", seeing, parameters(siglip, embedder))


def flux2_klein(steps: int) -> Count:
    """FLUX.2 klein with 4 billion parameters, distilled: one pass a step. It reads its prompt with Qwen3-4B."""
    from diffusers import AutoencoderKLFlux2, Flux2Transformer2DModel
    from transformers import Qwen3Config, Qwen3ForCausalLM

    painter = built(
        Flux2Transformer2DModel,
        num_layers=5,
        num_single_layers=20,
        num_attention_heads=24,
        joint_attention_dim=3 * 2560,
        guidance_embeds=False,
    )
    reader = built(
        Qwen3ForCausalLM,
        Qwen3Config(
            hidden_size=2560,
            intermediate_size=9728,
            num_hidden_layers=36,
            num_attention_heads=32,
            num_key_value_heads=8,
            tie_word_embeddings=True,
        ),
    )
    vae = built(AutoencoderKLFlux2)
    latent, prompt = SIDE // 8, 512
    seen = 2 * (latent // 2) ** 2
    step = flops(
        painter,
        hidden_states=of(1, seen, 128),
        encoder_hidden_states=of(1, prompt, 3 * 2560),
        timestep=of(1),
        img_ids=of(seen, 4),
        txt_ids=of(prompt, 4),
    )
    reading = flops(reader, tokens(1, prompt), use_cache=False)
    pixels = flops(vae.encode, of(1, 3, SIDE, SIDE)) + flops(vae.decode, of(1, 32, latent, latent))
    return Count("reference", steps * step + reading + pixels, parameters(painter, reader, vae))


def qwen_image_edit(steps: int, guidance: float) -> Count:
    """Qwen2.5-VL reads the prompt beside the picture in 384x384; guided steps are two passes, each with a prompt."""
    from diffusers import AutoencoderKLQwenImage, QwenImageTransformer2DModel

    painter, reader, vae = built(QwenImageTransformer2DModel), qwen2_5_vl(), built(AutoencoderKLQwenImage)
    latent = SIDE // 8
    grid = latent // 2
    seeing, picture = _seeing(reader, 384, 384, 1)
    # The pipeline's template: 64 tokens before the picture, which are dropped, and about 10 after it.
    kept = picture + 10 + EDIT_PROMPT_TOKENS
    reading = (
        seeing
        + flops(reader.model.language_model, inputs_embeds=of(1, 64 + kept, 3584), use_cache=False)
        + flops(reader.lm_head, of(1, 64 + kept, 3584))
    )
    step = flops(
        painter,
        hidden_states=of(1, 2 * grid**2, 64),
        encoder_hidden_states=of(1, kept, 3584),
        timestep=of(1),
        img_shapes=[[(1, grid, grid), (1, grid, grid)]],
    )
    pixels = flops(vae.encode, of(1, 3, 1, SIDE, SIDE)) + flops(vae.decode, of(1, 16, 1, latent, latent))
    passes = 2 if guidance > 1 else 1
    return Count("reference", passes * (steps * step + reading) + pixels, parameters(painter, reader, vae))


NETWORKS: dict[str, Callable[[], Count]] = {
    "IDEA-Research/grounding-dino-tiny": grounding_dino,
    "IDEA-Research/grounding-dino-base": lambda: grounding_dino(
        embed_dim=128, depths=[2, 2, 18, 2], num_heads=[4, 8, 16, 32], window_size=12, image_size=384
    ),
    "google/owlv2-base-patch16-ensemble": owlv2,
    "facebook/sam-vit-base": sam,
    "facebook/sam-vit-large": lambda: sam(
        hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, global_attn_indexes=[5, 11, 17, 23]
    ),
    "facebook/sam-vit-huge": lambda: sam(
        hidden_size=1280, num_hidden_layers=32, num_attention_heads=16, global_attn_indexes=[7, 15, 23, 31]
    ),
    "facebook/sam2.1-hiera-tiny": lambda: sam2(96),
    "facebook/sam2.1-hiera-small": lambda: sam2(
        96, blocks_per_stage=[1, 2, 11, 2], global_attention_blocks=[7, 10, 13]
    ),
    "facebook/sam2.1-hiera-base-plus": lambda: sam2(
        112,
        num_attention_heads=2,
        num_attention_heads_per_stage=[2, 4, 8, 16],
        blocks_per_stage=[2, 3, 16, 3],
        global_attention_blocks=[12, 16, 20],
        window_positional_embedding_background_size=[14, 14],
    ),
    "facebook/sam2.1-hiera-large": lambda: sam2(
        144,
        num_attention_heads=2,
        num_attention_heads_per_stage=[2, 4, 8, 16],
        blocks_per_stage=[2, 6, 36, 4],
        global_attention_blocks=[23, 33, 43],
        window_size_per_stage=[8, 4, 16, 8],
    ),
    "facebook/sam3": sam3,
    "laion/CLIP-ViT-B-32-laion2B-s34B-b79K": lambda: open_clip("ViT-B-32"),
    "laion/CLIP-ViT-L-14-DataComp.XL-s13B-b90K": lambda: open_clip("ViT-L-14"),
    "timm/ViT-B-16-SigLIP": lambda: open_clip("ViT-B-16-SigLIP"),
    "facebook/dinov2-base": dinov2,
    "facebook/dinov3-vitb16-pretrain-lvd1689m": dinov3,
    "openai/clip-vit-large-patch14": clip_large,
    "Qwen/Qwen2.5-VL-7B-Instruct": lambda: captioner(qwen2_5_vl),
    "Qwen/Qwen3-VL-8B-Instruct": lambda: captioner(qwen3_vl),
    # In each place 64 values of what is painted, 64 of the masked picture, and the 16x16 pixels of the mask.
    "black-forest-labs/FLUX.1-Fill-dev": lambda: flux1(FluxFill.Config().steps, channels=64 + 64 + 256, encoded=2),
    "black-forest-labs/FLUX.1-Redux-dev": flux_redux,
    "black-forest-labs/FLUX.1-dev": lambda: flux1(FluxRedux.Config().steps, more_read=REDUX_TOKENS),
    "black-forest-labs/FLUX.1-Kontext-dev": lambda: flux1(
        FluxKontext.Config().steps, encoded=1, more_seen=(SIDE // 16) ** 2
    ),
    "black-forest-labs/FLUX.2-klein-4B": lambda: flux2_klein(Flux2Klein.Config().steps),
    "Qwen/Qwen-Image-Edit-2509": lambda: qwen_image_edit(QwenImageEdit.Config().steps, QwenImageEdit.Config().guidance),
}
"""How to count each repository on the model hub."""


def entry(found: Count) -> dict[str, str | float]:
    """What the file of costs says of a network: ``tflop`` and ``following`` in 1e12 operations, ``gb`` in bf16."""
    numbers = {"tflop": found.flops / 1e12, "gb": 2 * found.parameters / 1e9, "following": found.following / 1e12}
    return {"per": found.per, **{name: float(f"{number:.3g}") for name, number in numbers.items() if number}}


def write(counts: dict[str, Count]) -> None:
    """Write ``models/weights/costs.yaml`` anew."""
    lines = []
    for repository, found in counts.items():
        fields = ", ".join(f"{name}: {value}" for name, value in entry(found).items())
        lines.append(f"{repository}: {{{fields}}}\n")
    COSTS.write_text(HEADER + "".join(lines), encoding="utf-8")


def main() -> None:
    """Count, print, and write if asked to."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="example: python benchmarks/model_costs.py facebook/sam2.1-hiera-large",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("repositories", nargs="*", metavar="REPOSITORY", help="count these only")
    parser.add_argument("--write", action="store_true", help="write models/weights/costs.yaml anew; needs all of them")
    options = parser.parse_args()
    if unknown := set(options.repositories) - set(NETWORKS):
        parser.error(f"no such network: {', '.join(sorted(unknown))}; known: {', '.join(NETWORKS)}")
    if options.write and options.repositories:
        parser.error("--write counts all networks: name none")
    counts = {name: NETWORKS[name]() for name in options.repositories or NETWORKS}
    show_counts(counts)
    if options.write:
        write(counts)


def show_counts(counts: dict[str, Count]) -> None:
    """Print the table."""
    rows: list[Sequence[object]] = []

    def add(name: str, per: str, operations: float, billions: str, gigabytes: str) -> None:
        tflop = operations / 1e12
        rows.append((name, per, f"{tflop:.3g}" if tflop < 1000 else f"{tflop:.0f}", billions, gigabytes,
                     f"{operations / SUSTAINED * 1e3:.3g}"))  # fmt: skip

    for name, found in counts.items():
        add(name, found.per, found.flops, f"{found.parameters / 1e9:.3f}", f"{2 * found.parameters / 1e9:.2f}")
        if found.following:
            add("  the same, following 2 subjects", found.per, found.flops + found.following, "", "")
    show(
        "What one item takes, counted",
        ["network", "per", "TFLOP", "billion parameters", "GB in bf16", "ms, estimated"],
        rows,
        "ms is an estimate and no measurement: TFLOP at 400 TFLOP/s, 40 % of an H100's 989 in bf16. Captioners take "
        "longer than that alone: each token of an answer reads all weights from memory.",
    )


if __name__ == "__main__":
    main()
