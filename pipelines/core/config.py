"""`params.yaml`, read once at the edge into frozen, checked dataclasses."""

from __future__ import annotations

import difflib
import io
import json
import re
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from pipelines.core.errors import UserError
from pipelines.core.files import sha256_json, write_text

_UNRECORDED = ("schedule", "alerts", "supervision", "store")
_STRICT = ConfigDict(extra="forbid", strict=True)

Source = Literal["digits", "mnist", "cifar10", "images"]
Method = Literal["sgd", "bn", "adam", "prong", "prong+"]
Count = Annotated[int, Field(ge=0)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]  # what torch takes
Positive = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(gt=0, lt=1)]
Rate = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Ratio = Annotated[float, Field(ge=1, allow_inf_nan=False)]


@dataclass(frozen=True, config=_STRICT)
class DataConfig:
    """What the images are and how they are split."""

    source: Source
    path: Annotated[str, Field(min_length=1)]
    mirror: str
    sha256: Annotated[str, Field(pattern=r"^([0-9a-f]{64})?$")]
    size: Annotated[int, Field(ge=0, le=1024)]
    limit: Count
    seed: Seed
    validation: Share
    gate: Share
    test: Share

    def __post_init__(self) -> None:
        total = self.validation + self.gate + self.test
        if total >= 0.95:
            raise ValueError(
                f"data.validation + data.gate + data.test = {total:g}; must stay below 0.95: "
                "the rest trains"
            )


@dataclass(frozen=True, config=_STRICT)
class TrainConfig:
    """The network, the method and its schedule; letters as in Algorithm 1 of the paper."""

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
    """What the ONNX file is written as."""

    opset: Annotated[int, Field(ge=18, le=21)]


@dataclass(frozen=True, config=_STRICT)
class VerifyConfig:
    """How closely whitened, folded and ONNX networks must agree, and where ONNX Runtime runs."""

    provider: Literal["auto", "cpu", "cuda"]
    limit: Rate
    images: Positive


@dataclass(frozen=True, config=_STRICT)
class RegistryConfig:
    """The registered model's name."""

    model: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]


@dataclass(frozen=True, config=_STRICT)
class GatesConfig:
    """What a version must meet to become champion; shares of images unless said otherwise."""

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


@dataclass(frozen=True, config=_STRICT)
class ScheduleConfig:
    """How a scheduled run tries again when an outside system was silent."""

    retries: Annotated[int, Field(ge=0, le=20)]
    pause: Annotated[float, Field(gt=0, le=3600)]


@dataclass(frozen=True, config=_STRICT)
class AlertsConfig:
    """Where a scheduled run reports failures, blocked promotions and new champions."""

    webhook: Annotated[str, Field(pattern=r"^(https?://[^\s/]+\S*|\$[A-Za-z_][A-Za-z0-9_]*)?$")]


@dataclass(frozen=True, config=_STRICT)
class SupervisionConfig:
    """How a training is watched and where it meets; none of it changes what comes out."""

    checkpoint: Positive
    keep: Positive
    restarts: Annotated[int, Field(ge=0, le=100)]
    timeout: Annotated[float, Field(ge=1, allow_inf_nan=False)]
    nodes: Positive
    rendezvous: Annotated[str, Field(pattern=r"^([^\s:]+:[0-9]{1,5})?$")]

    def __post_init__(self) -> None:
        if self.nodes > 1 and not self.rendezvous:
            raise ValueError(
                f"supervision.rendezvous = '': with supervision.nodes = {self.nodes} it must be "
                "the host:port where the machines meet"
            )


@dataclass(frozen=True, config=_STRICT)
class StoreConfig:
    """Where DVC keeps what the stages made beyond this machine."""

    remote: Annotated[str, Field(pattern=r"^(|s3://[^/]+(/.*)?|[^:]+)$")]


