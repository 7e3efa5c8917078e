"""The user's view of a trained model: sampling, scoring and editing of arrays, jitted and on all devices."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import jax
import numpy as np
from numpy.typing import ArrayLike

from jgen import embeddings, texts
from jgen.core import keys as rng
from jgen.core import parallel
from jgen.core.generate import (
    Arrays,
    Progress,
    check_images,
    check_key,
    check_latents,
    prepared,
    prepared_for_scoring,
    require_capability,
    resolve_conditions,
    resolve_options,
    run_over,
    sample_batches,
)
from jgen.core.model import Cond, Context, GenerativeModel, Roles, Tree
from jgen.core.tokens import encode_text
from jgen.core.trained import Tokenizer
from jgen.errors import require
from jgen.experiment import Experiment
from jgen.prob.anomaly import Kind, score_of
from jgen.prob.importance import bootstrap_log_mean
from jgen.prob.likelihoods import log_prior
from jgen.prob.pixels import bits_per_dim


class Generator:
    """A trained model, as returned by `jgen.load`. Its methods are jitted and run on all devices of this process.

    Conditions are keyword arguments: label=7 or label="ant", text="a red square", or an array of the field's shape; one
    value for all images, or one per image.

    model, params, ctx, config: the underlying pure functions and arrays, for your own jit, vmap and grad.
    step, seconds: steps and seconds of training; the time includes compilation and the training of frozen models.
    own_seconds, frozen_seconds: the same time without frozen models, and {hash: seconds} of each frozen model.
    classes: the names of the classes, such as ("ant", "bee"); "0", "1", ... if they have none, () without classes.
    likelihood: the kind of `log_prob`: "exact", "lower_bound", "estimate" or "none".
    """

    def __init__(
        self,
        model: GenerativeModel,
        params: Roles,
        ctx: Context,
        config: Experiment,
        step: int,
        own_seconds: float = 0.0,
        tokenizers: Mapping[str, Tokenizer] | None = None,
        frozen_seconds: Mapping[str, float] | None = None,
    ):
        self.model, self.params, self.ctx, self.config = model, params, ctx, config
        self.step, self.tokenizers = step, dict(tokenizers or {})
        self.own_seconds, self.frozen_seconds = own_seconds, dict(frozen_seconds or {})
        self.seconds = own_seconds + sum(self.frozen_seconds.values())
        self.likelihood, self.classes = model.likelihood, model.data.classes
        self._scored_with: tuple[Any, Roles] | None = None
        same = ctx.ema is params  # then copied to each device only once
        placed, rest = parallel.replicate((params, ctx._replace(ema={} if same else ctx.ema)))
        self._placed = placed, rest._replace(ema=placed) if same else rest

    def __repr__(self) -> str:
        shape = "x".join(map(str, self.model.images.shape))
        size = sum(x.size for x in jax.tree.leaves(self.params))
        return f"<{self.model.name} of {shape}, {size:,} parameters, step {self.step}>"

    def conditions(self, n: int, start: int = 0, name: str = "sample", **given: Any) -> Cond:
        """The conditions, {field: array (n, ...)}, of images start .. start + n - 1; default: the classes in turn.

        Args:
          name: the model's function that they are for.
        Raises:
          UserError: a field that the model is not conditioned on, a missing field, or a value out of range.
        """
        return resolve_conditions(self.model, self._tokens(given), n, start, name)

    @cached_property
    def _to_sample(self) -> tuple[Roles, Context]:
        """The parameters, and the context updated with what `prepare` returns."""
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
          batch_size: images at a time; it does not affect the images. Larger ones, such as 512, suit small networks.
          progress: wraps the iterator over batches, as tqdm does.
          named: conditions, such as label=7 (default: the classes in turn), and fields of `model.sampling`, such as
            steps or guidance_scale.
        Raises:
          UserError: n below 1, conditions out of range, unknown or invalid options.
        """
        parts = list(self.sample_batches(key, n, start=start, batch_size=batch_size, progress=progress, **named))
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
        """The images of `sample`, one batch at a time to save memory: uint8 (b, H, W, C)."""
        require_capability(self.model, "sample")
        cond, options = self._split(named)
        params, ctx = self._to_sample
        where: dict[str, Any] = {"start": start, "batch_size": batch_size, "progress": progress}
        return sample_batches(self.model, params, ctx, key, n, cond=self._tokens(cond), **where, **options)

    def trajectory(
        self, key: jax.Array, n: int, *, start: int = 0, batch_size: int = 64, progress: Progress = iter, **named: Any
    ) -> np.ndarray:
        """The images of `sample` at every step of the sampler: uint8 (n, steps, H, W, C); the last are the samples.

        The intermediate images are the denoiser's predictions, or, without a denoiser, the states of the sampler.

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
        self, key: jax.Array, images: ArrayLike, *, batch_size: int = 64, progress: Progress = iter, **named: Any
    ) -> np.ndarray:
        """Log-probability of uint8 images in nats, float32 (n,): exact, a bound or an estimate, see `likelihood`.

        Args:
          named: the images' conditions, and fields of `model.scoring`, such as the number of importance samples.
        Raises:
          NotSupported: the model has no likelihood. UserError: images of another shape, type or range.
        """
        require_capability(self.model, "log_prob")
        inputs = {"image": check_images(self.model, images)}
        return self._run("log_prob", key, inputs, named, batch_size=batch_size, progress=progress)

    def normaliser(self, key: jax.Array, **scoring: Any) -> dict[str, np.ndarray]:
        """The log-normaliser log Z of an energy-based model, as `log_prob` estimates it with the same key.

        Returns {"log_z", "low", "high"}, each float64 (K,), in nats per class; low and high are the ends of a 95 %
        bootstrap interval over the chains. Raises `NotSupported` for a model without an estimated normaliser.
        """
        arrays = self._scoring_extra(key, resolve_options(self.model, "log_prob", scoring))["normaliser"]
        low, high = bootstrap_log_mean(np.asarray(arrays["log_weights"]))
        return {"log_z": np.asarray(arrays["log_z"], np.float64), "low": low, "high": high}

    def _scoring_extra(self, key: jax.Array, options: Any) -> Roles:
        """What `model.prepare_scoring` returns, computed once per key and options for all images and classes."""
        known = (np.asarray(jax.random.key_data(check_key(key))).tobytes(), options)
        if self._scored_with is None or self._scored_with[0] != known:
            self._scored_with = known, prepared_for_scoring(self.model, *self._placed, key, options)
        return self._scored_with[1]

    def bits_per_dim(self, key: jax.Array, images: ArrayLike, **named: Any) -> np.ndarray:
        """`log_prob` converted to bits per dimension: -log_prob / (H W C ln 2)."""
        return bits_per_dim(self.log_prob(key, images, **named), self.model.images.size)

    def log_density(self, key: jax.Array, x: ArrayLike, *, batch_size: int = 64, **cond: Any) -> np.ndarray:
        """Exact log-density in nats, float32 (n,), of dequantised images: floats (n, H, W, C) in [0, levels)."""
        require_capability(self.model, "log_density")
        array, spec = np.asarray(x, np.float32), self.model.images
        wanted = f"(n, {', '.join(map(str, spec.shape))})"
        require(len(array) > 0 and array.shape[1:] == spec.shape, f"x has shape {array.shape}: it must be {wanted}")
        inside = bool(np.all((array >= 0) & (array < spec.levels)))
        require(inside, f"x has values outside [0, {spec.levels}): log_density is of dequantised images")
        return self._run("log_density", key, {"image": array}, cond, batch_size=batch_size)

    def energy(self, key: jax.Array, images: ArrayLike, *, batch_size: int = 64, **cond: Any) -> np.ndarray:
        """-log p of uint8 images in nats up to a constant, float32 (n,)."""
        require_capability(self.model, "energy")
        return self._run("energy", key, {"image": check_images(self.model, images)}, cond, batch_size=batch_size)

    def classify(self, key: jax.Array, images: ArrayLike, **options: Any) -> np.ndarray:
        """The most probable class of each uint8 image, int32 (n,), with the options of `class_log_probs`."""
        return np.argmax(self.class_log_probs(key, images, **options), axis=1).astype(np.int32)

    def class_log_probs(
        self,
        key: jax.Array,
        images: ArrayLike,
        *,
        classes: Sequence[str] = (),
        prompts: Sequence[str] = embeddings.PROMPTS,
        prior: ArrayLike | None = None,
        by: str = "",
        batch_size: int = 64,
        **named: Any,
    ) -> np.ndarray:
        """log p(class | image) in nats of uint8 images, float64 (n, classes).

        A class-conditional model classifies by Bayes' rule: an image is scored with the same key under every class, so
        that a bound's noise is shared. A model that compares images with texts, such as CLIP, classifies zero-shot, by
        the similarity of an image to prompts with each class's name; this is deterministic.

        Args:
          classes, prompts: for CLIP, names, and texts in which {} stands for a name; default: those of the run's data.
          prior: probabilities of the classes; default: uniform.
          by: "log_prob" or "energy", if the model has both; default: `log_prob` if it has one.
          named: other conditions of the images, and fields of `model.scoring`.
        """
        require_capability(self.model, "classify")
        if embeddings.compares(self.model):
            require(not named and not by, f"{self.model.name} compares images with texts: it takes classes and prompts")
            chosen = classes if len(classes) else self.model.data.label_names
            scores = embeddings.class_scores(self, images, chosen, prompts, batch_size) + log_prior(prior, len(chosen))
        else:
            plain = len(classes) == 0 and prompts == embeddings.PROMPTS
            own = f"{self.model.name} classifies by the classes that it was trained with"
            require(plain, f"{own}: classes and prompts are of models that compare images with texts")
            scores = self._class_scores(key, images, prior, by, batch_size, named)
        return scores - np.logaddexp.reduce(scores, axis=1, keepdims=True)

    def _class_scores(
        self, key: jax.Array, images: ArrayLike, prior: ArrayLike | None, by: str, batch_size: int, named: dict
    ) -> np.ndarray:
        """log p(image | class) + log p(class) in nats, float64 (n, classes); from energies, up to a constant."""
        name = self._class_field()
        weights = log_prior(prior, self.model.data.fields[name].num_values)
        rows = [self._score(key, images, by, batch_size, {**named, name: c}) for c in range(len(weights))]
        return np.stack(rows, axis=1) + weights

    def _class_field(self) -> str:
        """The name of the condition that is a class; "" if there is none."""
        return next((name for name in self.model.conditions if self.model.data.fields[name].is_class), "")

    def _score(self, key: jax.Array, images: ArrayLike, by: str, batch_size: int, named: dict) -> np.ndarray:
        """`log_prob`, or -`energy`, float64 (n,)."""
        by = by or ("log_prob" if self.model.log_prob is not None else "energy")
        require(by in ("log_prob", "energy"), f"by is {by!r}: it must be log_prob or energy")
        score = self.log_prob if by == "log_prob" else self.energy
        nats = score(key, images, batch_size=batch_size, **named).astype(np.float64)
        return nats if by == "log_prob" else -nats

    def anomaly_score(
        self,
        key: jax.Array,
        images: ArrayLike,
        kind: Kind = "likelihood",
        *,
        reference: ArrayLike | None = None,
        background: Generator | None = None,
        by: str = "",
        batch_size: int = 64,
        **named: Any,
    ) -> np.ndarray:
        """How unlike the model's data uint8 images are, float64 (n,); higher is more anomalous.

        If a class-conditional model is given no class, the likelihood is averaged over all classes.

        Args:
          kind: "likelihood", -log p in nats; "complexity", "typicality", "ratio": see `jgen.prob.anomaly`.
          reference: for typicality, images of the model's data, uint8 (m, H, W, C).
          background: for ratio, the background model.
          by: "log_prob" or "energy", if the model has both; default: `log_prob` if it has one.
          named: other conditions of the images, and fields of `model.scoring`.
        """
        require_capability(self.model, "anomaly_score")
        given = None if reference is None or kind != "typicality" else reference
        usual = None if given is None else -self._log_marginal(key, given, by, batch_size, named)
        compared = background if kind == "ratio" else None
        other = None if compared is None else compared.anomaly_score(key, images, batch_size=batch_size)
        nats = -self._log_marginal(key, images, by, batch_size, named)
        return score_of(kind, nats, np.asarray(images), usual, other)

    def _log_marginal(self, key: jax.Array, images: ArrayLike, by: str, batch_size: int, named: dict) -> np.ndarray:
        """log p(image) in nats, float64 (n,), the sum over classes where one is needed and none is given."""
        if not self._class_field() or self._class_field() in named:
            return self._score(key, images, by, batch_size, named)
        return np.logaddexp.reduce(self._class_scores(key, images, None, by, batch_size, named), axis=1)

    def encode(self, key: jax.Array, images: ArrayLike, *, batch_size: int = 64, **cond: Any) -> Any:
        """Latents of uint8 images: a tree of arrays (n, ...)."""
        require_capability(self.model, "encode")
        return self._run("encode", key, {"image": check_images(self.model, images)}, cond, batch_size=batch_size)

    def decode(self, key: jax.Array, latents: Tree, *, batch_size: int = 64, **named: Any) -> np.ndarray:
        """Decodes latents, as returned by `encode` or `invert`, to uint8 images (n, H, W, C).

        Args:
          named: conditions, and fields of `model.decoding`, such as the number of diffusion steps.
        Raises:
          UserError: latents of other shapes, or codes out of range.
        """
        require_capability(self.model, "decode")
        return self._run("decode", key, {"latents": check_latents(self.model, latents)}, named, batch_size=batch_size)

    def invert(self, key: jax.Array, images: ArrayLike, *, batch_size: int = 64, **named: Any) -> np.ndarray:
        """Latents (n, ...) that `decode` maps to images close to the given uint8 images. They are found by
        gradient-based optimisation, or, for a diffusion model, by running the sampler in reverse (DDIM inversion).

        Args:
          named: conditions, and fields of `model.inverting`, such as the number of steps.
        Raises:
          NotSupported: the model has no `invert`; use `encode` if it has one.
        """
        require_capability(self.model, "invert")
        return self._run("invert", key, {"image": check_images(self.model, images)}, named, batch_size=batch_size)

    def reconstruct(self, key: jax.Array, images: ArrayLike, *, batch_size: int = 64, **cond: Any) -> np.ndarray:
        """`decode` of `encode`: uint8 (n, H, W, C)."""
        require_capability(self.model, "reconstruct")
        key_encode, key_decode = rng.split_key(key, 2)
        latents = self.encode(key_encode, images, batch_size=batch_size, **cond)
        return self.decode(key_decode, latents, batch_size=batch_size, **cond)

    def interpolate(self, key: jax.Array, first: ArrayLike, second: ArrayLike, num: int = 8, **more: Any) -> np.ndarray:
        """Interpolates between pairs of images, uint8 (n, num, H, W, C): linearly between their latents, or, for a
        diffusion model, along the great circle between the noise that DDIM inversion gives for them.

        Args:
          first, second: uint8 (n, H, W, C); num: images per pair, both ends included, 2 or more.
          more: conditions, and fields of `model.decoding`, such as the number of diffusion steps.
        """
        require_capability(self.model, "interpolate")
        require(num >= 2, f"num is {num}: an interpolation has 2 images or more")
        key_first, key_second, key_decode = rng.split_key(key, 3)
        cond, options = self._split(more)
        read = () if self.model.encode is not None else vars(self.model.inverting)
        to_latents = self.encode if self.model.encode is not None else self.invert
        own = {**cond, **{name: value for name, value in options.items() if name in read}}
        a, b = to_latents(key_first, first, **own), to_latents(key_second, second, **own)
        n = len(jax.tree.leaves(a)[0])
        require(len(jax.tree.leaves(b)[0]) == n, f"first has {n} images: second must have as many")
        weights = np.linspace(0.0, 1.0, num, dtype=np.float32)

        def between(x: np.ndarray, y: np.ndarray) -> np.ndarray:
            if self.model.interpolation is not None:
                pairs = np.repeat(x, num, axis=0), np.repeat(y, num, axis=0)
                return np.asarray(self.model.interpolation(*pairs, np.tile(weights, n)), x.dtype)
            w = weights.reshape(1, num, *[1] * (x.ndim - 1))
            return ((1 - w) * x[:, None] + w * y[:, None]).reshape(n * num, *x.shape[1:]).astype(x.dtype)

        resolved = self._resolve("decode", cond, n)
        repeated: dict[str, Any] = {name: np.repeat(x, num, axis=0) for name, x in resolved.items()}
        images = self.decode(key_decode, jax.tree.map(between, a, b), **repeated, **options)
        return images.reshape(n, num, *self.model.images.shape)

    def inpaint(
        self,
        key: jax.Array,
        images: ArrayLike,
        mask: ArrayLike,
        *,
        start: int = 0,
        batch_size: int = 64,
        progress: Progress = iter,
        **named: Any,
    ) -> np.ndarray:
        """Completes uint8 images (n, H, W, C) where `mask`, bool (H, W) or (n, H, W), is false. Image i has the key
        `fold_in(key, start + i)`.

        Args:
          named: conditions, and fields of `model.inpainting`, or, if that is None, of `model.sampling`.
        Raises:
          NotSupported: the model has no `inpaint`, or its order of generation does not allow this mask. UserError: a
            mask of another shape, or one that is true everywhere.
        """
        require_capability(self.model, "inpaint")
        array, keep = check_images(self.model, images), np.asarray(mask)
        spec = self.model.images
        require(keep.dtype == bool, f"mask is {keep.dtype}: it must be bool, true where a pixel is kept")
        keep = np.broadcast_to(keep, (len(array), *keep.shape)) if keep.ndim == 2 else keep
        wanted = (len(array), spec.height, spec.width)
        require(keep.shape == wanted, f"mask has shape {keep.shape}: it must be {wanted[1:]} or {wanted}")
        require(not keep.all(), "mask is true everywhere: there is nothing to complete")
        for one in np.unique(keep, axis=0):
            if self.model.check_mask is not None:
                self.model.check_mask(one)
        where: dict[str, Any] = {"start": start, "batch_size": batch_size, "progress": progress}
        return self._run("inpaint", key, {"image": array, "mask": keep}, named, **where)

    def edit(
        self,
        key: jax.Array,
        images: ArrayLike,
        *,
        start: int = 0,
        batch_size: int = 64,
        progress: Progress = iter,
        **named: Any,
    ) -> np.ndarray:
        """Edits uint8 images (n, H, W, C) towards conditions, such as text="a blue circle". Image i has the key
        `fold_in(key, start + i)`.

        Args:
          named: conditions, and fields of `model.editing`, such as strength (1 keeps nothing of the images).
        Raises:
          NotSupported: the model has no `edit`. UserError: images of another shape, type or range, or invalid options.
        """
        require_capability(self.model, "edit")
        where: dict[str, Any] = {"start": start, "batch_size": batch_size, "progress": progress}
        return self._run("edit", key, {"image": check_images(self.model, images)}, named, **where)

    def restore(self, key: jax.Array, measurements: ArrayLike, *, batch_size: int = 64, **named: Any) -> np.ndarray:
        """Draws uint8 images (n, H, W, C) that agree with given low-resolution, grey or noisy ones.

        Args:
          measurements: numbers (n, ...) in 0 .. levels - 1. Their shape depends on `problem`: for "super_resolution"
            (n, H / factor, W / factor, C), for "colourisation" (n, H, W, 1).
          named: conditions, and fields of `model.restoring`, such as problem, factor and noise.
        Raises:
          NotSupported: the model has no `restore`. UserError: measurements of another shape, or a problem that does not
            apply to its images.
        """
        require_capability(self.model, "restore")
        array = np.asarray(measurements, np.float32)
        require(array.ndim == 4 and len(array) > 0, f"measurements have shape {array.shape}: it must be (n, h, w, c)")
        require(bool(np.all(np.isfinite(array))), "measurements have values that are not finite")
        return self._run("restore", key, {"measurement": array}, named, batch_size=batch_size)

    # For models with a distribution of texts.
    complete_text, text_log_prob, perplexity = texts.complete_text, texts.text_log_prob, texts.perplexity

    # For models that embed images and texts.
    embed_images, embed_texts, retrieve = embeddings.embed_images, embeddings.embed_texts, embeddings.retrieve

    def _split(self, named: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """Splits keyword arguments into conditions and options."""
        # These names always count as conditions, so that a model without them refuses them by name.
        fields = {*self.model.data.fields, "label", "text", "negative_text"}
        fields |= set(self.model.optional)
        cond = {name: value for name, value in named.items() if name in fields}
        return cond, {name: value for name, value in named.items() if name not in fields}

    def _tokens(self, cond: Mapping[str, Any]) -> dict[str, Any]:
        """The conditions, with texts (one, or a sequence) replaced by tokens of the run's tokenizers."""
        cond = dict(cond)
        for name, value in cond.items():
            tokenizer = self.tokenizers.get(self.model.optional.get(name, name))
            if tokenizer is None:
                continue
            if isinstance(value, str):
                cond[name] = encode_text(tokenizer, name, value)
            elif isinstance(value, list | tuple) and all(isinstance(text, str) for text in value):
                cond[name] = np.stack([encode_text(tokenizer, name, text) for text in value])
        return cond

    def _resolve(self, name: str, cond: Mapping[str, Any], n: int) -> Cond:
        """The conditions of given images or latents. Unlike for sampling, there are no defaults."""
        cond = {field: value for field, value in cond.items() if value is not None}
        for field in self.model.conditions:
            given = field in cond or name in self.model.unconditional
            needs = f"{name} needs {field}=, one for all images or one per image"
            require(given, f"{self.model.name} is conditional: {needs}")
        return resolve_conditions(self.model, self._tokens(cond), n, name=name)

    def _run(
        self,
        name: str,
        key: jax.Array,
        inputs: Arrays,
        named: Mapping[str, Any],
        *,
        batch_size: int,
        start: int = 0,
        progress: Progress = iter,
    ) -> Any:
        """Applies one of the model's functions to inputs (n, ...), which belong to images start .. start + n - 1."""
        n = len(jax.tree.leaves(inputs)[0])
        cond, options = self._split(named)
        chosen = resolve_options(self.model, name, options)
        index = (start + np.arange(n)).astype(np.int32)
        arrays = {**inputs, "index": index, "cond": self._resolve(name, cond, n)}
        params, ctx = self._to_sample if name in ("inpaint", "edit") else self._placed
        if name == "log_prob" and self.model.prepare_scoring is not None:
            ctx = ctx._replace(extra={**ctx.extra, **self._scoring_extra(key, chosen)})
        where: dict[str, Any] = {"options": chosen, "batch_size": batch_size, "progress": progress}
        return run_over(self.model, name, params, ctx, key, arrays, **where)
