"""Train a model of timm on folders of pictures, one folder for each class, with R-Drop; alpha 0 is plain training.

The data set has the folders `train` and `validation`. One process for each device:

    python train_timm.py DATA --model resnet18 --drop 0.2 --alpha 1
    torchrun --nproc_per_node 2 train_timm.py DATA --model resnet18 --drop 0.2 --alpha 1

Everything but the task is timm's own: models, data, transforms, Mixup, losses, optimizers, schedules, checkpoints.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, get_args

import torch
from timm import utils
from timm.data import Mixup, create_dataset, create_loader, resolve_data_config
from timm.loss import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from timm.models import create_model
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.task import load_task_ema_checkpoint, resume_task_checkpoint
from torch import nn

from rdrop.integrations.timm import RDropConfig, RDropTask
from rdrop.schedule import Course, named


def arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    option = parser.add_argument
    option("data", type=Path, help="folder with train/CLASS/PICTURE and validation/CLASS/PICTURE")
    option("--alpha", type=float, default=1.0, help="weight of the divergence; 0: plain training, with one pass")
    option("--alpha-schedule", choices=get_args(Course), default="constant", help="course of alpha")
    option("--model", default="resnet18", help="name of a model of timm")
    option("--pretrained", action="store_true", help="start from the weights that timm has for it")
    option("--drop", type=float, default=0.1, help="dropout rate before the classifier")
    option("--drop-path", type=float, default=None, help="rate of stochastic depth")
    option("--img-size", type=int, help="side of the pictures in pixels; without it, the model's own")
    option("--epochs", type=int, default=10)
    option("--batch-size", type=int, default=32, help="of a process and a micro-batch")
    option("--grad-accum-steps", type=int, default=1, help="micro-batches of an update")
    option("--opt", default="adamw", help="optimizer")
    option("--lr", type=float, default=5e-4, help="learning rate")
    option("--weight-decay", type=float, default=0.05)
    option("--sched", default="cosine", help="schedule of the learning rate")
    option("--warmup-epochs", type=int, default=0)
    option("--smoothing", type=float, default=0.1, help="label smoothing")
    option("--mixup", type=float, default=0.0, help="alpha of Mixup")
    option("--cutmix", type=float, default=0.0, help="alpha of CutMix")
    option("--model-ema-decay", type=float, help="keep an average of the weights, and evaluate that")
    option("--amp", action="store_true", help="bfloat16 where it is safe")
    option("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    option("--workers", type=int, default=2, help="processes that read pictures")
    option("--seed", type=int, default=0)
    option("--output", type=Path, default=Path("output"), help="folder of the checkpoints")
    option("--resume", type=Path, help="checkpoint to go on from")
    args = parser.parse_args(words)
    missing = [name for name in ("train", "validation") if not (args.data / name).is_dir()]
    if missing:
        parser.error(f"{args.data} has no folder {' and no folder '.join(missing)}; expected train and validation")
    return args


def main(words: Sequence[str] | None = None) -> float:
    """Train, print a line for each epoch, and return the last accuracy in percent."""
    args = arguments(words)
    device = utils.init_distributed_device(args)
    utils.random_seed(args.seed, args.rank)

    train = create_dataset("", root=args.data, split="train", is_training=True)
    classes = train.reader.class_to_idx
    validation = create_dataset("", root=args.data, split="validation", class_map=classes)
    model = create_model(
        args.model,
        pretrained=args.pretrained,
        num_classes=len(classes),
        drop_rate=args.drop,
        drop_path_rate=args.drop_path,
    ).to(device)
    config = resolve_data_config({"img_size": args.img_size}, model=model)
    common: dict[str, Any] = {name: config[name] for name in ("input_size", "interpolation", "mean", "std")}
    common |= {"batch_size": args.batch_size, "num_workers": args.workers, "persistent_workers": args.workers > 0}
    common |= {"distributed": args.distributed, "use_prefetcher": False, "pin_memory": device.type == "cuda"}
    train_loader = create_loader(train, is_training=True, **common)
    validation_loader = create_loader(validation, crop_pct=config["crop_pct"], **common)

    mixup, criterion = None, nn.CrossEntropyLoss()
    if args.mixup or args.cutmix:
        mixup = Mixup(args.mixup, args.cutmix, label_smoothing=args.smoothing, num_classes=len(classes))
        criterion = SoftTargetCrossEntropy()
    elif args.smoothing:
        criterion = LabelSmoothingCrossEntropy(args.smoothing)

    rdrop = RDropConfig(alpha=args.alpha, passes=2 if args.alpha else 1)
    task = RDropTask(model, criterion, device=device, rdrop=rdrop)
    optimizer = create_optimizer_v2(model, opt=args.opt, lr=args.lr, weight_decay=args.weight_decay)
    updates_per_epoch = -(-len(train_loader) // args.grad_accum_steps)
    scheduler, epochs = create_scheduler_v2(
        optimizer,
        sched=args.sched,
        num_epochs=args.epochs,
        warmup_epochs=args.warmup_epochs,
        step_on_epochs=False,
        updates_per_epoch=updates_per_epoch,
    )
    task.schedule = named(args.alpha_schedule, args.alpha, epochs * updates_per_epoch, optimizer)
    start = (resume_task_checkpoint(task, args.resume, optimizer) or 0) if args.resume else 0
    if args.model_ema_decay:
        task.setup_ema(decay=args.model_ema_decay)
        if args.resume:
            load_task_ema_checkpoint(task, args.resume)
    if args.distributed:
        task.prepare_distributed(device_ids=None if device.type == "cpu" else [device])
    saver = None
    if utils.is_primary(args):
        args.output.mkdir(parents=True, exist_ok=True)
        saver = utils.CheckpointSaver(model, optimizer, checkpoint_dir=str(args.output), max_history=1, task=task)

    accuracy = 0.0
    for epoch in range(start, epochs):
        if args.distributed:
            train_loader.sampler.set_epoch(epoch)
        means = train_one_epoch(
            task, train_loader, optimizer, scheduler, mixup, device, args, epoch * updates_per_epoch
        )
        if args.distributed:
            utils.distribute_bn(model, args.world_size, reduce=True)
        accuracy = evaluate(task.get_eval_model(ema=task.has_ema()), validation_loader, device, args)
        if saver is not None:
            parts = ", ".join(f"{name} {mean.avg:.4f}" for name, mean in means.items())
            print(f"epoch {epoch + 1}: {parts}, accuracy {accuracy:.2f}%", flush=True)
            saver.save_checkpoint(epoch, metric=accuracy)
    if args.distributed:
        torch.distributed.destroy_process_group()
    return accuracy


def train_one_epoch(
    task: RDropTask,
    loader: Any,
    optimizer: torch.optim.Optimizer,
    scheduler: Any,
    mixup: Mixup | None,
    device: torch.device,
    args: argparse.Namespace,
    updates: int,
) -> dict[str, utils.AverageMeter]:
    """An epoch of updates, numbered from `updates` on; the means of the loss and its parts in this process."""
    task.get_trainable_module().train()
    means = {name: utils.AverageMeter() for name in ("loss", "task_loss", "divergence")}
    accumulate = args.grad_accum_steps
    for index, (images, target) in enumerate(loader):
        images, target = images.to(device), target.to(device)
        if mixup is not None:
            images, target = mixup(images, target)
        micro_batches = min(accumulate, len(loader) - index // accumulate * accumulate)
        is_last = (index + 1) % accumulate == 0 or index + 1 == len(loader)
        with nullcontext() if is_last else task.no_sync():
            with torch.autocast(device.type, torch.bfloat16, enabled=args.amp):
                result = task(images, target)
            (result["loss"] / micro_batches).backward()
        for name, mean in means.items():
            mean.update(result[name].item(), len(images))
        if is_last:
            optimizer.step()
            optimizer.zero_grad()
            updates += 1
            task.update_ema(step=updates)
            scheduler.step_update(updates)
    return means


@torch.inference_mode()
def evaluate(model: nn.Module, loader: Any, device: torch.device, args: argparse.Namespace) -> float:
    """Accuracy in percent over all processes; the sampler of several gives a few pictures twice, to fill them."""
    model.eval()
    mean = utils.AverageMeter()
    for images, target in loader:
        with torch.autocast(device.type, torch.bfloat16, enabled=args.amp):
            output = model(images.to(device))
        mean.update(utils.accuracy(output, target.to(device))[0].item(), len(images))
    totals = torch.tensor([mean.sum, mean.count], dtype=torch.float64, device=device)
    if args.distributed:
        torch.distributed.all_reduce(totals)
    return (totals[0] / totals[1]).item()


if __name__ == "__main__":
    main()
