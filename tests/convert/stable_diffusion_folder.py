"""Small folders in the layout of Stable Diffusion's pipelines, with random weights, written without PyTorch."""

import json

import jax
import numpy as np
from safetensors.numpy import save_file

from jgen.convert import autoencoder_kl as kl_names
from jgen.convert import clip_text as text_names
from jgen.convert import condition_unet as unet_names
from jgen.convert.files import WEIGHTS
from jgen.convert.reading import template
from jgen.core.model import DataSpec, ImageSpec
from jgen.data.clip_text import END, START
from jgen.data.text import byte_characters
from jgen.models.vae import autoencoder_kl
from jgen.nn.clip_text import ClipTextEncoder
from jgen.nn.condition_unet import NUM_SIZES, ConditionUNet
from jgen.nn.cross_attention import Tokens

LENGTH = 9
MERGES = (("r", "e"), ("re", "d</w>"), ("c", "a"))
LATENTS = 4  # height and width
CHAIN = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
SCHEDULERS = {
    1: {"_class_name": "PNDMScheduler", "skip_prk_steps": True, **CHAIN},
    2: {"_class_name": "EulerDiscreteScheduler", "timestep_spacing": "leading", **CHAIN},
}
VAE = {"block_out_channels": [4, 8], "layers_per_block": 1, "norm_num_groups": 2, "sample_size": 2 * LATENTS}
VAE |= {"down_block_types": ["DownEncoderBlock2D"] * 2, "up_block_types": ["UpDecoderBlock2D"] * 2}
UNET = {
    "sample_size": LATENTS,
    "block_out_channels": [4, 8],
    "layers_per_block": 1,
    "norm_num_groups": 2,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
    "attention_head_dim": [1, 2],
    "cross_attention_dim": 8,
    "use_linear_projection": True,
}
XL = {
    "cross_attention_dim": 20,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 4,
    "projection_class_embeddings_input_dim": 6 + NUM_SIZES * 4,
}


def vocabulary():
    base = byte_characters()
    return [*base, *(f"{each}</w>" for each in base), *("".join(pair) for pair in MERGES), START, END]


def text_config(encoder, projection=0):
    """The config.json of one of the two text encoders."""
    width, name = (8, 12)[encoder], "CLIPTextModel" + "WithProjection" * (projection > 0)
    sizes = {"hidden_size": width, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    sizes |= {"max_position_embeddings": LENGTH, "vocab_size": len(vocabulary()), "eos_token_id": 2}
    return {"architectures": [name], **sizes, "projection_dim": projection or 8}


def write_document(path, document):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document))


def random_params(shapes, seed):
    """Parameters of which no two are equal, and none is of no account."""
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        is_scale = path[-1].key == "scale"
        return (is_scale + rng.normal(0, 0.3, leaf.shape)).astype(np.float32)

    return jax.tree_util.tree_map_with_path(draw, shapes)


def write_tokenizer(folder, padding):
    write_document(folder / "vocab.json", {piece: i for i, piece in enumerate(vocabulary())})
    lines = ["#version: 0.2", *(" ".join(pair) for pair in MERGES), ""]
    (folder / "merges.txt").write_text("\n".join(lines))
    write_document(folder / "tokenizer_config.json", {"model_max_length": LENGTH})
    write_document(folder / "special_tokens_map.json", {"pad_token": {"content": padding}})


def write_text_encoder(folder, document, seed):
    encoder = text_names.encoder_of(document, folder)
    tokens = np.zeros((1, LENGTH), np.int32)
    params = random_params(jax.eval_shape(ClipTextEncoder(encoder).init, jax.random.key(0), tokens)["params"], seed)
    write_document(folder / "config.json", document)
    save(text_names.tensors_of(encoder, params), folder / text_names.WEIGHTS)


def save(tensors, path):
    save_file({name: np.ascontiguousarray(array) for name, array in tensors.items()}, path)


def write_unet(folder, document):
    fields = unet_names.Fields(**{k: tuple(v) if isinstance(v, list) else v for k, v in document.items()})
    network = unet_names.network_of(fields, folder)
    inputs = [np.zeros((1, LATENTS, LATENTS, 4), np.float32), np.zeros(1)]
    inputs.append(Tokens(np.zeros((1, LENGTH, network.context), np.float32)))
    if network.pooled:
        inputs += [np.zeros((1, network.pooled)), np.zeros((1, NUM_SIZES))]
    shapes = jax.eval_shape(ConditionUNet(network, 4).init, jax.random.key(0), *inputs)["params"]
    write_document(folder / "config.json", {"_class_name": unet_names.NAME, **document})
    tensors = unet_names.tensors_of(network, random_params(shapes, 1), fields.use_linear_projection)
    save(tensors, folder / WEIGHTS)


def write_vae(folder):
    document = {k: tuple(v) if isinstance(v, list) else v for k, v in VAE.items()}
    network = kl_names.network_of(kl_names.Fields(**document), folder)
    data = DataSpec(ImageSpec(2 * LATENTS, 2 * LATENTS, 3, 256))
    params = random_params(template(autoencoder_kl.make(autoencoder_kl.Config(network), data)), 2)
    write_document(folder / "config.json", {"_class_name": kl_names.NAME, **VAE})
    save(kl_names.tensors_of(network, params), folder / WEIGHTS)


def write_folder(folder, encoders=1):
    """A pipeline of version 1, with one text encoder, or of XL, with two."""
    name = f"StableDiffusion{'XL' * (encoders > 1)}Pipeline"
    write_document(
        folder / "model_index.json", {"_class_name": name, "text_encoder": ["transformers", "CLIPTextModel"]}
    )
    write_tokenizer(folder / "tokenizer", END)
    write_text_encoder(folder / "text_encoder", text_config(0), 3)
    if encoders > 1:
        write_tokenizer(folder / "tokenizer_2", "!")
        write_text_encoder(folder / "text_encoder_2", text_config(1, projection=6), 4)
    write_unet(folder / "unet", UNET | (XL if encoders > 1 else {}))
    write_vae(folder / "vae")
    write_document(folder / "scheduler" / "scheduler_config.json", SCHEDULERS[encoders])
    return folder
