"""New projects: `prong init`."""
