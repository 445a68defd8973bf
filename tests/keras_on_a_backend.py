"""Tests, examples and numbers of `rdrop.keras` on one backend; a program of its own, as a process has one backend."""

from __future__ import annotations

import os
import pickle
import sys
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent


def main(backend: str, answers: Path) -> int:
    """Runs the tests and the page, and writes what the table of cases gives; returns the status of the tests."""
    os.environ["KERAS_BACKEND"] = backend
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"  # programs that run once are compiled fast
    os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=2"

    import keras

    from rdrop import keras as ours

    assert keras.backend.backend() == backend
    assert "torch" not in sys.modules, "rdrop.keras needs torch"

    import pytest

    from cases import CASES
    from keras_implementation import keras_answer

    answers.write_bytes(pickle.dumps([keras_answer(case.logits, case.labels, case.options) for case in CASES]))
    tests = [HERE / "test_keras.py", ROOT / "docs" / "hosts" / "keras.md", ours.__file__]
    return pytest.main(["-q", "-p", "no:cacheprovider", "--rootdir", str(ROOT), *map(str, tests)])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[2])))
