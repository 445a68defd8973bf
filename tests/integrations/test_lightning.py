"""A LightningModule as it is: steps are those of a loop by hand, and all but the training step is Lightning's own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.cli import LightningCLI
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset, TensorDataset
from torchmetrics import MeanMetric, SumMetric

from lightning_host import QUIET, Tagging
from rdrop import NoEffectWarning, divergence, forward_passes
from rdrop.integrations.lightning import RDropCallback, RDropConfig
from tagging import B, Tagger, sentences

GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(32, 8, generator=GENERATOR)
Y = torch.randint(3, (32,), generator=GENERATOR)
CONCAT = RDropConfig(alpha=2.0, strategy="concat")


class Network(nn.Sequential):
    """Counts the rows that it is given."""

    def __init__(self, dropout: float = 0.5) -> None:
        torch.manual_seed(0)
        super().__init__(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(dropout), nn.Linear(16, 3))
        self.rows: list[int] = []

    def forward(self, input: Tensor) -> Tensor:
        self.rows.append(len(input))
        found: Tensor = super().forward(input)  # type: ignore[no-untyped-call]
        return found


class Classifier(LightningModule):
    """In the style of Lightning's own examples."""

    def __init__(self, dropout: float = 0.5) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.model = Network(dropout)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.model(x)
        return found

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        x, y = batch
        loss = F.cross_entropy(self.model(x), y)
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)]


class CallsItself(Classifier):
    def training_step(self, batch: Any) -> Any:  # type: ignore[override]
        return {"loss": F.cross_entropy(self(batch[0]), batch[1]), "seen": len(batch[0])}


class BackboneAndHead(Classifier):
    def __init__(self, dropout: float = 0.5, backbone_dropout: float = 0.0) -> None:
        super().__init__(dropout)
        self.backbone = nn.Sequential(nn.Linear(8, 8), nn.Dropout(backbone_dropout))

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return F.cross_entropy(self.model(self.backbone(batch[0])), batch[1])


class WithCriterion(Classifier):
    def __init__(self) -> None:
        super().__init__()
        self.criterion = nn.CrossEntropyLoss()

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return self.criterion(self.model(batch[0]), batch[1])


class Judge(MeanMetric):
    """A metric with a network in it."""

    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Linear(8, 1)

    def update(self, value: Tensor) -> None:  # type: ignore[override]
        super().update(self.network(value))


class Seeds(Callback):
    """The random numbers of a training step are known."""

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        torch.manual_seed(100 + trainer.global_step)


class Logged(Callback):
    """What was logged in each step, and what the last one returned."""

    def __init__(self) -> None:
        self.steps: list[dict[str, float]] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *_: Any) -> None:
        self.outputs = outputs
        self.steps.append({name: float(value) for name, value in trainer.callback_metrics.items()})


def loader(batch_size: int = 16) -> DataLoader[Any]:
    return DataLoader(TensorDataset(X, Y), batch_size=batch_size)


def fitted(module: Any, callback: RDropCallback | None, *, data: Any = None, **options: Any) -> Trainer:
    callbacks = [Seeds(), *options.pop("callbacks", []), *([] if callback is None else [callback])]
    options = {"max_steps": 3, **QUIET, **options}
    trainer = Trainer(callbacks=callbacks, **options)
    trainer.fit(module, loader() if data is None else data)
    return trainer


