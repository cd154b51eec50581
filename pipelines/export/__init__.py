"""The stage that folds a network and writes it as ONNX."""
