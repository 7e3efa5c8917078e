"""Facts about compiled programs, for tests."""

import re

import jax

PLAIN_LAYOUT = "b01f_01io->b01f"  # NHWC, HWIO, NHWC: the one that XLA has fast code for on CPU


def conv_layouts(function, *args):
    """The layouts of the convolutions in a compiled program, as XLA writes them."""
    text = jax.jit(function).lower(*args).compile().as_text()
    return re.findall(r"dim_labels=(\w+->\w+)", text)
