"""The protocol of a trained model, as lower layers use it; `jgen.Generator` implements it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

from jgen.core.model import Context, GenerativeModel, Roles


class Tokenizer(Protocol):
    """Text to `length` tokens and back: see `jgen.data.text`."""

    @property
    def length(self) -> int: ...

    @property
    def merges(self) -> tuple[tuple[Any, Any], ...]: ...

    @property
    def num_values(self) -> int: ...

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def fingerprint(self) -> str: ...

    def encode(self, text: str, /) -> np.ndarray: ...

    def decode(self, ids: np.ndarray, /) -> str: ...

    def left_out(self, text: str, /) -> str: ...

    def to_json(self) -> str: ...


class TrainedModel(Protocol):
    """A model with its arrays, the configuration that it was trained with, and the tokenizers of its texts."""

    @property
    def model(self) -> GenerativeModel: ...

    @property
    def params(self) -> Roles: ...

    @property
    def ctx(self) -> Context: ...

    @property
    def config(self) -> Any: ...  # the Experiment, whose `model` is the system's own Config

    @property
    def tokenizers(self) -> Mapping[str, Tokenizer]: ...