def by_hand(
    model: nn.Module, alpha: Callable[[int], float] = lambda step: 2.0, clip: float | None = None, steps: int = 3
) -> None:
    """Lightning's three steps: two epochs of two batches, of which the learning rate is halved after the first."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model.train()
    for step in range(steps):
        first = 16 * (step % 2)
        x, y = X[first : first + 16], Y[first : first + 16]
        torch.manual_seed(100 + step)
        logits = forward_passes(model, x, strategy="concat")
        task_loss = torch.stack([F.cross_entropy(each, y) for each in logits]).mean()
        optimizer.param_groups[0]["lr"] = 0.1 * 0.5 ** (step // 2)
        optimizer.zero_grad()
        (task_loss + alpha(step) * divergence(logits)).backward()  # type: ignore[no-untyped-call]
        if clip is not None:
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()


def assert_same(model: nn.Module, expected: nn.Module, atol: float = 1e-6) -> None:
    for name, value in expected.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], value, rtol=0, atol=atol, msg=name)


@pytest.mark.shows("Lightning", "steps", "BatchNorm")
@pytest.mark.parametrize("module", [Classifier, CallsItself])
def test_steps_are_those_of_a_loop_by_hand(module: type[Classifier]) -> None:
    lit, model, log = module(), Network(), Logged()
    fitted(lit, RDropCallback(CONCAT), callbacks=[log])
    by_hand(model)
    assert_same(lit.model, model)  # running statistics too
    assert lit.model.rows == [32, 32, 32]
    last = log.steps[-1]
    assert log.outputs["loss"].item() == pytest.approx(last["task_loss"] + 2.0 * last["divergence"])
    assert log.outputs.get("seen") == (16 if module is CallsItself else None)


class Rows(LightningDataModule):
    def train_dataloader(self) -> Any:
        return loader()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of Lightning's own calls of jsonargparse
def test_a_command_line_of_lightning_takes_it_without_a_change_to_the_program(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def program(*arguments: str) -> Any:
        monkeypatch.setattr("sys.argv", ["train.py", *arguments])
        return LightningCLI(Classifier, Rows, run=False, save_config_callback=None)

    options = ["--seed_everything=1"]
    options += [f"--trainer.{name}={str(value).lower()}" for name, value in {**QUIET, "max_steps": 3}.items()]
    options += ["--trainer.callbacks+=rdrop.integrations.lightning.RDropCallback"]
    cli = program(*options, "--trainer.callbacks.rdrop.alpha=2.0", "--trainer.callbacks.rdrop.strategy=concat")
    settings = tmp_path / "settings.yaml"
    settings.write_text(cli.parser.dump(cli.config))
    again = program("--config", str(settings))
    module = Classifier()
    torch.manual_seed(1)
    Trainer(callbacks=[RDropCallback(CONCAT)], max_steps=3, **QUIET).fit(module, loader())
    for each in (cli, again):
        assert [callback.rdrop for callback in each.trainer.callbacks if isinstance(callback, RDropCallback)] == [
            CONCAT
        ]
        torch.manual_seed(1)
        each.trainer.fit(each.model, each.datamodule)
        assert_same(each.model, module)


def test_gradients_are_clipped_as_of_one_loss() -> None:
    lit, model = Classifier(), Network()
    fitted(lit, RDropCallback(CONCAT), gradient_clip_val=0.1)
    by_hand(model, clip=0.1)
    assert_same(lit.model, model)


@pytest.mark.shows("Lightning", "mixed precision")
def test_mixed_precision_is_that_of_autocast() -> None:
    lit, model, single = Classifier(), Network(), Network()
    fitted(lit, RDropCallback(CONCAT), precision="bf16-mixed", max_steps=1)
    with torch.autocast("cpu", torch.bfloat16):
        by_hand(model, steps=1)
    by_hand(single, steps=1)
    assert_same(lit.model, model)
    with pytest.raises(AssertionError):
        assert_same(lit.model, single)


@pytest.mark.shows("Lightning", "own loss")
def test_a_step_of_several_networks_gives_each_pass_its_own_features() -> None:
    lit, same = BackboneAndHead(), BackboneAndHead()
    fitted(lit, RDropCallback(CONCAT, network="model"), max_steps=1)
    torch.manual_seed(100)
    features = forward_passes(same.backbone.eval(), X[:16], passes=1)[0]
    logits = torch.stack([same.model(features), same.model(features)])
    losses = torch.stack([F.cross_entropy(each, Y[:16]) for each in logits])
    optimizer = same.configure_optimizers()[0][0]
    (losses.mean() + 2.0 * divergence(logits)).backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    for weight, expected in zip(lit.parameters(), same.parameters(), strict=True):
        torch.testing.assert_close(weight, expected, rtol=0, atol=1e-6)


def test_accumulation_is_the_mean_over_micro_batches() -> None:
    """Lightning divides by their number, however many labels count in each."""
    lit, model = Tagging(Tagger(by_row=2), rate=0.5, count=1.0), Tagger(by_row=2)
    rows: Any = sentences()
    callback = RDropCallback(RDropConfig(strategy="sequential"), labels="labels")
    data = DataLoader(rows, batch_size=8)
    fitted(lit, callback, data=data, accumulate_grad_batches=4, max_steps=1)
    total = torch.zeros(())
    for batch in data:
        scores = [model(batch["words"], batch["row"])["logits"] for _ in range(2)]
        losses = [F.cross_entropy(z.flatten(0, 1), batch["labels"].flatten(), reduction="sum") for z in scores]
        tied = divergence(torch.stack(scores), mask=batch["labels"] != -100)
        total = total + (torch.stack(losses).mean() + tied) / 4
    weights = list(model.parameters())
    for weight, gradient in zip(weights, torch.autograd.grad(total, weights), strict=True):
        weight.data -= 0.5 * gradient
    assert_same(lit.model, model, atol=1e-5)


@pytest.mark.shows("Lightning", "log")
def test_the_log_has_the_parts_and_counts_the_first_pass_of_what_a_step_logs() -> None:
    class Logging(Classifier):
        def __init__(self) -> None:
            super().__init__()
            self.rows, self.mean, self.judge = SumMetric(), MeanMetric(), Judge()
            self.losses: list[float] = []

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            loss = super().training_step(batch, batch_idx)
            self.losses.append(loss.item())
            self.rows(len(batch[0]))
            self.mean.update(loss)
            self.judge(batch[0])
            self.log_dict({"rows": self.rows, "mean": self.mean}, on_step=False, on_epoch=True)
            self.log("times", 1.0, on_step=False, on_epoch=True, reduce_fx="sum")
            return loss

    lit, log = Logging(), Logged()
    trainer = fitted(lit, RDropCallback(CONCAT), callbacks=[log], max_epochs=1, max_steps=-1)
    assert len(lit.losses) == 4
    assert lit.judge.weight == 32
    for step, logged in enumerate(log.steps):
        first, second = lit.losses[2 * step : 2 * step + 2]
        assert logged["train_loss"] == pytest.approx(first)
        assert logged["task_loss"] == pytest.approx((first + second) / 2)
        assert logged["alpha"] == 2.0
        assert logged["divergence"] > 0
    found = {name: float(value) for name, value in trainer.callback_metrics.items()}
    assert found["rows"] == 32
    assert found["times"] == 2
    assert found["mean"] == pytest.approx((lit.losses[0] + lit.losses[2]) / 2)


@pytest.mark.shows("Lightning", "evaluation")
def test_validation_and_the_module_are_lightnings_own() -> None:
    class Validated(Classifier):
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log("val_loss", F.cross_entropy(self.model(batch[0]), batch[1]))

    lit, plain = Validated(), Validated()
    keys, attributes = list(lit.state_dict()), set(vars(lit))
    trainer = Trainer(callbacks=[RDropCallback(CONCAT)], max_epochs=1, **QUIET)
    trainer.fit(lit, loader(), loader(32))
    assert lit.model.rows == [32, 32, 32, 32]  # a check before training, two steps of 16 rows, a validation
    assert list(lit.state_dict()) == keys
    assert set(vars(lit)) == attributes
    (found,) = trainer.validate(lit, loader(8), verbose=False)
    assert lit.model.rows[4:] == [8, 8, 8, 8]
    plain.load_state_dict(lit.state_dict())
    with torch.no_grad():
        assert found["val_loss"] == pytest.approx(F.cross_entropy(plain.eval()(X), Y).item(), rel=1e-5)


def test_the_module_is_as_it_was_after_an_error() -> None:
    class Failing(Classifier):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            self.model(batch[0])
            raise KeyError

    lit = Failing()
    with pytest.raises(KeyError):
        fitted(lit, RDropCallback(CONCAT))
    assert "training_step" not in vars(lit)
    assert "forward" not in vars(lit.model)


@pytest.mark.shows("Lightning", "resume", "schedule")
def test_a_training_that_is_resumed_is_that_which_was_not_interrupted(tmp_path: Path) -> None:
    rdrop = RDropConfig(alpha=2.0, schedule="linear_decay", strategy="concat")
    whole, first, second = Classifier(), Classifier(), Classifier()
    fitted(whole, RDropCallback(rdrop), max_epochs=3, max_steps=-1)

    class Stop(Callback):
        def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
            trainer.save_checkpoint(tmp_path / "epoch.ckpt")
            trainer.should_stop = True

    fitted(first, RDropCallback(rdrop), callbacks=[Stop()], max_epochs=3, max_steps=-1)
    trainer = Trainer(callbacks=[Seeds(), RDropCallback(rdrop)], max_epochs=3, **QUIET)
    trainer.fit(second, loader(), ckpt_path=tmp_path / "epoch.ckpt")
    assert trainer.global_step == 6
    assert_same(second.model, whole.model)
    kept = torch.load(tmp_path / "epoch.ckpt", weights_only=True)
    assert kept["state_dict"].keys() == Classifier().state_dict().keys()
    assert kept["hyper_parameters"] == {"dropout": 0.5}
    assert Classifier.load_from_checkpoint(tmp_path / "epoch.ckpt").model[3].p == 0.5


@pytest.mark.shows("Lightning", "schedule")
def test_alpha_follows_the_optimizer_steps_of_lightning() -> None:
    log, lit, model = Logged(), Classifier(), Network()
    rdrop = RDropConfig(alpha=2.0, schedule="linear_decay", strategy="concat")
    fitted(lit, RDropCallback(rdrop), callbacks=[log], max_steps=4)
    assert [logged["alpha"] for logged in log.steps] == [2.0, 1.5, 1.0, 0.5]
    by_hand(model, alpha=lambda step: 2.0 - step / 2, steps=4)
    assert_same(lit.model, model)


def test_alpha_stays_the_same_in_all_micro_batches_of_a_step() -> None:
    log = Logged()
    rdrop = RDropConfig(alpha=2.0, schedule="linear_decay")
    fitted(Classifier(), RDropCallback(rdrop), callbacks=[log], max_steps=2, accumulate_grad_batches=2)
    assert [logged["alpha"] for logged in log.steps] == [2.0, 2.0, 1.0, 1.0]


def test_alpha_follows_the_learning_rate() -> None:
    log = Logged()
    fitted(Classifier(), RDropCallback(RDropConfig(schedule="learning_rate")), callbacks=[log], max_steps=4)
    assert [logged["alpha"] for logged in log.steps] == [1.0, 1.0, 0.5, 0.5]


def test_every_other_step_is_a_plain_one() -> None:
    lit, log = Classifier(), Logged()
    fitted(lit, RDropCallback(RDropConfig(every=2, strategy="concat")), callbacks=[log], max_steps=4)
    assert lit.model.rows == [32, 16, 32, 16]
    assert log.steps[1]["task_loss"] == pytest.approx(log.steps[1]["train_loss"])


@pytest.mark.shows("Lightning", "plain")
def test_one_pass_is_plain_training() -> None:
    plain, lit = Classifier(), Classifier()
    fitted(plain, None)
    fitted(lit, RDropCallback(RDropConfig(passes=1)))
    assert_same(lit, plain, atol=0.0)


@pytest.mark.shows("Lightning", "cheaper")
def test_some_rows_stand_for_all() -> None:
    log = Logged()
    rdrop = RDropConfig(alpha=1.0, fraction=0.25, strategy="concat")
    lit, model = WithCriterion(), Network()
    fitted(lit, RDropCallback(rdrop), callbacks=[log], max_steps=1)
    torch.manual_seed(100)
    logits = forward_passes(model, X[:16], fraction=0.25, strategy="concat")
    assert lit.model.rows == [20]
    assert log.steps[0]["divergence"] == pytest.approx(4 * divergence(logits).item(), rel=1e-5)


@pytest.mark.shows("Lightning", "cheaper")
def test_one_sided_passes_are_those_of_a_loop_by_hand() -> None:
    lit, model = Classifier(), Network()
    fitted(lit, RDropCallback(RDropConfig(one_sided=True, strategy="sequential")), max_steps=1)
    torch.manual_seed(100)
    logits = forward_passes(model, X[:16], one_sided=True, strategy="sequential")
    loss = torch.stack([F.cross_entropy(each, Y[:16]) for each in logits]).mean() + divergence(logits)
    for weight, gradient in zip(model.parameters(), torch.autograd.grad(loss, list(model.parameters())), strict=True):
        weight.data -= 0.1 * gradient
    assert_same(lit.model, model)


def test_a_part_of_a_part_is_found_by_itself() -> None:
    class InParts(Classifier):
        def __init__(self) -> None:
            super().__init__()
            self.parts = nn.ModuleDict({"nets": nn.ModuleList([self.model])})
            del self.model

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            parts: Any = self.parts
            return F.cross_entropy(parts["nets"][0](batch[0]), batch[1])

    lit, model = InParts(), Network()
    fitted(lit, RDropCallback(CONCAT))
    by_hand(model)
    parts: Any = lit.parts
    assert_same(parts["nets"][0], model)


@pytest.mark.shows("Lightning", "cheaper")
def test_a_block_is_named_in_the_network_that_is_called() -> None:
    log = Logged()
    fitted(Classifier(), RDropCallback(RDropConfig(branch_at="3")), callbacks=[log], max_steps=1)
    assert log.steps[0]["divergence"] > 0
    with pytest.raises(ValueError, match="branch_at is -9, but Network has 3 blocks"):
        fitted(Classifier(), RDropCallback(RDropConfig(branch_at="-9")))


@pytest.mark.shows("Lightning", "masks", "own loss")
def test_a_model_that_makes_its_own_loss_is_tied_at_the_labels_that_count() -> None:
    """As models of transformers do: the loss is among what the network returns."""

    class WithLoss(Tagging):
        def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
            loss: Tensor = self.model(**batch)["loss"]
            return loss

    rows: Any = sentences()
    log = Logged()
    callback = RDropCallback(RDropConfig(strategy="sequential"), labels="labels")
    data = DataLoader(rows, batch_size=B)
    fitted(WithLoss(Tagger(by_row=2), 0.5, 1.0), callback, data=data, callbacks=[log], max_steps=1)
    (batch,) = data
    model = Tagger(by_row=2)
    found = [model(**batch) for _ in range(2)]
    tied = divergence(torch.stack([each["logits"] for each in found]), mask=batch["labels"] != -100)
    assert log.steps[0]["divergence"] == pytest.approx(tied.item())
    assert log.steps[0]["task_loss"] == pytest.approx(sum(each["loss"].item() for each in found) / 2)


class Pixels(Classifier):
    """Classes on axis 1, as torch's cross-entropy has them."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Dropout(0.5), nn.Conv2d(1, 3, 1))  # type: ignore[assignment]


