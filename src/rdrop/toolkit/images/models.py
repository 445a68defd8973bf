"""Networks that classify images, from timm and from transformers: built, loaded, saved and read back."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import timm
import torch
from timm.data.config import resolve_data_config
from timm.models import get_pretrained_cfg, load_model_config_from_hf, save_for_hf
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageClassification, CLIPImageProcessor

import rdrop.toolkit.images.backbones  # noqa: F401  (adds its names to those of timm)
from rdrop.errors import UserError
from rdrop.toolkit.images.transforms import InputFormat
from rdrop.toolkit.pretrained import apply_dropout, from_pretrained, load_weights, quiet_loading
from rdrop.toolkit.recipe_fields import nearest

Library = Literal["auto", "timm", "transformers"]

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
PROCESSOR = "preprocessor_config.json"
RESAMPLING = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}  # Pillow's numbers, which processors carry
USUAL_SIZE = 224
CONVNEXT_CROPS_BELOW = 384  # its processor squashes larger images


class TimmClassifier(nn.Module):
    """A network of timm that answers as those of transformers do.

    Args:
        network: From images `(B, 3, H, W)` to logits `(B, C)`.

    >>> classifier = TimmClassifier(timm.create_model("test_resnet", num_classes=4))
    >>> classifier(torch.zeros(2, 3, 32, 32))["logits"].shape
    torch.Size([2, 4])
    """

    config = None  # the Trainer looks here for a task that forbids label smoothing

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, pixel_values: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        """Logits `(B, C)` of images `(B, 3, H, W)`, and with labels `(B,)` their cross-entropy as `loss`."""
        logits = self.network(pixel_values)
        if labels is None:
            return {"logits": logits}
        return {"loss": cross_entropy(logits, labels), "logits": logits}


@dataclass(frozen=True)
class ImageNetwork:
    """Which network, and how it is built."""

    name: str
    """A name of timm, a folder, a name on the hub; `hf-hub:` and `local-dir:` before it as timm has them."""
    library: Library
    pretrained: bool
    dropout: float | None
    drop_path: float | None

    @property
    def is_timm(self) -> bool:
        """Whether timm builds it; where the recipe does not say, the folder does, or timm's own list."""
        if self.library != "auto":
            return self.library == "timm"
        if Path(self.name).is_dir():
            return "architecture" in _configuration(Path(self.name))
        if self.name.startswith((".", "/", "~")):
            raise UserError(
                f"model.name: there is no folder {self.name}; expected one, or a name of timm or of the hub"
            )
        return self.name.startswith(("hf-hub:", "local-dir:")) or timm.is_model(self.name)

    @property
    def source(self) -> str:
        """The name as timm takes it."""
        return f"local-dir:{self.name}" if Path(self.name).is_dir() else self.name

    def input_format(
        self, *, image_size: int | None = None, crop_pct: float | None = None, crop_mode: str | None = None
    ) -> InputFormat:
        """What the network wants an image to be; None leaves what its configuration says.

        Raises:
            UserError: There is no such network.

        >>> network = ImageNetwork("resnet10t", "timm", pretrained=False, dropout=None, drop_path=None)
        >>> network.input_format(image_size=64).size
        (64, 64)
        """
        if not self.is_timm:
            return _processor_format(self, image_size, crop_pct, crop_mode)
        arguments = {
            "input_size": None if image_size is None else (3, image_size, image_size),
            "crop_pct": crop_pct,
            "crop_mode": crop_mode,
        }
        configuration = self._timm_configuration()
        return _timm_format(resolve_data_config(arguments, pretrained_cfg=configuration))  # type: ignore[no-untyped-call]

    def build(self, names: Sequence[str], form: InputFormat) -> nn.Module:
        """The network with an output for each class; it answers a mapping with `logits`.

        Args:
            names: The classes (C).
            form: What it is going to be given.

        Raises:
            UserError: It cannot be built so, or does not take such images.
        """
        model = self._timm(names, form) if self.is_timm else self._transformers(names, form)
        self._try(model, form)
        return apply_dropout(model, self.dropout)

    def _timm_configuration(self) -> dict[str, Any]:
        """What timm knows of a network without building it."""
        if self.source.startswith("local-dir:"):
            found = _configuration(Path(self.source.removeprefix("local-dir:")))
            return dict(found.get("pretrained_cfg", found))
        if self.source.startswith("hf-hub:"):
            with self._told():
                return dict(load_model_config_from_hf(self.source.removeprefix("hf-hub:"))[0])
        known = get_pretrained_cfg(self.name) if timm.is_model(self.name) else None
        if known is None:
            close = nearest(self.name.partition(".")[0], timm.list_models())
            hint = f"did you mean {close}?" if close else "timm.list_models() has them all"
            raise UserError(f"model.name: timm has no model {self.name!r}; {hint}")
        return asdict(known)

    def _timm(self, names: Sequence[str], form: InputFormat) -> nn.Module:
        configuration = self._timm_configuration()
        if self.pretrained and self.source.startswith("local-dir:"):
            _require_safetensors(Path(self.source.removeprefix("local-dir:")))
        options: dict[str, Any] = {"drop_rate": self.dropout, "drop_path_rate": self.drop_path}
        if configuration.get("fixed_input_size") and form.size != tuple(configuration["input_size"])[1:]:
            options["img_size"] = form.size
        with self._told():
            model = timm.create_model(self.source, pretrained=self.pretrained, num_classes=len(names), **options)
        return TimmClassifier(model)

    def _transformers(self, names: Sequence[str], form: InputFormat) -> nn.Module:
        config = from_pretrained(
            AutoConfig,
            self.name,
            num_labels=len(names),
            id2label=dict(enumerate(names)),
            label2id={name: index for index, name in enumerate(names)},
        )
        if self.drop_path is not None:
            if not hasattr(config, "drop_path_rate"):
                raise UserError(
                    f"model.drop_path is {self.drop_path:g}, but {self.name} has no stochastic depth; write null"
                )
            config.drop_path_rate = self.drop_path
        size = getattr(config, "image_size", None)
        if size is not None and form.size not in ((size, size), size):
            if self.pretrained:
                raise UserError(
                    f"model.image_size is {form.size[0]}, but the weights of {self.name} are for images of {size} "
                    "pixels; write null, or model.pretrained: false"
                )
            config.image_size = form.size[0]
        if self.pretrained:
            return load_weights(AutoModelForImageClassification, self.name, config=config, ignore_mismatched_sizes=True)
        with self._told():
            model: nn.Module = AutoModelForImageClassification.from_config(config)  # type: ignore[no-untyped-call]
        return model

    def _try(self, model: nn.Module, form: InputFormat) -> None:
        """One forward, since networks differ in the sizes that they take."""
        try:
            with torch.no_grad():
                model.eval()(torch.zeros(1, 3, *form.size))
        except Exception as error:  # every architecture has its own way to fail
            raise UserError(
                f"model.image_size: {self.name} does not take images of {form.size[0]} x {form.size[1]} pixels: "
                f"{_first_line(error)}"
            ) from error
        model.train()

    @contextmanager
    def _told(self) -> Iterator[None]:
        """What a library raises about a network, as a message about the recipe."""
        try:
            yield
        except Exception as error:  # hub, network, files, configurations and constructors each raise their own
            library = "timm" if self.is_timm else "transformers"
            hint = (
                " model.pretrained: false starts from random weights; a folder with weights needs no connection."
                if self.pretrained
                else ""
            )
            raise UserError(f"model.name: {library} cannot build {self.name!r}: {_first_line(error)}.{hint}") from error


