"""Probability: noise schedules, Gaussian diffusion, likelihoods and divergences, pixels."""
