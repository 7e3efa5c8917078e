"""Options as frozen dataclasses: checking values against their annotated types, and replacing fields by name."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping
from functools import cache
from typing import Any

from jgen.errors import require


def check_types(config: Any, where: str) -> None:
    """Raises `UserError` for a field whose value is not of its annotated type, in nested dataclasses."""
    cls: Any = type(config)
    hints = type_hints(cls)
    for f in dataclasses.fields(config):
        value, hint = getattr(config, f.name), hints[f.name]
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            check_types(value, where)
        require(fits(value, hint), f"{where}: {f.name} is {value!r}: it must be {describe(hint)}")


@cache
def type_hints(cls: type) -> dict[str, Any]:
    """The types of a dataclass's fields, cached: evaluating them takes longer than sampling a small model."""
    return typing.get_type_hints(cls)


def describe(hint: Any) -> str:
    """A description of a type for messages."""
    if typing.get_origin(hint) is typing.Literal:
        return "one of " + ", ".join(map(str, typing.get_args(hint)))
    return getattr(hint, "__name__", str(hint)) if typing.get_origin(hint) is None else str(hint)


def fits(value: Any, hint: Any) -> bool:
    """Whether a value is of a type: plain types, Literal, tuple[...], mappings; integers are accepted as floats."""
    if hint is Any:
        return True
    if typing.get_origin(hint) is typing.Literal:
        return isinstance(value, str | int) and value in typing.get_args(hint)
    if typing.get_origin(hint) is tuple:
        entries = typing.get_args(hint)
        if not isinstance(value, tuple):
            return False
        if entries[-1] is Ellipsis:
            return all(fits(v, entries[0]) for v in value)
        return len(value) == len(entries) and all(fits(v, entry) for v, entry in zip(value, entries))
    if typing.get_origin(hint) in (dict, Mapping):
        entry = typing.get_args(hint)[1]
        return isinstance(value, Mapping) and all(isinstance(k, str) and fits(v, entry) for k, v in value.items())
    if isinstance(value, bool):
        return hint is bool or bool in typing.get_args(hint)
    return isinstance(value, (int, float)) if hint is float else isinstance(value, hint)


def as_tuples(value: Any) -> Any:
    """Converts lists, arrays and NumPy numbers to tuples and plain numbers, so that options can be compared and
    hashed."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    return tuple(as_tuples(v) for v in value) if isinstance(value, list | tuple) else value


def replace_options(defaults: Any, options: dict[str, Any], who: str) -> Any:
    """The dataclass `defaults` with some of its fields replaced; None means that there are no options.

    Raises:
      UserError: a name that is not a field, or a value of a wrong type; `who` says whose options they are.
    """
    known = [] if defaults is None else [f.name for f in dataclasses.fields(defaults)]
    for name in options:
        require(name in known, f"unknown option {name!r}: {who} takes {', '.join(known) or 'no options'}")
    if defaults is None:
        return None
    replaced = dataclasses.replace(defaults, **{name: as_tuples(value) for name, value in options.items()})
    check_types(replaced, who)
    return replaced
