from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import (
    AutoImageProcessor,
    AutoModelForImageClassification,
    CLIPImageProcessor,
    ConvNextImageProcessor,
    ResNetConfig,
    ResNetForImageClassification,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
)

from pictures import STAGES, picture
from rdrop import stochastic_layers
from rdrop.errors import UserError
from rdrop.toolkit.images.models import ImageNetwork, TimmClassifier, restore_network, save_network
from rdrop.toolkit.images.transforms import InputFormat

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SMALL = InputFormat((32, 32))
VIT = ViTConfig(
    hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=16, patch_size=8
)


def network(name: str, **changes: Any) -> ImageNetwork:
    settings: dict[str, Any] = {"library": "auto", "pretrained": False, "dropout": None, "drop_path": None}
    settings |= changes
    return ImageNetwork(name, **settings)


def saved_vit(folder: Path, processor: Any = None) -> Path:
    """A model of transformers on disk, with the classes of somebody else."""
    torch.manual_seed(0)
    ViTForImageClassification(VIT).save_pretrained(folder)
    (processor or ViTImageProcessor(size={"height": 16, "width": 16})).save_pretrained(folder)
    return folder


def answers(model: nn.Module, form: InputFormat) -> Tensor:
    images = torch.stack([form.evaluation()(picture(label, 0)) for label in range(3)])
    with torch.no_grad():
        logits: Tensor = model.eval()(images)["logits"]
    return logits


def weights_equal(first: nn.Module, second: nn.Module) -> bool:
    return all(map(torch.equal, first.state_dict().values(), second.state_dict().values()))


def test_a_network_of_timm_answers_logits_and_loss() -> None:
    model = network("test_resnet").build(STAGES, SMALL)
    assert isinstance(model, TimmClassifier)
    images, labels = torch.randn(5, 3, 32, 32), torch.tensor([0, 1, 2, 3, 0])
    assert model(images).keys() == {"logits"}
    output = model.eval()(images, labels=labels)
    assert output["logits"].shape == (5, 4)
    assert output["loss"] == cross_entropy(output["logits"], labels)


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_convnext", "resnet10t"])
def test_the_dropout_of_the_recipe_is_that_of_every_layer(name: str) -> None:
    rates = {layer.rate for layer in stochastic_layers(network(name, dropout=0.25).build(STAGES, SMALL))}
    assert rates == {0.25}
    none = [layer.rate for layer in stochastic_layers(network(name).build(STAGES, SMALL))]
    assert set(none) <= {0.0}


def test_drop_path_is_stochastic_depth() -> None:
    layers = stochastic_layers(network("test_vit", drop_path=0.2).build(STAGES, SMALL))
    assert max(layer.rate for layer in layers if layer.kind == "stochastic depth") == pytest.approx(0.2)


def test_the_backbones_of_the_plant_project_are_known() -> None:
    assert network("seresnext50e_32x4d").input_format(image_size=256).size == (256, 256)


def test_timm_formats_and_what_replaces_them() -> None:
    own = network("resnet10t").input_format()
    assert own == InputFormat((176, 176), IMAGENET_MEAN, IMAGENET_STD, "bicubic", 0.875, "center")
    changed = network("resnet10t").input_format(image_size=64, crop_pct=1.0, crop_mode="squash")
    assert (changed.size, changed.crop_pct, changed.crop_mode, changed.mean) == ((64, 64), 1.0, "squash", own.mean)


def test_a_network_of_fixed_size_is_built_for_another_one() -> None:
    form = network("test_vit").input_format(image_size=32)
    assert answers(network("test_vit").build(STAGES, form), form).shape == (3, 4)


@pytest.mark.parametrize(("name", "hint"), [("resnet10d", "did you mean resnet"), ("no such thing", "list_models")])
def test_an_unknown_network_of_timm(name: str, hint: str) -> None:
    with pytest.raises(UserError, match=f"model.name: timm has no model '{name}'; .*{hint}"):
        network(name, library="timm").input_format()


