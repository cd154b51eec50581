"""Means and covariances of layers' inputs, in a form that can be merged exactly."""
