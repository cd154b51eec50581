"""The stage that holds the ONNX file to the network it came from."""
