"""Variational and vector-quantised autoencoders."""
