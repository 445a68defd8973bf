from __future__ import annotations

from pathlib import Path

import pytest

from rdrop.toolkit.recipe_file import load_recipe
from rdrop.toolkit.tasks.text_classification import TextRecipe
from rdrop.toolkit.train import survey, train_run
from tiny_encoder import opinions, save_encoder, write

GLUE: dict[str, tuple[str, str | None, list[float]]] = {
    "cola": ("sentence", None, [0, 1]),
    "mnli": ("premise", "hypothesis", [0, 1, 2]),
    "mrpc": ("sentence1", "sentence2", [0, 1]),
    "qnli": ("question", "sentence", [0, 1]),
    "qqp": ("question1", "question2", [0, 1]),
    "rte": ("sentence1", "sentence2", [0, 1]),
    "sst2": ("sentence", None, [0, 1]),
    "stsb": ("sentence1", "sentence2", [0.0, 2.5, 5.0]),
}


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_encoder(tmp_path_factory.mktemp("encoder"))


@pytest.mark.parametrize("name", list(GLUE))
def test_the_recipes_of_glue_build_and_train(tmp_path: Path, encoder: str, name: str) -> None:
    text, pair, labels = GLUE[name]
    rows = [
        {
            text: row["text"],
            **({} if pair is None else {pair: row["other"]}),
            "label": labels[i % len(labels)],
            "idx": i,
        }
        for i, row in enumerate(opinions(40))
    ]
    words = [f"folder={tmp_path}", f"model.name={encoder}", "max_length=24", "steps=3", "warmup_steps=1", "samples=2"]
    made = load_recipe(f"glue-{name}", [*words, "device=cpu", "precision=float32", "seeds=[0]", "eval_every_steps=3"])
    assert isinstance(made, TextRecipe)
    assert made.data.validation is not None
    for file in (made.data.train, made.data.validation):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        write(tmp_path / file, rows)
    run = train_run(made, "rdrop", 0, survey(made).nominal_steps, lambda _: None).run
    assert (run.status, run.error, run.optimizer_steps) == ("finished", None, 3)
    full = load_recipe(f"glue-{name}")
    assert isinstance(full, TextRecipe)
    assert full.model.name == "bert-base-uncased"
    assert full.training.learning_rate == 1e-5
    # 1/2 of what the official program weighs the squared difference by; else B/4, see docs/alpha.md.
    assert full.rdrop.alpha == (0.5 if name == "stsb" else full.training.batch_size / 4)
