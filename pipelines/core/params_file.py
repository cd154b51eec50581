"""`params.yaml`: read, checked and edited; messages name the key, the value and what is allowed."""

from __future__ import annotations

import difflib
import io
import json
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

from pydantic import TypeAdapter, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from pipelines.core.config import Params
from pipelines.core.errors import UserError
from pipelines.core.files import write_text

_SECTIONS: dict[str, type] = dict(get_type_hints(Params))


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
