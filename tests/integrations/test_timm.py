"""timm: a task whose steps are those of the formulas, with every criterion, and the rest of timm as it was."""

from __future__ import annotations

import importlib
import runpy
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pytest
import timm
import timm.task
import torch
from safetensors.torch import load_file
from timm.layers.split_batchnorm import convert_splitbn_model
from timm.loss.binary_cross_entropy import BinaryCrossEntropy
from timm.loss.cross_entropy import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from timm.loss.jsd import JsdCrossEntropy
from timm.task import ClassificationTask, resume_task_checkpoint
from timm.utils.checkpoint_saver import CheckpointSaver
from torch import Tensor, nn
from torch.multiprocessing.spawn import spawn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from pictures import class_folders
from rdrop import NoEffectWarning, divergence, explain_passes, forward_passes, rdrop_loss, schedule
from rdrop.integrations.timm import RDropConfig, RDropTask
from tagging import B, C
from timm_on_two_ranks import RANKS, SCRIPT, Classifier, rows, train, worker

SOFT = torch.rand(B, C, generator=torch.Generator().manual_seed(3)).softmax(-1)


class Job(NamedTuple):
    """What is trained, and what timm's criteria mean in torch's own words."""

    criterion: Any
    formula: Callable[[Tensor, Tensor], Tensor]
    target: Tensor
    alpha: float = 2.0
    passes: int = 2
    kind: Any = "categorical"
    micro_batches: int = 1

    @property
    def rdrop(self) -> RDropConfig:
        return RDropConfig(alpha=self.alpha, passes=self.passes, kind=self.kind, strategy="sequential")


