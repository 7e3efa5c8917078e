"""How programs are compiled and found again: the cache on disk, and a caller's own jit."""

import jax
import jax.numpy as jnp
import numpy as np
import toys
from contract_cases import make_case, make_run, step_batch

from jgen.cli import set_up_process
from jgen.core import parallel


def test_a_second_start_takes_every_program_from_the_cache():
    seen = []

    def listen(event, **_):
        seen.append(event)

    def start():
        """A step of a model made anew, of which no program is known in memory."""
        seen.clear()
        state, step = make_run(make_case("toy:vae")._replace(model=toys.vae()))
        step(state, {}, step_batch(make_case("toy:vae").model))
        return [event.rpartition("/")[2] for event in seen if "compilation_cache" in event]

    least = jax.config.jax_persistent_cache_min_compile_time_secs
    set_up_process()  # as users do, not as the other tests
    jax.monitoring.register_event_listener(listen)
    try:
        start()
        second = start()
    finally:
        jax.monitoring.unregister_event_listener(listen)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", least)
    # The start and the step: what is asked of the cache is there.
    assert second.count("cache_hits") == second.count("compile_requests_use_cache") >= 2


def test_programs_run_under_a_callers_jit(monkeypatch):
    """With the options of compilation that users get, which the quick compilation of tests otherwise replaces."""
    options = {"xla_backend_optimization_level": 1}
    monkeypatch.setattr(parallel, "compiler_options", lambda: options)
    double = parallel.pmap(lambda x: 2 * x, split=(0,), split_out=0)
    x = np.ones((parallel.device_count(), 3), np.float32)
    np.testing.assert_array_equal(double(x), 2 * x)
    np.testing.assert_array_equal(jax.jit(lambda x: double(x) + 1)(x), 2 * x + 1)
    state, step = make_run(make_case("toy:vae"))
    batch = step_batch(make_case("toy:vae").model)
    shapes = jax.eval_shape(lambda s, b: step(s, {}, b, 0)[0].params, state, batch)
    assert jax.tree.map(jnp.shape, shapes) == jax.tree.map(jnp.shape, state.params)
