"""Means and covariances of what layers see, kept so that they merge exactly."""
