"""Small Stable Diffusion pipelines of diffusers with random weights, and their images from the noise of jgen."""

import gzip
import importlib.util
from pathlib import Path

import numpy as np
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    EulerDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from jgen.core import keys as rng
from jgen.data.text import byte_characters

START, END = "<|startoftext|>", "<|endoftext|>"
SIZE = 16  # of the latents
CHAIN = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
KL = {
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
    "sample_size": 2 * SIZE,
}
TEXT = {"vocab_size": 517, "num_hidden_layers": 3, "num_attention_heads": 2, "max_position_embeddings": 77}
UNET = {
    "sample_size": SIZE,
    "block_out_channels": (16, 32),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
}


def alphabet():
    """The characters that stand for bytes, in the order of CLIP's vocabulary."""
    characters = byte_characters()
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    return [characters[byte] for byte in [*printable, *(byte for byte in range(256) if byte not in printable)]]


def published_pieces():
    """Vocabulary and merges of CLIP's tokenizer, which open_clip_torch brings."""
    folder = Path(importlib.util.find_spec("open_clip").submodule_search_locations[0])
    lines = gzip.open(folder / "bpe_simple_vocab_16e6.txt.gz").read().decode().split("\n")
    merges = [tuple(line.split()) for line in lines[1 : 49152 - 256 - 2 + 1]]
    return pieces(merges), merges


def pieces(merges):
    base = alphabet()
    return [*base, *(f"{each}</w>" for each in base), *("".join(pair) for pair in merges), START, END]


def tokenizer(vocabulary, merges, padding=END):
    ids = {piece: i for i, piece in enumerate(vocabulary)}
    return CLIPTokenizer(vocab=ids, merges=merges, pad_token=padding, model_max_length=77)


def small_tokenizer(padding=END):
    merges = [("r", "e"), ("re", "d</w>"), ("c", "a")]
    return tokenizer(pieces(merges), merges, padding)


def randomised(model, scale, seed=0):
    """The model with weights of which none are zero."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(scale * torch.randn_like(parameter))
    return model.eval()


def text_config(width, **sizes):
    return CLIPTextConfig(**TEXT, hidden_size=width, intermediate_size=2 * width, **sizes)


def version_1(scheduler=None):
    """As versions 1.x are: PNDM, as many heads everywhere, convolutions around the transformers, quick GELU."""
    text = CLIPTextModel(text_config(16, hidden_act="quick_gelu", eos_token_id=2))
    unet = UNet2DConditionModel(**UNET, cross_attention_dim=16, attention_head_dim=2)
    return pipeline(text, small_tokenizer(), unet, scheduler or PNDMScheduler(**CHAIN, skip_prk_steps=True))


def version_2(prediction="v_prediction"):
    """As versions 2.x are: DDIM of v, heads of one width, linear layers around the transformers, "!" for padding."""
    text = CLIPTextModel(text_config(16, hidden_act="gelu", eos_token_id=516))
    heads = {"attention_head_dim": (2, 4), "use_linear_projection": True, "upcast_attention": True}
    unet = UNet2DConditionModel(**UNET, cross_attention_dim=16, **heads)
    options = {"prediction_type": prediction, "clip_sample": False, "set_alpha_to_one": False}
    return pipeline(text, small_tokenizer("!"), unet, DDIMScheduler(**CHAIN, **options))


def pipeline(text, tokens, unet, scheduler):
    parts = {"text_encoder": randomised(text, 0.1), "unet": randomised(unet, 0.08), "vae": autoencoder(0.18215)}
    none = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    return StableDiffusionPipeline(**parts, tokenizer=tokens, scheduler=scheduler, **none)


def autoencoder(scaling_factor):
    return randomised(AutoencoderKL(**KL, scaling_factor=scaling_factor), 0.02)


def version_xl(**options):
    """As XL is: Euler, two text encoders, transformers of two depths, an embedding of the pooled text and of sizes."""
    first = CLIPTextModel(text_config(16, hidden_act="quick_gelu", eos_token_id=2))
    second = CLIPTextModelWithProjection(text_config(24, hidden_act="gelu", eos_token_id=2, projection_dim=20))
    own = {
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": (1, 2),
        "attention_head_dim": (2, 4),
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 20 + 6 * 8,
    }
    return StableDiffusionXLPipeline(
        vae=autoencoder(0.13025),
        text_encoder=randomised(first, 0.1),
        text_encoder_2=randomised(second, 0.1, seed=1),
        tokenizer=small_tokenizer(),
        tokenizer_2=small_tokenizer("!"),
        unet=randomised(UNet2DConditionModel(**UNET | own, cross_attention_dim=40), 0.08),
        scheduler=EulerDiscreteScheduler(**CHAIN, timestep_spacing="leading"),
        **options,
    )


def drawn(pipe, keys, texts, **options):
    """uint8 images of a pipeline that begins with the noise of jgen's samplers."""
    noise = rng.normal(rng.split(keys, 2)[0], (SIZE, SIZE, 4))
    latents = torch.from_numpy(np.asarray(noise).transpose(0, 3, 1, 2).copy())
    pipe.set_progress_bar_config(disable=True)
    with torch.no_grad():
        images = pipe(texts, latents=latents, output_type="np", **options).images
    return np.round(255 * images).astype(int)
