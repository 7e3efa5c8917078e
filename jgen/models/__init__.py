"""The generative models, one file a system, in a folder a family."""
