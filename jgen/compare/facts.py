"""What a configuration declares about its system for comparisons, in addition to VARIANTS and get_config:

FACTS = Facts(...)
    properties that are not measured: see `Facts`.
FROZEN = {role: configuration}
    the configuration that trains each frozen run that the system depends on, {"autoencoder": "configs/vae/vq_vae.py"};
    its variant of the same name, unless another is given after a colon.
at_height(experiment, own, height)
    the experiment for images of another height than the data's `own`, for a system with options that scale with it.

All are optional, except FROZEN if the experiment has frozen runs.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable
from dataclasses import dataclass

from jgen.experiment import Experiment


@dataclass(frozen=True)
class Facts:
    """Facts about a system for the table of a comparison."""

    free_form_jacobian: bool | None = None
    """Whether the networks' Jacobians are unconstrained, as in Bond-Taylor et al. 2021, table 1; None: not stated."""
    published: str = ""
    """Published numbers, from other data, budgets and hardware. Without a mark they are from the system's own paper; a
    mark such as (C) names one of `SOURCES`; any other source is written out."""
    compared: bool = True
    """Whether comparisons include the system; False for one that only others use, such as an autoencoder."""


SOURCES = {
    "C": "of Bond-Taylor et al. 2021",  # "Deep Generative Modelling: A Comparative Review", arXiv 2103.04922, table 1
    "F": "of FFJORD's table",  # Grathwohl et al. 2018, arXiv 1810.01367, and later tables of flows
    "P": "of pytorch-generative",  # dynamic binarisation, no validation split, the test images binarised anew
}


def legend(published: Iterable[str]) -> str:
    """The sentence that explains the marks of published numbers, for the sources that occur."""
    marks = {mark for text in published for mark in re.findall(r"\b([A-Z])\)", text)}
    sources = [f"({mark}) {source}" for mark, source in SOURCES.items() if mark in marks]
    return f"Published: {', or '.join(['of the papers', ', '.join(sources)]) if sources else 'of the papers'}."


def attention_at_height(experiment: Experiment, own: int, height: int) -> Experiment:
    """`at_height` for a system with a U-Net: the feature map heights in its `attention` scale with the images."""
    network = experiment.model.network
    scaled = tuple(max(1, round(level * height / own)) for level in network.attention)
    model = dataclasses.replace(experiment.model, network=dataclasses.replace(network, attention=scaled))
    return dataclasses.replace(experiment, model=model)
