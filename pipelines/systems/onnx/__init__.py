"""ONNX files: what they say about themselves, what is checked, and ONNX Runtime."""
