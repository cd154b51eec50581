"""Matrices alone: layouts, projections, roots, and measures of how white they are."""
