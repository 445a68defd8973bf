"""The last linear layer of a language model, and what happens between it and the logits.

`rdrop.linear_rdrop_loss` needs the hidden states that the layer gets, its weight, and whatever the model does to its
output. That differs between families, so nothing is believed: what was found is held against the model's own logits on
a row of the first batch, and where they differ the loss is computed on the logits.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from rdrop.kernels.linear import logits_of
from rdrop.stochastic import randomness_off

FINAL_BIAS = "final_logits_bias"  # a buffer of Marian, BART and their kin
SOFTCAP = "final_logit_softcapping"  # of the configuration, in Gemma's models
DIVISOR = "logits_scaling"  # of the configuration, in Granite's models: the logits are divided by it
FACTOR = "logit_scale"  # of the model, in Cohere's models


@dataclass(frozen=True)
class LanguageHead:
    """A model's last linear layer."""

    model: Any
    layer: nn.Linear

    @property
    def bias(self) -> Tensor | None:
        """What is added to the layer's product."""
        own: Tensor | None = self.layer.bias
        final: Tensor | None = getattr(self.model, FINAL_BIAS, None)
        if final is None:
            return own
        return final.flatten() if own is None else own + final.flatten()

    @property
    def options(self) -> dict[str, Any]:
        """Bias, scale and cap, as `rdrop.linear_rdrop_loss` takes them."""
        factor = getattr(self.model, FACTOR, None)
        divisor = getattr(self.model.config, DIVISOR, None)
        scale = (1.0 if factor is None else float(factor)) / (divisor or 1.0)
        return {"bias": self.bias, "logit_scale": scale, "softcap": getattr(self.model.config, SOFTCAP, None)}

    @contextmanager
    def left_out(self) -> Iterator[None]:
        """The model gives hidden states where it would give logits."""
        config, before = self.model.config, {}
        for owner, name, neutral in (
            (self.model, FACTOR, 1.0),
            (config, DIVISOR, 1.0),
            (config, SOFTCAP, None),
        ):
            if getattr(owner, name, None) is not None:
                before[name] = owner, getattr(owner, name)
                setattr(owner, name, neutral)
        final = self.model._buffers.get(FINAL_BIAS)
        if final is not None:
            self.model._buffers[FINAL_BIAS] = final.new_zeros(1)
        own_forward = self.layer.__dict__.get("forward")
        self.layer.forward = _unchanged  # type: ignore[assignment,method-assign]
        try:
            yield
        finally:
            del self.layer.forward
            if own_forward is not None:
                self.layer.forward = own_forward  # type: ignore[method-assign]
            if final is not None:
                self.model._buffers[FINAL_BIAS] = final
            for name, (owner, value) in before.items():
                setattr(owner, name, value)


def find_language_head(model: nn.Module, batch: Mapping[str, Any]) -> LanguageHead | str:
    """The head of a model, or why the loss has to be computed on its logits.

    Args:
        model: The model, not wrapped for several devices.
        batch: A training batch without its labels, of which one row is tried.
    """
    owner, layer = output_embeddings(model)
    if type(layer) is not nn.Linear:
        what = "no layer" if layer is None else f"a {type(layer).__name__}"
        return f"{type(owner).__name__} has {what} as its output embeddings, expected a torch.nn.Linear"
    if isinstance(getattr(owner, FACTOR, None), nn.Parameter):
        return f"{type(owner).__name__} learns the scale of its logits"
    if layer.weight.shape != (layer.out_features, layer.in_features) or hasattr(layer.weight, "full_tensor"):
        return f"the last layer of {type(owner).__name__} is in parts, each on a process of its own"
    if hasattr(model, "_orig_mod"):
        return f"{type(owner).__name__} is compiled as a whole"
    unknown = f"{type(owner).__name__} changes the output of its last layer in a way that is not known here"
    head = LanguageHead(owner, layer)
    rows = {name: value[:1] if isinstance(value, Tensor) and value.dim() else value for name, value in batch.items()}
    with torch.no_grad(), randomness_off(model):
        wanted = _logits(model(**rows))
        with head.left_out():
            hidden = _logits(model(**rows))
        if hidden.shape[:-1] != wanted.shape[:-1] or hidden.shape[-1] != layer.in_features:
            return unknown
        options = head.options
        found = logits_of(hidden.to(layer.weight.dtype), layer.weight, **options)
    near = 1e-4 if wanted.dtype == layer.weight.dtype == torch.float32 else 5e-2
    if not torch.allclose(found.float(), wanted.float(), rtol=near, atol=near * float(wanted.float().abs().max())):
        return unknown
    return head


def output_embeddings(model: Any) -> tuple[Any, Any]:
    """The model itself, taken out of peft's adapter, and its last layer, or None."""
    owner = model.get_base_model() if hasattr(model, "get_base_model") else model
    return owner, owner.get_output_embeddings() if hasattr(owner, "get_output_embeddings") else None


def _unchanged(hidden: Tensor) -> Tensor:
    """What the layer gets."""
    return hidden


def _logits(outputs: Any) -> Tensor:
    """Those of a model of transformers."""
    found: Tensor = outputs["logits"] if isinstance(outputs, Mapping) else outputs[0]
    return found
