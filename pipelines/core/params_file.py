"""`params.yaml`: read, checked and edited; messages name the key, the value and what is allowed."""

from __future__ import annotations

import difflib
import io
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails, from_json, to_json
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from pipelines.core.config import Params
from pipelines.core.errors import UserError
from pipelines.core.files import write_text


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


def _dump(document: Any) -> str:
    buffer = io.StringIO()
    _yaml().dump(document, buffer)
    return buffer.getvalue()


def _json(value: Any) -> bytes:
    try:
        return to_json(value, fallback=str, inf_nan_mode="constants", bytes_mode="base64")
    except ValueError as error:  # a list that holds itself, text that is not Unicode
        raise UserError(f"params.yaml: a value cannot be used: {error}") from None


def _plain(value: Any) -> Any:
    """Return ruamel's round-trip containers and scalars as plain Python values."""
    return from_json(_json(value))


def _fields(*section: str) -> dict[str, FieldInfo]:
    """Return pydantic's fields of Params or of one of its sections; none for an unknown section."""
    kind: Any = Params
    for name in section:
        kind = kind.__pydantic_fields__[name].annotation if name in _fields() else object
    return getattr(kind, "__pydantic_fields__", {})


def _finding(item: ErrorDetails) -> tuple[str, str]:
    """Return key and value of one of pydantic's errors, and what is allowed there."""
    path = [str(part) for part in item["loc"][:2]]  # beyond section and key: a branch of a union
    key = ".".join(path) or "params.yaml"
    context = item.get("ctx", {})
    match item["type"]:
        case "unexpected_keyword_argument":
            allowed = list(_fields(*path[:-1]))
            near = difflib.get_close_matches(path[-1], allowed, 1) or [
                f"{section}.{path[-1]}" for section in _fields() if path[-1] in _fields(section)
            ]
            hint = f"did you mean {near[0]}? " if near else ""
            return key, f"unknown key; {hint}allowed: {', '.join(allowed)}"
        case "missing":
            return key, "missing; every key of params.yaml must be there"
        case "value_error":
            return key, str(context["error"])
        case "literal_error":
            text = f"allowed: {context['expected']}"
        case "string_pattern_mismatch":
            text = f"must match {context['pattern']}"
        case "dataclass_type":
            text = "must be a section with keys"
        case _:
            text = item["msg"][0].lower() + item["msg"][1:]
    return f"{key} = {_shown(item['input'])}", text.replace("input should be", "must be")


def _explain(error: ValidationError) -> str:
    """Turn pydantic's errors into lines that name the key, the value and what is allowed."""
    found: dict[str, list[str]] = {}
    for item in error.errors():
        head, text = _finding(item)
        found.setdefault(head, []).append(text)
    return "\n".join(
        f"{head}: {' or '.join(dict.fromkeys(texts))}" for head, texts in found.items()
    )


def _shown(value: Any) -> str:
    """Return a value in YAML notation, shortened."""
    text = repr(value) if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else f"{text[:79]}…"


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
        # As JSON: strict mode still converts a mapping to a dataclass and 1 to 1.0 there.
        return TypeAdapter(Params).validate_json(_json(value))
    except ValidationError as error:
        raise UserError(_explain(error)) from None


def load(path: Path) -> Params:
    """Read and check `params.yaml`.

    Raises:
        UserError: If the file is absent, is not YAML, or holds a wrong key or value.
    """
    return parse(_read(path))


def _update(document: Any, values: dict[str, Any]) -> None:
    """Make `document` equal to `values`; where they are equal already, comments stay."""
    for key in set(document) - set(values):
        del document[key]
    for key, value in values.items():
        known = document.get(key)
        if isinstance(known, dict) and isinstance(value, dict):
            _update(known, value)
        elif _plain(known) != value:
            document[key] = value


def text(params: Params, like: Path) -> str:
    """Return parameters as the text of a `params.yaml`.

    Args:
        params: The parameters to write.
        like: A `params.yaml`; its text and comments are kept where the values are equal.

    Raises:
        UserError: If `like` cannot be read.
    """
    document, values = _read(like), asdict(params)
    if _plain(document) == values:
        return like.read_text(encoding="utf-8")
    if not isinstance(document, dict):
        document = {}
    _update(document, values)
    return _dump(document)


def edit(path: Path, assignments: list[str]) -> list[str]:
    """Write `key=value` assignments into `params.yaml`, keeping its comments.

    Nothing is written unless the edited file as a whole is valid.

    Args:
        path: The file to edit.
        assignments: Such as `train.epochs=3`. The value is YAML. Where the key holds text, the
            value is taken literally unless it is in quotes: a path may hold ` #` or `: `.

    Returns:
        One line per changed key: `train.epochs: 8 → 3`.

    Raises:
        UserError: If an assignment is malformed or the result is not valid.
    """
    document = _read(path)
    changes = []
    for assignment in assignments:
        key, equals, text = (part.strip() for part in assignment.partition("="))
        section, dot, name = key.partition(".")
        if not (equals and section and dot and name) or "." in name:
            raise UserError(f"--set {assignment!r}: must be section.key=value, e.g. train.epochs=3")
        if not isinstance(document, dict):
            parse(document)  # raises
        if not isinstance(document.get(section), dict):
            # Raises: the section is unknown, missing or not a mapping.
            parse(document if section in _fields() else {**document, section: None})
        field = _fields(section).get(name)
        literal = not text or (field and field.annotation is str and text[0] not in "'\"")
        try:
            value = text if literal else _yaml().load(text)
        except YAMLError:
            raise UserError(f"--set {assignment!r}: the value is not valid YAML") from None
        was, becomes = _plain(document[section].get(name)), _plain(value)
        if was != becomes or type(was) is not type(becomes):
            document[section][name] = value
            was, becomes = ("''" if item == "" else item for item in (was, becomes))
            changes.append(f"{section}.{name}: {was} → {becomes}")
    parse(document)
    if changes:
        write_text(path, _dump(document))
    return changes
