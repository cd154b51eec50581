"""Variants beside the method itself: more of the paper, and what is off by default."""
