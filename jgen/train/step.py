"""The training step: one function for every model, from the phases that the model declares."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jgen.core import keys as rng
from jgen.core import parallel
from jgen.core.model import Batch, Context, GenerativeModel, Phase, Roles, Tree
from jgen.train.optimisers import RoleOptimiser

LARGE = 1 << 18  # elements from which a leaf is worked on by itself
Packed = tuple[jax.Array, ...]


class TrainState(NamedTuple):
    """All that a run is, as arrays.

    step: int32; key: the run's PRNG key, which never changes; params, opt, extra: {role: tree}; ema: {role: arrays},
    the averages of a role's leaves as `pack` has them (`averaged` gives their tree), without the roles of which none is
    kept; skipped: int32 (2,), the steps skipped as not finite in all, and in a row until now.
    """

    step: Any
    key: Any
    params: Roles
    ema: Roles
    opt: Roles
    extra: Roles
    skipped: Any


def init_state(
    model: GenerativeModel, optimisers: dict[str, RoleOptimiser], key: jax.Array, batch: Batch, ema: bool
) -> TrainState:
    """The state before the first step. `batch` is a global batch, for initialisation that depends on data."""
    key_init, key_run = jax.random.split(key)
    params, extra = model.init(key_init, batch)
    opt = {role: optimisers[role].transform.init(pack(params[role])) for role in params}
    kept = params if model.averages is None else {role: params[role] for role in model.averages}
    average = pack_roles(kept) if ema else {}
    return TrainState(jnp.int32(0), key_run, params, average, opt, extra, jnp.zeros(2, jnp.int32))


def averaged(state: TrainState) -> Roles:
    """The parameters to sample and score with: the average's, on the host, or of a role without one the trained."""
    cut = {role: pieces(jax.device_get(packed), state.params[role]) for role, packed in state.ema.items()}
    return {**state.params, **cut}


def repeats_of(model: GenerativeModel) -> int:
    """Batches that a step of this model takes: the largest number of repeats of its phases."""
    return max(phase.repeats for phase in model.phases)


