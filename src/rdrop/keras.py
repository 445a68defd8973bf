"""R-Drop for Keras 3: the same objective on `keras.ops`, and a model around a network that is compiled and fitted.

The numbers are those of `rdrop.rdrop_loss`, to rounding, on each of Keras' backends: one table of cases holds all to
them. Nothing here needs torch, unless it is the backend.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops

from rdrop.errors import NoEffectWarning, ProbabilitiesWarning
from rdrop.options import Divergence, Kind, Objective, Reduction, StopGradient, check_alpha, check_choice
from rdrop.shapes import check_class_ids, check_reduction, check_shapes, wrong_dtype

__all__ = ["RDropModel", "RDropOutput", "divergence", "forward_passes", "rdrop_loss"]

IMPOSSIBLE = -1e30  # in place of a logit of -inf, so that no gradient meets an infinity
NOTHING = 1e-12  # a divergence below it is the rounding of equal answers


class RDropOutput(NamedTuple):
    """The objective and its two terms."""

    loss: Any
    task_loss: Any
    divergence: Any


def rdrop_loss(
    logits: Any,
    labels: Any | None,
    *,
    alpha: Any = 1.0,
    kind: Kind = "categorical",
    ignore_index: int | None = -100,
    mask: Any | None = None,
    class_weight: Any | None = None,
    label_smoothing: float = 0.0,
    reduction: Reduction = "mean",
    normalizer: Any | None = None,
    divergence: Divergence = "symmetric_kl",
    stop_gradient: StopGradient | None = None,
) -> RDropOutput:
    """R-Drop's objective on the logits of M passes over one batch.

        task_loss  = mean_i  -log P_i(y)
        divergence = mean over ordered pairs i != j of KL(P_i || P_j)
        loss       = task_loss + alpha * divergence

    each a mean over the positions that count (Liang et al. 2021, arXiv 2106.14448, eq. 4; `rdrop.rdrop_loss` explains
    every option and the units of alpha). Softmax and sums run in float32, or in float64 for float64 logits. Tensors are
    those of the backend, or what it can make into one; inside of `jax.jit` and `tf.function` too.

    Args:
        logits: `(M, B, ..., C)`, M >= 1; `(M, B, ...)` for the binary and the regression kind. Classes whose logit is
            -inf are impossible.
        labels: Class ids `(B, ...)`, class probabilities `(B, ..., C)`, or None for unlabelled data.
        alpha: Weight of the divergence, at least 0; a number, a tensor or a variable.
        kind: `categorical`, `binary` or `regression`.
        ignore_index: Positions with this label count in neither term; None: every label counts.
        mask: True at the positions that count, `(B, ...)`.
        class_weight: `(C,)`; for the binary kind one weight for each label.
        label_smoothing: In 0..1; task loss only.
        reduction: `mean` over the positions that count, `sum`, or `none` for `(B, ...)`.
        normalizer: Replaces the number of positions that `mean` divides by.
        divergence: `symmetric_kl`, `kl`, `js` or `mse`.
        stop_gradient: Passes that are constants inside the divergence: none, the `first`, or the `rest`.

    Returns:
        `loss`, `task_loss` and `divergence`.

    Raises:
        ValueError: A shape or an option is out of place, or, outside of compiled programs and on the CPU, a class id.
        TypeError: A tensor has the wrong kind of dtype.

    Examples:
        >>> from rdrop.keras import rdrop_loss
        >>> out = rdrop_loss([[[2.0, 0.0]], [[0.0, 0.0]]], [0], alpha=1.0)
        >>> [round(float(term), 4) for term in out]
        [0.7908, 0.41, 0.3808]
    """
    z = ops.convert_to_tensor(logits)
    y, keep, weight = (None if each is None else ops.convert_to_tensor(each) for each in (labels, mask, class_weight))
    objective = Objective(kind, divergence, stop_gradient, label_smoothing)
    check_reduction(reduction, normalizer)
    if isinstance(alpha, int | float):
        check_alpha(alpha)
    _check(z, y, keep, weight, kind, ignore_index)
    z = ops.cast(z, _at_least_single(z))
    categorical = kind == "categorical"
    one = z[0, ..., 0] if categorical else z[0]
    counts = ops.ones_like(one, dtype="bool") if keep is None else ops.cast(keep, "bool")
    soft = categorical and y is not None and _is_float(y)
    # Against an unsigned label a negative number would wrap around to a real one.
    if y is not None and not soft and ignore_index is not None and (ignore_index >= 0 or not _is_unsigned(y)):
        counts = ops.logical_and(counts, ops.not_equal(y, ignore_index))
    # What stands where nothing counts, be it nan, must not reach a gradient.
    z = ops.where(counts[..., None] if categorical else counts, z, ops.zeros_like(z))
    task, distance = _rows(z, y, counts, weight, objective)
    zero = ops.zeros_like(distance)
    task, distance = ops.where(counts, task, zero), ops.where(counts, distance, zero)
    if reduction != "none":
        by: Any = 1.0
        if reduction == "mean" and normalizer is None:
            by = _at_least_one(ops.sum(ops.cast(counts, z.dtype)))
        elif normalizer is not None:
            by = ops.cast(ops.convert_to_tensor(normalizer), z.dtype)
            by = ops.where(ops.equal(by, 0), ops.ones_like(by), by)
        task, distance = ops.sum(task) / by, ops.sum(distance) / by
    factor = alpha if isinstance(alpha, int | float) else ops.cast(alpha, z.dtype)
    return RDropOutput(task + factor * distance, task, distance)


def divergence(
    logits: Any,
    *,
    kind: Kind = "categorical",
    divergence: Divergence = "symmetric_kl",
    stop_gradient: StopGradient | None = None,
    mask: Any | None = None,
    reduction: Reduction = "mean",
    normalizer: Any | None = None,
) -> Any:
    """The divergence alone, beside a task loss of your own; the arguments are those of `rdrop_loss`.

    Examples:
        >>> round(float(divergence([[[2.0, 0.0]], [[0.0, 0.0]]])), 4)
        0.3808
    """
    options: dict[str, Any] = {"divergence": divergence, "stop_gradient": stop_gradient, "normalizer": normalizer}
    return rdrop_loss(logits, None, kind=kind, mask=mask, reduction=reduction, **options).divergence


def forward_passes(model: Any, inputs: Any, passes: int = 2, training: bool = True) -> Any:
    """Run a network M times on one batch, with different masks: one forward of the repeated batch, as in the paper.

    Args:
        model: A layer or model of Keras.
        inputs: What it takes: a tensor, or a nest of them, all with the batch on the first axis.
        passes: M >= 1.
        training: Whether dropout is on. Without it all passes are the same.

    Returns:
        What the network returns, with `(M, B, ...)` for every tensor.

    Raises:
        ValueError: There is no pass.

    Examples:
        >>> import keras
        >>> network = keras.Sequential([keras.layers.Dropout(0.5), keras.layers.Dense(3)])
        >>> tuple(forward_passes(network, keras.ops.ones((4, 8))).shape)
        (2, 4, 3)
    """
    _check_passes(passes)
    answers = model(_repeated(inputs, passes), training=training)
    return keras.tree.map_structure(lambda each: ops.stack(ops.split(each, passes)), answers)


class _Doubled(NamedTuple):
    """What `RDropModel` gives in training: the network's answers to the repeated batch, `(M * B, ...)`."""

    answers: Any


