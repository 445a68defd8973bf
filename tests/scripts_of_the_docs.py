"""The programs in `scripts/` that write pages, as modules."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parents[1]


def script(name: str) -> ModuleType:
    """A file of scripts/ as a module."""
    called = f"script_{name}"  # apart from modules of the tests
    spec = importlib.util.spec_from_file_location(called, ROOT / "scripts" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[called] = module  # a dataclass looks its module up
    sys.path.insert(0, str(ROOT / "scripts"))  # as Python and mkdocs do it
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(ROOT / "scripts"))
    return module
