"""Examples in docstrings, the README and the documentation are tests; Triton is interpreted where there is no GPU."""

from __future__ import annotations

import os

import torch
from sybil import Sybil
from sybil.parsers.markdown import PythonCodeBlockParser, SkipParser
from sybil.parsers.rest import DocTestParser
from sybil.sybil import SybilCollection

if not torch.cuda.is_available():
    # Triton decides when it is imported whether its programs are compiled for a GPU, or interpreted.
    os.environ.setdefault("TRITON_INTERPRET", "1")

pytest_collect_file = SybilCollection(
    [
        # A pattern without a folder reaches everything below the path.
        Sybil(parsers=[DocTestParser()], path="src", patterns=["*.py"]),
        Sybil(parsers=[PythonCodeBlockParser(), SkipParser()], patterns=["README.md"]),
        Sybil(parsers=[PythonCodeBlockParser(), SkipParser()], path="docs", patterns=["*.md"]),
    ]
).pytest()
