"""Image classification: folders of classes, tables of paths or Parquet, with any network of timm or transformers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator
from scipy.special import softmax
from torch import Tensor, nn
from torch.utils.data import default_collate

from rdrop.errors import UserError
from rdrop.integrations.transformers import RDropConfig, RDropTrainer
from rdrop.toolkit.data.file_data import TableData, draw, hold_out, named_path, split_seed
from rdrop.toolkit.data.label_names import LabelNames, given_names, learned_names, require_examples
from rdrop.toolkit.data.labelled_splits import split_paths
from rdrop.toolkit.data.rows import BadRows
from rdrop.toolkit.images.models import ImageNetwork, Library, restore_network, save_network
from rdrop.toolkit.images.network_pair import NetworkPair, PairTrainer
from rdrop.toolkit.images.rows import ImageRows
from rdrop.toolkit.images.tables import (
    Decoder,
    Photo,
    labelled_photos,
    repeated_images,
    unlabelled_photos,
    unused_files,
)
from rdrop.toolkit.images.transforms import Augmentation, AugmentationKind, CropMode, Flips, InputFormat
from rdrop.toolkit.metrics import (
    CLASSIFICATION_METRICS,
    CONSISTENCY_METRICS,
    classification_metrics,
    confusion,
    reliability,
)
from rdrop.toolkit.monte_carlo import class_predictions
from rdrop.toolkit.recipe import Model, Rate, Recipe, Training, fault
from rdrop.toolkit.summary import Exhibit, Gallery, Metric
from rdrop.toolkit.task import Evaluation, Rows, Splits, Task

WORST = 12
MOST_CLASSES = 100  # of a confusion matrix, which has as many cells as their square
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
        description="Keep decoded images in memory, no larger than needed (3 bytes a pixel); false: decode them each "
        "time. It changes nothing but time and memory.",
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
        "training": {
            "epochs": 10,
            "batch_size": 32,
            "learning_rate": 1e-4,
            "lr_scheduler": "cosine",
            "warmup_ratio": 0.1,
            "weight_decay": 0.05,
        }
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
        if self.rdrop.strategy != "auto":
            raise fault(
                f"got {self.rdrop.strategy}, but with two networks (model.second) each runs once; write auto",
                "rdrop.strategy",
                "model.second",
            )

    def without_dropout_twice_is_plain(self) -> bool:
        """Whether the passes differ by dropout alone: not with two networks, nor with stochastic depth."""
        return self.model.second is None and not self.model.drop_path


class ImageClassificationTask(Task[ImageRecipe]):
    """Images with one class each.

    Attributes:
        names: The classes, after `load` or `restore`.
        form: What the network wants an image to be.
    """

    RECIPE = ImageRecipe

    def __init__(self, recipe: ImageRecipe) -> None:
        super().__init__(recipe)
        self.names: list[str] = []
        self.form: InputFormat | None = None
        if recipe.model.second is not None:
            self.trainer_class = _TwoNetworks

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """Those of classification; for two networks, those of their average and the accuracy of each."""
        if self.recipe.model.second is None:
            return (*CLASSIFICATION_METRICS, *CONSISTENCY_METRICS)
        return (*CLASSIFICATION_METRICS, *map(_accuracy_of, NETWORKS))

    def load(self, seed: int) -> Splits:
        """Images and class ids; the classes are those of the training split."""
        data, model = self.recipe.data, self.recipe.model
        self.form = self._network(model.name).input_format(
            image_size=model.image_size, crop_pct=model.crop_pct, crop_mode=model.crop_mode
        )
        bad_rows = BadRows(data.on_bad_row)
        decoder = Decoder(self.form, keep=data.cache)

        def read(path: Path, names: LabelNames | None) -> list[Photo]:
            known = (lambda label, _: label) if names is None else names.known
            columns = data.image, data.label
            return list(labelled_photos(path, data, columns, known=known, decoder=decoder, bad_rows=bad_rows))

        file, paths = named_path(data, "classes"), split_paths(data)
        given = None if file is None else given_names(file, data.encoding)
        everything = read(paths["train"], given)
        labels = [photo.label for photo in everything]
        names = given or learned_names(labels, paths["train"])
        require_examples(names, set(labels), paths["train"], column=data.label)
        self.names = list(names.names)
        photos = {part: read(path, names) for part, path in paths.items() if part != "train"}
        decoder.finish()

        drawing = split_seed(data, seed)
        chosen = np.arange(len(everything))
        if "validation" not in photos and data.validation_fraction > 0:
            chosen, held_out = hold_out(labels, len(everything), data.validation_fraction, drawing, name=data.train)
            photos["validation"] = [everything[i] for i in held_out]
        chosen = draw(labels, chosen, data.train_size, drawing, name=data.train)
        photos["train"] = [everything[i] for i in chosen]
        unused = [note for path in paths.values() for note in unused_files(path)]
        return Splits(
            train=self._rows(photos["train"], seed),
            validation=self._rows(photos["validation"]) if "validation" in photos else None,
            test=self._rows(photos["test"]) if "test" in photos else None,
            description=self._description(photos, len(everything)),
            notes=(*bad_rows.sentences(), *unused, *repeated_images(photos)),
        )

    def build_model(self) -> nn.Module:
        """The network, or the pair of two."""
        assert self.form is not None
        model = self._network(self.recipe.model.name).build(self.names, self.form)
        if self.recipe.model.second is None:
            return model
        return NetworkPair(model, self._network(self.recipe.model.second).build(self.names, self.form))

    def collate(self, rows: Any) -> dict[str, Tensor]:
        """`pixel_values` `(B, 3, H, W)`, and `labels` `(B,)` where they are known."""
        batch: dict[str, Tensor] = default_collate(rows)
        return batch

    def scores(self, logits: Any, labels: Tensor) -> Any:  # noqa: ARG002
        """The logits without what else a network returns; of a pair, those of the average and of each network."""
        return logits[0] if isinstance(logits, tuple) and self.recipe.model.second is None else logits

    def measure(self, scores: Any, labels: NDArray[Any]) -> dict[str, float]:
        """Accuracy, likelihood and calibration; of a pair, those of the average and the accuracy of each."""
        logits, *each = scores if isinstance(scores, tuple) else (scores,)
        return classification_metrics(logits, labels) | {
            _accuracy_of(network).name: float((own.argmax(-1) == labels).mean())
            for network, own in zip(NETWORKS, each, strict=False)
        }

    def evaluate(self, trainer: RDropTrainer, rows: Rows, *, seed: int, exhibits: bool) -> Evaluation:
        """Metrics, the consistency gap of one network, reliability, confusions and the worst images."""
        prediction = trainer.predict(rows)
        scores: Any = prediction.predictions
        labels = np.asarray(prediction.label_ids)
        logits = scores[0] if isinstance(scores, tuple) else scores
        shown: list[Exhibit] = []
        if exhibits:
            shown = [confusion(logits, labels, self.names)] if len(self.names) <= MOST_CLASSES else []
            shown.append(self._worst(rows, logits, labels))
        metrics = self.measure(scores, labels)
        if self.recipe.model.second is None:  # the gap is about two passes of one network
            metrics |= self.consistency(trainer, rows, seed)
        return Evaluation(metrics, reliability(logits, labels), shown)

    def save(self, model: nn.Module, folder: Path) -> None:
        """Writes the network as its library does; a pair in two folders."""
        assert self.form is not None
        if isinstance(model, NetworkPair):
            for network in NETWORKS:
                save_network(getattr(model, network), folder / network, self.names, self.form)
        else:
            save_network(model, folder, self.names, self.form)

    def restore(self, folder: Path) -> nn.Module:
        """The network, or the pair."""
        model = self.recipe.model
        if model.second is None:
            network, self.names, self.form = restore_network(folder, self._network(model.name))
            return network
        first, self.names, self.form = restore_network(folder / "first", self._network(model.name))
        second, names, _ = restore_network(folder / "second", self._network(model.second))
        if names != self.names:
            raise UserError(
                f"{folder} holds two networks with different classes; expected a pair that was trained together"
            )
        return NetworkPair(first, second)

    def read(self, paths: Sequence[Path]) -> ImageRows:
        """The images of files and folders."""
        assert self.form is not None
        decoder = Decoder(self.form, keep=self.recipe.data.cache)
        return ImageRows(unlabelled_photos(paths, decoder), None, self.form.evaluation())

    def predict(self, model: nn.Module, rows: Rows, *, samples: int, seed: int) -> Iterator[Mapping[str, Any]]:
        """Class and confidence of each image, with its name."""
        answers = class_predictions(model, self.batches(rows, model), self.names, samples=samples, seed=seed)
        for photo, answer in zip(rows.photos, answers, strict=True):
            yield {"image": photo.name, **answer}

    def _network(self, name: str) -> ImageNetwork:
        model = self.recipe.model
        return ImageNetwork(name, model.library, model.pretrained, model.dropout, model.drop_path)

    def _rows(self, photos: Sequence[Photo], seed: int | None = None) -> ImageRows:
        """A split; with a seed, one for training."""
        assert self.form is not None
        training = self.recipe.training
        ids = {name: index for index, name in enumerate(self.names)}
        labels = [ids[photo.label] for photo in photos]
        if seed is None:
            return ImageRows(photos, labels, self.form.evaluation())
        augmentation = Augmentation(
            training.augmentation,
            training.smallest_crop,
            training.flips,
            training.color_jitter,
            training.random_erasing,
        )
        random_seed = None if augmentation.kind == "none" else seed
        return ImageRows(photos, labels, self.form.training(augmentation), seed=random_seed)

    def _worst(self, rows: Rows, logits: NDArray[Any], labels: NDArray[Any]) -> Gallery:
        """The images whose right class has the lowest probability."""
        probabilities = softmax(logits.astype(np.float64), axis=-1)
        right = np.take_along_axis(probabilities, labels[:, None], axis=-1)[:, 0]
        return Gallery(
            title="Images that were classified worst",
            reading=f"The {min(WORST, len(labels))} images whose right class got the lowest probability, the lowest "
            "first, with the right class and the most probable one.",
            pictures=[
                rows.picture(
                    int(i),
                    [
                        f"{self.names[labels[i]]}: {100 * right[i]:.1f}%",
                        f"{self.names[probabilities[i].argmax()]}: {100 * probabilities[i].max():.1f}%",
                    ],
                )
                for i in np.argsort(right, kind="stable")[:WORST]
            ],
        )

    def _description(self, photos: Mapping[str, Sequence[Photo]], count: int) -> str:
        data = self.recipe.data
        often = "anew for each seed" if data.split_seed is None else f"once, with seed {data.split_seed}"
        told = [f"{len(photos['train']):,} of the {count:,} in {data.train} for training"]
        if len(photos["train"]) < count:
            told.append(f"drawn by class {often}")
        if "validation" in photos:
            where = data.validation or f"held out of {data.train}"
            told.append(f"{len(photos['validation']):,} for validation ({where})")
        if "test" in photos:
            told.append(f"{len(photos['test']):,} for testing ({data.test})")
        return f"Images of {len(self.names)} classes: {', '.join(told)}."


class _TwoNetworks(PairTrainer):
    """`PairTrainer` for every arm: plain training of two networks is that of a pair with alpha 0."""

    def __init__(self, *args: Any, rdrop: RDropConfig, **kwargs: Any) -> None:
        super().__init__(*args, rdrop=replace(rdrop, passes=len(NETWORKS)), **kwargs)


def _accuracy_of(network: str) -> Metric:
    return Metric(
        name=f"accuracy_{network}",
        label=f"Accuracy, {network} network",
        higher_is_better=True,
        percent=True,
        explanation=f"Accuracy of the {network} network alone.",
    )
