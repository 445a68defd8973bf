"""The answers of all passes to what a function asks networks, where the function computes its loss in its own way.

Some hosts own the loss: a function asks a network and makes a loss of what it answers. Here the function is called once
for each pass, and gets the answers of that pass.
"""

from __future__ import annotations

import random
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from rdrop.block_names import block
from rdrop.errors import NoEffectWarning
from rdrop.integrations.objective_config import RDropConfig
from rdrop.passes import forward_passes
from rdrop.running_statistics import buffers_kept, moving_norms
from rdrop.stochastic import rates_of_pass, warn_if_no_effect
from rdrop.strategies import batch_size
from rdrop.structures import leaves, map_leaves

_T = TypeVar("_T")


@dataclass
class Question:
    """One call of a network.

    Attributes:
        name: Of the network.
        network: Which was called.
        inputs: Positional and keyword arguments, in the first pass.
        answers: What the network returned, one for each pass.
        by_pass: Whether each pass has asked for itself, since its inputs depend on an earlier answer.
    """

    name: str
    network: nn.Module
    inputs: tuple[tuple[Any, ...], dict[str, Any]]
    answers: list[Any]
    by_pass: bool


class AnswersOfPasses:
    """Calls a function once for each pass, with the answers of that pass to all it asks of some networks.

    - The first question is put to its network for all passes at once, by `rdrop.forward_passes`. So are others that do
      not depend on an earlier answer.
    - A question that does, such as that of a head on the features of a backbone, is asked in each pass, with random
      numbers of its own. (Depending means that gradients flow into it, or that it is not the same in each pass.)
    - A network in evaluation mode answers once for all passes, as far as its inputs are the same.
    - Random numbers that the function draws itself, from the global generators of torch, NumPy and Python, are the same
      in each pass.
    - Running statistics move once.

    Args:
        networks: By their names. Where one is inside another, the outer one is asked.
        rdrop: How many passes, and how they are made.

    Examples:
        >>> import torch
        >>> from torch import nn
        >>> network = nn.Sequential(nn.Dropout(0.5), nn.Linear(8, 3))
        >>> passes = AnswersOfPasses({"network": network}, RDropConfig(passes=2))
        >>> (one, other), questions = passes.run(lambda index: network(torch.ones(4, 8)))
        >>> one.shape, one.equal(other), questions[0].name
        (torch.Size([4, 3]), False, 'network')
    """

    def __init__(self, networks: Mapping[str, nn.Module], rdrop: RDropConfig) -> None:
        self._rdrop = rdrop
        self._stand_ins = [(network, self._stand_in(name, network)) for name, network in networks.items()]
        self._own: list[tuple[dict[str, Any], Any, Any]] = []
        self._questions: list[Question] = []
        self._states: list[_RandomNumbers] = []  # of the function: at its start, and after each question
        self._drawn_by_passes = _RandomNumbers.now()
        self._pass = self._next = 0
        self._without_effect: dict[str, Warning] | None = {}  # until the first run is over

    def run(self, function: Callable[[int], _T]) -> tuple[list[_T], list[Question]]:
        """Calls a function with the number of each pass, counted from 0.

        Args:
            function: It asks the networks the same in each call.

        Returns:
            What it returned, one for each pass, and what it asked, in order.

        Raises:
            ValueError: The first question was not the same in each pass, or the number of questions; or questions
                depend on each other, and passes are asked for that are not made for those.

        Warns:
            NoEffectWarning: In the first run, if no network that was asked draws random numbers.
        """
        questions: list[Question] = []
        self._questions = questions
        self._states = [_RandomNumbers.now()]
        results = []
        for index in range(self._rdrop.passes):
            self._pass, self._next = index, 0
            self._states[0].restore()
            with self._instead_of_networks():
                results.append(function(index))
            if self._next != len(self._questions):
                raise ValueError(
                    f"pass {index + 1} asked {self._next} questions, and the first one {len(self._questions)}; "
                    "expected the same in each pass of a step"
                )
            if index == 0:
                self._drawn_by_passes = _RandomNumbers.now()
        self._drawn_by_passes.restore()
        self._tell_of_no_effect()
        self._questions = []  # whose answers are not to outlive the step
        return results, questions

    def _stand_in(self, name: str, network: nn.Module) -> Callable[..., Any]:
        """What is called in place of a network's forward."""

        def answer(*args: Any, **kwargs: Any) -> Any:
            return self._answer(name, network, (args, kwargs))

        return answer

    @contextmanager
    def _instead_of_networks(self) -> Iterator[None]:
        """The stand-ins are called, and no module that was compiled in place."""
        self._put()
        try:
            yield
        finally:
            self._take_away()

    @contextmanager
    def _networks_themselves(self) -> Iterator[None]:
        """The networks are called, inside of which nothing is intercepted."""
        self._take_away()
        try:
            yield
        finally:
            self._put()

    def _put(self) -> None:
        for network, stand_in in self._stand_ins:
            own = vars(network)
            self._own.append((own, own.get("forward"), own.get("_compiled_call_impl")))
            own["forward"] = stand_in
            own.pop("_compiled_call_impl", None)

    def _take_away(self) -> None:
        for own, forward, compiled in self._own:
            del own["forward"]
            own |= {} if forward is None else {"forward": forward}
            own |= {} if compiled is None else {"_compiled_call_impl": compiled}
        self._own = []

    def _answer(self, name: str, network: nn.Module, inputs: Any) -> Any:
        """The answer of this pass to the next question."""
        place = self._next
        self._next += 1
        if self._pass == 0:
            by_pass = place > 0 and any(isinstance(leaf, Tensor) and leaf.requires_grad for leaf in leaves(inputs))
            with self._networks_themselves(), self._listening_for_no_effect(name):
                answers = [self._asked_by_pass(network, inputs)] if by_pass else self._asked_for_all(network, inputs)
            self._questions.append(Question(name, network, inputs, answers, by_pass))
            self._states.append(_RandomNumbers.now())
            return answers[0]
        if place >= len(self._questions) or self._questions[place].name != name:
            raise ValueError(
                f"question {place + 1} of pass {self._pass + 1} is to {name}, which the first pass did not ask there; "
                "expected the same questions in each pass of a step"
            )
        question = self._questions[place]
        if not question.by_pass and not _are_same(question.inputs, inputs):
            if place == 0:
                raise ValueError(
                    f"{name} was given other inputs in pass {self._pass + 1} than in the first: something before it is "
                    "drawn anew, from another generator than the global ones of torch, NumPy and Python, or changes "
                    "what it works on in place. Do that where the batch is made"
                )
            question.by_pass, question.answers = True, question.answers[: self._pass]
        if question.by_pass:
            self._drawn_by_passes.restore()
            with self._networks_themselves():
                question.answers.append(self._asked_by_pass(network, inputs))
            self._drawn_by_passes = _RandomNumbers.now()
        self._states[place + 1].restore()
        return question.answers[self._pass]

    def _asked_for_all(self, network: nn.Module, inputs: Any) -> list[Any]:
        """The answers of all passes to one question."""
        args, kwargs = inputs
        rdrop, passes = self._rdrop, self._rdrop.passes
        if not network.training:
            return [network(*args, **kwargs)] * passes
        found = forward_passes(
            network,
            *args,
            passes=passes,
            strategy=rdrop.strategy,
            fraction=rdrop.fraction,
            branch_at=None if rdrop.branch_at is None else block(network, rdrop.branch_at),
            one_sided=rdrop.one_sided,
            **kwargs,
        )
        axes = passes, batch_size(inputs, repeated=False)

        def of_pass(index: int) -> Any:
            return map_leaves(lambda x: x[index] if isinstance(x, Tensor) and x.shape[:2] == axes else x, found)

        return [of_pass(index) for index in range(passes)]

    def _asked_by_pass(self, network: nn.Module, inputs: Any) -> Any:
        """The answer of this pass alone."""
        args, kwargs = inputs
        rdrop, index = self._rdrop, self._pass
        if not network.training:
            return network(*args, **kwargs)
        if rdrop.fraction < 1 or rdrop.branch_at is not None or rdrop.one_sided:
            first = self._questions[0].name
            raise ValueError(
                f"{type(network).__name__} is asked after {first}, and fraction, branch_at and one_sided are for one "
                "network that is called once. Leave them out, or call both inside the forward of one module"
            )
        if index == 0:
            warn_if_no_effect(network)
        norms = buffers_kept(moving_norms(network)) if index else nullcontext()
        with rates_of_pass(network, index, rdrop.passes), norms:
            return network(*args, **kwargs)

    @contextmanager
    def _listening_for_no_effect(self, name: str) -> Iterator[None]:
        """Holds back what is said of a network that draws nothing: another one may."""
        if self._without_effect is None:
            yield
            return
        with warnings.catch_warnings(record=True) as held:
            warnings.simplefilter("always", NoEffectWarning)
            yield
        for each in held:
            if issubclass(each.category, NoEffectWarning) and isinstance(each.message, Warning):
                self._without_effect[name] = each.message
            else:
                warnings.warn_explicit(each.message, each.category, each.filename, each.lineno, source=each.source)

    def _tell_of_no_effect(self) -> None:
        """Say so, if it holds of all networks that were asked."""
        held, self._without_effect = self._without_effect, None
        asked = {question.name for question in self._questions if question.network.training}
        if held and asked <= held.keys():
            warnings.warn(list(held.values())[-1], stacklevel=4)


