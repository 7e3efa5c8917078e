"""The generative models: a folder per family, a file per system."""
