"""A network of one's own in a checkout, from `prong run` to `rebuild`; the tests go on in order."""

from __future__ import annotations

import re

import own_networks
import pytest
from git_commands import commit_all
from small_checkout import Checkout, Done, make

from pipelines.core import params_file
from pipelines.core.files import read_json

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def outcomes(done: Done) -> dict[str, str]:
    assert done.code == 0, done.out + done.err
    return dict(re.findall(r"^  (\w+)\s+(ran|cached|restored)\s", done.out, re.MULTILINE))


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    made = make(tmp_path_factory.mktemp("own") / "job")
    text = own_networks.example().replace("nn.ReLU()", "layers.activation()")
    assert text != own_networks.example()
    (made.root / "network.py").write_text(f"import layers\n{text}", encoding="utf-8")
    (made.root / "layers.py").write_text("from torch.nn import ReLU as activation\n")
    params_file.edit(made.root / "params.yaml", ["train.network=network:build", "train.epochs=8"])
    commit_all(made.root, "own network")
    return made


def test_it_is_trained_released_and_asked(checkout: Checkout) -> None:
    done = checkout.prong("run")
    assert set(outcomes(done).values()) == {"ran"}
    assert re.search(r"train: network network:build, [\d,]+ parameters, 9\d\.\d% of", done.out)
    assert "trial export agrees" in done.out
    assert "alias       champion" in done.out
    spec = read_json(checkout.root / "models/trained/network.json")
    assert spec["network"] == "network:build"
    assert len(spec["code"]) == 64
    assert checkout.run("git", "status", "--porcelain").out.split() == ["??", "dvc.lock"]
    assert set(outcomes(checkout.prong("run")).values()) == {"cached"}


def test_the_same_code_makes_the_same_bytes_elsewhere(checkout: Checkout) -> None:
    done = checkout.prong("rebuild", "1")
    assert done.code == 0, done.out + done.err
    assert "the same bytes" in done.out


def test_a_change_of_what_it_imports_is_trained_anew(checkout: Checkout) -> None:
    (checkout.root / "unused.py").write_text("x = 1\n")
    (checkout.root / "layers.py").write_text("from torch.nn import ELU as activation\n")
    commit_all(checkout.root, "another activation")
    found = outcomes(checkout.prong("run"))
    assert found.pop("prepare") == "cached"
    assert set(found.values()) == {"ran"}
    (checkout.root / "unused.py").write_text("x = 2\n")
    assert set(outcomes(checkout.prong("run")).values()) == {"cached"}


def test_a_mistake_is_one_message_before_anything_runs(checkout: Checkout) -> None:
    network = checkout.root / "network.py"
    text = network.read_text(encoding="utf-8")
    try:
        for broken, said in (
            (f"{text}\n)", r"network\.py, line \d+: SyntaxError: unmatched '\)'"),
            (f"{text}\nimport no_such_thing", r"line \d+: ModuleNotFoundError: No module named"),
            (text.replace("def build", "def other"), r"no such name in network\.py; functions"),
        ):
            network.write_text(broken, encoding="utf-8")
            done = checkout.prong("run")
            assert done.code == 2, done.out + done.err
            assert re.search(rf"train\.network = 'network:build': .*{said}", done.err), done.err
            assert "Traceback" not in done.out + done.err
            assert "train     ran" not in done.out
    finally:
        network.write_text(text, encoding="utf-8")
