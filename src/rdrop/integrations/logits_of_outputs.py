"""The logits among what a network returns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor


def logits_of(outputs: Any) -> Tensor:
    """The logits among a model's outputs.

    Args:
        outputs: A tensor, a tuple or list that starts with it, or a mapping with the key `logits`.

    Returns:
        The logits.

    Raises:
        ValueError: The mapping has no `logits`.
        TypeError: What should be the logits is no tensor.

    Examples:
        >>> import torch
        >>> logits_of({"logits": torch.zeros(2, 3)}).shape
        torch.Size([2, 3])
    """
    if isinstance(outputs, Mapping):
        if "logits" not in outputs:
            raise ValueError(
                f"expected `logits` in the model's output, and got {', '.join(outputs)}. Return them from "
                "forward; where a fused head never makes them, switch it off."
            )
        outputs = outputs["logits"]
    elif isinstance(outputs, tuple | list):
        outputs = outputs[0]
    if not isinstance(outputs, Tensor):
        raise TypeError(
            f"expected the model's logits as a tensor, and got {type(outputs).__name__}. Return a tensor, a "
            "tuple or list that starts with it, or a dictionary with the key `logits`."
        )
    return outputs
