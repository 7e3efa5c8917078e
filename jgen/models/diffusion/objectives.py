"""For systems that combine another diffusion system's objective with their own network, condition or space."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from jgen.core.model import DataSpec, GenerativeModel
from jgen.errors import UserError, require
from jgen.models.diffusion import ddpm, edm, flow_matching

MAKE: dict[type, Callable[..., GenerativeModel]] = {
    ddpm.Config: ddpm.make,
    edm.Config: edm.make,
    flow_matching.Config: flow_matching.make,
}

# A `Config` of ddpm, edm or flow_matching: the command line shows the options of the configured one.
Objective = Any


def make_objective(objective: Objective, data: DataSpec, **frozen: GenerativeModel | None) -> GenerativeModel:
    """The model of an objective.

    Args:
      frozen: the models that it depends on, by role.
    Raises:
      UserError: no objective, or invalid options, data or frozen models.
    """
    known = ", ".join(cls.__module__ for cls in MAKE)
    require(type(objective) in MAKE, f"objective is {objective!r}: it must be the Config of one of {known}")
    given = {role: model for role, model in frozen.items() if model is not None}
    try:
        return MAKE[type(objective)](objective, data, **given)
    except UserError as error:  # which says how an option is set
        raise UserError(str(error).replace("--model.", "--model.objective.")) from None
