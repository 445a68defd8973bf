"""Images with their labels: a folder of classes, a table of paths, or a table that holds the files themselves.

First they are listed. Then every image is opened and decoded to the last pixel, so that what cannot be used is known
before anything is trained.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from rdrop.errors import UserError
from rdrop.toolkit.data.file_data import TableData
from rdrop.toolkit.data.files import inside, opened
from rdrop.toolkit.data.rows import BadRows, BadValue, Row, label_value
from rdrop.toolkit.data.tables import read_table
from rdrop.toolkit.images.files import BadImage, decode_image
from rdrop.toolkit.images.transforms import InputFormat, Shrinker
from rdrop.toolkit.plain_yaml import shown

Pixels = NDArray[np.uint8]  # (H, W, 3)

MOST_BYTES = 2**28  # of an image file; a film that lies among the images would fill the memory
QUOTED = 3  # names in a sentence


@dataclass(frozen=True, slots=True)
class ListedImage:
    """An image that a folder or a table lists; nobody has opened it yet."""

    name: str
    """For a reader: its path from the data folder, or the table and the row that hold it."""
    label: str
    """Its class; empty where nobody knows."""
    encoded: Path | bytes
    """Its file."""
    place: Path
    """What a message about it names: a table, or the file itself."""
    row: int | None = None
    """Its row in the table."""
    prefix: str = ""
    """What such a message begins with."""

    def image(self, shrink: Shrinker) -> Image.Image:
        """The image, no larger than needed.

        Raises:
            BadValue: It cannot be read or is no image.
        """
        return _decoded(_content(self.encoded), shrink)

    def report(self, error: BadValue, bad_rows: BadRows) -> None:
        """Applies the policy to an image that cannot be opened.

        Raises:
            UserError: The policy is `fail`.
        """
        bad_rows.report(self.place, self.row, f"{self.prefix}{error}")


@dataclass(frozen=True, slots=True)
class Photo:
    """An image of the user's that was found and decoded."""

    name: str
    """As in `ListedImage`."""
    label: str
    """Its class; empty where nobody knows."""
    digest: bytes
    """Equal for equal files."""
    encoded: Path | bytes
    """The file, where there are no pixels."""
    pixels: Pixels | None
    """The image, no larger than needed; None: it is decoded anew each time."""
    shrink: Shrinker

    def image(self) -> Image.Image:
        """The image, no larger than needed.

        Raises:
            UserError: The file is no longer what it was.
        """
        if self.pixels is not None:
            return Image.fromarray(self.pixels)
        try:
            return _decoded(_content(self.encoded), self.shrink)
        except BadValue as error:
            raise UserError(f"{self.name}: {error}") from None


class Decoder:
    """Decodes and checks images; what one load has decoded, the next one in the same process takes from it.

    Args:
        form: What the network wants; images are held no larger than that needs.
        keep: Whether to hold the pixels.
        remember: Whether to know a file that was decoded once, which takes some memory for each.
    """

    _latest: ClassVar[dict[tuple[bytes, InputFormat, bool], Pixels | None]] = {}

    def __init__(self, form: InputFormat, *, keep: bool, remember: bool = True) -> None:
        self.form = form
        self.keep = keep
        self.remember = remember
        self.shrink = form.shrinker()
        self._seen: dict[tuple[bytes, InputFormat, bool], Pixels | None] = {}

    def __call__(self, listed: ListedImage) -> Photo:
        """The image of a file, or of its bytes.

        Raises:
            BadValue: It cannot be read or is no image.
        """
        content = _content(listed.encoded)
        digest = blake2b(content, digest_size=16).digest()
        key = (digest, self.form, self.keep)
        known = self._seen if key in self._seen else self._latest
        if key in known:
            pixels = known[key]
        else:
            image = _decoded(content, self.shrink)
            pixels = np.asarray(image) if self.keep else None
        if self.remember:
            self._seen[key] = pixels
        source = listed.encoded if pixels is None else b""  # else files from a table would be in memory twice
        return Photo(listed.name, listed.label, digest, source, pixels, self.shrink)

    def finish(self) -> None:
        """Keeps what was decoded for the next load, in place of what earlier ones decoded."""
        type(self)._latest = self._seen