@dataclass(frozen=True, config=_STRICT)
class Params:
    """All of `params.yaml`."""

    data: DataConfig
    train: TrainConfig
    evaluate: EvaluateConfig
    export: ExportConfig
    verify: VerifyConfig
    registry: RegistryConfig
    gates: GatesConfig
    schedule: ScheduleConfig
    alerts: AlertsConfig
    supervision: SupervisionConfig
    store: StoreConfig

    @property
    def model_name(self) -> str:
        """The registered model's name, `auto` resolved."""
        if self.registry.model != "auto":
            return self.registry.model
        name: str = self.data.source
        if name == "images":
            name = re.sub(r"[^A-Za-z0-9]+", "-", Path(self.data.path).name.split(".")[0]).strip("-")
        return f"prong-{name or 'images'}"

    def hash(self, *sections: str) -> str:
        """Return the sha256 of sections (default: the recorded ones) as canonical JSON."""
        values = asdict(self)
        return sha256_json({name: values[name] for name in sections or self.recorded()})

    def recorded(self) -> dict[str, dict[str, Any]]:
        """Return the sections that say something of a model, as plain values.

        When runs are made, whom they tell, how they are watched and where copies are kept does not;
        and an alert's address may hold a secret.
        """
        sections: dict[str, dict[str, Any]] = asdict(self)
        return {name: v for name, v in sections.items() if name not in _UNRECORDED}


def _yaml() -> YAML:
    yaml = YAML()  # round trip: comments and order survive an edit
    yaml.preserve_quotes = True
    yaml.width = 4096
    return yaml


def _read(path: Path) -> Any:
    try:
        return _yaml().load(path.read_text(encoding="utf-8"))
    except (YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path.name}: not valid YAML: {' '.join(str(error).split())}") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None


def _plain(value: Any) -> Any:
    """Return ruamel's round-trip containers and scalars as plain Python values."""
    match value:
        case dict():
            return {str(k): _plain(v) for k, v in value.items()}
        case list():
            return [_plain(v) for v in value]
        case bool() | None:
            return value
        case int():
            return int(value)
        case float():
            return float(value)
        case str():
            return str(value)
    return value


def _names(location: tuple[Any, ...]) -> list[str]:
    """Return the keys allowed at a location of Params."""
    kind: Any = Params
    for key in location:
        match = [f for f in fields(kind) if f.name == key]
        if not match:
            return []
        kind = _SECTIONS.get(str(key))
    return [f.name for f in fields(kind)] if kind and is_dataclass(kind) else []


_SECTIONS: dict[str, type] = {
    "data": DataConfig,
    "train": TrainConfig,
    "evaluate": EvaluateConfig,
    "export": ExportConfig,
    "verify": VerifyConfig,
    "registry": RegistryConfig,
    "gates": GatesConfig,
    "schedule": ScheduleConfig,
    "alerts": AlertsConfig,
    "supervision": SupervisionConfig,
    "store": StoreConfig,
}


def _explain(error: ValidationError) -> str:
    """Turn pydantic's findings into lines that name the key, the value and what is allowed."""
    found: dict[str, tuple[str, list[str]]] = {}
    for item in error.errors():
        location = tuple(part for part in item["loc"] if part in _SECTIONS or _is_field(part))
        key = ".".join(str(part) for part in location) or "params.yaml"
        kind, context = item["type"], item.get("ctx", {})
        if kind in ("unexpected_keyword_argument", "extra_forbidden"):
            *parents, name = item["loc"]
            allowed = _names(tuple(parents))
            near = difflib.get_close_matches(str(name), allowed, 1)
            hint = f"did you mean {near[0]}? " if near else ""
            full = ".".join(str(part) for part in item["loc"])
            found[full] = ("", [f"unknown key; {hint}allowed: {', '.join(allowed)}"])
            continue
        if kind in ("missing", "missing_argument"):
            full = ".".join(str(part) for part in item["loc"])
            found[full] = ("", ["missing; every key of params.yaml must be there"])
            continue
        if kind == "value_error":
            text = str(context.get("error", item["msg"]))
        elif kind == "literal_error":
            text = f"allowed: {context['expected']}"
        elif kind == "string_pattern_mismatch":
            text = f"must match {context['pattern']}"
        else:
            text = item["msg"][0].lower() + item["msg"][1:]
            text = text.replace(
                "input should be an object", "must be a section with keys of its own"
            )
            text = text.replace("input should be", "must be")
        shown = "" if kind == "value_error" else f" = {_shown(item['input'])}"
        found.setdefault(key, (shown, []))[1].append(text)
    return "\n".join(
        f"{key}{shown}: {' or '.join(dict.fromkeys(texts))}"
        for key, (shown, texts) in found.items()
    )


