"""`prong variants`: makes the variants of the champion, judges them, and compares them with it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from pipelines.core.config import Params
from pipelines.core.errors import UserError
from pipelines.core.paths import Layout
from pipelines.provenance import keys
from pipelines.variants.approximated import NotMade, VariantBase, base_of
from pipelines.variants.bars import draw
from pipelines.variants.build_variant import build
from pipelines.variants.kinds import KINDS
from pipelines.variants.release_variant import VariantRelease, release
from pipelines.variants.side_by_side import NOT_MADE, VariantRow, champions_row, row_of, write

JSON, PICTURE = "variants.json", "variants.png"
"""Of the folder of reports."""


def make_variants(
    layout: Layout,
    params: Params,
    model: str,
    kinds: Sequence[str] = KINDS,
    say: Callable[[str], None] = lambda line: None,
) -> list[VariantRow]:
    """Make, register and judge the variants of a champion; those that pass go live.

    Each is a version of a registered model of its own, such as `digits-int8`. What was made,
    registered or judged before, from the same champion, is not done again. The comparison is
    written to `reports/variants.json` and `reports/variants.png`.

    Args:
        layout: The checkout, whose gate split decides.
        params: Its parameters.
        model: The registered model's name.
        kinds: Of `KINDS`.
        say: Called with each line of progress.

    Returns:
        The champion's row, then one per kind; that of a kind that could not be made says why.

    Raises:
        UserError: If a kind is unknown, there is no champion, it was not released, the checkout has
            no gate split, or the store cannot be used.
        LostKey: If the release key is not here.
        Failed: If others moved a champion meanwhile.
        Unavailable: If the store does not answer.
    """
    unknown = [kind for kind in kinds if kind not in KINDS]
    if unknown:
        raise UserError(f"--only {unknown[0]!r}: allowed: {', '.join(KINDS)}")
    base = base_of(layout, params, model)
    keys.signing_key(layout)  # of a champion that was released: never a new one
    rows: list[VariantRow] = []
    judged: list[VariantRelease] = []
    for kind in dict.fromkeys(kinds):
        say(f"{base.name_of(kind)} …")
        row, released = _one(base, kind)
        rows.append(row)
        judged += [] if released is None else [released]
    found = [champions_row(base, judged), *rows]
    write(found, layout.reports / JSON)
    draw(found, layout.reports / PICTURE)
    return found


def _one(base: VariantBase, kind: str) -> tuple[VariantRow, VariantRelease | None]:
    try:
        built = build(base, kind)
    except NotMade as error:
        return VariantRow(base.name_of(kind), NOT_MADE, None, str(error)), None
    released = release(base, built)
    return row_of(released, built.how), released
