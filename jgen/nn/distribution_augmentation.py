"""Distribution augmentation (Jun et al. 2020, "Distribution Augmentation for Generative Modeling"): random
rotations and reflections of training images, which the network is conditioned on. For sampling and scoring, the
condition is the identity, number 0.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

# Transformations: number of quarter turns counter-clockwise, then whether it is mirrored left to right. The identity is
# the first; (3, True) is the transposition.
AUGMENTATIONS: dict[str, tuple[tuple[int, bool], ...]] = {
    "none": ((0, False),),
    "flip": ((0, False), (0, True)),
    "transposition": ((0, False), (3, True)),
    "rotation": tuple((turns, False) for turns in range(4)),
    "dihedral": tuple((turns, mirrored) for mirrored in (False, True) for turns in range(4)),
}


def needs_squares(augmentation: str) -> bool:
    """Whether an augmentation exchanges height and width."""
    return any(turns % 2 for turns, _ in AUGMENTATIONS[augmentation])


def transform(images: jax.Array, number: jax.Array, augmentation: str) -> jax.Array:
    """Images (B, H, W, C), each after one of the transformations of an augmentation; number: int32 (B,)."""
    batch, height, width, channels = images.shape
    grid = np.arange(height * width).reshape(height, width)
    sources = []
    for turns, mirrored in AUGMENTATIONS[augmentation]:
        turned = np.rot90(grid, turns)
        sources.append((turned[:, ::-1] if mirrored else turned).reshape(-1))
    index = jnp.asarray(np.stack(sources))[number]  # the pixel that comes to each position
    flat = images.reshape(batch, height * width, channels)
    return jnp.take_along_axis(flat, index[..., None], axis=1).reshape(images.shape)