class _RandomNumbers(NamedTuple):
    """The states of the global generators."""

    torch: list[tuple[torch.Generator, Tensor]]
    python: Any
    numpy: Any

    @classmethod
    def now(cls) -> _RandomNumbers:
        """As they are."""
        generators = [torch.default_generator]
        if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            generators += torch.cuda.default_generators
        numpy = sys.modules.get("numpy")
        states = [(generator, generator.get_state()) for generator in generators]
        return cls(states, random.getstate(), None if numpy is None else numpy.random.get_state())

    def restore(self) -> None:
        """Draw from here on again."""
        for generator, state in self.torch:
            generator.set_state(state)
        random.setstate(self.python)
        if self.numpy is not None:
            sys.modules["numpy"].random.set_state(self.numpy)


def _are_same(one: Any, other: Any) -> bool:
    """Whether the tensors of two questions are equal; where they are the same memory, nothing is read."""
    pairs = list(zip(leaves(one), leaves(other), strict=False))
    return len(leaves(one)) == len(leaves(other)) and all(
        _is_same(a, b) for a, b in pairs if isinstance(a, Tensor) or isinstance(b, Tensor)
    )


def _is_same(one: Any, other: Any) -> bool:
    if one is other:
        return True
    if not (isinstance(one, Tensor) and isinstance(other, Tensor)) or one.shape != other.shape:
        return False
    return _place(one) == _place(other) or torch.equal(one, other)


def _place(tensor: Tensor) -> tuple[Any, ...]:
    """Where a dense tensor lies, and when it was last changed."""
    if tensor.layout is not torch.strided:
        return (id(tensor),)
    return tensor.device, tensor.data_ptr(), tensor.stride(), tensor.dtype, tensor._version
