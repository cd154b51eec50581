"""Experiments that print tables: what was tuned, what is worth its cost, what a change costs."""