def test_what_a_network_cannot_do_is_a_message() -> None:
    with pytest.raises(UserError, match=r"model.image_size: test_vit does not take images of 8 x 8 pixels: "):
        network("test_vit").build(STAGES, InputFormat((8, 8)))
    with pytest.raises(UserError, match=r"model.name: timm cannot build 'vgg11': TypeError"):
        network("vgg11", drop_path=0.1).build(STAGES, SMALL)
    with pytest.raises(
        UserError, match=r"model.name: timm cannot build 'seresnet50d': .* model.pretrained: false starts"
    ):
        network("seresnet50d", pretrained=True).build(STAGES, SMALL)


@pytest.mark.parametrize("drop_path", [None, 0.1])
def test_timm_save_and_restore(tmp_path: Path, drop_path: float | None) -> None:
    settings = network("test_vit", dropout=0.3, drop_path=drop_path)
    form = InputFormat((32, 32), (0.4, 0.5, 0.6), (0.2, 0.3, 0.4), "bilinear", 0.9, "squash")
    model = settings.build(STAGES, form)
    save_network(model, tmp_path / "m", STAGES, form)
    assert sorted(path.name for path in (tmp_path / "m").iterdir()) == ["config.json", "model.safetensors"]
    again, names, read = restore_network(tmp_path / "m", settings)
    assert (names, read) == (list(STAGES), form)
    assert weights_equal(again, model)
    assert torch.equal(answers(again, read), answers(model, form))
    assert stochastic_layers(again) == stochastic_layers(model)
    # The same folder is one that timm itself reads.
    assert timm.create_model(f"local-dir:{tmp_path / 'm'}", pretrained=True).num_classes == 4


def test_a_folder_of_timm_is_where_another_training_begins(tmp_path: Path) -> None:
    source = network("test_resnet").build(STAGES, SMALL)
    save_network(source, tmp_path / "m", STAGES, SMALL)
    tuned = network(str(tmp_path / "m"), pretrained=True).build(["a", "b"], SMALL)
    fresh = network(str(tmp_path / "m")).build(["a", "b"], SMALL)
    key = "network.conv1.0.weight"
    assert torch.equal(tuned.state_dict()[key], source.state_dict()[key])
    assert not torch.equal(fresh.state_dict()[key], source.state_dict()[key])
    assert answers(tuned, SMALL).shape == (3, 2)
    (tmp_path / "m" / "model.safetensors").rename(tmp_path / "m" / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"has no model\.safetensors; expected a folder with the weights"):
        network(str(tmp_path / "m"), pretrained=True).build(["a", "b"], SMALL)


def test_transformers_pretrained_and_from_its_configuration(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = saved_vit(tmp_path / "vit")
    source = AutoModelForImageClassification.from_pretrained(folder)
    capfd.readouterr()
    settings = network(str(folder), pretrained=True, dropout=0.2)
    form = settings.input_format()
    assert form == InputFormat((16, 16), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), "bilinear", 1.0, "squash")
    tuned: Any = settings.build(STAGES, form)
    key = next(name for name in tuned.state_dict() if name.endswith("fc1.weight") or name.endswith("dense.weight"))
    assert torch.equal(tuned.state_dict()[key], source.state_dict()[key])
    assert tuned.config.id2label == dict(enumerate(STAGES))
    assert {layer.rate for layer in stochastic_layers(tuned)} == {0.2}
    fresh = network(str(folder)).build(STAGES, InputFormat((24, 24)))
    assert not torch.equal(fresh.state_dict()[key], source.state_dict()[key])
    assert answers(fresh, InputFormat((24, 24))).shape == (3, 4)
    assert capfd.readouterr() == ("", "")
    with pytest.raises(UserError, match=r"model.image_size is 24, but the weights of .* are for images of 16 pixels"):
        settings.build(STAGES, InputFormat((24, 24)))


