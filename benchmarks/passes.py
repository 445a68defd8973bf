"""Time of a training step with R-Drop, as a ratio to a plain step of the same model, side by side in one run.

    python benchmarks/passes.py [--rounds 15] [--device cpu]

A step is: passes, loss, backward, AdamW. The models: a CNN with dropout in its head alone, whose trunk runs once for
both passes, and encoders with dropout everywhere, whole and with a lower half that is frozen and in evaluation mode.
Beside the measured ratio stands what `rdrop.explain_passes` counts of the forward pass before training.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import BertConfig, BertForSequenceClassification

import rdrop
from rdrop.toolkit.environment import machine


class Encoder(nn.Module):
    """A text classifier of six layers; the lower half may be frozen."""

    def __init__(self, *, frozen: bool) -> None:
        super().__init__()
        config = BertConfig(
            hidden_size=128, num_hidden_layers=6, num_attention_heads=4, intermediate_size=512, vocab_size=1000,
            attn_implementation="eager",  # the fused attention of the CPU has no rule for vmap
        )  # fmt: skip
        self.classifier = BertForSequenceClassification(config)
        bert = self.classifier.bert
        for module in [bert.embeddings, *bert.encoder.layer[:3]] if frozen else []:
            module.eval().requires_grad_(False)

    def forward(self, ids: Tensor) -> Tensor:
        logits: Tensor = self.classifier(ids).logits
        return logits


def images(device: str) -> tuple[Tensor, Tensor]:
    """Inputs and labels of a CNN."""
    return torch.randn(32, 3, 64, 64, device=device), torch.randint(12, (32,), device=device)


def sentences(device: str) -> tuple[Tensor, Tensor]:
    """Inputs and labels of an encoder."""
    return torch.randint(1000, (32, 64), device=device), torch.randint(2, (32,), device=device)


MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[str], tuple[Tensor, Tensor]]]] = {
    "ResNet-18, dropout in the head": (lambda: timm.create_model("resnet18", num_classes=12, drop_rate=0.3), images),
    "encoder, dropout everywhere": (lambda: Encoder(frozen=False), sentences),
    "encoder, lower half frozen": (lambda: Encoder(frozen=True), sentences),
}


def step_of(model: nn.Module, x: Tensor, loss: Callable[[nn.Module, Tensor], Tensor]) -> Callable[[], Any]:
    """A training step."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)

    def step() -> None:
        optimizer.zero_grad()
        loss(model, x).backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return step


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    options = parser.parse_args()
    print(f"{machine()}; torch {torch.__version__}, {torch.get_num_threads()} threads, {options.rounds} rounds")
    print(f"{'model':32}{'strategy':12}{'forward, counted':>18}{'step, measured':>16}{'spread':>16}{'plain ms':>10}")
    for name, (build, inputs) in MODELS.items():
        torch.manual_seed(0)
        model = build().to(options.device)
        x, labels = inputs(options.device)
        strategies = ["shared", "concat"]
        steps = {"plain": step_of(model, x, lambda m, x, y=labels: F.cross_entropy(m(x), y))}
        for strategy in strategies:
            steps[strategy] = step_of(
                model,
                x,
                lambda m, x, y=labels, s=strategy: rdrop.rdrop_loss(rdrop.forward_passes(m, x, strategy=s), y).loss,
            )
        times: dict[str, list[float]] = {key: [] for key in steps}
        for turn in range(options.rounds + 2):
            for key, step in steps.items():
                start = time.perf_counter()
                step()
                if options.device == "cuda":
                    torch.cuda.synchronize()
                if turn > 1:  # the first ones allocate and decide
                    times[key].append(time.perf_counter() - start)
        plan = rdrop.explain_passes(model, x)
        for strategy in strategies:
            ratios = [a / b for a, b in zip(times[strategy], times["plain"], strict=True)]
            counted = f"{plan.cost[strategy]:.2f}" if strategy in plan.cost else "refused"
            chosen = f"{strategy}{' *' if strategy == plan.strategy else ''}"
            spread = f"{min(ratios):.2f} .. {max(ratios):.2f}"
            plain = 1e3 * statistics.median(times["plain"])
            print(f"{name:32}{chosen:12}{counted:>18}{statistics.median(ratios):16.3f}{spread:>16}{plain:10.1f}")
    print("* what auto takes")


if __name__ == "__main__":
    main()
