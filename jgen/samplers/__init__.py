"""Samplers: functions of a denoiser or of a network, with explicit times and explicit random keys."""
