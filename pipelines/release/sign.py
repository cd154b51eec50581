"""Sign again what was released: after a change of keys."""

from __future__ import annotations

from pipelines.core.errors import UserError
from pipelines.core.paths import Layout
from pipelines.provenance import keys
from pipelines.registry import history
from pipelines.registry import versions as registry
from pipelines.registry.state import require_sound
from pipelines.registry.version_files import required_statement
from pipelines.release.let_through import sign_beside
from pipelines.release.transaction import transaction
from pipelines.release.upload import stored_sha256
from pipelines.systems.scratch import scratch


def sign_version(layout: Layout, model: str, text: str) -> tuple[str, str]:
    """Sign the statement of a released version with the present key, and its file beside it.

    Only what a trusted key signed before is signed again, and only the bytes that it named: there
    is no way to sign over a mismatch.

    Args:
        layout: The checkout, for its key.
        model: The registered model's name.
        text: The version's number, or an alias.

    Returns:
        The version's name, and the key's fingerprint.

    Raises:
        NotReleased: If no trusted key let the version through.
        UserError: If the store's file is not the one that was released.
        Unavailable: If the registry does not answer.
    """
    version = registry.find_version(layout, model, text)
    name = f"{model} version {version.number}"
    with transaction(layout, model) as held:
        state = held.state()
        require_sound(state)
        statement = required_statement(layout, held.client, state, version.number)
        found = stored_sha256(layout, version)
        if found != statement.sha256:
            raise UserError(
                f"{name}: not signed: the registry's file has sha256 {found or 'none'}, released "
                f"was {statement.sha256}; `prong repair` puts back what is still here"
            )
        signed = statement.signed(held.key())
        with scratch(layout.state, "sign") as folder:
            sign_beside(layout, version, signed, folder)
        held.write_statement(signed)
        last = state.history.last
        if last is not None and last.version == version.number and last.key != signed.key:
            said = f"signed by key {signed.key[:12]}, before by {last.key[:12]}"
            held.append(held.same(last, history.KEY_CHANGED, said))
    return name, signed.key


def rotate(layout: Layout, model: str) -> tuple[str, str]:
    """Make a new key, and sign with it what is live and what was live before.

    Args:
        layout: The checkout.
        model: The registered model's name.

    Returns:
        The fingerprints of the old key (empty if it was lost) and of the new one.

    Raises:
        UserError: If the key is not the checkout's own, or the history cannot be relied on.
        Unavailable: If the registry does not answer.
    """
    with transaction(layout, model, mend=False) as held:
        state = held.state()
        require_sound(state)
    old, new = keys.rotate(layout)
    for number in (state.live, state.previous):
        if number is not None:
            sign_version(layout, model, str(number))
    return old, new
