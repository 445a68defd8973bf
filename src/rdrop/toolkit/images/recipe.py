"""The recipe of image classification."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from rdrop.toolkit.data.file_data import TableData
from rdrop.toolkit.images.models import Library
from rdrop.toolkit.images.transforms import AugmentationKind, CropMode, Flips
from rdrop.toolkit.recipe import Model, Rate, RDrop, Recipe, Training, fault

PAIR_ARMS = ("plain", "rdrop")
NETWORKS = ("first", "second")


class ImageData(TableData):
    """What to train and test on."""

    train: str = Field(
        default="train.csv",
        description="Training split: a folder with a folder for each class, or a table (.csv, .tsv, .jsonl, .parquet) "
        "with a column of images and one of labels.",
    )
    image: str = Field(
        default="image",
        description="Column of a table with the image: a path from the table's own folder or, in Parquet, the file.",
    )
    label: str = Field(default="label", description="Column of a table with the class.")
    classes: str | None = Field(
        default=None, description="File with the name of a class on each line, for labels that are its index from 0."
    )
    cache: bool = Field(
        default=True,
        description="Keep decoded images in memory, no larger than needed (3 bytes a pixel), but for streamed ones; "
        "false: decode them each time. It changes nothing but time and memory.",
    )


class ImageModel(Model):
    """The network."""

    name: str = Field(
        default="vit_tiny_patch16_224",
        description="A network of timm, a folder with one of timm or transformers, or a name on the Hugging Face hub "
        "(of one for timm: `hf-hub:` and the name).",
    )
    library: Library = Field(default="auto", description="Which library builds it; `auto`: the one that knows it.")
    pretrained: bool = Field(
        default=True, description="Start from published or saved weights; false: from random ones."
    )
    dropout: Rate | None = Field(
        default=0.1,
        description="Probability of dropping a unit, in every dropout layer; null leaves the network's own rates, "
        "which timm sets to 0.",
    )
    drop_path: Rate | None = Field(
        default=None,
        description="Stochastic depth: the probability of skipping the last block; null: the network's own.",
    )
    second: str | None = Field(
        default=None,
        description="A second, different network: the divergence then ties the two, one pass each, in place of two "
        "passes of one.",
    )
    image_size: Annotated[int, Field(ge=8, le=2048)] | None = Field(
        default=None, description="Height and width of an image in pixels; null: the network's own."
    )
    crop_mode: CropMode | None = Field(
        default=None,
        description="How an image becomes square: its `center`, all of it in other proportions (`squash`), or all of "
        "it within a `border`; null: the network's own.",
    )
    crop_pct: Annotated[float, Field(gt=0, le=1)] | None = Field(
        default=None, description="Share of the side that is kept when the rim is cut off; null: the network's own."
    )


class ImageTraining(Training):
    """How a run is trained; the same for every arm."""

    augmentation: AugmentationKind = Field(
        default="light",
        description="Random changes of training images: `none`, random crops and flips (`light`), or RandAugment after "
        "these. All passes of a step see the same image.",
    )
    smallest_crop: Annotated[float, Field(gt=0, le=1)] = Field(
        default=0.5, description="Smallest share of an image's area that a random crop keeps."
    )
    flips: Flips = Field(default="horizontal", description="Random mirror images; `both`: also upside down.")
    color_jitter: Rate = Field(
        default=0.0, description="Largest random change of brightness, contrast and saturation, as a share."
    )
    random_erasing: Rate = Field(
        default=0.0, description="Probability of filling a random rectangle of an image with noise."
    )


class ImageRecipe(Recipe):
    """A complete comparison on labelled images."""

    FAMILY = "image-classification"
    DEFAULTS = {
        "data": {"shuffle_buffer": 1000},  # Parquet's wait as whole files
        "training": {
            "epochs": 10,
            "batch_size": 32,
            "learning_rate": 1e-4,
            "lr_scheduler": "cosine",
            "warmup_ratio": 0.1,
            "weight_decay": 0.05,
        },
    }

    task: Literal["image-classification"] = Field(default="image-classification", description="What is learned.")
    title: str = Field(default="Image classification", description="Heading of the report.")
    data: ImageData = Field(default=ImageData(), description="What to train and test on.")
    model: ImageModel = Field(default=ImageModel(), description="The network.")
    training: ImageTraining = Field(
        default=ImageTraining(), description="How a run is trained; the same for every arm."
    )

    @model_validator(mode="after")
    def _fits(self) -> Self:
        training = self.training
        if training.color_jitter and training.augmentation != "light":
            raise fault(
                f"got {training.color_jitter:g}, which has no effect with augmentation {training.augmentation}; set "
                "training.augmentation: light, or 0 here",
                "training.color_jitter",
                "training.augmentation",
            )
        if training.random_erasing and training.augmentation == "none":
            raise fault(
                f"got {training.random_erasing:g}, which has no effect with augmentation none; set "
                "training.augmentation: light or randaugment, or 0 here",
                "training.random_erasing",
                "training.augmentation",
            )
        if self.model.second is not None:
            self._fits_a_pair()
        return self

    def _fits_a_pair(self) -> None:
        other = [arm for arm in self.compare.arms if arm not in PAIR_ARMS]
        if other:
            raise fault(
                f"got {', '.join(other)}, but with two networks (model.second) each makes one pass in every arm, so "
                "twice and longer would be the same as plain; write [plain, rdrop]",
                "compare.arms",
                "model.second",
            )
        if self.rdrop.passes != len(NETWORKS):
            raise fault(
                f"got {self.rdrop.passes}, but with two networks (model.second) there are two; write 2",
                "rdrop.passes",
                "model.second",
            )
        for key in ("every", "fraction", "branch_at", "one_sided", "strategy"):
            got, whole = getattr(self.rdrop, key), RDrop.model_fields[key].default
            if got != whole:
                raise fault(
                    f"got {got}, but with two networks (model.second) each makes one whole pass in every step; write "
                    f"{'null' if whole is None else str(whole).lower() if isinstance(whole, bool) else whole}",
                    f"rdrop.{key}",
                    "model.second",
                )

    def without_dropout_twice_is_plain(self) -> bool:
        """Whether the passes differ by dropout alone: not with two networks, nor with stochastic depth."""
        return self.model.second is None and not self.model.drop_path
