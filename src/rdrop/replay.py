"""Call a function several times, and compute what does not depend on random numbers only once.

The first call is watched, operation by operation. An operation is known by its name and its arguments; a tensor among
them by which object it is and how often it has been written to. If no random number went into an operation, directly
or through a tensor, its answer is noted. When a later call asks for the same operation with the same arguments it gets
the noted answer: the same tensor with the same gradient graph. All else is computed as usual, with random numbers in
the order in which a plain call draws them: several calls under a `Replay` are, bit for bit, several plain calls.

Writing in place needs care, because a tensor can hold one content at a time:

- Where no random number is involved (`ReLU(inplace=True)`) the writing is noted like any other operation.
- What a random operation overwrites (`Dropout(inplace=True)`) is copied before, and later calls write to copies.
- State that random operations write to (statistics in BatchNorm) is no longer followed; calls see it as it is.

Memory: an answer is kept only if something random reads it, or if autograd keeps it anyway. What is gone is handed out
as an empty stand-in, which later operations on the deterministic path recognise and nothing else ever reads.

Where a call takes another way than the first (a layer left out at random) and needs what is gone, it starts over as a
plain call, with the random numbers it had.
"""

from __future__ import annotations

import math
import random
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache, partial
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode, _get_current_function_mode, _pop_mode, _push_mode
from torch.utils.weak import TensorWeakRef

from rdrop.structures import leaves, map_leaves

_TORCH_CONSTANTS = (torch.Size, torch.dtype, torch.device, torch.layout, torch.memory_format)
_CONSTANTS = (bool, int, float, complex, str, type(None), type(...), type, *_TORCH_CONSTANTS)
_ARITHMETIC = ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul")
_BITWISE = ("and", "or", "xor", "lshift", "rshift")
_NOTABLE = (Tensor, *_CONSTANTS)
_EXACT = frozenset({int, str, type(None), torch.dtype, torch.device})
_SIMPLE = _EXACT | {bool, float}
_BOOL = ((bool, 0), (bool, 1))
_HOOK = "register_hook"
_IN_PLACE = {"__setitem__", *(f"__i{name}__" for name in (*_ARITHMETIC, *_BITWISE))}


class _Diverged(BaseException):
    """A call needs what is gone; no Exception, because a model may catch those."""


class _Slot:
    """The place of a tensor in a noted answer; no dataclass, because it has to be a leaf."""

    def __init__(self, serial: int) -> None:
        self.serial = serial


class _Answer(NamedTuple):
    """What an operation gave: its output, and how often each tensor in it had been written to afterwards."""

    output: Any
    versions: dict[int, int]


# A tensor among the arguments that does not depend on random numbers: its serial, and its version as this call sees it.
_Known = tuple[Tensor, int, int]


class _Arguments:
    """What was found among the arguments of an operation."""

    def __init__(self) -> None:
        self.known: list[_Known] = []
        self.constant = True  # the same arguments will give the same answer, unless the operation draws
        self.foreign = False  # there is a generator, an array, a cache: who knows whether it will be the same next time


