"""The choice between plain operations and formulations for CPU."""

import threading

import jax
import jax.numpy as jnp

from jgen.core.backend import for_cpu, plain_forms


def test_for_cpu_holds_on_cpu_outside_of_plain_forms(monkeypatch):
    assert for_cpu()
    with plain_forms():
        assert not for_cpu()
        with plain_forms():
            pass
        assert not for_cpu()
    assert for_cpu()
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert not for_cpu()


def test_it_is_of_one_thread_and_ends_with_an_error():
    answers = []
    try:
        with plain_forms():
            thread = threading.Thread(target=lambda: answers.append(for_cpu()))
            thread.start()
            thread.join()
            raise KeyError
    except KeyError:
        answers.append(for_cpu())
    assert answers == [True, True]


def test_functions_that_were_traced_before_are_traced_again():
    @jax.jit
    def form(x):
        return x + (1 if for_cpu() else 2)

    x = jnp.zeros(())
    assert form(x) == 1
    with plain_forms():
        assert form(x) == 2
        assert jax.jit(lambda x: form(x))(x) == 2
    assert form(x) == 1
