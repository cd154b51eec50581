"""What every room uses: settings, paths, errors, files, and places where a test may break it."""
