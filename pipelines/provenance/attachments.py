"""What lies beside a registered model: its bill of materials, card, lock and parameters.

With a version's folder anyone can read what it is and make it again, without this project's
registry. Signature and statement come once the gates have passed (`release/let_through.py`).
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipelines.core.files import sha256_file, write_text
from pipelines.core.paths import Layout
from pipelines.data.prepared import load_card
from pipelines.provenance.bom import bill_of_materials
from pipelines.provenance.lineage import has_drift
from pipelines.provenance.model_card import model_card

BILL, CARD, LOCK, PARAMS = "bom.cdx.json", "card.md", "dvc.lock", "params.yaml"
WEIGHTS, DRIFT = "weights.safetensors", "drift.onnx"


def write_attachments(
    layout: Layout,
    model: Path,
    name: str,
    made_from: Mapping[str, str],
    figures: Mapping[str, Mapping[str, Any]],
) -> None:
    """Write beside a model file what belongs to it.

    Args:
        layout: The checkout that made it.
        model: The ONNX file, in the folder that is released.
        name: The registered model's name.
        made_from: What `pipelines.provenance.lineage.lineage` returned.
        figures: The reports `evaluation` and `verification`.

    Raises:
        UserError: If the data card cannot be used.
    """
    folder, sha256, card = model.parent, sha256_file(model), load_card(layout.prepared)
    files = []
    lock = layout.root / "dvc.lock"
    sources = {LOCK: lock, PARAMS: layout.params, WEIGHTS: layout.weights}
    if has_drift(layout):
        sources[DRIFT] = layout.drift
    for kept, source in sources.items():
        if source.is_file():
            shutil.copyfile(source, folder / kept)
            files.append((kept, sha256_file(folder / kept)))
    bill = bill_of_materials(name, sha256, card, made_from, figures, files)
    write_text(folder / BILL, bill)
    write_text(folder / CARD, model_card(name, sha256, card, made_from, figures))
