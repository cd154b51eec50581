"""Before a training: what cannot be trained or released is named, and nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import own_networks
import pytest
from classifiers import classifier_spec

from pipelines.core import own_code
from pipelines.core.config import Method
from pipelines.core.errors import UserError
from pipelines.training.network import build
from pipelines.verification.dry_run import DryRun, try_out

DENSE = "layer = nn.Linear(64, 3)"
FLAT = "x.flatten(1)"


def tried(root: Path, text: str, method: Method = "sgd") -> DryRun:
    code = own_networks.make(root, text)
    spec = code.spec(method, own_code.own_hash(code.value, root, "train.network"))
    return try_out(build(spec, root), spec, 20, root)


@pytest.fixture(autouse=True)
def _modules() -> Iterator[None]:
    with own_networks.own_modules():
        yield


@pytest.mark.parametrize(
    ("forward", "layers", "said"),
    [
        (
            "return self.layer(x)",
            [DENSE],
            r"cannot answer images \[3, 1, 8, 8\]: .*\.py, line 11: ",
        ),
        (f"return self.layer({FLAT})", ["layer = nn.Linear(64, 4)"], r"returned float32 \[3, 4\]"),
        (f"return [self.layer({FLAT})]", [DENSE], r"returned list; a tensor \[3, 3\]"),
        (f"return self.layer({FLAT}).double()", [DENSE], r"returned float64 \[3, 3\]"),
        (
            f"return self.layer({FLAT}) / 0",
            [DENSE],
            r"the untrained network.s answer is not",
        ),
        (
            f"return self.layer(nn.functional.dropout({FLAT}, 0.5))",
            [DENSE],
            r"answered the same images differently in evaluation mode",
        ),
        (
            f"return self.layer({FLAT} - {FLAT}.mean(0))",
            [DENSE],
            r"the answer to one example depends",
        ),
        (f"return self.layer({FLAT}).detach()", [DENSE], r"no gradient can be computed: "),
        (
            f"return self.layer({FLAT})",
            [DENSE, "spare = nn.Linear(2, 2)"],
            r"no gradient reaches spare\.weight, spare\.bias; use them, remove them",
        ),
    ],
)
def test_what_is_wrong_with_a_network_is_named(
    tmp_path: Path, forward: str, layers: list[str], said: str
) -> None:
    with pytest.raises(UserError, match=rf"^train\.network = 'own_\w+:build': {said}") as caught:
        tried(tmp_path, own_networks.module(forward, *layers))
    assert "\n" not in str(caught.value)


def test_a_weight_that_is_used_beside_its_layer_cannot_be_whitened(tmp_path: Path) -> None:
    forward = "x = self.layer(x.flatten(1))\nreturn self.out(x) + x @ self.out.weight.T"
    text = own_networks.module(forward, "layer = nn.Linear(64, 8)", "out = nn.Linear(8, 3)")
    with pytest.raises(UserError, match=r"cannot be whitened: [\s\S]*out: its weight is used"):
        tried(tmp_path, text, "prong")


@pytest.mark.parametrize(
    ("forward", "said"),
    [
        (
            f"if x.sum() > -1e9:\n    x = x * 2\nreturn self.layer({FLAT})",
            r"cannot be exported to ONNX: own_network_\d+\.py(, line \d+|:\d+ in forward): ",
        ),
        (
            f"return self.layer(torch.special.bessel_j0({FLAT}))",
            r"cannot be exported to ONNX: no ONNX operator for \w+\.\w*bessel_j0",
        ),
        (
            f"y = torch.nonzero({FLAT} > 9)\nreturn self.layer({FLAT}) + y.shape[0]",
            r"(would hold what no release may: the operator 'NonZero'|cannot be exported)",
        ),
    ],
)
def test_what_cannot_be_exported_says_so_and_where(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], forward: str, said: str
) -> None:
    with pytest.raises(UserError, match=rf"^train\.network = 'own_\w+:build': (its ONNX.*)?{said}"):
        tried(tmp_path, own_networks.module(forward, DENSE))
    assert "".join(capfd.readouterr()) == ""


def test_a_good_network_is_exported_and_what_stays_plain_is_told(tmp_path: Path) -> None:
    # Batch normalisation before its layer stays in the graph; behind a layer it is folded away.
    forward = f"return self.layer(self.norm({FLAT}))"
    layers = [DENSE, "norm = nn.BatchNorm1d(64)"]
    done = tried(tmp_path, own_networks.module(forward, *layers), "prong+")
    assert done == DryRun(
        network=done.network,
        parameters=64 * 3 + 3 + 2 * 64,
        share=195 / 323,
        plain={"BatchNorm1d is not a dense or convolutional layer": ("norm",)},
        exported=True,
    )
    assert list(done.lines()) == [
        f"network {done.network}, 323 parameters, 60.4% of them in whitened layers, "
        "trial export agrees",
        "stay plain: norm: BatchNorm1d is not a dense or convolutional layer",
    ]


def test_a_network_of_which_little_is_whitened_is_told_once_and_not_warned_of(
    tmp_path: Path,
) -> None:
    forward = f"return self.layer({FLAT}) + self.own({FLAT})"
    text = (
        "class Own(nn.Linear):\n    pass\n\n\n"
        "class Both(nn.Module):\n    def __init__(self):\n        super().__init__()\n"
        "        self.layer, self.own = nn.Linear(64, 3), Own(64, 3)\n"
        "        self.more = Own(64, 64)\n"
        f"    def forward(self, x):\n        x = self.more({FLAT})\n        {forward}\n\n\n"
        "def build(asked):\n    return Both()\n"
    )
    said = list(tried(tmp_path, text, "prong").lines())
    assert "4.3% of them in whitened layers" in said[0]
    assert said[1:] == [
        "stay plain: own, more: Own is a subclass that may use its weight in its own way"
    ]


def test_the_zoos_networks_are_tried_without_an_export(tmp_path: Path) -> None:
    spec = classifier_spec("sgd", 8, 1, ("a", "b"), (0.5,), (0.25,), 2, 4, "mlp")
    done = try_out(build(spec), spec, 20, tmp_path)
    assert list(done.lines()) == ["network mlp, 290 parameters"]


def test_the_documentations_example_says_what_stands_there(tmp_path: Path) -> None:
    code = own_networks.make(tmp_path, own_networks.example())
    hash_of = own_code.own_hash(code.value, tmp_path, "train.network")
    digits = tuple("0123456789")
    spec = replace(code.spec("prong+", hash_of), width=32, output_shape=(10,))
    spec = replace(spec, form=replace(spec.form, size=28, classes=digits))
    done = replace(try_out(build(spec, tmp_path), spec, 20, tmp_path), network="network:build")
    said = "\n".join(f"  train: {line}" for line in done.lines())
    assert f"```\n{said}\n```" in own_networks.DOCS.read_text(encoding="utf-8")
