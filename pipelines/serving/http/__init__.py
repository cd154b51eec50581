"""The HTTP server: released models behind the Open Inference Protocol, version 2."""
