"""Conversion between CLIP text encoders and tokenizers of transformers and of jgen (nn/clip_text.py,
data/clip_text.py)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from jgen.convert import files
from jgen.convert.dit import entry
from jgen.convert.layers import Layer, Tensors, layer, to_params, to_tensors
from jgen.core.files import written_whole
from jgen.core.options import check_types
from jgen.data.clip_text import END, START, ClipTokenizer, checked
from jgen.errors import UserError, require, require_choice
from jgen.nn import clip_text

CLASSES = ("CLIPTextModel", "CLIPTextModelWithProjection")
WEIGHTS = "model.safetensors"
PREFIX = "text_model."
HIGHEST_ID = 2  # end token in old configurations, which means the highest id
VOCABULARY, MERGES, WHOLE = "vocab.json", "merges.txt", "tokenizer.json"
PLACES = "embeddings.position_embedding.weight"


@dataclass(frozen=True)
class Fields:
    """The fields of config.json that define a text encoder, with transformers' defaults."""

    vocab_size: int = 49408
    hidden_size: int = 512
    intermediate_size: int = 2048
    projection_dim: int = 512
    num_hidden_layers: int = 12
    num_attention_heads: int = 8
    max_position_embeddings: int = 77
    hidden_act: Literal["quick_gelu", "gelu"] = "quick_gelu"
    layer_norm_eps: float = 1e-5
    eos_token_id: int = 49407


def encoder_of(document: Mapping[str, Any], where: Path) -> clip_text.Config:
    """The text encoder that a config.json describes. Raises `UserError` for one that jgen does not have."""
    names = document.get("architectures") or [None]
    require_choice(f"{where}: architectures", names[0], CLASSES)
    known = {name: document[name] for name in Fields.__dataclass_fields__ if document.get(name) is not None}
    fields = Fields(**known)
    check_types(fields, str(where))
    masks = document.get("use_attention_mask")
    require(not masks, f"{where}: use_attention_mask is {masks!r}: Stable Diffusion's text encoders have none")
    return clip_text.Config(
        vocabulary=fields.vocab_size,
        length=fields.max_position_embeddings,
        features=fields.hidden_size,
        heads=fields.num_attention_heads,
        layers=fields.num_hidden_layers,
        hidden=fields.intermediate_size,
        activation=fields.hidden_act,
        eps=float(fields.layer_norm_eps),
        projection=fields.projection_dim if names[0] == CLASSES[1] else 0,
        end=fields.vocab_size - 1 if fields.eos_token_id == HIGHEST_ID else fields.eos_token_id,
    )


def document_of(encoder: clip_text.Config) -> dict[str, Any]:
    """The config.json of a text encoder: the inverse of `encoder_of`."""
    fields = Fields(
        vocab_size=encoder.vocabulary,
        hidden_size=encoder.features,
        intermediate_size=encoder.hidden,
        projection_dim=encoder.projection or encoder.features,
        num_hidden_layers=encoder.layers,
        num_attention_heads=encoder.heads,
        max_position_embeddings=encoder.length,
        hidden_act=encoder.activation,
        layer_norm_eps=encoder.eps,
        eos_token_id=encoder.end,
    )
    return {"architectures": [class_of(encoder)], "model_type": "clip_text_model", **asdict(fields)}


def class_of(encoder: clip_text.Config) -> str:
    """The class in transformers of a text encoder."""
    return CLASSES[1] if encoder.projection else CLASSES[0]


def outer_layers() -> list[Layer]:
    """All layers except those of the blocks and the positions; not every encoder has the projection."""
    return [
        layer("tokens", f"{PREFIX}embeddings.token_embedding", "embedding"),
        layer("norm", f"{PREFIX}final_layer_norm", "norm"),
        layer("projection", "text_projection"),
    ]


def block_layers(number: int) -> list[Layer]:
    """The layers of a block, with paths relative to it."""
    name = f"{PREFIX}encoder.layers.{number}"
    layers = [layer(f"norm{i}", f"{name}.layer_norm{i}", "norm") for i in (1, 2)]
    layers.append(Layer("qkv", tuple(f"{name}.self_attn.{letter}_proj" for letter in "qkv")))
    layers.append(layer("out", f"{name}.self_attn.out_proj"))
    return [*layers, layer("wide", f"{name}.mlp.fc1"), layer("narrow", f"{name}.mlp.fc2")]


