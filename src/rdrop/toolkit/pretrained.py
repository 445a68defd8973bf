"""Models, configurations and processors of transformers, from a hub's name or a local folder."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging

from rdrop.errors import UserError
from rdrop.stochastic import set_dropout, stochastic_layers


def from_pretrained(auto: Any, name: str, **options: Any) -> Any:
    """What an `Auto...` class of transformers loads, with safetensors and without remote code.

    Args:
        auto: A class with `from_pretrained`, for example `transformers.AutoTokenizer`.
        name: A folder, or a name on the hub.
        **options: Passed on.

    Raises:
        UserError: There is nothing of that name, or it is not what the class loads.
    """
    is_path = name.startswith((".", "/", "~")) or "\\" in name or name.count("/") > 1
    if is_path and not Path(name).is_dir():
        raise UserError(f"model.name: there is no folder {name}")
    try:
        with quiet_loading():
            return auto.from_pretrained(name, trust_remote_code=False, **options)
    except Exception as error:  # hub, network, files and configurations each raise their own
        reason = str(error).strip().partition("\n")[0].rstrip(".")
        raise UserError(
            f"model.name: {auto.__name__} cannot load {name!r}: {type(error).__name__}: {reason}. "
            "Expected a folder with a model of transformers, or a name on the Hugging Face hub and a connection to it."
        ) from error


def load_weights(auto: Any, name: str, **options: Any) -> nn.Module:
    """A pretrained model; its weights come from safetensors files alone, and are float32 however they were stored."""
    model: nn.Module = from_pretrained(auto, name, use_safetensors=True, **{"dtype": torch.float32, **options})
    return model


def save_with_tokenizer(model: Any, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Writes a folder that `transformers` reads: weights in safetensors, configuration, tokenizer.

    Args:
        model: A model of transformers.
        tokenizer: Its tokenizer.
        folder: Where to.
    """
    with quiet_loading():
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def saved_weights(auto: Any, folder: Path) -> nn.Module:
    """The model that `save_with_tokenizer` wrote.

    Args:
        auto: A class with `from_pretrained`.
        folder: The folder.

    Raises:
        UserError: It holds no such model.
    """
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder} holds no model: there is no config.json; expected the folder of a trained model")
    return load_weights(auto, str(folder))


@contextmanager
def quiet_loading() -> Iterator[None]:
    """Keeps the progress bars and reports of transformers off the terminal; a new head, for one, is no news here."""
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]


def apply_dropout(model: nn.Module, rate: float | None) -> nn.Module:
    """Sets every dropout rate of a model; None leaves them.

    Args:
        model: The model; it is changed and returned.
        rate: `model.dropout` of the recipe.

    Raises:
        UserError: A rate is wanted, and the model has no dropout.

    >>> apply_dropout(nn.Sequential(nn.Dropout(0.1)), 0.3)[0].p
    0.3
    """
    if rate is None:
        return model
    if not stochastic_layers(model):
        if rate == 0:
            return model
        raise UserError(
            f"model.dropout is {rate:g}, but {type(model).__name__} has no dropout layer; write null, or choose "
            "another model"
        )
    set_dropout(model, rate)
    return model
