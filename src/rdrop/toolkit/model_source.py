"""A model and one batch for it, from the words of a user: a timm name, a folder, or `module:function`."""

from __future__ import annotations

import importlib
import sys
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from rdrop.errors import UserError
from rdrop.toolkit.recipe_fields import nearest

TOKENS = 32
"""Length of the example for a model of text."""


@dataclass(frozen=True)
class Example:
    """A model with the inputs of one call."""

    model: nn.Module
    origin: Literal["timm", "transformers", "function"]
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] | None = None


def load_example(name: str, *, shape: tuple[int, ...] | None = None, batch_size: int = 2) -> Example:
    """Build the model that a user names, with random weights, and a batch that it accepts.

    Nothing is downloaded and no code from a model folder is run; `module:function` is the user's own code.

    Args:
        name: `resnet18` or `timm:resnet18`; a folder with the `config.json` of transformers; or a
            `module:function` that takes nothing and returns a model, or a model and a tuple or dict of its
            inputs.
        shape: Shape of one example without the batch axis. None: what the model says about itself. For a
            model of text, its length alone.
        batch_size: Rows of the batch (B).

    Raises:
        UserError: The name leads to no model, or there is no telling what the model takes.

    >>> example = load_example("timm:test_vit", batch_size=3)
    >>> example.args[0].shape
    torch.Size([3, 3, 160, 160])
    """
    if Path(name).is_dir():
        return _from_folder(Path(name), shape, batch_size)
    prefix, colon, rest = name.partition(":")
    if colon and prefix == "timm":
        return _from_timm(rest, shape, batch_size)
    if colon and rest.isidentifier():
        return _from_function(prefix, rest, shape, batch_size)
    if colon or "/" in name or "\\" in name:
        raise UserError(
            f"got {name!r}, which is no folder here; expected a timm name, a folder with a config.json, or "
            "module:function (nothing is downloaded)"
        )
    return _from_timm(name, shape, batch_size)


def _from_timm(name: str, shape: tuple[int, ...] | None, batch_size: int) -> Example:
    import timm

    import rdrop.toolkit.images.backbones  # noqa: F401  (adds its names to those of timm)

    # Only names of the registry: for others, such as hf-hub:..., timm would download a configuration.
    if not timm.is_model(name):
        known = timm.list_models()
        close = nearest(name.partition(".")[0], known)
        hint = f"did you mean {close}?" if close else "timm.list_models() has them all"
        raise UserError(f"timm has no model {name!r}; {hint}")
    try:
        model = timm.create_model(name, pretrained=False)
    except RuntimeError as error:
        raise UserError(f"timm cannot build {name!r}: {error}") from error
    configuration: Any = model.default_cfg
    return Example(model, "timm", (torch.randn(batch_size, *(shape or configuration["input_size"])),))


def _from_folder(folder: Path, shape: tuple[int, ...] | None, batch_size: int) -> Example:
    if not (folder / "config.json").is_file():
        raise UserError(f"the folder {folder} has no config.json; expected a model saved by transformers")
    import transformers

    auto: Any = transformers.AutoModel
    try:
        # Only the configuration is read: what is asked here does not depend on the weights.
        config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        cls: Any = getattr(transformers, next(iter(config.architectures or ()), ""), None)
        known = isinstance(cls, type) and issubclass(cls, transformers.PreTrainedModel)
        model = cls._from_config(config) if known else auto.from_config(config, trust_remote_code=False)
    except Exception as error:  # whatever is in a file of the user's, the answer is a message about that file
        raise UserError(
            f"transformers cannot build a model from {folder / 'config.json'}: {_first_line(error)}"
        ) from error
    return Example(model, "transformers", kwargs=_transformers_inputs(model, shape, batch_size))


def _transformers_inputs(model: Any, shape: tuple[int, ...] | None, batch_size: int) -> dict[str, Tensor]:
    """A batch from the configuration of a model; for other things than text and images a shape is needed."""
    config, name = model.config, str(model.main_input_name)
    if name == "input_ids":
        size = (batch_size, *(shape or (TOKENS,)))
        ids = torch.randint(0, config.get_text_config().vocab_size, size)
        return {name: ids, "decoder_input_ids": ids} if config.is_encoder_decoder else {name: ids}
    if shape is None and name == "pixel_values":
        side = getattr(config, "image_size", 224)
        shape = (getattr(config, "num_channels", 3), *((side, side) if isinstance(side, int) else side))
    if shape is None:
        raise UserError(
            f"{type(model).__name__} takes {name}, whose shape its configuration does not tell; "
            "pass that of one example, such as --input 80,3000"
        )
    return {name: torch.randn(batch_size, *shape)}


def _from_function(module: str, function: str, shape: tuple[int, ...] | None, batch_size: int) -> Example:
    name = f"{module}:{function}"
    with _current_folder_importable():
        try:
            found = getattr(importlib.import_module(module), function, None)
            made = found() if callable(found) else None
        except Exception as error:  # the user's own code can raise anything
            frame = traceback.extract_tb(error.__traceback__)[-1]
            place = f"{frame.filename}:{frame.lineno}"
            raise UserError(f"{name} raised {_first_line(error)} ({place})") from error
    if not callable(found):
        raise UserError(f"the module {module} has no function {function}")
    model, inputs = made if isinstance(made, tuple) and len(made) == 2 else (made, None)
    if not isinstance(model, nn.Module) or not isinstance(inputs, Tensor | tuple | dict | None):
        raise UserError(
            f"{name} returned {type(made).__name__}; expected a torch.nn.Module, or a module and a tuple or "
            "dict of its inputs"
        )
    if inputs is None and shape is None:
        raise UserError(
            f"{name} returned no inputs; pass the shape of one example, such as --input 3,224,224, or return "
            "the model and a tuple or dict of its inputs"
        )
    if inputs is None or isinstance(inputs, Tensor):
        inputs = (torch.randn(batch_size, *(shape or ())) if inputs is None else inputs,)
    if isinstance(inputs, dict):
        return Example(model, "function", kwargs=inputs)
    return Example(model, "function", inputs)


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"


@contextmanager
def _current_folder_importable() -> Iterator[None]:
    sys.path.insert(0, str(Path.cwd()))
    try:
        yield
    finally:
        sys.path.pop(0)
