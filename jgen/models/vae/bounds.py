"""What variational autoencoders share: options of sampling and scoring, and `log_prob` as a bound from K latents.

ELBO   log p(x) >= E_q[log p(x|z) + log p(z) - log q(z|x)]                                         K = 1
IWAE   log p(x) >= E log (1/K) sum_k p(x|z_k) p(z_k) / q(z_k|x)     Burda et al. 2016, 1509.00519  K > 1
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import jax

from jgen.errors import defaults_of, require_positive, require_temperature
from jgen.prob.importance import importance_weighted_bound


@dataclass(frozen=True)
class Sampling:
    """Options of sampling."""

    temperature: float = 1.0
    """Factor on the latents' standard deviations: 1 samples from the model, below 1 favours typical images."""
    mean: bool = False
    """Return the mean of the pixels' distribution instead of a draw: smoother, but not a sample of the model."""


@dataclass(frozen=True)
class Scoring:
    """Options of log_prob."""

    samples: int = 1
    """Importance samples K: 1 is the ELBO, more a tighter bound."""


def bound(
    scoring: Scoring,
    options: Mapping[str, Any],
    elbo: Callable[[], jax.Array],
    log_weights: Callable[[jax.Array], jax.Array],
    chunk: int,
) -> jax.Array:
    """A lower bound on log p(x), float32 (B,), with the number of latents per image in `scoring`, changed by `options`.

    Args:
      elbo: the bound of one latent, (B,). log_weights: see `importance_weighted_bound`.
      chunk: latents of an image computed at once; values below 1 mean 1.
    Raises:
      UserError: samples that are not above zero.
    """
    num = replace(scoring, **options).samples
    require_positive(samples=num)
    return elbo() if num == 1 else importance_weighted_bound(log_weights, num, min(num, max(1, chunk)))


def check_options(config: Any) -> None:
    """Raises `UserError` for defaults of sampling and scoring that are out of their range."""
    with defaults_of("scoring"):
        require_positive(samples=config.scoring.samples)
    with defaults_of("sampling"):
        require_temperature(config.sampling.temperature)
