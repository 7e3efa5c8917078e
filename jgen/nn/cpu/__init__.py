"""Formulations of layers that are fast on CPU only. Their gradients are custom: reverse mode, no `jax.jvp`.

The layers in `jgen.nn` choose them where `jgen.core.backend.for_cpu()` is true, and XLA's operations elsewhere.
"""