def test_transformers_save_and_restore(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    settings = network(str(saved_vit(tmp_path / "vit")), pretrained=True, dropout=0.2)
    capfd.readouterr()
    form = settings.input_format(crop_pct=0.9)
    model = settings.build(STAGES, form)
    save_network(model, tmp_path / "m", STAGES, form)
    again, names, read = restore_network(tmp_path / "m", settings)
    assert (names, read.size, read.crop_mode) == (list(STAGES), (16, 16), "squash")
    assert weights_equal(again, model)
    assert torch.equal(answers(again, read), answers(model, form))
    assert capfd.readouterr() == ("", "")
    # Whoever opens the folder with transformers sees the same pixels.
    auto: Any = AutoImageProcessor
    processor = auto.from_pretrained(tmp_path / "m")
    seen = processor(picture(1, 0, (40, 30)), return_tensors="pt")["pixel_values"][0]
    torch.testing.assert_close(seen, form.evaluation()(picture(1, 0, (40, 30))), atol=0.05, rtol=0)


PROCESSORS = {
    "squash": (ViTImageProcessor(size={"height": 16, "width": 16}), (16, 16), 1.0, "squash"),
    "center": (
        CLIPImageProcessor(size={"shortest_edge": 20}, crop_size={"height": 16, "width": 16}),
        (16, 16),
        0.8,
        "center",
    ),
    "convnext": (ConvNextImageProcessor(size={"shortest_edge": 16}, crop_pct=0.875), (16, 16), 0.875, "center"),
}


@pytest.mark.parametrize("kind", PROCESSORS)
def test_processors_of_transformers_in_the_words_of_timm(tmp_path: Path, kind: str) -> None:
    processor, size, share, mode = PROCESSORS[kind]
    settings = network(str(saved_vit(tmp_path / "vit", processor)), pretrained=True)
    form = settings.input_format()
    assert (form.size, form.crop_mode) == (size, mode)
    assert form.crop_pct == pytest.approx(share)
    image = picture(2, 0, (40, 30))
    seen = processor(image, return_tensors="pt")["pixel_values"][0]
    torch.testing.assert_close(seen, form.evaluation()(image), atol=0.05, rtol=0)
    save_network(settings.build(STAGES, form), tmp_path / "m", STAGES, form)
    assert torch.equal(restore_network(tmp_path / "m", settings)[2].evaluation()(image), form.evaluation()(image))


@pytest.mark.parametrize(("size", "resized"), [(224, 256), (224, 354), (224, 400), (224, 439), (16, 16)])
def test_a_resized_side_survives_the_way_through_a_share(tmp_path: Path, size: int, resized: int) -> None:
    # 224 / (224 / 354) is less than 354 in floating point, and timm rounds down.
    crop = {"height": size, "width": size}
    saved_vit(tmp_path, CLIPImageProcessor(size={"shortest_edge": resized}, crop_size=crop))
    form = network(str(tmp_path), pretrained=True).input_format()
    assert math.floor(size / form.crop_pct) == resized


def test_what_transformers_cannot_do_is_a_message(tmp_path: Path) -> None:
    folder = str(saved_vit(tmp_path / "vit"))
    with pytest.raises(UserError, match=r"model.drop_path is 0\.1, but .* has no stochastic depth; write null"):
        network(folder, drop_path=0.1).build(STAGES, InputFormat((16, 16)))
    with pytest.raises(UserError, match=r"model.crop_mode: got border"):
        network(folder, pretrained=True).input_format(crop_mode="border")
    ResNetForImageClassification(
        ResNetConfig(embedding_size=8, hidden_sizes=[8], depths=[1], layer_type="basic")
    ).save_pretrained(tmp_path / "resnet")
    with pytest.raises(
        UserError, match=r"model.dropout is 0\.1, but ResNetForImageClassification has no dropout layer"
    ):
        network(str(tmp_path / "resnet"), dropout=0.1).build(STAGES, SMALL)
    with pytest.raises(UserError, match=r"model.name: there is no folder \./missing"):
        network("./missing").input_format()


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda folder: (folder / "model.safetensors").unlink(), r"has no model\.safetensors"),
        (lambda folder: (folder / "config.json").write_text("{"), r"config\.json cannot be read: JSONDecodeError"),
        (lambda folder: (folder / "config.json").write_text("[]"), r"config\.json holds no configuration"),
        (lambda folder: (folder / "config.json").write_text("{}"), r"config\.json does not name the classes"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"x" * 20), r"model.name: timm cannot build"),
    ],
)
def test_a_folder_that_holds_no_such_network(tmp_path: Path, break_it: Any, message: str) -> None:
    settings = network("test_resnet")
    save_network(settings.build(STAGES, SMALL), tmp_path / "m", STAGES, SMALL)
    break_it(tmp_path / "m")
    with pytest.raises(UserError, match=message):
        restore_network(tmp_path / "m", settings)
