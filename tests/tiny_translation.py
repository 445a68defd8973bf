"""A toy language pair, numbers in German and English, and recipes of a network that trains on it in a second."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from rdrop.toolkit.tasks.translation import TranslationRecipe, TranslationTask

GERMAN = ["null", "eins", "zwei", "drei", "vier", "fünf", "sechs", "sieben", "acht", "neun"]
ENGLISH = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]

SMALL = {
    "vocab_size": 300,
    "d_model": 16,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "heads": 2,
    "ffn_dim": 16,
    "dropout": 0.1,
}


def pairs(count: int, seed: int = 0, longest: int = 6) -> list[tuple[str, str]]:
    """Sentences of one to `longest` numbers with their translations."""
    draw = np.random.default_rng(seed)
    found = []
    for length in draw.integers(1, longest, size=count, endpoint=True):
        words = draw.integers(0, 10, size=length)
        found.append((" ".join(GERMAN[i] for i in words), " ".join(ENGLISH[i] for i in words)))
    return found


def write_tsv(path: Path, rows: list[tuple[str, str]], header: tuple[str, str] = ("de", "en")) -> None:
    path.write_text("".join("\t".join(row) + "\n" for row in [header, *rows]), encoding="utf-8")


def write_splits(folder: Path) -> None:
    """train.tsv (48 pairs), dev.tsv and test.tsv (9 pairs each)."""
    for name, count, seed in (("train", 48, 0), ("dev", 9, 1), ("test", 9, 2)):
        write_tsv(folder / f"{name}.tsv", pairs(count, seed))


def recipe(folder: Path, **sections: dict[str, Any]) -> TranslationRecipe:
    """A comparison on the splits of a folder, of three steps a run."""
    defaults: dict[str, dict[str, Any]] = {
        "data": {
            "folder": str(folder),
            "train": "train.tsv",
            "validation": "dev.tsv",
            "test": "test.tsv",
            "source": "de",
            "target": "en",
            "max_source_length": 40,
            "max_target_length": 40,
        },
        "model": dict(SMALL),
        "training": {"steps": 3, "eval_every_steps": 3, "batch_size": 8, "batch_tokens": 120, "warmup_steps": 2},
        "generation": {"beams": 2, "max_length": 8},
        "compare": {"samples": 2, "seeds": [0]},
    }
    return TranslationRecipe.model_validate(
        {name: defaults.get(name, {}) | sections.get(name, {}) for name in defaults | sections}
    )


def task(folder: Path, **sections: dict[str, Any]) -> TranslationTask:
    return TranslationTask(recipe(folder, **sections))