class Replay(TorchFunctionMode):
    """Calls of one function that share what does not depend on random numbers; see the docstring of this module.

    Args:
        inputs: What the function is called with, in any structure.

    Attributes:
        draws_are_shared: While True, random numbers of the first call count as constants: later calls use the same.
        blind: Whether the function is running, and no operation of it is being handled: what runs then is out of sight.
        diverged: Whether a call had to start over.
        misled: Whether the first call did what cannot be noted: in a custom autograd.Function a tensor gets its place
            in the graph after the operation that made it. Later calls are plain ones then.

    Examples:
        >>> import torch
        >>> from torch.nn import functional as F
        >>> x, weight = torch.ones(2, 3), torch.ones(3, 3, requires_grad=True)
        >>> trunks = []
        >>> def call():
        ...     trunks.append(x @ weight)
        ...     return F.dropout(trunks[-1], 0.5)
        >>> replay = Replay(x)
        >>> outputs = [replay.run(call), replay.run(call)]
        >>> trunks[0] is trunks[1], outputs[0] is outputs[1]
        (True, False)
    """

    def __init__(self, inputs: Any) -> None:
        super().__init__()
        self.draws_are_shared = False
        self.blind = False
        self.diverged = False
        self.misled = False
        self._again = False
        self._grad = torch.is_grad_enabled()  # when the call under way began
        self._answers: dict[Any, list[_Answer]] = {}  # in the order in which the same was asked for
        self._wholes: list[Any] = []  # keys of the answers of whole modules
        self._given: dict[Any, int] = {}  # by key: how many of them this call has got
        self._objects: list[TensorWeakRef] = []  # every tensor that was ever known; its place is its serial
        self._in_graph: list[bool] = []  # for each: whether it had a gradient graph when it was last seen
        self._counters: list[int] = []  # for each: the serial of the tensor whose memory it is written to with
        self._serials: dict[int, int] = {}  # by id: what is known at this moment
        self._versions: dict[int, int] = {}  # by counter: how often this call has seen it written to
        self._outside: dict[int, tuple[int, int]] = {}  # by id: parameters, buffers, inputs; serial and first version
        self._strangers: dict[int, TensorWeakRef] = {}  # by id: what depends on random numbers
        self._held: list[Tensor] = []  # what later calls will read
        self._copies: dict[tuple[int, int], Tensor] = {}  # by serial and version: content that was overwritten
        self._own: dict[int, Tensor] = {}  # by serial: the content of this call, where it has one of its own
        self._stand_ins: dict[int, Tensor] = {}  # by serial
        self._inputs = {id(leaf): leaf for leaf in leaves(inputs) if isinstance(leaf, Tensor)}
        self._random_state: tuple[Tensor, list[int]]  # when it was last looked at
        self._stale = True  # whether numbers may have been drawn since then that nobody asks about

    def run(self, call: Callable[[], Any]) -> Any:
        """Call the function; from the second time on, with what the first has found.

        A later call may be made without gradients where the first was made with them.
        """
        self._grad = torch.is_grad_enabled()
        if self.misled:
            return call()
        if not self._again:
            host = _host_random_state()
            result = self._watch(call)
            if host != _host_random_state():  # who knows where
                for key in self._wholes:
                    self._answers.pop(key, None)
            for leaf in leaves(result):
                if isinstance(leaf, Tensor):
                    self._serial(leaf)
            self._again = True
            return result
        self._serials = {key: serial for key, (serial, _) in self._outside.items()}
        self._versions = {self._counters[serial]: version for serial, version in self._outside.values()}
        self._given, self._own, self._stand_ins = {}, {}, {}
        states = [(generator, generator.get_state()) for generator in (torch.default_generator, *_cuda_generators())]
        try:
            result = self._watch(call)
            if self._stand_ins and any(leaf is gone for leaf in leaves(result) for gone in self._stand_ins.values()):
                raise _Diverged
        except _Diverged:
            self.diverged = True
            for generator, state in states:
                generator.set_state(state)
            result = call()
        return result

    def _watch(self, call: Callable[[], Any]) -> Any:
        try:
            with self:
                self.blind = True
                return call()
        finally:
            self.blind = False

    @contextmanager
    def as_wholes(self, modules: Iterable[nn.Module]) -> Iterator[None]:
        """While this lasts, a call of one of these modules is one operation, and what happens in it is not watched.

        For modules that are not expected to draw. One that does all the same by torch is computed in each call; where
        Python or NumPy drew in the first call, all of them are.
        """
        replaced = [(module, module.__dict__.get("forward")) for module in modules]
        for module, own in replaced:
            module.__dict__["forward"] = partial(self._whole, own or module.forward)
        try:
            yield
        finally:
            for module, own in replaced:
                del module.__dict__["forward"]
                if own is not None:
                    module.__dict__["forward"] = own

    def _whole(self, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """A call of a module."""
        if not self.blind:  # another one that is handled as a whole has made it
            return forward(*args, **kwargs)
        if len(args) == 1 and not kwargs and self._depends(args[0]):  # the usual case above the first random number
            return self._follow(forward, args, kwargs)
        return self._operation(forward, args, kwargs, through=True)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not self.blind:
            return func(*args, **kwargs)
        if not self._all_random(args, kwargs):
            return self._operation(func, args, kwargs)
        return self._follow(func, args, kwargs)

    def _all_random(self, args: Any, kwargs: dict[str, Any]) -> bool:
        """Whether there are tensors that depend on random numbers, and beside them only simple values."""
        found = False
        for value in args:
            if type(value) not in _SIMPLE:
                if not self._depends(value):
                    return False
                found = True
        return found and all(type(value) in _SIMPLE for value in kwargs.values())

    def _follow(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """Carry out an operation above the first random number: what it gives depends on random numbers as well."""
        self.blind = False
        try:
            result = self._unwatched(func, args, kwargs)
        finally:
            self.blind = True
        if not self._again:
            self._stale = True
            self._forget_new([result] if isinstance(result, Tensor) else leaves(result))
        return result

    def _operation(self, func: Any, args: Any, kwargs: dict[str, Any], *, through: bool = False) -> Any:
        """Carry out an operation, or give its noted answer; `through`: one that consists of others."""
        self.blind = False
        try:
            arguments = _Arguments()
            told = args[:1] if func.__name__ == _HOOK else args  # the first call's hook gets the gradient of all
            key = (
                func, self._freeze(told, arguments), self._freeze(kwargs, arguments),
                torch.is_grad_enabled() == self._grad,
                torch.is_autocast_enabled("cpu"), torch.is_autocast_enabled("cuda"),
            )  # fmt: skip
            if through and arguments.foreign:  # it would never be noted, but what it consists of may
                self.blind = True
                return func(*args, **kwargs)
            if not self._again:
                return self._note(func, args, kwargs, arguments, key, through=through)
            answers = self._answers.get(key, []) if arguments.constant else []
            given = self._given.get(key, 0)
            if given < len(answers):
                self._given[key] = given + 1
                return self._restore(answers[given])
            return self._compute(func, args, kwargs, arguments)
        finally:
            self.blind = True

    def _unwatched(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """Carry out an operation; those in it do not come here, where that can be had without harm to other modes."""
        if _get_current_function_mode() is not self:  # type: ignore[no-untyped-call]
            return func(*args, **kwargs)
        _pop_mode()  # type: ignore[no-untyped-call]
        try:
            return func(*args, **kwargs)
        finally:
            _push_mode(self)  # type: ignore[no-untyped-call]

    # What is known.

    def _serial(self, tensor: Tensor) -> int | None:
        """The number of a known tensor, else None. What is new in the first call has come from outside."""
        serial = self._serials.get(id(tensor))
        if serial is not None and (self._objects[serial]() is tensor or self._stand_ins.get(serial) is tensor):
            if not self._again and tensor.requires_grad and not self._in_graph[serial]:
                self.misled = True
            return serial
        stranger = self._strangers.get(id(tensor))
        if self._again or tensor.is_inference() or (stranger is not None and stranger() is tensor):
            return None
        serial = self._register(tensor)
        self._outside[id(tensor)] = serial, tensor._version
        self._held.append(tensor)
        return serial

    def _register(self, tensor: Tensor) -> int:
        """Give a tensor a number."""
        serial = self._serials[id(tensor)] = len(self._objects)
        self._objects.append(TensorWeakRef(tensor))
        self._in_graph.append(tensor.requires_grad)
        base = tensor._base
        of_base = base is not None and self._knows(base)
        self._counters.append(self._counter(base) if of_base else serial)  # type: ignore[arg-type]
        return serial

    def _knows(self, tensor: Tensor) -> bool:
        """Whether a tensor has a number."""
        serial = self._serials.get(id(tensor))
        return serial is not None and self._objects[serial]() is tensor

    def _depends(self, value: Any) -> bool:
        """Whether this is a tensor of which is known that it depends on random numbers."""
        if not isinstance(value, Tensor):
            return False
        if self._again:
            return self._serial(value) is None
        stranger = self._strangers.get(id(value))
        return stranger is not None and stranger() is value

    def _counter(self, tensor: Tensor) -> int:
        """By which counter a known tensor is written to."""
        return self._counters[self._serials[id(tensor)]]

    def _slot(self, leaf: Any) -> Any:
        """A leaf of an answer as it is noted."""
        return _Slot(self._serials[id(leaf)]) if isinstance(leaf, Tensor) else leaf

    def _freeze(self, value: Any, arguments: _Arguments) -> Any:
        """A value as part of a key; notes the tensors in it."""
        kind = type(value)
        if kind in _EXACT:
            return value
        if kind is bool:
            return _BOOL[value]  # since 1 == True
        if kind is tuple or kind is list:
            return kind, *[item if type(item) in _EXACT else self._freeze(item, arguments) for item in value]
        if isinstance(value, Tensor):
            serial = self._serial(value)
            if serial is None:
                arguments.constant = False
                return None
            version = self._versions[self._counters[serial]] if self._again else value._version
            arguments.known.append((value, serial, version))
            if serial in self._own:
                arguments.constant = False
            return Tensor, serial, version
        if kind is dict:
            return dict, *value, *[self._freeze(item, arguments) for item in value.values()]
        if kind is slice:
            return slice, *[self._freeze(item, arguments) for item in (value.start, value.stop, value.step)]
        if isinstance(value, tuple):
            return kind, *[self._freeze(item, arguments) for item in value]
        if isinstance(value, _CONSTANTS):
            return kind, value, isinstance(value, float) and math.copysign(1, value)
        arguments.constant, arguments.foreign = False, True
        return None

    # The first call.

    def _note(
        self, func: Any, args: Any, kwargs: Any, arguments: _Arguments, key: Any, *, through: bool = False
    ) -> Any:
        """Carry out an operation, and note its answer if no random number went into it."""
        target = _target(func, args, kwargs)
        watched = arguments.constant and _draws(func.__name__) != "never"
        if watched and self._stale:
            self._random_state, self._stale = _random_state(), False
        if target is not None and (
            not arguments.constant or (_draws(func.__name__) == "always" and not self.draws_are_shared)
        ):
            for tensor, serial, version in arguments.known:
                if tensor is target and not self._is_state(tensor) and (serial, version) not in self._copies:
                    self._copies[serial, version] = tensor.clone()
        result = self._unwatched(func, args, kwargs)
        written = [(tensor, serial) for tensor, serial, version in arguments.known if tensor._version != version]
        found = [result] if isinstance(result, Tensor) else leaves(result)
        clear = func.__name__ in ("__get__", _HOOK) or all(isinstance(leaf, _NOTABLE) for leaf in found)
        drew = watched and self._drew()
        self._stale = self._stale or not arguments.constant
        if arguments.constant and clear and (written or result is not None) and not drew:
            for leaf in found:
                if isinstance(leaf, Tensor):
                    serial = self._serials[id(leaf)] if self._knows(leaf) else self._register(leaf)
                    self._in_graph[serial] = leaf.requires_grad
            versions = {self._counters[serial]: tensor._version for tensor, serial in written}
            versions |= {self._counter(leaf): leaf._version for leaf in found if isinstance(leaf, Tensor)}
            output = self._slot(result) if isinstance(result, Tensor) else map_leaves(self._slot, result)
            self._answers.setdefault(key, []).append(_Answer(output, versions))
            if through:
                self._wholes.append(key)
            return result
        self._held += [tensor for tensor, _, _ in arguments.known]
        for tensor, _ in written:
            self._forget(tensor)
        self._forget_new(found)
        return result

    def _drew(self) -> bool:
        """Whether a number was drawn since the last look, and it matters."""
        before, self._random_state = self._random_state, _random_state()
        return not self.draws_are_shared and not _same(before, self._random_state)

    def _forget(self, tensor: Tensor) -> None:
        """From now on, a tensor depends on random numbers."""
        self._serials.pop(id(tensor), None)
        if self._is_state(tensor):
            del self._outside[id(tensor)]
        self._strangers[id(tensor)] = TensorWeakRef(tensor)

    def _forget_new(self, found: Iterable[Any]) -> None:
        """What a random operation has made depends on random numbers."""
        for leaf in found:
            if isinstance(leaf, Tensor) and not self._knows(leaf):
                self._strangers[id(leaf)] = TensorWeakRef(leaf)

    def _is_state(self, tensor: Tensor) -> bool:
        """Whether a tensor was there before the first call and is no input: a parameter or a buffer."""
        return id(tensor) in self._outside and id(tensor) not in self._inputs

    # Later calls.

    def _restore(self, answer: _Answer) -> Any:
        """A noted answer, with the tensors that are still there, and stand-ins for the others."""
        self._versions.update(answer.versions)
        if isinstance(answer.output, _Slot):
            return self._object(answer.output)
        return map_leaves(self._object, answer.output)

    def _object(self, leaf: Any) -> Any:
        """A leaf of a noted answer as this call gets it."""
        if not isinstance(leaf, _Slot):
            return leaf
        serial = leaf.serial
        tensor = self._objects[serial]()
        if tensor is None:
            tensor = self._stand_ins.setdefault(serial, torch.empty(0, device="meta"))
        self._serials[id(tensor)] = serial
        return tensor

    def _compute(self, func: Any, args: Any, kwargs: Any, arguments: _Arguments) -> Any:
        """Carry out an operation on what its arguments hold in this call."""
        target = _target(func, args, kwargs)
        contents = {id(known[0]): self._content(known, write=known[0] is target) for known in arguments.known}
        if any(contents[id(tensor)] is not tensor for tensor, _, _ in arguments.known):
            args, kwargs = map_leaves(lambda leaf: contents.get(id(leaf), leaf), (args, kwargs))
        return self._unwatched(func, args, kwargs)

    def _content(self, known: _Known, *, write: bool) -> Tensor:
        """A tensor that holds what a known one holds in this call, and may be written to if asked for."""
        tensor, serial, version = known
        if serial in self._own:
            return self._own[serial]
        if serial in self._stand_ins:
            raise _Diverged
        if tensor._version != version:
            if (serial, version) not in self._copies:
                raise _Diverged
            tensor = self._copies[serial, version]
        elif self._is_state(tensor):
            return tensor
        if write:
            tensor = self._own[serial] = tensor.clone()
        return tensor


def _target(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Tensor | None:
    """The tensor that an operation will write to, as far as its name and arguments say."""
    name = func.__name__
    in_place = (name.endswith("_") and not name.endswith("__")) or name in _IN_PLACE or kwargs.get("inplace")
    first = args[0] if args else kwargs.get("input")
    target = first if in_place else kwargs.get("out")
    return target if isinstance(target, Tensor) else None


@lru_cache(maxsize=1024)
def _draws(name: str) -> Literal["always", "maybe", "never"]:
    """Whether an operation of this name draws random numbers."""
    found: Any = getattr(torch.ops.aten, name, None)
    overloads = [getattr(found, overload) for overload in found.overloads()] if hasattr(found, "overloads") else []
    if "dropout" in name or any(torch.Tag.nondeterministic_seeded in overload.tags for overload in overloads):
        return "always"
    return "never" if overloads or name in ("__get__", _HOOK) else "maybe"


def _cuda_generators() -> tuple[torch.Generator, ...]:
    """The default generators of CUDA devices that are in use."""
    return tuple(torch.cuda.default_generators) if torch.cuda.is_initialized() else ()  # type: ignore[no-untyped-call]


def _random_state() -> tuple[Tensor, list[int]]:
    """What changes when a number is drawn from a default generator; waits for no device."""
    return torch.default_generator.get_state(), [generator.get_offset() for generator in _cuda_generators()]


def _host_random_state() -> tuple[Any, ...]:
    """What changes when Python's or NumPy's global generator draws."""
    numpy = sys.modules.get("numpy")
    if numpy is None:
        return (random.getstate(),)
    _, words, position, *_ = numpy.random.get_state()
    return random.getstate(), words.tobytes(), position


def _same(one: tuple[Tensor, list[int]], other: tuple[Tensor, list[int]]) -> bool:
    """Whether nothing was drawn between two states."""
    return one[1] == other[1] and torch.equal(one[0], other[0])
