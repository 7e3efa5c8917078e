"""The measurements of `benchmarks/accelerator.py`, which run in separate processes: see `servers`."""
