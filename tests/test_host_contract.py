"""What every host must obey: steps are those of the formulas, however it splits a batch, and evaluation is plain."""

from __future__ import annotations

import socket
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.multiprocessing.spawn import spawn
from torch.nn import functional as F

import host_on_a_rank
from hosts import HOSTS, SHARDED, Job, batch
from tagging import Tagger

Host = Callable[[Tagger, Job, Path], float]


@pytest.fixture(params=list(HOSTS))
def host(request: pytest.FixtureRequest) -> Host:
    """One host after the other."""
    return HOSTS[request.param]


def by_the_formulas(job: Job) -> tuple[dict[str, Tensor], float]:
    """Weights and evaluation loss from torch alone: means over the labelled positions of the whole batch."""
    model = Tagger(by_row=job.passes)
    rows = batch()
    counted = rows["labels"] != -100
    for _ in range(job.steps):
        scores = [model(rows["words"], rows["row"])["logits"][counted] for _ in range(job.passes)]
        task = [F.cross_entropy(z, rows["labels"][counted], label_smoothing=job.label_smoothing) for z in scores]
        loss = torch.stack(task).mean()
        log_p = [z.log_softmax(-1) for z in scores]
        pairs = [(p, q) for i, p in enumerate(log_p) for j, q in enumerate(log_p) if i != j]
        if pairs:
            distances = [(p.exp() * (p - q)).sum(-1).mean() for p, q in pairs]
            loss = loss + job.alpha * torch.stack(distances).mean()
        weights = list(model.parameters())
        for weight, gradient in zip(weights, torch.autograd.grad(loss, weights), strict=True):
            weight.data -= job.rate * gradient
    model.eval()
    with torch.no_grad():
        scores = [model(rows["words"], rows["row"])["logits"][counted]]
        final = F.cross_entropy(scores[0], rows["labels"][counted], label_smoothing=job.label_smoothing)
    return model.state_dict(), final.item()


JOBS = {
    "plain": Job(passes=1),
    "two passes": Job(),
    "alpha 0": Job(alpha=0.0),
    "three passes": Job(passes=3, alpha=0.7),
    "micro-batches": Job(micro_batches=4),
    "smoothed micro-batches": Job(micro_batches=2, label_smoothing=0.2),
    "one doubled batch": Job(strategy="concat"),
}


@pytest.mark.parametrize("job", list(JOBS.values()), ids=list(JOBS))
@pytest.mark.shows(HOSTS, "steps", "plain", "evaluation", "accumulation", "label smoothing", "masks")
def test_steps_and_evaluation_are_those_of_the_formulas(host: Host, job: Job, tmp_path: Path) -> None:
    model = Tagger(by_row=job.passes, together=job.strategy == "concat")
    loss = host(model, job, tmp_path)
    expected, expected_loss = by_the_formulas(job)
    for name, weight in expected.items():
        torch.testing.assert_close(model.state_dict()[name], weight, rtol=1e-5, atol=1e-6)
    assert loss == pytest.approx(expected_loss, rel=1e-5)


TWO_RANKS = Job(strategy="concat", micro_batches=2, ranks=2)


@pytest.fixture(scope="module")
def on_two_ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of all hosts, which train one after the other in the same two processes."""
    folder = tmp_path_factory.mktemp("ranks")
    with ExitStack() as free:
        sockets = {name: free.enter_context(socket.socket()) for name in [*HOSTS, *SHARDED]}
        for each in sockets.values():
            each.bind(("127.0.0.1", 0))
        ports = {name: each.getsockname()[1] for name, each in sockets.items()}
    spawn(host_on_a_rank.worker, args=(TWO_RANKS, folder, ports), nprocs=TWO_RANKS.ranks)  # type: ignore[no-untyped-call]
    return folder


SUMMED = pytest.mark.skipif(torch.__version__ < "2.9", reason="FSDP2 of torch 2.8 adds up gradients over gloo")


@pytest.mark.parametrize("name", [*HOSTS, *(pytest.param(name, marks=SUMMED) for name in SHARDED)])
@pytest.mark.shows(HOSTS, "processes")
@pytest.mark.shows("torch", "sharded")
def test_two_processes_take_the_steps_of_one(name: str, on_two_ranks: Path) -> None:
    expected, expected_loss = by_the_formulas(TWO_RANKS)
    for rank in range(TWO_RANKS.ranks):
        found = load_file(on_two_ranks / f"{name} {rank}.safetensors")
        assert found.pop("loss").item() == pytest.approx(expected_loss, rel=1e-5)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.shows(HOSTS, "evaluation")
def test_training_makes_the_passes_and_evaluation_makes_one(host: Host, tmp_path: Path) -> None:
    model = Tagger(by_row=2)
    host(model, Job(steps=2, micro_batches=4), tmp_path)
    training, evaluation = ([rows for rows, on in model.seen if on is mode] for mode in (True, False))
    assert training == [8] * (2 * 4 * 2)
    assert evaluation == [32]


def test_jobs_differ_where_they_should() -> None:
    """The contract would miss a host that ignores an option if options made no difference."""
    different = {name: job for name, job in JOBS.items() if "micro" not in name and job.strategy == "sequential"}
    weights = {name: by_the_formulas(job)[0]["head.weight"] for name, job in different.items()}
    names = list(weights)
    for i, one in enumerate(names):
        for other in names[:i]:
            assert not torch.allclose(weights[one], weights[other], atol=1e-4), f"{one} and {other}"
