"""The training step, shared by all models: it runs the phases that the model declares."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache, partial
from itertools import groupby
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.extend import core

from jgen.core import keys as rng
from jgen.core import parallel
from jgen.core.model import Batch, Context, Frozen, GenerativeModel, Phase, Roles, always
from jgen.errors import require
from jgen.train.optimisers import RoleOptimiser
from jgen.train.packing import Packed, pack, pack_roles, unpack, unpack_on_host, unpack_roles

Metrics = dict[str, Any]


class TrainState(NamedTuple):
    """The complete state of a training run, as arrays.

    step:    int32.
    key:     the run's PRNG key, which never changes.
    params, opt, extra: {role: tree}.
    ema:     {role: packed moving average}, only for roles that have one; `averaged` unpacks it.
    skipped: int32 (2,), the number of skipped steps: in total, and consecutive ones up to now; see `make_train_step`.
    """

    step: Any
    key: Any
    params: Roles
    ema: Roles
    opt: Roles
    extra: Roles
    skipped: Any


class Carry(NamedTuple):
    """What one phase of a step passes to the next.

    packed:   `params` as the optimisers see them: small leaves concatenated, large ones unchanged; see `pack`.
    accepted: bool scalar, False once any phase of this step was rejected.
    """

    params: Roles
    packed: dict[str, Packed]
    opt: Roles
    extra: Roles
    metrics: Metrics
    accepted: Any


def init_state(
    model: GenerativeModel,
    optimisers: Mapping[str, RoleOptimiser],
    key: jax.Array,
    batch: Batch,
    ema: bool,
    frozen: Frozen | None = None,
) -> TrainState:
    """The state before the first step. `batch` is a global batch, for initialisation that depends on data.

    Raises:
      UserError: a role of the parameters that no phase trains, or a phase that trains an unknown role.
    """
    params, extra = model.init(rng.stream(key, rng.INIT), batch, frozen or {})
    trained = {role for phase in model.phases for role in phase.trains}
    message = f"{model.name} has parameters of {names(params)}: its phases train {names(trained)}"
    require(set(params) == trained, message)
    opt = {role: optimisers[role].transform.init(pack(params[role])) for role in params}
    averages = params if model.averages is None else {role: params[role] for role in model.averages}
    average = pack_roles(averages) if ema else {}
    return TrainState(jnp.int32(0), rng.stream(key, rng.RUN), params, average, opt, extra, jnp.zeros(2, jnp.int32))


def names(roles: Any) -> str:
    """Names of roles in a message."""
    return ", ".join(sorted(roles)) or "no roles"


def averaged(state: TrainState) -> Roles:
    """The parameters to sample and score with: a role's moving average, copied to the host, or, without one, the
    trained parameters."""
    return {**state.params, **{role: unpack_on_host(arrays, state.params[role]) for role, arrays in state.ema.items()}}


def batches_per_step(model: GenerativeModel) -> int:
    """Number of global batches that a step consumes: the largest number of repeats of the model's phases."""
    return max(phase.repeats for phase in model.phases)


def active_phases(model: GenerativeModel, step: int) -> tuple[int, ...]:
    """Indices of the phases that run at step `step`, counted from 0."""
    return tuple(i for i, phase in enumerate(model.phases) if phase.runs(step))


def split_per_example(model: GenerativeModel, extra: Roles) -> tuple[Roles, Roles]:
    """Splits `extra` into (replicated, per_example): roles replicated over the devices, and roles in
    `model.by_example`, which hold one entry per example and are sharded over the devices."""
    per_example = {role: tree for role, tree in extra.items() if role in model.by_example}
    return {role: tree for role, tree in extra.items() if role not in per_example}, per_example


def place_state(model: GenerativeModel, state: TrainState) -> TrainState:
    """`state` placed on the devices: replicated, except the roles in `model.by_example`, which are sharded."""
    replicated, per_example = split_per_example(model, state.extra)
    placed = parallel.replicate(state._replace(extra=replicated))
    return placed._replace(extra={**placed.extra, **parallel.place_split(per_example)} if per_example else placed.extra)


def gather_state(model: GenerativeModel, state: TrainState) -> TrainState:
    """The inverse of `place_state`: sharded roles are gathered into one array on the host."""
    replicated, per_example = split_per_example(model, state.extra)
    return state._replace(extra={**replicated, **parallel.gather_split(per_example)} if per_example else replicated)


