"""`UserError`, `NotSupported`, and the checks that raise them."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


class UserError(Exception):
    """A mistake in what the user asked for: one line that names the thing, the value found and the value wanted."""


class NotSupported(UserError, AttributeError):
    """The model does not have the requested capability; the message names those that it has."""


def exit_code(command: Callable[[], int | None]) -> int:
    """A program's exit code: that of the command, or 2 after a `UserError`, whose message is printed to stderr."""
    try:
        return command() or 0
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def require(condition: bool, message: str) -> None:
    """Raises `UserError(message)` unless `condition` holds."""
    if not condition:
        raise UserError(message)


def require_positive(**values: Any) -> None:
    """Raises `UserError` for the first of `values` that is not finite and above zero (a tuple: each of its entries)."""
    for name, value in values.items():
        entries = value if isinstance(value, tuple) else (value,)
        fits = bool(entries) and all(0 < entry < math.inf for entry in entries)
        require(fits, f"{name} is {value}: it must be above zero{' and finite' * (math.inf in entries)}")


def require_seed(seed: int, name: str = "seed") -> None:
    """Raises `UserError` for a seed outside [0, 2**32), which JAX would truncate to another seed."""
    require(0 <= seed < 2**32, f"{name} is {seed}: it must be from 0 to {2**32 - 1}")


def require_choice(name: str, value: Any, choices: Any) -> None:
    """Raises `UserError` unless `value` is one of `choices`."""
    require(value in choices, f"{name} is {value!r}: it must be one of {', '.join(map(str, choices))}")


def require_temperature(temperature: float, name: str = "temperature") -> None:
    """Raises `UserError` for a sampling temperature that is not a finite number above zero."""
    require(0 < temperature < math.inf, f"{name} is {temperature}: it must be above zero and finite")


def require_labels(num_classes: int, name: str, value: Any, off: Any) -> None:
    """Raises `UserError` if the data has no classes and the option `name` is not `off`."""
    option = name.replace("_", "-")
    flag = f"--model.no-{option}" if off is False else f"--model.{option} {off}"
    require(num_classes > 0 or value == off, f"{name} is {value!r}, but the data has no labels: set {flag}")


def require_latents(latents: Any, wanted: tuple[int, ...], name: str = "latents") -> None:
    """Raises `UserError` unless `latents` is one array (n, *wanted)."""

    def text(shape: tuple[int, ...]) -> str:
        return f"(n, {', '.join(map(str, shape))})"

    shape = getattr(latents, "shape", None)
    require(shape is not None, f"{name} are a {type(latents).__name__}: they must be one array {text(wanted)}")
    assert shape is not None
    require(shape[1:] == wanted, f"{name} have shape {text(shape[1:])}: they must be {text(wanted)}")


@contextmanager
def defaults_of(part: str) -> Iterator[None]:
    """Context manager around checks of the default options in a Config: appends the command-line flag to a `UserError`.

    An invalid default is thus found when the model is made, not after an hour of training, at the first sample grid.
    """
    try:
        yield
    except UserError as error:
        name = str(error).split()[0].replace("_", "-")  # a message begins with the name of the option
        raise UserError(f"{error}: set --model.{part}.{name}") from None
