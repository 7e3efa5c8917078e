"""A trained model as a user has it: sampling, scoring and editing of arrays, jitted and on all devices."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from typing import Any

import jax
import numpy as np

from jgen.core import keys as rng
from jgen.core import parallel
from jgen.core.generate import (
    Arrays,
    Progress,
    check_images,
    check_key,
    check_latents,
    prepared,
    require_capability,
    resolve_conditions,
    resolve_options,
    run_over,
    sample_batches,
)
from jgen.core.model import Cond, Context, GenerativeModel, Roles
from jgen.errors import require
from jgen.experiment import Experiment
from jgen.prob.pixels import bits_per_dim


class Generator:
    """A trained model: what `jgen.load` returns. Its functions are jitted and run on all devices of this process.

    What the model is conditioned on is given by name: label=7 or label="ant", text="a red square", or an array of the
    field's shape; one value for all images, or one per image.

    model, params, ctx, config: the pure functions and arrays underneath, for your own jit, vmap and grad.
    step, seconds: how long it was trained, in steps and in time, compiling and frozen models' training included.
    own_seconds, frozen_seconds: that time without frozen models, and {hash: seconds} of each of those.
    classes: the names of the classes, such as ("ant", "bee"); "0", "1", ... where they have none, () without classes.
    likelihood: what `log_prob` is: "exact", "lower_bound", "estimate" or "none".
    """

    def __init__(
        self,
        model: GenerativeModel,
        params: Roles,
        ctx: Context,
        config: Experiment,
        step: int,
        own_seconds: float = 0.0,
        tokenizers: Mapping[str, Any] | None = None,
        frozen_seconds: Mapping[str, float] | None = None,
    ):
        self.model, self.params, self.ctx, self.config = model, params, ctx, config
        self.step, self.tokenizers = step, dict(tokenizers or {})
        self.own_seconds, self.frozen_seconds = own_seconds, dict(frozen_seconds or {})
        self.seconds = own_seconds + sum(self.frozen_seconds.values())
        self.likelihood, self.classes = model.likelihood, model.data.classes
        same = ctx.ema is params  # once on each device, then
        placed, rest = parallel.replicate((params, ctx._replace(ema={} if same else ctx.ema)))
        self._placed = placed, rest._replace(ema=placed) if same else rest

    def __repr__(self) -> str:
        spec = self.model.images
        size = sum(x.size for x in jax.tree.leaves(self.params))
        return (
            f"<{self.model.name} of {spec.height}x{spec.width}x{spec.channels}, {size:,} parameters, step {self.step}>"
        )

    def conditions(self, n: int, start: int = 0, **given: Any) -> Cond:
        """The conditions, {field: array (n, ...)}, of images start .. start + n - 1; classes are taken in turn.

        Raises:
          UserError: a field that the model is not conditioned on, one that is missing, or a value out of range.
        """
        return resolve_conditions(self.model, self._tokens(given), n, start)

    @cached_property
    def _to_sample(self) -> tuple[Roles, Context]:
        """The parameters, and the context with what `prepare` finds."""
        params, ctx = self._placed
        return params, prepared(self.model, params, ctx, rng.seed_key(self.config.seed))

    def sample(
        self,
        key: jax.Array,
        n: int,
        *,
        start: int = 0,
        batch_size: int = 64,
        progress: Progress = iter,
        **named: Any,
    ) -> np.ndarray:
        """`n` images, uint8 (n, H, W, C), 0 .. levels - 1. Image i has the key `fold_in(key, start + i)`.

        Args:
          batch_size: images at a time; it does not change them. Small networks are faster with more, such as 512.
          progress: wraps the iterator over batches, as tqdm does.
          named: conditions, such as label=7 (a class that is not given: the classes in turn), and fields of
            `model.sampling`, such as steps or guidance_scale.
        Raises:
          UserError: n below 1, conditions out of range, options unknown or impossible.
        """
        where: dict[str, Any] = {"start": start, "batch_size": batch_size, "progress": progress}
        parts = list(self.sample_batches(key, n, **where, **named))
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def sample_batches(
        self,
        key: jax.Array,
        n: int,
        *,
        start: int = 0,
        batch_size: int = 64,
        progress: Progress = iter,
        **named: Any,
    ) -> Iterator[np.ndarray]:
        """The images of `sample` a batch at a time, so that many take little memory: uint8 (b, H, W, C)."""
        require_capability(self.model, "sample")
        cond, options = self._split(named)
        params, ctx = self._to_sample
        where: dict[str, Any] = {"start": start, "batch_size": batch_size, "progress": progress}
        return sample_batches(self.model, params, ctx, key, n, cond=self._tokens(cond), **where, **options)

    def trajectory(
        self, key: jax.Array, n: int, *, start: int = 0, batch_size: int = 64, progress: Progress = iter, **named: Any
    ) -> np.ndarray:
        """How the images of `sample` come about: uint8 (n, steps, H, W, C), of which the last are the samples.

        The images on the way are those that a denoiser predicts, or what the steps of another sampler give.

        Raises:
          NotSupported: the model's sampler has no steps.
        """
        require_capability(self.model, "trajectory")
        cond, options = self._split(named)
        params, ctx = self._to_sample
        where: dict[str, Any] = {"start": start, "batch_size": batch_size, "progress": progress}
        parts = sample_batches(
            self.model, params, ctx, key, n, "trajectory", cond=self._tokens(cond), **where, **options
        )
        return np.concatenate(list(parts))

    def log_prob(
        self, key: jax.Array, images: Any, *, batch_size: int = 64, progress: Progress = iter, **named: Any
    ) -> np.ndarray:
        """Log-probability of uint8 images in nats, float32 (n,); `likelihood` says of what kind.

        Args:
          named: the images' conditions, and fields of `model.scoring`, such as the number of importance samples.
        Raises:
          NotSupported: the model has no likelihood. UserError: images of another shape, type or range.
        """
        require_capability(self.model, "log_prob")
        inputs = {"image": check_images(self.model, images)}
        return self._run("log_prob", key, inputs, named, batch_size=batch_size, progress=progress)

    def bits_per_dim(self, key: jax.Array, images: Any, **named: Any) -> np.ndarray:
        """The same as `log_prob` in bits per dimension: -log_prob / (H W C ln 2)."""
        return bits_per_dim(self.log_prob(key, images, **named), self.model.images.size)

    def log_density(self, key: jax.Array, x: Any, *, batch_size: int = 64, **cond: Any) -> np.ndarray:
        """Exact log-density in nats, float32 (n,), of dequantised images: floats (n, H, W, C) in [0, levels)."""
        require_capability(self.model, "log_density")
        array, spec = np.asarray(x, np.float32), self.model.images
        wanted = f"(n, {', '.join(map(str, spec.shape))})"
        require(len(array) > 0 and array.shape[1:] == spec.shape, f"x has shape {array.shape}: it must be {wanted}")
        inside = bool(np.all((array >= 0) & (array < spec.levels)))
        require(inside, f"x has values outside [0, {spec.levels}): log_density is of dequantised images")
        return self._run("log_density", key, {"image": array}, cond, batch_size=batch_size)

    def energy(self, key: jax.Array, images: Any, *, batch_size: int = 64, **cond: Any) -> np.ndarray:
        """-log p of uint8 images in nats up to a constant, float32 (n,)."""
        require_capability(self.model, "energy")
        return self._run("energy", key, {"image": check_images(self.model, images)}, cond, batch_size=batch_size)

    def classify(self, key: jax.Array, images: Any, *, batch_size: int = 64, **named: Any) -> np.ndarray:
        """The class under which each uint8 image is likeliest, int32 (n,): the argmax of `log_prob`, or of -`energy`.

        An image is scored with the same key under every class, so that a bound's noise is shared.

        Args:
          named: other conditions of the images, and fields of `model.scoring`.
        """
        require_capability(self.model, "classify")
        fields = self.model.data.fields
        name = next(name for name in self.model.conditions if fields[name].is_class)
        score = self.log_prob if self.model.log_prob is not None else self.energy
        sign = 1 if self.model.log_prob is not None else -1
        classes = range(fields[name].num_values)
        scores = [sign * score(key, images, batch_size=batch_size, **{**named, name: c}) for c in classes]
        return np.argmax(np.stack(scores), axis=0).astype(np.int32)

    def encode(self, key: jax.Array, images: Any, *, batch_size: int = 64, **cond: Any) -> Any:
        """Latents of uint8 images: a tree of arrays (n, ...)."""
        require_capability(self.model, "encode")
        return self._run("encode", key, {"image": check_images(self.model, images)}, cond, batch_size=batch_size)

    def decode(self, key: jax.Array, latents: Any, *, batch_size: int = 64, **cond: Any) -> np.ndarray:
        """uint8 images (n, H, W, C) of latents such as `encode` returns.

        Raises:
          UserError: latents of other shapes, or codes out of range.
        """
        require_capability(self.model, "decode")
        return self._run("decode", key, {"latents": check_latents(self.model, latents)}, cond, batch_size=batch_size)

    def invert(self, key: jax.Array, images: Any, *, batch_size: int = 64, **named: Any) -> np.ndarray:
        """Latents (n, ...) of which `decode` makes images as near to given ones, uint8, as a search by gradient comes.

        Args:
          named: conditions, and fields of `model.inverting`, such as the number of steps.
        Raises:
          NotSupported: a model whose latents are not searched for; one with `encode` has them at once.
        """
        require_capability(self.model, "invert")
        return self._run("invert", key, {"image": check_images(self.model, images)}, named, batch_size=batch_size)

    def reconstruct(self, key: jax.Array, images: Any, *, batch_size: int = 64, **cond: Any) -> np.ndarray:
        """`decode` of `encode`: uint8 (n, H, W, C)."""
        require_capability(self.model, "reconstruct")
        key_encode, key_decode = rng.split_key(key, 2)
        latents = self.encode(key_encode, images, batch_size=batch_size, **cond)
        return self.decode(key_decode, latents, batch_size=batch_size, **cond)

    def interpolate(self, key: jax.Array, first: Any, second: Any, num: int = 8, **cond: Any) -> np.ndarray:
        """Images between pairs of images, along the line between their latents: uint8 (n, num, H, W, C).

        Args:
          first, second: uint8 (n, H, W, C); num: images from the first to the second, both counted, 2 or more.
        """
        require_capability(self.model, "interpolate")
        require(num >= 2, f"num is {num}: an interpolation has 2 images or more")
        key_first, key_second, key_decode = rng.split_key(key, 3)
        a, b = self.encode(key_first, first, **cond), self.encode(key_second, second, **cond)
        n = len(jax.tree.leaves(a)[0])
        require(len(jax.tree.leaves(b)[0]) == n, f"first has {n} images: second must have as many")
        weights = np.linspace(0.0, 1.0, num, dtype=np.float32)

        def between(x: np.ndarray, y: np.ndarray) -> np.ndarray:
            w = weights.reshape(1, num, *[1] * (x.ndim - 1))
            return ((1 - w) * x[:, None] + w * y[:, None]).reshape(n * num, *x.shape[1:]).astype(x.dtype)

        resolved = self._resolve("decode", cond, n)
        repeated: dict[str, Any] = {name: np.repeat(x, num, axis=0) for name, x in resolved.items()}
        images = self.decode(key_decode, jax.tree.map(between, a, b), **repeated)
        return images.reshape(n, num, *self.model.images.shape)

    def inpaint(self, key: jax.Array, images: Any, mask: Any, *, batch_size: int = 64, **named: Any) -> np.ndarray:
        """Completes uint8 images (n, H, W, C) where `mask`, bool (H, W) or (n, H, W), is false.

        Args:
          named: conditions, and fields of `model.sampling`.
        Raises:
          NotSupported: the model cannot, or not in its order of generation. UserError: a mask of another shape.
        """
        require_capability(self.model, "inpaint")
        array, keep = check_images(self.model, images), np.asarray(mask)
        spec = self.model.images
        require(keep.dtype == bool, f"mask is {keep.dtype}: it must be bool, true where a pixel is kept")
        keep = np.broadcast_to(keep, (len(array), *keep.shape)) if keep.ndim == 2 else keep
        wanted = (len(array), spec.height, spec.width)
        require(keep.shape == wanted, f"mask has shape {keep.shape}: it must be {wanted[1:]} or {wanted}")
        for one in np.unique(keep, axis=0):
            if self.model.check_mask is not None:
                self.model.check_mask(one)
        return self._run("inpaint", key, {"image": array, "mask": keep}, named, batch_size=batch_size)

    def complete_text(
        self,
        key: jax.Array,
        text: str = "",
        n: int = 1,
        *,
        start: int = 0,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
    ) -> list[str]:
        """`n` texts that begin with `text`, drawn token by token; text i has the key `fold_in(key, start + i)`.

        Args:
          text: the beginning; spaces at its end are left out, since they belong to the next word's token.
          temperature, top_k, top_p: as where images are sampled; 1, 0 and 1 leave the model's distribution as it is.
        Raises:
          NotSupported: the model has no distribution of texts. UserError: n below 1, a beginning that is too long, or
            options out of range.
        """
        function, tokenizer = self._of_texts("complete_text")
        require(n >= 1, f"n is {n}: the number of texts must be above zero")
        text = text.rstrip()
        whole = replace(tokenizer, length=len(text.encode()) + 3).encode(text)  # a token has a byte or more
        known, most = int(np.count_nonzero(whole)) - 1, tokenizer.length - 2  # padding is 0; the end is not known
        require(known - 1 <= most, f"text has {known - 1} tokens: {self.model.name} has texts of at most {most}")
        keys = rng.image_keys(check_key(key), start + np.arange(n))
        draw = jax.jit(partial(function, temperature=temperature, top_k=top_k, top_p=top_p))
        tokens = np.tile(tokenizer.encode(text), (n, 1))
        return [tokenizer.decode(row) for row in np.asarray(draw(*self._placed, keys, tokens, np.full(n, known)))]

    def text_log_prob(self, texts: Sequence[str], *, batch_size: int = 256) -> np.ndarray:
        """log p of texts, nats, float32 (n,), of a model that has a distribution of texts."""
        return self._score_texts(texts, batch_size)[0]

    def perplexity(self, texts: Sequence[str], *, batch_size: int = 256) -> float:
        """exp of the mean nats of a token, over all tokens of the texts, their ends included."""
        log_p, counts = self._score_texts(texts, batch_size)
        return float(np.exp(-log_p.sum(dtype=np.float64) / counts.sum()))

    def _score_texts(self, texts: Sequence[str], batch_size: int) -> tuple[np.ndarray, np.ndarray]:
        """log p of each text, and how many tokens it has after its start."""
        function, tokenizer = self._of_texts("text_log_prob")
        require(not isinstance(texts, str) and len(texts) > 0, "texts must be a sequence of one text or more")
        tokens, score = np.stack([tokenizer.encode(text) for text in texts]), jax.jit(function)
        last, places = len(tokens) - 1, np.arange(batch_size)
        rows = [np.minimum(first + places, last) for first in range(0, len(tokens), batch_size)]
        log_p = np.concatenate([score(*self._placed, tokens[part]) for part in rows])[: len(tokens)]
        return log_p, np.count_nonzero(tokens, axis=1) - 1  # padding is 0

    def _of_texts(self, name: str) -> tuple[Any, Any]:
        """A function of texts that the model lends, and the tokenizer of its texts."""
        if name not in self.model.functions:
            require_capability(self.model, name)
        field = next(name for name in self.model.conditions if name in self.tokenizers)
        return self.model.functions[name], self.tokenizers[field]

    def _split(self, named: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """The conditions and the options among keyword arguments."""
        fields = {*self.model.data.fields, "label"}  # also where the data has no classes: then a condition is refused
        cond = {name: value for name, value in named.items() if name in fields}
        return cond, {name: value for name, value in named.items() if name not in fields}

    def _tokens(self, cond: Mapping[str, Any]) -> dict[str, Any]:
        """Conditions with texts, one or a sequence of them, as the tokens of the run's tokenizers."""
        cond = dict(cond)
        for name in set(self.tokenizers) & set(cond):
            encode, value = self.tokenizers[name].encode, cond[name]
            if isinstance(value, str):
                cond[name] = encode(value)
            elif isinstance(value, list | tuple) and all(isinstance(text, str) for text in value):
                cond[name] = np.stack([encode(text) for text in value])
        return cond

    def _resolve(self, name: str, cond: Mapping[str, Any], n: int) -> Cond:
        """The conditions of given images or latents: none has a default, unlike when sampling."""
        cond = {field: value for field, value in cond.items() if value is not None}
        for field in self.model.conditions:
            given = field in cond
            needs = f"{name} needs {field}=, one for all images or one per image"
            require(given, f"{self.model.name} is conditional: {needs}")
        return resolve_conditions(self.model, self._tokens(cond), n)

    def _run(
        self,
        name: str,
        key: jax.Array,
        inputs: Arrays,
        named: Mapping[str, Any],
        *,
        batch_size: int,
        progress: Progress = iter,
    ) -> Any:
        """One of the model's functions over its inputs (n, ...)."""
        n = len(jax.tree.leaves(inputs)[0])
        cond, options = self._split(named)
        chosen = resolve_options(self.model, name, options)
        arrays = {**inputs, "index": np.arange(n, dtype=np.int32), "cond": self._resolve(name, cond, n)}
        params, ctx = self._to_sample if name == "inpaint" else self._placed
        where: dict[str, Any] = {"options": chosen, "batch_size": batch_size, "progress": progress}
        return run_over(self.model, name, params, ctx, key, arrays, **where)
