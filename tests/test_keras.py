"""The passes and the model of Keras; the numbers of the objective are held by the contract suite.

All of this file runs on the backend that `KERAS_BACKEND` names, and its last test runs the rest on the others.
"""

from __future__ import annotations

import importlib.metadata
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import oracle
from cases import CASES

BACKEND = os.environ.setdefault("KERAS_BACKEND", "torch")
HERE = Path(__file__).parent

B, D, C, RATE, ALPHA = 8, 5, 3, 0.5, 2.0
DRAWN = np.random.default_rng(0)
X = DRAWN.normal(size=(B, D)).astype("float32")
W = DRAWN.normal(size=(D, C))
MASKS = 2.0 * (DRAWN.random((2, D)) < 0.6)
IDS = np.array([0, 2, 1, 1, 0, 2, 1, 0])
BITS = (DRAWN.random((B, C)) < 0.5).astype("float32")
VALUES = DRAWN.normal(size=(B, C)).astype("float32")
ROW_WEIGHTS = np.array([1, 0, 2, 1, 0.5, 1, 3, 1], "float32")


@pytest.fixture(scope="module")
def k() -> Any:
    """Keras, which takes seconds to import: not before a test wants it."""
    import keras

    return keras


@pytest.fixture(scope="module")
def rk() -> Any:
    import rdrop.keras

    return rdrop.keras


@pytest.fixture(scope="module")
def masks(k: Any) -> Any:
    """Dropout whose mask is known: one for the first half of a batch, another for the second."""

    class Masks(k.layers.Layer):  # type: ignore[misc]
        def __init__(self, **kwargs: Any) -> None:
            super().__init__(**kwargs)
            self.supports_masking = True

        def call(self, x: Any, training: bool | None = None) -> Any:
            if not training:
                return x
            drawn = k.ops.convert_to_tensor(MASKS.astype("float32"), x.dtype)
            return k.ops.concatenate([half * drawn[i] for i, half in enumerate(k.ops.split(x, 2))])

    return Masks


@pytest.fixture
def network(k: Any, masks: Any) -> Any:
    def build(activation: str | None = None, **options: Any) -> Any:
        dense = k.layers.Dense(C, activation=activation, use_bias=False, **options)
        model = k.Sequential([k.Input((D,)), masks(), dense])
        model.set_weights([W])
        return model

    return build


def with_dropout(k: Any, rate: float = 0.5, activation: str | None = "softmax") -> Any:
    wide = k.layers.Dense(16, activation="relu", kernel_initializer=k.initializers.GlorotUniform(seed=1))
    last = k.layers.Dense(C, activation=activation, kernel_initializer=k.initializers.GlorotUniform(seed=2))
    return k.Sequential([k.Input((D,)), wide, k.layers.Dropout(rate, seed=3), last])


def compiled(k: Any, model: Any, loss: Any, **options: Any) -> Any:
    model.compile(optimizer=options.pop("optimizer", None) or k.optimizers.SGD(RATE), loss=loss, **options)
    return model


def terms(w: Any, labels: Any, weights: Any = None, **options: Any) -> Any:
    """The three numbers of a step on the whole batch, from the definitions."""
    z = np.stack([(X * mask) @ w for mask in MASKS])
    rows = oracle.objective(z, labels, alpha=ALPHA, ignore_index=None, reduction="none", **options)
    rows = [each.reshape(B, -1).mean(1) * (1 if weights is None else weights) for each in rows]  # type: ignore[assignment]
    return [float(each.sum() / B) for each in rows]


