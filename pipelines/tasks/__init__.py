"""What differs between tasks: what goes in, what comes out, and what counts as an error."""