def make_train_step(
    model: GenerativeModel,
    optimisers: dict[str, RoleOptimiser],
    *,
    ema_decay: float = 0.0,
    ema_warmup: bool = True,
    accumulation: int = 1,
    transform: Callable[[jax.Array, Batch], Batch] | None = None,
) -> Callable[[TrainState, Roles, Batch], tuple[TrainState, dict[str, Any]]]:
    """One step of `model` on all local devices, compiled once (once for every set of phases that a step may run).

    Args:
      optimisers: {role: optimiser}.
      ema_decay, ema_warmup: of the moving average ema <- d ema + (1 - d) params; 0 for none.
      accumulation: parts that a device's share of the batch is computed in.
      transform: (keys, batch) -> batch, on the device: binarisation, flips.
    Returns:
      step(state, frozen, batch, number=None) -> (state, metrics). `state` is donated; place it with
      `parallel.replicate` first. `number` is the value of `state.step`, for a caller who knows it: where phases rest it
      is otherwise read from the device, which waits for the step before.
      `batch` holds `repeats_of(model)` global batches, one after another along its first axis; the examples of repeat
      r of every phase are those of the r-th. `metrics` are float32 scalars, means over the global batch; a phase that
      rests has none.
      Where a loss, the norm of a gradient or what replaces `extra` is not finite, nothing but `step` and `skipped`
      changes.
    """

    def local_step(
        active: tuple[int, ...], state: TrainState, frozen: Roles, batch: Batch
    ) -> tuple[TrainState, dict[str, Any]]:
        local = jax.tree.leaves(batch)[0].shape[1]
        index = parallel.axis_index() * local + jnp.arange(local)
        batches = [jax.tree.map(lambda x: x[r], batch) for r in range(repeats_of(model))]
        if transform is not None:
            data_keys = [rng.example_keys(state.key, state.step, rng.DATA, r, index) for r in range(len(batches))]
            batches = [transform(k, b) for k, b in zip(data_keys, batches)]

        ema = unpack_roles(state.ema, state.params)  # costs nothing where no loss reads it
        # Repeats are unrolled, and on CPU the parts of a batch: there the gradient of a convolution is 30 times slower
        # inside a loop.
        before = pack_roles(state.params)
        carry = (state.params, before, state.opt, state.extra, {}, jnp.bool_(True))
        for number in active:
            carry = run_phase(number, model.phases[number], carry, state, ema, frozen, batches, index)
        _, packed, opt, extra, metrics, finite = carry

        average = state.ema
        if ema_decay > 0:
            decay = average_decay(state.step, ema_decay, ema_warmup)
            towards = lambda a, p: a + (1 - decay) * (p - a)
            average = {role: jax.tree.map(towards, a, packed[role]) for role, a in average.items()}
        moved = {role: arrays for role, arrays in packed.items() if arrays is not before[role]}
        new = (moved, average, opt, extra)
        old = ({role: before[role] for role in moved}, state.ema, state.opt, state.extra)
        moved, average, opt, extra = jax.tree.map(lambda n, o: jnp.where(finite, n, o), new, old)
        params = {**state.params, **unpack_roles(moved, state.params)}
        total, in_a_row = state.skipped[0], state.skipped[1]
        skipped = jnp.where(finite, jnp.stack([total, 0 * in_a_row]), jnp.stack([total + 1, in_a_row + 1]))
        metrics = {**metrics, "skipped": skipped[0], "skipped_in_a_row": skipped[1]}
        return TrainState(state.step + 1, state.key, params, average, opt, extra, skipped), metrics

    def run_phase(
        number: int,
        phase: Phase,
        carry: tuple,
        state: TrainState,
        ema: Roles,
        frozen: Roles,
        batches: list[Batch],
        index: Any,
    ) -> tuple:
        params, packed, opt, extra, metrics, finite = carry  # packed: the same parameters
        for repeat in range(phase.repeats):
            keys = rng.example_keys(state.key, state.step, number, repeat, index)
            ctx = Context(state.step, {**params, **ema}, extra, frozen, averaged=False)
            loss, found, new_extra, gradients = mean_gradients(phase, params, ctx, keys, batches[repeat], accumulation)
            loss, found, new_extra, gradients = parallel.pmean((loss, found, new_extra, gradients), parallel.AXIS)
            slopes = pack_roles(gradients)
            statistics = [x for x in jax.tree.leaves(new_extra) if jnp.issubdtype(x.dtype, jnp.inexact)]
            norm = global_norm(slopes)  # finite where all its terms are: one pass over the gradients tells both
            finite = finite & all_finite((loss, norm, statistics))
            params, packed, opt = dict(params), dict(packed), dict(opt)
            for role in phase.trains:
                transform_, rate = optimisers[role]
                updates, opt[role] = transform_.update(slopes[role], opt[role], packed[role])
                step_size = jax.lax.optimization_barrier(rate(state.step))
                packed[role] = jax.tree.map(lambda p, u: p - step_size * u, packed[role], updates)
                params[role] = unpack(packed[role], params[role])
            if phase.project is not None:
                params |= phase.project({role: params[role] for role in phase.trains})
                packed |= {role: pack(params[role]) for role in phase.trains}
            extra = {**extra, **new_extra}
            tag = "" if len(model.phases) == 1 else "_" + (phase.name or "_".join(phase.trains))
            metrics = {**metrics, **found, f"loss{tag}": loss, f"grad_norm{tag}": norm}
        return params, packed, opt, extra, metrics, finite

    @cache
    def program(active: tuple[int, ...]) -> Callable[..., tuple[TrainState, dict[str, Any]]]:
        # A program for every set of phases that run together, chosen outside: within one, the gradient of a convolution
        # under `lax.cond` is 80 times slower on CPU.
        return parallel.pmap(partial(local_step, active), split=(None, None, 1), split_out=None, donate=(0,))

    def step(
        state: TrainState, frozen: Roles, batch: Batch, number: int | None = None
    ) -> tuple[TrainState, dict[str, Any]]:
        if number is None:
            number = int(state.step) if any(phase.every > 1 for phase in model.phases) else 0
        active = tuple(i for i, phase in enumerate(model.phases) if number % phase.every == 0)
        repeats = repeats_of(model)
        batch = jax.tree.map(lambda x: x.reshape(repeats, x.shape[0] // repeats, *x.shape[1:]), batch)
        return program(active)(state, frozen, parallel.shard(batch, axis=1))

    return step


def mean_gradients(
    phase: Phase, params: Roles, ctx: Context, keys: jax.Array, batch: Batch, parts: int
) -> tuple[jax.Array, dict[str, Any], Roles, Roles]:
    """Loss, metrics, new extra and gradients of a phase, means over `parts` equal parts of the batch."""
    trained = {role: params[role] for role in phase.trains}

    def loss(trained: Roles, keys: jax.Array, batch: Batch) -> tuple[jax.Array, tuple[dict, Roles]]:
        return phase.loss({**params, **trained}, ctx, keys, batch)

    def of_part(examples: tuple[jax.Array, Batch]) -> tuple[jax.Array, dict[str, Any], Roles, Roles]:
        (value, (metrics, extra)), gradients = jax.value_and_grad(loss, has_aux=True)(trained, *examples)
        return value, metrics, extra, gradients

    cut = jax.tree.map(lambda x: x.reshape(parts, x.shape[0] // parts, *x.shape[1:]), (keys, batch))
    part = lambda number: jax.tree.map(lambda x: x[number], cut)
    add = lambda total, examples: jax.tree.map(add_inexact, total, of_part(examples))
    totals = of_part(part(0))
    if parallel.unrolls_loops():
        for number in range(1, parts):
            totals = add(totals, part(number))
    elif parts > 1:
        totals, _ = jax.lax.scan(lambda t, e: (add(t, e), None), totals, jax.tree.map(lambda x: x[1:], cut))
    return jax.tree.map(lambda x: x / parts if jnp.issubdtype(x.dtype, jnp.inexact) else x, totals)


def add_inexact(total: jax.Array, x: jax.Array) -> jax.Array:
    """The sum of floats; of integers and keys the later value."""
    return total + x if jnp.issubdtype(x.dtype, jnp.inexact) else x


def average_decay(step: Any, decay: float, warmup: bool) -> Any:
    """Decay of the average at the step after `step` steps: min(decay, (1 + step) / (10 + step)) with warm-up."""
    return jnp.minimum(decay, (1.0 + step) / (10.0 + step)) if warmup else jnp.float32(decay)


def pack(tree: Tree) -> Packed:
    """The leaves of fewer than `LARGE` elements end to end, float32 (n,), then the others as they are.

    Optimisers and averages work on this: one program for all small leaves is compiled in a fraction of the time, while
    a large one would be copied for longer than its own program takes. Averages stay so in the state: on CPU, cutting a
    leaf out is a kernel of its own, and takes 5 ms to compile.
    """
    leaves = jax.tree.leaves(tree)
    small = [x.ravel() for x in leaves if x.size < LARGE]
    together = [jax.lax.optimization_barrier(jnp.concatenate(small))] if small else []
    return (*together, *(x for x in leaves if x.size >= LARGE))


def unpack(packed: Packed, like: Tree) -> Tree:
    """The inverse of `pack`, for a tree of the shapes of `like`."""
    return pieces(jax.lax.optimization_barrier(packed), like)


def pieces(packed: Any, like: Tree) -> Tree:
    """`unpack` of arrays on the host as well."""
    leaves, structure = jax.tree.flatten(like)
    rest = list(packed)
    together, start = rest.pop(0) if any(x.size < LARGE for x in leaves) else None, 0
    found = []
    for x in leaves:
        if x.size >= LARGE:
            found.append(rest.pop(0))
        else:
            found.append(together[start : start + x.size].reshape(x.shape))
            start += x.size
    return jax.tree.unflatten(structure, found)


def pack_roles(roles: Roles) -> dict[str, Packed]:
    return {role: pack(tree) for role, tree in roles.items()}


def unpack_roles(packed: dict[str, Packed], like: Roles) -> Roles:
    return {role: unpack(arrays, like[role]) for role, arrays in packed.items()}


def all_finite(tree: Any) -> jax.Array:
    """Whether every number of the tree is finite."""
    flags = jnp.stack([jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves(tree)])
    # The smallest flag by a sort: XLA would copy any other reduction into each fusion that asks for its outcome, and
    # compile for a minute.
    return jax.lax.sort(flags.astype(jnp.int32))[0] == 1


def global_norm(tree: Any) -> jax.Array:
    """Euclidean norm over all leaves."""
    return jnp.sqrt(sum(jnp.sum(jnp.square(x)) for x in jax.tree.leaves(tree)))
