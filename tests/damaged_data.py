"""Small folders of data with a recipe for every kind of task, and what can be done to them.

Every text and every image carries a key from which its answer follows, so an answer that moved to another row is seen.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import random
import re
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from PIL import Image

from rdrop.toolkit.recipe_fields import recipe_fields
from rdrop.toolkit.tasks import recipe_class

KEYS = 12  # of a table
ODD = "geht's ä \U0001f600 <s> \u2028"  # what encodings, tokenizers and line readers stumble over


# What a folder holds before it is damaged.


@dataclass
class Table:
    """A table that is still rows and columns."""

    columns: list[str]
    rows: list[list[Any]]
    suffix: str
    delimiter: str = ""
    line_end: str = "\n"
    encoding: str = "utf-8"
    mark: bytes = b""

    def __post_init__(self) -> None:
        self.needed = tuple(self.columns)

    @property
    def refused(self) -> bool:
        """Whether a column is missing, or there twice."""
        return any(self.columns.count(name) != 1 for name in self.needed)

    def content(self) -> bytes:
        if self.suffix == ".parquet":
            made = pa.BufferOutputStream()
            values = {name: [row[at] for row in self.rows] for at, name in enumerate(self.columns)}
            if len(values) < len(self.columns):  # a name that is there twice
                arrays = [pa.array([row[at] for row in self.rows]) for at in range(len(self.columns))]
                pq.write_table(pa.Table.from_arrays(arrays, names=self.columns), made)
            else:
                pq.write_table(pa.table(values), made)
            return bytes(made.getvalue().to_pybytes())
        if self.suffix.startswith(".jsonl"):
            named = [(json.dumps(name), at) for at, name in enumerate(self.columns)]  # a name may be there twice
            rows = [[f"{name}: {json.dumps(row[at])}" for name, at in named] for row in self.rows]
            lines = ["{" + ", ".join(row) + "}" for row in rows]
            text = "".join(line + self.line_end for line in lines)
        else:
            flat = [
                [",".join(map(str, cell)) if isinstance(cell, list) else str(cell) for cell in row] for row in self.rows
            ]
            if self.suffix.startswith(".csv"):
                file = io.StringIO(newline="")
                csv.writer(file, delimiter=self.delimiter, lineterminator=self.line_end).writerows(
                    [self.columns, *flat]
                )
                text = file.getvalue()
            else:
                text = "".join(self.delimiter.join(row) + self.line_end for row in [self.columns, *flat])
        content = self.mark + text.encode(self.encoding)
        return gzip.compress(content, mtime=0) if self.suffix.endswith(".gz") else content


@dataclass
class Case:
    """A recipe and the files around it."""

    recipe: dict[str, Any]
    tables: dict[str, Table]
    """By the field of `data` that names them."""
    files: dict[str, bytes] = field(default_factory=dict)
    links: dict[str, str] = field(default_factory=dict)
    bad_files: set[str] = field(default_factory=set)
    """Images that no decoder takes."""
    told: list[str] = field(default_factory=list)
    keyed: bool = True
    """Whether an answer still follows from the key."""
    refused: bool = False
    """Whether there must be a message, for another reason than the columns."""
    fields: bool = False
    """Whether a field about the data is another, so that nobody knows which files and columns are read."""
    damaged: list[tuple[str, Callable[[bytes], bytes]]] = field(default_factory=list)
    """What is done to the bytes of a table."""

    @property
    def data(self) -> dict[str, Any]:
        section: dict[str, Any] = self.recipe["data"]
        return section

    def write(self, folder: Path) -> Path:
        for part, table in self.tables.items():
            content = table.content()
            for other, damage in self.damaged:
                content = damage(content) if other == part else content
            self.files[f"{part}{table.suffix}"] = content
        for name, content in self.files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
        for name, target in self.links.items():
            (folder / name).unlink(missing_ok=True)
            (folder / name).symlink_to(target)
        self.data["folder"] = str(folder)
        path = folder / "recipe.yaml"
        path.write_text(yaml.safe_dump(self.recipe, allow_unicode=True), encoding="utf-8")
        return path


def colour(key: int) -> tuple[int, int, int]:
    """Its strongest part says the class, and how strong it is the key."""
    strong, weak = 130 + 10 * (key // 3), 10
    return tuple(strong if part == key % 3 else weak for part in range(3))  # type: ignore[return-value]


def key_of_colour(pixel: tuple[int, int, int]) -> int:
    return 3 * round((max(pixel) - 130) / 10) + pixel.index(max(pixel))


def image_file(key: int, form: str = "PNG", size: tuple[int, int] = (9, 8)) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, colour(key)).save(
        file, form, **({"quality": 98, "subsampling": 0} if form == "JPEG" else {})
    )
    return file.getvalue()


STAGES = ("sprout", "leaf", "rosette")


def key_in(text: str) -> int | None:
    found = re.search(r"key(\d+)", text)
    return int(found[1]) if found else None


def table_of(rng: random.Random, columns: list[str], row: Callable[[int], list[Any]], start: int, flat: bool) -> Table:
    suffix = rng.choice(
        [".csv", ".tsv", ".jsonl", ".parquet", ".csv.gz", ".jsonl.gz"] if flat else [".jsonl", ".parquet"]
    )
    rows = [row(key) for key in range(start, start + KEYS)]
    return Table(list(columns), rows, suffix, {"c": ",", "t": "\t"}.get(suffix[1], ""))


def tables_of(
    rng: random.Random, columns: list[str], row: Callable[[int], list[Any]], flat: bool = True
) -> dict[str, Table]:
    parts = ["train", *rng.sample(["validation", "test"], rng.randint(0, 2))]
    return {part: table_of(rng, columns, row, 100 * at, flat) for at, part in enumerate(parts)}


def case(task: str, tables: dict[str, Table], **sections: dict[str, Any]) -> Case:
    data = {part: f"{part}{table.suffix}" for part, table in tables.items()} | sections.pop("data", {})
    recipe: dict[str, Any] = {
        "task": task,
        "data": {"validation_fraction": 0.3} | data,
        "training": {"batch_size": 2, "device": "cpu", "steps": 1, "eval_batch_size": 4} | sections.pop("training", {}),
        "compare": {"samples": 2, "seeds": [0]},
        **{name: dict(section) for name, section in sections.items()},
    }
    return Case(recipe, tables)


ENCODER = {"name": None, "vocabulary_size": 300, "width": 8, "layers": 1, "heads": 2}


def text_answer(answer: str, key: int) -> Any:
    return {
        "classification": STAGES[key % 3],
        "regression": key / 4,
        "multi-label": [name for at, name in enumerate(STAGES) if key >> at & 1],
    }[answer]


def texts(rng: random.Random) -> Case:
    answer = rng.choice(["classification", "classification", "regression", "multi-label"])
    pair = rng.random() < 0.3

    def row(key: int) -> list[Any]:
        words = [f"Read key{key} {ODD}", f"once more key{key}"] if pair else [f"Read key{key}, {ODD}"]
        return [*words, text_answer(answer, key)]

    columns = ["text", "other", "label"] if pair else ["text", "label"]
    data = {"answer": answer} | ({"pair": "other"} if pair else {})
    return case("text-classification", tables_of(rng, columns, row), data=data, model=ENCODER)


def tag_of(word: str) -> str:
    return "B-town" if word[:1].isupper() else "O"


def sentences(rng: random.Random) -> Case:
    def row(key: int) -> list[Any]:
        words = ["in", *["Paris"] * (key % 3), f"key{key}", "ä", f"Town{key}"]
        return [words, [tag_of(word) for word in words]]

    tables = tables_of(rng, ["tokens", "tags"], row, flat=False)
    return case("token-classification", tables, model=ENCODER)


def pairs(rng: random.Random, task: str, source: str, target: str) -> Case:
    def row(key: int) -> list[Any]:
        return [f"Das ist key{key}, {ODD}", f"This is key{key}."]

    model = {"vocab_size": 300, "d_model": 8, "encoder_layers": 1, "decoder_layers": 1, "heads": 2, "ffn_dim": 8}
    training = {"batching": rng.choice(["random", "length", "tokens"])}
    return case(task, tables_of(rng, [source, target], row), model=model, training=training)


def translations(rng: random.Random) -> Case:
    return pairs(rng, "translation", "source", "target")


def summaries(rng: random.Random) -> Case:
    return pairs(rng, "summarization", "document", "summary")


def running_text(rng: random.Random) -> Case:
    model = {"width": 8, "layers": 1, "heads": 2}
    data: dict[str, Any] = {"vocabulary_size": 300, "block_size": 16, "cross_documents": rng.random() < 0.5}
    if rng.random() < 0.4:
        made = case("language-modeling", tables_of(rng, ["text"], lambda key: [f"Read key{key}, {ODD}"]), model=model)
    else:
        made = case("language-modeling", {}, model=model)
        parts = ["train", *rng.sample(["validation", "test"], rng.randint(0, 2))]
        for part in parts:
            made.files[f"{part}.txt"] = "".join(f"Read key{key}, {ODD}\n" for key in range(KEYS)).encode()
            made.data[part] = f"{part}.txt"
        data["documents"] = rng.choice(["file", "line", "blank-line", "wikitext"])
    made.data.update(data)
    made.recipe["continuation"] = {"tokens": 4}
    return made


NETWORK = {"name": "test_resnet", "pretrained": False, "image_size": 16, "dropout": 0.1}


def images(rng: random.Random) -> Case:
    kind = rng.choice(["table", "table", "folders", "parquet"])
    form = rng.choice(["PNG", "JPEG"])
    end = form.lower()
    if kind == "parquet":
        rows = [[image_file(key, form), STAGES[key % 3]] for key in range(KEYS)]
        return case("image-classification", {"train": Table(["image", "label"], rows, ".parquet")}, model=NETWORK)
    if kind == "folders":
        made = case("image-classification", {}, data={"train": "train"}, model=NETWORK)
        made.files = {f"train/{STAGES[key % 3]}/key{key}.{end}": image_file(key, form) for key in range(KEYS)}
        return made
    tables = {"train": table_of(rng, ["image", "label"], lambda key: [f"in/key{key}.{end}", STAGES[key % 3]], 0, True)}
    made = case("image-classification", tables, model=NETWORK)
    made.files = {f"in/key{key}.{end}": image_file(key, form) for key in range(KEYS)}
    return made


FAMILIES: dict[str, Callable[[random.Random], Case]] = {
    "texts": texts,
    "sentences": sentences,
    "translations": translations,
    "summaries": summaries,
    "running text": running_text,
    "images": images,
}


# Damage: each takes a case and changes it, or returns False where it does not apply.


def _table(rng: random.Random, made: Case) -> tuple[str, Table] | None:
    return rng.choice(sorted(made.tables.items())) if made.tables else None


def rows_change(rng: random.Random, made: Case) -> bool:
    """Rows are dropped, doubled, or put into another order."""
    if (found := _table(rng, made)) is None:
        return False
    _, table = found
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(table.rows)) if table.rows else 0
        match rng.choice(["drop", "double", "shuffle"]):
            case "drop":
                del table.rows[at : at + rng.choice([1, 1, 3, KEYS])]
            case "double":
                table.rows[at:at] = [list(row) for row in table.rows[at : at + 1]]
            case _:
                rng.shuffle(table.rows)
    return True


def columns_change(rng: random.Random, made: Case) -> bool:
    """Columns change places, get a neighbour or another name; or a name is there twice, or not at all."""
    if (found := _table(rng, made)) is None:
        return False
    _, table = found
    at = rng.randrange(len(table.columns))
    match rng.choice(["swap", "add", "rename", "twice", "case"]):
        case "swap":
            order = rng.sample(range(len(table.columns)), len(table.columns))
            table.columns = [table.columns[i] for i in order]
            table.rows = [[row[i] for i in order] for row in table.rows]
        case "add":
            table.columns.insert(at, f"number {len(table.columns)}")
            for number, row in enumerate(table.rows):
                row.insert(at, str(number))
        case "rename":
            table.columns[at] = "  "
        case "twice":
            table.columns.append(table.columns[at])
            for row in table.rows:
                row.append("twice")
        case _:
            table.columns[at] = table.columns[at].upper()
    return True


def told_format(rng: random.Random, made: Case) -> bool:
    """Another delimiter, line end, encoding or byte order mark, as the recipe says."""
    texts_alone = [table for table in made.tables.values() if table.suffix != ".parquet"]
    if not texts_alone or made.refused or made.data.get("encoding") or made.data.get("delimiter"):
        return False
    match rng.choice(["delimiter", "line end", "encoding", "mark"]):
        case "delimiter":
            mark = rng.choice([";", "|", "§"])
            for table in texts_alone:
                table.delimiter = mark
            made.data["delimiter"] = mark
        case "line end":
            for table in texts_alone:
                table.line_end = "\r\n"
        case "mark":
            for table in texts_alone:
                table.mark = b"\xef\xbb\xbf"
        case _:
            made.data["encoding"] = rng.choice(["utf-16", "utf-32", "utf-8-sig", "utf-16-le"])
            for table in texts_alone:
                table.encoding = made.data["encoding"]
    return True


def untold_format(rng: random.Random, made: Case) -> bool:
    """Another encoding or delimiter, of which the recipe knows nothing."""
    if (found := _table(rng, made)) is None or made.data.get("encoding") or made.data.get("delimiter"):
        return False
    _, table = found
    if table.suffix == ".parquet" or table.mark:
        return False
    if rng.random() < 0.5 and not table.suffix.startswith(".jsonl"):
        if len(table.columns) == 1:
            return False
        table.delimiter = rng.choice([";", "|", ":"])
        made.refused = True
    else:
        table.encoding = rng.choice(["utf-16", "utf-16-be", "utf-32"])
        made.refused |= bool(table.rows)
    return True


def cells_change(rng: random.Random, made: Case) -> bool:
    """A value becomes huge, empty, not a number, or of another type."""
    if (found := _table(rng, made)) is None or not found[1].rows:
        return False
    _, table = found
    made.keyed = False
    values: list[Any] = [
        "nan",
        "inf",
        "-inf",
        "1e999",
        "",
        " ",
        "word " * 9000,
        "x" * 30_000,
        "-100",
        "１",
        '"',
        '""',
        "a\x1bb",
        "\r",
    ]
    if table.suffix.startswith(".jsonl"):
        values += [None, 7, -0.0, True, [], {}, [[]], ["a", None], 10**400, [""]]
    column = rng.randrange(len(table.columns))
    kind = type(table.rows[0][column])
    if table.suffix == ".parquet":  # whose columns have one type
        values = [value for value in values if isinstance(value, kind)] or [None]
    for _ in range(rng.randint(1, 3)):
        rng.choice(table.rows)[column] = rng.choice(values)
    if not table.suffix.startswith((".jsonl", ".parquet", ".csv")):
        table.rows = [[str(cell).replace("\r", "").replace("\t", "") for cell in row] for row in table.rows]
    return True


def flipped(rng: random.Random) -> Callable[[bytes], bytes]:
    """Bits, bytes or whole stretches that are changed, put in, taken out or cut off."""
    kind = rng.choice(["bit", "cut", "out", "in", "in"])
    new = rng.choice(
        [b"\0", b'"', b"\n", b"\r", b"\xff\xfe", b"\xef\xbb\xbf", b",", b"\t", b"{", b"[1", b"\\ud800", b"\xe4"]
    )
    share, length, bits = rng.random(), rng.choice([1, 1, 9, 60]), 1 << rng.randrange(8)

    def change(content: bytes) -> bytes:
        at = int(share * len(content))
        match kind:
            case "bit":
                return content[:at] + bytes(byte ^ bits for byte in content[at : at + 1]) + content[at + 1 :]
            case "cut":
                return content[:at]
            case "out":
                return content[:at] + content[at + length :]
            case _:
                return content[:at] + new * length + content[at:]

    return change


def bytes_change(rng: random.Random, made: Case) -> bool:
    """The bytes of a table, or of a text file."""
    made.keyed = False
    if made.tables:
        part = rng.choice(sorted(made.tables))
        made.damaged += [(part, flipped(rng)) for _ in range(rng.randint(1, 3))]
        return True
    named = [name for name in made.files if name.endswith(".txt")]
    for name in named[:1]:
        made.files[name] = flipped(rng)(made.files[name])
    return bool(named)


def tables_go(rng: random.Random, made: Case) -> bool:
    """A table is missing, empty, a folder, a link to elsewhere, or outside of the data folder."""
    if not made.tables:
        return False
    part = rng.choice(sorted(made.tables))
    name = made.data[part]
    made.refused = True
    match rng.choice(["missing", "empty", "folder", "link", "loop", "outside", "absolute"]):
        case "missing":
            made.data[part] = f"not-{name}"
        case "empty":
            made.damaged.append((part, lambda _: b""))
        case "folder":
            made.data[part] = "a-folder"
            made.files["a-folder/readme"] = b"nothing"
        case "link":
            made.links["link" + made.tables[part].suffix] = f"../outside{made.tables[part].suffix}"
            made.data[part] = "link" + made.tables[part].suffix
        case "loop":
            made.links[f"loop{made.tables[part].suffix}"] = f"loop{made.tables[part].suffix}"
            made.data[part] = f"loop{made.tables[part].suffix}"
        case "outside":
            made.data[part] = f"../outside{made.tables[part].suffix}"
        case _:
            made.data[part] = "/etc/hosts"
    return True


def huge(content: bytes) -> bytes:
    """A PNG that says it is 60,000 pixels wide and high."""
    head = b"IHDR" + struct.pack(">II", 60_000, 60_000) + content[24:29]
    return content[:12] + head + struct.pack(">I", zlib.crc32(head)) + content[33:]


def images_change(rng: random.Random, made: Case) -> bool:
    """Images are cut off, empty, something else, or far too large."""
    photos = sorted(name for name in made.files if "key" in name and name.endswith(("png", "jpeg")))
    if not photos:
        return False
    for name in rng.sample(photos, rng.randint(1, 3)):
        content = made.files[name]
        match rng.choice(["empty", "text", "half", "huge", "bits"]):
            case "empty":
                made.files[name] = b""
            case "text":
                made.files[name] = rng.choice(
                    [b"no image", b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"%!PS\nquit"]
                )
            case "half":
                made.files[name] = content[: len(content) // 2]
            case "huge":
                made.files[name] = huge(image_file(0))
            case _:
                made.files[name] = flipped(rng)(content)
                made.keyed = False
                continue
        made.bad_files.add(name)
    return True


def images_are_saved_otherwise(rng: random.Random, made: Case) -> bool:
    """The same picture in another format under the old name, or turned, or with a palette, or with 16 bits."""
    photos = sorted(name for name in made.files if "key" in name and name.endswith(("png", "jpeg")))
    if not photos:
        return False
    for name in rng.sample(photos, 3):
        key = key_in(name)
        assert key is not None
        image, file = Image.new("RGB", (rng.choice([1, 7, 90]), rng.choice([1, 8, 70])), colour(key)), io.BytesIO()
        match rng.choice(["gif", "bmp", "webp", "tiff", "palette", "alpha", "turned"]):
            case "palette":
                image.convert("P", palette=Image.Palette.ADAPTIVE, colors=4).save(file, "PNG")
            case "alpha":
                image.convert("RGBA").save(file, "PNG")
            case "turned":
                exif = Image.Exif()
                exif[0x0112] = rng.choice([3, 6, 8])
                image.save(file, "PNG", exif=exif)
            case form:
                image.save(file, form, **({"lossless": True} if form == "webp" else {}))
        made.files[name] = file.getvalue()
        made.bad_files.discard(name)
    return True


def paths_leave(rng: random.Random, made: Case) -> bool:
    """The path of an image, or a link in its place, leads out of the data folder."""
    table = made.tables.get("train")
    photos = sorted(name for name in made.files if "key" in name and name.endswith(("png", "jpeg")))
    if not photos:
        return False
    if table is None or table.suffix == ".parquet" or rng.random() < 0.4:
        name = rng.choice(photos)
        made.links[name] = "../" * (name.count("/") + 1) + rng.choice(["outside.png", "nowhere.png"])
        made.bad_files.add(name)
    elif table.rows and "image" in table.columns:
        names = [
            "../outside.png",
            "in/../../outside.png",
            "/etc/hosts",
            "",
            ".",
            "in",
            "a\0b",
            "x" * 5000,
            "in/none.png",
        ]
        name = rng.choice([name for name in names if "\0" not in name or table.suffix.startswith(".jsonl")])
        rng.choice(table.rows)[table.columns.index("image")] = name
        made.bad_files.add(name)
    return True


ODD_VALUES: list[Any] = [None, True, False, -1, 0, 1, 2, 3, 0.5, 0.999, -0.0, 1e300, 10**400, 10**18]
ODD_VALUES += [float("nan"), float("inf"), [], [1], ["plain"], {}, {"a": 1}, [[[]]]]
ODD_VALUES += [
    "",
    " ",
    "x",
    "auto",
    "none",
    "label",
    "text",
    "../x",
    "/etc/hosts",
    "\0",
    "ä\u2028",
    "1e3",
    "word " * 500,
]
ASKED = re.compile(r"data\.folder|model\.(name|second|library|pretrained)|training\.report_to")
"""Fields of which nearly every value asks a hub or a tracker, or leads away from the data, and tested elsewhere."""


def fields_change(rng: random.Random, made: Case) -> bool:
    """A field of the recipe gets a value that may be of another type, out of bounds or merely odd."""
    key = rng.choice([key for key in recipe_fields(recipe_class(made.recipe["task"])) if not ASKED.match(key)])
    section, _, leaf = key.rpartition(".")
    value = rng.choice(ODD_VALUES)
    holder = made.recipe.setdefault(section, {}) if section else made.recipe
    if section or leaf == "title":
        holder[leaf] = value
    if section == "data":
        made.keyed, made.refused, made.fields = False, False, True
    return True


def skipping(rng: random.Random, made: Case) -> bool:
    """Rows that cannot be used are left out."""
    made.data["on_bad_row"] = "skip"
    return True


def drawing(rng: random.Random, made: Case) -> bool:
    """Few examples are drawn, or the training split is streamed."""
    if rng.random() < 0.5 or "validation" not in made.data or made.recipe["task"] == "image-classification":
        made.data["train_size"] = rng.choice([1, 3, 4, 7, 10**9])
    else:
        made.data["streaming"] = True
        if made.recipe["task"] in ("translation", "summarization"):
            made.recipe["training"]["batching"] = "random"
    return True


DAMAGE = [
    *[rows_change, columns_change, told_format, untold_format, cells_change, bytes_change, bytes_change, tables_go],
    *[images_change, images_change, images_are_saved_otherwise, paths_leave, fields_change, fields_change],
    *[skipping, skipping, drawing],
]


def damaged_case(family: str, number: int) -> Case:
    """One example, always the same for the same number."""
    rng = random.Random(f"{family} {number}")
    made = FAMILIES[family](rng)
    for damage in rng.choices(DAMAGE, k=rng.choice([0, 1, 1, 2, 2, 3])):
        if damage(rng, made):
            made.told.append(damage.__name__)
    return made
