"""Whether the API reference has every public name; `mkdocs build` calls this file as a hook."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PAGE = "reference.md"
SOURCE = ROOT / "src" / "rdrop"
HOSTS = [*(SOURCE / "integrations").glob("[a-z]*.py"), *(SOURCE / f"{name}.py" for name in ("jax", "keras", "paddle"))]


def public_names() -> Iterator[str]:
    """The names in `__all__` of the package and of each host, as they are called where they are defined."""
    for path in [SOURCE / "__init__.py", *HOSTS]:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        module = ".".join(path.relative_to(SOURCE.parent).with_suffix("").parts).removesuffix(".__init__")
        imported = {
            alias.asname or alias.name: f"{node.module}.{alias.name}"
            for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom)
            for alias in node.names
        }
        for node in tree.body:
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
                yield from (imported.get(name, f"{module}.{name}") for name in ast.literal_eval(node.value))


def on_post_page(output: str, page: Any, config: Any) -> str:
    """Refuses a reference that lacks a name; called by mkdocs.

    Raises:
        PluginError: It lacks some.
    """
    del config
    from mkdocs.exceptions import PluginError

    if page.file.src_uri == PAGE:
        missing = sorted({name for name in public_names() if f'id="{name}"' not in output})
        if missing:
            raise PluginError(f"{PAGE} lacks {', '.join(missing)}")
    return output
