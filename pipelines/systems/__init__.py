"""The outside systems, each in a module or room of its own."""
