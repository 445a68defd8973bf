"""Image classification: folders of classes, tables of paths or Parquet, with any network of timm or transformers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import default_collate

from rdrop.errors import UserError
from rdrop.integrations.transformers import RDropConfig, RDropTrainer
from rdrop.toolkit.images.exhibits import worst_images
from rdrop.toolkit.images.models import ImageNetwork, restore_network, save_network
from rdrop.toolkit.images.network_pair import NetworkPair, PairTrainer
from rdrop.toolkit.images.recipe import NETWORKS, ImageRecipe
from rdrop.toolkit.images.rows import ImageRows
from rdrop.toolkit.images.splits import image_splits
from rdrop.toolkit.images.tables import Decoder, unlabelled_photos
from rdrop.toolkit.images.transforms import InputFormat
from rdrop.toolkit.metrics import (
    CLASSIFICATION_METRICS,
    CONSISTENCY_METRICS,
    classification_metrics,
    confusion,
    reliability,
)
from rdrop.toolkit.monte_carlo import class_predictions
from rdrop.toolkit.summary import Exhibit, Metric
from rdrop.toolkit.task import Evaluation, Rows, Splits, Task

MOST_CLASSES = 100  # of a confusion matrix, which has as many cells as their square


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
        model = self.recipe.model
        self.form = self._network(model.name).input_format(
            image_size=model.image_size, crop_pct=model.crop_pct, crop_mode=model.crop_mode
        )
        self.names, splits = image_splits(self.recipe, self.form, seed)
        return splits

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
            shown.append(worst_images(logits, labels, self.names, rows.picture))
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
