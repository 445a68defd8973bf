"""The page of hosts against features, written from the marks of the tests and nothing else: `python scripts/hosts.py`.

A test that is marked `@pytest.mark.shows(host, feature)` shows that the feature works there. The host is a name,
several names, or `HOSTS`, those that tests/hosts.py trains with. With `refused=True` it shows that the feature is
refused, with a message that says so.
"""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
TESTS = ROOT / "tests"
PAGE = ROOT / "docs" / "hosts" / "index.md"

PAGES = {
    "torch": "distributed",
    "accelerate": "accelerate",
    "transformers": "transformers",
    "TRL": "trl",
    "PEFT": "peft",
    "sentence-transformers": "sentence-transformers",
    "Lightning": "lightning",
    "timm": "timm",
    "Keras": "keras",
    "PaddlePaddle": "paddle",
    "JAX": "jax",
}
FEATURES = {
    "contract": "the numbers and gradients of one table of cases, with every option",
    "steps": "every step is that of a program written by hand",
    "plain": "with one pass it is plain training",
    "evaluation": "evaluation and prediction make one pass and are untouched",
    "accumulation": "micro-batches take the step of the whole batch",
    "label smoothing": "label smoothing, in the task loss alone",
    "masks": "positions that do not count",
    "own loss": "a task loss of your own",
    "mixed precision": "mixed precision",
    "processes": "two processes take the steps of one",
    "sharded": "weights sharded over processes",
    "compiled": "compiled",
    "checkpointing": "activations computed again (checkpointing)",
    "BatchNorm": "running statistics move once",
    "log": "task loss and divergence are logged",
    "schedule": "alpha follows a course over the steps",
    "cheaper": "cheaper passes",
    "adapters": "adapters of PEFT",
    "pair": "two different networks, tied together",
    "resume": "stopped and resumed, it is as uninterrupted",
    "no effect": "passes that cannot differ are spoken of",
}
INTRODUCTION = """---
hide: [toc]
---

<style>.md-typeset table:not([class]) :is(th, td) { min-width: 0; padding: 0.4em 0.5em }</style>

# Where you train

Keep your trainer and your framework. Each host has a page with a complete example, and says what it does to the loss.

Every mark below is a test in this repository that runs with each change; the list under the table names them.
&#10003;: it works; &#10007;: it is refused, with a message that says what to do. No mark: no test shows it, which is
not to say that it fails.
"""
MARKS = {False: "&#10003;", True: "&#10007;"}


class Shown(NamedTuple):
    """What one test shows."""

    host: str
    feature: str
    refused: bool
    test: str


def contract_hosts() -> list[str]:
    """The names that tests/hosts.py has in `HOSTS`."""
    tree = ast.parse((TESTS / "hosts.py").read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.target.id == "HOSTS":
            return [ast.literal_eval(key) for key in node.value.keys]  # type: ignore[union-attr,arg-type]
    raise ValueError("tests/hosts.py has no dictionary HOSTS")


def shown() -> Iterator[Shown]:
    """What all marked tests show.

    Raises:
        ValueError: A mark names a host or a feature that the page does not have.
    """
    for path in sorted(TESTS.rglob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            for mark in node.decorator_list if isinstance(node, ast.FunctionDef) else []:
                if not (isinstance(mark, ast.Call) and ast.unparse(mark.func) == "pytest.mark.shows"):
                    continue
                first, *features = mark.args
                named = contract_hosts() if ast.unparse(first) == "HOSTS" else ast.literal_eval(first)
                refused = any(word.arg == "refused" for word in mark.keywords)
                for host in [named] if isinstance(named, str) else named:
                    for feature in map(ast.literal_eval, features):
                        if host not in PAGES or feature not in FEATURES:
                            raise ValueError(
                                f"{path.name}: {node.name} shows {feature!r} on {host!r}, which the page lacks"
                            )
                        yield Shown(host, feature, refused, f"{path.relative_to(ROOT)}::{node.name}")


def page() -> str:
    """The page in Markdown."""
    tests: dict[tuple[str, str], list[Shown]] = defaultdict(list)
    for each in shown():
        tests[each.host, each.feature].append(each)
    head = ["", *(f"[{host}]({name}.md)" for host, name in PAGES.items())]
    rows = [
        [text, *(MARKS[cell[0].refused] if (cell := tests.get((host, feature))) else "" for host in PAGES)]
        for feature, text in FEATURES.items()
    ]
    table = [f"| {' | '.join(row)} |" for row in (head, ["---", *[":-:"] * len(PAGES)], *rows)]
    lists = []
    for host in PAGES:
        lists += ["", f"## Tests of {host}", ""]
        for feature, text in FEATURES.items():
            names = ", ".join(f"`{each.test.removeprefix('tests/')}`" for each in tests.get((host, feature), []))
            lists += [f"- {text}: {names}"] if names else []
    return "\n".join([INTRODUCTION, *table, *lists, ""])


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(PAGE.relative_to(ROOT))
