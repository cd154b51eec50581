"""Optuna: proposes settings and remembers what came of them. Only this package imports it."""
