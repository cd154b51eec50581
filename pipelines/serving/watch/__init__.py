"""The version that answers follows the registry: watched by a child process, checked here."""
