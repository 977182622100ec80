"""CLIP and its kin with random weights, laid out on disk as published."""

import json
from itertools import pairwise

import torch

CLIP = {
    "model_cfg": {
        "embed_dim": 24,
        "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2},
    },
    "preprocess_cfg": {
        "mean": [0.48145466, 0.4578275, 0.40821073],
        "std": [0.26862954, 0.26130258, 0.27577711],
        "interpolation": "bicubic",
        "resize_mode": "shortest",
    },
}
SIGLIP = {
    "model_cfg": {
        "embed_dim": 64,
        "init_logit_bias": -10,
        "custom_text": True,
        "vision_cfg": {
            "image_size": 160,
            "timm_model_name": "test_vit",
            "timm_model_pretrained": False,
            "timm_pool": "map",
            "timm_proj": "none",
        },
        "text_cfg": {
            "context_length": 16,
            "vocab_size": 12,
            "hf_tokenizer_name": "timm/ViT-B-16-SigLIP",
            "tokenizer_kwargs": {"clean": "canonicalize"},
            "width": 32,
            "heads": 2,
            "layers": 2,
            "no_causal_mask": True,
            "proj_bias": True,
            "pool_type": "last",
            "norm_kwargs": {"eps": 1e-6},
        },
    },
    "preprocess_cfg": {
        "mean": [0.5, 0.5, 0.5],
        "std": [0.5, 0.5, 0.5],
        "interpolation": "bicubic",
        "resize_mode": "squash",
    },
}
WORDS = ("<pad>", "<unk>", "</s>", "a", "photo", "of", "dog", "cat", "bear", "on", "the", "road")


def write_clip(folder, settings):
    """The network that the settings describe; different pictures and texts come out far apart."""
    import open_clip
    from safetensors.torch import save_file

    folder.mkdir(parents=True)
    (folder / "open_clip_config.json").write_text(json.dumps(settings))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = open_clip.create_model(f"local-dir:{folder}", pretrained_text=False)
        with torch.no_grad():
            for name, weight in network.named_parameters():
                if weight.dim() > 1:
                    weight.copy_(torch.randn(weight.shape) * weight[0].numel() ** -0.5)
                elif "bias" in name:
                    weight.copy_(torch.randn(weight.shape) * 0.1)
    save_file({name: tensor.contiguous() for name, tensor in network.state_dict().items()}, checkpoint(folder))
    return network.eval()


def checkpoint(folder):
    return folder / "open_clip_model.safetensors"


def write_tokenizer(folder):
    """A tokenizer of whole words that fills up with padding on the right, as SigLIP's."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordLevel({word: place for place, word in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = TemplateProcessing(single="$A </s>", special_tokens=[("</s>", WORDS.index("</s>"))])
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>", eos_token="</s>"
    ).save_pretrained(folder)


def write_rated_clip(folder, length, side):
    """A whole CLIP of transformers, of which the aesthetic score takes the image tower."""
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

    tower = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    ends = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    config = CLIPConfig(
        text_config={**tower, **ends, "vocab_size": 50, "projection_dim": length},
        vision_config={**tower, "image_size": side, "patch_size": 8, "projection_dim": length},
        projection_dim=length,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        CLIPModel(config).save_pretrained(folder)
    size = {"size": {"shortest_edge": side}, "crop_size": {"height": side, "width": side}}
    CLIPImageProcessor(**size).save_pretrained(folder)


def write_head(file, length):
    """The aesthetic score's head."""
    sizes = (length, 16, 12, 8, 4, 1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        layers = [torch.nn.Linear(into, out) for into, out in pairwise(sizes)]
    layers[-1].weight.data *= 100  # So that scores differ by more than rounding.
    state = {
        f"layers.{place}.{name}": values
        for place, layer in zip((0, 2, 4, 6, 7), layers, strict=True)
        for name, values in layer.state_dict().items()
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.save(state, file)
    return torch.nn.Sequential(*layers)
