"""The blocks of a model, one after the other: the places where `branch_at` can cut it."""

from __future__ import annotations

import re

from torch import nn

_LISTS = (nn.Sequential, nn.ModuleList)


def blocks(model: nn.Module) -> list[str]:
    """Names of the blocks of a model, in the order in which it lists them: usually from input to output.

    A block is a module in a list (`nn.Sequential`, `nn.ModuleList`, also in lists of lists) that has parameters. Blocks
    inside blocks are not named. A list of single layers without further structure counts each of them that has
    parameters. Lists beside the trunk (several heads) count too, so look before you cut.

    Args:
        model: Any module.

    Returns:
        Dotted names, for `model.get_submodule`; empty if the model has no list.

    Examples:
        >>> import rdrop
        >>> from torch import nn
        >>> model = nn.Transformer(8, 2, 2, 2, batch_first=True)
        >>> rdrop.blocks(model)
        ['encoder.layers.0', 'encoder.layers.1', 'decoder.layers.0', 'decoder.layers.1']
    """
    found: list[str] = []

    def walk(module: nn.Module, path: str, *, listed: bool) -> None:
        if listed and not isinstance(module, _LISTS):
            if any(True for _ in module.parameters()):
                found.append(path)
            return
        for name, child in module.named_children():
            walk(child, f"{path}.{name}".lstrip("."), listed=listed or isinstance(module, _LISTS))

    walk(model, "", listed=False)
    return found


def block(model: nn.Module, index: int | str) -> str:
    """The name of a block, by its place: -1 is the last; a name is returned as it is, unless it is a negative number.

    Raises:
        ValueError: The model has fewer blocks.

    Examples:
        >>> from torch import nn
        >>> block(nn.Transformer(8, 2, 2, 2, batch_first=True), -1)
        'decoder.layers.1'
    """
    if isinstance(index, str):
        if not re.fullmatch(r"-\d+", index):
            return index
        index = int(index)
    names = blocks(model)
    if not -len(names) <= index < len(names):
        raise ValueError(
            f"branch_at is {index}, but {type(model).__name__} has {len(names)} blocks ({', '.join(names) or 'none'}); "
            "name a module of it instead"
        )
    return names[index]
