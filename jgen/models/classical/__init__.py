"""Classical models: mixtures and textures, without a network that is trained."""
