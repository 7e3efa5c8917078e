"""Checks of the contract that hold for toys and systems alike."""

import contextlib
import functools
import logging

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contract_cases import make_batch, make_case, make_run, step_batch

from jgen.core import parallel
from jgen.core.generate import prepared, sample_images
from jgen.core.keys import image_keys
from jgen.core.model import Context
from jgen.data.config import Config as Data
from jgen.data.transforms import make_transform
from jgen.train.config import Optimiser
from jgen.train.step import gather_state

ADAM = Optimiser(learning_rate=3e-3)


def flat(tree):
    """All numbers of a tree end to end, integers too."""
    leaves = [np.asarray(x, np.float64).ravel() for x in jax.tree.leaves(tree)]
    return np.concatenate(leaves or [np.zeros(0)])


@contextlib.contextmanager
def compilations():
    """The messages of what is compiled meanwhile."""
    messages = []
    with jax.log_compiles(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(logging.Logger, "handle", lambda self, record: messages.append(record.getMessage()))
        yield messages


def train(case, count, optimiser=ADAM, step_count=None):
    """The states before the first step, after it and after `count` steps, on the host; the metrics of all. All steps
    run the phases of `step_count` where it is given."""
    state, step = make_run(case, optimiser=optimiser)
    states, metrics = [jax.device_get(state)], []
    for seed in range(count):
        state, values = step(state, case.frozen, step_batch(case.model, seed), step_count)
        metrics.append(values)
        if seed in (0, count - 1):
            states.append(jax.device_get(state))
    return states, jax.device_get(metrics)


def check_training(case, count, at_once=False):
    """Steps reach every trained leaf, with finite numbers.

    Args:
      at_once: all steps run all phases where the first one does: one program in place of one for every set of phases.
    """
    at_once = 0 if at_once and all(phase.runs(0) for phase in case.model.phases) else None
    (start, *_, last), metrics = train(case, count, step_count=at_once)
    assert int(last.step) == count and all(np.isfinite(v) for values in metrics for v in values.values())
    assert sum(int(values["skipped"]) for values in metrics) == 0
    trained = {role for phase in case.model.phases for role in phase.trains}
    assert jax.tree.structure(start.params) == jax.tree.structure(last.params) and set(start.params) == trained
    # Adam moves just what a gradient has reached. Several draws: a class or a mode may be missing in one.
    for path, before in jax.tree_util.tree_leaves_with_path(start.params):
        after = functools.reduce(lambda tree, key: tree[key.key], path, last.params)
        assert np.any(before != after), f"{jax.tree_util.keystr(path)} gets no gradient"
    return last


def check_signatures(case, n=3):
    """Every function gives the shapes and types of the contract: traced, not compiled."""
    model, batch = case.model, make_batch(case.model, n)
    keys, images = image_keys(jax.random.key(1), jnp.arange(n)), batch["image"]
    cond = model.condition(batch)
    params, extra = jax.eval_shape(model.init, jax.random.key(0), batch, case.frozen)
    ctx = Context(jnp.int32(0), jax.random.key(2), params, extra, case.frozen)

    def traced(function, *arguments):
        return jax.eval_shape(lambda params, ctx: function(params, ctx, keys, *arguments), params, ctx)

    chex.assert_type(jax.tree.leaves(params), jnp.float32)
    for phase in model.phases:
        loss, (metrics, new_extra) = traced(phase.loss, batch)
        chex.assert_shape(loss, ())
        chex.assert_type(loss, jnp.float32)
        assert all(np.shape(value) == () for value in metrics.values())
        chex.assert_trees_all_equal_shapes_and_dtypes(new_extra, {role: extra[role] for role in new_extra})

    mask = jnp.zeros((n, *model.images.shape[:2]), bool)

    def decoded(params, ctx, keys, images, cond):
        return model.decode(params, ctx, keys, model.encode(params, ctx, keys, images, cond), cond)

    returns_images = [(model.sample, (cond,)), (model.encode and model.decode and decoded, (images, cond))]
    returns_images += [(model.inpaint, (images, mask, cond)), (model.edit, (images, cond))]
    returns_images += [(model.restore, (images[:, ::2, ::2].astype(np.float32), cond))]  # of half the resolution
    returns_numbers = [(model.log_prob, (images, cond)), (model.log_density, (np.float32(images) + 0.5, cond))]
    returns_numbers += [(model.validate, (batch,)), (model.energy, (images, cond))]
    promises = ((returns_images, (n, *model.images.shape), jnp.uint8), (returns_numbers, (n,), jnp.float32))
    for functions, shape, dtype in promises:
        for function, arguments in functions:
            if function is not None:
                leaves = jax.tree.leaves(traced(function, *arguments))
                assert leaves
                chex.assert_shape(leaves, shape)
                chex.assert_type(leaves, dtype)
    assert (model.log_prob is None) == (model.likelihood == "none")
    assert set(model.conditions) <= set(model.data.fields) and set(model.by_example) <= set(extra)
    if model.encode is not None:
        latents = traced(model.encode, images, cond)
        chex.assert_tree_shape_prefix(latents, (n,))
        for codes, spec in zip(jax.tree.leaves(latents), model.codes):
            chex.assert_shape(codes, (n, *spec.shape))
    check_functions(case, params, ctx, n)
    if model.best is not None:
        scores = traced(model.validate, batch) if model.validate else {"log_prob": None}
        assert model.best[0] in scores and model.best[1] in ("min", "max")


def check_functions(case, params, ctx, n):
    """Functions that a model provides under a name of the contract take and return what `jgen.core.model` documents."""
    model = case.model
    batch, x = make_batch(model, n), jnp.zeros((n, *model.images.shape))
    tokens = next((batch[name] for name, spec in model.data.fields.items() if len(spec.shape) == 1), None)
    arguments = {"denoise": (x, jnp.full(n, 0.5), model.condition(batch)), "logits": (x,), "embed_image": (x,)}
    arguments |= {"embed_text": (tokens,)} if tokens is not None else {}
    arguments["conditionals"] = (x, model.condition(batch))
    widths = {"logits": (model.data.num_classes,), "denoise": model.images.shape}
    for name, function in model.functions.items():
        if name in arguments:
            call = functools.partial(lambda f, given, params, ctx: f(params, ctx, *given), function, arguments[name])
            out = jax.eval_shape(call, params, ctx)
            by_pixel = (*model.images.shape[:2], ...)
            width = by_pixel if name == "conditionals" else widths.get(name, (None,))
            chex.assert_shape(out, (n, *width), custom_message=f"{model.name}: {name}")
            chex.assert_type(out, float)
        else:
            assert name != "embed_text", (
                f"{model.name} provides embed_text: its data must have a field of tokens (length,)"
            )


@functools.cache
def weight_factor(name):
    """By how much the first weights of a model are multiplied for its images to differ: those of a GAN, and of
    quantiles, are so small that all images are one grey."""
    images = scaled_images(name, 8, 1)
    return 1 if np.all(np.any(images[1:] != images[0], axis=(1, 2, 3))) else 10


def some_images(name, count, **options):
    """Samples, int32, of a model before its first step, conditioned on the fields of a batch."""
    return scaled_images(name, count, weight_factor(name), **options)


def scaled_images(name, count, factor, **options):
    """The same with the first weights multiplied by `factor`."""
    case = make_case(name)
    state, _ = make_run(case, optimiser=ADAM)  # one that the other tests of this system make too
    params, extra = jax.tree.map(lambda x: factor * x, state.params), gather_state(case.model, state).extra
    ctx = parallel.replicate(Context(jnp.int32(0), None, params, extra, case.frozen))
    ctx = prepared(case.model, params, ctx, jax.random.key(0)) if classes_only(case.model) else ctx
    start = options.get("start", 0)
    batch = make_batch(case.model, 64)
    cond = {name: array[start : start + count] for name, array in case.model.condition(batch).items()}
    return sample_images(case.model, params, ctx, jax.random.key(7), count, cond=cond, **options).astype(np.int32)


def classes_only(model):
    return all(model.data.fields[name].is_class for name in model.conditions)


def differ_at_most(a, b, levels):
    """Samples of few levels are equal; of many, they may differ by one level, by rounding, in few pixels."""
    if levels <= 32:
        np.testing.assert_array_equal(a, b)
    else:
        assert np.abs(a - b).max() <= 1 and np.mean(a != b) < 0.01


def check_batch_independence(name, n=32):
    """Image i does not depend on the batch size, nor on the number of images."""
    model = make_case(name).model
    draw = functools.partial(some_images, name)
    reference = draw(n, batch_size=n)
    chex.assert_shape(reference, (n, *model.images.shape))
    assert reference.max() < model.images.levels and len(np.unique(reference.reshape(n, -1), axis=0)) > 1
    differ_at_most(draw(14, batch_size=7), reference[:14], model.images.levels)
    differ_at_most(draw(5, start=20, batch_size=7), reference[20:25], model.images.levels)


def after_two_steps(cases, prepare_state=None):
    """{name: array} of what runs of (name, parts) come to, on the devices of all processes."""
    out = {}
    unrolls = parallel.unrolls_loops()
    for name, parts in cases:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(parallel, "unrolls_loops", lambda parts=parts: unrolls and parts < 4)  # else as on GPU
            case = make_case(name)
            # Images are turned at random in the step: each must be the same on any number of devices.
            turned = make_transform(Data(flip=True), case.model.data, train=True)
            state, step = make_run(case, accumulation=parts, transform=turned)
            state = prepare_state(name, state) if prepare_state else state
            for seed in range(2):
                state, metrics = step(state, case.frozen, step_batch(case.model, seed))
        state = gather_state(case.model, state)
        for kind in ("params", "ema", "extra"):
            out[f"{name}/{kind}/{parts}"] = flat(getattr(state, kind))
        out[f"{name}/metrics/{parts}"] = flat({k: v for k, v in metrics.items() if "revived" not in k})
        if case.model.sample is not None and not any(key.startswith(f"{name}/images/") for key in out):
            out[f"{name}/images/{parts}"] = some_images(name, 5, batch_size=4)
    return out


def compare_runs(reference, arrays, message):
    """Runs that differ only in how a batch is divided agree but for the order of sums."""
    assert arrays
    for key, array in arrays.items():
        name, kind, _ = key.split("/")
        wanted = reference[f"{name}/{kind}/1"]
        if kind == "images":
            differ_at_most(array, wanted, make_case(name).model.images.levels)
            assert np.any(array[0] != array[4]), key
        else:
            np.testing.assert_allclose(array, wanted, rtol=3e-5, atol=3e-6, err_msg=f"{key} {message}")