def make_train_step(
    model: GenerativeModel,
    optimisers: Mapping[str, RoleOptimiser],
    *,
    ema_decay: Callable[[Any], Any] | None = None,
    accumulation: int = 1,
    transform: Callable[[jax.Array, Batch], Batch] | None = None,
) -> Callable[..., tuple[TrainState, Metrics]]:
    """Builds the training step of `model` on all devices, compiled once per distinct set of active phases.

    Args:
      optimisers: {role: optimiser}.
      ema_decay: step -> d of the moving average ema <- d ema + (1 - d) params; None disables the average.
      accumulation: number of microbatches per device, for gradient accumulation.
      transform: (keys, batch) -> batch, on the device: binarisation, flips.
    Returns:
      step(state, frozen, batch, step_count=None) -> (state, metrics). `state` is donated; `place_state` puts it on the
      devices. `frozen` is {role: FrozenModel}, see `Context`. `step_count` is `state.step` as a Python int. Pass it for
      a model with phases that do not run in every step: it is otherwise read from the device, which blocks until the
      previous step is done.
      `batch` holds `batches_per_step(model)` global batches, concatenated along the first axis; with several processes,
      this process's rows of each. Repeat r of every phase uses batch r: a phase without repeats uses the first batch.
      `metrics` are scalars: the loss and the model's own metrics, averaged over the global batch; `grad_norm`, the
      global norm, before clipping, of the gradients of all roles that the phase trains, averaged over devices and
      microbatches (all float32); and `skipped`, `skipped_in_a_row` (int32). For a repeated phase they come from its
      last repeat, and a phase that does not run reports none.
      A step is skipped (only `step` and `skipped` change) if a loss, a gradient norm or the new `extra` is not finite,
      or if a role's gradient norm exceeds its optimiser's `skip_norm`.
    """
    parts = (model, optimisers, ema_decay, accumulation, transform)
    repeats = batches_per_step(model)
    has_conditional_phases = any(phase.runs is not always for phase in model.phases)

    @cache
    def program(active: tuple[int, ...]) -> Callable[..., tuple[TrainState, Roles, Metrics]]:
        # One program per set of active phases, chosen on the host: with `lax.cond` inside a program, the gradient of a
        # convolution is 80 times slower on CPU.
        return parallel.pmap(partial(local_step, *parts, active), (None, 0, None, 1), (None, 0, None), donate=(0, 1))

    def step(
        state: TrainState, frozen: Frozen, batch: Batch, step_count: int | None = None
    ) -> tuple[TrainState, Metrics]:
        if step_count is None:
            step_count = int(state.step) if has_conditional_phases else 0
        batch = jax.tree.map(lambda x: x.reshape(repeats, x.shape[0] // repeats, *x.shape[1:]), batch)
        replicated, per_example = split_per_example(model, state.extra)
        run = program(active_phases(model, step_count))
        state, per_example, metrics = run(
            state._replace(extra=replicated), per_example, frozen, parallel.shard(batch, axis=1)
        )
        return state._replace(extra={**state.extra, **per_example}), metrics

    return step


def make_train_steps(
    model: GenerativeModel,
    optimisers: Mapping[str, RoleOptimiser],
    count: int,
    *,
    ema_decay: Callable[[Any], Any] | None = None,
    accumulation: int = 1,
    transform: Callable[[jax.Array, Batch], Batch] | None = None,
) -> Callable[..., tuple[TrainState, tuple[Metrics, ...]]]:
    """`count` steps in one compiled call, for small models whose step time is dominated by dispatch.

    Takes the arguments of `make_train_step`; the result is bitwise identical to `count` calls of its step.

    Returns:
      steps(state, frozen, batch, step_count) -> (state, metrics). `batch` holds the batches of the steps, concatenated;
      `step_count` is the first one's. `metrics` has one dictionary per group of consecutive steps with the same active
      phases; its arrays have a leading axis over those steps. `metrics_by_step` takes them apart.
    """
    parts = (model, optimisers, ema_decay, accumulation, transform)
    repeats = batches_per_step(model)

    @cache
    def program(active: tuple[tuple[int, ...], ...]) -> Callable[..., tuple[TrainState, Roles, tuple[Metrics, ...]]]:
        split = (None, 0, None, 2)
        one = partial(local_step, *parts)
        return parallel.pmap(partial(local_steps, one, active), split, (None, 0, None), donate=(0, 1))

    def steps(
        state: TrainState, frozen: Frozen, batch: Batch, step_count: int
    ) -> tuple[TrainState, tuple[Metrics, ...]]:
        shape = (count, repeats)
        batch = jax.tree.map(lambda x: x.reshape(*shape, x.shape[0] // (count * repeats), *x.shape[1:]), batch)
        replicated, per_example = split_per_example(model, state.extra)
        run = program(tuple(active_phases(model, step_count + i) for i in range(count)))
        state, per_example, metrics = run(
            state._replace(extra=replicated), per_example, frozen, parallel.shard(batch, axis=2)
        )
        return state._replace(extra={**state.extra, **per_example}), metrics

    return steps


def metrics_by_step(metrics: Metrics | tuple[Metrics, ...]) -> list[Metrics]:
    """The metrics of every step in order, from those of `make_train_step` or `make_train_steps`, read from the
    device."""
    values = jax.device_get(metrics)
    if not isinstance(values, tuple):
        return [values]
    groups = [(group, len(next(iter(group.values())))) for group in values]
    return [{name: array[i] for name, array in group.items()} for group, num in groups for i in range(num)]


def local_steps(
    step: Callable[..., Any],
    active: tuple[tuple[int, ...], ...],
    state: TrainState,
    per_example: Roles,
    frozen: Frozen,
    batch: Batch,
) -> tuple[TrainState, Roles, tuple[Metrics, ...]]:
    """Consecutive training steps on one device, the body of `make_train_steps`' pmap.

    Args:
      step: `local_step` with the arguments before `active` bound.
      active: the phases of each step.
    """
    carry, all_metrics, first = (state, per_example), [], 0
    for phases, group in groupby(active):
        num = len(list(group))

        def one(carry: Any, batch: Batch, phases: Any = phases) -> tuple[Any, Metrics]:
            state, per_example, metrics = step(phases, *carry, frozen, batch)
            return (state, per_example), metrics

        chunk = jax.tree.map(lambda x, first=first, num=num: x[first : first + num], batch)
        carry, metrics = scan_steps(one, carry, chunk, num)
        all_metrics.append(metrics)
        first += num
    return *carry, tuple(all_metrics)


def scan_steps(one: Callable[..., tuple[Any, Metrics]], carry: Any, batches: Batch, num: int) -> tuple[Any, Metrics]:
    """Applies `one` along the leading axis of `batches`, (num, ...), and stacks its metrics: `lax.scan`, or unrolled on
    CPU if it contains a convolution, whose gradient is slow inside a loop there."""
    first = jax.tree.map(lambda x: x[0], batches)
    if not parallel.unrolls_loops() or not has_convolution(jax.make_jaxpr(one)(carry, first)):
        return jax.lax.scan(one, carry, batches)
    stacked = []
    for i in range(num):
        # A barrier between steps stops XLA from fusing across them, so that each is compiled as it is alone.
        carry = jax.lax.optimization_barrier(carry)
        carry, metrics = one(carry, jax.tree.map(lambda x, i=i: x[i], batches))
        stacked.append(metrics)
    return carry, jax.tree.map(lambda *values: jnp.stack(values), *stacked)


def has_convolution(program: Any) -> bool:
    """Whether a jaxpr holds a convolution at any depth."""
    for equation in getattr(program, "jaxpr", program).eqns:
        if equation.primitive.name == "conv_general_dilated":
            return True
        values = (v if isinstance(v, (tuple, list)) else (v,) for v in equation.params.values())
        if any(has_convolution(v) for group in values for v in group if isinstance(v, (core.Jaxpr, core.ClosedJaxpr))):
            return True
    return False


def local_step(
    model: GenerativeModel,
    optimisers: Mapping[str, RoleOptimiser],
    ema_decay: Callable[[Any], Any] | None,
    accumulation: int,
    transform: Callable[[jax.Array, Batch], Batch] | None,
    active: tuple[int, ...],
    state: TrainState,
    per_example: Roles,
    frozen: Frozen,
    batch: Batch,
) -> tuple[TrainState, Roles, Metrics]:
    """One training step on one device, the body of `make_train_step`'s pmap, which runs the phases `active`.

    Args:
      per_example: the roles of `extra` that hold one entry per example, for the device's examples; the other roles are
        in `state`.
      batch: this device's examples, {name: (repeats, b, ...)}.
    """
    state = state._replace(extra={**state.extra, **per_example})
    local = jax.tree.leaves(batch)[0].shape[1]
    index = parallel.axis_index() * local + jnp.arange(local)
    batches = [split_repeat(batch, r, index, transform, state) for r in range(batches_per_step(model))]
    ema = unpack_roles(state.ema, state.params)  # unused if no loss reads it: XLA then removes it
    before = pack_roles(state.params)
    carry = Carry(state.params, before, state.opt, state.extra, {}, jnp.bool_(True))
    # Repeats are unrolled on every backend; microbatches on CPU only (`map_microbatches`), where the gradient of a
    # convolution inside a loop is 30 times slower.
    for phase_index in active:
        phase = model.phases[phase_index]
        for repeat in range(phase.repeats):
            key = rng.phase_key(state.key, state.step, phase_index, repeat)
            ctx = Context(state.step, rng.shared_key(key), {**carry.params, **ema}, carry.extra, frozen, averaged=False)
            keys = rng.image_keys(key, index)
            carry = run_phase(model, phase, optimisers, carry, ctx, keys, batches[repeat], accumulation)
    average = state.ema if ema_decay is None else move_average(state.ema, carry.packed, ema_decay(state.step))
    state, metrics = keep_if_accepted(state, before, carry, average)
    replicated, per_example = split_per_example(model, state.extra)
    return state._replace(extra=replicated), per_example, metrics


def split_repeat(batch: Batch, repeat: int, index: jax.Array, transform: Any, state: TrainState) -> Batch:
    """The examples of one repeat, after `transform`, with the field "position": their index in the global batch divided
    by its size, in [0, 1)."""
    one = jax.tree.map(lambda x: x[repeat], batch)
    total = index.shape[0] * parallel.axis_size()
    one = {**one, "position": index.astype(jnp.float32) / total}
    if transform is None:
        return one
    return transform(rng.image_keys(rng.phase_key(state.key, state.step, rng.DATA, repeat), index), one)


def run_phase(
    model: GenerativeModel,
    phase: Phase,
    optimisers: Mapping[str, RoleOptimiser],
    carry: Carry,
    ctx: Context,
    keys: jax.Array,
    batch: Batch,
    accumulation: int,
) -> Carry:
    """Runs one repeat of a phase: computes gradients, averages them over the devices, updates the trained roles."""
    params, packed, opt = dict(carry.params), dict(carry.packed), dict(carry.opt)
    per_example, (loss, metrics, new_extra, gradients) = accumulate_gradients(
        model, phase, params, ctx, keys, batch, accumulation
    )
    loss, metrics, new_extra, gradients = parallel.pmean((loss, metrics, new_extra, gradients))
    packed_gradients = pack_roles(gradients)
    statistics = [x for x in jax.tree.leaves((new_extra, per_example)) if jnp.issubdtype(x.dtype, jnp.inexact)]
    norm = optax.tree.norm(packed_gradients)  # not finite if any gradient is not: one pass for norm and check
    accepted = carry.accepted & all_finite((loss, norm, statistics), differs_by_device=bool(per_example))
    for role in phase.trains:
        gradient_transform, rate, skip_norm = optimisers[role]
        if skip_norm > 0:
            accepted &= optax.tree.norm(packed_gradients[role]) <= skip_norm
        updates, opt[role] = gradient_transform.update(packed_gradients[role], opt[role], packed[role])
        # Behind a barrier, or XLA would recompute the schedule for every leaf.
        step_size = jax.lax.optimization_barrier(rate(ctx.step))
        packed[role] = jax.tree.map(partial(descend, step_size), packed[role], updates)
        params[role] = unpack(packed[role], params[role])
    if phase.project is not None:
        params |= phase.project({role: params[role] for role in phase.trains})
        packed |= {role: pack(params[role]) for role in phase.trains}
    tag = "" if len(model.phases) == 1 else "_" + (phase.name or "_".join(phase.trains))
    metrics = {**carry.metrics, **metrics, f"loss{tag}": loss}
    if phase.trains:
        metrics[f"grad_norm{tag}"] = norm
    return Carry(params, packed, opt, {**carry.extra, **new_extra, **per_example}, metrics, accepted)


def descend(step_size: jax.Array, p: jax.Array, update: jax.Array) -> jax.Array:
    """p - step_size * update, in p's dtype. The optimisers' transforms apply neither learning rate nor sign, so
    `update` points along the gradient."""
    return (p - step_size * update).astype(p.dtype)


def move_average(ema: Roles, packed: dict[str, Packed], decay: Any) -> Roles:
    """ema <- decay ema + (1 - decay) params, as ema + (1 - decay) (params - ema)."""

    def towards(a: jax.Array, p: jax.Array) -> jax.Array:
        return (a + (1 - decay) * (p - a)).astype(a.dtype)

    return {role: jax.tree.map(towards, a, packed[role]) for role, a in ema.items()}


def keep_if_accepted(
    state: TrainState, before: dict[str, Packed], carry: Carry, average: Roles
) -> tuple[TrainState, Metrics]:
    """The next state and the metrics: where the step is skipped, the old state with only its counters advanced."""
    # `optax.apply_if_finite` costs the same, but guards only one optimiser's update, and accepts non-finite updates
    # after too many in a row.
    # Only roles that a phase has updated need a choice: the arrays of the others are still the same objects.
    updated = {role: arrays for role, arrays in carry.packed.items() if arrays is not before[role]}
    new = (updated, average, carry.opt, carry.extra)
    old = ({role: before[role] for role in updated}, state.ema, state.opt, state.extra)
    updated, average, opt, extra = jax.tree.map(lambda n, o: jnp.where(carry.accepted, n, o), new, old)
    params = {**state.params, **unpack_roles(updated, state.params)}
    total, in_a_row = state.skipped[0], state.skipped[1]
    skipped = jnp.where(
        carry.accepted, jnp.stack([total, jnp.zeros_like(in_a_row)]), jnp.stack([total + 1, in_a_row + 1])
    )
    metrics = {**carry.metrics, "skipped": skipped[0], "skipped_in_a_row": skipped[1]}
    return TrainState(state.step + 1, state.key, params, average, opt, extra, skipped), metrics


def accumulate_gradients(
    model: GenerativeModel, phase: Phase, params: Roles, ctx: Context, keys: jax.Array, batch: Batch, accumulation: int
) -> tuple[Roles, tuple[jax.Array, Metrics, Roles, Roles]]:
    """Gradients of a phase on one device, computed in `accumulation` microbatches.

    Returns:
      (per_example, (loss, metrics, new_extra, gradients)): the roles in `model.by_example` of the new `extra`; and what
      is averaged over the microbatches.
    """
    trained = {role: params[role] for role in phase.trains}
    per_example = {role: tree for role, tree in ctx.extra.items() if role in model.by_example}

    def one_part(keys: jax.Array, batch: Batch, per_example: Roles) -> tuple[Roles, tuple]:
        inside = ctx._replace(extra={**ctx.extra, **per_example})

        def loss(trained: Roles) -> tuple[jax.Array, tuple[Metrics, Roles]]:
            value, (metrics, new_extra) = phase.loss({**params, **trained}, inside, keys, batch)
            return value, (as_scalars(metrics), new_extra)

        if trained:
            (value, (metrics, new)), gradients = jax.value_and_grad(loss, has_aux=True)(trained)
        else:
            (value, (metrics, new)), gradients = loss(trained), {}
        means = {role: tree for role, tree in new.items() if role not in model.by_example}
        parallel.require_averageable(means, "extra")
        return {role: tree for role, tree in new.items() if role not in means}, (value, metrics, means, gradients)

    if accumulation == 1:
        return one_part(keys, batch, per_example)
    return map_microbatches(one_part, (keys, batch, per_example), accumulation)


def map_microbatches(one_part: Callable[..., tuple[Any, Any]], inputs: Any, num: int) -> tuple[Any, Any]:
    """Applies `one_part` to `num` equal slices of the inputs' leading axis; concatenates its first result and averages
    its second."""
    # `optax.MultiSteps` would make each microbatch a step of its own, so statistics and metrics could not be averaged.
    cut = jax.tree.map(lambda x: x.reshape(num, x.shape[0] // num, *x.shape[1:]), inputs)

    def part(number: int) -> Any:
        return jax.tree.map(lambda x: x[number], cut)

    own, totals = one_part(*part(0))
    if parallel.unrolls_loops():
        per_example = [own]
        for number in range(1, num):
            own, values = one_part(*part(number))
            per_example.append(own)
            totals = jax.tree.map(jnp.add, totals, values)
        joined = jax.tree.map(lambda *x: jnp.concatenate(x), *per_example)
    else:

        def add(totals: Any, inputs: Any) -> tuple[Any, Any]:
            own, values = one_part(*inputs)
            return jax.tree.map(jnp.add, totals, values), own

        totals, rest = jax.lax.scan(add, totals, jax.tree.map(lambda x: x[1:], cut))
        joined = jax.tree.map(lambda first, x: jnp.concatenate([first, x.reshape(-1, *x.shape[2:])]), own, rest)
    return joined, jax.tree.map(lambda x: x / num, totals)


def as_scalars(metrics: Metrics) -> Metrics:
    """A loss's metrics as float32 scalars; plain numbers are allowed."""
    return {name: jnp.asarray(value, jnp.float32) for name, value in metrics.items()}


def all_finite(tree: Any, differs_by_device: bool = False) -> jax.Array:
    """Whether every number of the tree is finite.

    Args:
      differs_by_device: the devices hold different numbers, so the answer is combined over all of them.
    """
    flags = jnp.stack([jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves(tree)])
    # The minimum by a sort: XLA would duplicate a reduction into every fusion that uses it, and compile for a minute.
    smallest = jax.lax.sort(flags.astype(jnp.int32))[0]
    return (parallel.pmin(smallest) if differs_by_device else smallest) == 1
