"""Plain data from YAML, with the place of every part.

The YAML is the safe subset that a recipe needs: mappings, lists, text, numbers, `true`, `false` and `null`,
with the scalars of YAML 1.2, so `1e-3` is a number and `off` is text. Tags, aliases and repeated keys are
faults.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field

import yaml

from rdrop.errors import UserError

KeyPath = tuple[str | int, ...]


@dataclass(frozen=True, order=True)
class Place:
    """Where something stands, counted from 1; line 0 for what has no lines, such as the command line."""

    line: int
    column: int
    name: str

    def __str__(self) -> str:
        return f"{self.name}:{self.line}:{self.column}" if self.line else self.name


@dataclass
class Draft:
    """A recipe before it is checked: plain data, where each part stands, and the faults found so far."""

    data: dict[str, object] = field(default_factory=dict)
    places: dict[KeyPath, Place] = field(default_factory=dict)
    key_places: dict[KeyPath, Place] = field(default_factory=dict)
    faults: list[tuple[Place, str]] = field(default_factory=list)
    faulty: set[KeyPath] = field(default_factory=set)

    def fault(self, place: Place, message: str, *paths: KeyPath) -> None:
        """Note a fault and the fields whose value is not to be judged any further."""
        if (place, message) not in self.faults:
            self.faults.append((place, message))
        self.faulty |= {path[:2] for path in paths}

    def place(self, path: KeyPath, *, of_key: bool = False) -> Place:
        """Where the value (or key) at the path stands, or the nearest part around it that stands anywhere."""
        if of_key and path in self.key_places:
            return self.key_places[path]
        around = (path[:length] for length in range(len(path), -1, -1))
        return next(self.places[part] for part in around if part in self.places)


def plain_data(text: str, name: str, draft: Draft) -> object:
    """The plain data of a YAML text.

    Args:
        text: The text, one document.
        name: How messages name the text, a path for example.
        draft: Receives the place of every part and the faults that plain data cannot show.

    Returns:
        The data; None for an empty text.

    Raises:
        UserError: A syntax error, with its line and column.

    >>> plain_data("rdrop: {alpha: 1e-3}", "my.yaml", draft := Draft())
    {'rdrop': {'alpha': 0.001}}
    >>> str(draft.place(("rdrop", "alpha")))
    'my.yaml:1:16'
    """
    node = _compose(text, name)
    draft.places[()] = Place(0, 0, name)
    return None if node is None else _plain(node, (), name, draft)


class _Loader(yaml.SafeLoader):
    """Composes nodes alone, with the scalars of YAML 1.2 and without aliases."""

    yaml_implicit_resolvers = {}

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()  # type: ignore[no-untyped-call]
            raise yaml.MarkedYAMLError(
                problem=f"the alias *{event.anchor} is not used in recipes; write the value out",
                problem_mark=event.start_mark,
            )
        return super().compose_node(parent, index)


LARGEST = 2**63 - 1  # of the whole numbers that torch computes with
_INT = re.compile(r"[-+]?[0-9]+$")
_FLOAT = re.compile(
    r"[-+]?(?:(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|\.(?:inf|Inf|INF))$|\.(?:nan|NaN|NAN)$"
)
_Loader.add_implicit_resolver("tag:yaml.org,2002:null", re.compile(r"(?:~|null|Null|NULL|)$"), ["~", "n", "N", ""])
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)
_Loader.add_implicit_resolver("tag:yaml.org,2002:int", _INT, list("-+0123456789"))
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+.0123456789"))


def _compose(text: str, name: str) -> yaml.Node | None:
    """The node tree of a YAML text.

    Raises:
        UserError: A syntax error, with its line and column.
    """
    try:
        node: yaml.Node | None = yaml.compose(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = _at(name, mark) if mark else Place(0, 0, name)
        problem = (error.problem or "this is not YAML").replace("\\t", "a tab")
        context = f" ({error.context})" if error.context else ""
        tab = "; indent with spaces, not with tabs" if "'\\t'" in (error.problem or "") else ""
        raise UserError(f"{place}: {problem}{context}{tab}") from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise UserError(f"{name}:{line}: the character {chr(error.character)!r} is not allowed in YAML") from None
    except RecursionError:
        raise UserError(
            f"{name}: lists or mappings are nested too deeply; a recipe has one level of sections"
        ) from None
    return node


def _plain(node: yaml.Node, path: KeyPath, name: str, draft: Draft) -> object:
    """Plain data from a node; notes the place of every part, and the faults that plain data cannot show."""
    draft.places[path] = place = _at(name, node.start_mark)
    kind = node.tag.removeprefix("tag:yaml.org,2002:")
    if isinstance(node, yaml.MappingNode) and kind == "map":
        return _plain_mapping(node, path, name, draft)
    if isinstance(node, yaml.SequenceNode) and kind == "seq":
        return [_plain(child, (*path, index), name, draft) for index, child in enumerate(node.value)]
    if isinstance(node, yaml.ScalarNode) and kind in _SCALARS:
        try:
            value = _SCALARS[kind](node.value)
            if isinstance(value, int) and abs(value) > LARGEST:
                draft.fault(place, f"{dotted(path)}: got {shown(value)}, expected a whole number below 2^63", path)
                return None
            return value
        except (KeyError, ValueError):
            draft.fault(place, f"{dotted(path)}: {shown(node.value)} cannot be read as {kind}", path)
            return None
    draft.fault(place, f"{dotted(path)}: the tag {node.tag} is not used in recipes; remove it", path)
    return None


def _plain_mapping(node: yaml.MappingNode, path: KeyPath, name: str, draft: Draft) -> dict[str, object]:
    data: dict[str, object] = {}
    for key_node, value_node in node.value:
        place = _at(name, key_node.start_mark)
        if not isinstance(key_node, yaml.ScalarNode):
            draft.fault(place, "got a list or mapping as a key, expected a word such as training")
            continue
        inner = (*path, str(key_node.value))
        if inner[-1] in data:
            first = draft.key_places[inner]
            draft.fault(place, f"{dotted(inner)} is set twice, first at {first}; keep one of the two", inner)
            continue
        draft.key_places[inner] = place
        data[str(key_node.value)] = _plain(value_node, inner, name, draft)
    return data


def _at(name: str, mark: yaml.Mark) -> Place:
    return Place(mark.line + 1, mark.column + 1, name)


_SCALARS: dict[str, Callable[[str], object]] = {
    "null": lambda _: None,
    "bool": lambda text: {"true": True, "false": False}[text.lower()],
    "int": int,
    "float": lambda text: float(re.sub(r"\.(inf|nan)$", r"\1", text.lower())),
    "str": str,
}


def dotted(path: KeyPath) -> str:
    """`compare.seeds[1]` for `("compare", "seeds", 1)`."""
    parts = [f"[{part}]" if isinstance(part, int) else f".{part}" for part in path]
    return "".join(parts).removeprefix(".") or "the recipe"


def shown(value: object) -> str:
    """A value in a message, cut to one short line."""
    if isinstance(value, str):
        return f"the text {value if len(value) <= 60 else value[:57] + '...'!r}"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, dict):
        return "a section"
    text = f"the list {value}" if isinstance(value, list) else str(value)
    return text if len(text) <= 60 else text[:57] + "..."