def labelled_photos(listed: Iterable[ListedImage], decoder: Decoder, bad_rows: BadRows) -> Iterator[Photo]:
    """The images of a split, decoded one at a time as they are asked for.

    Args:
        listed: The images, from `listed_images`.
        decoder: Opens them.
        bad_rows: What becomes of one that cannot be used.

    Raises:
        UserError: One cannot be used and the policy is `fail`.
    """
    for image in listed:
        try:
            photo = decoder(image)
        except BadValue as error:
            image.report(error, bad_rows)
        else:
            yield photo


def listed_images(
    path: Path, data: TableData, columns: tuple[str, str], known: Callable[[str, str], str], bad_rows: BadRows
) -> Iterator[ListedImage]:
    """The images of a split with their labels, read as they are asked for.

    Args:
        path: A folder with a folder for each class, or a table.
        data: How the table is written, and the folder that no path may leave.
        columns: Names of its columns with the image and the label.
        known: From a label and where it stands to the name of the class, or to a `BadValue`.
        bad_rows: What becomes of what cannot be used. Who opens the images reports to it as well, each one before the
            next is asked for, if it is to be told that there is nothing that can be used.

    Yields:
        The images; those of a folder in the order of their names.

    Raises:
        UserError: There is nothing that can be used, or something that cannot and the policy is `fail`.
    """
    root = Path(data.folder)
    if path.is_dir():
        yield from _from_class_folders(path, root, known, bad_rows)
    else:
        yield from _from_table(path, root, data, columns, known, bad_rows)


def unlabelled_photos(paths: Iterable[Path], decoder: Decoder) -> list[Photo]:
    """The images of files, and of folders with everything below them.

    Raises:
        UserError: One cannot be used, or there is none; the message names it.
    """
    found = []
    for path in paths:
        files = list(_files_below(path)) if path.is_dir() else [path]
        if not files:
            raise UserError(f"{path} holds no file; expected images")
        for file in files:
            try:
                found.append(decoder(ListedImage(str(file), "", file, file)))
            except BadValue as error:
                raise UserError(f"{file}: {error}") from None
    return found


def unused_files(path: Path) -> list[str]:
    """A sentence if files lie beside the folders of the classes, where they belong to no class."""
    loose = [entry.name for entry in _entries(path) if entry.is_file()] if path.is_dir() else []
    if not loose:
        return []
    return [f"Files beside the folders of the classes are not used: {_few(loose)} in {path}."]


def repeated_images(splits: Mapping[str, Sequence[Photo]]) -> list[str]:
    """Sentences about images of which the same file is in training and in another split.

    Args:
        splits: The images of each split; that of training is `train`.
    """
    trained = {photo.digest: photo for photo in splits["train"]}
    told = []
    for name, photos in splits.items():
        twice = [f"{photo.name} ({trained[photo.digest].name})" for photo in photos if photo.digest in trained]
        if name != "train" and twice:
            images = "1 image" if len(twice) == 1 else f"{len(twice):,} images"
            told.append(
                f"{images} of the {name} split, and the same file in training, which makes the metrics look better "
                f"than they are: {_few(twice)}."
            )
    return told


def _from_class_folders(
    path: Path, root: Path, known: Callable[[str, str], str], bad_rows: BadRows
) -> Iterator[ListedImage]:
    """Images in a folder for each class, at any depth below it."""
    folders = [entry for entry in _entries(path) if entry.is_dir()]
    if not folders:
        raise UserError(f"{path} holds no folder; expected one for each class, as in {path / 'rosette' / '1.jpg'}")
    tried, skipped_before = 0, bad_rows.count
    for folder in folders:
        files = list(_files_below(folder))
        tried += max(1, len(files))
        if not files and bad_rows.policy == "fail":
            raise UserError(
                f"{folder}: the folder of a class is empty; put images into it, delete it, or set data.on_bad_row: "
                "skip to go without that class"
            )
        if not files:
            bad_rows.report(folder, None, "the folder of a class is empty")
        for file in files:
            try:
                inside(root, str(file.absolute()))
                label = known(folder.name, "the name of the folder")
            except BadValue as error:
                bad_rows.report(file, None, str(error))
            else:
                yield ListedImage(_below(root, file), label, file, file)
    # Those that the caller reported are among them: it has done so by the time it asks for the next one.
    if bad_rows.count - skipped_before == tried:
        raise UserError(f"nothing is left of {path}: {' '.join(bad_rows.sentences())}")


