"""Training with several processes: collectives, the sharing of work, and merged statistics."""
