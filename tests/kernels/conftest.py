"""What all tests of kernels need."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Triton's interpreter is made of NumPy, which tells of infinities."""
    with np.errstate(all="ignore"):
        yield
