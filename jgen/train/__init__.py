"""Training: state, step, optimisers, loop, checkpoints, logs. Knows the contract, not the models."""
