"""`rdrop.toolkit.metrics` is imported for every task; what a single one needs must not come with it."""

from __future__ import annotations

import subprocess
import sys

PACKAGE = "rdrop.toolkit.metrics"


def loaded(modules: str, *libraries: str) -> set[str]:
    """Which of the libraries a fresh interpreter has loaded after the import of some modules."""
    program = f"import sys, {modules}; print(*sys.modules.keys() & {set(libraries)})"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_the_package_loads_no_library_of_a_single_family() -> None:
    assert loaded(PACKAGE, "torch", "sacrebleu", "rouge_score", "nltk", "seqeval", "json") == {"json"}


def test_each_library_comes_with_its_module() -> None:
    modules = ", ".join(f"{PACKAGE}.{family}" for family in ("translation", "summarization", "tagging"))
    assert loaded(modules, "sacrebleu", "rouge_score", "seqeval") == {"sacrebleu", "rouge_score", "seqeval"}
