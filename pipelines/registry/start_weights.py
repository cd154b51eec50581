"""What `train.checkpoint_from` names: looked up in the registry, checked, and brought.

A version's folder holds the weights of its plain network beside the ONNX file. Their hash is part
of the lineage, which the signed statement repeats, so what is loaded is what was released.
"""

from __future__ import annotations

import re
from pathlib import Path

from pipelines.core.config import Params
from pipelines.core.errors import UserError
from pipelines.core.files import sha256_file
from pipelines.core.fingerprints import training_hash
from pipelines.core.paths import Layout
from pipelines.data.prepared import load_card
from pipelines.provenance.attachments import WEIGHTS
from pipelines.registry.state import ModelState, read_state, require_sound
from pipelines.registry.statements import Statement
from pipelines.registry.version_files import NotReleased, location, required_statement
from pipelines.registry.versions import LINEAGE, get_version
from pipelines.systems.mlflow import MlflowClient, answering, artifacts, connect
from pipelines.training.start_files import KEY, NoStart, Start, clear, parsed, put

_HASH = re.compile("[0-9a-f]{64}")


def bring(layout: Layout, params: Params) -> Start | NoStart | None:
    """Bring into `data/start` what the training is to start from; remove what is there otherwise.

    Where the champion itself came of these data, parameters and code, it is what that training
    started from: nothing has changed, so nothing is trained again.

    Args:
        layout: The checkout, whose stage prepare is up to date.
        params: Its parameters.

    Returns:
        What was brought; None if `train.checkpoint_from` is empty.

    Raises:
        UserError: If the version does not exist, was not released, or its weights were not kept or
            are not those that were released.
        Unavailable: If the registry does not answer.
    """
    asked = params.train.checkpoint_from
    if not asked:
        clear(layout.root)
        return None
    client, model = connect(layout), params.model_name
    with answering(layout):
        state = read_state(layout, client, model)
        if asked != "champion":
            number, sha256 = int(asked.removeprefix("v")), None
        elif state.live is None:
            require_sound(state)
            found = NoStart("champion")
            put(layout.root, found, None)
            return found
        else:
            number, sha256 = state.live, None
            made = get_version(client, model, number).under(LINEAGE)
            before = made.get("started_from", "")
            data_hash = load_card(layout.prepared).data_hash
            same = training_hash(data_hash, params, layout.root, before)
            if made.get("training_hash") == same:
                earlier = parsed(before)
                if earlier is None:
                    found = NoStart("champion")
                    put(layout.root, found, None)
                    return found
                number, sha256 = earlier
    return _put_version(layout, layout.root, client, state, asked, number, sha256)


def bring_again(layout: Layout, root: Path, model: str, asked: str, started_from: str) -> None:
    """Bring into another work tree what an earlier training started from.

    Args:
        layout: The checkout, whose registry is asked.
        root: The work tree.
        model: The registered model's name.
        asked: `train.checkpoint_from` of that training; nothing is done if it is empty.
        started_from: What its lineage says.

    Raises:
        UserError: If that version or its weights are gone, or no longer what they were.
        Unavailable: If the registry does not answer.
    """
    if not asked:
        return
    version = parsed(started_from)
    if version is None:
        put(root, NoStart("champion"), None)
        return
    client = connect(layout)
    with answering(layout):
        state = read_state(layout, client, model)
    _put_version(layout, root, client, state, asked, *version)


def _put_version(
    layout: Layout,
    root: Path,
    client: MlflowClient,
    state: ModelState,
    asked: str,
    number: int,
    sha256: str | None,
) -> Start:
    said = f"{KEY} = {asked!r}: {state.model} version {number}"
    with answering(layout):
        try:
            get_version(client, state.model, number)
            statement = required_statement(layout, client, state, number)
        except NotReleased as error:
            raise NotReleased(f"{KEY} = {asked!r}: {error}") from None
        except UserError as error:
            raise UserError(f"{KEY} = {asked!r}: {error}") from None
    if sha256 is not None and statement.sha256 != sha256:
        raise UserError(f"{said}: is another one by now: sha256 {statement.sha256}, not {sha256}")
    path, weights = _weights(layout, client, statement, said)
    start = Start(asked, number, statement.sha256, weights)
    put(root, start, path)
    return start


def released_weights(layout: Layout, statement: Statement) -> Path:
    """Return the file of a released version's plain weights, downloaded at most once and checked.

    Raises:
        UserError: If they were not kept, or are not those that were released.
        Unavailable: If the registry does not answer.
    """
    said = f"{statement.model} version {statement.version}"
    return _weights(layout, connect(layout), statement, said)[0]


def _weights(
    layout: Layout, client: MlflowClient, statement: Statement, said: str
) -> tuple[Path, str]:
    """Return the file of a version's weights, downloaded at most once, and its hash."""
    weights = statement.made_from.get("weights_sha256", "")
    if not _HASH.fullmatch(weights):
        raise UserError(
            f"{said}: its weights were not kept, it is of an earlier version of this program; "
            "train it again, or take another version"
        )
    path = layout.state / "cache" / f"{weights}.safetensors"
    if path.is_file() and sha256_file(path) == weights:
        return path, weights
    with answering(layout):
        version = get_version(client, statement.model, statement.version)
    found = artifacts.download(layout, location(layout, version), WEIGHTS, path)
    if found != weights:
        path.unlink()
        raise UserError(
            f"{said}: the registry's file of its weights is damaged or was exchanged: sha256 "
            f"{found}, released {weights}"
        )
    return path, weights