PIXELS: DataLoader[Any] = DataLoader(
    TensorDataset(torch.ones(2, 1, 4, 5), torch.arange(20).view(1, 4, 5).expand(2, 4, 5) % 3), batch_size=2
)


@pytest.mark.parametrize("labels", [1, lambda batch: batch[1] >= 0], ids=["ids", "mask"])
def test_classes_on_axis_1_are_tied_as_classes(labels: Any) -> None:
    log = Logged()
    callback = RDropCallback(CONCAT, logits=lambda scores: scores.movedim(1, -1), labels=labels)
    fitted(Pixels(), callback, data=PIXELS, callbacks=[log], max_steps=1)
    model = Pixels().model
    torch.manual_seed(100)
    scores = forward_passes(model, torch.ones(2, 1, 4, 5), strategy="concat")
    assert log.steps[0]["divergence"] == pytest.approx(divergence(scores.movedim(2, -1)).item())


def test_numbers_are_tied_as_numbers() -> None:
    """The autoencoder of Lightning's own documentation: two modules, a squared error."""

    class AutoEncoder(Classifier):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.encoder = nn.Sequential(nn.Linear(8, 4), nn.Dropout(0.5))
            self.decoder = nn.Linear(4, 8)

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return F.mse_loss(self.decoder(self.encoder(batch[0])), batch[0])

    log = Logged()
    rdrop = RDropConfig(kind="regression", strategy="concat")
    fitted(AutoEncoder(), RDropCallback(rdrop, network="decoder"), callbacks=[log], max_steps=1)
    same = AutoEncoder()
    torch.manual_seed(100)
    answers = same.decoder(forward_passes(same.encoder, X[:16], strategy="concat"))
    assert log.steps[0]["divergence"] == pytest.approx(divergence(answers, kind="regression").item(), rel=1e-5)


