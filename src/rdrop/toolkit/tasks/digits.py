"""The built-in task: scikit-learn's digits, 1,797 grey images of 8x8 pixels in ten classes, and a small CNN."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from pydantic import Field, model_validator
from safetensors import SafetensorError
from safetensors.torch import load_model, save_model
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import Dataset

from rdrop.errors import UserError
from rdrop.integrations.transformers import RDropTrainer
from rdrop.toolkit.images.exhibits import captioned, worst_images
from rdrop.toolkit.images.files import read_image
from rdrop.toolkit.metrics import (
    CLASSIFICATION_METRICS,
    CONSISTENCY_METRICS,
    classification_metrics,
    confusion,
    reliability,
)
from rdrop.toolkit.monte_carlo import class_predictions
from rdrop.toolkit.recipe import Data, Model, Rate, Recipe, fault
from rdrop.toolkit.summary import Exhibit, Metric
from rdrop.toolkit.task import Evaluation, Rows, Splits, Task

CLASSES = 10
NAMES = [str(digit) for digit in range(CLASSES)]
WHITE = 255
BRIGHTEST = 16.0  # the largest pixel value in the data
WEIGHTS = "model.safetensors"


class DigitsData(Data):
    """What to train and test on."""

    name: Literal["digits"] = Field(
        default="digits", description="`digits`: the 1,797 images of 8x8 pixels that scikit-learn carries."
    )
    train_size: Annotated[int, Field(ge=20, le=1700)] = Field(
        default=300,
        description="Labelled training images, drawn stratified by class; all others are the test split.",
    )


class DigitsModel(Model):
    """The network."""

    name: Literal["digits-cnn"] = Field(
        default="digits-cnn",
        description="`digits-cnn`: two 3x3 convolutions (32, 64), max-pooling, dropout, linear 128, dropout, linear.",
    )
    dropout: Rate = Field(default=0.3, description="Probability of dropping a unit, in every dropout layer.")


class DigitsRecipe(Recipe):
    """A complete comparison on the digits."""

    FAMILY = "image-classification"
    DEFAULTS = {
        "training": {
            "epochs": 60,
            "eval_every_epochs": 5,
            "eval_batch_size": 512,
            "max_grad_norm": 0.0,
            "device": "cpu",
        }
    }

    task: Literal["digits"] = Field(default="digits", description="What is learned.")
    title: str = Field(default="Digits with 300 labels", description="Heading of the report.")
    data: DigitsData = Field(default=DigitsData(), description="What to train and test on.")
    model: DigitsModel = Field(default=DigitsModel(), description="The network.")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.training.batch_size > self.data.train_size:
            raise fault(
                f"got {self.training.batch_size}, expected at most data.train_size, which is {self.data.train_size}",
                "training.batch_size",
                "data.train_size",
            )
        if self.compare.split == "validation":
            raise fault("got validation, but the digits have a test split alone; write test", "compare.split")
        return self


class TensorRows(Dataset[dict[str, Tensor]]):
    """Rows held in tensors, read a whole batch at a time.

    Args:
        columns: Column name to a tensor whose first axis is the row.
    """

    def __init__(self, **columns: Tensor) -> None:
        self.columns = columns

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def __getitem__(self, index: int | slice) -> dict[str, Tensor]:
        return {name: column[index] for name, column in self.columns.items()}

    def __getitems__(self, indices: list[int]) -> dict[str, Tensor]:
        """The batch of these rows; a DataLoader asks for it in place of the rows one by one."""
        rows = torch.tensor(indices)
        return {name: column[rows] for name, column in self.columns.items()}


class ImageFiles(TensorRows):
    """Image files as grey images `(N, 1, 8, 8)` in 0..1.

    Args:
        paths: The files.

    Raises:
        UserError: A file cannot be read, or is no image.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = paths
        images = [read_image(path).convert("L").resize((8, 8)) for path in paths]
        pixels = torch.stack([torch.from_numpy(np.asarray(image, dtype=np.float32)) for image in images])
        super().__init__(pixel_values=pixels.view(-1, 1, 8, 8) / WHITE)


