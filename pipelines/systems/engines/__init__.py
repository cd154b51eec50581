"""Engines that start a training's ranks on other machines: one module each, one protocol.

Slurm's programs are called in `slurm`, and Kubernetes is asked in `kubernetes`, nowhere else.
"""
