"""A CLIP whose embeddings are known: of an image its first pixels, of a text a vector of its first word."""

import jax.numpy as jnp
import numpy as np

from jgen.core.model import ArraySpec, Context, DataSpec, FrozenModel, GenerativeModel, ImageSpec
from jgen.core.tokens import END, START
from jgen.nn.cross_attention import Tokens

D, LENGTH, WORDS, WIDTH = 3, 4, 6, 5  # dimensions of an embedding, tokens of a text, ids, features of a token
DATA = DataSpec(ImageSpec(2, 2, 1, 256), {"text": ArraySpec((LENGTH,), "int32", WORDS)})
TEXTS = np.array([[START, 3, END, 0], [START, 4, 5, END], [START, 5, END, 0]], np.int32)
V = np.random.default_rng(0).standard_normal((WORDS, D)).astype(np.float32) * 0.5  # of a text's first word
TOKENS = np.random.default_rng(1).standard_normal((WORDS, WIDTH)).astype(np.float32)


def embed_image(params, ctx, x):
    return x.reshape(len(x), -1)[:, :D]


def embed_text(params, ctx, tokens):
    return jnp.asarray(V)[tokens[:, 1]]


def encode_text(params, ctx, tokens):
    return Tokens(jnp.asarray(TOKENS)[tokens], jnp.cumsum(tokens == END, axis=1) - (tokens == END) == 0)


LENT = {"embed_image": embed_image, "embed_text": embed_text, "encode_text": encode_text}
CLIP = GenerativeModel("clip", DATA, lambda key, batch, frozen: ({}, {}), (), functions=LENT)
CTX = Context(jnp.int32(0), frozen={"clip": FrozenModel({}, {})})
