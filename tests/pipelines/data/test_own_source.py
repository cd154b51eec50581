"""A function of the user's own as the source: what it may yield, and one message per mistake."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import own_networks
import pytest

from pipelines.core.config import DataConfig
from pipelines.core.errors import UserError
from pipelines.data import own_source
from pipelines.data.prepare import prepare
from pipelines.data.prepared import SPLITS, Card, load_card, load_split

Configured = Callable[..., DataConfig]
DOCS = Path(__file__).parents[3] / "docs/data.md"
_NUMBERS = itertools.count()
HEAD = """\
from pathlib import Path

import numpy as np
from PIL import Image

from pipelines.data.example import Example


def images(n, shape=(6, 5, 2), dtype=np.uint8):
    rng = np.random.default_rng(0)
    return (rng.integers(0, np.iinfo(dtype).max + 1, shape).astype(dtype) for _ in range(n))


"""


@pytest.fixture(autouse=True)
def _modules() -> Iterator[None]:
    with own_networks.own_modules():
        yield


@pytest.fixture
def run(tmp_path: Path, config: Configured) -> Callable[..., Card]:
    """Prepare the data of a function `examples`, given as text."""

    def make(text: str, task: str = "auto", **changes: Any) -> Card:
        name = f"own_data_{next(_NUMBERS)}"
        (tmp_path / f"{name}.py").write_text(f"{HEAD}{text}")
        (tmp_path / "dvc.yaml").touch()
        (tmp_path / "params.yaml").touch()
        return prepare(
            config(source=f"{name}:examples", **changes),
            task=task,
            root=tmp_path,
            downloads=tmp_path / "down",
            out=tmp_path / "out",
        )

    return make


def rows(out: Path) -> dict[str, tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]]:
    """Return input and target of each example, by its content hash."""
    found = {}
    for name in SPLITS:
        split = load_split(out, name)
        found |= dict(zip(split.hashes, zip(split.inputs, split.targets, strict=True), strict=True))
    return found


def test_pairs_become_classes_in_order_and_keep_every_channel(
    tmp_path: Path, run: Callable[..., Card]
) -> None:
    card = run(
        "def examples():\n"
        "    for number, image in enumerate(images(120)):\n"
        "        image[0, 0] = number % 12\n"
        "        yield image, number % 12\n"
    )
    form = card.form
    assert (form.task, form.size, form.channels, form.bits) == ("classification", 5, 2, 8)
    assert form.classes == tuple(str(n) for n in range(12))  # 10 comes after 9
    assert load_card(tmp_path / "out") == card
    assert card.total() == 120
    assert all(abs(card.total(split) / 120 - share) < 0.09
               for split, share in (("train", 0.7), ("test", 0.15)))  # fmt: skip


def test_numbers_to_predict_and_their_statistics(tmp_path: Path, run: Callable[..., Card]) -> None:
    card = run(
        "from typing import NamedTuple\n\n"
        "class Place(NamedTuple):\n    x: float\n    y: float\n\n"
        "def examples():\n"
        "    for image in images(80, (4, 4)):\n"
        "        yield image, Place(float(image[0, 0]), 2.5 * image[1, 0])\n"
    )
    train = load_split(tmp_path / "out", "train")
    assert (card.form.task, card.form.classes) == ("regression", ())
    assert [value.name for value in card.form.values] == ["x", "y"]
    for at, value in enumerate(card.form.values):
        assert value.mean == pytest.approx(train.targets[:, at].mean())
        assert value.deviation == pytest.approx(train.targets[:, at].std())
    for image, target in rows(tmp_path / "out").values():
        assert target.tolist() == [image[0, 0, 0], 2.5 * image[0, 1, 0]]
    one = run("def examples():\n    for n, i in enumerate(images(80)):\n        yield i, n\n",
              "regression")  # fmt: skip
    assert [value.name for value in one.form.values] == ["value"]


def test_equal_pixels_with_different_numbers_are_left_out(run: Callable[..., Card]) -> None:
    card = run(
        "def examples():\n"
        "    for image in images(80):\n        yield image, float(image[0, 0, 0])\n"
        "    for n, image in enumerate(images(3)):\n        yield image, [-1.0, -2.0, -3.0][n]\n"
        "    yield next(images(1)), -1.0\n"
    )
    assert (card.total(), len(card.conflicts), card.duplicates) == (77, 7, 0)


def test_without_targets_there_is_something_to_reconstruct(
    tmp_path: Path, run: Callable[..., Card]
) -> None:
    card = run("def examples():\n    return [Example(i) for i in images(60)]\n")
    assert (card.form.task, card.form.classes, card.form.values) == ("reconstruction", (), ())
    assert load_split(tmp_path / "out", "test").targets.shape == (card.total("test"), 0)


def test_official_sets_and_the_section_data(tmp_path: Path, run: Callable[..., Card]) -> None:
    (tmp_path / "numbers").write_text("90")
    text = (
        "def examples(data):\n"
        "    assert data.path.startswith('/') and data.seed == 3\n"
        "    for n, image in enumerate(images(int(Path(data.path).read_text()))):\n"
        "        split = 'test' if n < 20 else 'validation' if n < 35 else None\n"
        "        yield Example(image, 'ab'[n % 2], split, f'picture {n}')\n"
    )
    card = run(text, path="numbers", seed=3)
    assert (card.total("test"), card.total("validation"), card.total()) == (20, 15, 90)
    assert card.official_test
    assert card.official_validation
    same = run(text.replace("picture", "photo"), path="numbers", seed=3)
    assert same.data_hash == card.data_hash


def test_16_bits_and_pictures_of_pillow(tmp_path: Path, run: Callable[..., Card]) -> None:
    card = run(
        "def examples():\n"
        "    for n, image in enumerate(images(60, (8, 8), np.uint16)):\n"
        "        yield (Image.fromarray(image) if n % 2 else image.astype('>u2')), n % 2\n",
        bits=16,
    )
    assert (card.form.bits, card.form.channels) == (16, 1)
    inputs = load_split(tmp_path / "out", "train").inputs
    assert inputs.dtype == np.uint16
    assert inputs.max() > 60_000
    assert len(np.unique(inputs & 255)) == 256  # the lower eight bits are there


def test_the_example_of_the_documentation(tmp_path: Path, run: Callable[..., Card]) -> None:
    found = re.search(r"```python\n# pictures\.py\n(.*?)```", DOCS.read_text("utf-8"), re.DOTALL)
    assert found
    rng = np.random.default_rng(0)
    np.savez(
        tmp_path / "scans.npz",
        images=rng.integers(0, 256, (80, 9, 9), np.uint8),
        ages=rng.random(80),
        new=np.arange(80) < 12,
    )
    card = run(found[1], path="scans.npz")
    assert (card.form.task, card.total("test"), card.total()) == ("regression", 12, 80)


def test_an_endless_function_ends_at_the_limit(
    run: Callable[..., Card], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (
        "def examples():\n"
        "    for n, image in enumerate(images(10**9)):\n        yield image, n % 2\n"
    )
    assert run(text, limit=90).total() == 90
    monkeypatch.setattr(own_source, "_MOST", 700)
    with pytest.raises(UserError, match=r"700 examples and no end; set data\.limit"):
        run(text)


PAIR = "    for n, image in enumerate(images(40)):\n"


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("    yield from ()\n", r"yielded no example"),
        ("    return None\n", r"returned NoneType; it must yield examples"),
        ("    raise KeyError('gone')\n    yield\n", r"example 0: own_.*line 15: KeyError: 'gone'"),
        (f"{PAIR}        yield image, 1 / (9 - n)\n", r"example 9: own_.*line 16: ZeroDivision"),
        ("    yield 3\n", r"own_data_\d+\.py, line 15: example 0 is int; needed: a pair"),
        (f"{PAIR}        yield image, 0, 1\n", r"line 16: example 0 is tuple of 3; needed: a pair"),
        ("    yield [1], 0\n", r"example 0: its input is list of 1; needed: a numpy array or"),
        ("    yield np.zeros((4, 4)), 0\n", r"example 0: an array float64 \[4, 4\]; needed"),
        ("    yield np.zeros(4, np.uint8), 0\n", r"an array uint8 \[4\]; needed: \[height, wi"),
        ("    yield np.zeros((3, 8, 8), np.uint8), 0\n", r"seems to have its channels first"),
        ("    yield np.zeros((8, 8, 65), np.uint8), 0\n", r"allowed: up to 64 channels"),
        ("    yield np.zeros((8, 8), np.uint16), 0\n", r"but data\.bits = 8; set it to 16"),
        (f"{PAIR}        yield image[:, :, : 1 + (n < 20)], 0\n",
         r"line 16: example 20 has 1 channels, and those before have 2"),
        (f"{PAIR}        yield image, 'a' if n else 0\n", r"example 1: target 'a' \(str\); class"),
        (f"{PAIR}        yield image, 0.5 if n else 0\n", r"target 0\.5 \(float\); the targets b"),
        (f"{PAIR}        yield image, 1 if n else None\n", r"the targets before it are None"),
        (f"{PAIR}        yield image, [0.5] * (1 + n)\n", r"value1, value2; those before it hav"),
        (f"{PAIR}        yield image, float('nan')\n", r"every number must be finite"),
        (f"{PAIR}        yield image, {{}}\n", r"target {{}} \(dict\); allowed: a class, a numb"
         .replace("{{}}", r"\{\}")),
        (f"{PAIR}        yield image, 1.5\n", r"data: value is 1\.5 in every example of the split"),
        (f"{PAIR}        yield Example(image, 0, 'gate')\n", r"split 'gate' is unknown; allowed"),
        (f"{PAIR}        yield Example(image, n, 'test' if n == 9 else None)\n",
         r"the classes of the splits disagree: test has 1 class \(9\) that train lacks"),
        ("    rng = np.random.default_rng()\n"
         "    while True:\n        yield rng.integers(0, 9, (4, 4), np.uint8), 0\n",
         r"example 0 is another one when the function is called again"),
    ],
)  # fmt: skip
def test_each_mistake_is_one_message(run: Callable[..., Card], body: str, said: str) -> None:
    with pytest.raises(UserError, match=said) as caught:
        run(f"def examples():\n{body}")
    assert "\n" not in str(caught.value)
    assert "data" in str(caught.value)


def test_what_the_task_needs(run: Callable[..., Card]) -> None:
    for task, target, said in (
        ("regression", "'a'", "task.name = regression needs a number or several"),
        ("classification", "0.5", "task.name = classification needs a class"),
        ("reconstruction", "0.5", "task.name = reconstruction needs None or a class"),
        ("classification", "None", "task.name = classification needs a class"),
    ):
        text = f"def examples():\n{PAIR}        yield image, {target}\n"
        with pytest.raises(UserError, match=said):
            run(text, task)


@pytest.mark.parametrize(
    ("given", "said"),
    [("a, b", "it needs the arguments a, b; allowed: none, or one"), ("*, a", "arguments a;")],
)
def test_what_the_function_may_ask_for(run: Callable[..., Card], given: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        run(f"def examples({given}):\n    yield 0\n")


def test_a_source_that_is_not_there_and_a_hash(
    tmp_path: Path, config: Configured, run: Callable[..., Card]
) -> None:
    given = config(source="no_such_data:examples")
    with pytest.raises(UserError, match=r"^data\.source = 'no_such_data:examples': no such file"):
        own_source.read(given, root=tmp_path, task="auto")
    with pytest.raises(UserError, match=r"must be '' for data\.source"):
        own_source.read(replace(given, sha256="0" * 64), root=tmp_path, task="auto")
