"""What `import prong` loads, in a Python of its own."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

CODE = """
import json, sys, torch
before = set(sys.modules)
import prong
print(json.dumps([sorted(before), sorted(set(sys.modules) - before)]))
"""


@pytest.fixture(scope="module")
def loaded():
    """Names of the modules that torch loads, and of those that prong adds."""
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def test_import_loads_torch_and_nothing_else_heavy(loaded):
    extra = {name.split(".")[0] for name in loaded[1]}
    assert "matplotlib" not in extra
    assert "jaxtyping" not in extra
    assert {name for name in extra if name not in sys.stdlib_module_names} <= {"prong", "torch"}


def test_nothing_of_sharding_is_imported_for_those_who_do_not_shard(loaded):
    modules = loaded[0] + loaded[1]
    assert "prong" in modules
    assert [name for name in modules if "fsdp" in name or "distributed.tensor" in name] == []
