"""What a number cannot show: confusion matrices, pictures and texts of several runs, prepared for a page.

The macro `exhibit` of `exhibits.html.jinja` renders each of the views that `views` returns.
"""

from __future__ import annotations

import base64
import io
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

from PIL import Image

from rdrop.report.confusion import Matrices, matrices
from rdrop.report.svg import ArmStyle
from rdrop.toolkit.summary import Confusion, Exhibit, Gallery, Listing, Picture

# Pictures up to this size keep their pixels; larger ones are smoothed.
PIXELS_ARE_SHOWN = 64
LONG_TEXT = 600
WIDE_COLUMN = 24
UNFOLDED = 5
"""Rows and examples that are shown before the rest is folded away."""

Kind = TypeVar("Kind", Confusion, Gallery, Listing)


@dataclass(frozen=True)
class Source:
    """A run with its exhibits; where the page is about that run alone, it needs neither name nor style."""

    name: str
    style: ArmStyle | None
    exhibits: Sequence[Exhibit]


@dataclass(frozen=True)
class ConfusionView:
    """The confusion matrices of some runs; `matrices.panels` has one for each source."""

    key: str
    title: str
    sources: list[Source]
    matrices: Matrices
    kind: Literal["confusion"] = "confusion"


@dataclass(frozen=True)
class PictureView:
    """A picture; the address is None where its bytes are neither PNG nor JPEG."""

    address: str | None
    alternative: str
    pixelated: bool
    caption: list[str]


@dataclass(frozen=True)
class GalleryView:
    """The galleries of some runs, one for each source."""

    key: str
    title: str
    reading: str
    sources: list[Source]
    panels: list[list[PictureView]]
    kind: Literal["gallery"] = "gallery"


@dataclass(frozen=True)
class Text:
    """A text; of a long one, the beginning and what follows it."""

    start: str
    rest: str = ""


@dataclass(frozen=True)
class ListingView:
    """The tables of text of some runs, one for each source."""

    key: str
    title: str
    reading: str
    sources: list[Source]
    panels: list[TextTable]
    unfolded: int = UNFOLDED
    kind: Literal["listing"] = "listing"


@dataclass(frozen=True)
class TextTable:
    """A table of text, with the columns that need room."""

    columns: list[str]
    wide: list[bool]
    rows: list[list[Text]]


@dataclass(frozen=True)
class Answer:
    """What one or more runs say about an example, with a text for each column."""

    sources: list[Source]
    texts: list[Text]


@dataclass(frozen=True)
class Example:
    """What all runs were given, and their answers; runs that agree in all columns share one."""

    given: list[tuple[str, Text]]
    answers: list[Answer]


@dataclass(frozen=True)
class ExamplesView:
    """Tables of text about the same examples, as one table with the answers of all sources under each other."""

    key: str
    title: str
    reading: str
    columns: list[str]
    examples: list[Example]
    unfolded: int = UNFOLDED
    kind: Literal["examples"] = "examples"


View = ConfusionView | GalleryView | ListingView | ExamplesView


def views(sources: Sequence[Source]) -> list[View]:
    """Bring together the exhibits of several runs that have the same kind and title.

    Args:
        sources: The runs in the order of the page.

    Returns:
        The views in the order in which their first exhibit appears.

    Raises:
        ValueError: If a confusion matrix is not square, or a row of a listing has not one text for each column.

    >>> listing = Listing(title="Worst", reading="Least sure.", columns=["Text", "Taken for"], rows=[["a b", "c"]])
    >>> [view] = views([Source("plain", None, [listing]), Source("rdrop", None, [listing])])
    >>> view.kind, [source.name for source in view.examples[0].answers[0].sources]
    ('examples', ['plain', 'rdrop'])
    """
    groups: dict[tuple[str, ...], list[tuple[Source, Exhibit]]] = {}
    for source in sources:
        for exhibit in source.exhibits:
            # Matrices stand beside each other only with the same classes.
            classes = exhibit.labels if isinstance(exhibit, Confusion) else []
            groups.setdefault((exhibit.kind, exhibit.title, *classes), []).append((source, exhibit))
    return [_view(f"exhibit-{index}", members) for index, members in enumerate(groups.values())]


