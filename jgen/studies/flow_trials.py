"""Trains and scores a flow within a budget, for each row of `jgen.studies.free_form_jacobian`.

Seconds are CPU seconds of the process, which do not depend on other load on the machine. The training step is
`jgen.train.step`, with Adam, a warm-up and a cosine decay of the learning rate.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jgen.core import keys as rng
from jgen.core.model import Batch, Context, Frozen, GenerativeModel, Loss, Phase, Roles
from jgen.models.flow.dequantised import LOGIT_ALPHA
from jgen.prob import densities
from jgen.prob.dequantisation import dequantise, preprocess, quantise
from jgen.prob.pixels import bits_per_dim
from jgen.studies.contenders import CONTENDERS, Map, Shape, log_density, parameters_of, spec_of, width_for
from jgen.studies.reporting import Row

PART = 500  # examples scored at a time
CALIBRATION = 1.0  # CPU seconds over which the time per step is measured
PARTS = 5  # parts of a training on images; validation follows each part
SAMPLES = 1000


class Problem(NamedTuple):
    """Data that flows are trained on.

    batches: (seed, steps, index of the first batch) -> `steps` batches, concatenated.
    transform: (keys, batch) -> the batch with floats x in "image".
    validation, test: x, (n, H, W, C).
    per_call: training steps per compiled call.
    """

    shape: Shape
    batches: Callable[[int, int, int], Batch]
    transform: Callable[[jax.Array, Batch], Batch]
    validation: np.ndarray
    test: np.ndarray
    per_call: int


@cache
def points(name: str, batch_size: int) -> Problem:
    """A density of the plane, with new points in every step; 1,000 validation points and 5,000 test points."""
    number = list(densities.DENSITIES).index(name)

    def batches(seed: int, steps: int, first: int) -> Batch:
        num = steps * batch_size
        return {"image": np.full((num, 1, 1, 2), number, np.float32), "index": np.arange(num, dtype=np.int32)}

    def transform(keys: jax.Array, batch: Batch) -> Batch:
        x = densities.draw_points(keys, batch["image"][0, 0, 0, 0].astype(jnp.int32))
        return {**batch, "image": x.reshape(-1, 1, 1, 2)}

    draw = jax.jit(densities.draw_points)
    keys = [rng.image_keys(rng.stream(rng.seed_key(0), purpose), jnp.arange(5000)) for purpose in (1, 2)]
    validation, test = (np.asarray(draw(key, jnp.int32(number))).reshape(-1, 1, 1, 2) for key in keys)
    return Problem((1, 1, 2), batches, transform, validation[:1000], test, per_call=50)


@cache
def images(name: str, batch_size: int) -> Problem:
    """Images without classes, uniformly dequantised and converted to logits."""
    from jgen.data.batches import batch_positions

    data = open_images(name)
    spec, transform = data.spec.image, image_transform(name)
    train = data.splits["train"]

    def batches(seed: int, steps: int, first: int) -> Batch:
        where = [batch_positions(seed, first + step, batch_size, train.num) for step in range(steps)]
        fetched = train.fetch(np.concatenate(where))
        return {"image": fetched["image"], "index": fetched["index"]}

    def held_out(split: str) -> np.ndarray:
        batch = data.splits[split].fetch(np.arange(data.splits[split].num))
        keys = rng.image_keys(rng.stream(rng.seed_key(0), rng.SCORE), batch["index"])
        return np.asarray(jax.jit(transform)(keys, {"image": batch["image"], "index": batch["index"]})["image"])

    return Problem(spec.shape, batches, transform, held_out("validation"), held_out("test"), per_call=1)


@cache
def open_images(name: str) -> Any:
    from jgen.data import dataset
    from jgen.data.config import Config

    return dataset.load(Config(name=name))


def image_transform(name: str) -> Callable[[jax.Array, Batch], Batch]:
    """The transform from stored images to logits of dequantised images."""
    from jgen.data.config import Config
    from jgen.data.transforms import make_transform

    spec = open_images(name).spec
    to_levels = make_transform(Config(name=name), spec, train=True)

    def transform(keys: jax.Array, batch: Batch) -> Batch:
        key_data, key_noise = rng.split(keys, 2)
        batch = to_levels(key_data, batch)
        x = dequantise(key_noise, batch["image"])
        return {**batch, "image": preprocess(x, spec.image.levels, LOGIT_ALPHA)[0]}

    return transform


def is_density(data: str) -> bool:
    return data in densities.DENSITIES


def problem_of(setting: Row) -> Problem:
    kind = points if is_density(setting["data"]) else images
    return kind(setting["data"], setting["batch_size"])


def make_model(flow: Map, shape: Shape) -> GenerativeModel:
    """A `GenerativeModel` for the training step."""

    def init(key: jax.Array, batch: Batch, frozen: Frozen) -> tuple[Roles, Roles]:
        params, extra = flow.init(key, batch["image"])
        return {"flow": params}, {"flow": extra} if jax.tree.leaves(extra) else {}

    def loss(params: Roles, ctx: Context, keys: jax.Array, batch: Batch) -> Loss:
        value, extra = flow.loss(params["flow"], ctx.extra.get("flow", {}), ctx.key, keys, batch["image"])
        return value, ({}, {} if extra is None else {"flow": extra})

    return GenerativeModel("flow", spec_of(shape), init, (Phase(("flow",), loss),))


class Schedule(NamedTuple):
    """Length and peak of a learning rate schedule, float32 (), in the optimiser's state, so that all lengths and peaks
    share one compiled program. Linear warm-up for a tenth of the steps, at most 100, then a cosine decay to 0."""

    steps: Any
    peak: Any
    step: Any

    def rate(self) -> jax.Array:
        warmup = jnp.minimum(100.0, jnp.maximum(1.0, jnp.floor(self.steps / 10)))
        done = jnp.clip((self.step - warmup) / jnp.maximum(self.steps - warmup, 1.0), 0.0, 1.0)
        return self.peak * jnp.minimum(1.0, (self.step + 1) / warmup) * 0.5 * (1 + jnp.cos(math.pi * done))


def scheduled() -> Any:
    """An optax transformation that multiplies updates by the learning rate of the state's `Schedule`."""
    import optax

    def init(params: Any) -> Schedule:
        return Schedule(jnp.float32(1), jnp.float32(0), jnp.float32(0))

    def update(updates: Any, state: Schedule, params: Any = None) -> tuple[Any, Schedule]:
        rate = state.rate()
        return jax.tree.map(lambda u: rate * u, updates), state._replace(step=state.step + 1)

    return optax.GradientTransformation(init, update)