def save_network(model: nn.Module, folder: Path, names: Sequence[str], form: InputFormat) -> None:
    """Writes a network as its library does: configuration with label names, safetensors, and how images are prepared.

    Args:
        model: What `ImageNetwork.build` gave.
        folder: Where to; it is made if needed.
        names: The classes.
        form: What the network was trained on.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if isinstance(model, TimmClassifier):
        network: Any = model.network
        network.pretrained_cfg = {**network.pretrained_cfg, **_timm_keys(form)}
        save_for_hf(network, str(folder), model_config={"label_names": list(names)}, safe_serialization=True)
        return
    pretrained: Any = model
    with quiet_loading():
        pretrained.save_pretrained(folder)
        _processor(form).save_pretrained(folder)


def restore_network(folder: Path, network: ImageNetwork) -> tuple[nn.Module, list[str], InputFormat]:
    """What `save_network` wrote, with the dropout of the recipe.

    Args:
        folder: The folder.
        network: The one of the recipe.

    Returns:
        The network, its classes, and what it wants an image to be.

    Raises:
        UserError: The folder holds no such network.
    """
    _require_safetensors(folder)
    saved = ImageNetwork(str(folder), "auto", pretrained=True, dropout=network.dropout, drop_path=network.drop_path)
    names = _label_names(folder)
    form = saved.input_format()
    return saved.build(names, form), names, form


def _label_names(folder: Path) -> list[str]:
    """The classes in the configuration of a saved network."""
    configuration = _configuration(folder)
    found: Any = configuration.get("label_names")
    if found is None:
        by_index = configuration.get("id2label")
        found = [by_index[str(i)] for i in range(len(by_index))] if isinstance(by_index, dict) else None
    if not isinstance(found, list) or not all(isinstance(name, str) for name in found):
        raise UserError(f"{folder / CONFIG} does not name the classes; expected a folder that this program wrote")
    return found


def _configuration(folder: Path) -> dict[str, Any]:
    """The configuration in a folder."""
    try:
        found = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{folder / CONFIG} cannot be read: {_first_line(error)}") from None
    if not isinstance(found, dict):
        raise UserError(f"{folder / CONFIG} holds no configuration of a network")
    return found


def _require_safetensors(folder: Path) -> None:
    """Weights come from safetensors alone: other files can hold programs."""
    if not (folder / WEIGHTS).is_file():
        raise UserError(f"{folder} has no {WEIGHTS}; expected a folder with the weights of a network in that format")


def _timm_format(found: dict[str, Any]) -> InputFormat:
    return InputFormat(
        tuple(found["input_size"][1:]),
        tuple(found["mean"]),
        tuple(found["std"]),
        found["interpolation"],
        found["crop_pct"],
        found["crop_mode"],
    )


def _timm_keys(form: InputFormat) -> dict[str, Any]:
    return {
        "input_size": (3, *form.size),
        "mean": form.mean,
        "std": form.std,
        "interpolation": form.interpolation,
        "crop_pct": form.crop_pct,
        "crop_mode": form.crop_mode,
        "test_input_size": None,
        "test_crop_pct": None,
    }


def _processor_format(
    network: ImageNetwork, image_size: int | None, crop_pct: float | None, crop_mode: str | None
) -> InputFormat:
    """What an image processor of transformers does, in the words of timm."""
    if crop_mode == "border":
        raise UserError(
            "model.crop_mode: got border, which the processors of transformers do not know; use center or squash"
        )
    if network.pretrained:
        processor = from_pretrained(AutoImageProcessor, network.name)
    else:
        size = getattr(from_pretrained(AutoConfig, network.name), "image_size", None) or USUAL_SIZE
        height, width = (size, size) if isinstance(size, int) else size
        processor = CLIPImageProcessor(do_center_crop=False, size={"height": height, "width": width})
    size, crop = dict(processor.size), dict(getattr(processor, "crop_size", None) or {})
    side = size.get("shortest_edge")
    resized = (size["height"], size["width"]) if side is None else (side, side)
    kept, mode = resized, "squash" if side is None else "center"
    pct = 1.0
    if getattr(processor, "crop_pct", None) and side is not None:  # ConvNext and those that follow it
        pct, mode = (processor.crop_pct, "center") if side < CONVNEXT_CROPS_BELOW else (1.0, "squash")
    elif getattr(processor, "do_center_crop", False) and crop:
        kept = (crop["height"], crop["width"])
        pct = _share(kept[0], resized[0])
    normalized = getattr(processor, "do_normalize", True)
    return InputFormat(
        kept if image_size is None else (image_size, image_size),
        tuple(processor.image_mean) if normalized else (0.0, 0.0, 0.0),
        tuple(processor.image_std) if normalized else (1.0, 1.0, 1.0),
        RESAMPLING.get(int(processor.resample), "bicubic"),
        pct if crop_pct is None else crop_pct,
        mode if crop_mode is None else crop_mode,
    )


def _share(kept: int, resized: int) -> float:
    """The share of a side that a crop keeps, so that timm finds the same side again by dividing and rounding down."""
    share = kept / resized
    return share if math.floor(kept / share) == resized else math.nextafter(share, 0.0)


def _processor(form: InputFormat) -> Any:
    """The image processor of transformers that does the same; borders are what it does not know."""
    height, width = (math.floor(side / form.crop_pct) for side in form.size)
    return CLIPImageProcessor(
        size={"height": height, "width": width} if form.crop_mode == "squash" else {"shortest_edge": height},
        crop_size={"height": form.size[0], "width": form.size[1]},
        do_center_crop=True,
        resample=next(number for number, name in RESAMPLING.items() if name == form.interpolation),
        image_mean=list(form.mean),
        image_std=list(form.std),
    )


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0].removesuffix('.')}"
