"""Samplers: functions that take a denoiser or a network, explicit times and explicit random keys."""