class Trial:
    """A flow with its data, and its compiled training and scoring."""

    def __init__(self, flow: Map, problem: Problem, batch_size: int, width: int) -> None:
        import optax

        from jgen.train.optimisers import RoleOptimiser
        from jgen.train.step import init_state, make_train_steps

        self.flow, self.problem, self.batch_size, self.width = flow, problem, batch_size, width
        model = self.model = make_model(flow, problem.shape)
        transform = optax.chain(optax.clip_by_global_norm(10.0), optax.scale_by_adam(), scheduled())
        optimisers = {"flow": RoleOptimiser(transform, lambda step: jnp.ones(()))}
        self.run = make_train_steps(model, optimisers, problem.per_call, transform=problem.transform)
        self.init = jax.jit(lambda key, batch: init_state(model, optimisers, key, batch, ema=False))
        self.transform = jax.jit(problem.transform)
        self.scorer = Scorer(flow)

    def first_batch(self, seed: int) -> Batch:
        """The batch for the initialisation of the parameters."""
        keys = rng.image_keys(rng.stream(rng.seed_key(seed), rng.DATA), jnp.arange(self.batch_size))
        return self.transform(keys, self.problem.batches(seed, 1, 0))

    def states(self, steps: int, learning_rate: float, seed: int, every: int) -> Iterator[Any]:
        """The state after every `every` steps, which must be a multiple of `per_call`."""
        from jgen.train.step import place_state

        state = self.init(rng.seed_key(seed), self.first_batch(seed))
        *others, _ = state.opt["flow"]
        schedule = Schedule(*(jnp.float32(value) for value in (steps, learning_rate, 0)))
        state = place_state(self.model, state._replace(opt={"flow": (*others, schedule)}))
        call = self.problem.per_call
        for step in range(0, steps, call):
            state, _ = self.run(state, {}, self.problem.batches(seed, call, step), step)
            if (step + call) % every == 0:
                yield state


@cache
def trial(name: str, data: str, parameters: int, batch_size: int) -> Trial:
    """The flow of a contender with about `parameters` parameters."""
    problem = problem_of({"data": data, "batch_size": batch_size})
    width = width_for(CONTENDERS[name], problem.shape, parameters)
    return Trial(CONTENDERS[name].make(problem.shape, width), problem, batch_size, width)


