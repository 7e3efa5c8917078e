"""Network blocks (flax.linen), NHWC, shared by the systems."""
