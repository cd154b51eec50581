"""How the project's HTML pages are made of templates: one style, and no file beside the page."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pipelines.core.text import shown

if TYPE_CHECKING:
    import jinja2


def templates(package: str = "pipelines.pipeline") -> jinja2.Environment:
    """Return the templates of a package; `style.html` is there in each.

    A value that is missing is an error, and text is shown so that it can change nothing on a page.

    Args:
        package: With a folder `templates`.
    """
    import jinja2  # only where a page is made

    packages = dict.fromkeys((package, "pipelines.pipeline"))
    return jinja2.Environment(
        loader=jinja2.ChoiceLoader([jinja2.PackageLoader(name) for name in packages]),
        autoescape=True,
        finalize=_plain,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _plain(value: Any) -> Any:
    """Return what a page shows of a value; the charts' own markup stays as it is."""
    return shown(value) if type(value) is str else value