def _shown(value: Any) -> str:
    """Return a value as it would stand in YAML, shortened."""
    text = json.dumps(value, ensure_ascii=False) if not isinstance(value, str) else repr(value)
    return text if len(text) <= 80 else f"{text[:79]}…"


def _is_text(section: str, name: str) -> bool:
    """Say whether any text may be a knob's value."""
    kind = get_type_hints(_SECTIONS[section])[name]
    return kind is str


def _is_field(part: Any) -> bool:
    return any(part == f.name for kind in _SECTIONS.values() for f in fields(kind))


def parse(value: Any) -> Params:
    """Return checked parameters.

    Args:
        value: The nested mapping that `params.yaml` holds.

    Raises:
        UserError: Naming every key that is unknown, missing or has a wrong value.
    """
    if not isinstance(value, dict):
        raise UserError(f"params.yaml: a mapping is needed, found {type(value).__name__}")
    try:
        # As JSON: strict there still lets a mapping become a dataclass and 1 become 1.0.
        return TypeAdapter(Params).validate_json(json.dumps(_plain(value), default=str))
    except ValidationError as error:
        raise UserError(_explain(error)) from None


def load(path: Path) -> Params:
    """Read and check `params.yaml`.

    Raises:
        UserError: If the file is absent, is not YAML, or holds a wrong key or value.
    """
    return parse(_read(path))


def text(params: Params, like: Path) -> str:
    """Return parameters as the text of a `params.yaml`.

    Args:
        params: What it is to say.
        like: A `params.yaml`; its text, comments and all, is kept as far as it says the same.

    Raises:
        UserError: If `like` cannot be read.
    """
    document = _read(like)
    values = asdict(params)
    if not isinstance(document, dict) or _plain(document) != values:
        document = document if isinstance(document, dict) else {}
        for section, knobs in values.items():
            known = document.get(section)
            document[section] = knobs if not isinstance(known, dict) else known
            for name, value in knobs.items():
                if _plain(document[section].get(name)) != value:
                    document[section][name] = value
            for name in set(document[section]) - set(knobs):
                del document[section][name]
        for section in set(document) - set(values):
            del document[section]
        buffer = io.StringIO()
        _yaml().dump(document, buffer)
        return buffer.getvalue()
    return like.read_text(encoding="utf-8")


def edit(path: Path, assignments: list[str]) -> list[str]:
    """Write `key=value` assignments into `params.yaml`, keeping its comments.

    Nothing is written unless the edited file as a whole is valid.

    Args:
        path: The file to edit.
        assignments: Such as `train.epochs=3`; the value is YAML, but where the knob is text it is
            taken as it stands, unless it is in quotes: a path may hold ` #` or `: `.

    Returns:
        One line per changed key: `train.epochs: 8 → 3`.

    Raises:
        UserError: If an assignment is malformed or the result is not valid.
    """
    document = _read(path)
    if assignments and not isinstance(document, dict):
        parse(document)  # says so
    changes = []
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        parts = key.strip().split(".")
        if not equals or len(parts) != 2 or not all(parts):
            raise UserError(f"--set {assignment!r}: must be section.key=value, e.g. train.epochs=3")
        section, name = parts
        allowed = _names(()) if section not in _SECTIONS else _names((section,))
        if section not in _SECTIONS or name not in allowed:
            wrong = section if section not in _SECTIONS else key.strip()
            near = difflib.get_close_matches(wrong.split(".")[-1], allowed, 1)
            hint = f"did you mean {near[0]}? " if near else ""
            raise UserError(f"{wrong}: unknown key; {hint}allowed: {', '.join(allowed)}")
        verbatim = _is_text(section, name) and text.strip()[:1] not in ("'", '"')
        try:
            value = text.strip() if verbatim or not text.strip() else _yaml().load(text)
        except YAMLError:
            raise UserError(f"--set {assignment!r}: the value is not valid YAML") from None
        if section not in document or not isinstance(document[section], dict):
            raise UserError(f"params.yaml: section {section} is missing")
        old = document[section].get(name)
        if old != value or type(_plain(old)) is not type(_plain(value)):
            document[section][name] = value
            was, becomes = ("''" if item == "" else item for item in (_plain(old), _plain(value)))
            changes.append(f"{section}.{name}: {was} → {becomes}")
    parse(document)
    if changes:
        buffer = io.StringIO()
        _yaml().dump(document, buffer)
        write_text(path, buffer.getvalue())
    return changes
