from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from rdrop.errors import UserError
from rdrop.toolkit.recipe import Chosen, Compare, Model, RDrop, Recipe, Training, cautions
from rdrop.toolkit.recipe_fields import nearest_key, recipe_fields
from rdrop.toolkit.recipe_file import Override, built_in_recipes, load_recipe, recipe_text
from rdrop.toolkit.tasks import TASK_NAMES, recipe_class
from rdrop.toolkit.tasks.digits import DigitsData, DigitsModel, DigitsRecipe


def load(folder: Path, text: str, *overrides: str | Override) -> Recipe:
    path = folder / "my.yaml"
    path.write_text(text, encoding="utf-8")
    return load_recipe(path, overrides)


def faults(folder: Path, text: str, *overrides: str | Override) -> str:
    """The message about a faulty recipe, without the path of the folder."""
    with pytest.raises(UserError) as caught:
        load(folder, text, *overrides)
    return str(caught.value).replace(f"{folder}/", "")


@pytest.mark.parametrize("task", TASK_NAMES)
def test_the_recipe_of_a_task_has_its_defaults_with_every_field_explained(task: str) -> None:
    text, default = built_in_recipes()[task], recipe_class(task)()
    assert load_recipe(task) == default
    # The comments, the order and the values are those of the classes; only its top lines are its own.
    assert text.endswith("\n\n" + recipe_text(default))


@pytest.mark.parametrize("name", built_in_recipes())
def test_every_built_in_recipe_loads_and_says_what_it_is(name: str) -> None:
    assert load_recipe(name).title


RECIPE = DigitsRecipe(
    title='off: "1e-3" # \N{LATIN SMALL LETTER U WITH DIAERESIS}',
    data=DigitsData(train_size=100, split_seed=7),
    model=DigitsModel(dropout=0.0),
    training=Training(learning_rate=1e-05, weight_decay=2.5e-9, epochs=3),
    rdrop=RDrop(alpha=1e16, stop_gradient="rest"),
    compare=Compare(arms=["plain", "twice"], seeds=[4294967295], chosen={"twice": Chosen(dropout=0.5)}),
)


def test_a_written_recipe_reads_back_equal_here_and_with_any_yaml_reader(tmp_path: Path) -> None:
    text = recipe_text(RECIPE)
    assert load(tmp_path, text) == RECIPE
    held = yaml.safe_load(text)
    held["compare"]["chosen"]["twice"]["alpha"] = None
    assert held == RECIPE.model_dump()


@pytest.mark.parametrize(
    "text", ["", "# nothing\n", "---\n", "training:\n  # epochs: 3\n", "\N{ZERO WIDTH NO-BREAK SPACE}"]
)
def test_what_is_left_out_has_its_default(tmp_path: Path, text: str) -> None:
    assert load(tmp_path, text) == DigitsRecipe()


@pytest.mark.parametrize(("text", "value"), [("1e-3", 0.001), ("1E-3", 0.001), ("1", 1.0), (".5", 0.5), ("+2.", 2.0)])
def test_numbers_are_numbers_in_every_usual_spelling(tmp_path: Path, text: str, value: float) -> None:
    assert load(tmp_path, f"training: {{learning_rate: {text}}}").training.learning_rate == value
    assert load(tmp_path, "", f"learning_rate={text}").training.learning_rate == value


@pytest.mark.parametrize("word", ["yes", "no", "on", "off", "y", "1_000", "12:30:00", "2020-01-01", "0x10", "=", "<<"])
def test_words_stay_words(tmp_path: Path, word: str) -> None:
    assert load(tmp_path, f"title: {word}").title == word


def test_leading_zeros_are_decimal(tmp_path: Path) -> None:
    assert load(tmp_path, "training: {epochs: 010}").training.epochs == 10


