"""What the registry holds: versions, their history, and comparisons."""
