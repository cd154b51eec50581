"""Commands about registered versions.

Heavy imports are inside the commands, so that help and usage errors appear at once.
"""

from __future__ import annotations

import json
import sys
from typing import Annotated

import typer

from pipelines.cli.shared_arguments import AsJson, Name, Number
from pipelines.core.errors import Failed
from pipelines.core.text import clean, shown

LONGEST_REASON = 1000
"""Characters of a reason."""


def models(name: Name = None, as_json: AsJson = False) -> None:
    """List the versions in the registry with metrics, aliases and lineage."""
    from pipelines.cli.versions_table import show_versions
    from pipelines.core.environment import open_checkout
    from pipelines.registry.versions import list_versions
    from pipelines.release.transaction import repaired_state

    layout, params = open_checkout()
    repaired_state(layout, name or params.model_name)
    rows = list_versions(layout, name or params.model_name)
    if as_json:
        print(json.dumps([row.as_json() for row in rows], indent=2))
    else:
        show_versions(name or params.model_name, rows)


def gates(
    version: Annotated[int, typer.Argument(min=1, help="The version's number.")],
    name: Name = None,
    as_json: AsJson = False,
) -> None:
    """Run every gate on a version; exit code 1 if it may not become champion."""
    from pipelines.core.environment import open_checkout
    from pipelines.release.hold_to_gates import hold_to_gates, show

    layout, params = open_checkout()
    model = name or params.model_name
    findings = hold_to_gates(layout, params, model, version)
    if not show(model, version, findings, as_json=as_json):
        raise typer.Exit(1)


def promote(
    version: Annotated[
        str | None, typer.Argument(help="Number or alias; default: the challenger.")
    ] = None,
    name: Name = None,
) -> None:
    """Run the gates for a version and make it champion if all of them pass."""
    from dataclasses import replace

    from pipelines.core.environment import open_checkout
    from pipelines.registry.versions import number_of
    from pipelines.release.promote import promote
    from pipelines.release.transaction import repaired_state

    layout, params = open_checkout()
    if name:
        params = replace(params, registry=replace(params.registry, model=name))
    number = None
    if version is not None:
        named = repaired_state(layout, params.model_name).aliases
        number = number_of(params.model_name, named, version, asked="VERSION")
    decision = promote(layout, params, number, asked=True)
    for found in decision.findings:
        print(shown(f"{found.gate:<12} {found.verdict:<8} {found.reason}"))
    said = f"{params.model_name} v{decision.version}"
    if decision.promoted:
        before = "none" if decision.held_against is None else f"v{decision.held_against}"
        print(f"{said} is champion now (before: {before})")
    elif decision.champion == decision.version:
        print(f"{said} is champion already")
    else:
        stays = "none" if decision.champion is None else f"v{decision.champion}"
        raise Failed(f"{said} was not promoted: {decision.reason}; the champion is still {stays}")


def rollback(
    to: Annotated[
        str | None, typer.Option(help="Number or alias; default: the alias previous.")
    ] = None,
    reason: Annotated[str, typer.Option(help="The reason, for the history.")] = "",
    name: Name = None,
) -> None:
    """Make an earlier champion live again, after its file was loaded and queried."""
    from pipelines.core.environment import open_model
    from pipelines.release.promote import rollback

    layout, model = open_model(name)
    done = rollback(layout, model, to, clean(reason, LONGEST_REASON))
    before = "none" if done.replaced is None else f"v{done.replaced}"
    further = "" if done.previous is None else f"; previous is v{done.previous}"
    print(f"{done.model} v{done.version} is champion again (before: {before}){further}")


def history(name: Name = None, as_json: AsJson = False) -> None:
    """Show which version was live when, why and by whom; exit code 1 if it was tampered with."""
    from pipelines.core.environment import open_model
    from pipelines.registry.history import show
    from pipelines.registry.state import unsigned
    from pipelines.registry.versions import require_model
    from pipelines.release.transaction import repaired_state

    layout, model = open_model(name)
    if name:
        require_model(layout, name)
    state = repaired_state(layout, model)
    found = state.history
    damage = [*found.damage, *([unsigned(state)] if state.unsigned else [])]
    if as_json:
        entries = [entry.as_json() for entry in found.entries]
        print(json.dumps({"entries": entries, "damage": damage}))
    else:
        show(model, found)
    if found.damage:
        raise Failed(
            f"{model}: the history was tampered with: {'; '.join(found.damage)}; "
            "`prong repair` mends what can be mended"
        )
    if damage:
        raise Failed("; ".join(damage))


def compare(
    first: Annotated[str, typer.Argument(metavar="A", help="Version, by number or alias.")],
    second: Annotated[str, typer.Argument(metavar="B", help="The other one.")],
    everything: Annotated[bool, typer.Option("--all", help="Also show what is equal.")] = False,
    name: Name = None,
    as_json: AsJson = False,
) -> None:
    """Show how two versions differ: parameters, data, metrics, gates, environment, classes."""
    from pipelines.core.environment import open_checkout
    from pipelines.registry.compare import compare, show

    layout, params = open_checkout()
    found = compare(layout, name or params.model_name, first, second)
    if as_json:
        print(json.dumps(found.as_json(), indent=2))
    else:
        show(found, everything=everything)


