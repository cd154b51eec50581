"""Small folders that stand for checkouts with code of the user's own."""

from __future__ import annotations

import itertools
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from classifiers import classifier_spec

from pipelines.core.config import Method
from pipelines.training.network import NetworkSpec

_NUMBERS = itertools.count()
DOCS = Path(__file__).parents[2] / "docs/networks.md"
HEAD = "import torch\nfrom torch import nn\n\n\n"


@contextmanager
def own_modules() -> Iterator[None]:
    """Leave `sys.path` and the loaded modules as they were."""
    path, modules = list(sys.path), set(sys.modules)
    yield
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        file = getattr(sys.modules[name], "__file__", None) or ""
        if "/pytest-" in file:
            del sys.modules[name]


@dataclass(frozen=True)
class OwnCode:
    """A folder with Python files.

    Attributes:
        root: The folder.
        module: Name of the module that holds `build`; no other test's, since modules stay loaded.
    """

    root: Path
    module: str

    @property
    def value(self) -> str:
        """What `train.network` says."""
        return f"{self.module}:build"

    def write(self, name: str, text: str) -> Path:
        """Write a file, under its name."""
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return path

    def spec(self, method: Method = "prong+", code: str = "") -> NetworkSpec:
        """A specification for images of 8 × 8 grey pixels and three classes."""
        classes = ("a", "b", "c")
        return classifier_spec(method, 8, 1, classes, (0.5,), (0.25,), 2, 8, self.value, code)


def example() -> str:
    """Return the example of the documentation, as it stands there."""
    found = re.search(r"```python\n# network\.py\n(.*?)```", DOCS.read_text("utf-8"), re.DOTALL)
    assert found
    return found[1]


def make(root: Path, text: str, others: Mapping[str, str] | None = None) -> OwnCode:
    """Write a module with a text of its own, and other files."""
    found = OwnCode(root, f"own_network_{next(_NUMBERS)}")
    for name in ("dvc.yaml", "params.yaml"):
        (root / name).touch()
    found.write(f"{found.module}.py", HEAD + text)
    for name, content in (others or {}).items():
        found.write(name, content)
    return found


def module(forward: str, *layers: str) -> str:
    """Return the text of a network with layers and the body of `forward`, and of `build`."""
    lines = [
        "class Own(nn.Module):",
        "    def __init__(self, asked):",
        "        super().__init__()",
    ]
    lines += [f"        self.{layer}" for layer in layers]
    lines += ["", "    def forward(self, x):", *(f"        {line}" for line in forward.split("\n"))]
    return "\n".join([*lines, "", "", "def build(asked):", "    return Own(asked)", ""])
