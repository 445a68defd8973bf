"""The images that a recipe names, read and drawn from, as the splits of a run."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from rdrop.errors import UserError
from rdrop.toolkit.data.file_data import draw, hold_out, named_path, split_seed
from rdrop.toolkit.data.label_names import LabelNames, given_names, learned_names, require_examples
from rdrop.toolkit.data.labelled_splits import split_paths
from rdrop.toolkit.data.rows import BadRows
from rdrop.toolkit.images.recipe import ImageData, ImageRecipe
from rdrop.toolkit.images.rows import ImageRows
from rdrop.toolkit.images.streaming import Contents, StreamedImages
from rdrop.toolkit.images.tables import (
    Decoder,
    ListedImage,
    Photo,
    labelled_photos,
    listed_images,
    repeated_images,
    unused_files,
)
from rdrop.toolkit.images.transforms import Augmentation, InputFormat, Transform
from rdrop.toolkit.task import Rows, Splits

Photos = dict[str, list[Photo]]  # by split


def image_splits(recipe: ImageRecipe, form: InputFormat, seed: int) -> tuple[list[str], Splits]:
    """Reads and checks the images that a recipe names.

    Args:
        recipe: Names them.
        form: What the network wants an image to be.
        seed: Seed of the run: of what is drawn, unless the recipe has its own, and of random changes.

    Returns:
        The classes, which are those of the training split, and the splits.

    Raises:
        UserError: There is something that cannot be used.
    """
    data = recipe.data
    file, paths = named_path(data, "classes"), split_paths(data)
    given = None if file is None else given_names(file, data.encoding)
    training = paths.pop("train")
    bad_rows, decoder = BadRows(data.on_bad_row), Decoder(form, keep=data.cache)
    found = (_streamed if data.streaming else _held)(recipe, seed, training, paths, given, decoder, bad_rows)
    decoder.finish()
    transform, counts = form.evaluation(), [found.described]
    judged = {}
    for part, photos in found.judged.items():
        judged[part] = ImageRows(photos, [found.ids[photo.label] for photo in photos], transform)
    if "validation" in judged:
        where = data.validation or f"held out of {data.train}"
        counts.append(f"{len(judged['validation']):,} for validation ({where})")
    if "test" in judged:
        counts.append(f"{len(judged['test']):,} for testing ({data.test})")
    unused = [note for path in (training, *paths.values()) for note in unused_files(path)]
    repeated = repeated_images({"train": found.repeatable, **found.judged})
    splits = Splits(
        train=found.rows,
        validation=judged.get("validation"),
        test=judged.get("test"),
        description=f"Images of {len(found.ids)} classes: {', '.join(counts)}.",
        notes=(*bad_rows.sentences(), *unused, *repeated, *found.notes),
    )
    return list(found.ids), splits


@dataclass(frozen=True)
class _Found:
    """What was found."""

    ids: dict[str, int]
    """Of the classes."""
    rows: Rows
    """To train on."""
    judged: Photos
    """The other splits."""
    repeatable: Sequence[Photo]
    """The images to train on, or those of them whose files are in another split."""
    described: str
    """How many are to be trained on."""
    notes: Sequence[str] = ()


def _held(
    recipe: ImageRecipe,
    seed: int,
    path: Path,
    others: dict[str, Path],
    given: LabelNames | None,
    decoder: Decoder,
    bad_rows: BadRows,
) -> _Found:
    """All splits, in memory."""
    data = recipe.data
    everything = list(labelled_photos(_listed(path, data, given)(bad_rows), decoder, bad_rows))
    labels = [photo.label for photo in everything]
    names = _learned(given, labels, path, data)
    photos = _judged(others, data, names, decoder, bad_rows)
    drawing = split_seed(data, seed)
    chosen = np.arange(len(everything))
    if "validation" not in photos and data.validation_fraction > 0:
        chosen, held_out = hold_out(labels, len(everything), data.validation_fraction, drawing, name=data.train)
        photos["validation"] = [everything[i] for i in held_out]
    chosen = draw(labels, chosen, data.train_size, drawing, name=data.train)
    training = [everything[i] for i in chosen]
    told = f"{len(training):,} of the {len(everything):,} in {data.train} for training"
    if len(training) < len(everything):
        often = "anew for each seed" if data.split_seed is None else f"once, with seed {data.split_seed}"
        told += f", drawn by class {often}"
    transform, random_seed = _augmented(recipe, decoder.form, seed)
    ids = _ids(names)
    rows = ImageRows(training, [ids[photo.label] for photo in training], transform, seed=random_seed)
    return _Found(ids, rows, photos, training, told)


def _streamed(
    recipe: ImageRecipe,
    seed: int,
    path: Path,
    others: dict[str, Path],
    given: LabelNames | None,
    decoder: Decoder,
    bad_rows: BadRows,
) -> _Found:
    """All splits, of which that of training is read and checked, and not kept."""
    data = recipe.data
    if path.is_dir():
        raise UserError(
            f"data.train is {data.train}, a folder, whose classes come one after another, so that no buffer mixes "
            "them; name a table of its images, or set data.streaming: false and data.cache: false, with which no more "
            "than their list is in memory"
        )
    # Files of these splits are found in training while it passes. As long as the classes are not known, their labels
    # cannot be checked, so they are read once more below, and what cannot be used of them is counted there.
    early = _judged(others, data, given, decoder, BadRows(data.on_bad_row))
    digests = {photo.digest for photos in early.values() for photo in photos}
    passing = Decoder(decoder.form, keep=False, remember=False)
    contents = Contents.of(labelled_photos(_listed(path, data, given)(bad_rows), passing, bad_rows), digests)
    names = _learned(given, contents.counts, path, data)
    transform, random_seed = _augmented(recipe, decoder.form, seed)
    rows = StreamedImages(
        _listed(path, data, names),
        _ids(names),
        transform,
        decoder.shrink,
        policy=data.on_bad_row,
        buffer=data.shuffle_buffer,
        batch_size=recipe.training.batch_size,
        order_seed=split_seed(data, seed),
        seed=random_seed,
    )
    notes = [f"The training split is streamed and its order random within {data.shuffle_buffer:,} images."]
    length, label = contents.longest_run
    if length > data.shuffle_buffer:
        notes.append(
            f"{length:,} images of {data.train} that come one after another are all {label!r}, more than "
            "data.shuffle_buffer mixes with others; put the rows into random order."
        )
    told = f"the {contents.counts.total():,} in {data.train}, streamed, for training"
    photos = _judged(others, data, names, decoder, bad_rows)
    return _Found(_ids(names), rows, photos, contents.repeated, told, notes)


def _listed(path: Path, data: ImageData, names: LabelNames | None) -> Callable[[BadRows], Iterator[ListedImage]]:
    """What lists a split, from the start each time; without names, every label is one."""
    known = _any_label if names is None else names.known
    return partial(listed_images, path, data, (data.image, data.label), known)


def _any_label(label: str, _: str) -> str:
    return label


def _judged(
    paths: dict[str, Path], data: ImageData, names: LabelNames | None, decoder: Decoder, bad_rows: BadRows
) -> Photos:
    """The splits that are not trained on."""
    return {
        part: list(labelled_photos(_listed(path, data, names)(bad_rows), decoder, bad_rows))
        for part, path in paths.items()
    }


def _learned(given: LabelNames | None, labels: Collection[str], path: Path, data: ImageData) -> LabelNames:
    """The classes, of which every one has training images."""
    names = given or learned_names(labels, path)
    require_examples(names, set(labels), path, column=data.label)
    return names


def _ids(names: LabelNames) -> dict[str, int]:
    return {name: index for index, name in enumerate(names.names)}


def _augmented(recipe: ImageRecipe, form: InputFormat, seed: int) -> tuple[Transform, int | None]:
    """The transform of training, and the seed of what is random in it."""
    training = recipe.training
    augmentation = Augmentation(
        training.augmentation,
        training.smallest_crop,
        training.flips,
        training.color_jitter,
        training.random_erasing,
    )
    return form.training(augmentation), None if augmentation.kind == "none" else seed
