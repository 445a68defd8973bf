"""Examples in docstrings, the README and the documentation are tests; Triton is interpreted where there is no GPU."""

from __future__ import annotations

import os
import sys
import tempfile
from typing import Any

import torch
from sybil import Sybil
from sybil.parsers.markdown import PythonCodeBlockParser, SkipParser
from sybil.parsers.rest import DocTestParser
from sybil.sybil import SybilCollection

# Keras has one backend in a process. On another it would still import TensorFlow, after which importing Paddle crashes.
if os.environ.setdefault("KERAS_BACKEND", "torch") != "tensorflow":
    sys.modules.setdefault("tensorflow", None)  # type: ignore[arg-type]

if not torch.cuda.is_available():
    # Triton decides when it is imported whether its programs are compiled for a GPU, or interpreted.
    os.environ.setdefault("TRITON_INTERPRET", "1")


def _forget_precision() -> None:
    """Accelerate remembers one for the rest of a process."""
    if (state := sys.modules.get("accelerate.state")) is not None:
        state.AcceleratorState._reset_state(reset_partial_state=True)


def _enter_folder(namespace: dict[str, Any]) -> None:
    """Examples of a page write their files into a folder of their own."""
    _forget_precision()  # of tests before
    namespace["__left__"], namespace["__folder__"] = os.getcwd(), tempfile.TemporaryDirectory()  # noqa: PTH109
    os.chdir(namespace["__folder__"].name)


def _leave_folder(namespace: dict[str, Any]) -> None:
    """Back to where the tests were started."""
    _forget_precision()
    os.chdir(namespace["__left__"])
    namespace["__folder__"].cleanup()


FOLDER: dict[str, Any] = {"setup": _enter_folder, "teardown": _leave_folder}

pytest_collect_file = SybilCollection(
    [
        # A pattern without a folder reaches everything below the path.
        Sybil(parsers=[DocTestParser()], path="src", patterns=["*.py"]),
        Sybil(parsers=[PythonCodeBlockParser(), SkipParser()], patterns=["README.md"], **FOLDER),
        Sybil(parsers=[PythonCodeBlockParser(), SkipParser()], path="docs", patterns=["*.md"], **FOLDER),
    ]
).pytest()
