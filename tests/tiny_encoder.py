"""A pretrained encoder that is saved in a moment, and opinions about films and sentences about towns to train it on."""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from transformers import BertConfig, BertModel, BertTokenizer

from rdrop.toolkit.pretrained import quiet_loading

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
OPINIONS = ["good", "bad", "fine", "dull", "great", "poor"]
TOWNS = ["paris", "rome", "new", "york"]
WORDS = ["this", "film", "is", "very", "the", "plot", "and", "a", "in", "we", "saw", "i", "##s", "was", "##land", "."]


def save_encoder(folder: Path, *, positions: int = 64, **sizes: Any) -> str:
    """A BERT with random weights, as a folder that `from_pretrained` reads."""
    vocabulary = {word: index for index, word in enumerate([*SPECIAL, *OPINIONS, *TOWNS, *WORDS])}
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16} | sizes
    torch.manual_seed(0)
    model = BertModel(BertConfig(vocab_size=len(vocabulary), max_position_embeddings=positions, **shape))
    with quiet_loading():
        model.save_pretrained(folder)
        BertTokenizer(vocab=vocabulary, model_max_length=positions).save_pretrained(folder)
    return str(folder)


def opinions(count: int) -> list[dict[str, Any]]:
    """Texts in which every other one likes a film, with a second text, a score and the things that are judged."""
    rows = []
    for index in range(count):
        likes = index % 2
        word, other = OPINIONS[(2 * index + 1 - likes) % 6], OPINIONS[(index + 3) % 6]
        rows.append(
            {
                "text": f"This film is {'very ' * (index % 3)}{word}.",
                "other": f"The plot was {other}",
                "label": ["no", "yes"][likes],
                "score": likes + 0.25 * (index % 3),
                "things": ["film", "plot"][: index % 3],
            }
        )
    return rows


def sentences(count: int) -> list[dict[str, list[str]]]:
    """Words with the towns among them."""
    rows = []
    for index in range(count):
        words, tags = ["We", "saw", "films", "in", "Paris"], ["O", "O", "O", "O", "B-town"]
        if index % 2:
            words, tags = (
                ["I", "was", "in", "New", "York", "and", "Rome"],
                ["O", "O", "O", "B-town", "I-town", "O", "B-town"],
            )
        if index % 3 == 0:
            words, tags = [*words, "."], [*tags, "O"]
        rows.append({"tokens": words, "tags": tags})
    return rows


def write(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """The rows as whatever the name says; lists in CSV and TSV have commas between their entries."""
    suffix = Path(path.name.removesuffix(".gz")).suffix
    if suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist([dict(row) for row in rows]), path)
        return path
    if suffix == ".jsonl":
        text = "".join(json.dumps(row) + "\n" for row in rows)
    else:
        flat = [{k: ",".join(v) if isinstance(v, list) else v for k, v in row.items()} for row in rows]
        file = io.StringIO()
        quoting: Any = csv.QUOTE_MINIMAL if suffix == ".csv" else csv.QUOTE_NONE
        writer = csv.DictWriter(
            file,
            list(rows[0]),
            delimiter={".csv": ",", ".tsv": "\t"}[suffix],
            quoting=quoting,
            quotechar='"',
            lineterminator="\n",
        )
        writer.writeheader()
        writer.writerows(flat)
        text = file.getvalue()
    content = text.encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path
