"""The settings of `params.yaml` as frozen, checked dataclasses."""

from __future__ import annotations

import re
from dataclasses import asdict, field, fields
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, ConfigDict, Field
from pydantic.dataclasses import dataclass

from pipelines.core.files import sha256_json

_STRICT = ConfigDict(extra="forbid", strict=True)
_NOT_RECORDED = {"recorded": False}  # for a section that does not describe a model

Method = Literal["sgd", "bn", "rmsprop", "adam", "adamw", "muon", "prong", "prong+"]
SOURCES = ("digits", "mnist", "cifar10", "images", "table")
"""The sources that `data.source` may name, besides a function of the user's own."""
MOST_CHANNELS = 64
"""Most channels of an image."""
TASK_NAMES = ("auto", "classification", "reconstruction", "regression")
"""The tasks that `task.name` may name; auto: what the data suggest."""
NETWORKS = ("cnn", "mlp", "vgg", "resnet", "inception", "autoencoder", "vit")
"""The names of the zoo that `train.network` may have."""
TIMM = "timm:"
"""What the name of one of timm's models begins with."""
_OWN = r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*"  # module:function
_KUBERNETES_NAME = r"^([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)?$"
_CLUSTER_WORDS = {
    "shared": "a folder that every node sees under the same path, with the project in it",
    "image": "a container image with this program, such as registry/prong:1",
    "claim": "the name of a PersistentVolumeClaim that holds cluster.shared",
}
Provider = Literal["auto", "cpu", "cuda", "tensorrt"]
"""Where a released model is asked to run."""
Count = Annotated[int, Field(ge=0)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]  # the range that torch accepts
Positive = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(gt=0, lt=1)]
Rate = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Ratio = Annotated[float, Field(ge=1, allow_inf_nan=False)]
MODEL_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"
"""What a registered model may be called, wherever its name comes from."""
RAW = "raw"
"""The folder of a project, `data/raw`, in which its data lie."""
LONGEST_NAME = 200
"""Characters of such a name."""


def _known_or_own(value: str, known: bool, what: str, allowed: str, kind: str = "function") -> str:
    """Return a setting that names something known, or `module:function` of the user's own.

    Only the form of own code is checked here; whether it exists is seen when it is used.

    Raises:
        ValueError: If it is neither.
    """
    if not (known or re.fullmatch(_OWN, value)):
        raise ValueError(
            f"{value!r} is no {what}; allowed: {allowed}, or module:{kind} in a file of the "
            "checkout"
        )
    return value


def _network(value: str) -> str:
    """Check `train.network`."""
    known = value in NETWORKS or re.fullmatch(r"timm:[A-Za-z0-9][\w.-]*", value) is not None
    return _known_or_own(value, known, "network", f"{', '.join(NETWORKS)}, {TIMM}NAME")


def _source(value: str) -> str:
    """Check `data.source`."""
    allowed = ", ".join(f"'{name}'" for name in SOURCES)
    return _known_or_own(value, value in SOURCES, "source", allowed)


def _augmentation(value: str) -> str:
    """Check `train.augment_by`."""
    return _known_or_own(value, not value, "function", "'' (train.augment and train.flip)")


def _task(value: str) -> str:
    """Check `task.name`."""
    return _known_or_own(value, value in TASK_NAMES, "task", ", ".join(TASK_NAMES), "Class")


@dataclass(frozen=True, config=_STRICT)
class DataConfig:
    """What the data are and how they are split."""

    source: Annotated[str, AfterValidator(_source)]
    path: Annotated[str, Field(min_length=1)]
    mirror: str
    sha256: Annotated[str, Field(pattern=r"^([0-9a-f]{64})?$")]
    size: Annotated[int, Field(ge=0, le=1024)]
    channels: Annotated[int, Field(ge=0, le=MOST_CHANNELS)]
    bits: Literal[8, 16]
    limit: Count
    seed: Seed
    validation: Share
    gate: Share
    test: Share
    target: str = ""
    leave_out: str = ""
    categories: str = ""

    def __post_init__(self) -> None:
        total = self.validation + self.gate + self.test
        if total >= 0.95:
            raise ValueError(
                f"data.validation + data.gate + data.test = {total:g}; must stay below 0.95: "
                "training gets the rest"
            )