def test_a_skipped_step_is_skipped() -> None:
    class Skipping(Classifier):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return None if batch_idx == 0 else super().training_step(batch, batch_idx)

    lit, log = Skipping(), Logged()
    with pytest.warns(match="`training_step` returned `None`"):
        fitted(lit, RDropCallback(CONCAT), callbacks=[log], max_epochs=1, max_steps=-1)
    assert "task_loss" not in log.steps[0]
    assert "task_loss" in log.steps[1]


def test_modules_of_pytorch_lightning_are_taken_too() -> None:
    pytorch_lightning: Any = pytest.importorskip("pytorch_lightning", minversion="2.6")

    class Theirs(pytorch_lightning.LightningModule):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.model = Network()

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return F.cross_entropy(self.model(batch[0]), batch[1])

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)

    lit, model = Theirs(), Network()
    callbacks: Any = [Seeds(), RDropCallback(CONCAT)]
    pytorch_lightning.Trainer(callbacks=callbacks, max_steps=2, **QUIET).fit(lit, loader())
    by_hand(model, steps=2)
    assert_same(lit.model, model)


@pytest.mark.shows("Lightning", "compiled")
def test_compiled_networks_are_trained_as_others() -> None:
    lit, model = Classifier(), Network()
    lit.model.compile(backend="eager")
    fitted(lit, RDropCallback(CONCAT))
    by_hand(model)
    for weight, expected in zip(lit.model.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(weight, expected, rtol=0, atol=1e-6)


@pytest.mark.shows("Lightning", "no effect")
def test_that_nothing_is_drawn_is_said() -> None:
    with pytest.warns(NoEffectWarning, match="has no effect on Network"):
        fitted(Classifier(dropout=0.0), RDropCallback(CONCAT))
    with pytest.warns(NoEffectWarning, match="has no effect on Network"):
        fitted(BackboneAndHead(dropout=0.0), RDropCallback(CONCAT, network="model"))


def test_that_dropout_does_not_reach_the_logits_is_said() -> None:
    class Aside(BackboneAndHead):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            self.backbone(batch[0])
            return F.cross_entropy(self.model(batch[0]), batch[1])

    with pytest.warns(NoEffectWarning, match="identical logits, although backbone draws"):
        fitted(Aside(dropout=0.0, backbone_dropout=0.5), RDropCallback(CONCAT, network="model"))


class ByHand(Classifier):
    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False


class FromIterator(Classifier):
    def training_step(self, dataloader_iter: Any) -> Any:  # type: ignore[override]
        raise AssertionError


class Endless(IterableDataset[Any]):
    def __iter__(self) -> Any:
        yield from zip(X, Y, strict=True)


@pytest.mark.filterwarnings("ignore:You are using the `dataloader_iter` step flavor")
@pytest.mark.parametrize(
    ("module", "callback", "message"),
    [
        (ByHand, RDropCallback(), "ByHand optimizes by hand"),
        (FromIterator, RDropCallback(), "training_step of FromIterator takes its batches from an iterator"),
        (
            Classifier,
            RDropCallback(network="net"),
            "network is 'net', which Classifier does not have; expected one of self, model",
        ),
        (BackboneAndHead, RDropCallback(CONCAT), r"calls backbone, model; expected one. .*RDropCallback\(network"),
        (CallsItself, RDropCallback(CONCAT, network="model"), "network is 'model', and training_step calls self"),
    ],
)
def test_what_cannot_be_trained_is_refused(module: Any, callback: RDropCallback, message: str) -> None:
    lit = module()
    with pytest.raises(ValueError, match=message):
        fitted(lit, callback)


@pytest.mark.parametrize(
    ("callback", "error", "message"),
    [
        (RDropCallback(CONCAT), ValueError, r"answers with logits \(2, 3, 4, 5\).* RDropCallback\(labels=1\)"),
        (RDropCallback(CONCAT, labels=1), ValueError, r"labels have shape \(2, 4, 5\), .*movedim\(1, -1\)"),
        (RDropCallback(CONCAT, labels=0), TypeError, "labels=0 leads to torch.float32; expected class ids"),
    ],
)
def test_positions_that_are_not_known_are_refused(callback: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        fitted(Pixels(), callback, data=PIXELS)


def test_a_compiled_training_step_is_refused() -> None:
    compiled: Any = torch.compile(Classifier(), backend="eager")
    with pytest.raises(ValueError, match=r"torch\.compile has the whole Classifier"):
        fitted(compiled, RDropCallback())


def test_a_schedule_without_an_end_is_refused() -> None:
    rdrop, data = RDropConfig(schedule="warmup"), DataLoader(Endless(), batch_size=8)
    with pytest.raises(ValueError, match="schedule is 'warmup', and it is not known how many steps"):
        fitted(Classifier(), RDropCallback(rdrop), data=data, max_epochs=-1, max_steps=-1)
