"""Walk through nested inputs and outputs of a model: tuples, lists, mappings, dataclasses, and tensors as leaves."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

from torch import Size, Tensor
from torch.nn.utils.rnn import PackedSequence


@dataclass(frozen=True)
class NotBatched:
    """Marks an input whose first axis is not the batch, although it may have as many entries.

    Examples:
        >>> import torch, rdrop
        >>> from torch import nn
        >>> model = nn.TransformerDecoderLayer(8, 2, 16, dropout=0.1, batch_first=True)
        >>> x, mask = torch.ones(4, 4, 8), torch.ones(4, 4).tril().log()  # batch and length are both 4
        >>> rdrop.forward_passes(model, x, x, rdrop.NotBatched(mask), strategy="concat").shape
        torch.Size([2, 4, 4, 8])
    """

    tensor: Tensor


def map_leaves(function: Callable[[Any], Any], value: Any) -> Any:
    """The same structure with every leaf replaced; containers are copied, never changed."""
    if isinstance(value, NotBatched | PackedSequence | Size):
        return function(value)
    if isinstance(value, Mapping):
        items = {key: map_leaves(function, value[key]) for key in value}
        if type(value) is dict or not isinstance(value, MutableMapping):
            return type(value)(items)  # type: ignore[call-arg]
        copied: Any = copy.copy(value)
        for key, item in items.items():
            copied[key] = item
        return copied
    if isinstance(value, list | tuple):
        parts = [map_leaves(function, item) for item in value]
        return value._make(parts) if hasattr(value, "_make") else type(value)(parts)
    if is_dataclass(value) and not isinstance(value, type):
        copied = copy.copy(value)
        for field in fields(value):
            object.__setattr__(copied, field.name, map_leaves(function, getattr(value, field.name)))
        return copied
    return function(value)


def leaves(value: Any) -> list[Any]:
    """The leaves of a structure, in order."""
    found: list[Any] = []
    map_leaves(found.append, value)
    return found
