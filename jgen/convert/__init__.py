"""Converts weights in diffusers' layout to runs and back: `python -m jgen.convert`."""
