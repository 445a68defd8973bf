"""Compiles the kernel for CPUs with AddressSanitizer and UBSan and runs it on NumPy arrays, whose ends are guarded.

    python tests/native_under_sanitizers.py COMPILER SOURCE FOLDER

No torch: its own memory has no guards, and would hide a read beyond an end.
"""

from __future__ import annotations

import importlib.util
import itertools
import os
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import numpy as np

FLAGS = ["-std=gnu++17", "-O1", "-g", "-fPIC", "-shared", "-fno-exceptions", "-fno-rtti"]
SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]


def build(compiler: str, source: Path, folder: Path) -> Path:
    """The extension with the sanitizers in it. OpenMP is left out: its threads are not what is looked at."""
    library = folder / "_native.abi3.so"
    includes = f"-I{sysconfig.get_path('include')}"
    subprocess.run([compiler, *FLAGS, *SANITIZERS, includes, str(source), "-o", str(library)], check=True)
    return library


def run_again_with_guards(compiler: str, library: Path) -> int:
    """This script once more, with the sanitizer's allocator in place of the usual one."""
    runtime = [
        subprocess.run(
            [compiler, f"-print-file-name={name}"], capture_output=True, text=True, check=True
        ).stdout.strip()
        for name in ("libasan.so", "libubsan.so")
    ]
    # Python frees little at its end, which is no leak of the kernel.
    settings = {"LD_PRELOAD": " ".join(runtime), "ASAN_OPTIONS": "detect_leaks=0", "PYTHONMALLOC": "malloc"}
    return subprocess.run([sys.executable, __file__, "--run", str(library)], env={**os.environ, **settings}).returncode


def exercise(library: Path) -> int:
    """Calls with every instruction set, format, divergence and kind of label, on sizes around those of a vector."""
    specification = importlib.util.spec_from_file_location("_native", library)
    assert specification is not None
    assert specification.loader is not None
    native: Any = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(native)
    rng = np.random.default_rng(0)
    calls = 0
    sizes = [(0, 7), (3, 1), (1, 3), (2, 4), (3, 15), (2, 16), (3, 17), (2, 33), (1, 1029)]
    for name, half, passes, divergence, (rows, classes), soft in itertools.product(
        native.instruction_sets(), (0, 1), (1, 2, 3, native.MAX_PASSES), range(4), sizes, (0, 1)
    ):
        logits = rng.normal(size=(passes, rows, classes)).astype(np.float32)
        logits[..., 0] = -np.inf if classes > 1 else 0
        if half:
            logits = (logits.view(np.uint32) >> 16).astype(np.uint16)
        labels = rng.integers(classes > 1, classes, size=rows)
        target = rng.random((rows, classes)).astype(np.float32)
        keep, weight = rng.random(rows) < 0.7, rng.random(classes).astype(np.float32)
        kept = np.empty((rows, 3 * passes + 2), dtype=np.float32)
        task, distance = np.empty(rows, dtype=np.float32), np.empty(rows, dtype=np.float32)
        gradient = np.empty_like(logits)
        dense = rows * classes, rows, 0, classes
        at = (
            (kept.ctypes.data, 0),
            (kept.ctypes.data, gradient.ctypes.data),
            (0, gradient.ctypes.data),
            (0, logits.ctypes.data),
        )
        for smoothing, (state, out) in itertools.product((0.0, 0.1), at):
            wrong = native.rows(
                name, 1, half, passes, divergence, 2**passes - 1, smoothing, (1, rows, classes), logits.ctypes.data,
                (rows * classes, 0, classes),
                (*((0, target.ctypes.data) if soft else (labels.ctypes.data, 0)), keep.ctypes.data, weight.ctypes.data),
                state, (task.ctypes.data, distance.ctypes.data), (0.5, 0.1), (out, *dense),
            )  # fmt: skip
            assert wrong == -1
            calls += 1
    print(f"{calls} calls without an error")
    return 0


def main() -> int:
    """Build and run, or run."""
    if sys.argv[1] == "--run":
        return exercise(Path(sys.argv[2]))
    compiler, source, folder = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    return run_again_with_guards(compiler, build(compiler, source, folder))


if __name__ == "__main__":
    sys.exit(main())