def smoothed(z: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(z, y, label_smoothing=0.1)


def one_hot_bce(z: Tensor, y: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(z, 0.9 * F.one_hot(y, C) + 0.1 / C)


def augmented(z: Tensor, y: Tensor) -> Tensor:
    """AugMix: the first half is clean, and all parts are near to their mean."""
    parts = z.softmax(-1).chunk(2)
    mean = torch.stack(parts).mean(0).log()
    distances = torch.stack([(p * (p.log() - mean)).sum(-1).mean() for p in parts])
    return F.cross_entropy(z.chunk(2)[0], y.chunk(2)[0]) + 12 * distances.mean()


IDS = rows()[1]
JOBS = {
    "plain": Job(nn.CrossEntropyLoss(), F.cross_entropy, IDS, passes=1),
    "two passes": Job(nn.CrossEntropyLoss(), F.cross_entropy, IDS),
    "alpha 0": Job(nn.CrossEntropyLoss(), F.cross_entropy, IDS, alpha=0.0),
    "three passes": Job(nn.CrossEntropyLoss(), F.cross_entropy, IDS, alpha=0.7, passes=3),
    "micro-batches": Job(nn.CrossEntropyLoss(), F.cross_entropy, IDS, micro_batches=4),
    "label smoothing": Job(LabelSmoothingCrossEntropy(0.1), smoothed, IDS),  # type: ignore[no-untyped-call]
    "soft targets": Job(SoftTargetCrossEntropy(), F.cross_entropy, SOFT, micro_batches=2),  # type: ignore[no-untyped-call]
    "BCE of ids": Job(BinaryCrossEntropy(0.1), one_hot_bce, IDS, kind="binary"),
    "BCE of soft targets": Job(BinaryCrossEntropy(), F.binary_cross_entropy_with_logits, SOFT, kind="binary"),
    "AugMix": Job(JsdCrossEntropy(2, smoothing=0.0), augmented, IDS),  # type: ignore[no-untyped-call]
    "a function": Job(lambda z, y: 3 * F.cross_entropy(z, y), lambda z, y: 3 * F.cross_entropy(z, y), IDS),
}


def by_the_formulas(job: Job) -> dict[str, Tensor]:
    """Weights from torch alone."""
    model, (x, _) = Classifier(job.passes), rows()
    for _ in range(3):
        scores = [model(x) for _ in range(job.passes)]
        loss = torch.stack([job.formula(z, job.target) for z in scores]).mean()
        distances = []
        for i, z in enumerate(scores):
            for w in scores[:i] + scores[i + 1 :]:
                if job.kind == "categorical":
                    gap = z.log_softmax(-1) - w.log_softmax(-1)
                    distances.append((z.softmax(-1) * gap).sum(-1).mean())
                else:
                    p, on, off = z.sigmoid(), F.logsigmoid(z) - F.logsigmoid(w), F.logsigmoid(-z) - F.logsigmoid(-w)
                    distances.append((p * on + (1 - p) * off).mean())
        if distances:
            loss = loss + job.alpha * torch.stack(distances).mean()
        weights = list(model.parameters())
        for weight, gradient in zip(weights, torch.autograd.grad(loss, weights), strict=True):
            weight.data -= 0.5 * gradient
    return model.state_dict()


def assert_weights(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert list(found) == list(expected)
    for name, weight in expected.items():
        torch.testing.assert_close(found[name], weight, rtol=1e-5, atol=1e-6)


def network(name: str = "test_resnet", **options: Any) -> nn.Module:
    torch.manual_seed(0)
    built: nn.Module = timm.create_model(name, **({"num_classes": C, "drop_rate": 0.5} | options))
    return built


def batch(size: int = 16) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(4)
    return torch.randn(8, 3, size, size, generator=generator), torch.randint(C, (8,), generator=generator)


def task_of(model: nn.Module, **options: Any) -> RDropTask:
    return RDropTask(model, nn.CrossEntropyLoss(), rdrop=RDropConfig(**options))


# The objective


@pytest.mark.shows("timm", "steps", "plain", "accumulation", "label smoothing", "own loss")
@pytest.mark.parametrize("job", list(JOBS.values()), ids=list(JOBS))
def test_steps_are_those_of_the_formulas(job: Job) -> None:
    model = Classifier(job.passes)
    train(RDropTask(model, job.criterion, rdrop=job.rdrop), rows()[0], job.target, micro_batches=job.micro_batches)
    assert_weights(model.state_dict(), by_the_formulas(job))
    assert model.seen == [(B // job.micro_batches, True)] * (3 * job.micro_batches * job.passes)


def test_jobs_differ_where_they_should() -> None:
    """The comparison would miss a task that ignores an option if options made no difference."""
    weights = {name: by_the_formulas(job)["head.weight"] for name, job in JOBS.items() if "micro" not in name}
    names = list(weights)
    for i, one in enumerate(names):
        for other in names[:i]:
            assert not torch.allclose(weights[one], weights[other], atol=1e-4), f"{one} and {other}"


@pytest.mark.shows("timm", "log")
def test_the_result_has_the_parts_of_the_loss_and_the_first_pass() -> None:
    x, y = rows()
    result = task_of(Classifier(), alpha=2.0, strategy="sequential")(x, y)
    torch.testing.assert_close(result["output"], Classifier()(x))
    torch.testing.assert_close(result["loss"], result["task_loss"] + 2.0 * result["divergence"])
    before = result["task_loss"].item()
    result["loss"] /= 4  # as timm's loop does
    assert result["task_loss"].item() == before


@pytest.mark.shows("timm", "cheaper")
def test_a_part_of_the_rows_stands_for_all() -> None:
    model, (x, y) = network("test_vit", img_size=16, patch_size=8, drop_rate=0.5), batch()
    task = task_of(model, fraction=0.25)
    torch.manual_seed(1)
    result = task(x, y)
    torch.manual_seed(1)
    logits = forward_passes(model, x, fraction=0.25)
    by_row = rdrop_loss(logits, y, reduction="none").divergence
    assert (by_row > 0).sum() == 2
    torch.testing.assert_close(result["divergence"], by_row.sum() / 2)


@pytest.mark.shows("timm", "cheaper")
@pytest.mark.parametrize(
    ("of_passes", "of_divergence"),
    [
        ({"branch_at": "-1"}, {"divergence": "js"}),
        ({"one_sided": True}, {}),
        ({"strategy": "concat"}, {"stop_gradient": "first"}),
    ],
)
def test_options_of_passes_and_divergence_arrive(of_passes: Any, of_divergence: Any) -> None:
    model, (x, y) = network("test_vit", img_size=16, patch_size=8, proj_drop_rate=0.3), batch()
    torch.manual_seed(1)
    found = task_of(model, **of_passes, **of_divergence)(x, y)["divergence"]
    torch.manual_seed(1)
    named = of_passes | ({"branch_at": "blocks.5"} if "branch_at" in of_passes else {})
    expected = divergence(forward_passes(model, x, **named), **of_divergence)
    torch.manual_seed(1)
    without = divergence(forward_passes(model, x))
    gradients = [
        torch.autograd.grad(each, model.get_parameter("head.weight"))[0] for each in (found, expected, without)
    ]
    torch.testing.assert_close(gradients[0], gradients[1])
    assert not torch.allclose(gradients[0], gradients[2], rtol=0.01)


@pytest.mark.shows("timm", "mixed precision")
def test_bfloat16_autocast_has_a_loss_in_float32() -> None:
    model, (x, y) = network("test_vit", img_size=16, patch_size=8), batch()
    task = task_of(model, alpha=2.0)
    results = []
    for enabled in (True, False):
        torch.manual_seed(1)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            results.append(task(x, y))
    half, full = results
    assert half["output"].dtype == torch.bfloat16
    assert half["loss"].dtype == half["divergence"].dtype == torch.float32
    for name in ("loss", "task_loss", "divergence"):
        torch.testing.assert_close(half[name], full[name], rtol=0.05, atol=0.001)
    gradients = [torch.autograd.grad(result["loss"], model.get_parameter("head.weight"))[0] for result in results]
    torch.testing.assert_close(*gradients, rtol=0.1, atol=0.01)


@pytest.mark.shows("timm", "checkpointing")
def test_activation_checkpointing_of_timm_changes_no_gradient() -> None:
    x, y = batch()
    gradients = []
    for enabled in (False, True):
        model: Any = network("test_vit", img_size=16, patch_size=8, proj_drop_rate=0.3)
        model.set_grad_checkpointing(enabled)
        torch.manual_seed(1)
        task_of(model, strategy="concat")(x, y)["loss"].backward()
        gradients.append([weight.grad for weight in model.parameters()])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


class Patches(nn.Module):
    """Takes a dictionary, as models for images of any shape do."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, C))

    def forward(self, x: dict[str, Tensor]) -> Tensor:
        valid = x["patch_valid"][..., None]
        out: Tensor = self.layers((x["patches"] * valid).sum(1) / valid.sum(1))
        return out


def test_a_dictionary_of_patches_is_a_batch() -> None:
    images = {"patches": torch.randn(6, 5, 4), "patch_valid": torch.rand(6, 5) > 0.2}
    result = task_of(Patches(), strategy="concat")(images, torch.arange(6) % C)
    assert result["output"].shape == (6, C)
    assert result["divergence"] > 0


# What is timm's


@pytest.mark.shows("timm", "BatchNorm")
@pytest.mark.parametrize("strategy", ["auto", "concat", "sequential"])
def test_batch_norm_moves_as_in_a_plain_step(strategy: Any) -> None:
    """The network has BatchNorm below its only dropout."""
    x, y = batch()
    ours, plain = network(), network()
    task_of(ours, strategy=strategy)(x, y)
    ClassificationTask(plain, nn.CrossEntropyLoss())(x, y)
    buffers = dict(plain.named_buffers())
    assert buffers
    for name, value in ours.named_buffers():
        torch.testing.assert_close(value, buffers[name], rtol=1e-4, atol=1e-5)


def flops(call: Callable[[], Any]) -> int:
    with FlopCounterMode(display=False) as counter:
        call()
    return int(counter.get_total_flops())


def step(task: ClassificationTask, x: Tensor, y: Tensor) -> None:
    task(x, y)["loss"].backward()


def test_what_is_below_the_dropout_runs_once_also_in_one_forward_of_several_processes(process_group: None) -> None:
    x, y = batch()
    alone, plain = task_of(network()), ClassificationTask(network(), nn.CrossEntropyLoss())
    wrapped = task_of(network()).prepare_distributed()
    results, costs = [], []
    for task in (alone, wrapped):
        task(x, y)  # the first call looks what is cheapest
        torch.manual_seed(1)
        results.append(task(x, y))
        results[-1]["loss"].backward()
        costs.append(flops(partial(step, task, x, y)))
    assert explain_passes(network(), x).strategy == "shared"
    assert max(costs) < 1.1 * flops(partial(step, plain, x, y))
    assert results[0]["divergence"] > 0
    for name, value in results[0].items():
        assert torch.equal(results[1][name], value)
    for one, other in zip(alone.parameters(), wrapped.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)


def test_a_model_that_is_wrapped_already_doubles_its_batch(process_group: None) -> None:
    model = nn.parallel.DistributedDataParallel(network())
    seen: list[int] = []
    model.module.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    task_of(model)(*batch())["loss"].backward()
    assert seen == [16]


def small_network() -> nn.Module:
    torch.manual_seed(0)
    convolution = nn.Conv2d(3, 4, 3, stride=4)
    return nn.Sequential(convolution, nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Dropout(0.5), nn.Linear(64, C))


@pytest.mark.shows("timm", "compiled")
def test_a_compiled_task_has_the_numbers_of_another(process_group: None) -> None:
    x, y = batch()
    ours, theirs = task_of(small_network(), strategy="concat"), task_of(small_network())
    theirs.compile(backend="aot_eager")
    theirs.prepare_distributed()
    results = []
    for task in (ours, theirs):
        torch.manual_seed(1)
        results.append(task(x, y))
        results[-1]["loss"].backward()
    for name, value in results[0].items():
        torch.testing.assert_close(results[1][name], value, rtol=1e-4, atol=1e-5)
    model: Any = theirs.get_eval_model()
    with torch.no_grad():
        assert model.eval()(x).shape == (8, C)


@pytest.mark.shows("timm", "evaluation")
def test_evaluation_is_one_pass_of_the_model(process_group: None) -> None:
    x, y = rows()
    model = Classifier()
    task = task_of(model)
    assert task.get_eval_model() is model
    task.prepare_distributed()
    evaluated: Any = task.get_eval_model()
    evaluated.eval()
    with torch.no_grad():
        expected = model(x)
        assert torch.equal(evaluated(x), expected)
        result = task(x, y)
    assert torch.equal(result["output"], expected)
    torch.testing.assert_close(result["loss"], F.cross_entropy(expected, y))
    assert model.seen == [(B, False)] * 3


def test_checkpoints_and_the_average_of_weights_have_the_keys_of_the_model(process_group: None) -> None:
    model = small_network()
    names = list(model.state_dict())
    task = task_of(model)
    task.setup_ema(decay=0.75)
    task.compile(backend="eager")
    task.prepare_distributed()
    train(task, *batch(), steps=1)
    state = task.get_checkpoint_state() | task.get_checkpoint_state(ema=True)
    assert set(state) == {"state_dict", "state_dict_ema", "task_state"}
    assert list(state["state_dict"]) == list(state["state_dict_ema"]) == names
    head = model.get_parameter("5.weight")
    trained = head.detach().clone()
    assert torch.equal(state["state_dict_ema"]["5.weight"], trained)  # timm's first update is a copy
    head.data += 1
    task.update_ema(step=2)
    average = task.get_checkpoint_state(ema=True)["state_dict_ema"]
    torch.testing.assert_close(average["5.weight"], trained + 0.25)


def test_a_checkpoint_of_timm_goes_on_at_its_update_in_either_task(tmp_path: Path) -> None:
    task = task_of(Classifier(), strategy="sequential")
    optimizer = torch.optim.SGD(task.parameters(), lr=0.1)
    saver = CheckpointSaver(task.get_trainable_module(), optimizer, checkpoint_dir=str(tmp_path), task=task)  # type: ignore[no-untyped-call]
    train(task, *rows())
    saver.save_checkpoint(4)  # type: ignore[no-untyped-call]
    model = Classifier()
    model.head.weight.data.zero_()
    again = task_of(model)
    assert resume_task_checkpoint(again, str(tmp_path / "last.pth.tar"), optimizer) == 5
    assert again.num_updates == 3
    plain = ClassificationTask(Classifier(), nn.CrossEntropyLoss())
    resume_task_checkpoint(plain, str(tmp_path / "last.pth.tar"))
    trained: Any = task.get_trainable_module()
    for other in (again, plain):
        assert_weights(other.get_checkpoint_state()["state_dict"], trained.state_dict())
    before = again.num_updates
    again.load_checkpoint_state(trained.state_dict(), plain.get_task_state() or None)
    assert again.num_updates == before


# Several processes, and the script


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("pictures")
    class_folders(folder / "train", 6)
    class_folders(folder / "validation", 3, start=50)
    return str(folder)


@pytest.mark.shows("timm", "processes")
def test_two_processes_train_as_one_and_run_the_script(pictures: str, tmp_path: Path, free_port: int) -> None:
    store = str(tmp_path / "store")
    spawn(worker, args=(store, free_port, pictures), nprocs=RANKS)  # type: ignore[no-untyped-call]
    expected = by_the_formulas(JOBS["two passes"])
    for rank in range(RANKS):
        assert_weights(load_file(f"{store}-{rank}"), {name: expected[name] for name in sorted(expected)})
    accuracies = [load_file(f"{store}-accuracy-{rank}")["accuracy"].item() for rank in range(RANKS)]
    assert accuracies[0] == accuracies[1]
    state = torch.load(Path(f"{store}-output") / "last.pth.tar", weights_only=True)
    assert list(state["state_dict"]) == list(network().state_dict())


SHORT = ["--model", "test_resnet", "--img-size", "32", "--workers", "0", "--device", "cpu", "--batch-size", "8"]


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # of timm's reader
def test_the_script_trains_resumes_and_averages(pictures: str, tmp_path: Path, capsys: Any) -> None:
    main = runpy.run_path(str(SCRIPT))["main"]
    words = [pictures, *SHORT, "--output", str(tmp_path), "--model-ema-decay", "0.5", "--mixup", "0.2", "--amp"]
    words += ["--alpha", "2", "--alpha-schedule", "learning_rate", "--drop", "0.5"]
    main([*words, "--epochs", "1"])
    accuracy = main([*words, "--epochs", "2", "--resume", str(tmp_path / "last.pth.tar")])
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("epoch 1: loss ")
    assert second.startswith("epoch 2: loss ")
    assert second.endswith(f"accuracy {accuracy:.2f}%")
    assert float(second.split("divergence ")[1].split(",")[0]) > 0
    state = torch.load(tmp_path / "last.pth.tar", weights_only=True)
    assert state["task_state"] == {"num_updates": 2 * 3}


@pytest.mark.shows("timm", "plain")
@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
def test_the_script_with_alpha_0_is_plain_training(pictures: str, tmp_path: Path, capsys: Any) -> None:
    """The same weights as a loop around timm's own task."""
    script = runpy.run_path(str(SCRIPT))
    words = [pictures, *SHORT, "--output", str(tmp_path), "--epochs", "1", "--alpha", "0"]
    script["main"](words)
    assert "divergence 0.0000," in capsys.readouterr().out

    class PlainTask(ClassificationTask):
        """Gives the names that the script prints."""

        def __init__(self, *args: Any, rdrop: RDropConfig, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)

        def forward(self, input: Tensor, target: Tensor) -> dict[str, Tensor]:
            result = super().forward(input, target)
            return result | {"task_loss": result["loss"], "divergence": torch.zeros(())}

    found = torch.load(tmp_path / "last.pth.tar", weights_only=True)["state_dict"]
    script["main"].__globals__["RDropTask"] = PlainTask
    script["main"](words)
    expected = torch.load(tmp_path / "last.pth.tar", weights_only=True)["state_dict"]
    assert_weights(found, expected)


def test_the_script_says_which_folder_is_missing(pictures: str, capsys: Any) -> None:
    with pytest.raises(SystemExit):
        runpy.run_path(str(SCRIPT))["main"]([pictures + "/train"])
    assert "/train has no folder train and no folder validation; expected train" in capsys.readouterr().err


# Alpha over the updates


@pytest.mark.shows("timm", "schedule")
def test_alpha_follows_its_schedule_by_the_updates_that_timm_tells() -> None:
    x, y = rows()
    task = task_of(Classifier(), alpha=2.0, strategy="sequential")
    assert task.alpha == 2.0
    task.schedule = schedule.linear_warmup(2.0, steps=4)
    seen = []
    for step in range(3):
        result = task(x, y)
        ratio = (result["loss"] - result["task_loss"]) / result["divergence"]
        seen.append((task.alpha, round(ratio.item(), 3)))
        task.update_ema(step=step + 1)
    assert seen == [(0.0, 0.0), (0.5, 0.5), (1.0, 1.0)]
    task.update_ema()
    assert task.num_updates == 4


def test_passes_are_made_in_each_kth_update_alone() -> None:
    model = Classifier()
    task = task_of(model, every=3, strategy="sequential")
    train(task, *rows(), steps=4, micro_batches=2)
    assert [rows for rows, _ in model.seen] == [B // 2] * (4 + 2 + 2 + 4)


def test_a_loop_that_tells_no_updates_is_refused_where_they_matter() -> None:
    x, y = rows()
    task = task_of(Classifier(), every=2, strategy="sequential")
    optimizer = torch.optim.SGD(task.parameters(), lr=0.1)
    for _ in range(2):  # micro-batches
        task(x, y)["loss"].backward()
    optimizer.step()
    with pytest.raises(RuntimeError, match=r"the weights have been updated, but the task was not told.*update_ema"):
        task(x, y)
    task.update_ema(step=1)
    task(x, y)
    constant = task_of(Classifier(), strategy="sequential")
    for _ in range(2):
        constant(x, y)["loss"].backward()
        torch.optim.SGD(constant.parameters(), lr=0.1).step()


# Warnings and errors


@pytest.mark.shows("timm", "no effect")
def test_dropout_that_is_off_is_spoken_of() -> None:
    with pytest.warns(NoEffectWarning, match=r"R-Drop has no effect on ResNet.*set_dropout"):
        task_of(network(drop_rate=0.0))(*batch())
    with pytest.warns(NoEffectWarning, match="it is in evaluation mode"):
        task_of(network().eval())(*batch())


def test_dropout_that_is_off_is_spoken_of_inside_of_several_processes(process_group: None) -> None:
    task = task_of(network(drop_rate=0.0)).prepare_distributed()
    with pytest.warns(NoEffectWarning, match="R-Drop has no effect on ResNet"):
        task(*batch())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"schedule": "warmup"}, r"schedule is 'warmup'; expected 'constant'.*task.schedule = "),
        ({"linear_head": True}, "linear_head is True, which is for language models"),
        ({"branch_at": "-9"}, "branch_at is -9, but Classifier has 0 blocks"),
    ],
)
def test_what_a_task_cannot_do_is_refused(options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        task_of(Classifier(), **options)


@pytest.mark.parametrize("criterion", [BinaryCrossEntropy(), nn.BCEWithLogitsLoss()])
def test_independent_classes_are_not_tied_by_a_softmax(criterion: nn.Module) -> None:
    with pytest.raises(ValueError, match=rf"kind is 'categorical', but {type(criterion).__name__}.*kind='binary'"):
        RDropTask(Classifier(), criterion, rdrop=RDropConfig())


@pytest.mark.skipif(not hasattr(timm.task, "MultiLabelClassificationTask"), reason="timm is older")
def test_several_labels_with_the_evaluator_of_timm() -> None:
    class MultiLabelTask(RDropTask, timm.task.MultiLabelClassificationTask):
        pass

    x, labels = rows()[0], SOFT.gt(SOFT.median()).float()
    with pytest.raises(ValueError, match="kind is 'categorical', but AsymmetricLossMultiLabel"):
        MultiLabelTask(Classifier(), criterion_kwargs={"loss_type": "asl"}, rdrop=RDropConfig())
    task = MultiLabelTask(Classifier(), threshold=0.3, rdrop=RDropConfig(kind="binary", strategy="sequential"))
    result = task(x, labels)
    model = Classifier()
    scores = torch.stack([model(x), model(x)])
    task_loss = F.binary_cross_entropy_with_logits(scores, labels.expand_as(scores))
    torch.testing.assert_close(result["task_loss"], task_loss)
    torch.testing.assert_close(result["divergence"], rdrop_loss(scores, None, kind="binary").divergence)
    evaluator = task.create_evaluator()  # type: ignore[no-untyped-call]
    evaluator.update(result["output"], labels)
    assert "map" in evaluator.compute()


def test_batch_norm_of_parts_of_a_batch_needs_passes_in_turn() -> None:
    x, y = batch()

    def split() -> nn.Module:
        model: nn.Module = convert_splitbn_model(network(), 2)  # type: ignore[no-untyped-call]
        return model

    for strategy in ("auto", "concat"):
        with pytest.raises(ValueError, match=f"strategy is '{strategy}', and the model has SplitBatchNorm2d"):
            task_of(split(), strategy=strategy)
    ours, plain = split(), split()
    task_of(ours, strategy="sequential")(x, y)
    ClassificationTask(plain, nn.CrossEntropyLoss())(x, y)
    buffers = dict(plain.named_buffers())
    for name, value in ours.named_buffers():
        torch.testing.assert_close(value, buffers[name])


class Two(nn.Module):
    """Gives more than logits."""

    def __init__(self) -> None:
        super().__init__()
        self.model = nn.Sequential(nn.Dropout(0.5), nn.Linear(4, C))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.model(x), x


def test_a_model_that_gives_more_than_logits_is_refused() -> None:
    with pytest.raises(TypeError, match="the model gave a tuple; expected its logits"):
        task_of(Two())(torch.randn(3, 4), torch.arange(3))


@pytest.mark.parametrize("module", [None, ModuleType("timm.task")], ids=["no tasks", "older tasks"])
def test_an_older_timm_is_told_what_to_do(module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    if module is not None:
        module.ClassificationTask = nn.Module
    monkeypatch.setitem(sys.modules, "timm.task", module)
    monkeypatch.delitem(sys.modules, "rdrop.integrations.timm")
    with pytest.raises(ImportError, match=rf"needs timm 1.0.27 or newer.*found {timm.__version__}.*pip install"):
        importlib.import_module("rdrop.integrations.timm")
