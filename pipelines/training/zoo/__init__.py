"""The networks that `train.network` may name: functions from a signature to a module."""
