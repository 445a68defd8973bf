"""The plant project in PaddlePaddle: from photos and a list of them to a network that tells their growth stage.

The list is a CSV with the columns `image` (a path from the folder of the CSV) and `label`. A tenth of each class, drawn
with the seed, is held out for validation; nothing is augmented. One network with R-Drop, or two different ones that
learn from each other:

    python examples/paddle_plants.py my-photos/labels.csv --out stages
    python examples/paddle_plants.py my-photos/labels.csv --pair se_resnet50_vd se_resnext50_vd --out pair
    python examples/paddle_plants.py new-photos/labels.csv --evaluate pair/*.safetensors

`--passes 1` is plain training. A first try on a CPU: `--network res2net14_vd --size 64 --limit 400`.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import paddle
from safetensors import SafetensorError

from paddle_backbones import BACKBONES, Classifier, read_facts
from plant_photos import PAUSE, Array, Photos, split
from rdrop.paddle import RDropLoss, forward_passes


def logits_of_passes(networks: Sequence[Classifier], images: paddle.Tensor, passes: int) -> Any:
    """Logits `(M, B, C)`: of two networks one pass each; of one network the trunk once and M passes of its head."""
    if len(networks) > 1:
        return forward_passes(list(networks), images, passes=len(networks))
    return forward_passes(networks[0].head, networks[0].trunk(images), passes=passes)


@paddle.no_grad()
def evaluate(networks: Sequence[Classifier], photos: Photos, indices: Array, batch: int) -> tuple[list[float], float]:
    """One pass without dropout: accuracy of each network and, of several, of their mean; mean -log p(label) of it."""
    told, probabilities = time.monotonic(), []
    for network in networks:
        network.eval()
    for start in range(0, len(indices), batch):
        images = paddle.to_tensor(photos.batch(indices[start : start + batch])[0])
        each = paddle.stack([paddle.nn.functional.softmax(network(images)) for network in networks])
        probabilities.append(each.numpy())
        if time.monotonic() > told + PAUSE:
            told = time.monotonic()
            print(f"{min(start + batch, len(indices))} of {len(indices)} images are evaluated", flush=True)
    every = np.concatenate(probabilities, axis=1)
    mean, labels = every.mean(0), photos.labels[indices]
    answers = [*every, mean] if len(networks) > 1 else [mean]
    likelihood = float(-np.log(mean[np.arange(len(labels)), labels].clip(1e-12)).mean())
    return [float((answer.argmax(-1) == labels).mean()) for answer in answers], likelihood


def train(networks: Sequence[Classifier], photos: Photos, criterion: RDropLoss, options: argparse.Namespace) -> float:
    """Train, and keep the weights of the epoch with the best accuracy in validation, which is returned."""
    training, held = split(photos.labels, options.seed, photos.classes)
    print(f"{len(training)} images of {len(photos.classes)} classes to train on, {len(held)} held out", flush=True)
    batch = min(options.batch, len(training))
    weights = [weight for network in networks for weight in network.parameters()]
    optimizer = paddle.optimizer.Adam(options.learning_rate, parameters=weights)
    draws, steps, best = np.random.default_rng(options.seed), len(training) // batch, (-1.0, 0.0)
    for epoch in range(1, options.epochs + 1):
        order, told, sums = draws.permutation(training), time.monotonic(), np.zeros(3)
        for network in networks:
            network.train()
        for step in range(1, steps + 1):  # what fills no batch waits for another epoch
            images, labels = map(paddle.to_tensor, photos.batch(order[(step - 1) * batch : step * batch]))
            logits = logits_of_passes(networks, images, options.passes)
            criterion(logits, labels).backward()
            optimizer.step()
            optimizer.clear_grad()
            right = (logits.argmax(-1) == labels).astype("float32").mean()
            sums += (float(criterion.task_loss), float(criterion.divergence), float(right))
            if step == steps or time.monotonic() > told + PAUSE:
                told, (task, divergence, share) = time.monotonic(), sums / step
                print(f"epoch {epoch}, step {step}/{steps}: task loss {task:.3f}, divergence {divergence:.4f}, "
                      f"training accuracy {share:.1%}", flush=True)  # fmt: skip
        accuracies, likelihood = evaluate(networks, photos, held, batch)
        tell(f"epoch {epoch}, validation", networks, accuracies, likelihood)
        if (accuracies[-1], -likelihood) > best:
            best = accuracies[-1], -likelihood
            for network in networks:
                facts = {"classes": photos.classes, "size": options.size}
                network.save(options.out / f"{network.name}.safetensors", **facts)
    print(f"best: accuracy {best[0]:.1%} in validation; its weights are in {options.out}")
    return best[0]


def tell(what: str, networks: Sequence[Classifier], accuracies: Sequence[float], likelihood: float) -> None:
    """One line of results."""
    names = [*(network.name for network in networks), "their mean"] if len(networks) > 1 else [""]
    each = ", ".join(f"{name} {value:.1%}".strip() for name, value in zip(names, accuracies, strict=True))
    print(f"{what}: accuracy {each}, negative log-likelihood {likelihood:.3f}", flush=True)


def run(options: argparse.Namespace) -> float:
    """Train, or evaluate what was trained; the accuracy."""
    if options.evaluate:
        facts: list[Any] = [read_facts(path) for path in options.evaluate]
        if any((each["classes"], each["size"]) != (facts[0]["classes"], facts[0]["size"]) for each in facts):
            raise ValueError("the weights are for different classes or sizes; expected those of one training")
        photos = Photos(options.table, facts[0]["size"], options.limit, options.seed, facts[0]["classes"])
        networks = [Classifier(each["network"], len(photos.classes)) for each in facts]
        for network, path in zip(networks, options.evaluate, strict=True):
            network.load(path)
        accuracies, likelihood = evaluate(networks, photos, np.arange(len(photos.labels)), options.batch)
        tell(f"{len(photos.labels)} images", networks, accuracies, likelihood)
        return accuracies[-1]
    names = options.pair or [options.network]
    if len(set(names)) < len(names):
        raise ValueError(f"--pair is {names[0]} twice; expected two different networks")
    if options.start and len(options.start) != len(names):
        raise ValueError(f"--start names {len(options.start)} files; expected one for each network, {len(names)}")
    criterion = RDropLoss(options.alpha)
    photos = Photos(options.table, options.size, options.limit, options.seed)
    paddle.seed(options.seed)
    dropout = options.dropout if options.dropout is not None else 0.0 if options.pair else 0.3
    networks = [Classifier(name, len(photos.classes), dropout) for name in names]
    for network, path in zip(networks, options.start or (), strict=False):
        network.load(path)
    for network in networks:
        print(f"{network.name}, {sum(int(each.size) for each in network.parameters() if not each.stop_gradient):,} "
              f"parameters, dropout {dropout}, on {paddle.device.get_device()}")  # fmt: skip
    print(f"{options.size}x{options.size} pixels, alpha {options.alpha}, "
          f"passes {len(networks) if options.pair else options.passes}, seed {options.seed}", flush=True)  # fmt: skip
    return train(networks, photos, criterion, options)


def positive(text: str) -> int:
    """A whole number of at least 1."""
    if int(text) < 1:
        raise ValueError
    return int(text)


def main(arguments: Sequence[str] | None = None) -> float:
    """The command; it returns the accuracy that it has printed."""
    parser = argparse.ArgumentParser(description="Train a network that tells the growth stage of plants, with R-Drop.")
    add: Any = parser.add_argument
    add("table", type=Path, help="a CSV with the columns image and label")
    add("--network", choices=BACKBONES, default="res2net50_vd")
    add("--pair", choices=BACKBONES, nargs=2, help="two different networks that learn from each other, instead of one")
    unit = "a mean over the batch as is the cross-entropy; a program that sums it over a batch of 8 means 4.8 by 0.6"
    add("--alpha", type=float, default=0.6, help=f"weight of the divergence (default 0.6), {unit}")
    add("--passes", type=positive, default=2, help="of a single network (default 2)")
    add("--dropout", type=float, help="before the classifier (default 0.3, and 0 for a pair, which needs none)")
    add("--size", type=positive, default=256, help="pixels of a side (default 256)")
    add("--batch", type=positive, default=8, help="images of a step (default 8)")
    add("--epochs", type=positive, default=20, help="(default 20)")
    add("--learning-rate", type=float, default=3e-4, help="of Adam (default 3e-4)")
    add("--seed", type=int, default=0, help="of the split, the weights, the order and the dropout (default 0)")
    add("--limit", type=positive, help="take so many images alone, drawn by class with the seed")
    add("--start", type=Path, nargs="+", help="weights to start from, one file for each network; timm's will do")
    add("--evaluate", type=Path, nargs="+", help="weights to evaluate on all images of the table; nothing is trained")
    add("--out", type=Path, default=Path("plants"), help="folder for the best weights (default plants)")
    options = parser.parse_args(arguments)
    try:
        return run(options)
    except (OSError, ValueError, SafetensorError) as error:
        sys.exit(f"{parser.prog}: {error}")


if __name__ == "__main__":
    main()
