"""What the templates of `prong init` differ in. Everything else is the same in every project."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Template:
    """One kind of project.

    Attributes:
        summary: What it trains, for the README and `--help`.
        asked: What `prong predict` is asked about, as the README shows it.
        notes: Paragraphs of the README: what to do before the first run, and after.
        settings: Edits of this project's own `params.yaml`, as `prong run --set` takes them.
        network: What its `network.py` is shipped as.
    """

    summary: str
    asked: str
    notes: tuple[str, ...]
    settings: tuple[str, ...] = ()
    network: str = "network.txt"


TEMPLATES: dict[str, Template] = {
    "digits": Template(
        summary="a classifier of handwritten digits, whose images come with the package",
        asked="data/prepared/sample.png",
        notes=("It runs as it is: 5,000 digits of MNIST, without a download.",),
    ),
    "images": Template(
        summary="a classifier of your own images",
        asked="data/prepared/sample.png",
        notes=(
            "Before the first run, put the images into `data/raw`, one folder for each class: "
            "`data/raw/cat/1.png`. Or name another folder, a tar, a zip or a CSV of paths and "
            "labels by `data.path`.",
            "Images become squares of 32 pixels; `data.size` sets another edge. For photographs, "
            "`train.flip: true` helps.",
        ),
        settings=("data.source=images", "data.path=data/raw"),
    ),
    "table": Template(
        summary="a model of a table",
        asked="data/prepared/sample.csv",
        notes=(
            "Before the first run, put the table into `data/raw/table.csv`. Its last column is "
            "predicted from the others; `data.target` names another one.",
        ),
        settings=(
            "data.source=table",
            "data.path=data/raw/table.csv",
            "train.network=mlp",
            "train.epochs=20",  # a table of hundreds of rows has few steps in an epoch
            "train.batch=32",
            "train.hidden=64",
        ),
        network="network-rows.txt",
    ),
    "autoencoder": Template(
        summary="an autoencoder of handwritten digits, whose images come with the package",
        asked="data/prepared/sample.png",
        notes=("It runs as it is: 5,000 digits of MNIST, without a download.",),
        settings=(
            "data.source=digits",
            "task.name=reconstruction",
            "train.network=autoencoder",
        ),
        network="network-again.txt",
    ),
}
