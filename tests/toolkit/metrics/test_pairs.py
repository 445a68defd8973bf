from __future__ import annotations

import numpy as np
import pytest

from rdrop.errors import UserError
from rdrop.toolkit.metrics.pairs import require_pairs


def test_as_many_predictions_as_references_are_fine() -> None:
    require_pairs(["a"], np.zeros((1, 3)), "sentences")


def test_missing_predictions_are_counted() -> None:
    with pytest.raises(ValueError, match="got predictions for 1 of 2 sentences; expected one for each"):
        require_pairs(["a"], ["b", "c"], "sentences")


def test_an_empty_split_is_told_to_the_user() -> None:
    with pytest.raises(UserError, match="there are no documents to score: the split is empty"):
        require_pairs([], [], "documents")
