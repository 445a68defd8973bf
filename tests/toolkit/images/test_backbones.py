from __future__ import annotations

import importlib
import subprocess
import sys
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rdrop import explain_passes, forward_passes, stochastic_layers
from rdrop.toolkit.images import backbones
from rdrop.toolkit.model_source import load_example

OURS = ["seresnet50d", "seresnext50e_32x4d"]


def conv(kernel: int, inputs: int, outputs: int, groups: int = 1) -> tuple[int, int]:
    """Weights of a convolution without bias, and of the BatchNorm after it; of the latter, also the running ones."""
    return kernel * kernel * inputs // groups * outputs + 2 * outputs, 2 * outputs


def counted_by_hand(stem: int, width: int, groups: int = 1, scales: int = 1, se: bool = True) -> tuple[int, int]:
    """Parameters, and running statistics, of a network of 3, 4, 6 and 3 blocks, whose first has `width` channels."""
    parts = [conv(3, 3, stem), conv(3, stem, stem), conv(3, stem, 2 * stem)]
    before = 2 * stem
    for stage, blocks in enumerate((3, 4, 6, 3)):
        inner, outer = width * 2**stage, 256 * 2**stage
        for block in range(blocks):
            split = inner // scales
            parts += [conv(1, before, inner), conv(1, inner, outer)]
            parts += [conv(3, split, split, groups)] * max(1, scales - 1)  # one of the splits is passed on as it is
            parts += [conv(1, before, outer)] if block == 0 else []
            parts += [(2 * outer * (outer // 16) + outer // 16 + outer, 0)] if se else []
            before = outer
    parts.append((2048 * 1000 + 1000, 0))
    return sum(weights for weights, _ in parts), sum(running for _, running in parts)


@pytest.mark.parametrize(
    ("name", "by_hand", "published"),
    [
        ("res2net50d", counted_by_hand(stem=32, width=104, scales=4, se=False), 25.78),
        ("seresnet50d", counted_by_hand(stem=32, width=64), 28.16),
        ("seresnext50e_32x4d", counted_by_hand(stem=64, width=128, groups=32), 27.76),
    ],
)
def test_counts_are_those_of_the_published_architectures(name: str, by_hand: tuple[int, int], published: float) -> None:
    with torch.device("meta"):
        model = timm.create_model(name)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    running = sum(buffer.numel() for key, buffer in model.named_buffers() if "running" in key)
    assert (parameters, running) == by_hand
    assert round((parameters + running) / 1e6, 2) == published
    assert f"{name}`" in (backbones.__doc__ or "")
    assert f"{parameters:,} | {parameters + running:,}" in (backbones.__doc__ or "")


def norm(layer: nn.Module, x: Tensor) -> Tensor:
    """BatchNorm in training, which keeps the answers far from each other where the running one would not."""
    assert isinstance(layer, nn.BatchNorm2d)
    return F.batch_norm(x, None, None, layer.weight, layer.bias, training=True, eps=1e-5)


def written_out(model: nn.Module, x: Tensor, groups: int) -> Tensor:
    """The network in plain formulas, from the weights of `model`."""
    layers = dict(model.named_modules())
    weights = dict(model.named_parameters())
    for convolution, batch_norm, stride in (
        ("conv1.0", "conv1.1", 2),
        ("conv1.3", "conv1.4", 1),
        ("conv1.6", "bn1", 1),
    ):
        x = F.conv2d(x, weights[f"{convolution}.weight"], stride=stride, padding=1)
        x = norm(layers[batch_norm], x).relu()
    x = F.max_pool2d(x, 3, stride=2, padding=1)
    for stage, blocks in enumerate((3, 4, 6, 3), start=1):
        for block in range(blocks):
            at = f"layer{stage}.{block}"
            stride = 2 if stage > 1 and block == 0 else 1
            y = norm(layers[f"{at}.bn1"], F.conv2d(x, weights[f"{at}.conv1.weight"])).relu()
            y = F.conv2d(y, weights[f"{at}.conv2.weight"], stride=stride, padding=1, groups=groups)
            y = norm(layers[f"{at}.bn2"], y).relu()
            y = norm(layers[f"{at}.bn3"], F.conv2d(y, weights[f"{at}.conv3.weight"]))
            squeezed = F.linear(y.mean((2, 3)), weights[f"{at}.se.fc1.weight"][..., 0, 0], weights[f"{at}.se.fc1.bias"])
            scale = F.linear(squeezed.relu(), weights[f"{at}.se.fc2.weight"][..., 0, 0], weights[f"{at}.se.fc2.bias"])
            if block == 0:
                x = F.avg_pool2d(x, 2) if stride == 2 else x
                x = norm(layers[f"{at}.downsample.2"], F.conv2d(x, weights[f"{at}.downsample.1.weight"]))
            x = (x + y * scale.sigmoid()[..., None, None]).relu()
    return F.linear(x.mean((2, 3)), weights["fc.weight"], weights["fc.bias"])


@pytest.mark.parametrize(("name", "groups"), [("seresnet50d", 1), ("seresnext50e_32x4d", 32)])
def test_the_answers_are_those_of_the_written_out_network(name: str, groups: int) -> None:
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=7).double()
    with torch.no_grad():
        for layer in model.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.weight.uniform_(0.7, 1.3)
                layer.bias.uniform_(-0.3, 0.3)
        images = torch.randn(2, 3, 64, 64, dtype=torch.float64)
        answers = model(images)
        torch.testing.assert_close(answers, written_out(model, images, groups), rtol=1e-9, atol=1e-9)
    assert answers.std(0).min() > 1e-3


@pytest.mark.parametrize(("name", "stem"), [("seresnet50d", 64), ("seresnext50e_32x4d", 128)])
def test_features_of_all_stages(name: str, stem: int) -> None:
    model: Any = timm.create_model(f"{name}.untrained", features_only=True, in_chans=1)
    assert model.feature_info.channels() == [stem, 256, 512, 1024, 2048]
    assert model.feature_info.reduction() == [2, 4, 8, 16, 32]
    with torch.no_grad():
        shapes = [tuple(stage.shape) for stage in model.eval()(torch.zeros(2, 1, 64, 64))]
    assert shapes == [(2, stem, 32, 32), (2, 256, 16, 16), (2, 512, 8, 8), (2, 1024, 4, 4), (2, 2048, 2, 2)]


@pytest.mark.parametrize("name", OURS)
def test_dropout_before_the_classifier_is_active_and_all_weights_learn(name: str) -> None:
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=4, in_chans=1, drop_rate=0.3, zero_init_last=False)
    found = [(layer.name, layer.kind, layer.rate, layer.active) for layer in stochastic_layers(model)]
    assert found == [("drop_rate", "functional dropout", 0.3, True)]
    images = torch.randn(3, 1, 32, 32)
    plan = explain_passes(model, images)
    assert (plan.strategy, round(plan.cost["shared"], 2)) == ("shared", 1.0)
    logits = forward_passes(model, images)
    assert logits.shape == (2, 3, 4)
    assert not torch.allclose(logits[0], logits[1])
    F.cross_entropy(logits.flatten(0, 1), torch.tensor([0, 1, 2] * 2)).backward()  # type: ignore[no-untyped-call]
    still = [key for key, weight in model.named_parameters() if weight.grad is None or not weight.grad.any()]
    assert not still


@pytest.mark.parametrize("name", OURS)
def test_stochastic_depth(name: str) -> None:
    with torch.device("meta"):
        model = timm.create_model(name, drop_path_rate=0.1)
    rates = [layer.rate for layer in stochastic_layers(model) if layer.kind == "stochastic depth"]
    assert rates == pytest.approx([0.1 * block / 15 for block in range(1, 16)])


@pytest.mark.parametrize("name", OURS)
def test_configuration_and_pretrained(name: str) -> None:
    example = load_example(f"timm:{name}", batch_size=1)
    assert example.args[0].shape == (1, 3, 224, 224)
    configuration: Any = example.model.default_cfg
    assert configuration["architecture"] == name
    assert type(example.model.get_submodule(configuration["first_conv"])) is nn.Conv2d
    assert type(example.model.get_submodule(configuration["classifier"])) is nn.Linear
    with pytest.raises(RuntimeError, match="No pretrained weights"):
        timm.create_model(name, pretrained=True)


def test_names_that_timm_has_are_left_to_it() -> None:
    entry = timm.model_entrypoint("seresnet50d")
    importlib.reload(backbones)  # timm would warn of a name that is registered again
    assert timm.model_entrypoint("seresnet50d") is entry


def test_names_are_known_where_a_user_names_a_model() -> None:
    """In a new process, since the imports of this file would hide that one is missing there."""
    program = (
        "from rdrop.toolkit.model_source import load_example\n"
        "model = load_example('timm:seresnet50d', shape=(3, 32, 32)).model\n"
        "print(sum(weight.numel() for weight in model.parameters()))"
    )
    told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert told.stdout == "28107256\n", told.stderr
