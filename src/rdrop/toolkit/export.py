"""A trained model for other programs: a checked ONNX file, or a Hugging Face folder with a model card."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor, nn

from rdrop.errors import UserError
from rdrop.toolkit.single_run import EXAMPLE_FILE, MODEL_FOLDER, TrainingRecord, read_record, restore

ONNX_FILE = "model.onnx"
TOLERANCE = 1e-3
"""Largest difference of a logit, relative to the largest logit, that float32 on another engine may make."""
CITATION = """@inproceedings{liang2021rdrop,
  title     = {R-Drop: Regularized Dropout for Neural Networks},
  author    = {Liang, Xiaobo and Wu, Lijun and Li, Juntao and Wang, Yue and Meng, Qi and Qin, Tao and Chen, Wei and
               Zhang, Min and Liu, Tie-Yan},
  booktitle = {Advances in Neural Information Processing Systems},
  year      = {2021}
}"""


def export_hugging_face(run: Path, out: Path) -> str:
    """Copies the model of a run into a folder that can be published: safetensors, processor, model card.

    Args:
        run: The folder of `rdrop train`.
        out: The new folder.

    Returns:
        A sentence about what was written.

    Raises:
        UserError: The run is not finished, or the folder exists.
    """
    record = read_record(run)
    with _new_folder(out):
        for path in sorted((run / MODEL_FOLDER).iterdir()):
            if path.name != EXAMPLE_FILE:
                shutil.copy(path, out / path.name)
        (out / "README.md").write_text(model_card(record), encoding="utf-8")
        (out / "recipe.yaml").write_text(
            yaml.safe_dump(record.recipe, sort_keys=False, allow_unicode=True), encoding="utf-8"
        )
    return f"{out}: {', '.join(sorted(path.name for path in out.iterdir()))}"


def model_card(record: TrainingRecord) -> str:
    """The model card of a run: how it was trained, on what, its metrics, limits and citation.

    Its head is the YAML that the Hugging Face hub reads.
    """
    head: dict[str, Any] = {
        "tags": ["r-drop", record.task],
        "library_name": "rdrop",
        "metrics": [metric.name for metric in record.metrics if metric.name in record.run.metrics],
    }
    rows = [
        f"| {metric.label} | {_shown(record.run.metrics[metric.name], percent=metric.percent)} | {metric.explanation} |"
        for metric in record.metrics
        if metric.name in record.run.metrics
    ]
    notes = [f"- {note}" for note in record.notes] or ["- none"]
    passes = "one pass" if record.passes == 1 else f"{record.passes} passes"
    return "\n".join(
        [
            "---",
            yaml.safe_dump(head, sort_keys=False).strip(),
            "---",
            "",
            f"# {_plain(record.title)}",
            "",
            f"Trained with rdrop: arm `{record.run.arm}`, {passes} in each step, alpha {record.alpha:g}, seed "
            f"{record.run.seed}, {record.run.optimizer_steps:,} optimizer steps.",
            "",
            "## Data",
            "",
            _plain(record.data),
            "",
            f"## Results on the {record.split} split",
            "",
            "| metric | value | meaning |",
            "| --- | --- | --- |",
            *rows,
            "",
            "One seed: the numbers carry the chance of that seed. No difference to plain training is claimed here.",
            "",
            "## Notes",
            "",
            *map(_plain, notes),
            "",
            "## To repeat it",
            "",
            "```bash",
            record.environment.command.replace("```", ""),
            "```",
            "",
            f"On {record.environment.machine}. The complete recipe is in `recipe.yaml`.",
            "",
            "## Citation",
            "",
            "```bibtex",
            CITATION,
            "```",
            "",
        ]
    )


def _plain(text: str) -> str:
    """One line of text that a Markdown reader shows as it is."""
    line = " ".join(text.split())
    return line.replace("<", "&lt;").replace("|", "\\|").replace("[", "\\[").replace("`", "\\`")


def _shown(value: float, *, percent: bool) -> str:
    return f"{100 * value:.2f} %" if percent else f"{value:.4g}"


def export_onnx(run: Path, out: Path) -> str:
    """Writes the network of a run as ONNX, and checks it in onnxruntime against torch.

    The graph maps a batch of any size to `logits`; for a translator or a summarizer that is one step of the decoder,
    for given decoder inputs.

    Args:
        run: The folder of `rdrop train`.
        out: The new folder.

    Returns:
        A sentence about what was written, with the largest difference.

    Raises:
        UserError: The run is not finished, the folder exists, a package is missing, or the model cannot be exported.
    """
    try:
        import onnxruntime
        import onnxscript  # noqa: F401 - torch needs it, and asks for it late
    except ModuleNotFoundError as error:
        raise UserError(f'{error.name} is not installed; export to ONNX needs pip install "rdrop[onnx]"') from error
    record = read_record(run)
    _, model = restore(run)
    inputs = _inputs(model, load_file(run / MODEL_FOLDER / EXAMPLE_FILE))
    graph = _Logits(model, list(inputs)).eval()
    with _new_folder(out):
        path = out / ONNX_FILE
        with _silence():
            try:
                torch.onnx.export(
                    graph,
                    tuple(inputs.values()),
                    str(path),
                    input_names=list(inputs),
                    output_names=["logits"],
                    dynamic_shapes=[_dynamic(column) for column in inputs.values()],
                    dynamo=True,
                    external_data=False,
                )
            except Exception as error:  # the exporter raises its own kinds for what it does not know
                reason = str(error).strip().partition("\n")[0]
                raise UserError(f"torch cannot export {type(model).__name__} to ONNX: {reason}") from error
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        worst = max(_difference(graph, session, batch) for batch in (inputs, _one_row(inputs)))
        if not worst <= TOLERANCE:
            raise UserError(
                f"the ONNX graph of {type(model).__name__} answers differently from torch, by {worst:.2g} of the largest "
                f"logit, expected at most {TOLERANCE:g}; nothing was written"
            )
        labels = getattr(getattr(model, "config", None), "id2label", None)
        described = {"task": record.task, "inputs": list(inputs), "output": "logits", "labels": labels}
        (out / "model.json").write_text(json.dumps(described, indent=1), encoding="utf-8")
    return f"{path}: inputs {', '.join(inputs)}; largest difference to torch {worst:.1e} of the largest logit"


class _Logits(nn.Module):
    """A model as a function of named tensors to logits."""

    def __init__(self, model: nn.Module, names: list[str]) -> None:
        super().__init__()
        self.model, self.names = model, names

    def forward(self, *columns: Tensor) -> Tensor:
        logits: Tensor = self.model(**dict(zip(self.names, columns, strict=True)))["logits"]
        return logits


def _inputs(model: nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """The inputs of a batch; an encoder-decoder model gets those of its decoder made from the labels."""
    labels = batch.pop("labels", None)
    shift: Any = getattr(model, "prepare_decoder_input_ids_from_labels", None)
    if shift is not None and "decoder_input_ids" not in batch and labels is not None:
        batch["decoder_input_ids"] = shift(labels=labels)
    return batch


def _dynamic(column: Tensor) -> dict[int, Any]:
    """Rows may be any number, and so may be positions."""
    axes = {0: torch.export.Dim.DYNAMIC}
    if column.ndim == 2:
        axes[1] = torch.export.Dim.DYNAMIC
    return axes


def _one_row(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: column[:1] for name, column in inputs.items()}


def _difference(graph: nn.Module, session: Any, inputs: dict[str, Tensor]) -> float:
    """The largest difference of a logit, relative to the largest logit."""
    with torch.no_grad():
        expected = graph(*inputs.values()).numpy()
    taken = {given.name for given in session.get_inputs()}
    feed = {name: column.numpy() for name, column in inputs.items() if name in taken}
    (found,) = session.run(["logits"], feed)
    return float(np.abs(found - expected).max() / max(1e-6, np.abs(expected).max()))


@contextmanager
def _new_folder(out: Path) -> Iterator[None]:
    """A folder that is there whole or not at all."""
    if out.exists():
        raise UserError(f"{out} exists already; name a new folder with --out")
    out.mkdir(parents=True)
    try:
        yield
    except BaseException:
        shutil.rmtree(out)
        raise


@contextmanager
def _silence() -> Iterator[None]:
    """Without the exporter's running commentary."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