def collect(
    dry: Annotated[bool, typer.Option("--dry-run", help="Only list; remove nothing.")] = False,
    keep: Annotated[int, typer.Option(min=0, help="Newest versions to keep in any case.")] = 5,
    name: Name = None,
) -> None:
    """Remove old versions and cached stage outputs that are no longer needed."""
    from pipelines.core.environment import open_checkout
    from pipelines.release import gc as garbage

    layout, params = open_checkout()
    garbage.collect(
        layout,
        name or params.model_name,
        keep=keep,
        dry=dry,
        report=lambda line: print(shown(line)),
    )


def sign(version: Number, name: Name = None) -> None:
    """Sign a released version again with the current key, after a change of keys."""
    from pipelines.core.environment import open_model
    from pipelines.release.sign import sign_version

    layout, model = open_model(name)
    signed, key = sign_version(layout, model, version)
    print(f"{signed}: signed by key {key[:16]}")


def keys(
    rotate: Annotated[
        bool, typer.Option("--rotate", help="Make a new key; sign with it what is live.")
    ] = False,
    distrust: Annotated[
        str | None, typer.Option(metavar="KEY", help="Trust a retired key no more.")
    ] = None,
    name: Name = None,
) -> None:
    """List the keys that this checkout trusts, or change its own."""
    from pipelines.core.environment import open_model
    from pipelines.provenance import keys as found

    layout, model = open_model(name)
    if rotate:
        from pipelines.release.sign import rotate as change

        old, new = change(layout, model)
        print(f"signs now {new[:16]} (before: {old[:16] or 'lost'}, still trusted)")
        return
    if distrust is not None:
        print(f"{found.distrust(layout, distrust)[:16]} is trusted no more")
        return
    signs = ""
    if found.has_key(layout):
        signs = found.fingerprint(found.public_of(found.signing_key(layout)))
    for public in found.trusted_keys(layout):
        key = found.fingerprint(public)
        print(f"{key[:16]}  {'signs' if key == signs else 'trusted'}")
    if not signs:
        print("no key signs here: the first release makes one")


def repair(
    begin_anew: Annotated[
        bool,
        typer.Option("--begin-anew", help="Give up what of the history cannot be put back."),
    ] = False,
    name: Name = None,
    as_json: AsJson = False,
) -> None:
    """Mend aliases, intents, history and lost files; exit code 1 if something cannot be."""
    from dataclasses import asdict

    from pipelines.core.environment import open_model
    from pipelines.registry.memory import recall
    from pipelines.registry.versions import require_model
    from pipelines.release.repair import repair as mend
    from pipelines.release.repair import show

    layout, model = open_model(name)
    if name and not recall(layout, name).entries:
        require_model(layout, name)
    found = mend(layout, model, begin_anew=begin_anew)
    if as_json:
        print(json.dumps([asdict(one) for one in found], indent=2))
        good = all(one.mended for one in found)
    else:
        good = show(model, found)
    if not good:
        raise typer.Exit(1)


def migrate(
    as_is: Annotated[
        bool,
        typer.Option("--as-is", help="Take over the champion though it does not pass the gates."),
    ] = False,
    name: Name = None,
) -> None:
    """Take over a registry made before statements were signed; its champion stays live."""
    from dataclasses import replace

    from pipelines.core.environment import open_checkout
    from pipelines.release.migrate import migrate as take_over

    layout, params = open_checkout()
    if name:
        params = replace(params, registry=replace(params.registry, model=name))
    live = take_over(layout, params, as_is=as_is, say=lambda line: print(shown(line)))
    said = "no version" if live is None else f"v{live}"
    print(f"{params.model_name}: {said} is champion, by a signed history from now on")


def lineage(version: Number, name: Name = None, as_json: AsJson = False) -> None:
    """Trace a version's bytes back to commit, data, parameters, environment and run."""
    from dataclasses import asdict

    from pipelines.core.environment import open_checkout
    from pipelines.registry.versions import find_version
    from pipelines.release.audit import Verdict, show, walk

    layout, params = open_checkout()
    found = find_version(layout, name or params.model_name, version)
    links = walk(layout, found)
    if as_json:
        print(json.dumps([asdict(link) for link in links], indent=2))
    else:
        show(found, links)
    if any(link.verdict is Verdict.BROKEN for link in links):
        raise typer.Exit(1)


def rebuild(
    version: Number,
    name: Name = None,
    keep: Annotated[bool, typer.Option("--keep", help="Keep the work tree.")] = False,
    as_json: AsJson = False,
) -> None:
    """Make a version again in a new work tree; report whether bytes or figures agree."""
    from pipelines.core.environment import open_checkout
    from pipelines.registry.versions import find_version
    from pipelines.release.rebuild import as_json as json_of
    from pipelines.release.rebuild import lines, rebuild
    from pipelines.systems.processes import exit_on_sigterm

    exit_on_sigterm()
    layout, params = open_checkout()
    found = find_version(layout, name or params.model_name, version)
    progress = sys.stderr if as_json else sys.stdout
    done = rebuild(layout, found, keep=keep, say=lambda line: print(shown(line), file=progress))
    print(json_of(done) if as_json else "\n".join(map(shown, lines(found, done))))
    if not done.agrees:
        raise typer.Exit(1)
