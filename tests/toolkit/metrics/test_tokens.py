from __future__ import annotations

import pytest

from rdrop.errors import UserError
from rdrop.toolkit.metrics.tokens import mean_nll


def test_the_mean_is_over_tokens() -> None:
    assert mean_nll(7.5, 3) == 2.5


def test_no_token_is_told_to_the_user() -> None:
    with pytest.raises(UserError, match="no target tokens to score"):
        mean_nll(0.0, 0)
