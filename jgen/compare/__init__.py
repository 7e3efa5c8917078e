"""Systems side by side, each trained at the same budget: see `jgen.compare.__main__`."""
