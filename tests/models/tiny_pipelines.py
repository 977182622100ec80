"""Pipelines of diffusers as small as they get, random but of the real ones' classes, saved as the hub has them."""

from functools import cache
from pathlib import Path

import diffusers
import torch
import transformers


@cache
def _bytes() -> dict[str, int]:
    """A vocabulary of single bytes, as byte-level BPE writes them."""
    from tokenizers.pre_tokenizers import ByteLevel

    return {symbol: index for index, symbol in enumerate(sorted(ByteLevel.alphabet()))}


def _seed() -> None:
    torch.manual_seed(0)


def _loud(network: torch.nn.Module, factor: float = 3.0) -> torch.nn.Module:
    """With weights so large that prompt and picture show in the result, as in a trained network."""
    with torch.no_grad():
        for weights in network.parameters():
            if weights.ndim > 1:
                weights.mul_(factor)
    return network


def _scheduler() -> diffusers.FlowMatchEulerDiscreteScheduler:
    return diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True)


def _vae() -> diffusers.AutoencoderKL:
    _seed()
    return diffusers.AutoencoderKL(
        sample_size=32,
        in_channels=3,
        out_channels=3,
        block_out_channels=(4, 4, 4, 4),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        latent_channels=2,
        norm_num_groups=1,
        use_quant_conv=False,
        use_post_quant_conv=False,
        shift_factor=0.0609,
        scaling_factor=1.5035,
    )


def _clip() -> tuple[transformers.CLIPTextModel, transformers.CLIPTokenizer]:
    words = [f"{letter}{end}" for end in ("", "</w>") for letter in "abcdefghijklmnopqrstuvwxyz"]
    vocabulary = {word: index for index, word in enumerate([*words, "<|startoftext|>", "<|endoftext|>"])}
    tokenizer = transformers.CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=77)
    config = transformers.CLIPTextConfig(
        vocab_size=len(vocabulary),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        projection_dim=16,
        bos_token_id=vocabulary["<|startoftext|>"],
        eos_token_id=vocabulary["<|endoftext|>"],
        pad_token_id=vocabulary["<|endoftext|>"],
    )
    _seed()
    return transformers.CLIPTextModel(config), tokenizer


def _t5() -> tuple[transformers.T5EncoderModel, transformers.T5Tokenizer]:
    pieces = ["<pad>", "</s>", "<unk>", "▁", *"abcdefghijklmnopqrstuvwxyz"]
    tokenizer = transformers.T5Tokenizer(vocab=[(piece, -float(index)) for index, piece in enumerate(pieces)])
    config = transformers.T5Config(
        vocab_size=len(tokenizer), d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2, tie_word_embeddings=False
    )
    _seed()
    return transformers.T5EncoderModel(config), tokenizer


def _flux_parts(in_channels: int, out_channels: int | None = None) -> dict[str, object]:
    text_encoder, tokenizer = _clip()
    text_encoder_2, tokenizer_2 = _t5()
    _seed()
    transformer = diffusers.FluxTransformer2DModel(
        in_channels=in_channels,
        out_channels=out_channels,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=16,
        pooled_projection_dim=16,
        axes_dims_rope=(2, 2, 4),
        guidance_embeds=True,
    )
    return {
        "transformer": _loud(transformer),
        "scheduler": _scheduler(),
        "vae": _vae(),
        "text_encoder": text_encoder,
        "tokenizer": tokenizer,
        "text_encoder_2": text_encoder_2,
        "tokenizer_2": tokenizer_2,
    }


def flux_fill(root: Path) -> None:
    """FLUX.1-Fill-dev: latents, the masked picture's latents, and the mask of 16 by 16 pixels per token."""
    pipeline = diffusers.FluxFillPipeline(**_flux_parts(in_channels=8 + 8 + 256, out_channels=8))
    pipeline.save_pretrained(root / "black-forest-labs" / "FLUX.1-Fill-dev")


def flux_kontext(root: Path) -> None:
    """FLUX.1-Kontext-dev."""
    pipeline = diffusers.FluxKontextPipeline(**_flux_parts(in_channels=8))
    pipeline.save_pretrained(root / "black-forest-labs" / "FLUX.1-Kontext-dev")


