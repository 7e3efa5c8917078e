"""Image data: sources, decoded caches, splits, the stateless batch order, transforms and pictures."""
