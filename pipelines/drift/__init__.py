"""How far an input lies from the training data, by the network's own layers."""
