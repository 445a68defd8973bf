"""Two different networks that learn from each other: each makes one pass, the divergence ties the two together.

Where R-Drop runs one network twice, here two networks are trained beside each other (deep mutual learning, Zhang et al.
2018, arXiv 1706.00384), with the objective in the same units:

    1/2 (CE_1 + CE_2) + alpha * D,   D = 1/2 ( KL(P_1 || P_2) + KL(P_2 || P_1) )

The gradient of the divergence flows into both. With alpha 0 each network is trained on its own, with half of the
gradient that it would have alone: the optimizers of the Adam family do not notice, SGD takes half the step.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from rdrop.errors import NoEffectWarning
from rdrop.integrations.logits_of_outputs import logits_of
from rdrop.integrations.transformers import RDropConfig, RDropTrainer


class NetworkPair(nn.Module):
    """Two networks with the same classes as one module, whose answer is the average of theirs.

    In training the answers of both are returned, with the network as the pass axis. In evaluation `logits` are
    log 1/2 (softmax(z_1) + softmax(z_2)), so that their softmax is the average of the probabilities of the two.

    Args:
        first: Any module that returns logits `(B, C)`: a tensor, a tuple or list that starts with it, or a mapping
            with the key `logits`.
        second: Another one, with weights of its own. The two may be of the same class.

    Raises:
        ValueError: The two share a parameter or a buffer.

    >>> import torch
    >>> from torch import nn
    >>> pair = NetworkPair(nn.Linear(4, 3), nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)))
    >>> pair(torch.ones(5, 4))["logits"].shape
    torch.Size([2, 5, 3])
    >>> {key: tuple(value.shape) for key, value in pair.eval()(torch.ones(5, 4)).items()}
    {'logits': (5, 3), 'first': (5, 3), 'second': (5, 3)}
    """

    config = None  # the Trainer looks here for a task that forbids label smoothing
    accepts_loss_kwargs = False  # and here whether forward takes the count of labels, which the networks do not

    def __init__(self, first: nn.Module, second: nn.Module) -> None:
        super().__init__()
        shared = _shared(first, second)
        if shared:
            raise ValueError(
                f"the two networks share a tensor, {shared}; expected two with weights of their own: build the "
                "second one anew, or make it with copy.deepcopy"
            )
        self.first = first
        self.second = second

    def forward(self, *args: Tensor, labels: Tensor | None = None, **kwargs: Tensor) -> dict[str, Tensor]:
        """One pass of each network over the same batch.

        Args:
            *args: Inputs of both networks.
            labels: Class ids `(B,)`, or class probabilities `(B, C)`. In evaluation they give the loss of the
                average; in training they are not used, because the loss is that of the trainer.
            **kwargs: Inputs of both networks. A single one is handed on by position, so it fits a network whatever
                it calls it.

        Returns:
            In training, `logits` `(2, B, C)`. In evaluation, `logits` `(B, C)` of the average, `first` and `second`
            `(B, C)`, the logits of each network, and with labels the cross-entropy of the average as `loss`.

        Raises:
            ValueError: The logits of the two differ in shape.
        """
        if not args and len(kwargs) == 1:
            args, kwargs = tuple(kwargs.values()), {}
        first, second = (logits_of(network(*args, **kwargs)) for network in (self.first, self.second))
        if first.shape != second.shape:
            raise ValueError(
                f"the networks answer with logits of shapes {tuple(first.shape)} and {tuple(second.shape)}; expected "
                "one shape (B, C): build both with the same number of classes"
            )
        if self.training:
            return {"logits": torch.stack((first, second))}
        at_least_float32 = torch.promote_types(first.dtype, torch.float32)
        log_p, log_q = (z.log_softmax(-1, dtype=at_least_float32) for z in (first, second))
        answers = {"logits": torch.logaddexp(log_p, log_q) - math.log(2), "first": first, "second": second}
        if labels is None:
            return answers
        return {"loss": cross_entropy(answers["logits"], labels), **answers}


class PairTrainer(RDropTrainer):
    """`RDropTrainer` for a `NetworkPair`: a training step is one call of the pair, and its two answers are the passes.

    Evaluation is that of the average. The predictions of `predict`, and of `compute_metrics`, are a tuple of three
    arrays `(N, C)`: the logits of the average, of the first and of the second network.

    Args:
        *args: As for `RDropTrainer`; the model is a `NetworkPair`. In the `TrainingArguments`,
            `remove_unused_columns` has to be False, since the pair takes whatever its networks take.
        rdrop: The objective, with two passes, kind `categorical` and strategy `auto`.
        **kwargs: As for `RDropTrainer`.

    Raises:
        TypeError: The model is no `NetworkPair`.
        ValueError: The objective, or `remove_unused_columns`, does not fit a pair.

    >>> import tempfile, torch
    >>> from torch import nn
    >>> from transformers import PrinterCallback, TrainingArguments
    >>> pair = NetworkPair(nn.Linear(4, 3), nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)))
    >>> rows = [{"x": torch.randn(4), "labels": i % 3} for i in range(12)]
    >>> options = {"max_steps": 2, "report_to": "none", "use_cpu": True, "disable_tqdm": True}
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     args = TrainingArguments(folder, remove_unused_columns=False, **options)
    ...     trainer = PairTrainer(pair, args, train_dataset=rows, rdrop=RDropConfig(alpha=1.0))
    ...     trainer.remove_callback(PrinterCallback)
    ...     trainer.train().global_step
    2
    """

    def __init__(self, *args: Any, rdrop: RDropConfig, **kwargs: Any) -> None:
        super().__init__(*args, rdrop=rdrop, **kwargs)
        pair = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
        if not isinstance(pair, NetworkPair):
            raise TypeError(f"PairTrainer got a {type(pair).__name__}; expected a NetworkPair, or use RDropTrainer")
        if (rdrop.every, rdrop.fraction, rdrop.branch_at, rdrop.one_sided) != (1, 1.0, None, False):
            raise ValueError(
                f"every is {rdrop.every}, fraction {rdrop.fraction}, branch_at {rdrop.branch_at}, one_sided "
                f"{rdrop.one_sided}; expected their defaults: both networks of a pair are trained in each step"
            )
        if rdrop.passes != 2:
            raise ValueError(f"passes is {rdrop.passes}; expected 2, one for each network of the pair")
        if rdrop.strategy != "auto":
            raise ValueError(f'strategy is "{rdrop.strategy}"; expected "auto", as each network runs once')
        if rdrop.kind != "categorical":
            raise ValueError(f'kind is "{rdrop.kind}"; expected "categorical", as the pair averages its softmaxes')
        if self.args.remove_unused_columns:
            raise ValueError(
                "remove_unused_columns is True, with which the Trainer would drop the inputs of both networks; pass "
                "TrainingArguments(remove_unused_columns=False)"
            )
        self._compared = False

    def answers(self, model: nn.Module, batch: dict[str, Any]) -> Any:
        """One call of the pair, whose network axis is the pass axis.

        Args:
            model: The pair, in training mode, maybe wrapped for several devices.
            batch: The batch without its labels.

        Returns:
            `logits` `(2, B, C)`.

        Warns:
            NoEffectWarning: Both networks answer the same in the first training step.
        """
        outputs = model(**batch)
        if not self._compared:
            self._compared = True
            _warn_if_identical(outputs["logits"])
        return outputs


def _shared(first: nn.Module, second: nn.Module) -> str:
    """Names in both networks of a tensor that they share; empty if they share none."""
    names = {id(tensor): name for name, tensor in _tensors(first)}
    for name, tensor in _tensors(second):
        if id(tensor) in names:
            return f"{names[id(tensor)]} of the first and {name} of the second"
    return ""


def _tensors(network: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters and buffers by name."""
    yield from network.named_parameters()
    yield from network.named_buffers()


def _warn_if_identical(logits: Tensor) -> None:
    """Say so if the two networks are one and the same function: then they stay equal."""
    if torch.equal(logits[0], logits[1]):
        warnings.warn(
            "R-Drop has no effect on this pair: its two networks gave identical outputs in the first training step, "
            "so their divergence and its gradient are 0. Give them different structures, different initial weights, "
            "or dropout.",
            NoEffectWarning,
            stacklevel=3,
        )
