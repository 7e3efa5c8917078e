"""Parameter-free bijections, for normalising flows; NHWC.

Each maps forward from images towards latents. A function that changes volume returns (y, log_det), where log_det (B,)
is the log of the absolute determinant of the Jacobian of the map that was applied; the others preserve volume.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jgen.prob.likelihoods import sum_image


def squeeze(x: Any) -> Any:
    """(B, H, W, C) to (B, H/2, W/2, 4C): each 2x2 block of pixels becomes the channels of one (Dinh et al. 2017).

    Channel 4c + 2i + j is channel c of the pixel in row i, column j of the block. H and W must be even.
    """
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height // 2, 2, width // 2, 2, channels)
    return x.transpose(0, 1, 3, 5, 2, 4).reshape(batch, height // 2, width // 2, 4 * channels)


def unsqueeze(x: Any) -> Any:
    """The inverse of `squeeze`: (B, H, W, 4C) to (B, 2H, 2W, C)."""
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height, width, channels // 4, 2, 2)
    return x.transpose(0, 1, 4, 2, 5, 3).reshape(batch, 2 * height, 2 * width, channels // 4)


def split_blocks(x: Any) -> tuple[Any, Any]:
    """(B, H, W, 4C) of `squeeze` to two (B, H, W, 2C): the pixels on the diagonal of every block, and the other two."""
    blocks = x.reshape(*x.shape[:3], x.shape[3] // 4, 4)
    shape = (*x.shape[:3], x.shape[3] // 2)
    return blocks[..., ::3].reshape(shape), blocks[..., 1:3].reshape(shape)


def join_blocks(diagonal: Any, others: Any) -> Any:
    """The inverse of `split_blocks`."""
    shape = diagonal.shape
    on, off = (half.reshape(*shape[:3], shape[3] // 2, 2) for half in (diagonal, others))
    return jnp.concatenate([on[..., :1], off, on[..., 1:]], axis=-1).reshape(*shape[:3], 2 * shape[3])


def checkerboard(height: int, width: int, parity: Any) -> Any:
    """Mask (1, H, W, 1) of zeros and ones, one where row + column + parity is even; parity may be traced."""
    position = jnp.arange(height)[:, None] + jnp.arange(width)[None, :] + parity
    return (1 - position % 2)[None, :, :, None]


def swap_halves(x: Any) -> Any:
    """Exchanges the first and the second half of an even number of channels; its own inverse."""
    return jnp.concatenate(jnp.split(x, 2, axis=-1)[::-1], axis=-1)


def affine(x: Any, shift: Any, log_scale: Any, inverse: bool = False) -> tuple[Any, Any]:
    """y = (x + shift) exp(log_scale), or with `inverse` x = y exp(-log_scale) - shift, and its log_det.

    Args:
      x, shift, log_scale: all (B, H, W, C).
    """
    if inverse:
        return x * jnp.exp(-log_scale) - shift, -sum_image(log_scale)
    return (x + shift) * jnp.exp(log_scale), sum_image(log_scale)


def log_sigmoid(x: Any) -> Any:
    """log(1 / (1 + exp(-x))), to an absolute error of 1e-7; on CPU, XLA vectorises it for few channels too."""
    # minimum(x, -x), not -abs(x): the gradient of abs at 0 is 1 in JAX, with which that of the sum would be 1, not 1/2.
    return jnp.minimum(x, 0) - jnp.log(1 + jnp.exp(jnp.minimum(x, -x)))


def logit(x: Any, alpha: float, inverse: bool = False) -> tuple[Any, Any]:
    """y = logit(alpha + (1 - 2 alpha) x) of x in [0, 1], elementwise (Dinh et al. 2017, section 4.1), and its log_det.

    Args:
      alpha: above 0 and below 1/2; the y of x in [0, 1] are within +-logit(alpha).
    """
    if inverse:
        p = jax.nn.sigmoid(x)
        x = (p - alpha) / (1 - 2 * alpha)
    else:
        p = alpha + (1 - 2 * alpha) * x
    log_det = sum_image(jnp.log1p(-2 * alpha) - jnp.log(p) - jnp.log1p(-p))
    return (x, -log_det) if inverse else (jnp.log(p) - jnp.log1p(-p), log_det)


def assemble_lu(lower: Any, upper: Any, diagonal: Any, order: Any) -> Any:
    """W = P L U (C, C), whose determinant is known: the rows of L U in `order` (Kingma & Dhariwal 2018, equation 10).

    Args:
      lower: (C, C), of which only what is below the diagonal is used; L has ones on the diagonal.
      upper: (C, C), of which only what is above the diagonal is used.
      diagonal: (C,), the diagonal of U. |det W| is the product of |diagonal|.
      order: int (C,), a permutation: row i of W is row order[i] of L U.
    """
    size = diagonal.shape[0]
    unit, above = jnp.tril(lower, -1) + jnp.eye(size, dtype=diagonal.dtype), jnp.triu(upper, 1) + jnp.diag(diagonal)
    # Full float32 precision, here and below: at an accelerator's default precision the inverse would not match.
    return jnp.matmul(unit, above, precision="highest")[order]


def invert_lower(lower: Any) -> Any:
    """The inverse (C, C) of a lower triangular matrix, in 2 log2(C) products of matrices.

    Blocks twice as large at each level: [[A, 0], [B, D]] has the inverse [[A', 0], [-D' B A', D']], which is X - X B X
    with X the inverses of the blocks so far and B padded with zeros. With LAPACK's triangular solves, which use their
    own threads in addition to XLA's, sampling a Glow took a third longer on CPU; a loop over rows would be slow on GPU.
    """
    row = jnp.arange(lower.shape[0])
    inverse = jnp.diag(1 / jnp.diag(lower))
    size = 1
    while size < lower.shape[0]:
        block = row // size
        below = (block[:, None] % 2 == 1) & (block[:, None] == block[None, :] + 1)
        product = jnp.matmul(jnp.where(below, lower, 0), inverse, precision="highest")
        inverse = inverse - jnp.matmul(inverse, product, precision="highest")
        size *= 2
    return inverse


def invert_lu(lower: Any, upper: Any, diagonal: Any, order: Any) -> Any:
    """The inverse (C, C) of `assemble_lu` of the same arguments."""
    unit = jnp.tril(lower, -1) + jnp.eye(diagonal.shape[0], dtype=diagonal.dtype)
    above = invert_lower((jnp.triu(upper, 1) + jnp.diag(diagonal)).T).T
    return jnp.matmul(above, invert_lower(unit), precision="highest")[:, order]