class DigitsCNN(nn.Module):
    """Two 3x3 convolutions (32, 64), max-pooling, dropout, linear 128, dropout, linear: 8x8 images to logits.

    Args:
        dropout: Probability of dropping a unit, 0 <= dropout < 1, in both dropout layers.
        classes: Number of classes (C).

    >>> import torch
    >>> DigitsCNN(dropout=0.3, classes=10)(torch.zeros(2, 1, 8, 8))["logits"].shape
    torch.Size([2, 10])
    """

    config = None  # the Trainer looks here for a task that forbids label smoothing

    def __init__(self, dropout: float, classes: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 32, kernel_size=3, padding=1),
            nn.ReLU(),
            nn.Conv2d(32, 64, kernel_size=3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Dropout(dropout),
            nn.Linear(64 * 4 * 4, 128),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(128, classes),
        )

    def forward(self, pixel_values: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        """Logits `(B, C)` of images `(B, 1, 8, 8)`, and with labels `(B,)` their cross-entropy as `loss`."""
        logits = self.layers(pixel_values)
        if labels is None:
            return {"logits": logits}
        return {"loss": cross_entropy(logits, labels), "logits": logits}


class DigitsTask(Task[DigitsRecipe]):
    """Digits, with every image that is not drawn for training in the test split."""

    RECIPE = DigitsRecipe

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """Those of classification, and consistency."""
        return (*CLASSIFICATION_METRICS, *CONSISTENCY_METRICS)

    def load(self, seed: int) -> Splits:
        """Float32 images `(N, 1, 8, 8)` in 0..1 with int64 labels `(N,)`, split by class.

        >>> splits = DigitsTask(DigitsRecipe()).load(seed=0)
        >>> len(splits.train), len(splits.test)
        (300, 1497)
        """
        data = self.recipe.data
        images, labels = load_digits(return_X_y=True)
        pixel_values = torch.from_numpy(images).float().view(-1, 1, 8, 8) / BRIGHTEST
        targets = torch.from_numpy(labels).long()
        train, test = train_test_split(
            np.arange(len(labels)),
            train_size=data.train_size,
            stratify=labels,
            random_state=seed if data.split_seed is None else data.split_seed,
        )
        drawn = "anew for each seed" if data.split_seed is None else f"once, with seed {data.split_seed}"
        return Splits(
            train=TensorRows(pixel_values=pixel_values[train], labels=targets[train]),
            validation=None,
            test=TensorRows(pixel_values=pixel_values[test], labels=targets[test]),
            description=f"scikit-learn's digits, grey images of 8x8 pixels in ten classes: {len(train):,} "
            f"labelled training images, drawn by class {drawn}, and the other {len(test):,} as the test split.",
        )

    def build_model(self) -> nn.Module:
        """The small CNN."""
        return DigitsCNN(dropout=self.recipe.model.dropout, classes=CLASSES)

    def collate(self, rows: Any) -> dict[str, Tensor]:
        """The rows as they are: `TensorRows` has put the batch together already."""
        batch: dict[str, Tensor] = rows
        return batch

    def measure(self, scores: NDArray[Any], labels: NDArray[Any]) -> dict[str, float]:
        """Accuracy, likelihood and calibration."""
        return classification_metrics(scores, labels)

    def evaluate(self, trainer: RDropTrainer, rows: Rows, *, seed: int, exhibits: bool) -> Evaluation:
        """Metrics, the consistency gap, reliability, confusions and the worst images."""
        prediction = trainer.predict(rows)
        logits, labels = np.asarray(prediction.predictions), np.asarray(prediction.label_ids)
        metrics = self.measure(logits, labels) | self.consistency(trainer, rows, seed)
        shown: list[Exhibit] = []
        if exhibits:
            pixels = np.rint(rows.columns["pixel_values"].numpy() * WHITE).astype(np.uint8)
            shown = [
                confusion(logits, labels, NAMES),
                worst_images(logits, labels, NAMES, lambda i, lines: captioned(Image.fromarray(pixels[i, 0]), lines)),
            ]
        return Evaluation(metrics, reliability(logits, labels), shown)

    def save(self, model: nn.Module, folder: Path) -> None:
        """Writes the weights."""
        save_model(model, str(folder / WEIGHTS))

    def restore(self, folder: Path) -> nn.Module:
        """The network with the weights of the folder."""
        model = self.build_model()
        try:
            load_model(model, folder / WEIGHTS)
        except (OSError, SafetensorError, RuntimeError) as error:
            raise UserError(
                f"{folder / WEIGHTS} does not hold the weights of {self.recipe.model.name}: {error}"
            ) from None
        return model

    def read(self, paths: Sequence[Path]) -> ImageFiles:
        """Image files as grey images, a bright digit on dark ground."""
        return ImageFiles(paths)

    def predict(self, model: nn.Module, rows: Rows, *, samples: int, seed: int) -> Iterator[Mapping[str, Any]]:
        """Class and confidence of each image, with its file."""
        answers = class_predictions(model, self.batches(rows, model), NAMES, samples=samples, seed=seed)
        for path, answer in zip(rows.paths, answers, strict=True):
            yield {"image": str(path), **answer}
