"""The templates of the pages, compiled once."""

from __future__ import annotations

from functools import cache
from importlib.resources import files

import jinja2


def resource(name: str) -> str:
    """A text file that lies beside this module in the package.

    Args:
        name: Its name, for example `page.css`.

    Returns:
        Its text.

    >>> "color-scheme" in resource("page.css")
    True
    """
    return files("rdrop.report").joinpath(name).read_text(encoding="utf-8")


@cache
def template(name: str) -> jinja2.Template:
    """A compiled template; every value in it is escaped unless it is `Markup`.

    Args:
        name: Its file name, for example `page.html.jinja`; it may import the others by theirs.

    Returns:
        The template, which refuses to render a name that it was not given.

    >>> template("parts.html.jinja").module.swatch(None)
    Markup('')
    """
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(resource),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(name)