@cache
def step_seconds(one: Trial) -> float:
    """CPU seconds per training step, without compilation."""
    call = one.problem.per_call
    states = one.states(10**6, 1e-3, 0, call)
    for _ in range(2):  # the first compiles
        jax.block_until_ready(next(states))
    start, steps = time.process_time(), 0
    while time.process_time() - start < CALIBRATION:
        jax.block_until_ready(next(states))
        steps += call
    return (time.process_time() - start) / steps


@cache
def flops_of(one: Trial) -> float:
    """Operations per example of the loss and its gradient; for Russian roulette, the mean of 4 draws of its length."""
    from jgen.compare.flops import program_flops
    from jgen.compare.loops import has_while
    from jgen.core.backend import plain_forms

    x = one.first_batch(0)["image"]
    keys = rng.image_keys(rng.seed_key(1), jnp.arange(one.batch_size))
    params, extra = jax.jit(one.flow.init)(rng.seed_key(0), x)

    def step(params: Any, key: jax.Array) -> Any:
        return jax.value_and_grad(lambda params: one.flow.loss(params, extra, key, keys, x), has_aux=True)(params)

    with plain_forms():
        draws = 4 if has_while(jax.make_jaxpr(step)(params, rng.seed_key(0))) else 1
        counts = [program_flops(step, params, rng.seed_key(seed)) for seed in range(draws)]
    return float(np.mean(counts)) / one.batch_size


def steps_of(setting: Row, one: Trial) -> int:
    """Training steps within the budget: a multiple of `per_call`, and at least one call."""
    if setting["minutes"]:
        steps = 60 * setting["minutes"] / step_seconds(one)
    else:
        steps = setting["teraflops"] * 1e12 / (flops_of(one) * setting["batch_size"])
    return max(1, round(steps / one.problem.per_call)) * one.problem.per_call


