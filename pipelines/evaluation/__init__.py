"""The stage that measures a trained network on the test set."""