def _from_table(
    path: Path,
    root: Path,
    data: TableData,
    columns: tuple[str, str],
    known: Callable[[str, str], str],
    bad_rows: BadRows,
) -> Iterator[ListedImage]:
    """Images that a table names or holds."""
    image_column, label_column = columns
    rows = read_table(
        path,
        columns,
        **data.form,
        bad_rows=bad_rows,
    )
    for row in rows:
        try:
            label = known(label_value(row, label_column), label_column)
            encoded = _image_value(row, image_column, root)
        except BadValue as error:
            bad_rows.report(row.path, row.number, str(error))
        else:
            if isinstance(encoded, Path):
                name = _below(root, encoded)
                prefix = f"{image_column} {name}: "
            else:
                name, prefix = f"{_below(root, row.path)}, row {row.number}", f"{image_column}: "
            yield ListedImage(name, label, encoded, row.path, row.number, prefix)


def _image_value(row: Row, column: str, root: Path) -> Path | bytes:
    """The image of a row: a path from the table's own folder, bytes, or what `datasets` writes for an image."""
    value: Any = row.values[column]
    if isinstance(value, dict) and {"bytes", "path"} >= value.keys():
        value = value["bytes"] if value.get("bytes") is not None else value.get("path")
    if isinstance(value, bytes):
        return value
    if not isinstance(value, str) or not value.strip():
        told = "an object" if isinstance(value, dict) else shown(value)
        raise BadValue(f"{column}: got {told}, expected the path of an image, or the bytes of its file")
    try:
        return inside(root, str(row.path.parent.absolute() / value))
    except BadValue as error:
        raise BadValue(f"{column}: {error}") from None


def _decoded(content: bytes, shrink: Shrinker) -> Image.Image:
    """The image in a file's bytes, no larger than needed."""
    try:
        return shrink(decode_image(content))
    except BadImage as error:
        raise BadValue(str(error)) from None


def _content(encoded: Path | bytes) -> bytes:
    """The whole file."""
    if isinstance(encoded, bytes):
        content = encoded
    else:
        try:
            with opened(encoded) as file:
                content = file.read(MOST_BYTES + 1)
        except UserError as error:
            raise BadValue(str(error)) from None
        except OSError as error:
            raise BadValue(f"it cannot be read: {error.strerror}") from None
    if len(content) > MOST_BYTES:
        raise BadValue(f"it has more than {MOST_BYTES // 2**20} MiB; expected an image")
    return content


def _entries(folder: Path) -> list[Path]:
    """What is in a folder, without hidden files and folders, in order."""
    try:
        return sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    except OSError as error:
        raise UserError(f"cannot list the folder {folder}: {error.strerror}") from None


def _files_below(folder: Path) -> Iterator[Path]:
    """All files below a folder, without hidden ones, in order; links to folders are not followed."""
    for where, folders, files in os.walk(folder, onerror=_raise):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(where, name) for name in sorted(files) if not name.startswith("."))


def _raise(error: OSError) -> None:
    raise UserError(f"cannot list the folder {error.filename}: {error.strerror}") from None


def _below(root: Path, path: Path) -> str:
    """A path as seen from the data folder."""
    whole, top = path.resolve(), root.resolve()
    return whole.relative_to(top).as_posix() if whole.is_relative_to(top) else str(path)


def _few(names: Sequence[str]) -> str:
    """The first few of some names."""
    return ", ".join(names[:QUOTED]) + (f" and {len(names) - QUOTED:,} more" if len(names) > QUOTED else "")
