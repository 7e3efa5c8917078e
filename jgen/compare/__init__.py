"""Comparison of systems that are trained with the same budget: see `jgen.compare.__main__`."""
