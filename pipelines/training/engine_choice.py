"""Which engine starts the ranks, and whether the settings let another machine do so."""

from __future__ import annotations

from pathlib import Path

from pipelines.core.config import ClusterConfig, TrainConfig
from pipelines.core.errors import UserError
from pipelines.systems.engines.slurm import Slurm
from pipelines.systems.engines.submission import Engine

LOCAL, SLURM, KUBERNETES = "local", "slurm", "kubernetes"


def engine_of(cluster: ClusterConfig, name: str = "") -> Engine | None:
    """Return an engine; None for this machine, whose ranks end with the process that starts them.

    Args:
        cluster: The settings.
        name: Of the engine, if it is not that of the settings.
    """
    match name or cluster.engine:
        case "slurm":
            return Slurm(cluster)
        case "kubernetes":
            from pipelines.systems.engines.kubernetes import TrainJobs  # takes a second

            return TrainJobs(cluster)
    return None


def check_elsewhere(config: TrainConfig, cluster: ClusterConfig) -> None:
    """Refuse settings that would be resolved on this machine while the ranks run on others.

    Raises:
        UserError: If the device or the number of ranks on each node is `auto`.
    """
    for key, value, allowed in (
        ("train.device", config.device, "cpu, cuda"),
        ("train.processes", config.processes, "a number: the ranks on each node"),
    ):
        if value == "auto":
            raise UserError(
                f"{key} = 'auto': with cluster.engine = {cluster.engine!r} the ranks run on other "
                f"machines than this one; allowed: {allowed}"
            )


def check_seen(cluster: ClusterConfig, places: dict[str, Path]) -> None:
    """Refuse places that the nodes do not see, as far as this machine can tell.

    Args:
        cluster: The settings.
        places: What the ranks read or write: name for people → path.

    Raises:
        UserError: If `cluster.shared` is no folder, or a place is not in it.
    """
    shared = Path(cluster.shared)
    if not shared.is_absolute() or not shared.is_dir():
        raise UserError(
            f"cluster.shared = {cluster.shared!r}: allowed: the absolute path of a folder that "
            "every node sees under the same path"
        )
    for said, path in places.items():
        for each in [path, *(p for p in path.rglob("*") if p.is_symlink())]:
            if not each.resolve().is_relative_to(shared.resolve()):
                raise UserError(
                    f"cluster.shared = {cluster.shared!r}: {said}, {each.resolve()}, is not in it, "
                    "so the nodes may not see it; put the project there"
                )
