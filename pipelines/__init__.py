"""The factory around `prong`: data, training, export, registry, and the flow that joins them."""
