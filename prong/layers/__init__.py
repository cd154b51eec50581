"""Whitened layers and their backward passes."""
