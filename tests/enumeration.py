"""Every image of a tiny size, its probability under a model, and samples' frequencies beside these."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
from scipy.stats import chisquare

from jgen.core import keys as rng
from jgen.core.model import Context


def all_images(spec):
    """Every image: uint8 (levels ** size, H, W, C); image n has the digits of n, first pixel first."""
    values = list(itertools.product(range(spec.levels), repeat=spec.size))
    return np.array(values, np.uint8).reshape(-1, *spec.shape)


def enumerate_log_prob(model, params, cond):
    """log p of all images, float64; cond: {field: the value of all, a number or an array}."""
    images = all_images(model.images)
    cond = {name: np.broadcast_to(np.int32(value), (len(images), *np.shape(value))) for name, value in cond.items()}
    keys = rng.image_keys(jax.random.key(0), jnp.arange(len(images)))
    # Conditions are arguments, so that the program is the same, and cached, whatever they are.
    log_prob = jax.jit(lambda params, cond: model.log_prob(params, Context(jnp.int32(0)), keys, images, cond))
    return np.asarray(log_prob(params, cond), np.float64)


def numbers(images, levels):
    """The place of images in `all_images`."""
    flat = images.reshape(len(images), -1).astype(np.int64)
    return flat @ (levels ** np.arange(flat.shape[1])[::-1])


def pooled_chisquare(images, levels, log_p):
    """p-value of the images' frequencies; outcomes expected fewer than 5 times are one."""
    counts = np.bincount(numbers(images, levels), minlength=len(log_p))
    expected = np.exp(log_p) / np.exp(log_p).sum() * len(images)
    rare = expected < 5
    if rare.any():
        counts, expected = (np.append(x[~rare], x[rare].sum()) for x in (counts, expected))
    if rare.any() and expected[-1] < 1:  # too rare to test: fold into the last
        counts, expected = (np.append(x[:-2], x[-2:].sum()) for x in (counts, expected))
    assert len(counts) > 3
    return chisquare(counts, expected).pvalue