def test_all_faults_come_at_once_each_with_its_place(tmp_path: Path) -> None:
    text = """\
title: 5
training:
  epohcs: 3
  batch_size: true
  learning_rate: fast
model: {dropout: 1.0}
compare:
  arms: [plain, rdorp]
  seeds: [0, -1, x]
alhpa: 3
data: 7
"""
    message = faults(tmp_path, text, "schedule=warm", "dropuot=0.1")
    assert message.splitlines() == [
        "12 faults in the recipe:",
        "  on the command line, dropuot=0.1: dropuot is not a key of a recipe; did you mean model.dropout?",
        "  on the command line, schedule=warm: rdrop.schedule: got the text 'warm', expected one of "
        "constant, warmup, linear_decay, cosine_decay, learning_rate; did you mean warmup?",
        "  my.yaml:1:8: title: got 5, expected text",
        "  my.yaml:3:3: training.epohcs is not a key of a recipe; did you mean training.epochs?",
        "  my.yaml:4:15: training.batch_size: got true, expected a whole number, at least 1",
        "  my.yaml:5:18: training.learning_rate: got the text 'fast', expected a number, above 0",
        "  my.yaml:6:18: model.dropout: got 1.0, expected a number, at least 0, below 1",
        "  my.yaml:8:17: compare.arms[1]: got the text 'rdorp', expected one of plain, twice, rdrop, longer, or with a "
        "number of your own every-2, fraction-0.25, last-1, one-sided, longer-1.25; did you mean rdrop?",
        "  my.yaml:9:14: compare.seeds[1]: got -1, expected a whole number, at least 0, below 4294967296",
        "  my.yaml:9:18: compare.seeds[2]: got the text 'x', expected a whole number, at least 0, below 4294967296",
        "  my.yaml:10:1: alhpa is not a key of a recipe; did you mean rdrop.alpha?",
        "  my.yaml:11:7: data: got 7, expected a section with the keys name, train_size, split_seed",
        f"(without the key task this is a recipe for digits; the tasks: {', '.join(TASK_NAMES)})",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("training:\n\tepochs: 3\n", "my.yaml:2:1: found character 'a tab' that cannot start any token"),
        ("a: [1, 2\nb: 3", "my.yaml:2:2: expected ',' or ']', but got ':' (while parsing a flow sequence)"),
        (
            "a: 1\n---\nb: 2",
            "my.yaml:2:1: but found another document (expected a single document in the stream)",
        ),
        ("title: &x a\ndata: *x", "my.yaml:2:7: the alias *x is not used in recipes; write the value out"),
        (
            "title: !!python/name:os.system x",
            "my.yaml:1:8: title: the tag tag:yaml.org,2002:python/name:os.system",
        ),
        ("training: {epochs: !!int x}", "my.yaml:1:20: training.epochs: the text 'x' cannot be read as int"),
        ("[1]: 2", "my.yaml:1:1: got a list or mapping as a key, expected a word such as training"),
        ("- 1\n- 2", "my.yaml:1:1: got the list [1, 2] as the whole recipe, expected the keys task, data, model"),
        ("\N{ZERO WIDTH NO-BREAK SPACE}titel: a", "my.yaml:1:1: titel is not a key of a recipe; did you mean title?"),
        ("just text", "my.yaml:1:1: got the text 'just text' as the whole recipe"),
        ("title: a\n\x00", "my.yaml:2: the character '\\x00' is not allowed in YAML"),
        ("[" * 3000, "my.yaml: lists or mappings are nested too deeply"),
        ("title: a\ntitle: b", "my.yaml:2:1: title is set twice, first at my.yaml:1:1; keep one of the two"),
        ("rdrop: {alpha: 1}\nrdrop: {alpha: 2}", "my.yaml:2:1: rdrop is set twice, first at my.yaml:1:1"),
        (
            "rdrop.alpha: 3",
            "my.yaml:1:1: rdrop.alpha is written as one key; write the section rdrop: and alpha:",
        ),
        (
            "task: language-modeling\ndata: {train: a.txt}\nmodel: {layers: 1000000}",
            "my.yaml:3:17: model.layers: got 1000000, expected a whole number, at least 1, at most 1000",
        ),
        (
            f"training: {{epochs: {2**63}}}",
            f"my.yaml:1:20: training.epochs: got {2**63}, expected a whole number below 2^63",
        ),
        ("rdrop: {alpha: .nan}", "my.yaml:1:16: rdrop.alpha: got nan, expected a number, at least 0"),
        ("rdrop: {alpha: -.inf}", "my.yaml:1:16: rdrop.alpha: got -inf, expected a number, at least 0"),
        (
            "training: {epochs: 1e3}",
            "my.yaml:1:20: training.epochs: got 1000.0, expected a whole number, at least 1",
        ),
        (
            "compare: {seeds: 5}",
            "my.yaml:1:18: compare.seeds: got 5, expected a list, each entry a whole number",
        ),
        ("compare: {seeds: [0, 1, 0]}", "my.yaml:1:18: compare.seeds: 0 is listed twice"),
        ("compare: {arms: [rdrop]}", "my.yaml:1:17: compare.arms: got rdrop, without plain; add it"),
        (
            "data: {train_size: 20}",
            "my.yaml:1:20: training.batch_size: got 32, expected at most data.train_size",
        ),
        (
            "model: {dropout: 0}\nrdrop: {alpha: 0}",
            "my.yaml:2:16: rdrop.alpha: got 0, and 0 for model.dropout",
        ),
        (
            "rdrop: {budget: 1.25, every: 2}",
            "my.yaml:1:17: rdrop.budget: got 1.25, and 2 for rdrop.every; expected one of them, since a budget chooses",
        ),
        (
            "rdrop: {budget: 1.25, one_sided: true}",
            "my.yaml:1:17: rdrop.budget: got 1.25, and True for rdrop.one_sided; expected one of them",
        ),
        ("rdrop: {budget: 1}", "my.yaml:1:17: rdrop.budget: got 1, expected null or a number, above 1, at most 16"),
        (
            "rdrop: {fraction: 0.5, branch_at: -1}",
            "my.yaml:1:19: rdrop.fraction: got 0.5, and -1 for rdrop.branch_at; expected one of them",
        ),
        (
            "rdrop: {one_sided: true, stop_gradient: rest}",
            "my.yaml:1:20: rdrop.one_sided: got true, and rest for rdrop.stop_gradient; expected one of them",
        ),
        (
            "rdrop: {fraction: 0.5, strategy: shared}",
            "my.yaml:1:19: rdrop.fraction: got 0.5, and shared for rdrop.strategy; expected one of them",
        ),
        (
            "rdrop: {branch_at: head, strategy: concat}",
            "my.yaml:1:20: rdrop.branch_at: got head, and concat for rdrop.strategy; expected one of them",
        ),
        (
            "rdrop: {branch_at: -1, strategy: sequential}",
            "my.yaml:1:20: rdrop.branch_at: got -1, and sequential for rdrop.strategy; expected one of them",
        ),
        (
            "rdrop: {one_sided: true, strategy: concat}",
            "my.yaml:1:20: rdrop.one_sided: got true, and concat for rdrop.strategy; expected one of them",
        ),
        (
            "rdrop: {strategy: concat}\ncompare: {arms: [plain, last-2]}",
            "my.yaml:2:17: compare.arms: last-2: got -2, and concat for rdrop.strategy; expected one of them",
        ),
    ],
)
def test_a_fault_names_its_place_and_its_cause(tmp_path: Path, text: str, message: str) -> None:
    assert faults(tmp_path, text).startswith(message)


