"""Samplers: functions over one convention (a denoiser), with explicit times and injected keys."""
