"""The two errors that a user of jgen meets, and the checks that raise them."""

from __future__ import annotations

from typing import Any


class UserError(Exception):
    """A mistake in what the user asked for: one line that names the thing, the value found and the value wanted."""


class NotSupported(UserError):
    """A capability that this model does not have; the message names what it can do instead."""


def require(condition: bool, message: str) -> None:
    """Raises `UserError(message)` unless `condition` holds."""
    if not condition:
        raise UserError(message)


def require_positive(**values: Any) -> None:
    """Raises `UserError` for the first of `values` that is not a number above zero (a tuple: each of its entries)."""
    for name, value in values.items():
        entries = value if isinstance(value, tuple) else (value,)
        require(bool(entries) and all(entry > 0 for entry in entries), f"{name} is {value}: it must be above zero")


def require_choice(name: str, value: Any, choices: Any) -> None:
    """Raises `UserError` unless `value` is one of `choices`."""
    require(value in choices, f"{name} is {value!r}: it must be one of {', '.join(map(str, choices))}")
