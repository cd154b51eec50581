"""A small checkout whose stage train is run by this machine or by a cluster of Slurm."""

from __future__ import annotations

import json
import shutil
from contextlib import suppress

import fork_server
from fork_server import Ended, Forked
from slurm_cluster import SlurmCluster
from small_checkout import Checkout

from pipelines.core import params_file
from pipelines.core.paths import Layout


class ClusteredJob:
    """A checkout whose stage train is run by both engines."""

    def __init__(self, checkout: Checkout, cluster: SlurmCluster) -> None:
        self.checkout, self.cluster = checkout, cluster
        self.layout = Layout(checkout.root)

    def set(self, *assignments: str) -> None:
        params_file.edit(self.layout.params, list(assignments))

    def start(self) -> Forked:
        """Start the stage as DVC does; its ranks are processes of the engine's."""
        env = self.checkout.environment(**self.cluster.environment)
        leaves = self.checkout.root.parent / "output"
        root = self.checkout.root
        return fork_server.start(_stage, "train", leaves=leaves, cwd=root, env=env, exits=True)

    def train(self) -> Ended:
        return self.start().wait(300)

    def weights(self) -> bytes:
        return (self.layout.trained / "network.safetensors").read_bytes()

    def forget(self) -> None:
        shutil.rmtree(self.layout.trainings, ignore_errors=True)
        shutil.rmtree(self.layout.trained, ignore_errors=True)

    def step(self) -> int:
        """Return the furthest step of a rank."""
        found = [0]
        for path in self.layout.trainings.glob("*/ranks/rank-*.pulse"):
            with suppress(ValueError):
                found.append(int(json.loads(path.read_bytes())["step"]))
        return max(found)

    def checkpoints(self) -> int:
        return len(list(self.layout.trainings.glob("*/checkpoints/*")))


def _stage(name: str) -> int:
    from pipelines.pipeline import stages

    return stages.main([name])