@dataclass(frozen=True, config=_STRICT)
class TaskConfig:
    """What the network is to learn."""

    name: Annotated[str, AfterValidator(_task)]


@dataclass(frozen=True, config=_STRICT)
class TrainConfig:
    """The network, the method and its schedule; symbols as in Algorithm 1 of the paper."""

    network: Annotated[str, AfterValidator(_network)]
    checkpoint_from: Annotated[str, Field(pattern=r"^(champion|v?[1-9][0-9]{0,8})?$")]
    method: Method
    processes: Positive | Literal["auto"]
    device: Literal["auto", "cpu", "cuda"]
    seed: Seed
    epochs: Positive
    batch: Positive
    accumulate: Positive
    batch_norm: Literal["synchronised", "rank"]
    lr: Rate | Literal["auto"]
    momentum: Annotated[float, Field(ge=0, lt=1)]
    weight_decay: Annotated[float, Field(ge=0, lt=1)]
    warmup: Count
    patience: Positive
    drop: Share
    cooldown: Annotated[float, Field(ge=0, le=1)]
    augment: Annotated[int, Field(ge=0, le=16)]
    flip: bool
    augment_by: Annotated[str, AfterValidator(_augmentation)]
    width: Annotated[int, Field(ge=1, le=1024)]
    hidden: Annotated[int, Field(ge=1, le=65536)]
    period: Positive
    samples: Positive
    damping: Rate
    step_limit: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    init: Literal["balanced", "whitened", "preserve"]


@dataclass(frozen=True, config=_STRICT)
class EvaluateConfig:
    """How the trained network is scored."""

    batch: Positive
    hardest: Count


@dataclass(frozen=True, config=_STRICT)
class ExportConfig:
    """The format of the ONNX file."""

    opset: Annotated[int, Field(ge=18, le=21)]


@dataclass(frozen=True, config=_STRICT)
class VerifyConfig:
    """How closely the whitened, folded and ONNX networks must agree, and on which device."""

    provider: Literal["auto", "cpu", "cuda"]
    limit: Rate
    images: Positive


@dataclass(frozen=True, config=_STRICT)
class RegistryConfig:
    """The registered model's name."""

    model: Annotated[str, Field(pattern=MODEL_NAME, max_length=LONGEST_NAME)]


@dataclass(frozen=True, config=_STRICT)
class GatesConfig:
    """The limits for a champion; shares of images unless stated otherwise (docs/gates.md).

    The last three limit the process that judges: seconds, MiB, number of processors.
    """

    margin: Annotated[float, Field(ge=0, le=1)]
    class_margin: Annotated[float, Field(ge=0, le=1)]
    robustness: Annotated[float, Field(ge=0, le=1)]
    noise: Annotated[float, Field(ge=0, le=128)]
    parity: Rate
    skew: Annotated[float, Field(ge=0, le=1)]
    latency: Ratio
    size: Ratio
    megabytes: Positive
    clean: bool
    seconds: Annotated[int, Field(ge=1, le=7 * 24 * 3600)]
    memory: Annotated[int, Field(ge=512, le=2**24)]
    processors: Positive


@dataclass(frozen=True, config=_STRICT)
class ScheduleConfig:
    """How a scheduled run retries when an outside system did not answer."""

    retries: Annotated[int, Field(ge=0, le=20)]
    pause: Annotated[float, Field(gt=0, le=3600)]


@dataclass(frozen=True, config=_STRICT)
class AlertsConfig:
    """Where a scheduled run reports failures, blocked promotions and new champions."""

    webhook: Annotated[str, Field(pattern=r"^(https?://[^\s/]+\S*|\$[A-Za-z_][A-Za-z0-9_]*)?$")]