def flux_redux(root: Path) -> None:
    """FLUX.1-dev, and FLUX.1-Redux-dev without the text encoders that its pipeline may have."""
    diffusers.FluxPipeline(**_flux_parts(in_channels=8)).save_pretrained(root / "black-forest-labs" / "FLUX.1-dev")
    vision = transformers.SiglipVisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=32, patch_size=8
    )
    _seed()
    prior = diffusers.FluxPriorReduxPipeline(
        image_encoder=transformers.SiglipVisionModel(vision),
        feature_extractor=transformers.SiglipImageProcessor(size={"height": 32, "width": 32}),
        image_embedder=diffusers.ReduxImageEncoder(redux_dim=16, txt_in_features=16),
    )
    prior.save_pretrained(root / "black-forest-labs" / "FLUX.1-Redux-dev")


def _byte_tokenizer(**options: object) -> transformers.Qwen2Tokenizer:
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>"]
    special += ["<|image_pad|>", "<|video_pad|>"]
    return transformers.Qwen2Tokenizer(
        vocab={**_bytes(), **{word: len(_bytes()) + index for index, word in enumerate(special)}},
        merges=[],
        extra_special_tokens=special[1:],
        **options,
    )


def flux2_klein(root: Path, *, distilled: bool = True) -> None:
    """FLUX.2-klein-4B: the prompt is read from layers 9, 18 and 27 of a language model."""
    tokenizer = _byte_tokenizer(
        chat_template="{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}"
        "<|im_end|>\n{% endfor %}<|im_start|>assistant\n"
    )
    language = transformers.Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=28,
        num_attention_heads=1,
        num_key_value_heads=1,
        head_dim=8,
        tie_word_embeddings=True,
    )
    _seed()
    pipeline = diffusers.Flux2KleinPipeline(
        scheduler=_scheduler(),
        vae=diffusers.AutoencoderKLFlux2(
            sample_size=32,
            block_out_channels=(4, 4, 4, 4),
            layers_per_block=1,
            latent_channels=2,
            norm_num_groups=1,
        ),
        text_encoder=transformers.Qwen3ForCausalLM(language),
        tokenizer=tokenizer,
        transformer=_loud(
            diffusers.Flux2Transformer2DModel(
                in_channels=8,
                num_layers=1,
                num_single_layers=1,
                attention_head_dim=8,
                num_attention_heads=2,
                joint_attention_dim=24,
                axes_dims_rope=(2, 2, 2, 2),
                guidance_embeds=False,
            )
        ),
        is_distilled=distilled,
    )
    pipeline.save_pretrained(root / "black-forest-labs" / "FLUX.2-klein-4B")


def qwen_image_edit(root: Path) -> None:
    """Qwen-Image-Edit-2509: prompt and picture are read by a vision language model."""
    tokenizer = _byte_tokenizer()
    token = {name: tokenizer.convert_tokens_to_ids(f"<|{name}|>") for name in ("image_pad", "video_pad")}
    config = transformers.Qwen2_5_VLConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [1, 1, 2]},
        },
        vision_config={
            "depth": 2,
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_heads": 2,
            "out_hidden_size": 16,
            "fullatt_block_indexes": [1],
        },
        image_token_id=token["image_pad"],
        video_token_id=token["video_pad"],
        vision_start_token_id=tokenizer.convert_tokens_to_ids("<|vision_start|>"),
        vision_end_token_id=tokenizer.convert_tokens_to_ids("<|vision_end|>"),
        tie_word_embeddings=True,
    )
    _seed()
    pipeline = diffusers.QwenImageEditPlusPipeline(
        scheduler=_scheduler(),
        vae=diffusers.AutoencoderKLQwenImage(
            base_dim=8, z_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1, latents_mean=[0.0] * 4, latents_std=[1.0] * 4
        ),
        text_encoder=transformers.Qwen2_5_VLForConditionalGeneration(config),
        tokenizer=tokenizer,
        processor=transformers.Qwen2VLProcessor(
            transformers.Qwen2VLImageProcessor(min_pixels=28 * 28, max_pixels=112 * 112),
            tokenizer,
            transformers.Qwen2VLVideoProcessor(),
        ),
        transformer=_loud(
            diffusers.QwenImageTransformer2DModel(
                in_channels=16,
                out_channels=4,
                num_layers=1,
                attention_head_dim=8,
                num_attention_heads=2,
                joint_attention_dim=16,
                axes_dims_rope=(2, 2, 4),
            ),
            factor=4.0,
        ),
    )
    pipeline.save_pretrained(root / "Qwen" / "Qwen-Image-Edit-2509")
