"""Examples in docstrings, the README and the documentation are tests."""

from __future__ import annotations

from sybil import Sybil
from sybil.parsers.markdown import PythonCodeBlockParser, SkipParser
from sybil.parsers.rest import DocTestParser
from sybil.sybil import SybilCollection

pytest_collect_file = SybilCollection(
    [
        # A pattern without a folder reaches everything below the path.
        Sybil(parsers=[DocTestParser()], path="src", patterns=["*.py"]),
        Sybil(parsers=[PythonCodeBlockParser(), SkipParser()], patterns=["README.md"]),
        Sybil(parsers=[PythonCodeBlockParser(), SkipParser()], path="docs", patterns=["*.md"]),
    ]
).pytest()
