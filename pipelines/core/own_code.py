"""A function in the user's own code, named `module:function` in `params.yaml`: found, hashed, run.

The file is found and hashed by reading alone, so a process that only compares hashes runs nothing
of it. What counts is the closure: the file, and every file of the checkout that it imports, also
inside functions. Packages that are installed, and this project's own, do not count.
"""

from __future__ import annotations

import ast
import importlib
import re
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pipelines.core.errors import UserError
from pipelines.core.files import sha256_sources

_NAME = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")
_NOT_OWN = ("prong", "pipelines")


def is_own(value: str) -> bool:
    """Say whether a setting has the form `module:function`."""
    return _NAME.fullmatch(value) is not None


def closure(value: str, root: Path, key: str) -> tuple[Path, ...]:
    """Return the files of the checkout that a function is made of, sorted; nothing is imported.

    Args:
        value: `module:function`.
        root: The checkout.
        key: The setting that holds `value`, such as `train.network`, for messages.

    Raises:
        UserError: If the module is no file of the checkout, or a file cannot be read as Python.
    """
    module = value.partition(":")[0]
    if module.split(".")[0] in _NOT_OWN or _file(root, module) is None:
        place = module.replace(".", "/")
        why = "belongs to prong" if module.split(".")[0] in _NOT_OWN else "no such file"
        raise UserError(
            f"{key} = {value!r}: {why}; the function must be in a file of this checkout, "
            f"{place}.py or {place}/__init__.py in {root}"
        )
    found: dict[Path, None] = {}
    waiting = [module]
    while waiting:
        name = waiting.pop()
        for part in _with_parents(name):
            path = _file(root, part)
            if path is not None and path not in found:
                found[path] = None
                waiting += _imported(path, part, f"{key} = {value!r}", root)
    return tuple(sorted(found))


def own_hash(value: str, root: Path, key: str) -> str:
    """Return the hash of the closure; empty if `value` does not name own code.

    Raises:
        UserError: As `closure` does.
    """
    return sha256_sources(closure(value, root, key), root) if is_own(value) else ""


def unchanged(value: str, code: str, root: Path) -> bool:
    """Say whether `code` is still the hash of own code; true of what is no own code.

    Args:
        value: As for `closure`.
        code: What `own_hash` returned.
        root: The checkout.
    """
    try:
        return own_hash(value, root, "") == code
    except UserError:
        return False


def load(value: str, root: Path, key: str) -> Callable[..., Any]:
    """Import the module, with the checkout first on `sys.path`, and return the function.

    Raises:
        UserError: If module or function do not exist, importing fails, the function cannot be
            called, or the module comes from elsewhere or imports files of the checkout that
            `closure` does not see, whose changes would go unnoticed.
    """
    seen = closure(value, root, key)
    module, _, function = value.partition(":")
    if sys.path[:1] != [str(root)]:
        sys.path.insert(0, str(root))
    importlib.invalidate_caches()
    before = set(sys.modules)
    try:
        loaded = importlib.import_module(module)
    except Exception as error:
        raise UserError(f"{key} = {value!r}: {where(error, root)}") from None
    origin = Path(getattr(loaded, "__file__", None) or "")
    if origin.resolve() not in {path.resolve() for path in seen}:
        raise UserError(
            f"{key} = {value!r}: Python already has a module {module!r} ({origin}); give the file "
            "of the checkout another name"
        )
    if unseen := _unseen(set(sys.modules) - before, seen, root):
        raise UserError(
            f"{key} = {value!r}: {unseen} is imported in a way that cannot be followed; use an "
            "import statement, so that its changes count"
        )
    made = getattr(loaded, function, None)
    if not callable(made):
        names = sorted(name for name, item in vars(loaded).items() if _defined(item, module))
        kind = "no such name" if made is None else f"a {type(made).__name__}, not a function"
        raise UserError(
            f"{key} = {value!r}: {kind} in {origin.name}; functions there: "
            f"{', '.join(names) or 'none'}"
        )
    found: Callable[..., Any] = made
    return found


def where(error: BaseException, root: Path) -> str:
    """Return an exception of the user's code as one line with file and line number.

    Args:
        error: As it was caught.
        root: The checkout; the innermost of its own files in the traceback is named.
    """
    text = " ".join(str(getattr(error, "msg", None) or error).split())
    said = f"{type(error).__name__}: {text}" if text else type(error).__name__
    place = frame(error, root)
    if isinstance(error, SyntaxError) and error.filename and error.lineno:
        place = f"{_relative(Path(error.filename), root)}, line {error.lineno}"
    return f"{place}: {said}" if place else said


def frame(error: BaseException, root: Path) -> str:
    """Return `FILE, line N` of the innermost call in the user's own files; empty without one."""
    for entry in reversed(traceback.extract_tb(error.__traceback__)):
        name = _relative(Path(entry.filename), root)
        own = not Path(name).is_absolute() and Path(name).parts[0] not in _NOT_OWN
        if own and "site-packages" not in Path(name).parts and Path(root, name).is_file():
            return f"{name}, line {entry.lineno}"
    return ""


def _relative(path: Path, root: Path) -> str:
    full = path.resolve() if path.exists() else path
    top = root.resolve()
    return full.relative_to(top).as_posix() if full.is_relative_to(top) else str(path)


def _defined(item: object, module: str) -> bool:
    return callable(item) and getattr(item, "__module__", None) == module


def _unseen(names: set[str], seen: tuple[Path, ...], root: Path) -> str:
    """Return the first newly imported file of the checkout that is not in the closure."""
    known = {path.resolve() for path in seen}
    for name in sorted(names):
        if name.split(".")[0] in _NOT_OWN or (path := _file(root, name)) is None:
            continue
        origin = getattr(sys.modules.get(name), "__file__", None)
        if origin and Path(origin).resolve() == path.resolve() and path.resolve() not in known:
            return _relative(path, root)
    return ""


def _file(root: Path, module: str) -> Path | None:
    """Return the file of a module in the checkout, or None."""
    place = root.joinpath(*module.split("."))
    for path in (place / "__init__.py", place.with_name(f"{place.name}.py")):
        if path.is_file():
            return path
    return None


def _with_parents(module: str) -> list[str]:
    parts = module.split(".")
    return [".".join(parts[: n + 1]) for n in range(len(parts))]


def _imported(path: Path, module: str, said: str, root: Path) -> Iterator[str]:
    """Yield the modules that a file's import statements may name, wherever they stand."""
    try:
        tree = ast.parse(path.read_bytes(), filename=str(path))
    except SyntaxError as error:
        raise UserError(f"{said}: {where(error, root)}") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{said}: {_relative(path, root)} cannot be read: {error}") from None
    package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            inner = [f"{base}.{alias.name}" if base else alias.name for alias in node.names]
            names = [*([base] if base else []), *inner]
        yield from (name for name in names if name.split(".")[0] not in _NOT_OWN)
