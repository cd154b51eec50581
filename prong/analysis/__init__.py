"""Measures of a network that training does not need."""