STEPS: dict[str, tuple[str, dict[str, Any], str | None, Any, dict[str, Any]]] = {
    "probabilities": ("SparseCategoricalCrossentropy", {}, "softmax", IDS, {}),
    "logits": ("SparseCategoricalCrossentropy", {"from_logits": True}, None, IDS, {}),
    "one-hot, smoothed": (
        "CategoricalCrossentropy",
        {"from_logits": True, "label_smoothing": 0.1},
        None,
        np.eye(C, dtype="float32")[IDS],
        {"label_smoothing": 0.1},
    ),
    "bits": ("BinaryCrossentropy", {"from_logits": True}, None, BITS, {"kind": "binary"}),
    "sure bits": ("BinaryCrossentropy", {}, "sigmoid", BITS, {"kind": "binary"}),
    "numbers": ("MeanSquaredError", {}, None, VALUES, {"kind": "regression"}),
}


@pytest.mark.parametrize("weights", [ROW_WEIGHTS, None] if BACKEND == "torch" else [ROW_WEIGHTS])
@pytest.mark.parametrize("name", list(STEPS))
@pytest.mark.shows("Keras", "steps", "log", "own loss")
def test_a_step_is_that_of_the_formulas(k: Any, rk: Any, network: Any, name: str, weights: Any) -> None:
    loss, arguments, activation, labels, options = STEPS[name]
    model = compiled(k, rk.RDropModel(network(activation), ALPHA), getattr(k.losses, loss)(**arguments))
    log = model.fit(X, labels, batch_size=B, sample_weight=weights, verbose=0).history
    expected = terms(W, labels, weights, **options)
    found = [log[key][0] for key in ("loss", "task_loss", "divergence")]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)
    assert expected[2] > 0.01
    gradient = oracle.gradient(lambda w: terms(w, labels, weights, **options)[0], W, step=1e-5)
    np.testing.assert_allclose(model.network.get_weights()[0], W - RATE * gradient, rtol=1e-3, atol=1e-4)


def test_options_of_the_divergence_are_obeyed(k: Any, rk: Any, network: Any) -> None:
    model = rk.RDropModel(network(), ALPHA, divergence="js", stop_gradient="rest")
    compiled(k, model, k.losses.SparseCategoricalCrossentropy(from_logits=True))
    log = model.fit(X, IDS, batch_size=B, verbose=0).history
    assert log["divergence"][0] == pytest.approx(terms(W, IDS, divergence="js")[2], rel=1e-4)

    def objective(w: Any) -> Any:
        z = np.stack([(X * MASKS[0]) @ w, (X * MASKS[1]) @ W])
        return terms(w, IDS)[1] + ALPHA * oracle.objective(z, None, divergence="js")[2]

    gradient = oracle.gradient(objective, W, step=1e-5)
    np.testing.assert_allclose(model.network.get_weights()[0], W - RATE * gradient, rtol=1e-3, atol=1e-4)


def test_names_of_losses_are_understood(k: Any, rk: Any, network: Any) -> None:
    for loss, activation, labels, options in (
        ("sparse_categorical_crossentropy", "softmax", IDS, {}),
        ("crossentropy", "softmax", np.eye(C, dtype="float32")[IDS], {}),
        ("mse", None, VALUES, {"kind": "regression"}),
    ):
        model = compiled(k, rk.RDropModel(network(activation), ALPHA), loss)
        log = model.train_on_batch(X, labels, return_dict=True)
        assert float(log["divergence"]) == pytest.approx(terms(W, labels, **options)[2], rel=1e-4), loss


@pytest.mark.shows("Keras", "own loss")
def test_a_loss_of_ones_own_says_what_the_outputs_are(k: Any, rk: Any, network: Any) -> None:
    def focal(labels: Any, scores: Any) -> Any:
        p = k.ops.take_along_axis(k.ops.softmax(scores), k.ops.cast(labels[:, None], "int32"), -1)[:, 0]
        return -k.ops.square(1 - p) * k.ops.log(p)

    with pytest.raises(ValueError, match=r"does not say what the network's outputs are; pass RDropModel\(kind="):
        compiled(k, rk.RDropModel(network()), focal).fit(X, IDS, verbose=0)
    with pytest.raises(ValueError, match=r"does not say whether the network's outputs are logits"):
        compiled(k, rk.RDropModel(network(), kind="categorical"), focal).fit(X, IDS, verbose=0)
    model = compiled(k, rk.RDropModel(network(), ALPHA, kind="categorical", from_logits=True), focal)
    log = model.fit(X, IDS, batch_size=B, verbose=0).history
    p = [np.exp(z - np.log(np.exp(z).sum(-1, keepdims=True)))[np.arange(B), IDS] for z in (X * MASKS[:, None]) @ W]
    assert log["task_loss"][0] == pytest.approx(np.mean([-((1 - each) ** 2) * np.log(each) for each in p]), rel=1e-4)
    assert log["divergence"][0] == pytest.approx(terms(W, IDS)[2], rel=1e-4)


