"""The paths of a checkout."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pipelines.core.errors import UserError

HOME = ".prong/home"
"""File in a run's work tree: names the checkout whose stores the work tree shares."""


@dataclass(frozen=True)
class Layout:
    """The paths of one checkout; the names match `dvc.yaml`.

    Attributes:
        root: The directory that holds `dvc.yaml` and `params.yaml`.
    """

    root: Path

    @classmethod
    def find(cls, start: Path | None = None) -> Layout:
        """Return the layout of the checkout that contains `start` (default: the working directory).

        Raises:
            UserError: If neither `start` nor a directory above it is a checkout.
        """
        here = (start or Path.cwd()).resolve()
        for folder in (here, *here.parents):
            if (folder / "dvc.yaml").is_file() and (folder / "params.yaml").is_file():
                return cls(folder)
        raise UserError(
            f"{here}: no dvc.yaml and params.yaml here or in a directory above; "
            "run prong inside a project, or make one: prong init"
        )

    @property
    def home(self) -> Path:
        """The checkout whose stores are used: this one, or the one of this work tree."""
        try:
            return Path((self.root / HOME).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return self.root

    @property
    def params(self) -> Path:
        """The settings, `params.yaml`."""
        return self.root / "params.yaml"

    @property
    def downloads(self) -> Path:
        """Verified downloads, kept between runs."""
        return self.home / "data/downloads"

    @property
    def added(self) -> Path:
        """Images added to the sources, version by version."""
        return self.root / "data/added"

    @property
    def prepared(self) -> Path:
        """Output of `prepare`."""
        return self.root / "data/prepared"

    @property
    def trainings(self) -> Path:
        """Trainings in progress, with their checkpoints; DVC deletes nothing here."""
        return self.root / ".prong/trainings"

    @property
    def trained(self) -> Path:
        """Output of `train`: network.json and network.safetensors."""
        return self.root / "models/trained"

    @property
    def onnx(self) -> Path:
        """Output of `export`."""
        return self.root / "models/model.onnx"

    @property
    def triton(self) -> Path:
        """Output of `export`: a model repository for Triton, with the model as version 1."""
        return self.root / "models/triton"

    @property
    def weights(self) -> Path:
        """Output of `export`: the plain network's weights, for trainings that start from it."""
        return self.root / "models/weights.safetensors"

    @property
    def drift(self) -> Path:
        """Output of `export`: scores how far inputs lie from the training data; may be empty."""
        return self.root / "models/drift.onnx"

    @property
    def reports(self) -> Path:
        """Metrics, plots and the HTML report."""
        return self.root / "reports"

    @property
    def state(self) -> Path:
        """The embedded stores of MLflow and Prefect; never in git or DVC."""
        return self.home / ".prong"
