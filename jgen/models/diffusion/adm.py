"""ADM: diffusion with the ablated U-Net (Dhariwal & Nichol 2021, arXiv 2105.05233), and guidance by a classifier.

    network    adaptive group normalisation, residual blocks that halve and double the resolution, attention at several
               resolutions in heads of 64 channels: jgen/nn/adm.py
    variance   predicted between beta_tilde and beta, by the hybrid loss (Nichol & Dhariwal 2021, arXiv 2102.09672)
    ADM-G      score + s grad log p(y | x_t) of a classifier of noisy images (noisy_classifier.py beside this file):
               `--frozen.classifier RUN`, when it is trained or when it is sampled
    ADM-U      with `data.low_resolution`, a diffusion of large images given small ones; two in a row are a cascade:
               `sample.py RUN --cascade UPSAMPLER`

Loss, likelihood and samplers are those of the objective's module, jgen/models/diffusion/ddpm.py.

Differs from the paper: guidance shifts the score in every sampler, which to first order equals the paper's shift of the
mean in ancestral steps; the predicted image is clipped after guidance; small images are not blurred in training.

Measured: bound 3.101 bits/dim on the 8x8 digits in 17 levels (50 images); Fréchet distance 22.2 (FD-digits, where other
training images have 22.6), a classifier assigns 99.0 % of samples to the class that they were conditioned on, 50
ancestral steps without guidance; 2,000 steps of `python train.py configs/diffusion/adm.py:digits`. With the classifier
of `python train.py configs/diffusion/noisy_classifier.py:digits`, 1,000 steps, of 500 samples: distance 23.3, 25.0 and
27.5 at scales 0, 1 and 3, recall 0.71, 0.65 and 0.64, class accuracy 98.8, 99.0 and 99.8 %.
Of the upsampler, 2,000 steps of `python train.py configs/diffusion/upsampler.py:digits`, the bound is 2.906 bits/dim
given the 4x4 image (50 images), the distance 6.1, and class accuracy 93.7 % (docs/guidance.md).
"""

from __future__ import annotations

from dataclasses import dataclass

from jgen.core.model import DataSpec, GenerativeModel
from jgen.errors import require
from jgen.models.diffusion.objectives import Objective, make_objective
from jgen.nn import unet
from jgen.samplers.diffusion import Sampling


@dataclass(frozen=True)
class Config:
    """Diffusion with the ablated U-Net."""

    objective: Objective
    """The objective, its network and its sampling options."""

    @property
    def sampling(self) -> Sampling:
        """Default options of sampling."""
        sampling: Sampling = self.objective.sampling
        return sampling


def make(config: Config, data: DataSpec, *, classifier: GenerativeModel | None = None) -> GenerativeModel:
    """An ADM for the image shape, levels and classes of `data`.

    Args:
      classifier: a classifier of noisy images, for classifier guidance.
    Raises:
      UserError: sizes that the U-Net cannot be built with, or options out of their range.
    """
    network = getattr(config.objective, "network", None)
    is_adm = isinstance(network, unet.Config) and network.architecture == "adm"
    require(is_adm, f"objective.network is {network}: it must be a jgen.nn.unet.Config of architecture adm")
    return make_objective(config.objective, data, classifier=classifier)._replace(name="adm")
