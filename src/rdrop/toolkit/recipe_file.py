"""A recipe from a YAML file and `key=value` words: all faults at once, each with its place."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from rdrop.errors import UserError
from rdrop.toolkit.plain_yaml import Draft, KeyPath, Place, dotted, plain_data, shown
from rdrop.toolkit.recipe import Recipe
from rdrop.toolkit.recipe_fields import FieldText, nearest, nearest_key, recipe_fields, recipe_sections
from rdrop.toolkit.tasks import DEFAULT_TASK, TASK_NAMES, recipe_class


@dataclass(frozen=True)
class Override:
    """A value that is set outside the file."""

    key: str
    """Dotted key, or the last part of one if no other key ends in it."""
    text: str
    """The value as it was typed: a YAML scalar or list."""
    source: str
    """What was typed, for messages: `alpha=3` or `--seeds 0,1`."""

    @classmethod
    def parse(cls, word: str) -> Override:
        """Split `key=value`.

        Raises:
            UserError: There is no `=`, or nothing before it.
        """
        key, equals, text = word.partition("=")
        if not equals or not key.strip():
            raise UserError(f"got {word!r}, expected key=value, for example rdrop.alpha=3")
        return cls(key.strip(), text.strip(), word)


def built_in_recipes() -> dict[str, str]:
    """Names of the recipes in the package and their text.

    >>> "digits" in built_in_recipes()
    True
    """
    folder = files("rdrop").joinpath("recipes")
    found = sorted((item for item in folder.iterdir() if item.name.endswith(".yaml")), key=lambda item: item.name)
    return {item.name.removesuffix(".yaml"): item.read_text(encoding="utf-8") for item in found}


def load_recipe(recipe: str | Path = "digits", overrides: Sequence[str | Override] = ()) -> Recipe:
    """Read a recipe, apply what overrides it, and check it.

    Args:
        recipe: Path of a YAML file, or the name of a built-in recipe.
        overrides: `key=value` words or `Override` objects; a key that is set twice is a fault.

    Returns:
        The checked recipe; a key that is set nowhere has its default.

    Raises:
        UserError: The file cannot be read or is not YAML, or the recipe has faults; the message lists all.

    >>> load_recipe("digits", ["alpha=3", "training.epochs=20"]).rdrop.alpha
    3.0
    """
    name, text = _read(recipe)
    draft = _parse(text, name)
    words = [Override.parse(item) if isinstance(item, str) else item for item in overrides]
    schema = _schema(draft, words)
    _drop_empty_sections(draft, schema)
    _override(draft, words, schema)
    checked = _check(draft, schema)
    if checked is not None:
        return checked
    faults = [f"{place}: {message}" for place, message in sorted(draft.faults)]
    hint = ""
    if "task" not in draft.data and any("is not a key of" in fault for fault in faults):
        hint = f"\n(without the key task this is a recipe for {DEFAULT_TASK}; the tasks: {', '.join(TASK_NAMES)})"
    if len(faults) == 1:
        raise UserError(faults[0] + hint)
    raise UserError(f"{len(faults)} faults in the recipe:\n" + textwrap.indent("\n".join(faults), "  ") + hint)


def recipe_text(recipe: Recipe) -> str:
    """A recipe as YAML with every field in it and the meaning of each as a comment.

    Args:
        recipe: The recipe to write.

    Returns:
        Text that `load_recipe` reads back into an equal recipe.

    >>> recipe_text(load_recipe("digits")).splitlines()[2:4]
    ['# Heading of the report. Expected: text.', 'title: Digits with 300 labels']
    """
    lines: list[str] = []
    schema = type(recipe)
    for name, section in recipe_sections(schema).items():
        lines += ["", *_comment(section.meaning, 0), f"{name}:"]
        for key, text in recipe_fields(schema).items():
            if key.startswith(f"{name}."):
                value = getattr(getattr(recipe, name), text.leaf)
                lines += [*_comment(_described(text), 2), f"  {text.leaf}: {_scalar(value)}"]
    top = [
        line
        for key, text in recipe_fields(schema).items()
        if "." not in key
        for line in [*_comment(_described(text), 0), f"{key}: {_scalar(getattr(recipe, key))}"]
    ]
    return "\n".join([*top, *lines]) + "\n"


def _described(text: FieldText) -> str:
    return f"{text.meaning} Expected: {text.expected}."


def _comment(text: str, indent: int) -> list[str]:
    lead = " " * indent + "# "
    return textwrap.wrap(text, 100, initial_indent=lead, subsequent_indent=lead, break_on_hyphens=False)


def _scalar(value: object) -> str:
    """One value on one line, as text that means the same to this module and to any other YAML reader."""
    if isinstance(value, BaseModel):
        value = value.model_dump(mode="json", exclude_none=True)
    elif isinstance(value, dict):
        value = {key: held.model_dump(mode="json", exclude_none=True) for key, held in value.items()}
    if isinstance(value, float):
        # Shortest text that reads back; YAML 1.1 readers take 1e-05 for a word, 1.0e-05 for a number.
        mantissa, letter, exponent = repr(value).partition("e")
        return mantissa + (".0" if letter and "." not in mantissa else "") + letter + exponent
    shown = yaml.safe_dump(value, default_flow_style=True, width=10**6, allow_unicode=True)
    return shown.removesuffix("\n").removesuffix("\n...")


def _read(recipe: str | Path) -> tuple[str, str]:
    """The name for messages and the text of a recipe; a file that is there goes before a built-in name."""
    path, built_in = Path(recipe), built_in_recipes()
    try:
        if not path.exists() and str(recipe) in built_in:
            return f"the built-in recipe {recipe}", built_in[str(recipe)]
        raw = path.read_bytes()
    except FileNotFoundError:
        known = ", ".join(built_in)
        close = nearest(str(recipe), built_in)
        hint = f" Did you mean {close}?" if close else ""
        raise UserError(
            f"got {str(recipe)!r}, expected the path of a recipe or a built-in one ({known}).{hint} "
            "`rdrop recipes digits > my.yaml` writes one to start from."
        ) from None
    except IsADirectoryError:
        raise UserError(f"{path} is a folder; expected the path of a recipe, for example {path / 'my.yaml'}") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise UserError(f"cannot read the recipe {str(recipe)!r}: {reason}") from None
    try:
        return str(path), raw.decode("utf-8")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise UserError(
            f"{path}:{line}: the byte 0x{raw[error.start]:02x} is not UTF-8; save the file with that encoding"
        ) from None


def _parse(text: str, name: str) -> Draft:
    """Plain data and places from the text of a file."""
    draft = Draft()
    data = plain_data(text, name, draft)
    if data is None and not draft.faults:
        return draft
    if not isinstance(data, dict):
        sections = ", ".join(["task", *recipe_sections(Recipe)])
        raise UserError(f"{draft.place(())}: got {shown(data)} as the whole recipe, expected the keys {sections}")
    draft.data = data
    return draft


def _schema(draft: Draft, overrides: Iterable[Override]) -> type[Recipe]:
    """The recipe class of the task that the draft names.

    Raises:
        UserError: There is no such task; no other key can then be judged.
    """
    place, task = draft.place(("task",)), draft.data.get("task", DEFAULT_TASK)
    for item in overrides:
        if item.key == "task":
            place, task = Place(0, 0, f"on the command line, {item.source}"), item.text
    if task not in TASK_NAMES:
        close = nearest(str(task), TASK_NAMES)
        hint = f"; did you mean {close}?" if close else ""
        raise UserError(f"{place}: task: got {shown(task)}, expected one of {', '.join(TASK_NAMES)}{hint}")
    return recipe_class(str(task))


def _drop_empty_sections(draft: Draft, schema: type[Recipe]) -> None:
    """A section whose lines are all commented out is an empty one, not a fault."""
    for section in recipe_sections(schema):
        if section in draft.data and draft.data[section] is None:
            del draft.data[section]


def _override(draft: Draft, overrides: Iterable[Override], schema: type[Recipe]) -> None:
    """Set the values of the command line in the draft."""
    seen: dict[str, Override] = {}
    fields, sections = recipe_fields(schema), recipe_sections(schema)
    for item in overrides:
        place = Place(0, 0, f"on the command line, {item.source}")
        matches = [text for text in fields.values() if item.key in (text.key, text.leaf)]
        texts = [text for text in matches if text.key == item.key] or matches
        if item.key in sections:
            inside = next(key for key in fields if key.startswith(f"{item.key}."))
            draft.fault(place, f"{item.key} is a section; set one of its fields, for example {inside}=...")
        elif not texts:
            draft.fault(place, _unknown(item.key, schema))
        elif len(texts) > 1:
            draft.fault(place, f"{item.key} could be {' or '.join(text.key for text in texts)}; write one of them")
        elif texts[0].key in seen:
            draft.fault(place, f"{texts[0].key} is already set by {seen[texts[0].key].source}; keep one of the two")
        else:
            seen[texts[0].key] = item
            _set(draft, texts[0], item.text, place)


def _set(draft: Draft, text: FieldText, typed: str, place: Place) -> None:
    """Set one value of the command line; it is read as YAML unless the field is text."""
    path = tuple(text.key.split("."))
    # Nothing that the file says about this field counts any more, neither its place nor a fault in its value.
    draft.places = {part: at for part, at in draft.places.items() if part[: len(path)] != path}
    draft.places[path] = place
    draft.faulty.discard(path)
    value: object = None if typed in {"null", "~", ""} else typed
    if value is not None and not text.is_text:
        bare_list = text.item is not None and "," in typed and not typed.startswith("[")
        reading = Draft()
        try:
            value = plain_data(f"[{typed}]" if bare_list else typed, text.key, reading)
            readable = not reading.faults
        except UserError:
            readable = False
        if not readable:
            draft.fault(place, f"{text.key}: {shown(typed)} cannot be read, expected {text.expected}", path)
            return
    section = draft.data.setdefault(path[0], {}) if len(path) > 1 else draft.data
    if isinstance(section, dict):
        section[path[-1]] = value


def _check(draft: Draft, schema: type[Recipe]) -> Recipe | None:
    """The recipe of a draft; None if the draft has faults, which are then all in it."""
    # Rules across fields are only tried once every field is possible by itself: the second round, on what the
    # first left, tells them together with the faults of the first.
    for _ in range(2):
        sound = {
            name: {key: value for key, value in section.items() if (name, key) not in draft.faulty}
            if isinstance(section, dict)
            else section
            for name, section in draft.data.items()
            if (name,) not in draft.faulty
        }
        try:
            recipe = schema.model_validate(sound)
        except ValidationError as error:
            for found in error.errors(include_url=False):
                _tell(draft, found, schema)
        else:
            return None if draft.faults else recipe
    return None


def _tell(draft: Draft, found: ErrorDetails, schema: type[Recipe]) -> None:
    """Note one fault that pydantic found, in the words of a recipe."""
    path: KeyPath = found["loc"]
    fields = recipe_fields(schema) | recipe_sections(schema)
    if found["type"] == "extra_forbidden":
        draft.fault(draft.place(path, of_key=True), _unknown(dotted(path), schema), path)
        return
    if found["type"] == "recipe":
        keys = [tuple(key.split(".")) for key in found["ctx"]["keys"]] or [path]
        # A rule that involves a field with a fault of its own was tried on the default of that field.
        if not draft.faulty.intersection(keys):
            place = next((draft.places[key] for key in keys if key in draft.places), draft.place(path))
            draft.fault(place, f"{dotted(keys[0])}: {found['ctx']['message']}", *keys)
        return
    text = fields[dotted(path[:2])] if dotted(path[:2]) in fields else fields[dotted(path[:1])]
    expected = text.item if len(path) > 2 and text.item else text.expected
    words = expected.removeprefix("one of ").split(", ") if expected.startswith("one of ") else []
    close = nearest(str(found["input"]), words)
    hint = f"; did you mean {close}?" if close else ""
    draft.fault(draft.place(path), f"{dotted(path)}: got {shown(found['input'])}, expected {expected}{hint}", path)


def _unknown(key: str, schema: type[Recipe]) -> str:
    close = nearest_key(key, schema)
    if close == key:
        section, _, leaf = key.partition(".")
        return f"{key} is written as one key; write the section {section}: and {leaf}: indented below it"
    hint = f"did you mean {close}?" if close else "`rdrop compare --help-recipe` lists them all"
    return f"{key} is not a key of a recipe; {hint}"
