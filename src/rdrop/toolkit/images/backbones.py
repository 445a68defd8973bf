"""The backbones of the plant project: two that timm does not name, made known to `timm.create_model`.

The project trains three ImageNet networks of PaddleClas. Its suffix `vd` means a stem of three 3x3 convolutions and
average pooling before the convolution of a shortcut that halves the image (He et al. 2019, arXiv 1812.01187, ResNet-D).
timm calls this `d` if the stem has 32, 32 and 64 channels, and `e` if it has 64, 64 and 128.

| PaddleClas             | timm                 | parameters | with running statistics | published |
| ---------------------- | -------------------- | ---------- | ----------------------- | --------- |
| Res2Net50_vd_26w_4s    | `res2net50d`         | 25,718,352 | 25,777,972              | 25.78 M   |
| SE_ResNet50_vd         | `seresnet50d`        | 28,107,256 | 28,160,504              | 28.16 M   |
| SE_ResNeXt50_vd_32x4d  | `seresnext50e_32x4d` | 27,687,768 | 27,756,376              | 27.76 M   |

All counts are for 1,000 classes. The structure is that of res2net_vd.py, se_resnet_vd.py and se_resnext_vd.py in
PaddlePaddle/PaddleClas, ppcls/arch/backbone/model_zoo; the published counts are those of its
docs/zh_CN/models/ImageNet1k/model_list.md, which include the running means and variances of BatchNorm. (Older tables of
that project have 25.06, 28.09 and 26.28 M, which is not what its code builds.)

What differs from PaddleClas: timm starts every residual branch at zero, unless `zero_init_last=False`; `drop_rate`, 0
by default, puts dropout before the classifier, where PaddleClas has none; and in the first block of `res2net50d`, as in
the paper's own code but not in PaddleClas, the splits are not added to each other and the last one is average-pooled.
There are no pretrained weights for the two networks registered here.

>>> import timm, torch
>>> with torch.device("meta"):
...     model = timm.create_model("seresnext50e_32x4d", drop_rate=0.3)
>>> sum(parameter.numel() for parameter in model.parameters())
27687768
"""

from __future__ import annotations

from typing import Any

import timm
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.resnet import Bottleneck, ResNet

_IMAGENET: dict[str, Any] = {
    "num_classes": 1000,
    "input_size": (3, 224, 224),
    "pool_size": (7, 7),
    "crop_pct": 0.875,
    "interpolation": "bicubic",
    "mean": (0.485, 0.456, 0.406),
    "std": (0.229, 0.224, 0.225),
    "first_conv": "conv1.0",
    "classifier": "fc",
}
_SE_RESNET50: dict[str, Any] = {
    "block": Bottleneck,
    "layers": (3, 4, 6, 3),
    "stem_type": "deep",
    "avg_down": True,
    "block_args": {"attn_layer": "se"},  # timm's default is the reduction ratio 16 of PaddleClas
}

# `register_model` looks for a variable of this name in the module of the function.
default_cfgs = generate_default_cfgs(
    {"seresnet50d.untrained": _IMAGENET, "seresnext50e_32x4d.untrained": _IMAGENET},
)


def seresnet50d(pretrained: bool = False, **kwargs: Any) -> ResNet:
    """SE-ResNet50-vd, 28,107,256 parameters with 1,000 classes (Hu et al. 2018, arXiv 1709.01507).

    Args:
        pretrained: There are no pretrained weights: only False is possible.
        **kwargs: As for timm's `ResNet`, such as `num_classes`, `in_chans`, `drop_rate` and `drop_path_rate`.

    Returns:
        The network, from images `(B, 3, H, W)` to logits `(B, C)`.

    Raises:
        RuntimeError: `pretrained` is true.
    """
    return _build("seresnet50d", pretrained, kwargs, stem_width=32)


def seresnext50e_32x4d(pretrained: bool = False, **kwargs: Any) -> ResNet:
    """SE-ResNeXt50-vd 32x4d, 27,687,768 parameters with 1,000 classes (Xie et al. 2017, arXiv 1611.05431).

    Its stem has 64, 64 and 128 channels, twice those of `seresnet50d`.

    Args:
        pretrained: There are no pretrained weights: only False is possible.
        **kwargs: As for timm's `ResNet`, such as `num_classes`, `in_chans`, `drop_rate` and `drop_path_rate`.

    Returns:
        The network, from images `(B, 3, H, W)` to logits `(B, C)`.

    Raises:
        RuntimeError: `pretrained` is true.
    """
    return _build("seresnext50e_32x4d", pretrained, kwargs, stem_width=64, cardinality=32, base_width=4)


def _build(name: str, pretrained: bool, options: dict[str, Any], **structure: Any) -> ResNet:
    """A network as timm builds its own."""
    return build_model_with_cfg(ResNet, name, pretrained, **(_SE_RESNET50 | structure | options))


for _entry_point in (seresnet50d, seresnext50e_32x4d):
    if not timm.is_model(_entry_point.__name__):  # a release of timm that has the name keeps it, with its weights
        register_model(_entry_point)
