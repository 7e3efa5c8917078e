"""An implicit quantile function over features (Dabney et al. 2018, arXiv 1806.06923, section 3.1).

phi(tau) = relu(W [cos(0), cos(pi tau), ..., cos(pi (n - 1) tau)] + b)                      (equation 4)
Q(tau) = f(psi . phi(tau)), psi the features, f a network of ReLU layers with one output
"""

from __future__ import annotations

import flax.linen as nn
import jax

from jgen.nn.embeddings import cosine_embedding


class QuantileHead(nn.Module):
    """(features (..., N or 1, F), tau (..., N) in [0, 1]) to the quantile values, float32 (..., N).

    features: F, also the width of the layers of f; layers: their number; cosines: n. Computed in
    float32: bfloat16's resolution is as coarse as the spacing of 256 levels, and the gradient changes sign at a level.
    """

    features: int
    layers: int
    cosines: int

    def setup(self) -> None:
        self.embed = nn.Dense(self.features)
        self.hidden = [nn.Dense(self.features) for _ in range(self.layers)]
        self.value = nn.Dense(1)

    def __call__(self, features: jax.Array, tau: jax.Array) -> jax.Array:
        phi = nn.relu(self.embed(cosine_embedding(tau, self.cosines)))
        h = features * phi
        for layer in self.hidden:
            h = nn.relu(layer(h))
        return self.value(h)[..., 0]
