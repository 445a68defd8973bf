"""What the shell offers when a word is begun."""

from __future__ import annotations

from collections.abc import Callable, Iterable


def begun(words: Callable[[], Iterable[str]]) -> Callable[[str], list[str]]:
    """A completion for typer.

    Args:
        words: Gives all the words; called only when the shell asks.

    >>> begun(lambda: ["test", "validation"])("te")
    ['test']
    """

    def complete(incomplete: str) -> list[str]:
        return [word for word in words() if word.startswith(incomplete)]

    return complete


def tasks() -> list[str]:
    """The tasks, and the word that lists them."""
    from rdrop.toolkit.tasks import TASK_NAMES

    return [*TASK_NAMES, "list"]


def recipes() -> list[str]:
    """The built-in recipes."""
    from rdrop.toolkit.recipe_file import built_in_recipes

    return list(built_in_recipes())


def arms() -> list[str]:
    """The arms."""
    from rdrop.toolkit.arm_names import EXAMPLES, FIXED

    return [*FIXED, *EXAMPLES]
