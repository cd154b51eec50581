"""What all other folders use: settings, paths, errors, files, and fault injection for tests."""
