"""What stands between a version and the alias `champion`."""
