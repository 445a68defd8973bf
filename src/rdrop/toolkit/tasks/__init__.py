"""The task families: one module each, found by the name that a recipe gives in `task`."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rdrop.toolkit.recipe import Recipe
    from rdrop.toolkit.task import Task

_CLASSES = {
    "digits": ("digits", "DigitsTask"),
    "image-classification": ("image_classification", "ImageClassificationTask"),
    "language-modeling": ("language_modeling", "LanguageTask"),
    "summarization": ("summarization", "SummarizationTask"),
    "text-classification": ("text_classification", "TextTask"),
    "token-classification": ("token_classification", "TokenTask"),
    "translation": ("translation", "TranslationTask"),
}
"""Task to its module here and its class there; modules are loaded when they are asked for."""

DEFAULT_TASK = "digits"
TASK_NAMES = tuple(_CLASSES)


def task_class(name: str) -> type[Task[Any]]:
    """The class of a task.

    >>> task_class("digits").__name__
    'DigitsTask'
    """
    module, found = _CLASSES[name]
    loaded: type[Task[Any]] = getattr(import_module(f"{__name__}.{module}"), found)
    return loaded


def recipe_class(name: str) -> type[Recipe]:
    """The class of a task's recipes."""
    return task_class(name).RECIPE


def task_of(recipe: Recipe) -> Task[Any]:
    """The task that a recipe describes."""
    return task_class(recipe.task)(recipe)
