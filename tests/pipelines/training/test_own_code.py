"""Own code: which files count, and one message for each mistake."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import own_networks
import pytest

from pipelines.core import own_code, params_file
from pipelines.core.errors import UserError
from pipelines.core.files import read_json
from pipelines.core.fingerprints import code_hash, training_hash
from pipelines.data.prepared import load_card
from pipelines.systems.dvc.stage_code import FOLDER, note_code
from pipelines.training import network, training_folder

ROOT = Path(__file__).parents[3]
KEY = "train.network"
GOOD = "def build(asked):\n    return nn.Sequential(nn.Flatten(), nn.Linear(64, 3))\n"


@pytest.fixture(autouse=True)
def _modules() -> Iterator[None]:
    with own_networks.own_modules():
        yield


def test_the_closure_is_what_is_imported_from_the_checkout(tmp_path: Path) -> None:
    text = (
        "import json, numpy\nimport layers.dense as dense\nfrom prong import whiten\n"
        "def build(asked):\n    import late\n    return None\n"
    )
    others = {
        "layers/__init__.py": "from . import norm\n",
        "layers/dense.py": "from .inner import *\nfrom ..late import thing\n",
        "layers/norm.py": "",
        "layers/inner/__init__.py": "import json.decoder\n",
        "layers/unused.py": "",
        "late.py": "import own_unused_too_not_there\n",
        "pipelines/__init__.py": "",
        "prong.py": "",
        "unused.py": "",
    }
    code = own_networks.make(tmp_path, text, others)
    found = {
        p.relative_to(tmp_path).as_posix() for p in own_code.closure(code.value, tmp_path, KEY)
    }
    counted = (
        "layers/__init__.py",
        "layers/dense.py",
        "layers/norm.py",
        "layers/inner/__init__.py",
    )
    assert found == {f"{code.module}.py", "late.py", *counted}


def test_every_hash_sees_a_change_of_what_is_imported_and_of_nothing_else(
    tmp_path: Path, prepared: Path
) -> None:
    code = own_networks.make(tmp_path, f"import part\n\n\n{GOOD}", {"part.py": "x = 1\n"})
    shipped = params_file.load(ROOT / "params.yaml")
    params = replace(shipped, train=replace(shipped.train, network=code.value))
    card = load_card(prepared)

    def hashes() -> list[str]:
        (tmp_path / "params.yaml").write_text(f"train:\n  network: {code.value}\n")
        note_code(tmp_path)
        return [
            code_hash(tmp_path, {"train.network": code.value}),
            training_hash(card.data_hash, params, tmp_path),
            training_folder.name(params.train, card.data_hash, tmp_path),
            network.describe(params.train, card, tmp_path).code,
            read_json(tmp_path / FOLDER / "train.json")[KEY],
        ]

    before = hashes()
    code.write("unused.py", "x = 1\n")
    assert hashes() == before
    code.write("part.py", "x = 2\n")
    assert [a == b for a, b in zip(hashes(), before, strict=True)] == [False] * 5
    assert (
        code_hash(tmp_path)
        == code_hash(tmp_path, {})
        != code_hash(tmp_path, {"train.network": code.value})
    )


def test_the_file_for_dvc_is_left_alone_if_nothing_changed_and_never_fails(tmp_path: Path) -> None:
    for text in ("train: [", "train: 3", "", "train:\n  network: no_such:thing\n"):
        (tmp_path / "params.yaml").write_text(text)
        note_code(tmp_path)
    assert "no such file" in read_json(tmp_path / FOLDER / "train.json")[KEY]
    before = (tmp_path / FOLDER / "train.json").stat().st_mtime_ns
    note_code(tmp_path)
    assert (tmp_path / FOLDER / "train.json").stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("def build(asked:\n", r"\.py, line 5: SyntaxError"),
        ("x = 1\nraise KeyError('gone')\n", r"\.py, line 6: KeyError: 'gone'"),
        ("import no_such_package\n", r"\.py, line 5: ModuleNotFoundError: No module named 'no_suc"),
        ("def other(asked):\n    pass\n", r"no such name in own_.*\.py; functions there: other"),
        ("build = 3\n", r"a int, not a function in own_.*; functions there: none"),
        (
            "def build(asked):\n    return [asked]\n",
            r"returned list; a torch\.nn\.Module is",
        ),
        ("def build(asked):\n    return nn.Linear\n", r"returned type; a torch\.nn\.Module"),
        ("def build():\n    pass\n", r"TypeError: build\(\) takes 0 positional"),
        (
            "def build(asked):\n    return nn.Linear(asked.depth, 3)\n",
            r"\.py, line 6: AttributeError: 'NetworkSignature' object has no attribute 'depth'",
        ),
        ("def build(asked):\n    return nn.Flatten()\n", r"has no parameter to train"),
        (
            "import importlib\nimportlib.import_module('dynamic_part')\n" + GOOD,
            r"dynamic_part\.py is imported in a way that cannot be followed; use an import stat",
        ),
    ],
)
def test_each_mistake_in_the_code_is_one_message(tmp_path: Path, text: str, said: str) -> None:
    code = own_networks.make(tmp_path, text, {"dynamic_part.py": ""})
    with pytest.raises(UserError, match=rf"^{KEY} = '{code.value}': .*{said}") as caught:
        hash_of = own_code.own_hash(code.value, tmp_path, KEY)
        network.build(code.spec("sgd", hash_of), tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("no_such_module:build", r"no such file; .*no_such_module\.py or no_such_module/__init__"),
        ("torch.nn:Linear", r"no such file; .*torch/nn\.py"),
        ("prong:whiten", r"belongs to prong"),
        ("pipelines.core.text:shown", r"belongs to prong"),
    ],
)
def test_a_module_that_is_not_in_the_checkout_is_named(
    tmp_path: Path, value: str, said: str
) -> None:
    for read in (own_code.own_hash, own_code.load):
        with pytest.raises(UserError, match=rf"^{KEY} = '{value}': {said}"):
            read(value, tmp_path, KEY)


def test_a_module_whose_name_python_has_given_away_is_named(tmp_path: Path) -> None:
    (tmp_path / "json.py").write_text("def build(asked):\n    return None\n")
    with pytest.raises(UserError, match=r"already has a module 'json'.*another name"):
        own_code.load("json:build", tmp_path, KEY)


def test_a_method_that_whitens_needs_something_to_whiten(tmp_path: Path) -> None:
    code = own_networks.make(
        tmp_path, own_networks.module("return x.mean((1, 2, 3))[:, None] * self.w",
                                      "w = nn.Parameter(torch.ones(3))")
    )  # fmt: skip
    spec = code.spec("prong", own_code.own_hash(code.value, tmp_path, KEY))
    with pytest.raises(UserError, match=r"'prong' finds no layer to whiten \(: Own is not|\(body"):
        network.build(spec, tmp_path)
    assert network.build(replace(spec, method="sgd"), tmp_path)


def test_a_saved_network_is_loaded_by_its_code_and_by_no_other(tmp_path: Path) -> None:
    code = own_networks.make(tmp_path, GOOD)
    spec = code.spec("prong", own_code.own_hash(code.value, tmp_path, KEY))
    made = network.build(spec, tmp_path)
    trained = tmp_path / "models/trained"
    network.save(trained, spec, made.state_dict())
    loaded, again = network.load(trained)
    assert loaded == spec
    assert all((a == b).all() for a, b in zip(made.parameters(), again.parameters(), strict=True))
    network.save(trained, replace(spec, network="mlp", code=""), made.state_dict())
    with pytest.raises(UserError, match=r"not those of this network \(train\.network = 'mlp'\)"):
        network.load(trained)
    network.save(trained, spec, made.state_dict())
    code.write(f"{code.module}.py", f"{own_networks.HEAD}# changed\n{GOOD}")
    assert not own_code.unchanged(spec.network, spec.code, tmp_path)
    with pytest.raises(UserError, match=r"is not the one of the trained network; rerun train"):
        network.load(trained)
