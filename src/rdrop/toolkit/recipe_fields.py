"""Every field of a recipe in words: its key, what it accepts, its default and its meaning.

Made from the JSON schema of a family's recipe, so that the help, the messages about faults and the comments in
a written recipe cannot differ from what is checked.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any

from rdrop.toolkit.recipe import Recipe


@dataclass(frozen=True)
class FieldText:
    """One field of a recipe in words."""

    key: str
    """Dotted key, for example `training.epochs`; the bare name of a section for the section itself."""
    expected: str
    """What the field accepts, as the end of the sentence "expected ..."."""
    meaning: str
    """Its description."""
    default: object = None
    """Its default, as plain data."""
    item: str | None = None
    """For a list: what one entry accepts."""
    is_text: bool = False
    """True: free text or one of several words, so a word on the command line needs no quotes."""

    @property
    def leaf(self) -> str:
        """The last part of the key."""
        return self.key.rpartition(".")[2]


def recipe_fields(schema: type[Recipe]) -> dict[str, FieldText]:
    """All fields of a family's recipe by dotted key, in the order in which a recipe is written.

    >>> recipe_fields(Recipe)["rdrop.alpha"].expected
    'a number, at least 0'
    """
    return _texts(schema)[0]


def recipe_sections(schema: type[Recipe]) -> dict[str, FieldText]:
    """The sections by name, in the order in which a recipe is written."""
    return _texts(schema)[1]


def nearest_key(key: str, schema: type[Recipe]) -> str | None:
    """The valid key that a mistaken one was most likely meant to be, or None.

    >>> nearest_key("training.alhpa", Recipe)
    'rdrop.alpha'
    """
    section, _, leaf = key.lower().rpartition(".")
    known = [*recipe_fields(schema), *recipe_sections(schema)]
    close = nearest(leaf, [other.rpartition(".")[2] for other in known])
    same = [other for other in known if other.rpartition(".")[2] == close]
    # Of equal names, such as data.name and model.name, the one in the section where the mistake was made.
    return next((other for other in same if other.rpartition(".")[0] == section), next(iter(same), None))


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The closest of the known words, or None if none is close.

    >>> nearest("symetric_kl", ["kl", "symmetric_kl", "js"])
    'symmetric_kl'
    """
    return next(iter(difflib.get_close_matches(word, list(known), n=1, cutoff=0.7)), None)


@cache
def _texts(recipe: type[Recipe]) -> tuple[dict[str, FieldText], dict[str, FieldText]]:
    schema = recipe.model_json_schema()
    # Not the schema's defaults: a family may have its own.
    defaults = recipe().model_dump(mode="json")
    fields: dict[str, FieldText] = {}
    sections: dict[str, FieldText] = {}
    for name, part in schema["properties"].items():
        if "$ref" not in part:
            fields[name] = _field_text(name, part, defaults[name])
            continue
        section = schema["$defs"][part["$ref"].rpartition("/")[2]]
        inner = section["properties"]
        keys = _own_first(recipe.model_fields[name].annotation, list(inner))
        sections[name] = FieldText(name, f"a section with the keys {', '.join(keys)}", section["description"])
        fields |= {f"{name}.{key}": _field_text(f"{name}.{key}", inner[key], defaults[name][key]) for key in keys}
    return fields, sections


def _own_first(section: object, keys: list[str]) -> list[str]:
    """The fields of a family before those that every family has."""
    own = list(getattr(section, "__annotations__", ()))
    return sorted(keys, key=lambda key: own.index(key) if key in own else len(own))


def _field_text(key: str, schema: dict[str, Any], default: object) -> FieldText:
    item = _phrase(schema["items"]) if "items" in schema else None
    options = schema.get("anyOf", [schema])
    is_text = any(option.get("type") == "string" for option in options)
    return FieldText(key, _phrase(schema), schema["description"], default, item, is_text)


def _phrase(schema: dict[str, Any]) -> str:
    """What a JSON schema accepts, in words."""
    if "expected" in schema:
        return str(schema["expected"])
    if "anyOf" in schema:
        # null goes first: after a list of bounds it would read as one more bound.
        return " or ".join(
            _phrase(option) for option in sorted(schema["anyOf"], key=lambda option: option != {"type": "null"})
        )
    if "const" in schema:
        return str(schema["const"])
    if "enum" in schema:
        return "one of " + ", ".join(map(str, schema["enum"]))
    if schema["type"] == "array":
        entry = _phrase(schema["items"])
        return f"a list, each entry {entry}"
    bounds = {
        "minimum": "at least",
        "exclusiveMinimum": "above",
        "maximum": "at most",
        "exclusiveMaximum": "below",
    }
    named = {
        "integer": "a whole number",
        "number": "a number",
        "string": "text",
        "boolean": "true or false",
        "null": "null",
    }[schema["type"]]
    limits = [f"{word} {schema[bound]}" for bound, word in bounds.items() if bound in schema]
    return ", ".join([named, *limits])