def test_the_reduction_of_the_loss_is_that_of_the_divergence(k: Any, rk: Any, network: Any) -> None:
    loss = k.losses.SparseCategoricalCrossentropy(from_logits=True, reduction="sum")
    log = compiled(k, rk.RDropModel(network(), ALPHA), loss).fit(X, IDS, batch_size=B, verbose=0).history
    np.testing.assert_allclose(
        [log["task_loss"][0], log["divergence"][0]], np.multiply(terms(W, IDS)[1:], B), rtol=1e-4
    )


@pytest.mark.shows("Keras", "masks")
def test_labels_that_the_loss_ignores_tie_nothing(k: Any, rk: Any, network: Any) -> None:
    labels = np.where(np.arange(B) % 3 == 0, 255, IDS)
    loss = k.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=255)
    log = compiled(k, rk.RDropModel(network(), ALPHA), loss).fit(X, labels, batch_size=B, verbose=0).history
    z = np.stack([(X * mask) @ W for mask in MASKS])
    expected = oracle.objective(z, labels, alpha=ALPHA, ignore_index=255)
    np.testing.assert_allclose([log[key][0] for key in ("loss", "task_loss", "divergence")], expected, rtol=1e-4)


def test_positions_that_a_layer_masks_tie_nothing(k: Any, rk: Any, masks: Any) -> None:
    words = np.array([[1, 2, 0, 0], [3, 0, 0, 0], [4, 4, 1, 2], [2, 1, 3, 0]])
    tags = np.array([[0, 1, 2, 2], [1, 1, 0, 0], [2, 0, 1, 1], [0, 0, 2, 1]])
    embedding = k.layers.Embedding(5, D, mask_zero=True)
    model = rk.RDropModel(k.Sequential([k.Input((4,)), embedding, masks(), k.layers.Dense(C, use_bias=False)]), ALPHA)
    table = np.random.default_rng(3).normal(size=(5, D))
    model.network.set_weights([table, W])
    loss = k.losses.SparseCategoricalCrossentropy(from_logits=True)
    log = compiled(k, model, loss).fit(words, tags, batch_size=4, verbose=0).history
    z = np.stack([(table[words] * mask) @ W for mask in MASKS])
    expected = oracle.objective(z, tags, alpha=ALPHA, mask=words != 0)
    np.testing.assert_allclose([log[key][0] for key in ("loss", "task_loss", "divergence")], expected, rtol=1e-4)