def test_rules_across_fields_are_told_with_the_other_faults_but_not_about_faulty_fields(
    tmp_path: Path,
) -> None:
    both = faults(tmp_path, "data: {train_size: 30}\nrdrop: {alpha: x}")
    assert "training.batch_size: got 32" in both
    assert "rdrop.alpha: got the text 'x'" in both
    # batch_size 400 is compared with no default of the train_size that nobody could read
    assert "batch_size" not in faults(tmp_path, "data: {train_size: x}\ntraining: {batch_size: 400}")


@pytest.mark.parametrize(
    ("word", "section", "key", "value"),
    [
        ("rdrop.alpha=3", "rdrop", "alpha", 3.0),
        ("alpha=3", "rdrop", "alpha", 3.0),
        ("stop_gradient=null", "rdrop", "stop_gradient", None),
        ("seeds=3,1", "compare", "seeds", [3, 1]),
        ("compare.arms=[plain, rdrop]", "compare", "arms", ["plain", "rdrop"]),
        (" epochs = 7 ", "training", "epochs", 7),
    ],
)
def test_a_word_on_the_command_line_sets_a_field(
    tmp_path: Path, word: str, section: str, key: str, value: object
) -> None:
    changed = load(tmp_path, "training: {epochs: 2}\nrdrop: {alpha: 9}", word)
    assert getattr(getattr(changed, section), key) == value