def _view(key: str, members: Sequence[tuple[Source, Exhibit]]) -> View:
    """One view of exhibits that have kind and title in common."""
    title = members[0][1].title
    if confusions := list(_of_kind(Confusion, members)):
        sources, shown = [source for source, _ in confusions], [exhibit for _, exhibit in confusions]
        return ConfusionView(key, title, sources, matrices([source.name for source in sources], shown))
    if galleries := list(_of_kind(Gallery, members)):
        panels = [_pictures(gallery) for _, gallery in galleries]
        return GalleryView(key, title, galleries[0][1].reading, [source for source, _ in galleries], panels)
    listings = list(_of_kind(Listing, members))
    reading = listings[0][1].reading
    for _, listing in listings:
        _check(listing)
    if given := _given(listings):
        return ExamplesView(key, title, reading, listings[0][1].columns[given:], _examples(listings, given))
    tables = [_text_table(listing) for _, listing in listings]
    return ListingView(key, title, reading, [source for source, _ in listings], tables)


def _of_kind(kind: type[Kind], members: Sequence[tuple[Source, Exhibit]]) -> Iterator[tuple[Source, Kind]]:
    """The members whose exhibit is of one kind."""
    return ((source, exhibit) for source, exhibit in members if isinstance(exhibit, kind))


def _pictures(gallery: Gallery) -> list[PictureView]:
    """The pictures of a gallery; one without a caption is named by its place."""
    return [
        _picture(picture, place=f"{gallery.title}, picture {index}")
        for index, picture in enumerate(gallery.pictures, start=1)
    ]


def _picture(picture: Picture, place: str) -> PictureView:
    """A picture as a data URI, if it is what a browser may be given."""
    name = next(iter(picture.caption), "").strip() or place
    found = _media_type_and_size(picture.image)
    if found is None:
        return PictureView(None, name, pixelated=False, caption=picture.caption)
    media_type, size = found
    address = f"data:{media_type};base64,{base64.b64encode(picture.image).decode('ascii')}"
    return PictureView(address, name, size <= PIXELS_ARE_SHOWN, picture.caption)


def _media_type_and_size(image: bytes) -> tuple[str, int] | None:
    """What a PNG or JPEG is and the longer of its sides, from its first bytes; None for all else."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # A picture that large would stop the reader's browser as well.
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(image), formats=("PNG", "JPEG")) as opened:
                # Pillow calls a JPEG with several pictures MPO; to a browser it is a JPEG.
                return "image/png" if opened.format == "PNG" else "image/jpeg", max(opened.size)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombWarning, Image.DecompressionBombError):
        return None


def _check(listing: Listing) -> None:
    """Refuses rows with too few or too many texts."""
    for index, row in enumerate(listing.rows):
        if len(row) != len(listing.columns):
            raise ValueError(
                f"Row {index} of the listing {listing.title!r} has {len(row)} texts; expected {len(listing.columns)}, "
                f"one for each column."
            )


def _given(listings: Sequence[tuple[Source, Listing]]) -> int:
    """How many of the first columns say the same in all runs, so that the rest can be compared row by row."""
    first = listings[0][1]
    others = [listing for _, listing in listings[1:]]
    if not others or not first.rows or any(each.columns != first.columns for each in others):
        return 0
    # The last column is an answer even where all runs give the same.
    for given in range(len(first.columns) - 1, 0, -1):
        start = [row[:given] for row in first.rows]
        if all([row[:given] for row in each.rows] == start for each in others):
            return given
    return 0


def _examples(listings: Sequence[tuple[Source, Listing]], given: int) -> list[Example]:
    """The rows of all runs, those with the same first columns together."""
    columns = listings[0][1].columns
    examples: list[Example] = []
    for rows in zip(*(listing.rows for _, listing in listings), strict=True):
        by_answer: dict[tuple[str, ...], list[Source]] = {}
        for (source, _), row in zip(listings, rows, strict=True):
            by_answer.setdefault(tuple(row[given:]), []).append(source)
        answers = [Answer(same, [_text(text) for text in texts]) for texts, same in by_answer.items()]
        examples.append(Example([(columns[i], _text(rows[0][i])) for i in range(given)], answers))
    return examples


def _text_table(listing: Listing) -> TextTable:
    """The texts of one run; a column with a long text may wrap."""
    columns = zip(*listing.rows, strict=True) if listing.rows else ([] for _ in listing.columns)
    wide = [max(map(len, texts), default=0) > WIDE_COLUMN for texts in columns]
    return TextTable(listing.columns, wide, [[_text(text) for text in row] for row in listing.rows])


def _text(text: str) -> Text:
    """A text, cut between words where it is long."""
    if len(text) <= LONG_TEXT:
        return Text(text)
    cut = text.rfind(" ", LONG_TEXT // 2, LONG_TEXT)
    cut = cut if cut > 0 else LONG_TEXT
    return Text(text[:cut], text[cut:])
