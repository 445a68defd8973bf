from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from rdrop.errors import UserError
from rdrop.toolkit.model_source import load_example


@pytest.mark.parametrize("name", ["test_vit", "timm:test_vit", "test_vit.r160_in1k"])
def test_timm_names(name: str) -> None:
    example = load_example(name, batch_size=3)
    assert (type(example.model).__name__, example.origin) == ("VisionTransformer", "timm")
    assert example.args[0].shape == (3, 3, 160, 160)
    assert load_example(name, shape=(3, 32, 32)).args[0].shape == (2, 3, 32, 32)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet81", r"timm has no model 'resnet81'; did you mean resnet"),
        ("timm:qqqqqqqq", r"timm has no model 'qqqqqqqq'; timm\.list_models\(\) has them all"),
        ("test_vit.nothing", r"timm cannot build 'test_vit\.nothing': Invalid pretrained tag"),
        # Names with which timm and transformers would ask the network.
        ("hf-hub:timm/test_vit", "nothing is downloaded"),
        ("timm:hf-hub:timm/test_vit", "timm has no model 'hf-hub:timm/test_vit'"),
        ("google-bert/bert-base-uncased", "nothing is downloaded"),
    ],
)
def test_names_that_lead_to_no_model(name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_example(name)


SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
BERT = {"model_type": "bert", "vocab_size": 50, **SMALL}
T5 = {"model_type": "t5", "d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2, "vocab_size": 9}
VIT = {"model_type": "vit", "image_size": 32, "patch_size": 16, "num_channels": 1, **SMALL}


def folder_with(path: Path, config: dict[str, object]) -> str:
    (path / "config.json").write_text(json.dumps(config))
    return str(path)


@pytest.mark.parametrize(
    ("config", "cls", "shapes"),
    [
        (BERT, "BertModel", {"input_ids": (3, 32)}),
        (
            BERT | {"architectures": ["BertForSequenceClassification"]},
            "BertForSequenceClassification",
            {"input_ids": (3, 32)},
        ),
        (BERT | {"architectures": ["NotThere"]}, "BertModel", {"input_ids": (3, 32)}),
        (T5, "T5Model", {"input_ids": (3, 32), "decoder_input_ids": (3, 32)}),
        (VIT, "ViTModel", {"pixel_values": (3, 1, 32, 32)}),
    ],
)
def test_folders_of_transformers(
    tmp_path: Path, config: dict[str, object], cls: str, shapes: dict[str, tuple[int, ...]]
) -> None:
    example = load_example(folder_with(tmp_path, config), batch_size=3)
    assert (type(example.model).__name__, example.origin) == (cls, "transformers")
    assert example.kwargs is not None
    assert {name: tuple(value.shape) for name, value in example.kwargs.items()} == shapes
    with torch.no_grad():
        example.model(**example.kwargs)


def test_the_length_of_a_text_can_be_given(tmp_path: Path) -> None:
    kwargs = load_example(folder_with(tmp_path, BERT), shape=(7,)).kwargs
    assert kwargs is not None
    assert kwargs["input_ids"].shape == (2, 7)
    assert int(kwargs["input_ids"].max()) < 50


def test_a_model_of_sound_needs_a_shape(tmp_path: Path) -> None:
    sound = {"model_type": "audio-spectrogram-transformer", **SMALL}
    with pytest.raises(UserError, match="takes input_values, whose shape its configuration does not tell"):
        load_example(folder_with(tmp_path, sound))


def test_a_folder_without_a_usable_configuration(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no config\.json"):
        load_example(str(tmp_path))
    for text in ("{", '{"model_type": "unheard-of"}', '{"model_type": "bert", "hidden_size": "x"}'):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(UserError, match=r"transformers cannot build a model from .*config\.json: \w+Error: \S"):
            load_example(str(tmp_path))


def test_code_in_a_model_folder_is_not_run(tmp_path: Path) -> None:
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    remote: dict[str, object] = {
        "model_type": "evil",
        "auto_map": {"AutoConfig": "evil.Config", "AutoModel": "evil.Model"},
    }
    with pytest.raises(UserError, match="transformers cannot build a model"):
        load_example(folder_with(tmp_path, remote))
    assert not (tmp_path / "ran").exists()


def write_module(folder: Path, monkeypatch: pytest.MonkeyPatch, body: str) -> str:
    """A module in the working folder, under a name that no other test has imported."""
    name = f"module_{len(sys.modules)}"
    (folder / f"{name}.py").write_text(f"from torch import nn, ones\n{body}\n")
    monkeypatch.chdir(folder)
    return name


@pytest.mark.parametrize(
    ("body", "shape", "args", "kwargs"),
    [
        ("def f(): return nn.Linear(4, 2)", (4,), [(2, 4)], {}),
        ("def f(): return nn.Linear(4, 2), ones(5, 4)", None, [(5, 4)], {}),
        ("def f(): return nn.Bilinear(4, 3, 2), (ones(5, 4), ones(5, 3))", None, [(5, 4), (5, 3)], {}),
        ("def f(): return nn.Linear(4, 2), {'input': ones(5, 4)}", None, [], {"input": (5, 4)}),
    ],
)
def test_functions(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    body: str,
    shape: tuple[int, ...] | None,
    args: list[tuple[int, ...]],
    kwargs: dict[str, tuple[int, ...]],
) -> None:
    path = list(sys.path)
    example = load_example(f"{write_module(tmp_path, monkeypatch, body)}:f", shape=shape)
    assert [tuple(value.shape) for value in example.args] == args
    given: dict[str, Tensor] = dict(example.kwargs or {})
    assert {name: tuple(value.shape) for name, value in given.items()} == kwargs
    assert sys.path == path


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("def f(): raise KeyError('lost')", r"module_\d+:f raised KeyError: 'lost' \(.*module_\d+\.py:2\)"),
        ("import not_installed_anywhere", "raised ModuleNotFoundError: No module named 'not_installed_anywhere'"),
        ("def f(:", "raised SyntaxError: "),
        ("", "has no function f"),
        ("f = 3", "has no function f"),
        ("def f(): return 3", "returned int; expected a torch.nn.Module, or a module and a tuple"),
        ("def f(): return nn.Linear(1, 1), 3", "returned tuple; expected a torch.nn.Module"),
        ("def f(): return nn.Linear(1, 1)", "returned no inputs; pass the shape of one example"),
    ],
)
def test_functions_with_faults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_example(f"{write_module(tmp_path, monkeypatch, body)}:f")


def test_a_module_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="nowhere_at_all:f raised ModuleNotFoundError"):
        load_example("nowhere_at_all:f")
