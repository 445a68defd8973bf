"""Training images that do not fit into memory: listed anew in every epoch, shuffled in a buffer, decoded one by one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import count, groupby
from typing import Any, Self, TypeVar

import numpy as np
from torch.utils.data import IterableDataset, get_worker_info

from rdrop.errors import UserError
from rdrop.toolkit.data.rows import BadRows, BadValue, Policy
from rdrop.toolkit.images.rows import transformed
from rdrop.toolkit.images.tables import ListedImage, Photo
from rdrop.toolkit.images.transforms import Shrinker, Transform

E = TypeVar("E")


class StreamedImages(IterableDataset[dict[str, Any]]):
    """The rows of `ImageRows` in random order, epoch after epoch without end.

    A Trainer counts no epochs of what has no length, and so could not go on within a later one after a stop. Of what
    has no end, there is only one.

    Images wait in the buffer as they are listed: as a path, or as the bytes of the file that a table holds. Every
    worker process reads the whole list and decodes the batches that fall to it, so that their number changes the order
    only where an image is skipped.

    Args:
        listed: Lists the images from the start; what it is given decides on rows that cannot be used.
        ids: Class id of each label.
        transform: From an image to the tensor of the network.
        shrink: Brings an image to what the transform is used to.
        policy: What becomes of an image that cannot be opened.
        buffer: Images that wait to be handed out.
        batch_size: Images that are handed to one worker process at a time.
        order_seed: Seed of the order.
        seed: Seed of a random transform, as in `ImageRows`. None: it is not random.
    """

    def __init__(
        self,
        listed: Callable[[BadRows], Iterator[ListedImage]],
        ids: Mapping[str, int],
        transform: Transform,
        shrink: Shrinker,
        *,
        policy: Policy,
        buffer: int,
        batch_size: int,
        order_seed: int,
        seed: int | None,
    ) -> None:
        self.listed = listed
        self.ids = ids
        self.transform = transform
        self.shrink = shrink
        self.policy = policy
        self.buffer = buffer
        self.batch_size = batch_size
        self.order_seed = order_seed
        self.seed = seed

    def __iter__(self) -> Iterator[dict[str, Any]]:
        place = misses = 0  # misses: images in a row that could not be opened
        for epoch in count():
            bad_rows = BadRows(self.policy)  # a new one: rows that are skipped were counted before training
            begin = place
            order = np.random.default_rng([self.order_seed, epoch])
            for index, image in shuffled(enumerate(self.listed(bad_rows)), self.buffer, order):
                mine = _is_mine(place // self.batch_size)
                place += 1
                if not mine:
                    continue
                try:
                    picture = image.image(self.shrink)
                except BadValue as error:
                    image.report(error, bad_rows)
                    misses += 1
                    continue
                misses = 0
                pixels = transformed(picture, self.transform, self.seed, epoch, index)
                yield {"pixel_values": pixels, "labels": self.ids[image.label]}
            if misses >= place - begin:  # as many as there are; else it would go on for ever without a row
                raise UserError(f"no training image can be used any more: {' '.join(bad_rows.sentences())}")


@dataclass(frozen=True)
class Contents:
    """What is in a split that nobody keeps."""

    counts: Counter[str]
    """How many images have each label."""
    repeated: list[Photo]
    """Those whose files are elsewhere too, one for each such file."""
    longest_run: tuple[int, str]
    """How many images with the same label come one after another, at most, and the label."""

    @classmethod
    def of(cls, photos: Iterable[Photo], elsewhere: Container[bytes]) -> Self:
        """What is in a split.

        Args:
            photos: Its images, which are looked at one by one.
            elsewhere: Digests of the files of other splits.
        """
        counts: Counter[str] = Counter()
        repeated: dict[bytes, Photo] = {}
        longest = (0, "")
        for label, run in groupby(photos, key=lambda photo: photo.label):
            length = 0
            for photo in run:
                length += 1
                if photo.digest in elsewhere:
                    repeated[photo.digest] = photo
            counts[label] += length
            longest = max(longest, (length, label))
        return cls(counts, list(repeated.values()), longest)


def shuffled(items: Iterable[E], buffer: int, order: np.random.Generator) -> Iterator[E]:
    """All items, each drawn from those that wait; there are as many of these as the buffer takes.

    Args:
        items: Read as far as the buffer needs it.
        buffer: How many wait, at least 1.
        order: Draws.

    >>> sorted(shuffled("abcde", 3, np.random.default_rng(0)))
    ['a', 'b', 'c', 'd', 'e']
    """
    waiting: list[E] = []
    for item in items:
        if len(waiting) < buffer:
            waiting.append(item)
            continue
        drawn = int(order.integers(buffer))
        item, waiting[drawn] = waiting[drawn], item
        yield item
    while waiting:
        drawn = int(order.integers(len(waiting)))
        waiting[drawn], waiting[-1] = waiting[-1], waiting[drawn]
        yield waiting.pop()


def _is_mine(batch: int) -> bool:
    """Whether a batch falls to this worker process; a loader takes batches from all of them in turn."""
    worker = get_worker_info()
    return worker is None or batch % worker.num_workers == worker.id
