"""What `benchmarks/accelerator.py` measures, in processes of its own: see `servers`."""