@pytest.mark.shows("Keras", "accumulation")
def test_accumulated_micro_batches_are_one_batch(k: Any, rk: Any, masks: Any, network: Any) -> None:
    loss = k.losses.SparseCategoricalCrossentropy(from_logits=True)
    optimizer = k.optimizers.SGD(RATE, gradient_accumulation_steps=4)
    model = compiled(k, rk.RDropModel(network(), ALPHA), loss, optimizer=optimizer)
    model.fit(X, IDS, batch_size=B // 4, shuffle=False, verbose=0)
    gradient = oracle.gradient(lambda w: terms(w, IDS)[0], W, step=1e-5)
    np.testing.assert_allclose(model.network.get_weights()[0], W - RATE * gradient, rtol=1e-3, atol=1e-4)


def test_metrics_see_the_first_pass(k: Any, rk: Any, network: Any) -> None:
    model = compiled(k, rk.RDropModel(network("softmax")), "sparse_categorical_crossentropy", metrics=["accuracy"])
    first, second = (((X * mask) @ W).argmax(-1) for mask in MASKS)
    assert (first != second).any()
    assert model.fit(X, first, batch_size=B, verbose=0).history["accuracy"] == [1.0]


@pytest.mark.shows("Keras", "evaluation")
def test_evaluation_and_prediction_are_those_of_the_network(k: Any, rk: Any, network: Any) -> None:
    options: dict[str, Any] = {"loss": "sparse_categorical_crossentropy", "metrics": ["accuracy"]}
    model, plain = compiled(k, rk.RDropModel(network("softmax")), **options), compiled(k, network("softmax"), **options)
    log = model.fit(X, IDS, validation_data=(X, IDS), batch_size=B, verbose=0).history
    assert sorted(log) == ["accuracy", "divergence", "loss", "task_loss", "val_accuracy", "val_loss"]
    plain.set_weights(model.network.get_weights())
    loss, accuracy = model.evaluate(X, IDS, verbose=0)
    np.testing.assert_allclose([loss, accuracy], plain.evaluate(X, IDS, verbose=0), rtol=1e-6)
    np.testing.assert_allclose([log["val_loss"][0], log["val_accuracy"][0]], [loss, accuracy], rtol=1e-6)
    np.testing.assert_allclose(model.predict(X, verbose=0), plain.predict(X, verbose=0), rtol=1e-6)
    assert tuple(model(X).shape) == (B, C)


@pytest.mark.shows("Keras", "plain")
def test_one_pass_is_plain_training(k: Any, rk: Any) -> None:
    weights, logs = [], []
    for model in (with_dropout(k), rk.RDropModel(with_dropout(k), passes=1)):
        compiled(k, model, "sparse_categorical_crossentropy")
        logs.append(model.fit(X, IDS, batch_size=4, shuffle=False, verbose=0).history)
        weights.append(getattr(model, "network", model).get_weights())
    assert logs[0].keys() == logs[1].keys()
    for plain, ours in zip(*weights, strict=True):
        np.testing.assert_allclose(ours, plain, rtol=1e-6)


def test_penalties_of_layers_count_once(k: Any, rk: Any, network: Any) -> None:
    model = rk.RDropModel(network(kernel_regularizer=k.regularizers.L2(0.1)), ALPHA)
    loss = k.losses.SparseCategoricalCrossentropy(from_logits=True)
    log = compiled(k, model, loss).fit(X, IDS, batch_size=B, verbose=0).history
    assert log["loss"][0] == pytest.approx(terms(W, IDS)[0] + 0.1 * np.square(W).sum(), rel=1e-4)


@pytest.mark.shows("Keras", "BatchNorm")
def test_statistics_move_as_in_one_plain_step(k: Any, rk: Any) -> None:
    found = []
    for passes in (1, 3):
        norm = k.layers.BatchNormalization()
        layers = [norm, k.layers.Dropout(0.5), k.layers.Dense(C, activation="softmax")]
        model = rk.RDropModel(k.Sequential([k.Input((D,)), *layers]), passes=passes)
        compiled(k, model, "sparse_categorical_crossentropy").fit(X, IDS, batch_size=B, verbose=0)
        found.append([k.ops.convert_to_numpy(each) for each in (norm.moving_mean, norm.moving_variance)])
    assert np.abs(found[0][0]).max() > 0
    np.testing.assert_allclose(found[1], found[0], rtol=1e-4, atol=1e-6)


@pytest.mark.shows("Keras", "schedule")
def test_alpha_is_a_variable_that_a_callback_sets(k: Any, rk: Any) -> None:
    alphas, apart = [0.0, 3.0], []

    class Stairs(k.callbacks.Callback):  # type: ignore[misc]
        def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
            self.model.alpha.assign(alphas[batch])

        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            apart.append(float(logs["divergence"]))

    model = compiled(k, rk.RDropModel(with_dropout(k)), "sparse_categorical_crossentropy")
    log = model.fit(X, IDS, batch_size=4, verbose=0, callbacks=[Stairs()]).history
    first, second = apart[0], 2 * apart[1] - apart[0]  # the log has means over the batches so far
    rest = log["loss"][0] - log["task_loss"][0]
    assert rest == pytest.approx((alphas[0] * first + alphas[1] * second) / 2, rel=1e-4)
    assert first > 0 < second


def test_what_is_saved_comes_back(k: Any, rk: Any, tmp_path: Path) -> None:
    options: dict[str, Any] = {"passes": 3, "divergence": "js", "stop_gradient": "rest", "from_logits": False}
    model = rk.RDropModel(with_dropout(k), 1.5, kind="categorical", **options)
    compiled(k, model, "sparse_categorical_crossentropy", metrics=["accuracy"]).fit(X, IDS, verbose=0)
    model.alpha.assign(0.5)
    model.save(tmp_path / "model.keras")
    again = k.models.load_model(tmp_path / "model.keras")
    before, after = ({**each.get_config(), "network": None} for each in (model, again))
    assert after == before
    assert (after["alpha"], after["passes"], after["divergence"]) == (0.5, 3, "js")
    np.testing.assert_allclose(again.predict(X, verbose=0), model.predict(X, verbose=0), rtol=1e-6)
    assert again.fit(X, IDS, verbose=0).history["divergence"][0] > 0
    model.network.save(tmp_path / "network.keras")
    plain = k.models.load_model(tmp_path / "network.keras")
    np.testing.assert_allclose(plain.predict(X, verbose=0), model.predict(X, verbose=0), rtol=1e-6)


@pytest.mark.parametrize("way", ["run_eagerly", "steps_per_execution", "jit_compile"])
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")  # of the tracer's
@pytest.mark.shows("Keras", "compiled")
def test_ways_to_run_a_step_change_no_number(
    k: Any, rk: Any, network: Any, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if BACKEND == "torch":
        if way == "steps_per_execution":
            pytest.skip("Keras has none on torch")
        import torch

        # It is traced as ever, and not translated to C++, which takes a minute.
        monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    loss = k.losses.SparseCategoricalCrossentropy(from_logits=True)
    value = {"run_eagerly": True, "steps_per_execution": 2, "jit_compile": True}[way]
    log: list[Any] = []
    for options in ({}, {way: value}):
        model = compiled(k, rk.RDropModel(network(), ALPHA), loss, metrics=["accuracy"], **options)
        log.append(model.fit(X, IDS, batch_size=2, shuffle=False, verbose=0).history)
    assert log[0].keys() == log[1].keys()
    for name, plain in log[0].items():
        np.testing.assert_allclose(log[1][name], plain, rtol=1e-5, err_msg=name)


@pytest.fixture
def policy(k: Any) -> Iterator[Any]:
    yield k.mixed_precision.set_global_policy
    k.mixed_precision.set_global_policy("float32")


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.shows("Keras", "mixed precision")
def test_in_mixed_precision_the_objective_is_in_single(k: Any, rk: Any, network: Any, policy: Any, dtype: str) -> None:
    policy(f"mixed_{dtype}")
    model = compiled(k, rk.RDropModel(network(), ALPHA), k.losses.SparseCategoricalCrossentropy(from_logits=True))
    log = model.fit(X, IDS, batch_size=B, verbose=0).history
    np.testing.assert_allclose([log[key][0] for key in ("loss", "task_loss", "divergence")], terms(W, IDS), rtol=0.03)
    assert (type(model.optimizer).__name__ == "LossScaleOptimizer") == (dtype == "float16")
    half = k.ops.cast(k.ops.convert_to_tensor(DRAWN.normal(size=(2, B, C)).astype("float32")), dtype)
    out, wide = rk.rdrop_loss(half, IDS), rk.rdrop_loss(k.ops.cast(half, "float32"), IDS)
    assert k.backend.standardize_dtype(out.loss.dtype) == "float32"
    assert float(out.loss) == pytest.approx(float(wide.loss), rel=1e-6)


def test_outputs_in_single_are_not_rounded_to_half(k: Any, rk: Any, network: Any, policy: Any) -> None:
    single = network()
    policy("mixed_bfloat16")
    loss = k.losses.SparseCategoricalCrossentropy(from_logits=True)
    log = compiled(k, rk.RDropModel(single, ALPHA), loss).fit(X, IDS, batch_size=B, verbose=0).history
    np.testing.assert_allclose([log[key][0] for key in ("loss", "task_loss", "divergence")], terms(W, IDS), rtol=1e-4)


@pytest.mark.skipif(BACKEND != "jax", reason="keras.distribution is for JAX")
@pytest.mark.shows("Keras", "processes")
def test_over_two_devices_it_is_that_of_one(k: Any, rk: Any, network: Any) -> None:
    loss = k.losses.SparseCategoricalCrossentropy(from_logits=True)
    devices = k.distribution.list_devices()
    assert len(devices) == 2
    k.distribution.set_distribution(k.distribution.DataParallel(devices=devices))
    try:
        model = compiled(k, rk.RDropModel(network(), ALPHA), loss)
        log = model.fit(X, IDS, batch_size=B, shuffle=False, verbose=0).history
        assert len(model.network.layers[-1].kernel.value.devices()) == 2
    finally:
        k.distribution.set_distribution(None)
    np.testing.assert_allclose([log[key][0] for key in ("loss", "task_loss", "divergence")], terms(W, IDS), rtol=1e-4)
    gradient = oracle.gradient(lambda w: terms(w, IDS)[0], W, step=1e-5)
    np.testing.assert_allclose(model.network.get_weights()[0], W - RATE * gradient, rtol=1e-3, atol=1e-4)


@pytest.mark.skipif(BACKEND != "tensorflow", reason="a tf.function has sizes that nobody knows")
def test_in_a_tf_function_sizes_may_be_unknown(k: Any, rk: Any) -> None:
    import tensorflow as tf

    z = DRAWN.normal(size=(2, B, C))

    def terms_of(z: Any, y: Any) -> Any:
        return rk.rdrop_loss(z, y, alpha=ALPHA, ignore_index=2)

    expected = oracle.objective(z, IDS, alpha=ALPHA, ignore_index=2)
    for labels in (None, B):
        signature = [tf.TensorSpec((2, None, C), tf.float64), tf.TensorSpec((labels,), tf.int32)]
        found = tf.function(terms_of, input_signature=signature)(z, IDS.astype("int32"))
        np.testing.assert_allclose(found, expected, rtol=1e-11)
    unknown = tf.function(lambda z: rk.rdrop_loss(z, None), input_signature=[tf.TensorSpec((None, B, C), tf.float64)])
    with pytest.raises(ValueError, match="expected a number of passes that is known"):
        unknown(z)


@pytest.mark.shows("Keras", "no effect")
def test_passes_that_cannot_differ_are_spoken_of(k: Any, rk: Any) -> None:
    model = compiled(k, rk.RDropModel(with_dropout(k, rate=0.0)), "sparse_categorical_crossentropy")
    with pytest.warns(rk.NoEffectWarning, match="R-Drop has no effect on Sequential"):
        model.fit(X, IDS, batch_size=4, verbose=0)


def test_a_last_layer_of_zeros_is_no_reason_to_warn(k: Any, rk: Any) -> None:
    network = with_dropout(k)
    network.layers[-1].set_weights([np.zeros((16, C)), np.zeros(C)])
    seen: list[Any] = []
    count = k.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs: seen.append(float(logs["divergence"])))
    model = compiled(k, rk.RDropModel(network), "sparse_categorical_crossentropy")
    model.fit(X, IDS, batch_size=4, verbose=0, callbacks=count)
    assert seen[0] == 0 < seen[1]


def test_probabilities_in_place_of_logits_and_the_reverse_are_seen_before_training(
    k: Any, rk: Any, network: Any
) -> None:
    twice = compiled(k, rk.RDropModel(network("softmax")), k.losses.CategoricalCrossentropy(from_logits=True))
    with pytest.warns(rk.ProbabilitiesWarning, match="the softmax would be taken twice"):
        twice.fit(X, np.eye(C)[IDS], verbose=0)
    never = compiled(k, rk.RDropModel(network()), "sparse_categorical_crossentropy")
    with pytest.raises(ValueError, match=r"lie in -.*, and the loss takes them for probabilities; .* from_logits=True"):
        never.fit(X, IDS, verbose=0)
    np.testing.assert_array_equal(never.network.get_weights()[0], W.astype("float32"))


def test_batches_from_elsewhere_are_fitted_too(k: Any, rk: Any, network: Any) -> None:
    class Rows(k.utils.PyDataset):  # type: ignore[misc]
        def __len__(self) -> int:
            return 1

        def __getitem__(self, index: int) -> Any:
            return {"x": X}, IDS

    inputs = k.Input((D,), name="x")
    model = k.Model({"x": inputs}, network()(inputs))
    model = compiled(k, rk.RDropModel(model, ALPHA), k.losses.SparseCategoricalCrossentropy(from_logits=True))
    log = model.fit(Rows(), verbose=0).history
    np.testing.assert_allclose([log[key][0] for key in ("loss", "task_loss", "divergence")], terms(W, IDS), rtol=1e-4)


def test_passes_are_one_forward_of_the_repeated_batch(k: Any, rk: Any, network: Any) -> None:
    found = rk.forward_passes(network(), X)
    np.testing.assert_allclose(k.ops.convert_to_numpy(found), (X * MASKS[:, None]) @ W, rtol=1e-4, atol=1e-5)
    for each in k.ops.convert_to_numpy(rk.forward_passes(network(), X, passes=3, training=False)):
        np.testing.assert_allclose(each, X @ W, rtol=1e-4, atol=1e-5)
    one, other = k.Input((D,), name="one"), k.Input((2,), name="other")
    both = k.Model({"one": one, "other": other}, {"sum": one[:, :2] + other, "kept": other})
    out = rk.forward_passes(both, {"one": X, "other": X[:, 3:]}, passes=3)
    assert {name: tuple(each.shape) for name, each in out.items()} == {"sum": (3, B, 2), "kept": (3, B, 2)}
    drawn = k.ops.convert_to_numpy(rk.forward_passes(with_dropout(k), X))
    assert not (drawn[0] == drawn[1]).all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda rk, z: rk.rdrop_loss(z[0], IDS), r"logits have shape \(8, 3\); expected \(M, B, ..., C\)"),
        (lambda rk, z: rk.rdrop_loss(z, IDS[:3]), r"labels have shape \(3,\)"),
        (lambda rk, z: rk.rdrop_loss(z, IDS + 1), r"labels\[1\] is 3; expected a class id in 0..2"),
        (lambda rk, z: rk.rdrop_loss(z, IDS, mask=np.ones(5, bool)), "mask has shape"),
        (lambda rk, z: rk.rdrop_loss(z, IDS, class_weight=np.ones(7)), "class_weight has shape"),
        (lambda rk, z: rk.rdrop_loss(z, IDS, alpha=-1.0), "alpha is -1.0"),
        (
            lambda rk, z: rk.rdrop_loss(z, IDS, reduction="sum", normalizer=3),
            "normalizer is given and reduction is 'sum'",
        ),
        (lambda rk, z: rk.divergence(z, divergence="l2"), "divergence is 'l2'"),
        (lambda rk, z: rk.forward_passes(None, z, passes=0), "passes is 0"),
    ],
)
def test_what_is_out_of_place_is_refused(rk: Any, call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(rk, np.zeros((2, B, C), "float32"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": -1.0}, "alpha is -1.0"),
        ({"passes": 0}, "passes is 0"),
        ({"kind": "ordinal"}, "kind is 'ordinal'"),
        ({"divergence": "l2"}, "divergence is 'l2'"),
        ({"stop_gradient": "all"}, "stop_gradient is 'all'"),
    ],
)
def test_options_of_the_model_that_are_out_of_range_are_refused(
    rk: Any, network: Any, options: Any, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        rk.RDropModel(network(), **options)


def test_models_that_it_does_not_fit_are_refused(k: Any, rk: Any, network: Any) -> None:
    inputs = k.Input((D,))
    two = k.Model(inputs, [network()(inputs), network()(inputs)])
    loss = k.losses.SparseCategoricalCrossentropy(from_logits=True)
    with pytest.raises(ValueError, match="expected one loss, of the one output that R-Drop ties"):
        compiled(k, rk.RDropModel(two), [loss, loss]).fit(X, [IDS, IDS], verbose=0)
    with pytest.raises(ValueError, match="the network has 2 outputs; expected one tensor"):
        compiled(k, rk.RDropModel(two), loss).fit(X, [IDS, IDS], verbose=0)
    with pytest.raises(ValueError, match="divergence is 'js'; regression compares values"):
        compiled(k, rk.RDropModel(network(), divergence="js"), "mse").fit(X, VALUES, verbose=0)
    crosswise = k.losses.CategoricalCrossentropy(from_logits=True, axis=1)
    with pytest.raises(ValueError, match="the loss has axis 1; expected -1"):
        compiled(k, rk.RDropModel(network()), crosswise).fit(X, np.eye(C)[IDS], verbose=0)


def test_numbers_of_another_kind_are_refused(rk: Any) -> None:
    z = np.zeros((2, B, C), "float32")
    with pytest.raises(TypeError, match="logits have dtype int32"):
        rk.rdrop_loss(z.astype("int32"), IDS)
    with pytest.raises(TypeError, match="mask has dtype float32; expected bool"):
        rk.rdrop_loss(z, IDS, mask=np.ones(B, "float32"))
    with pytest.raises(TypeError, match="labels have dtype bool"):
        rk.rdrop_loss(z, IDS > 0)


def test_unsigned_labels_are_ignored_where_they_are_asked_to_be_and_nowhere_else(rk: Any) -> None:
    z = DRAWN.normal(size=(2, 5, 200)).astype("float32")
    labels = np.array([0, 1, 156, 156, 199])  # 156 is what -100 wraps around to
    for ignored in (-100, 0, 1, 199):
        found = rk.rdrop_loss(z, labels.astype("uint8"), ignore_index=ignored)
        expected = oracle.objective(z, labels, ignore_index=ignored)
        np.testing.assert_allclose([float(each) for each in found], expected, rtol=1e-5)


@pytest.mark.skipif(BACKEND != "torch", reason="is what this process runs in")
@pytest.mark.parametrize("backend", ["jax", "tensorflow"])
@pytest.mark.shows("Keras", "contract")
def test_another_backend_has_the_same_numbers_tests_and_examples(backend: str, tmp_path: Path) -> None:
    """Keras has one backend in a process: another process runs this file, the page and the table of cases."""
    import test_contract
    from implementations import Answer, Implementation

    if backend not in importlib.metadata.packages_distributions():
        pytest.skip(f"{backend} is not installed")
    program, answers = HERE / "keras_on_a_backend.py", tmp_path / "answers"
    done = subprocess.run([sys.executable, program, backend, answers], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found = pickle.loads(answers.read_bytes())

    def replayed(answer: Answer, logits: Any, labels: Any, options: Any) -> Answer:
        return answer

    assert len(found) == len(CASES)
    for case, answer in zip(CASES, found, strict=True):
        there = Implementation(partial(replayed, Answer(*answer)))
        test_contract.test_values_are_the_oracles(there, case)
        test_contract.test_gradient_is_that_of_the_reference(there, case)
