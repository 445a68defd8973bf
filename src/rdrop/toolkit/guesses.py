"""What a training split tells about the recipe: columns by their names and first rows, and the splits beside it."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from rdrop.errors import UserError
from rdrop.toolkit.data.file_data import TableData, named_path
from rdrop.toolkit.data.rows import BadRows
from rdrop.toolkit.data.tables import read_table, table_columns

ROWS = 200  # that are looked at
LONG = 3  # words of a text on average; labels have fewer
LISTED = 12  # columns in a sentence

Head = Mapping[str, Sequence[Any]]
"""Columns of a table in their order, each with its values in the first rows."""

TEXTS = ("text", "sentence", "review", "comment", "content", "body", "message", "tweet", "question", "document")
ANSWERS = (
    "label",
    "labels",
    "class",
    "category",
    "target",
    "sentiment",
    "score",
    "rating",
    "stars",
    "intent",
    "emotion",
)
TOKENS = ("tokens", "words")
TAGS = ("tags", "ner_tags", "labels", "ner", "pos_tags", "chunk_tags")
COMPARED = (
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("question1", "question2"),
    ("text1", "text2"),
    ("question", "sentence"),
)
TRANSLATED = (("source", "target"), ("src", "tgt"), ("input", "output"))
SUMMARIZED = (
    ("document", "summary"),
    ("article", "highlights"),
    ("article", "summary"),
    ("dialogue", "summary"),
    ("article", "abstract"),
    ("text", "summary"),
)
LANGUAGE = re.compile(r"[a-z]{2,3}([-_][A-Za-z]{2,4})?")
SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet")
IMAGES = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp", ".gif")
NEIGHBOURS = {"validation": ("validation", "valid", "val", "dev"), "test": ("test",)}


class Guess(NamedTuple):
    """A field of `data` that the files tell."""

    key: str
    """The field, for example `text`."""
    value: str
    reason: str

    def __str__(self) -> str:
        return f"data.{self.key}: {self.value} ({self.reason})"


def data_guesses(data: TableData, given: Collection[str]) -> tuple[list[Guess], list[str]]:
    """What the training split tells about the fields of `data` that the user has not set.

    Args:
        data: The section, which names the split.
        given: Fields that the user has set; they are left alone.

    Returns:
        The guesses, and sentences about what could not be guessed.
    """
    try:
        path = named_path(data, "train")
    except UserError as error:
        return [], [str(error)] if "train" in given else []
    assert path is not None
    fields: dict[str, str | None] = {key: getattr(data, key) for key in FIELDS if hasattr(data, key)}
    head: Head = {}
    if path.suffix != ".txt" and Path(path.name.lower().removesuffix(".gz")).suffix in SUFFIXES:
        try:
            head = table_head(path, data)
        except UserError as error:
            return [], [str(error)]
    found, unknown = guessed(head, fields, given) if head else ([], [])
    told = [
        f"data.{key}: none of the columns {listed(head)} looks like it; set data.{key} to one of them"
        for key in unknown
    ]
    columns = fields | {guess.key: guess.value for guess in found}
    answers = head.get(columns.get("label") or "")
    if answers and "answer" not in given and hasattr(data, "answer"):
        answer = guessed_answer(answers, getattr(data, "label_separator", ","))
        found += [Guess("answer", *answer)] if answer else []
    for part, other in neighbours(path).items():
        if part in given or getattr(data, part) is not None:
            continue
        missing = _missing_column(other, [name for name in columns.values() if name in head], data) if head else None
        if missing is None:
            name = Path(data.train).with_name(other.name)
            found.append(Guess(part, str(name), "it lies beside the training split"))
        else:
            told.append(f"data.{part}: {other.name} is not taken, {missing}")
    return found, told


def _missing_column(path: Path, columns: Iterable[str | None], data: TableData) -> str | None:
    """Why a table cannot be a split beside one with these columns."""
    try:
        present = table_columns(path, **data.form)
    except UserError as error:
        return str(error)
    return next((f"since it has no column {name}" for name in columns if name not in present), None)


def table_head(path: Path, data: TableData) -> Head:
    """The columns of a table with their values in its first rows; rows that cannot be read are left out.

    Args:
        path: The table.
        data: How it is written.

    Raises:
        UserError: It cannot be read.
    """
    names = table_columns(path, **data.form)
    rows = read_table(path, [], optional_columns=names, **data.form, bad_rows=BadRows("skip"))
    values = [row.values for row in islice(rows, ROWS)]
    return {name: [row.get(name) for row in values] for name in names}


def guessed(head: Head, fields: Mapping[str, str | None], given: Collection[str]) -> tuple[list[Guess], list[str]]:
    """What the fields of `data` that name columns should be, where the table has no such column.

    Args:
        head: The table.
        fields: Fields of the recipe's `data` that name columns, with their values.
        given: Fields that the user has set; they are left alone.

    Returns:
        The guesses, and the fields for which there is none.

    >>> head = {"id": ["1", "2"], "sentence": ["A good film.", "Not a good one."], "class": ["yes", "no"]}
    >>> for guess in guessed(head, {"text": "text", "pair": None, "label": "label"}, given=[])[0]:
    ...     print(guess)
    data.text: sentence (the only column with long texts)
    data.label: class (a usual name of answers)
    """
    wanted = [key for key, value in fields.items() if key not in given and value is not None and value not in head]
    # These would be read as null.
    free = {name: head[name] for name in head if name not in fields.values() and name not in ("", "~", "null")}
    found: list[Guess] = []
    for keys, look in LOOKS.items():
        missing = [key for key in keys if key in wanted]
        if missing[:1] == ["text"] and "pair" not in given:
            missing.append("pair")
        for guess in look(free, missing) if missing else []:
            found.append(guess)
            del free[guess.value]
    return found, [key for key in wanted if key not in [guess.key for guess in found]]


def guessed_answer(values: Sequence[Any], separator: str) -> tuple[str, str] | None:
    """What kind of answer a column holds, and why; None for classes.

    Args:
        values: The column in the first rows.
        separator: What stands between the labels of a row.

    >>> guessed_answer(["3.8", "5", "0.25"], ",")
    ('regression', 'its numbers have fractions')
    >>> guessed_answer(["joy", "joy,pride", "", "pride"], ",")
    ('multi-label', "',' stands between labels")
    """
    told = [value for value in values if value is not None]
    if told and all(isinstance(value, list) for value in told):
        return "multi-label", "its values are lists"
    numbers = [_number(value) for value in told if value != ""]
    if numbers and None not in numbers:
        fractions = any(number is not None and number % 1 for number in numbers)
        return ("regression", "its numbers have fractions") if fractions else None
    sets = {value for value in told if isinstance(value, str) and value.strip()}
    parts = {part.strip() for value in sets for part in value.split(separator)}
    several = any(separator in value for value in sets)
    if several and len(parts) < len(sets) and all(len(part.split()) <= LONG for part in parts):
        return "multi-label", f"{separator!r} stands between labels"
    return None


def neighbours(train: Path) -> dict[str, Path]:
    """Files or folders beside a training split whose names say that they are for validation and for testing.

    Args:
        train: The training split.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     for name in ("sst-train.tsv", "sst-dev.tsv", "test.tsv"):
    ...         _ = (Path(folder) / name).write_text("text")
    ...     {part: path.name for part, path in neighbours(Path(folder) / "sst-train.tsv").items()}
    {'validation': 'sst-dev.tsv', 'test': 'test.tsv'}
    """
    stem, dot, suffix = train.name.partition(".")
    found = {}
    for part, words in NEIGHBOURS.items():
        names = [stem.replace("train", word) for word in words if "train" in stem] + list(words)
        paths = [train.with_name(name + dot + suffix) for name in names]
        path = next((path for path in paths if path.exists() and path.is_dir() == train.is_dir()), None)
        if path is not None and path != train:
            found[part] = path
    return found


def listed(names: Iterable[str]) -> str:
    """Columns in a sentence.

    >>> listed(["id", "sentence"])
    'id, sentence'
    """
    first = list(names)
    return ", ".join(f"{name:.40}" for name in first[:LISTED]) + (", ..." if len(first) > LISTED else "")


def _words(values: Sequence[Any]) -> float:
    """Words of a text on average; 0 where a value is no text."""
    if not values or not all(isinstance(value, str) for value in values):
        return 0.0
    return sum(len(value.split()) for value in values) / len(values)


def _long(head: Head) -> list[str]:
    return [name for name, values in head.items() if _words(values) >= LONG]


def _number(value: object) -> float | None:
    try:
        return float(value) if isinstance(value, int | float | str) and not isinstance(value, bool) else None
    except (ValueError, OverflowError):
        return None


def _named(head: Head, names: Iterable[str]) -> str | None:
    """The column with the first of some names, in any case of letters."""
    lower = {name.lower().strip(): name for name in reversed(list(head))}
    return next((lower[name] for name in names if name in lower), None)


def _pair(head: Head, usual: Iterable[tuple[str, str]]) -> tuple[str, str] | None:
    """The first two columns with names that go together."""
    for first, second in usual:
        names = _named(head, [first]), _named(head, [second])
        if names[0] is not None and names[1] is not None:
            return names[0], names[1]
    return None


def _texts(head: Head, keys: Sequence[str]) -> list[Guess]:
    """One text, or two that are to be compared."""
    if len(keys) == 2 and (names := _pair(head, COMPARED)):
        return [Guess(key, name, "usual names of texts to compare") for key, name in zip(keys, names, strict=True)]
    long = _long(head)
    if len(long) == 1:
        return [Guess(keys[0], long[0], "the only column with long texts")]
    name = _named({name: head[name] for name in long or head}, TEXTS)
    return [Guess(keys[0], name, "a usual name of texts")] if name else []


def _answer(head: Head, keys: Sequence[str]) -> list[Guess]:
    """The column of answers."""
    if name := _named(head, ANSWERS):
        return [Guess(keys[0], name, "a usual name of answers")]
    few = [
        name
        for name, values in head.items()
        if all(isinstance(value, str | int) for value in values)
        and 2 <= len(set(values)) <= len(values) / 2
        and max(len(str(value).split()) for value in values) <= LONG
    ]
    return [Guess(keys[0], few[0], "the only column with few values that repeat")] if len(few) == 1 else []


def _tagged(head: Head, keys: Sequence[str]) -> list[Guess]:
    """Lists of words and lists of tags."""
    lists = {name: values for name, values in head.items() if values and all(isinstance(v, list) for v in values)}
    found: list[Guess] = []
    for key, names, what in (("tokens", TOKENS, "words"), ("tags", TAGS, "tags")):
        name, reason = _named(lists, names), f"a usual name of {what}"
        if name is None and len(lists) == 1:
            name, reason = next(iter(lists)), "the only other column of lists" if found else "the only column of lists"
        if key in keys and name is not None:
            found.append(Guess(key, name, reason))
            del lists[name]
    return found


def _written(head: Head, keys: Sequence[str]) -> list[Guess]:
    """A text and what is to be written for it."""
    long = _long(head)
    if len(keys) == 1:
        return [Guess(keys[0], long[0], "the only other column with long texts")] if len(long) == 1 else []
    translated = keys[0] == "source"
    if names := _pair(head, TRANSLATED if translated else SUMMARIZED):
        return [Guess(key, name, "a usual pair of names") for key, name in zip(keys, names, strict=True)]
    if translated:
        spoken = [name for name in head if LANGUAGE.fullmatch(name) and _words(head[name]) > 1][:2]
        if len(spoken) == 2:
            reasons = ("the first column named as a language", "the second one")
            return [Guess(*guess) for guess in zip(keys, spoken, reasons, strict=True)]
    if len(long) != 2:
        return []
    if not translated:
        long.sort(key=lambda name: -_words(head[name]))
    reasons = ("the first", "the second") if translated else ("the longer", "the shorter")
    told = (f"{reason} of the only two columns with long texts" for reason in reasons)
    return [Guess(*guess) for guess in zip(keys, long, told, strict=True)]


def _image(head: Head, keys: Sequence[str]) -> list[Guess]:
    """Names of image files, or the files themselves."""
    names = [name for name, values in head.items() if values and all(map(_is_image, values))]
    return [Guess(keys[0], names[0], "the only column of images")] if len(names) == 1 else []


def _is_image(value: object) -> bool:
    if isinstance(value, str):
        return value.lower().endswith(IMAGES)
    return isinstance(value, bytes) or (isinstance(value, dict) and bool(value) and {"bytes", "path"} >= value.keys())


LOOKS: Mapping[tuple[str, ...], Callable[[Head, Sequence[str]], list[Guess]]] = {
    ("text",): _texts,
    ("text_column",): _texts,
    ("image",): _image,
    ("label",): _answer,
    ("tokens", "tags"): _tagged,
    ("source", "target"): _written,
    ("document", "summary"): _written,
}
"""The fields of `data` that name columns, those together that are guessed together."""
FIELDS = ("pair", *(key for keys in LOOKS for key in keys))
