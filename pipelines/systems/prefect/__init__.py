"""Prefect: when, in which order, and how a run stands. Only this package imports it.

This file imports none of it: what Prefect reads when it is imported is set first.
"""
