"""From prepared images to a trained, whitened network."""
