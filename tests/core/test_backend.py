"""The choice between plain operations and formulations for CPU."""

import ast
import threading
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest
from conftest import ROOT

from jgen.core import backend
from jgen.core.backend import for_cpu, lacks_bfloat16, plain_forms


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


@pytest.mark.parametrize(
    ("capability", "lacks"),
    [("7.5", "Tesla T4, of capability 7.5,"), ("8.0", ""), ("9.0", ""), ("gfx942", "")],
)
def test_gpus_before_ampere_lack_bfloat16(monkeypatch, capability, lacks):
    device = SimpleNamespace(compute_capability=capability, device_kind="Tesla T4")
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(jax, "local_devices", lambda: [device])
    assert lacks_bfloat16() == lacks
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    assert lacks_bfloat16() == ""


@pytest.mark.parametrize(
    ("lines", "lacks"),
    [("flags\t\t: fpu avx2\n", "this CPU"), ("flags\t\t: fpu avx512_bf16 amx_bf16\n", ""), ("Features: asimd\n", "")],
)
def test_a_cpu_has_bfloat16_by_its_instructions(monkeypatch, tmp_path, lines, lacks):
    (tmp_path / "cpuinfo").write_text(f"processor\t: 0\n{lines}")
    monkeypatch.setattr(backend, "CPUINFO", tmp_path / "cpuinfo")
    assert lacks_bfloat16() == lacks


ASKED = {"for_cpu", "cuda_capability", "unrolls_loops"}
# {function that asks what it is computed by: the test that takes both ways}
BOTH_WAYS = {
    "nn/attention.py:attention": "nn/test_attention.py:"
    "test_attention_on_other_backends_and_in_plain_forms_is_that_of_jax_to_the_bit",
    "nn/attention.py:cudnn_supports": "nn/test_attention.py:test_cudnn_is_asked_for_by_name_where_it_serves",
    "nn/conv.py:conv": "nn/test_conv.py:"
    "test_the_formulation_for_cpu_is_used_on_cpu_alone_and_agrees_with_the_plain_one",
    "nn/conv.py:grouped_conv": "models/test_r3gan.py:test_a_grouped_convolution_is_one_of_each_group",
    "nn/conv.py:conv_transpose": "nn/test_conv.py:test_conv_transpose_is_the_transpose_of_conv",
    "nn/masked_convolution.py:__call__": "nn/test_masked_convolution.py:"
    "test_the_form_for_cpus_has_the_plain_forms_values_and_gradients",
    "nn/normalization.py:group_norm": "nn/test_normalization.py:test_group_norm_and_its_gradient",
    "samplers/autoregressive.py:in_chunks": "samplers/test_raster_order.py:"
    "test_chunks_of_the_batch_do_not_change_an_image",
    "train/step.py:scan_steps": "train/test_steps_per_call.py:test_steps_in_one_call_are_as_many_calls",
    "train/step.py:map_microbatches": "contract_checks.py:after_two_steps",
    "core/backend.py:lacks_bfloat16": "core/test_backend.py:test_gpus_before_ampere_lack_bfloat16",
}


def functions_of(path, words=("def ",)):
    """The functions in a file that has one of the words."""
    text = path.read_text()
    tree = ast.parse(text if any(word in text for word in words) else "")
    return [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]


def calls_of(function):
    """The names of what a function calls."""
    calls = [node.func for node in ast.walk(function) if isinstance(node, ast.Call)]
    return {call.id if isinstance(call, ast.Name) else getattr(call, "attr", "") for call in calls}


def test_every_function_with_two_branches_has_a_test_that_takes_both():
    source = ROOT / "jgen"
    asking = {
        f"{path.relative_to(source)}:{function.name}"
        for path in source.rglob("*.py")
        for function in functions_of(path, ASKED)
        if calls_of(function) & ASKED
    }
    assert asking == set(BOTH_WAYS)
    for test in BOTH_WAYS.values():
        file, _, name = test.partition(":")
        assert name in {function.name for function in functions_of(ROOT / "tests" / file)}, test
