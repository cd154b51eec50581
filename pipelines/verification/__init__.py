"""The stage that compares the ONNX file with the trained network."""
