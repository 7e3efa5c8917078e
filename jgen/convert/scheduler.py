"""Conversion between diffusers' `DDPMScheduler` and `DDIMScheduler`, and jgen/models/diffusion/ddpm.py."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from jgen.errors import require, require_choice
from jgen.models.diffusion import ddpm
from jgen.nn.embeddings import MAX_PERIOD
from jgen.samplers.diffusion import Sampling

NAMES = ("DDIMScheduler", "DDPMScheduler")
Schedule = Literal["linear", "quadratic", "cosine", "sigmoid"]
Prediction = Literal["eps", "x0", "v"]
PublishedSchedule = Literal["linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid"]
PublishedPrediction = Literal["epsilon", "sample", "v_prediction"]
SCHEDULES: dict[PublishedSchedule, Schedule] = {
    "linear": "linear",
    "scaled_linear": "quadratic",
    "squaredcos_cap_v2": "cosine",
    "sigmoid": "sigmoid",
}
PREDICTIONS: dict[PublishedPrediction, Prediction] = {"epsilon": "eps", "sample": "x0", "v_prediction": "v"}
VARIANCES = {
    "fixed_small": "beta_tilde",
    "fixed_small_log": "beta_tilde",
    "fixed_large": "beta",
    "fixed_large_log": "beta",
    "learned": "learned",
    "learned_range": "learned",
}
STEPS = 50  # DDIM steps, as in diffusers' pipelines


@dataclass(frozen=True)
class Fields:
    """The fields of scheduler_config.json with diffusers' defaults; a Literal with one value is the only one jgen
    supports."""

    num_train_timesteps: int = 1000
    beta_start: float = 1e-4
    beta_end: float = 0.02
    beta_schedule: PublishedSchedule = "linear"
    trained_betas: None = None
    prediction_type: PublishedPrediction = "epsilon"
    clip_sample: bool = True
    clip_sample_range: float = 1.0
    thresholding: Literal[False] = False
    dynamic_thresholding_ratio: float = 0.995
    sample_max_value: float = 1.0
    timestep_spacing: Literal["leading", "linspace", "trailing"] = "leading"
    steps_offset: Literal[0] = 0
    rescale_betas_zero_snr: Literal[False] = False
    set_alpha_to_one: Literal[True] = True
    variance_type: str = "fixed_small"


def objective_of(fields: Fields, class_name: Any, where: Any, learned: bool, **options: Any) -> ddpm.Config:
    """The noise schedule and the sampler that scheduler_config.json describes.

    Args:
      learned: whether the network predicts variances; options: further fields of `ddpm.Config`.
    """
    require_choice(f"{where}: _class_name", class_name, NAMES)
    require_choice(f"{where}: variance_type", fields.variance_type, VARIANCES)
    require_choice(f"{where}: clip_sample_range", fields.clip_sample_range, (1.0,))
    variance = "learned" if learned else VARIANCES[fields.variance_type]
    message = f"{where}: variance_type is {fields.variance_type}: the network does not predict variances"
    require(learned or variance != "learned", message)
    steps: dict[str, Any] = {"sampler": "ddim", "steps": min(STEPS, fields.num_train_timesteps)}
    if class_name == "DDPMScheduler":
        steps = {"sampler": "ancestral", "steps": fields.num_train_timesteps, "variance": variance}
    return ddpm.Config(
        num_timesteps=fields.num_train_timesteps,
        schedule=SCHEDULES[fields.beta_schedule],
        beta_1=float(fields.beta_start),
        beta_T=float(fields.beta_end),
        prediction=PREDICTIONS[fields.prediction_type],
        bound_variance="learned" if learned else "beta",
        first_timestep=0,
        sampling=Sampling(spacing=fields.timestep_spacing, clip=fields.clip_sample, **steps),
        **options,
    )


def fields_of(objective: ddpm.Config) -> Fields:
    """The fields of a DDIMScheduler's scheduler_config.json for a noise schedule."""
    known = {value: name for name, value in SCHEDULES.items()}
    spacing = objective.sampling.spacing
    return Fields(
        num_train_timesteps=objective.num_timesteps,
        beta_start=objective.beta_1,
        beta_end=objective.beta_T,
        beta_schedule=known[objective.schedule],
        prediction_type={value: name for name, value in PREDICTIONS.items()}[objective.prediction],
        clip_sample=objective.sampling.clip,
        timestep_spacing=spacing if spacing in ("leading", "linspace") else "trailing",
    )


def counted_from_zero(kernel: Any) -> np.ndarray:
    """The kernel (D, E) that gives the same output on the embedding of t - 1 as `kernel` on the embedding of t.

    For a frequency f, (sin(f t), cos(f t)) is (sin(f (t - 1)), cos(f (t - 1))) rotated by the angle f.
    """
    half = len(kernel) // 2
    f = np.exp(-np.log(MAX_PERIOD) / max(half - 1, 1) * np.arange(half))[:, None]
    sines, cosines, rest = np.split(np.asarray(kernel, np.float64), [half, 2 * half])
    turned = [np.cos(f) * sines - np.sin(f) * cosines, np.sin(f) * sines + np.cos(f) * cosines, rest]
    return np.concatenate(turned).astype(np.float32)