@pytest.mark.parametrize("title", ["10", "a: b", "[x", "no # comment", "a=b"])
def test_text_on_the_command_line_is_taken_as_it_is(tmp_path: Path, title: str) -> None:
    assert load(tmp_path, "", f"title={title}").title == title


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["alpha"], "got 'alpha', expected key=value, for example rdrop.alpha=3"),
        (["=3"], "got '=3', expected key=value"),
        (
            ["name=digits"],
            "on the command line, name=digits: name could be data.name or model.name; write one",
        ),
        (["training=3"], "on the command line, training=3: training is a section; set one of its fields"),
        (
            ["alpha=3", "rdrop.alpha=4"],
            "on the command line, rdrop.alpha=4: rdrop.alpha is already set by alpha=3",
        ),
        (
            ["alpha=[3"],
            "on the command line, alpha=[3: rdrop.alpha: the text '[3' cannot be read, expected a number",
        ),
        (["alpha="], "on the command line, alpha=: rdrop.alpha: got null, expected a number, at least 0"),
        (
            ["seeds=[0,-1]"],
            "on the command line, seeds=[0,-1]: compare.seeds[1]: got -1, expected a whole number",
        ),
        (
            ["zzz=1"],
            "on the command line, zzz=1: zzz is not a key of a recipe; `rdrop compare --help-recipe`",
        ),
    ],
)
def test_a_fault_on_the_command_line_is_named_as_such(tmp_path: Path, words: list[str], message: str) -> None:
    assert faults(tmp_path, "rdrop: {alpha: 9}", *words).startswith(message)


def test_the_command_line_replaces_a_faulty_value_of_the_file(tmp_path: Path) -> None:
    assert load(tmp_path, "rdrop: {alpha: high}", "alpha=2").rdrop.alpha == 2.0


def test_a_missing_file_is_answered_with_what_there_is(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"got 'digit', expected the path .* Did you mean digits\?"):
        load_recipe("digit")
    with pytest.raises(UserError, match="is a folder; expected the path of a recipe"):
        load_recipe(tmp_path)
    with pytest.raises(UserError, match="cannot read the recipe"):
        load_recipe("a\0b")


def test_a_file_that_is_not_utf_8_is_told_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "my.yaml"
    path.write_bytes("title: a\n# \xe9\n".encode("latin-1"))
    with pytest.raises(UserError, match=r"my\.yaml:2: the byte 0xe9 is not UTF-8"):
        load_recipe(path)


def test_an_unknown_key_is_answered_with_the_same_leaf_elsewhere_first() -> None:
    meant = {
        "training.alpha": "rdrop.alpha",
        "model.nmae": "model.name",
        "Epochs": "training.epochs",
        "training.alhpa": "rdrop.alpha",
        "data.nmae": "data.name",
        "traning": "training",
        "qqqq": None,
    }
    assert {key: nearest_key(key, DigitsRecipe) for key in meant} == meant


