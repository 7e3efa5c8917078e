"""Converts the schedulers of Stable Diffusion's folders to a noise schedule and a sampler of jgen.

A scheduler_config.json often has fields of other classes; like diffusers, this module ignores them. Samplers and their
times are jgen's own. Images agree with diffusers for DDIM, Euler and PNDM with `leading` times; the other samplers use
slightly different times.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jgen.convert.scheduler import PREDICTIONS, SCHEDULES, STEPS
from jgen.errors import require, require_choice
from jgen.prob.schedules import make_schedule
from jgen.samplers.diffusion import Sampling

DEFAULTS: dict[str, Any] = {  # of fields that all classes have
    "num_train_timesteps": 1000,
    "beta_start": 1e-4,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "prediction_type": "epsilon",
    "steps_offset": 0,
}
ONLY: dict[str, Any] = {"trained_betas": None, "rescale_betas_zero_snr": False, "thresholding": False}  # only these
KARRAS = {"use_exponential_sigmas": False, "use_beta_sigmas": False, "use_lu_lambdas": False, "use_flow_sigmas": False}
SIGMAS = {"interpolation_type": "linear", "timestep_type": "discrete", "final_sigmas_type": "zero", **KARRAS}


class Kind(NamedTuple):
    """jgen's equivalent of a class of schedulers.

    sampler: the sampler.  spacing: the default of timestep_spacing.  one: the default of set_alpha_to_one, if it is
    used.  only: fields that must have this value, which is also the default unless `given` names them.
    """

    sampler: Any
    spacing: str = "linspace"
    one: bool | None = None
    only: Mapping[str, Any] = {}
    given: tuple[str, ...] = ()


MULTISTEP = {"solver_order": 2, "final_sigmas_type": "zero", **KARRAS}
KINDS = {
    "DDIMScheduler": Kind("ddim", "leading", True),
    "PNDMScheduler": Kind("plms", "leading", False, {"skip_prk_steps": True}, ("skip_prk_steps",)),
    "EulerDiscreteScheduler": Kind("ddim", only=SIGMAS),
    "EulerAncestralDiscreteScheduler": Kind("euler_ancestral"),
    "DPMSolverMultistepScheduler": Kind("dpmpp_2m", only={"solver_type": "midpoint", **MULTISTEP}),
    "UniPCMultistepScheduler": Kind("unipc", only={"solver_type": "bh2", "predict_x0": True, **MULTISTEP}),
}
ALGORITHMS = {"dpmsolver++": "dpmpp_2m", "sde-dpmsolver++": "dpmpp_2m_sde"}


def chain_of(document: Mapping[str, Any], where: Path) -> dict[str, Any]:
    """The noise schedule, as fields of a Config. Raises `UserError` for one that jgen does not have."""
    name = document.get("_class_name")
    require_choice(f"{where}: _class_name", name, KINDS)
    fields = {**DEFAULTS, **{field: document[field] for field in DEFAULTS if field in document}}
    kind = KINDS[str(name)]
    for field, wanted in {**ONLY, **kind.only}.items():
        missing = not wanted if field in kind.given else wanted
        value = document.get(field, missing)
        same = value == wanted or (value is None and not wanted)
        require(same, f"{where}: {field} is {value!r}: it must be {wanted!r}")
    require_choice(f"{where}: beta_schedule", fields["beta_schedule"], SCHEDULES)
    require_choice(f"{where}: prediction_type", fields["prediction_type"], PREDICTIONS)
    for field in ("num_train_timesteps", "beta_start", "beta_end", "steps_offset"):
        value = fields[field]
        number = isinstance(value, int | float) and not isinstance(value, bool) and value >= 0
        require(number, f"{where}: {field} is {value!r}: it must be a number, zero or above")
    return {
        "num_timesteps": int(fields["num_train_timesteps"]),
        "schedule": SCHEDULES[fields["beta_schedule"]],
        "beta_1": float(fields["beta_start"]),
        "beta_T": float(fields["beta_end"]),
        "prediction": PREDICTIONS[fields["prediction_type"]],
    }


def sampling_of(
    document: Mapping[str, Any], where: Path, chain: Mapping[str, Any], guidance_scale: float, offset: int | None
) -> Sampling:
    """The sampler.

    Args:
      chain: the result of `chain_of`; offset: overrides the document's steps_offset unless None.
    Raises:
      UserError: an algorithm or a spacing of times that jgen does not have.
    """
    kind = KINDS[str(document["_class_name"])]
    sampler, others = kind.sampler, dict[str, Any]()
    if sampler == "dpmpp_2m":
        algorithm = document.get("algorithm_type", "dpmsolver++")
        require_choice(f"{where}: algorithm_type", algorithm, ALGORITHMS)
        sampler = ALGORITHMS[algorithm]
    spacing = document.get("timestep_spacing", kind.spacing)
    require_choice(f"{where}: timestep_spacing", spacing, ("leading", "linspace", "trailing"))
    if document.get("use_karras_sigmas") and kind.sampler not in ("plms", "euler_ancestral") and kind.one is None:
        spacing = "karras"
        schedule = make_schedule(*(chain[name] for name in ("schedule", "num_timesteps", "beta_1", "beta_T")))
        others["low"] = float(np.sqrt(1 / schedule.alpha_bar[1] - 1))  # the end of the schedule
    if spacing == "leading":
        others["offset"] = int(document.get("steps_offset", 0)) if offset is None else offset
    if kind.one is not None:
        others["end"] = "data" if document.get("set_alpha_to_one", kind.one) else "first"
    steps = min(STEPS, chain["num_timesteps"])
    return Sampling(sampler=sampler, steps=steps, spacing=spacing, guidance_scale=guidance_scale, clip=False, **others)


CLASSES = {
    "ddim": "DDIMScheduler",
    "plms": "PNDMScheduler",
    "euler_ancestral": "EulerAncestralDiscreteScheduler",
    "dpmpp_2m": "DPMSolverMultistepScheduler",
    "dpmpp_2m_sde": "DPMSolverMultistepScheduler",
    "unipc": "UniPCMultistepScheduler",
}


def document_of(chain: Mapping[str, Any], o: Sampling) -> tuple[str, dict[str, Any]]:
    """The class of a scheduler and its fields: the inverse of `chain_of` and `sampling_of`. Euler's method is written
    as DDIM, which is equivalent.

    Args:
      chain: the result of `chain_of`.
    Raises:
      UserError: a sampler or times that no class of diffusers has.
    """
    require_choice("sampling.sampler", o.sampler, CLASSES)
    name, published = CLASSES[o.sampler], {value: key for key, value in SCHEDULES.items()}
    predictions = {value: key for key, value in PREDICTIONS.items()}
    fields: dict[str, Any] = {
        "num_train_timesteps": chain["num_timesteps"],
        "beta_start": chain["beta_1"],
        "beta_end": chain["beta_T"],
        "beta_schedule": published[chain["schedule"]],
        "prediction_type": predictions[chain["prediction"]],
        "steps_offset": o.offset,
        "timestep_spacing": "linspace" if o.spacing == "karras" else o.spacing,
    }
    one = KINDS[name].one is not None
    spacings = ("leading", "linspace", "trailing", *("karras",) * (not one and o.sampler != "euler_ancestral"))
    require_choice("sampling.spacing", o.spacing, spacings)
    plain = o.eta == 0 and not o.times
    require(
        plain, f"sampling has eta {o.eta} and times {o.times}: {name} takes these where it is called, not from its file"
    )
    if one:
        fields["set_alpha_to_one"] = o.end == "data"
    if name == "DDIMScheduler":
        fields["clip_sample"] = False  # diffusers' default is true
    if name == "PNDMScheduler":
        fields["skip_prk_steps"] = True
    if name == "DPMSolverMultistepScheduler":
        fields["algorithm_type"] = {sampler: key for key, sampler in ALGORITHMS.items()}[o.sampler]
    if o.spacing == "karras":
        fields["use_karras_sigmas"] = True
    return name, fields
