"""What the package loads, and what it is made of."""

from __future__ import annotations

import ast
import io
import json
import subprocess
import sys
import tokenize
from pathlib import Path

import pytest

import rdrop

SOURCE = Path(rdrop.__file__).parent
FAST = [
    SOURCE / "kernels" / name
    for name in ("fused.py", "native.py", "_native.cpp", "_row.h", "triton_rows.py", "triton_elements.py")
] + [SOURCE / "replay.py"]
# Each a file of its own, that says the same again.
OTHER_FRAMEWORKS = {SOURCE / "jax.py": 220, SOURCE / "paddle.py": 340, SOURCE / "keras.py": 420}
LIBRARY = [*SOURCE.glob("[a-z]*.py"), SOURCE / "__init__.py", *(SOURCE / "kernels").glob("*.py")]


def modules_after(program: str) -> set[str]:
    """Names in `sys.modules` of a fresh interpreter that ran the program."""
    code = f"import sys, json\n{program}\nprint(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout.splitlines()[-1]))


def foreign(modules: set[str], allowed: set[str]) -> set[str]:
    """Top-level packages outside the standard library and what is allowed."""
    return {name.split(".")[0] for name in modules} - set(sys.stdlib_module_names) - allowed


def test_importing_rdrop_loads_nothing_that_torch_does_not() -> None:
    """`import rdrop` alone loads not even torch; with every name used, nothing comes beside torch and ourselves."""
    assert "torch" not in modules_after("import rdrop")
    torch_alone = modules_after("import torch, torch.func, torch.utils.flop_counter")
    everything = modules_after("import rdrop\nfor name in rdrop.__all__: getattr(rdrop, name)")
    assert {"torch", "rdrop"} <= everything
    ours = {name for name in everything if name.split(".")[0] == "rdrop"}
    assert foreign(everything - ours, {name.split(".")[0] for name in torch_alone}) == set()
    # Importing costs at most 1.15 times what importing torch costs: hardly a module comes on top of torch's own.
    plain_torch = modules_after("import torch")
    assert len(everything - plain_torch) <= 0.15 * len(plain_torch)


def test_that_check_can_fail() -> None:
    torch_alone = modules_after("import torch")
    loaded = modules_after("import rdrop, torch, pydantic")
    assert "pydantic" in foreign(loaded, {name.split(".")[0] for name in torch_alone} | {"rdrop"})


def test_the_library_can_be_read_in_an_afternoon() -> None:
    """What there is to know; what is fast computes the same again, and each part of it can be read alone."""
    assert sum(lines_of_code(path) for path in LIBRARY if path not in [*FAST, *OTHER_FRAMEWORKS]) < 2200
    assert all(lines_of_code(path) < limit for path, limit in OTHER_FRAMEWORKS.items())
    assert all(len(path.read_text().splitlines()) < 500 for path in FAST)


def lines_of_code(path: Path) -> int:
    """Lines that hold code: no comments, docstrings or blank lines."""
    text = path.read_text()
    prose: set[int] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            prose.update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    blank = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
    code: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in blank:
            code.update(range(token.start[0], token.end[0] + 1))
    return len(code - prose)


def test_every_public_name_is_there_and_listed_once() -> None:
    assert sorted(rdrop.__all__) == sorted(set(rdrop.__all__))
    for name in rdrop.__all__:
        assert getattr(rdrop, name) is not None
    assert dir(rdrop) == rdrop.__all__
    with pytest.raises(AttributeError, match="module 'rdrop' has no attribute 'rdrop_los'; it has ConsistencyGap"):
        rdrop.rdrop_los  # noqa: B018


def test_type_checkers_see_what_is_loaded_lazily() -> None:
    tree = ast.parse((SOURCE / "__init__.py").read_text())
    seen = {
        alias.asname or alias.name
        for block in tree.body
        if isinstance(block, ast.If)
        for statement in block.body
        if isinstance(statement, ast.ImportFrom)
        for alias in statement.names
    }
    assert seen == set(rdrop.__all__)


def test_every_public_name_is_documented() -> None:
    for name in rdrop.__all__:
        documented = getattr(rdrop, name).__doc__
        assert documented, name
        assert (
            name.endswith("Warning")
            or ">>>" in documented
            or name in {"RDropOutput", "PassPlan", "ConsistencyGap", "StochasticLayer", "schedule"}
        ), name
