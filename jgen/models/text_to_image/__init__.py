"""Image generation from texts, and joint models of images and texts."""
