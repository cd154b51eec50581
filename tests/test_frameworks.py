"""The examples of docs/loops.md, each held to the plain loop, and its table to the tests."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import prong

PAGE = Path(__file__).parents[1] / "docs/loops.md"
QUIET = {
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}
GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(256, 6, generator=GENERATOR)
Y = torch.randn(256, 3, generator=GENERATOR)
EPOCHS, PERIOD = 2, 4


def example(title: str) -> dict[str, Any]:
    """Run the block under a title of the page; what it defines."""
    text = PAGE.read_text(encoding="utf-8")
    (block,) = re.findall(rf"## {re.escape(title)}\n+```python\n(.*?)```", text, re.DOTALL)
    space: dict[str, Any] = {}
    exec(compile(block, f"{PAGE.name}: {title}", "exec"), space)
    return space


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))


def loader(batch: int = 32) -> torch.utils.data.DataLoader[Any]:
    pairs = torch.utils.data.TensorDataset(X, Y)
    return torch.utils.data.DataLoader(pairs, batch_size=batch)


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)


def plain_loop(make: Any = sgd, halves: int = 1) -> nn.Module:
    model = prong.whiten(network())
    optimizer = make(model)
    prong.Reparametrizer(model, optimizer, period=PERIOD)
    for _ in range(EPOCHS):
        for x, y in loader():
            optimizer.zero_grad()
            for a, b in zip(x.chunk(halves), y.chunk(halves), strict=True):
                ((model(a) - b).square().mean() / halves).backward()
            optimizer.step()
    return prong.fold(model)


def check_same(found: nn.Module, expected: nn.Module) -> None:
    for a, b in zip(found.parameters(), expected.parameters(), strict=True):
        assert torch.allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.filterwarnings("ignore:.*(does not have many workers|log_every|litlogger|treespec).*")
def test_lightning() -> None:
    pl = pytest.importorskip("lightning.pytorch")
    callback = example("Lightning")["Whitening"](period=PERIOD)

    class Module(pl.LightningModule):  # type: ignore[name-defined,misc]
        def __init__(self) -> None:
            super().__init__()
            self.net = prong.whiten(network())

        def training_step(self, batch: Any, _: int) -> torch.Tensor:
            x, y = batch
            return (self.net(x) - y).square().mean()

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return sgd(self)

    module = Module()
    trainer = pl.Trainer(max_epochs=EPOCHS, callbacks=[callback], accelerator="cpu", **QUIET)
    trainer.fit(module, loader())
    assert callback.natural.steps == EPOCHS * 8
    check_same(prong.fold(module.net), plain_loop())


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_accelerate() -> None:
    accelerate = pytest.importorskip("accelerate")
    train = example("Accelerate")["train"]
    accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=2)
    model = network()
    found, natural = train(
        accelerator,
        model,
        sgd(model),
        loader(16),
        lambda net, batch: (net(batch[0]) - batch[1]).square().mean(),
        EPOCHS,
        period=PERIOD,
    )
    assert natural.steps == EPOCHS * 8
    assert natural.mode == "preconditioned"  # the wrapper hands every step on as it is
    check_same(found, plain_loop(halves=2))


class Supervised(nn.Module):
    """A model as the Trainer wants it: it gives its loss."""

    def __init__(self) -> None:
        super().__init__()
        self.net = prong.whiten(network())

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        outputs = self.net(x)
        return {"loss": (outputs - labels).square().mean(), "logits": outputs}


class Examples(torch.utils.data.Dataset[Any]):
    """The data as the Trainer wants them: by name."""

    def __len__(self) -> int:
        return len(X)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"x": X[index], "labels": Y[index]}


def adamw(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=0.01)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.filterwarnings("ignore:.*pin_memory.*")
def test_transformers_trainer(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    callback = example("transformers' Trainer")["Whitening"](period=PERIOD)

    class InOrder(transformers.Trainer):  # type: ignore[name-defined,misc]
        def _get_train_sampler(self, *_: Any) -> Any:
            return torch.utils.data.SequentialSampler(self.train_dataset)

    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path),
        num_train_epochs=EPOCHS,
        per_device_train_batch_size=32,
        max_grad_norm=0.0,
        lr_scheduler_type="constant",
        report_to=[],
        use_cpu=True,
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
    )
    model = Supervised()
    trainer = InOrder(
        model=model,
        args=arguments,
        train_dataset=Examples(),
        callbacks=[callback],
        optimizers=(adamw(model), None),
    )
    trainer.train()
    assert callback.natural.steps == EPOCHS * 8
    check_same(prong.fold(model.net), plain_loop(adamw))


def test_every_row_of_the_table_names_a_test_that_is_there() -> None:
    rows = re.findall(r"^\|.*\| `(test_\w+)` \|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    there = "\n".join(
        path.read_text(encoding="utf-8") for path in (PAGE.parents[1] / "tests/prong").glob("*.py")
    )
    assert len(rows) >= 30
    assert [name for name in rows if f"def {name}(" not in there] == []
