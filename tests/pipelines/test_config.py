from __future__ import annotations

import shutil
from dataclasses import FrozenInstanceError
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.core import params_file
from pipelines.core.errors import UserError

ROOT = Path(__file__).parents[2]


@pytest.fixture
def params(tmp_path: Path) -> Path:
    return Path(shutil.copy(ROOT / "params.yaml", tmp_path))


def test_the_shipped_file_is_valid_and_frozen() -> None:
    loaded = params_file.load(ROOT / "params.yaml")
    assert loaded.train.method == "prong+"
    assert loaded.model_name == "prong-digits"
    with pytest.raises(FrozenInstanceError):
        loaded.train.epochs = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    ("assignment", "words"),
    [
        ("train.epochs=three", ["train.epochs", "'three'", "integer"]),
        ("train.epochs=true", ["train.epochs", "true", "integer"]),
        ("train.epochs=0", ["train.epochs", "0", "greater than or equal to 1"]),
        ("train.epochs=2.5", ["train.epochs", "2.5"]),
        ("train.method=foof", ["train.method", "'foof'", "'sgd'", "'prong+'"]),
        ("train.network=foo", ["train.network", "'foo'", "resnet", "timm:NAME", "module:function"]),
        ("train.network=../a:b", ["train.network", "'../a:b'", "module:function"]),
        ("train.network=3", ["train.network", "'3'"]),
        ("data.source=imagenet", ["data.source", "'imagenet'", "'digits'", "'images'"]),
        ("data.source=a/b:c", ["data.source", "'a/b:c'", "module:function"]),
        ("data.channels=65", ["data.channels", "65", "less than or equal to 64"]),
        ("data.bits=12", ["data.bits", "12", "8 or 16"]),
        ("train.augment_by=crop", ["train.augment_by", "'crop'", "module:function"]),
        ("train.epoch=3", ["train.epoch", "unknown key", "did you mean epochs", "damping"]),
        ("train.engine=slurm", ["train.engine", "unknown key", "did you mean cluster.engine"]),
        ("training.epochs=3", ["training", "unknown key", "train", "data"]),
        ("train.lr=fast", ["train.lr", "'fast'", "'auto'"]),
        ("train.lr=.nan", ["train.lr", "NaN"]),
        ("train.lr=-1", ["train.lr", "-1", "greater than 0"]),
        ("data.test=0.9", ["data.validation + data.gate + data.test = 1.05", "0.95"]),
        ("train.epochs=null", ["train.epochs = null", "integer"]),
        ("train.epochs={a: 1}", ["train.epochs", '{"a": 1}', "integer"]),
        (f"train.seed={2**63}", ["train.seed", "less than"]),
        ("data.sha256=abc", ["data.sha256", "'abc'"]),
        ("registry.model=a/b", ["registry.model", "'a/b'"]),
        ("train.epochs", ["section.key=value"]),
        ("epochs=3", ["section.key=value"]),
        ("train.epochs=[", ["not valid YAML"]),
    ],
)
def test_a_wrong_assignment_names_key_value_and_what_is_allowed(
    params: Path, assignment: str, words: list[str]
) -> None:
    before = params.read_bytes()
    with pytest.raises(UserError) as caught:
        params_file.edit(params, ["train.batch=32", assignment])
    for word in words:
        assert word in str(caught.value)
    assert params.read_bytes() == before, "nothing may be half-written"


def test_an_edit_keeps_comments_and_says_what_changed(params: Path) -> None:
    before = params.read_text()
    assert params_file.edit(params, ["train.epochs=3", "train.lr=1e-2"]) == [
        "train.epochs: 8 → 3",
        "train.lr: auto → 0.01",
    ]
    after = params.read_text()
    changed = [
        (a, b) for a, b in zip(before.splitlines(), after.splitlines(), strict=True) if a != b
    ]
    assert [line.split()[0] for _, line in changed] == ["epochs:", "lr:"]
    assert all("#" in new for old, new in changed if "#" in old)
    assert params_file.load(params).train.lr == 0.01


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("data.path", "/data/run: 3"),
        ("data.path", "my images #2"),
        ("data.path", "2024"),
        ("data.path", "*[a]{b}"),
        ("data.mirror", "http://host:80/x"),
        ("data.sha256", "1" * 64),
    ],
)
def test_text_is_taken_as_it_stands(params: Path, key: str, text: str) -> None:
    params_file.edit(params, [f"{key}={text}"])
    section, name = key.split(".")
    assert getattr(getattr(params_file.load(params), section), name) == text
    assert params_file.edit(params, [f"{key}='{text}'"]) == []