@pytest.mark.parametrize("task", TASK_NAMES)
def test_every_field_is_explained(task: str) -> None:
    for key, text in recipe_fields(recipe_class(task)).items():
        assert text.meaning.endswith((".", "`.")), key
        assert text.expected, key


def test_a_task_that_is_none_is_answered_with_the_nearest(tmp_path: Path) -> None:
    assert faults(tmp_path, "task: digit").startswith("my.yaml:1:7: task: got the text 'digit', expected one of digits")
    assert faults(tmp_path, "task: digit").endswith("; did you mean digits?")
    assert faults(tmp_path, "", "task=[]").startswith("on the command line, task=[]: task: got the text '[]'")
    assert faults(tmp_path, "task: [a]").startswith("my.yaml:1:7: task: got the list ['a'], expected one of")


def test_settings_of_an_arm_are_checked(tmp_path: Path) -> None:
    text = "compare: {arms: [plain, rdrop], chosen: {rdrop: {alpha: -1}}}"
    assert "compare.chosen.rdrop.alpha: got -1, expected a mapping from arms to" in faults(tmp_path, text)
    text = "compare: {arms: [plain, rdrop], chosen: {longer: {dropout: 0.1}}}"
    assert "compare.chosen: got settings of longer, expected arms of compare.arms" in faults(tmp_path, text)
    text = "compare: {chosen: {rdrop: {alpha: 0, dropout: 0}}}"
    assert "with which the arm rdrop is the arm twice" in faults(tmp_path, text)


def test_a_family_has_its_own_defaults_under_what_is_given() -> None:
    class Long(Recipe):
        DEFAULTS = {"training": {"epochs": 9, "batch_size": 7}}

    assert Long().training.epochs == 9
    assert Long.model_validate({"training": {"epochs": 2}}).training == Training(epochs=2, batch_size=7)
    assert recipe_fields(Long)["training.batch_size"].default == 7


def test_what_is_probably_not_meant_is_told() -> None:
    assert cautions(Recipe()) == []
    assert [line.split(":")[0] for line in cautions(Recipe(rdrop=RDrop(alpha=0)))] == ["rdrop.alpha is 0"]
    assert cautions(Recipe(model=Model(dropout=0), compare=Compare(arms=["plain", "longer"]))) == []


KEYS = [word for text in recipe_fields(DigitsRecipe).values() for word in (text.key, text.leaf)]
MARKS = [*":-[]{},&*!|>'\"%@`#?\n\t ~=.0", "---", "...", "<<", "!!set", "\x1b", "\u2028"]
VALUES = ["1e400", "9" * 5000, "-1", "null", "true"]
STARTS = ["training:\n  ", "rdrop: ", "compare: {", "data:\n  train_size: "]
PIECES = st.sampled_from([*MARKS, *VALUES, *STARTS, *KEYS])


@settings(max_examples=1000, deadline=None)
@given(
    cut=st.integers(0, 4000),
    skipped=st.integers(0, 30),
    inserted=st.lists(PIECES, max_size=8).map("".join),
    words=st.lists(st.lists(PIECES, max_size=4).map("".join), max_size=3),
)
def test_no_recipe_gives_anything_but_a_recipe_or_a_message(
    tmp_path_factory: pytest.TempPathFactory, cut: int, skipped: int, inserted: str, words: list[str]
) -> None:
    text = built_in_recipes()["digits"]
    path = tmp_path_factory.getbasetemp() / "mutated.yaml"
    path.write_text(text[:cut] + inserted + text[cut + skipped :], encoding="utf-8")
    try:
        recipe = load_recipe(path, words)
    except UserError as error:
        message = str(error)
        assert len(message) > 10
    else:
        path.write_text(recipe_text(recipe), encoding="utf-8")
        assert load_recipe(path) == recipe
