"""Training: state, step, optimisers, loop, checkpoints, logs. Depends on `jgen.core.model`, not on the models."""
