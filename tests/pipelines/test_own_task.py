"""A task of one's own: the one of the documentation, and what is refused before a training."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import own_networks
import own_tasks
import pytest
import torch

from pipelines.core import params_file
from pipelines.core.errors import UserError
from pipelines.gates.quality import classes
from pipelines.tasks.form import Form
from pipelines.tasks.named import task_of
from pipelines.training import training_folder
from pipelines.training.network import build
from pipelines.verification.dry_run import try_out


@pytest.fixture(autouse=True)
def _modules() -> Iterator[None]:
    with own_networks.own_modules():
        yield


def test_the_example_means_what_it_says(tmp_path: Path) -> None:
    task = own_tasks.made(tmp_path)
    targets = np.array([[60.0], [100.0], [140.0], [100.0]])
    raw = np.array([[-2.0, -3.0, -1.0], [0.0, -1.0, 1.0], [0.0, -1.0, 1.0], [0.8, 0.4, 1.2]])
    answers = task.answer(raw)
    assert answers.tolist() == [[60, 40, 80], [100, 80, 120], [100, 80, 120], [116, 108, 124]]
    errors = task.errors(answers, targets, own_tasks.ROWS)
    assert errors.tolist() == [0, 0, 2.5, 1]
    tensors = [torch.from_numpy(each) for each in (answers, targets, own_tasks.ROWS)]
    assert task.errors(*tensors).tolist() == errors.tolist()
    # 0.5·|y − m| + 0.1·(y − l) + 0.1·(h − y), in deviations, where y lies between l and h.
    loss = task.loss(torch.from_numpy(raw), *tensors[1:])
    beyond = 0.5 * 2 + 0.1 * 3 + 0.9 * 1
    assert loss.tolist() == pytest.approx([0.2, 0.2, beyond, 0.5 * 0.8 + 0.9 * 0.4 + 0.1 * 1.2])
    assert task.trivial(targets, own_tasks.ROWS).tolist() == [2.5, 0, 2.5, 0]
    assert task.trivial_told(targets) == "always 100"
    figures = {one.name: one.value for one in task.metrics(raw, targets, own_tasks.ROWS)}
    assert figures == {"error": 87.5, "mean absolute error": 14, "between low and high": 50}
    names = [part.name for part in task.parts(targets, own_tasks.ROWS)]
    assert {"colour = red", "age 45 to 50", "age missing", "price 100 to 110"} <= set(names)
    assert task.table(answers, targets)[:2] == [
        ("actual price", "predicted price", "low", "high"),
        (60, 60, 40, 80),
    ]
    assert task.told(answers[3]) == {"median": 116, "low": 108, "high": 124}
    assert task.compared(answers[3], targets[3]) == {"price": {"actual": 100, "predicted": 116}}


def test_the_example_is_tried_and_released(tmp_path: Path) -> None:
    task = own_tasks.made(tmp_path)
    spec = own_tasks.spec(tmp_path, task)
    assert try_out(build(spec), spec, 20, tmp_path).exported


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("import numpy as np\n", "import no_such\n", r".*line \d+: ModuleNotFoundError: No mod"),
        ("class Quantiles(Task)", "class Quantiles", "not a class made from .*task.Task"),
        ("class Quantiles", "class Others", r"no such name in own_task_\d+\.py; .* Others"),
        ("def loss", "def los", "TypeError: Can't instantiate abstract class Quantiles"),
        ("== 1, self", "== 2, self", "needed: one number to predict"),
        ("return (len(QUANTILES),)", "return 3", r"output_shape is 3; needed: such as \(3,\)"),
        ('"standardised", "quantiles"', '"same", "same"', r"outputs is .*; needed: two names"),
        ('"standardised", "quantiles"', '"raw", "numbers"', r"outputs is .*; needed: two names"),
    ],
)
def test_what_is_no_task_is_named_by_the_first_stage(
    tmp_path: Path, old: str, new: str, said: str
) -> None:
    text = own_tasks.example()
    assert old in text
    with pytest.raises(UserError, match=rf"^task\.name = 'own_task_\d+:Quantiles': {said}") as e:
        own_tasks.made(tmp_path, text.replace(old, new, 1))
    assert "\n" not in str(e.value)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (".sum(1)\n", ".sum()\n", r"loss returned shape \[\] for 3 examples; .* \[3\]"),
        (".sum(1)\n", ".sum(1) / 0\n", "loss must return a tensor of finite floating-point"),
        (".sum(1)\n", ".sum(2)\n", r"loss: own_task_\d+\.py, line \d+: IndexError"),
        (".sum(1)\n", ".sum(1).tolist()\n", "loss returned list for 3 examples"),
        ("return abs(answers", "return -abs(answers", "errors returned -.*; errors are at least 0"),
        ("(0.8 * self", "(0.0 * self", "errors returned a number that is not finite"),
        ("targets[:, 0]) /", "targets) /", r"errors returned shape \[3, \d\] for 3 examples"),
        (
            "return abs(answers",
            "return (1 + isinstance(answers, np.ndarray)) * abs(answers",
            "errors of tensors and of arrays differ, by up to",
        ),
        (
            "return raw * self",
            "return (raw if isinstance(raw, np.ndarray) else raw + 1) * self",
            "answer of tensors and of arrays differ, by up to",
        ),
        (
            "return raw * self",
            "return (raw - raw.mean(0)) * self",
            "the answer to one example depends on the others",
        ),
        ("return raw * self", "return raw.tolist() and None and self", "answer must return a ten"),
        ("np.full((len(targets), 1)", "np.full((2, 1)", r"trivial: own_task_\d+\.py, line"),
        ("[header, *(", "[header, (1,), *(", "table must return a header first"),
        ("dict(zip(QUANTILES, answer.tolist(),", "dict(zip(QUANTILES, answer,", "told: not plain"),
        ("*super().metrics(raw, targets, inputs),\n", "1,\n", "metrics must return a list of Met"),
        ("return [*super().parts(", "return [1, *super().parts(", "parts must return a list of S"),
        ('return f"always', 'return 1 or f"always', "trivial_told: int; needed: a text"),
        # No branch on values, and no operator that no release may hold.
        (
            "return raw * self",
            "raw = raw if raw.sum() > -1e9 else raw + 1\n        return raw * self",
            r"answer: cannot be exported to ONNX: own_task_\d+\.py",
        ),
        (
            "return raw * self",
            "if not isinstance(raw, np.ndarray):\n            "
            "raw = raw + raw.isnan().nonzero().shape[0]\n        return raw * self",
            r"answer: (its ONNX file would hold .*'NonZero'|cannot be exported)",
        ),
    ],
)
def test_what_a_task_does_wrong_is_named_before_the_training(
    tmp_path: Path, old: str, new: str, said: str
) -> None:
    text = own_tasks.example()
    assert old in text
    task = own_tasks.made(tmp_path, text.replace(old, new, 1))
    spec = own_tasks.spec(tmp_path, task)
    with pytest.raises(UserError, match=rf"^task\.name = 'own_task_\d+:Quantiles': {said}") as e:
        try_out(build(spec), spec, 20, tmp_path)
    assert "\n" not in str(e.value)


def test_a_change_of_its_code_begins_another_training(tmp_path: Path) -> None:
    named = own_tasks.write(tmp_path, own_tasks.example())
    config = params_file.load(Path(__file__).parents[2] / "params.yaml").train

    def name(task: str) -> str:
        return training_folder.name(config, "data", tmp_path, task)

    before = name(named)
    path = tmp_path / f"{named.partition(':')[0]}.py"
    path.write_text(path.read_text().replace("0.9}", "0.95}"))
    assert name(named) != before
    assert name("regression") == training_folder.name(config, "data", tmp_path)


def test_two_values_are_refused_by_the_example(tmp_path: Path) -> None:
    named = own_tasks.write(tmp_path, own_tasks.example())
    two = (own_tasks.VALUE, replace(own_tasks.VALUE, name="rent"))
    with pytest.raises(UserError, match="needed: one number to predict"):
        task_of(own_tasks.form(named, two), tmp_path)


def test_the_gates_speak_of_parts_where_the_data_are_a_table(tmp_path: Path) -> None:
    task = task_of(Form("classification", ("a", "b"), columns=own_tasks.COLUMNS), tmp_path)
    rows = np.array([[30.0, 2.0], [31.0, 2.0], [40.0, 3.0], [50.0, 3.0]])
    parts = task.parts(np.array([0, 1, 0, 1]), rows)
    new, old = np.array([0.0, 0, 1, 1]), np.zeros(4)
    lost = classes(task, new, old, parts, 0.1).reason
    assert lost.startswith("net lost of part ")
    assert "colour = red: 2 of 2" in lost
    assert classes(task, old, old, parts, 0.1).reason.startswith("no part is worse")