@keras.saving.register_keras_serializable(package="rdrop")
class RDropModel(keras.Model):  # type: ignore[misc]
    """A network that is trained on M passes, and evaluated and asked for predictions as it is.

        loss = mean over passes of the compiled loss + alpha * D(answers of the passes)

    (Liang et al. 2021, eq. 4, in the units of `rdrop.rdrop_loss`.) Compile and fit it like any model. The divergence is
    reduced as the compiled loss is: over the same positions, with the same masks and sample weights.

    What the network's outputs are, the compiled loss says: a crossentropy means logits with `from_logits=True` and
    probabilities without, a squared or absolute error means numbers. For a loss of your own, say it with `kind` and
    `from_logits`.

    In training the log has `task_loss`, which is what a plain model's `loss` would be, and `divergence`. Metrics see
    the first pass. A call with `training=True` gives the answers of all passes, for `compute_loss`; for one answer with
    dropout call `network`.

    Args:
        network: A model or layer with one output.
        alpha: Weight of the divergence, at least 0.
        passes: M >= 1; with 1 it is the network itself.
        kind: What the outputs are, see `rdrop_loss`; None: as the compiled loss says.
        from_logits: Whether they are scores before the softmax or sigmoid; None: as the compiled loss says.
        divergence: As for `rdrop_loss`.
        stop_gradient: As for `rdrop_loss`.
        **kwargs: As for `keras.Model`.

    Attributes:
        network: The network, whose layers and weights these are. Save this one to go on without R-Drop.
        alpha: A variable, to which a callback may `assign` another number.
        passes: M.

    Raises:
        ValueError: An option is out of range; in `fit`, the outputs are not what the loss takes them for.

    Warns:
        NoEffectWarning: In `fit`, the divergence was 0 in the second batch.
        ProbabilitiesWarning: In `fit`, outputs that should be logits sum to 1.

    Examples:
        >>> import keras
        >>> import numpy as np
        >>> network = keras.Sequential([keras.layers.Dropout(0.5), keras.layers.Dense(3, activation="softmax")])
        >>> model = RDropModel(network, alpha=1.0)
        >>> model.compile(optimizer="adam", loss="sparse_categorical_crossentropy", metrics=["accuracy"])
        >>> x, y = np.ones((8, 4), "float32"), np.zeros(8, "int32")
        >>> history = model.fit(x, y, batch_size=4, verbose=0)
        >>> sorted(history.history)
        ['accuracy', 'divergence', 'loss', 'task_loss']
        >>> model.predict(x, verbose=0).shape
        (8, 3)
    """

    def __init__(
        self,
        network: Any,
        alpha: float = 1.0,
        passes: int = 2,
        *,
        kind: Kind | None = None,
        from_logits: bool | None = None,
        divergence: Divergence = "symmetric_kl",
        stop_gradient: StopGradient | None = None,
        **kwargs: Any,
    ) -> None:
        check_alpha(alpha)
        _check_passes(passes)
        if kind is not None:
            check_choice("kind", kind, Kind)
        Objective(kind or "categorical", divergence, stop_gradient)
        # The network casts its inputs itself; its policy decides whether Keras scales the loss.
        super().__init__(**{"dtype": network.dtype_policy, "autocast": False, **kwargs})
        self.network, self.passes, self._parts = network, passes, _Parts(passes)
        self._outputs: dict[str, Any] = {"kind": kind, "from_logits": from_logits}
        self._tie: dict[str, Any] = {"divergence": divergence, "stop_gradient": stop_gradient}
        self.alpha = self.add_weight(name="alpha", shape=(), initializer="ones", trainable=False, dtype="float32")
        self.alpha.assign(alpha)
        self._task_loss, self._divergence = keras.metrics.Mean("task_loss"), keras.metrics.Mean("divergence")

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """The network's answer; in training, those of all passes, for `compute_loss`."""
        if not training or self.passes == 1:
            return self.network(inputs, training=training)
        return _Doubled(self.network(_repeated(inputs, self.passes), training=True))

    def compute_loss(
        self, x: Any = None, y: Any = None, y_pred: Any = None, sample_weight: Any = None, training: bool = True
    ) -> Any:
        """The objective of all passes, or the compiled loss of one answer."""
        plain = super().compute_loss
        if not isinstance(y_pred, _Doubled):
            return plain(x, y, y_pred, sample_weight, training)
        passes = self._parts(y_pred.answers)
        task = sum(plain(x, y, each, sample_weight, training) for each in passes) / self.passes
        outputs = _Outputs.of(self.loss, **self._outputs, last=passes[0].shape[-1])
        tie = _Tie(outputs, self._tie, y, _at_least_single(passes[0]))
        apart = tie(ops.stack(passes[1:]), passes[0], sample_weight)
        rows = ops.shape(passes[0])[0]
        self._task_loss.update_state(task, sample_weight=rows)
        self._divergence.update_state(apart, sample_weight=rows)
        return task + ops.cast(self.alpha, task.dtype) * ops.cast(apart, task.dtype)

    def compute_metrics(self, x: Any, y: Any, y_pred: Any, sample_weight: Any = None) -> dict[str, Any]:
        """The metrics of a plain model, of the first pass; and in training the two terms of the loss."""
        if not isinstance(y_pred, _Doubled):
            return dict(super().compute_metrics(x, y, y_pred, sample_weight))
        found = super().compute_metrics(x, y, self._parts(y_pred.answers)[0], sample_weight)
        return {**found, **{each.name: each.result() for each in (self._task_loss, self._divergence)}}

    def get_metrics_result(self) -> dict[str, Any]:
        """Those of a plain model, so that an evaluation has no names and no places but its own."""
        own = (self._task_loss.name, self._divergence.name)
        return {name: value for name, value in super().get_metrics_result().items() if name not in own}

    def fit(
        self,
        x: Any = None,
        y: Any = None,
        batch_size: int | None = None,
        epochs: int = 1,
        verbose: Any = "auto",
        callbacks: Any = None,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """`keras.Model.fit`, which first looks at the outputs of a batch where `x` has arrays."""
        if self.passes > 1 and self.compiled:
            outputs = _Outputs.of(self.loss, **self._outputs)
            rows = keras.tree.flatten(x)
            if all(isinstance(each, np.ndarray) or ops.is_tensor(each) for each in rows):
                batch = keras.tree.map_structure(lambda each: each[: batch_size or 32], x)
                outputs.check(ops.convert_to_numpy(self.network(batch, training=False)))
            watch = _EffectWatch(type(self.network).__name__)
            if isinstance(callbacks, keras.callbacks.CallbackList):
                callbacks.append(watch)
            else:
                callbacks = [*(callbacks if isinstance(callbacks, Iterable) else filter(None, [callbacks])), watch]
        return super().fit(x, y, batch_size, epochs, verbose, callbacks, *args, **kwargs)

    def get_config(self) -> dict[str, Any]:
        """What makes another one like this."""
        network = keras.saving.serialize_keras_object(self.network)
        own = {"network": network, "alpha": float(self.alpha), "passes": self.passes, **self._outputs, **self._tie}
        return {**super().get_config(), **own}

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> Any:
        """One with these options."""
        network = keras.saving.deserialize_keras_object(config["network"], custom_objects=custom_objects)
        return super().from_config({**config, "network": network}, custom_objects=custom_objects)


class _EffectWatch(keras.callbacks.Callback):  # type: ignore[misc]
    """Says so when the passes come out equal. The second batch tells: a last layer of zeros makes them so in the first.

    It reads a number that is there anyway, so nothing is computed for it.
    """

    def __init__(self, network: str) -> None:
        super().__init__()
        self.name, self.batches = network, 0

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:  # noqa: ARG002
        """Looks once."""
        self.batches += 1
        if self.batches == 2 and logs is not None and float(logs["divergence"]) < NOTHING:
            warnings.warn(
                f"R-Drop has no effect on {self.name}: its passes gave identical outputs. It needs dropout with a "
                "rate above 0 on the way to the output.",
                NoEffectWarning,
                stacklevel=2,
            )


_LOSSES = keras.losses
_KINDS: dict[Any, Kind] = {
    _LOSSES.CategoricalCrossentropy: "categorical",
    _LOSSES.categorical_crossentropy: "categorical",
    _LOSSES.SparseCategoricalCrossentropy: "categorical",
    _LOSSES.sparse_categorical_crossentropy: "categorical",
    _LOSSES.CategoricalFocalCrossentropy: "categorical",
    _LOSSES.categorical_focal_crossentropy: "categorical",
    _LOSSES.KLDivergence: "categorical",
    _LOSSES.kl_divergence: "categorical",
    _LOSSES.BinaryCrossentropy: "binary",
    _LOSSES.binary_crossentropy: "binary",
    _LOSSES.BinaryFocalCrossentropy: "binary",
    _LOSSES.binary_focal_crossentropy: "binary",
    _LOSSES.MeanSquaredError: "regression",
    _LOSSES.mean_squared_error: "regression",
    _LOSSES.MeanAbsoluteError: "regression",
    _LOSSES.mean_absolute_error: "regression",
    _LOSSES.Huber: "regression",
    _LOSSES.huber: "regression",
    _LOSSES.LogCosh: "regression",
    _LOSSES.log_cosh: "regression",
}


class _Outputs(NamedTuple):
    """What the outputs of a network are, and which of them a compiled loss counts."""

    kind: Kind
    from_logits: bool
    reduction: str | None
    ignored: int | None

    @classmethod
    def of(cls, loss: Any, kind: Kind | None, from_logits: bool | None, last: int | None = None) -> _Outputs:
        """As a compiled loss has it, unless told; `last` is the size of the last axis."""
        flat = keras.tree.flatten(loss)
        if len(flat) != 1:
            raise ValueError(f"loss is {loss!r}; expected one loss, of the one output that R-Drop ties")
        [given] = flat
        if isinstance(given, str) and given.lower() in ("crossentropy", "ce"):
            given = "binary_crossentropy" if last == 1 else "categorical_crossentropy"
        found = keras.losses.get(given)
        settings = found.get_config() if isinstance(found, keras.losses.Loss) else {}
        known: Kind | None = next((_KINDS[each] for each in (found, *type(found).__mro__) if each in _KINDS), None)
        if kind is None and known is None:
            raise ValueError(
                f"loss is {given!r}, which does not say what the network's outputs are; pass RDropModel(kind="
                "'categorical'), 'binary' or 'regression'"
            )
        kind = kind or known
        assert kind is not None
        if from_logits is None:
            from_logits = settings.get("from_logits", None if known is None and kind != "regression" else False)
        if from_logits is None:
            raise ValueError(
                f"loss is {given!r}, which does not say whether the network's outputs are logits; pass "
                "RDropModel(from_logits=True), or False for probabilities"
            )
        if settings.get("axis", -1) != -1:
            raise ValueError(f"the loss has axis {settings['axis']}; expected -1, with the classes on the last axis")
        return cls(kind, from_logits, settings.get("reduction", "sum_over_batch_size"), settings.get("ignore_class"))

    def logits(self, answers: Any) -> Any:
        """Logits of these answers; probabilities are kept away from 0 and 1 as in Keras' own losses."""
        if self.from_logits or self.kind == "regression":
            return answers
        least = keras.config.epsilon()
        p = ops.clip(answers, least, 1 - least)
        return ops.log(p) if self.kind == "categorical" else ops.log(p) - ops.log1p(-p)

    def check(self, answers: Any) -> None:
        """Refuse scores where probabilities are due, and tell of probabilities where scores are; in NumPy."""
        if self.kind == "regression" or not answers.size:
            return
        low, high = float(answers.min()), float(answers.max())
        if not self.from_logits and (low < 0 or high > 1.01):
            raise ValueError(
                f"the network's outputs lie in {low:.3g}..{high:.3g}, and the loss takes them for probabilities; for "
                "logits compile with a loss that has from_logits=True"
            )
        whole = bool((abs(answers.astype("float64").sum(-1) - 1) < 1e-2).all())
        if self.from_logits and self.kind == "categorical" and low >= 0 and whole and answers.shape[-1] > 1:
            warnings.warn(
                "the network's outputs look like probabilities (they are non-negative and sum to 1), and the loss "
                "takes them for logits: the softmax would be taken twice. Compile with from_logits=False, or drop the "
                "network's softmax",
                ProbabilitiesWarning,
                stacklevel=3,
            )


class _Tie(keras.losses.Loss):  # type: ignore[misc]
    """The divergence as a loss of Keras', whose masks, sample weights and reductions are then those of the task's."""

    def __init__(self, outputs: _Outputs, options: dict[str, Any], labels: Any, dtype: str) -> None:
        super().__init__(name="divergence", reduction=outputs.reduction, dtype=dtype)
        self.outputs, self.options, self.labels = outputs, options, labels

    def call(self, others: Any, first: Any) -> Any:
        """The divergence of each row, or of each position of a sequence."""
        z = self.outputs.logits(ops.concatenate([first[None], others]))
        apart = divergence(z, kind=self.outputs.kind, reduction="none", **self.options)
        if self.outputs.kind != "categorical":
            return ops.mean(apart, -1)  # as Keras' own losses have it
        if self.outputs.ignored is not None:
            labels = ops.convert_to_tensor(self.labels)
            labels = ops.squeeze(labels, -1) if len(labels.shape) == len(first.shape) else labels
            apart = _only((apart, ops.not_equal(labels, ops.cast(self.outputs.ignored, labels.dtype))))
        return apart


def _repeated(inputs: Any, passes: int) -> Any:
    """The batch `passes` times, one after the other."""
    return keras.tree.map_structure(lambda each: None if each is None else ops.concatenate([each] * passes), inputs)


class _Masking(keras.layers.Layer):  # type: ignore[misc]
    """A layer, which is the public way to put a mask on a tensor, for Keras' losses and metrics to find there."""

    def __init__(self) -> None:
        super().__init__(name="masking", autocast=False)
        self.supports_masking = True


class _Split(_Masking):
    """The parts of a batch, each with its part of the mask that a layer such as Embedding has made."""

    def __init__(self, parts: int) -> None:
        super().__init__()
        self.parts = parts

    def call(self, batch: Any) -> Any:
        return ops.split(batch, self.parts)

    def compute_mask(self, inputs: Any, previous_mask: Any) -> Any:  # noqa: ARG002
        return None if previous_mask is None else ops.split(previous_mask, self.parts)


class _Only(_Masking):
    """Values, with a mask of those that count."""

    def call(self, values_and_mask: Any) -> Any:
        return values_and_mask[0]

    def compute_mask(self, inputs: Any, previous_mask: Any) -> Any:  # noqa: ARG002
        return inputs[1]


_only = _Only()


class _Parts:
    """The answers of each pass. It owns a layer (no layer may be made while a step is compiled) that no model lists."""

    def __init__(self, passes: int) -> None:
        self.split = _Split(passes)

    def __call__(self, answers: Any) -> list[Any]:
        if keras.tree.is_nested(answers):
            raise ValueError(
                f"the network has {len(keras.tree.flatten(answers))} outputs; expected one tensor, which R-Drop ties"
            )
        return list(self.split(answers))


def _rows(z: Any, y: Any | None, counts: Any, weight: Any | None, objective: Objective) -> tuple[Any, Any]:
    """Task loss and divergence of each position."""
    if objective.kind == "regression":
        answers = _stopped(z, objective)
        distance = 2 * ops.sum(ops.square(answers - _mean(answers)), 0) / max(1, z.shape[0] - 1)
        task = ops.zeros_like(distance) if y is None else _mean(ops.square(z - ops.cast(y, z.dtype)))
        return task, distance
    if objective.kind == "binary":
        log_p = ops.stack([ops.log_sigmoid(z), ops.log_sigmoid(-z)], -1)
        yes = None if y is None else ops.cast(y, z.dtype)
        target = None if yes is None else ops.stack([yes, 1 - yes], -1)
    else:
        log_p = ops.log_softmax(z, -1)
        target = None if y is None else _target(y, z, counts)
    distance = _divergence(log_p, objective)
    if target is None:
        return ops.zeros_like(distance), distance
    possible = ops.cast(ops.all(log_p > -math.inf, 0), z.dtype)
    if objective.label_smoothing:
        share = objective.label_smoothing / _at_least_one(ops.sum(possible, -1, keepdims=True))
        target = (1 - objective.label_smoothing) * target + share * possible
    if weight is not None and objective.kind == "categorical":
        target = target * ops.cast(weight, z.dtype)
    task = -_mean(ops.sum(ops.where(ops.not_equal(target, 0), target * log_p, ops.zeros_like(log_p)), -1))
    if weight is not None and objective.kind == "binary":
        task = task * ops.cast(weight, z.dtype)
    return task, distance


def _target(y: Any, z: Any, counts: Any) -> Any:
    """Probabilities of the classes."""
    if _is_float(y):
        return ops.cast(y, z.dtype)
    return ops.one_hot(ops.where(counts, ops.cast(y, "int32"), 0), z.shape[-1], dtype=z.dtype)


def _stopped(answers: Any, objective: Objective) -> Any:
    """The answers, with the passes that `stop_gradient` names held constant."""
    if objective.stop_gradient is None:
        return answers
    each = [answers[i] for i in range(answers.shape[0])]
    return ops.stack([one if objective.moves(i) else ops.stop_gradient(one) for i, one in enumerate(each)])


def _divergence(log_p: Any, objective: Objective) -> Any:
    """The divergence of log-probabilities `(M, ..., C)`; the formulas are those of `rdrop.divergences`.

    A class that is impossible in all passes adds nothing. One that is so in some alone makes a Kullback-Leibler
    divergence infinite. Both are decided beside the formula, which sees finite numbers only: else a gradient would be
    nan.
    """
    passes = log_p.shape[0]
    if passes == 1:
        return ops.zeros_like(log_p[0, ..., 0])
    log_p = _stopped(log_p, objective)
    possible, zero = log_p > -math.inf, ops.zeros_like(log_p)
    log_p = ops.where(possible, log_p, zero)
    p = ops.where(possible, ops.exp(log_p), zero)
    if objective.divergence == "mse":
        return ops.sum(2 * ops.sum(ops.square(p - _mean(p)), 0) / (passes - 1), -1)
    if objective.divergence == "js":
        log_mean = ops.logsumexp(ops.where(possible, log_p, zero + IMPOSSIBLE), 0) - math.log(passes)
        return ops.sum(ops.where(possible, p * (log_p - log_mean), zero), (0, -1)) / passes
    everywhere = ops.all(possible, 0)
    if objective.divergence == "kl":
        terms = p[0] * (log_p[0] - _mean(log_p[1:]))
        infinite = ops.logical_and(ops.logical_not(ops.all(possible[1:], 0)), p[0] > 0)
    else:
        terms = ops.sum((p - _mean(p)) * (log_p - _mean(log_p)), 0) / (passes - 1)
        infinite = ops.logical_and(ops.logical_not(everywhere), ops.any(p > 0, 0))
    terms = ops.where(everywhere, terms, ops.zeros_like(terms))
    return ops.sum(ops.where(infinite, ops.zeros_like(terms) + math.inf, terms), -1)


def _check(z: Any, y: Any | None, mask: Any | None, weight: Any | None, kind: Kind, ignore_index: int | None) -> None:
    """Refuse dtypes, shapes and class ids that would give a wrong loss."""
    categorical = kind == "categorical"
    if not _is_float(z):
        raise wrong_dtype("logits", _dtype(z))
    soft = categorical and y is not None and _is_float(y)
    shape = tuple(z.shape)
    like = shape[1:] if soft or not categorical else shape[1:-1]
    positions = shape[1:-1] if categorical else shape[1:]
    sizes = None if weight is None else tuple(weight.shape)
    check_shapes(kind, shape, _settled(y, like), _settled(mask, positions), sizes, soft=soft)
    if shape[0] is None:
        raise ValueError(f"logits have shape {shape}; expected a number of passes that is known when it is compiled")
    if categorical and y is not None and _dtype(y) == "bool":
        raise wrong_dtype("labels", "bool")
    if mask is not None and _is_float(mask):
        raise wrong_dtype("mask", _dtype(mask))
    if categorical and y is not None and not soft:
        ids, keep = _at_hand(y), None if mask is None else _at_hand(mask)
        if ids is not None and (mask is None or keep is not None):
            check_class_ids(ids, keep, shape[-1], ignore_index)


def _settled(tensor: Any | None, like: tuple[Any, ...]) -> tuple[Any, ...] | None:
    """A shape in which sizes are taken to agree that nobody knows before a `tf.function` runs."""
    if tensor is None:
        return None
    shape = tuple(tensor.shape)
    if len(shape) != len(like):
        return shape
    return tuple(want if got is None or want is None else got for got, want in zip(shape, like, strict=True))


def _at_hand(tensor: Any) -> Any | None:
    """Values as NumPy, or None where looking has a price: in compiled programs, and off the CPU."""
    try:
        return np.asarray(tensor) if "cpu" in str(tensor.device).lower() else None
    except (AttributeError, NotImplementedError, TypeError):  # a tracer of JAX, a symbol of TensorFlow
        return None


def _check_passes(passes: int) -> None:
    if passes < 1:
        raise ValueError(f"passes is {passes!r}; expected a whole number of at least 1")


def _dtype(tensor: Any) -> str:
    return str(keras.backend.standardize_dtype(tensor.dtype))


def _is_float(tensor: Any) -> bool:
    return bool(keras.backend.is_float_dtype(_dtype(tensor)))


def _is_unsigned(tensor: Any) -> bool:
    return _dtype(tensor).startswith(("uint", "bool"))


def _at_least_single(tensor: Any) -> str:
    """The dtype in which sums of these numbers run."""
    return "float64" if _dtype(tensor) == "float64" else "float32"


# On some backends `ops.mean` and `ops.maximum` round float64 to float32; these two do not.


def _mean(answers: Any) -> Any:
    """The mean over passes."""
    return ops.sum(answers, 0) / answers.shape[0]


def _at_least_one(counts: Any) -> Any:
    """Counts to divide by."""
    return ops.where(counts < 1, ops.ones_like(counts), counts)