def tensors_of(encoder: clip_text.Config, params: Any) -> dict[str, np.ndarray]:
    """The parameters by transformers' names."""
    outer = [one for one in outer_layers() if one.path in params]
    tensors = {**to_tensors(outer, params), PREFIX + PLACES: np.asarray(params["places"])}
    for i in range(encoder.layers):
        tensors |= to_tensors(block_layers(i), entry(params["blocks"], i))
    return tensors


def params_of(encoder: clip_text.Config, tensors: Tensors) -> dict[str, Any]:
    """The inverse of `tensors_of`."""
    blocks = [to_params(block_layers(i), tensors) for i in range(encoder.layers)]
    outer = [one for one in outer_layers() if f"{one.names[0]}.weight" in tensors]
    stacked = jax.tree.map(lambda *arrays: np.stack(arrays), *blocks)
    return {**to_params(outer, tensors), "places": tensors[PREFIX + PLACES], "blocks": stacked}


def new_name(name: str) -> str:
    """A tensor's name in its usual form; "" for one that is not a parameter."""
    if name.endswith("position_ids"):
        return ""
    outside = name.startswith((PREFIX, "text_projection."))
    return name if outside else f"{PREFIX}{name}"


def read_tokenizer(folder: Path) -> ClipTokenizer:
    """The tokenizer in a folder: vocab.json and merges.txt, or tokenizer.json, which has both.

    Raises:
      UserError: files are missing or damaged.
    """
    settings: dict[str, Any] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        settings |= files.read_document(folder / name) if (folder / name).is_file() else {}
    kind = settings.get("tokenizer_class", "CLIPTokenizer")
    require_choice(f"{folder}: tokenizer_class", kind, ("CLIPTokenizer", "CLIPTokenizerFast"))
    padding = settings.get("pad_token") or END
    length = settings.get("model_max_length", 77)
    try:
        vocabulary, merges = read_pieces(folder)
        pieces = tuple(sorted(vocabulary, key=vocabulary.__getitem__))
        require(sorted(vocabulary.values()) == list(range(len(pieces))), "its ids are not 0, 1, 2, ...")
        padding = str(padding["content"] if isinstance(padding, dict) else padding)
        return checked(ClipTokenizer(int(length), pieces, merges, (padding,)))
    except (KeyError, TypeError, ValueError, AttributeError, UserError) as error:
        raise UserError(f"{folder} is damaged: {error or type(error).__name__}") from error


def read_pieces(folder: Path) -> tuple[dict[str, int], tuple[tuple[str, str], ...]]:
    """The ids of a tokenizer's pieces, and its merges."""
    if not (folder / VOCABULARY).is_file() and (folder / WHOLE).is_file():
        model = files.read_document(folder / WHOLE)["model"]
        pairs = [pair.split(" ") if isinstance(pair, str) else pair for pair in model["merges"]]
        return dict(model["vocab"]), tuple((left, right) for left, right in pairs)
    for name in (VOCABULARY, MERGES):
        require((folder / name).is_file(), f"there is no {name}")
    lines = (folder / MERGES).read_text(encoding="utf-8").split("\n")
    start = 1 if lines[0].startswith("#version") else 0
    pairs = [line.split() for line in lines[start:] if line.strip()]
    vocabulary = json.loads((folder / VOCABULARY).read_text(encoding="utf-8"))
    return dict(vocabulary), tuple((left, right) for left, right in pairs)


def write_tokenizer(folder: Path, tokenizer: ClipTokenizer, padding: str) -> None:
    """Writes a tokenizer, with one of its padding tokens, as a CLIPTokenizer of transformers."""
    special = {"bos_token": START, "eos_token": END, "pad_token": padding, "unk_token": END}
    sizes = {"tokenizer_class": "CLIPTokenizer", "model_max_length": tokenizer.length, "do_lower_case": True}
    files.write_json(folder / "tokenizer_config.json", {**sizes, **special})
    files.write_json(folder / "special_tokens_map.json", special)
    with written_whole(folder / VOCABULARY) as aside:
        aside.write_text(json.dumps(tokenizer.ids, ensure_ascii=False), encoding="utf-8")
    with written_whole(folder / MERGES) as aside:
        lines = ["#version: 0.2", *(" ".join(pair) for pair in tokenizer.merges), ""]
        aside.write_text("\n".join(lines), encoding="utf-8")
