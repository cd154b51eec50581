"""Answers for many files, into one table."""
