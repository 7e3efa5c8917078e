"""Zero-shot classification and retrieval by a model that embeds images and texts, such as CLIP.

    log p(c | x) = log softmax_c (s u(x) . w_c),  w_c the mean over prompts of v(prompt with c), L2-normalised
                                                        (Radford et al. 2021, arXiv 2103.00020, section 3.1.4)

u and v are L2-normalised embeddings of images and texts, s is the model's logit scale. Nothing is random.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from numpy.typing import ArrayLike

from jgen.core.generate import brief, check_images, require_capability
from jgen.core.model import GenerativeModel
from jgen.core.tokens import encode_text
from jgen.core.trained import TrainedModel
from jgen.errors import require
from jgen.prob.pixels import to_float

PROMPTS = ("a picture of a {}",)
AT_ONCE = 250  # images or texts embedded at a time


def compares(model: GenerativeModel) -> bool:
    """Whether a model embeds images and texts in a common space."""
    return {"embed_image", "embed_text"} <= set(model.functions)


def embed_images(gen: TrainedModel, images: ArrayLike, *, batch_size: int = AT_ONCE) -> np.ndarray:
    """u, float32 (n, D), of uint8 images (n, H, W, C). Raises `NotSupported` for a model that does not embed images."""
    function = function_of(gen, "embed_image")
    array, levels = check_images(gen.model, images), gen.model.images.levels
    return in_batches(lambda part: function(gen.params, gen.ctx, to_float(part, levels)), array, batch_size)


def embed_texts(gen: TrainedModel, texts: Sequence[str], *, batch_size: int = AT_ONCE) -> np.ndarray:
    """v, float32 (m, D), of texts.

    Raises:
      NotSupported: a model that does not embed texts. UserError: no texts, a string instead of a sequence, or an empty
        text.
    """
    function_of(gen, "embed_text")
    require(not isinstance(texts, str) and len(texts) > 0, "texts must be a sequence of one text or more")
    name = gen.config.model.text
    tokens = np.stack([encode_text(gen.tokenizers[name], name, text) for text in texts])
    return embed_tokens(gen, tokens, batch_size=batch_size)


def embed_tokens(gen: TrainedModel, tokens: np.ndarray, *, batch_size: int = AT_ONCE) -> np.ndarray:
    """v, float32 (m, D), of texts given as tokens of the run's tokenizer, int32 (m, T)."""
    function = function_of(gen, "embed_text")
    return in_batches(lambda part: function(gen.params, gen.ctx, part), tokens, batch_size)


def function_of(gen: TrainedModel, name: str) -> Callable[..., jax.Array]:
    """One of the model's `functions`, compiled. Raises `NotSupported` if the model does not provide it."""
    if name not in gen.model.functions:
        require_capability(gen.model, name)
    return jax.jit(gen.model.functions[name])


def in_batches(function: Callable[[Any], jax.Array], array: np.ndarray, batch_size: int) -> np.ndarray:
    """Computes function(array) in batches of rows, with one compiled program."""
    require(batch_size >= 1, f"batch_size is {batch_size}: it must be above zero")
    places, last = np.arange(min(batch_size, len(array))), len(array) - 1
    parts = [function(array[np.minimum(first + places, last)]) for first in range(0, len(array), len(places))]
    return np.concatenate([np.asarray(part) for part in parts])[: len(array)]


def class_scores(
    gen: TrainedModel, images: ArrayLike, classes: Sequence[str], prompts: Sequence[str], batch_size: int = AT_ONCE
) -> np.ndarray:
    """s u(x) . w_c in nats, float64 (n, classes): see the module's docstring.

    Args:
      classes: names of the classes; prompts: texts in which {} stands for the name.
    Raises:
      UserError: fewer than two classes, repeated names, or a prompt without {}.
    """
    check_classes(classes, prompts)
    texts = [prompt.replace("{}", name) for name in classes for prompt in prompts]
    v = embed_texts(gen, texts, batch_size=batch_size).astype(np.float64)
    w = v.reshape(len(classes), len(prompts), -1).mean(axis=1)
    w /= np.maximum(np.linalg.norm(w, axis=1, keepdims=True), 1e-12)
    u = embed_images(gen, images, batch_size=batch_size).astype(np.float64)
    return float(gen.model.functions["scale"](gen.params, gen.ctx)) * (u @ w.T)


def check_classes(classes: Sequence[str], prompts: Sequence[str]) -> None:
    """Raises `UserError` for fewer than two classes, repeated ones, or prompts that do not name them."""
    several = not isinstance(classes, str) and len(classes) >= 2
    require(several, f"classes are {brief(classes)}: they must be two names or more, such as classes=('cat', 'dog')")
    for name in classes:
        require(bool(str(name).strip()), f"classes have {name!r}: each must be a name")
    require(len(set(classes)) == len(classes), f"classes are {brief(classes)}: one name is there twice")
    require(not isinstance(prompts, str) and len(prompts) > 0, f"prompts are {brief(prompts)}: they must be a tuple")
    for prompt in prompts:
        require("{}" in prompt, f"prompts have {brief(prompt)!r}: it must have {{}} in place of a class")


def retrieve(
    gen: TrainedModel, texts: Sequence[str], images: ArrayLike, num: int = 5, *, batch_size: int = AT_ONCE
) -> np.ndarray:
    """The indices of the `num` images nearest to each text, the nearest first: int (m, num).

    Args:
      images: uint8 (n, H, W, C).
    Raises:
      NotSupported: a model that does not embed both images and texts. UserError: num outside 1 .. n.
    """
    u = embed_images(gen, images, batch_size=batch_size)
    require(1 <= num <= len(u), f"num is {num}: it must be from 1 to {len(u)}, the number of images")
    v = embed_texts(gen, texts, batch_size=batch_size)
    order = np.argsort(-(v.astype(np.float64) @ u.astype(np.float64).T), axis=1, kind="stable")
    return order[:, :num]