@dataclass(frozen=True, config=_STRICT)
class SupervisionConfig:
    """How a training is supervised and distributed; this does not change its result."""

    checkpoint: Positive
    keep: Positive
    restarts: Annotated[int, Field(ge=0, le=100)]
    timeout: Annotated[float, Field(ge=1, allow_inf_nan=False)]
    nodes: Positive
    rendezvous: Annotated[str, Field(pattern=r"^([^\s:]+:[0-9]{1,5})?$")]


@dataclass(frozen=True, config=_STRICT)
class StoreConfig:
    """Where DVC keeps a copy of the stages' outputs outside this machine."""

    remote: Annotated[str, Field(pattern=r"^(|s3://[^/]+(/.*)?|[^:]+)$")]


@dataclass(frozen=True, config=_STRICT)
class ClusterConfig:
    """Who starts the ranks of a training; this does not change its result (docs/clusters.md)."""

    engine: Literal["local", "slurm", "kubernetes"] = "local"
    shared: str = ""
    queue: Annotated[str, Field(pattern=r"^([A-Za-z0-9][A-Za-z0-9_.,-]*)?$", max_length=253)] = ""
    minutes: Annotated[int, Field(ge=0, le=366 * 24 * 60)] = 0
    processors: Annotated[int, Field(ge=1, le=4096)] = 1
    image: Annotated[str, Field(pattern=r"^([A-Za-z0-9][A-Za-z0-9_./:@-]*)?$", max_length=500)] = ""
    claim: Annotated[str, Field(pattern=_KUBERNETES_NAME)] = ""
    namespace: Annotated[str, Field(pattern=_KUBERNETES_NAME)] = ""

    def __post_init__(self) -> None:
        needed = {"slurm": ("shared",), "kubernetes": ("shared", "image", "claim")}
        for name in needed.get(self.engine, ()):
            if not getattr(self, name):
                raise ValueError(
                    f"cluster.{name} = '': cluster.engine = {self.engine!r} needs it; "
                    f"allowed: {_CLUSTER_WORDS[name]}"
                )


@dataclass(frozen=True, config=_STRICT)
class Params:
    """All of `params.yaml`."""

    data: DataConfig
    task: TaskConfig
    train: TrainConfig
    evaluate: EvaluateConfig
    export: ExportConfig
    verify: VerifyConfig
    registry: RegistryConfig
    gates: GatesConfig
    schedule: ScheduleConfig = field(metadata=_NOT_RECORDED)
    alerts: AlertsConfig = field(metadata=_NOT_RECORDED)
    supervision: SupervisionConfig = field(metadata=_NOT_RECORDED)
    store: StoreConfig = field(metadata=_NOT_RECORDED)
    # Projects made before have no such section.
    cluster: ClusterConfig = field(default_factory=ClusterConfig, metadata=_NOT_RECORDED)

    def __post_init__(self) -> None:
        watch = self.supervision
        if self.cluster.engine == "local" and watch.nodes > 1 and not watch.rendezvous:
            raise ValueError(
                f"supervision.rendezvous = '': with supervision.nodes = {watch.nodes} it must be "
                "the host:port of the first machine, or cluster.engine one that starts the others"
            )

    @property
    def model_name(self) -> str:
        """The registered model's name, `auto` resolved."""
        if self.registry.model != "auto":
            return self.registry.model
        name: str = self.data.source
        if name in ("images", "table"):
            name = Path(self.data.path).name.split(".")[0]
            if name == RAW:  # where a project's own data lie: it says nothing of them
                name = self.data.source
        name = re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-")  # of a function: module-function
        return f"prong-{name or self.data.source}"[:LONGEST_NAME]

    def hash(self, *sections: str) -> str:
        """Return the sha256 of sections (default: the recorded ones) as canonical JSON."""
        values = asdict(self)
        return sha256_json({name: values[name] for name in sections or self.recorded()})

    def recorded(self) -> dict[str, dict[str, Any]]:
        """Return the sections that describe a model, as plain values.

        The schedule, the alerts, the supervision, the store of copies and the cluster do not
        describe a model, and an alert's address may hold a secret.
        """
        values = asdict(self)
        return {
            section.name: values[section.name]
            for section in fields(self)
            if section.metadata.get("recorded", True)
        }