def test_what_is_set_to_nothing_is_shown(params: Path) -> None:
    params_file.edit(params, ["data.mirror=x"])
    assert params_file.edit(params, ["data.mirror="]) == ["data.mirror: x → ''"]


def test_an_edit_to_the_same_value_leaves_the_file_alone(params: Path) -> None:
    before = params.stat().st_mtime_ns
    assert params_file.edit(params, ["train.epochs=8"]) == []
    assert params.stat().st_mtime_ns == before


def test_all_findings_come_at_once() -> None:
    with pytest.raises(UserError) as caught:
        params_file.parse({"data": {"source": "digits", "sise": 3}, "extra": 1})
    message = str(caught.value)
    assert "data.sise: unknown key" in message
    assert "extra: unknown key" in message
    assert "train: missing" in message


@pytest.mark.parametrize("text", ["- a\n- b\n", "a: [1\n", "just words\n", "", "\x00"])
def test_a_file_that_is_not_a_mapping_is_a_user_error(tmp_path: Path, text: str) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=r"params\.yaml"):
        params_file.load(path)
    with pytest.raises(UserError, match=r"params\.yaml"):
        params_file.edit(path, ["train.epochs=3"])


def test_an_absent_file_is_a_user_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        params_file.load(tmp_path / "params.yaml")


@given(
    st.dictionaries(
        st.sampled_from(["data", "train", "gates", "x"]),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
            lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
            max_leaves=5,
        ),
    )
)
def test_no_mapping_makes_the_parser_crash(value: dict[str, Any]) -> None:
    with pytest.raises(UserError):
        params_file.parse(value)


def test_the_hash_covers_the_named_sections_only(params: Path) -> None:
    before = params_file.load(params)
    params_file.edit(params, ["verify.images=64"])
    after = params_file.load(params)
    assert before.hash("data", "train", "export") == after.hash("data", "train", "export")
    assert before.hash() != after.hash()


def test_hashes_stay_those_of_the_registries_that_exist() -> None:
    """Change a hash here only together with a value or a key of params.yaml."""
    shipped = params_file.load(ROOT / "params.yaml")
    assert shipped.hash() == "c39b5ae97c1eb1dfa6585e7f6d6737d5e81613816264255c69c2ac17eaf31d36"
    assert {name: shipped.hash(name)[:16] for name in shipped.recorded()} == {
        "data": "a967e98609bc7189",
        "task": "0af25a8cbae92c79",
        "train": "db5cd56c0db0e30c",
        "evaluate": "f0e20334849393c3",
        "export": "699a41742235a2b0",
        "verify": "831f0d74155dcbb4",
        "registry": "b8f5d1fab370ea51",
        "gates": "2c7cef4024742e9e",
    }


@pytest.mark.parametrize("broken", ["train: 3", "train:", "x: 1"])
def test_an_edit_of_a_file_without_the_section_names_it(params: Path, broken: str) -> None:
    text = params.read_text().replace("train:\n", f"{broken}\nold:\n")
    params.write_text(text)
    with pytest.raises(UserError, match=r"(?m)^train( = (3|null): must be a section|: missing)"):
        params_file.edit(params, ["train.epochs=3"])
    assert params.read_text() == text


def test_text_that_is_not_unicode_is_a_user_error(params: Path) -> None:
    with pytest.raises(UserError, match="cannot be used"):
        params_file.edit(params, ["data.path=\udcff"])


@pytest.mark.parametrize(
    ("source", "path", "name"),
    [
        ("images", "../shared/cifar10/train.tar.gz", "prong-train"),
        ("images", "data/raw/My Flowers", "prong-My-Flowers"),
        ("images", "data/raw/été", "prong-t"),
        ("table", "data/house prices.csv.gz", "prong-house-prices"),
        ("table", "data/東京.csv", "prong-table"),
    ],
)
def test_the_registered_name_is_that_of_the_path(
    params: Path, source: str, path: str, name: str
) -> None:
    params_file.edit(params, [f"data.source={source}", f"data.path={path}"])
    assert params_file.load(params).model_name == name
