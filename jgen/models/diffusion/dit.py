"""Diffusion transformers (Peebles & Xie 2023, arXiv 2212.09748), with the objective of any diffusion system.

    network    patches as a sequence, blocks modulated by time and class (adaLN-Zero): jgen/nn/dit.py
    objective  a chain of noise (jgen/models/diffusion/ddpm.py, as published), EDM's denoiser (edm.py), or the
               velocity of a flow (flow_matching.py, with which the system is SiT: Ma et al. 2024, arXiv 2401.08740)
    guidance   D(null) + s (D(class) - D(null)), as published in the first channels only (`guidance_channels`)

Loss, likelihood and samplers are those of the objective's module; its options are `--model.objective...`, the
network's `--model.objective.network...`.

Differs from the paper: the frequencies of the embedding of t go down to 1 / 10,000, as in diffusers; dropout is an
option; the network works on pixels, or on the latents of a first stage (jgen/models/diffusion/latent.py).

Measured: 1.827 bits/dim on the 8x8 digits in 17 levels, an estimate with one probe and tolerance 1e-4 (50 images);
Fréchet distance 27.2 (FD-digits, where other training images have 22.6), 25 Heun steps with guidance 1.5; 2,000 steps
of `python train.py configs/diffusion/dit.py:digits`, flow matching with a pixel a patch.
"""

from __future__ import annotations

from dataclasses import dataclass

from jgen.core.model import DataSpec, GenerativeModel
from jgen.errors import require
from jgen.models.diffusion.objectives import Objective, make_objective
from jgen.nn import dit
from jgen.samplers.diffusion import Sampling


@dataclass(frozen=True)
class Config:
    """Diffusion with a transformer instead of the U-Net."""

    objective: Objective
    """The objective, its network and its sampling options."""

    @property
    def sampling(self) -> Sampling:
        """Default options of sampling."""
        sampling: Sampling = self.objective.sampling
        return sampling


def make(config: Config, data: DataSpec, *, classifier: GenerativeModel | None = None) -> GenerativeModel:
    """A diffusion transformer for the image shape, levels and classes of `data`.

    Args:
      classifier: a classifier of noisy images, for classifier guidance.
    Raises:
      UserError: patches that do not divide the images, or options out of their range.
    """
    network = getattr(config.objective, "network", None)
    require(isinstance(network, dit.Config), f"objective.network is {network}: it must be a jgen.nn.dit.Config")
    return make_objective(config.objective, data, classifier=classifier)._replace(name="dit")