def in_parts(function: Callable[..., Any], x: np.ndarray) -> np.ndarray:
    """Computes function(x) in parts of equal size, and concatenates the results."""
    size = min(PART, len(x))
    padded = np.resize(x, (-(-len(x) // size) * size, *x.shape[1:]))
    parts = [np.asarray(function(padded[i : i + size])) for i in range(0, len(padded), size)]
    return np.concatenate(parts)[: len(x)]


class Scorer:
    """The compiled functions of a flow."""

    def __init__(self, flow: Map) -> None:
        self.log_density = jax.jit(partial(log_density, flow))
        self.inverse = jax.jit(flow.inverse)
        self.round_trip = jax.jit(
            lambda params, extra, x: flow.inverse(params, extra, flow.forward(params, extra, x)[0])
        )

    def nats(self, weights: tuple[Any, Any], x: np.ndarray) -> np.ndarray:
        """log p(x), (n,)."""
        return in_parts(lambda part: self.log_density(*weights, part), x)

    def inverse_errors(self, weights: tuple[Any, Any], x: np.ndarray) -> np.ndarray:
        """The largest absolute change in an entry of each x after mapping to z and back, (n,)."""
        back = in_parts(lambda part: self.round_trip(*weights, part), x)
        errors = np.abs(back - x).reshape(len(x), -1).max(1)
        return np.where(np.isfinite(errors), errors, np.inf)

    def sample(self, weights: tuple[Any, Any], shape: Shape, seed: int) -> tuple[np.ndarray, float]:
        """`SAMPLES` samples x, and the CPU seconds per sample."""
        keys = rng.image_keys(rng.seed_key(seed), jnp.arange(SAMPLES))
        z = np.asarray(rng.normal(keys, (math.prod(shape),)))
        jax.block_until_ready(self.inverse(*weights, z[:PART]))
        start = time.process_time()
        x = in_parts(lambda part: self.inverse(*weights, part), z)
        return x, (time.process_time() - start) / SAMPLES


def weights_of(state: Any) -> tuple[Any, Any]:
    """A copy of (params, extra) of a state, whose arrays are donated to the next step."""
    return jax.tree.map(np.array, (state.params["flow"], state.extra.get("flow", {})))


def train(one: Trial, steps: int, learning_rate: float, seed: int) -> tuple[tuple[Any, Any], float]:
    """(weights, validation nats): the best weights of those after each of `PARTS` parts of the training; for points,
    which never repeat, the last weights."""
    call, parts = one.problem.per_call, PARTS if one.problem.shape[:2] != (1, 1) else 1
    every = max(1, steps // parts // call) * call
    best, best_nats = None, -math.inf
    for state in one.states(steps, learning_rate, seed, every if parts > 1 else steps):
        weights = weights_of(state)
        nats = float(np.mean(one.scorer.nats(weights, one.problem.validation)))
        if best is None or nats > best_nats:
            best, best_nats = weights, nats
    assert best is not None
    return best, best_nats


def measure(setting: Row) -> Row:
    """A contender's row: trained with each learning rate for the first seed, then with the best rate for all seeds.

    Returns:
      width, parameters, step_seconds (per training step), steps, learning_rate, and by seed the results of
      `score_points` or `score_images`.
    """
    one = trial(setting["name"], setting["data"], setting["parameters"], setting["batch_size"])
    steps, seeds, rates = steps_of(setting, one), setting["seeds"], setting["learning_rates"]
    first = {rate: train(one, steps, rate, seeds[0]) for rate in rates}
    rate = max(first, key=lambda rate: first[rate][1])
    score = score_points if is_density(setting["data"]) else score_images
    scores = []
    for seed in seeds:
        weights, _ = first[rate] if seed == seeds[0] else train(one, steps, rate, seed)
        scores.append(score(setting, one, weights, seed))
    by_seed = {name: [values[name] for values in scores] for name in scores[0] if name != "samples"}
    row: Row = {"width": one.width, "parameters": parameters_of(one.flow, one.problem.shape)}
    row |= {"step_seconds": step_seconds(one), "steps": steps, "learning_rate": rate}
    return {**row, **by_seed, "samples": scores[0]["samples"]}


def score_points(setting: Row, one: Trial, weights: tuple[Any, Any], seed: int) -> Row:
    """nats: the mean of -log p of test points. mass: the integral of p over the plane, 1 for a density.
    inverse_error: the 99th percentile. sample_seconds."""
    grid = densities.grid(160).reshape(-1, 1, 1, 2)
    samples, seconds = one.scorer.sample(weights, one.problem.shape, seed)
    return {
        "nats": float(-np.mean(one.scorer.nats(weights, one.problem.test), dtype=np.float64)),
        "mass": densities.integral(np.exp(one.scorer.nats(weights, grid).astype(np.float64))),
        "inverse_error": float(np.quantile(one.scorer.inverse_errors(weights, one.problem.test[:PART]), 0.99)),
        "sample_seconds": seconds,
        "samples": samples.reshape(-1, 2)[:500].round(3).tolist(),
    }


def score_images(setting: Row, one: Trial, weights: tuple[Any, Any], seed: int) -> Row:
    """bits_per_dim: of test images, a bound with one draw of the noise. fd: of samples. inverse_error: the 99th
    percentile, in pixel levels. sample_seconds."""
    from jgen.data.pictures import to_display

    levels, x = open_images(setting["data"]).spec.image.levels, one.problem.test
    back = partial(preprocess, levels=levels, alpha=LOGIT_ALPHA, inverse=True)
    nats = one.scorer.nats(weights, x) - np.asarray(back(x)[1])
    trip = in_parts(lambda part: one.scorer.round_trip(*weights, part), x)
    errors = np.abs(np.asarray(back(trip)[0]) - np.asarray(back(x)[0])).reshape(len(x), -1).max(1)
    samples, seconds = one.scorer.sample(weights, one.problem.shape, seed)
    shown = to_display(np.asarray(quantise(back(samples)[0], levels)), levels)
    scores = comparison(setting["data"])(lambda start, stop: shown[start:stop], len(shown), None, asked_for=False)
    return {
        "bits_per_dim": float(np.mean(bits_per_dim(nats, x[0].size), dtype=np.float64)),
        "fd": scores["quality"]["frechet_distance"]["value"],
        "inverse_error": float(np.quantile(np.where(np.isfinite(errors), errors, np.inf), 0.99)),
        "sample_seconds": seconds,
        "samples": shown[:20].reshape(20, -1).tolist(),
    }


@cache
def comparison(name: str) -> Callable[..., Any]:
    """A function from samples to their distances from the test images; see `jgen.sample_scores`."""
    from jgen import sample_scores
    from jgen.data.config import Config
    from jgen.studies.scores import ScoringProtocol

    protocol = ScoringProtocol(memorisation=False)
    return sample_scores.make_comparison(open_images(name), Config(name=name), protocol, False)
