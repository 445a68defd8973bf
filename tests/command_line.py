"""The command `rdrop`, run in this process or in one of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from rdrop.cli import main

COMMAND = (sys.executable, "-m", "rdrop")


def rdrop(*words: str | Path) -> int:
    """Exit code of the command in this process."""
    with pytest.raises(SystemExit) as caught:
        main([str(word) for word in words])
    assert caught.value.code is None or isinstance(caught.value.code, int)
    return caught.value.code or 0


def start_rdrop(folder: Path, *words: str | Path, **environment: str) -> subprocess.Popen[str]:
    """The command in a process and a folder of its own, without a terminal."""
    return subprocess.Popen(
        [*COMMAND, *map(str, words)],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
