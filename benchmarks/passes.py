"""Time and peak memory of a training step with R-Drop, beside a plain step of the same model, side by side in one run.

    python benchmarks/passes.py [--model cnn encoder frozen] [--rounds 15] [--device cpu]

A step is: passes, loss, backward, AdamW. The models: a CNN with dropout in its head alone, and an encoder with dropout
everywhere, whole and with a lower half that is frozen and in evaluation mode. The programs: every strategy, with and
without activation checkpointing; every cheaper form; and the same steps written by hand, with this package's loss and
without its passes: what a strategy takes beyond those is the overhead of the library. Beside the time stands what
`rdrop.explain_passes` counts before training. `side_by_side.py` says how it is measured.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import BertConfig, BertForSequenceClassification

import rdrop
from side_by_side import compare

CHECKPOINTED = ", checkpointed"
PROGRAMS: dict[str, dict[str, Any] | None] = {
    "plain": None,
    "concat by hand": None,
    "concat": {"strategy": "concat"},
    "sequential": {"strategy": "sequential"},
    "shared by hand": None,
    "shared": {"strategy": "shared"},
    "fraction 0.25": {"fraction": 0.25},
    "one-sided": {"one_sided": True},
    "last block": {"branch_at": -1},
}
WITH_CHECKPOINTS = ("plain", "concat", "sequential")


class Encoder(nn.Module):
    """A text classifier of six layers; the lower half may be frozen."""

    def __init__(self, *, frozen: bool) -> None:
        super().__init__()
        config = BertConfig(
            hidden_size=128, num_hidden_layers=6, num_attention_heads=4, intermediate_size=512, vocab_size=1000
        )
        self.classifier = BertForSequenceClassification(config)
        bert = self.classifier.bert
        for module in [bert.embeddings, *bert.encoder.layer[:3]] if frozen else []:
            module.eval().requires_grad_(False)

    def forward(self, ids: Tensor) -> Tensor:
        logits: Tensor = self.classifier(ids).logits
        return logits

    def lower_half(self, ids: Tensor) -> Tensor:
        """What the frozen half makes of a batch without padding."""
        hidden: Tensor = self.classifier.bert.embeddings(ids)
        for layer in self.classifier.bert.encoder.layer[:3]:
            hidden = layer(hidden)
        return hidden

    def upper_half(self, hidden: Tensor) -> Tensor:
        """Logits of what the lower half gave."""
        for layer in self.classifier.bert.encoder.layer[3:]:
            hidden = layer(hidden)
        pooled = self.classifier.bert.pooler(hidden)
        logits: Tensor = self.classifier.classifier(self.classifier.dropout(pooled))
        return logits


def build(name: str, device: str) -> tuple[Any, Tensor, Tensor]:
    """A model with inputs and labels."""
    torch.manual_seed(0)
    if name == "cnn":
        model: nn.Module = timm.create_model("resnet18", num_classes=12, drop_rate=0.3)
        x, labels = torch.randn(32, 3, 64, 64), torch.randint(12, (32,))
    else:
        model = Encoder(frozen=name == "frozen")
        x, labels = torch.randint(1000, (32, 64)), torch.randint(2, (32,))
    return model.to(device), x.to(device), labels.to(device)


def answers(program: str, name: str, model: Any, x: Tensor) -> Tensor:
    """The logits of all passes, `(M, B, C)`."""
    if program == "plain":
        return model(x)[None]  # type: ignore[no-any-return]
    if program == "concat by hand":
        logits: Tensor = model(torch.cat([x, x]))
        return logits.view(2, len(x), -1)
    if program == "shared by hand":
        if name == "cnn":
            features = model.forward_features(x)
            return torch.stack([model.forward_head(features) for _ in range(2)])
        hidden = model.lower_half(x)
        return torch.stack([model.upper_half(hidden) for _ in range(2)])
    return rdrop.forward_passes(model, x, **options_of(program, model))  # type: ignore[no-any-return]


def options_of(program: str, model: nn.Module) -> dict[str, Any]:
    """What a program asks of `forward_passes`."""
    options = dict(PROGRAMS[program] or {})
    if "branch_at" in options:
        options["branch_at"] = rdrop.blocks(model)[options["branch_at"]]
    return options


def step_of(program: str, name: str, device: str) -> Callable[[], None]:
    """A training step of a program, which is built anew."""
    model, x, labels = build(name, device)
    if program.endswith(CHECKPOINTED):
        program = program.removesuffix(CHECKPOINTED)
        if name == "cnn":
            model.set_grad_checkpointing(True)
        else:
            model.classifier.gradient_checkpointing_enable({"use_reentrant": False})
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)

    def step() -> None:
        optimizer.zero_grad()
        logits = answers(program, name, model, x)
        loss = F.cross_entropy(logits[0], labels) if program == "plain" else rdrop.rdrop_loss(logits, labels).loss
        torch.autograd.backward(loss)
        optimizer.step()

    return step


def programs(name: str) -> list[str]:
    """Those that there are for a model."""
    sharing = {"cnn", "frozen"}
    names = [program for program in PROGRAMS if program != "shared by hand" or name in sharing]
    return [*names, *(program + CHECKPOINTED for program in WITH_CHECKPOINTS)]


def counted(name: str, device: str) -> str:
    """What the library says of the costs before training."""
    model, x, _ = build(name, device)
    plan = rdrop.explain_passes(model, x)
    costs = [f"{strategy} {cost:.2f}" for strategy, cost in plan.cost.items()]
    for program in ("fraction 0.25", "one-sided", "last block"):
        found = rdrop.explain_passes(model, x, **options_of(program, model))
        costs.append(f"{program} {found.cost[found.strategy]:.2f} ({found.strategy})")
    return f"{name}; counted: {', '.join(costs)}; auto takes {plan.strategy}"


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs="+", default=["cnn", "encoder", "frozen"])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--peak-of", help=argparse.SUPPRESS)
    options = parser.parse_args()

    for name in options.model:
        sys.argv[1:] = ["--model", name, "--device", options.device]
        compare(
            options,
            "" if options.peak_of else counted(name, options.device),
            lambda program, name=name: step_of(program, name, options.device),
            programs(name),
            ("plain", "concat by hand", "shared by hand"),
            warm_up=lambda _: None,
            resident=False,
        )


if __name__ == "__main__":
    main()
