from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModel, BertConfig, BertModel
from transformers.utils import logging

from rdrop.errors import UserError
from rdrop.toolkit.pretrained import apply_dropout, from_pretrained, load_weights, quiet_loading


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model, stored with 16 bits."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "hidden_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "intermediate_size": 8,
    }
    model = BertModel(BertConfig(vocab_size=16, max_position_embeddings=8, **sizes))
    folder = tmp_path_factory.mktemp("model")
    model.bfloat16().save_pretrained(folder)
    return folder


def test_a_configuration_comes_from_a_folder_with_options(folder: Path) -> None:
    config = from_pretrained(AutoConfig, str(folder), num_labels=7)
    assert (config.model_type, config.num_labels) == ("bert", 7)


def test_weights_are_float32_whatever_they_were_stored_as(folder: Path) -> None:
    model = load_weights(AutoModel, str(folder))
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert {
        parameter.dtype for parameter in load_weights(AutoModel, str(folder), dtype=torch.float64).parameters()
    } == {torch.float64}


def test_weights_in_a_pickle_are_not_loaded(folder: Path, tmp_path: Path) -> None:
    class Harm:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(tmp_path / "harm"),)

    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    torch.save({"weight": Harm()}, tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"model\.name: AutoModel cannot load .*safetensors"):
        load_weights(AutoModel, str(tmp_path))
    assert not (tmp_path / "harm").exists()


def test_code_that_lies_beside_a_model_is_not_run(folder: Path, tmp_path: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    own = {"model_type": "own", "auto_map": {"AutoConfig": "own.OwnConfig", "AutoModel": "own.OwnModel"}}
    (tmp_path / "config.json").write_text(json.dumps(config | own))
    (tmp_path / "own.py").write_text(f"import os\nos.mkdir({str(tmp_path / 'harm')!r})\n")
    with pytest.raises(UserError, match=r"model\.name: AutoConfig cannot load"):
        from_pretrained(AutoConfig, str(tmp_path))
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize("name", ["./missing", "/nowhere/model", "models/bert/missing", ".\\missing"])
def test_a_folder_that_is_not_there_is_not_asked_from_the_hub(name: str) -> None:
    class Hub:
        @staticmethod
        def from_pretrained(*_: Any, **__: Any) -> None:
            raise AssertionError("the hub was asked")

    with pytest.raises(UserError, match=r"model\.name: there is no folder") as caught:
        from_pretrained(Hub, name)
    assert name in str(caught.value)


def test_what_a_library_raises_becomes_one_line(tmp_path: Path) -> None:
    class AutoThing:
        @staticmethod
        def from_pretrained(*_: Any, **__: Any) -> None:
            raise ConnectionError("no route to the hub\nand a lot more")

    with pytest.raises(UserError) as caught:
        from_pretrained(AutoThing, "someone/model")
    assert str(caught.value) == (
        "model.name: AutoThing cannot load 'someone/model': ConnectionError: no route to the hub. Expected a folder "
        "with a model of transformers, or a name on the Hugging Face hub and a connection to it."
    )
    with pytest.raises(UserError, match="AutoModel cannot load"):
        load_weights(AutoModel, str(tmp_path))


def test_nothing_is_printed_and_the_settings_come_back(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    load_weights(AutoModel, str(folder))
    assert capfd.readouterr() == ("", "")
    with quiet_loading():
        assert not logging.is_progress_bar_enabled()
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before


def test_every_dropout_layer_gets_the_rate() -> None:
    model = nn.Sequential(nn.Dropout(0.1), nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5)))
    assert apply_dropout(model, 0.3) is model
    assert [layer.p for layer in model.modules() if isinstance(layer, nn.Dropout)] == [0.3, 0.3]
    apply_dropout(model, None)
    assert [layer.p for layer in model.modules() if isinstance(layer, nn.Dropout)] == [0.3, 0.3]


def test_a_rate_for_a_model_without_dropout_is_refused() -> None:
    model = nn.Linear(2, 2)
    assert apply_dropout(model, 0.0) is apply_dropout(model, None) is model
    with pytest.raises(UserError, match=r"model\.dropout is 0\.3, but Linear has no dropout layer; write null"):
        apply_dropout(model, 0.3)
