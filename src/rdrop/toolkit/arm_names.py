"""The names of arms, and the settings that some of them carry: `every-2` is R-Drop in every second step."""

from __future__ import annotations

import difflib
import re
from typing import Annotated, Any, NamedTuple

from pydantic import AfterValidator
from pydantic_core import PydanticCustomError

FIXED = ("plain", "twice", "rdrop", "longer")
_FORMS = {
    "every": r"every-(\d+)",
    "fraction": r"fraction-(0?\.\d+)",
    "last": r"last-(\d+)",
    "one_sided": "one-sided",
    "longer": r"longer-(\d+(?:\.\d+)?)",
}
# The fields of a recipe's section `rdrop` that make the objective cheaper, as they are where nothing is spared.
WHOLE: dict[str, Any] = {"every": 1, "fraction": 1.0, "branch_at": None, "one_sided": False}
EXAMPLES = ("every-2", "fraction-0.25", "last-1", "one-sided", "longer-1.25")
EXPECTED = f"one of {', '.join(FIXED)}, or with a number of your own {', '.join(EXAMPLES)}"


class Variant(NamedTuple):
    """What the name of an arm says beside its kind."""

    kind: str
    """`every`, `fraction`, `last`, `one_sided` or `longer`."""
    number: float


def variant(name: str) -> Variant | None:
    """What a name says, or None if it is that of a fixed arm or of none.

    >>> variant("fraction-0.25")
    Variant(kind='fraction', number=0.25)
    """
    for kind, form in _FORMS.items():
        match = re.fullmatch(form, name)
        if match:
            number = float(match[1]) if match.groups() else 0.0
            allowed = number > 1 if kind in ("every", "longer") else number > 0 or kind == "one_sided"
            return Variant(kind, number) if allowed and number <= 1000 else None
    return None


def economy(name: str) -> dict[str, Any] | None:
    """The fields of a recipe's section `rdrop` that an arm has in place of the recipe's; None if it has none.

    >>> economy("last-2")
    {'every': 1, 'fraction': 1.0, 'branch_at': -2, 'one_sided': False, 'budget': None}
    """
    found = variant(name)
    if found is None or found.kind == "longer":
        return None
    whole = WHOLE | {"budget": None}
    match found.kind:
        case "every":
            return whole | {"every": int(found.number)}
        case "fraction":
            return whole | {"fraction": found.number}
        case "last":
            return whole | {"branch_at": -int(found.number)}
        case _:
            return whole | {"one_sided": True}


def expected(name: str) -> str | None:
    """What would have been a name, with the closest one; None if it is one."""
    if name in FIXED or variant(name) is not None:
        return None
    close = difflib.get_close_matches(name, [*FIXED, *EXAMPLES], n=1, cutoff=0.7)
    return EXPECTED + (f"; did you mean {close[0]}?" if close else "")


def _known(name: str) -> str:
    wrong = expected(name)
    if wrong is not None:
        raise PydanticCustomError(
            "recipe", "{message}", {"message": f"got the text {name!r}, expected {wrong}", "keys": ()}
        )
    return name


ArmName = Annotated[str, AfterValidator(_known)]
