"""The backbones of the plant project for PaddlePaddle: residual networks with the stem and the shortcuts of `vd`.

One network with a few settings (`BACKBONES`) is what PaddleClas calls Res2Net50_vd_26w_4s, SE_ResNet50_vd and
SE_ResNeXt50_vd_32x4d, and two small ones for a first try without a GPU. `vd` means a stem of three 3x3 convolutions,
and average pooling before the convolution of a shortcut that halves the image (He et al. 2019, arXiv 1812.01187,
ResNet-D).

Every network has a `trunk`, which draws no random numbers, and a `head` of dropout and a linear layer: R-Drop needs the
trunk once, and the head once for each pass. PaddleClas has no dropout there.

Weights are files in the safetensors format, with the names that timm has for the same networks: what is trained here
can be loaded there, and the reverse. Where PaddleClas differs from timm, this follows timm: the residual branches start
at zero; and in the very first block of Res2Net, as in its authors' code, the parts are not added to each other and the
last one is average-pooled.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from paddle import Tensor, concat, nn
from paddle.nn import functional as F
from safetensors import safe_open
from safetensors.numpy import save_file


@dataclass(frozen=True)
class Backbone:
    """Settings of a network.

    Attributes:
        stem: Channels of the three first convolutions.
        blocks: Blocks of each stage.
        width: Channels of the 3x3 convolutions of the first stage; each stage doubles them.
        groups: Groups of these convolutions (ResNeXt).
        parts: Parts of a block, each convolved with the sum of itself and the one before (Res2Net); 1: undivided.
        squeeze: Whether the channels of a block are weighted by their means over the image (SE).
    """

    stem: tuple[int, int, int] = (32, 32, 64)
    blocks: tuple[int, ...] = (3, 4, 6, 3)
    width: int = 64
    groups: int = 1
    parts: int = 1
    squeeze: bool = False


BACKBONES = {
    "res2net50_vd": Backbone(width=26, parts=4),
    "se_resnet50_vd": Backbone(squeeze=True),
    "se_resnext50_vd": Backbone(stem=(64, 64, 128), width=128, groups=32, squeeze=True),
    "res2net14_vd": Backbone(blocks=(1, 1, 1, 1), width=26, parts=4),
    "se_resnet14_vd": Backbone(blocks=(1, 1, 1, 1), squeeze=True),
}


class Block(nn.Layer):
    """Convolutions 1x1, 3x3 and 1x1, and a shortcut past them."""

    def __init__(self, channels: int, outputs: int, width: int, stride: int, first: bool, backbone: Backbone) -> None:
        super().__init__()
        self.parts, self.first = backbone.parts, first
        self.conv1, self.bn1 = _conv(channels, width * self.parts, 1), nn.BatchNorm2D(width * self.parts)
        convolved = range(max(1, self.parts - 1))
        self.convs = nn.LayerList([_conv(width, width, 3, stride, backbone.groups) for _ in convolved])
        self.bns = nn.LayerList([nn.BatchNorm2D(width) for _ in convolved])
        self.pool = nn.AvgPool2D(3, stride, 1, exclusive=False) if first else nn.Identity()
        self.conv3 = _conv(width * self.parts, outputs, 1)
        self.bn3 = nn.BatchNorm2D(outputs, weight_attr=nn.initializer.Constant(0.0))  # a block starts as its shortcut
        self.se = _squeeze(outputs, outputs // 16) if backbone.squeeze else None
        halved = nn.AvgPool2D(2, stride, ceil_mode=True) if stride > 1 else nn.Identity()
        shortcut = (halved, _conv(channels, outputs, 1), nn.BatchNorm2D(outputs)) if first else ()
        self.downsample = nn.Sequential(*shortcut)

    def forward(self, x: Tensor) -> Tensor:
        """From `(B, channels, H, W)` to `(B, outputs, H / stride, W / stride)`."""
        parts = F.relu(self.bn1(self.conv1(x))).chunk(self.parts, axis=1)
        found: list[Tensor] = []
        for part, conv, norm in zip(parts, self.convs, self.bns, strict=False):
            found.append(F.relu(norm(conv(part if self.first or not found else part + found[-1]))))
        if self.parts > 1:
            found.append(self.pool(parts[-1]))
        y = self.bn3(self.conv3(concat(found, axis=1)))
        if self.se is not None:
            y = y * self.se(y)
        return F.relu(y + self.downsample(x))


class Classifier(nn.Layer):
    """A backbone with a classifier on top.

    Args:
        name: Of `BACKBONES`.
        classes: C.
        dropout: Rate before the last layer.
    """

    def __init__(self, name: str, classes: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.name, backbone = name, BACKBONES[name]
        one, two, channels = backbone.stem
        self.trunk = nn.Sequential(
            ("conv1", nn.Sequential(
                _conv(3, one, 3, 2), nn.BatchNorm2D(one), nn.ReLU(), _conv(one, two, 3), nn.BatchNorm2D(two), nn.ReLU(),
                _conv(two, channels, 3),
            )),
            ("bn1", nn.BatchNorm2D(channels)), ("act1", nn.ReLU()), ("maxpool", nn.MaxPool2D(3, 2, 1)),
        )  # fmt: skip
        for stage, count in enumerate(backbone.blocks):
            blocks = []
            for index in range(count):
                outputs, stride = 256 * 2**stage, 2 if stage and not index else 1
                blocks.append(Block(channels, outputs, backbone.width * 2**stage, stride, not index, backbone))
                channels = outputs
            self.trunk.add_sublayer(f"layer{stage + 1}", nn.Sequential(*blocks))
        self.trunk.add_sublayer("pool", nn.AdaptiveAvgPool2D(1))
        self.trunk.add_sublayer("flatten", nn.Flatten())
        self.head = nn.Sequential(("drop", nn.Dropout(dropout)), ("fc", nn.Linear(channels, classes)))

    def forward(self, images: Tensor) -> Tensor:
        """Logits `(B, C)` of images `(B, 3, H, W)`."""
        logits: Tensor = self.head(self.trunk(images))
        return logits

    def weights(self) -> Iterator[tuple[str, Tensor, bool]]:
        """The name that timm has for each tensor, the tensor, and whether timm has it transposed."""
        for name, tensor in self.state_dict().items():
            name = name.partition(".")[2]
            if BACKBONES[self.name].parts == 1:
                name = name.replace("convs.0", "conv2").replace("bns.0", "bn2")
            yield name.replace("_mean", "running_mean").replace("_variance", "running_var"), tensor, name == "fc.weight"

    def save(self, path: Path, **facts: object) -> None:
        """Write the weights, and with them what else there is to know, for `read_facts`."""
        path.parent.mkdir(parents=True, exist_ok=True)
        tensors = {name: (each.numpy().T if turned else each.numpy()).copy() for name, each, turned in self.weights()}
        save_file(tensors, path, {"rdrop": json.dumps({"network": self.name, **facts})})

    def load(self, path: Path) -> None:
        """Read weights that were saved here or by timm; a classifier for other classes is left out.

        Raises:
            ValueError: The file has not the weights of this network.
        """
        with safe_open(path, framework="numpy") as file:
            there = set(file.keys())
            for name, tensor, turned in self.weights():
                value = (file.get_tensor(name).T if turned else file.get_tensor(name)) if name in there else None
                if value is not None and list(value.shape) == tensor.shape:
                    tensor.set_value(value.copy())
                elif not name.startswith("fc."):
                    found = "it is not there" if value is None else f"it has shape {value.shape}"
                    raise ValueError(f"{path}: no weights of {self.name}: {name} {tuple(tensor.shape)}, but {found}")


def read_facts(path: Path) -> dict[str, object]:
    """What `Classifier.save` wrote beside the weights.

    Raises:
        ValueError: It wrote nothing there.
    """
    with safe_open(path, framework="numpy") as file:
        found = (file.metadata() or {}).get("rdrop")
    if found is None:
        raise ValueError(f"{path} was not written by this program; expected weights with their classes")
    facts: dict[str, object] = json.loads(found)
    return facts


def _conv(inputs: int, outputs: int, size: int, stride: int = 1, groups: int = 1) -> nn.Conv2D:
    return nn.Conv2D(inputs, outputs, size, stride, size // 2, groups=groups, bias_attr=False)


def _squeeze(channels: int, between: int) -> nn.Sequential:
    """A weight in 0..1 for each channel: `(B, channels, 1, 1)`."""
    return nn.Sequential(
        ("mean", nn.AdaptiveAvgPool2D(1)),
        ("fc1", nn.Conv2D(channels, between, 1)), ("act", nn.ReLU()),
        ("fc2", nn.Conv2D(between, channels, 1)), ("gate", nn.Sigmoid()),
    )  # fmt: skip
