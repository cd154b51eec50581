"""Answers from a released model."""
