"""A trained model for other programs: a checked ONNX file, or a Hugging Face folder with a model card."""

from __future__ import annotations

import contextlib
import io
import json
import re
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor, nn

from rdrop.errors import UserError
from rdrop.toolkit.single_run import EXAMPLE_FILE, MODEL_FOLDER, TrainingRecord, read_record, restore
from rdrop.toolkit.use import names_of

ONNX_FILE = "model.onnx"
TOLERANCE = 1e-3
"""Largest difference of a logit, relative to the largest logit, that float32 on another engine may make."""
PIPELINES = {"language-modeling": "text-generation"}
"""Task to its name on the Hugging Face hub, where that is another."""
PROCESSORS = {
    "tokenizer_config.json": ("tokenizer", "AutoTokenizer"),
    "preprocessor_config.json": ("processor", "AutoImageProcessor"),
}
"""File of a saved processor to what it is called and the class of transformers that loads it."""
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
    restore(run)  # what cannot be loaded must not be published
    with _new_folder(out) as part:
        shutil.copytree(run / MODEL_FOLDER, part, ignore=shutil.ignore_patterns(EXAMPLE_FILE), dirs_exist_ok=True)
        (part / "README.md").write_text(model_card(record, how_to_load(part)), encoding="utf-8")
        recipe = yaml.safe_dump(record.recipe, sort_keys=False, allow_unicode=True)
        (part / "recipe.yaml").write_text(recipe, encoding="utf-8")
    return f"{out}: {', '.join(sorted(path.name for path in out.iterdir()))}"


@dataclass(frozen=True)
class Loading:
    """How a saved model is loaded."""

    library: str
    """As the hub names it."""
    code: str
    """Lines of Python, with FOLDER for the place of the model."""


def how_to_load(folder: Path) -> Loading:
    """The library whose form a saved model has, and the lines that load it from there.

    Args:
        folder: What `Task.save` wrote.
    """
    configurations = sorted(folder.rglob("config.json"))
    lines: dict[str, None] = {}
    library = "rdrop"
    for path in configurations:
        configuration = json.loads(path.read_text(encoding="utf-8"))
        place = "/".join(["FOLDER", *path.parent.relative_to(folder).parts])
        name = "model" if path.parent == folder else path.parent.name
        if configuration.get("architectures"):
            library, (architecture, *_) = "transformers", configuration["architectures"]
            found = {word: kind for file, (word, kind) in PROCESSORS.items() if (path.parent / file).exists()}
            lines[f"from transformers import {', '.join([*found.values(), architecture])}"] = None
            for word, kind in {**found, name: architecture}.items():
                lines[f'{word} = {kind}.from_pretrained("{place}")'] = None
        else:
            library = "timm"
            lines["import timm"] = None
            lines[f'{name} = timm.create_model("local-dir:{place}", pretrained=True).eval()'] = None
            settings = f"**timm.data.resolve_model_data_config({name})"
            lines[f"{name}_input = timm.data.create_transform({settings})  # from a PIL image"] = None
    code = (
        "\n".join(lines)
        or '# the network of the recipe, whose weights are\nsafetensors.torch.load_file("FOLDER/model.safetensors")'
    )
    return Loading(library, code)


def model_card(record: TrainingRecord, loading: Loading) -> str:
    """The model card of a run: how to load it, how it was trained, on what, its metrics, limits and citation.

    Its head is the YAML that the Hugging Face hub reads. What stands in the record is shown as it is, whatever Markdown
    or HTML it might be.

    Args:
        record: The run.
        loading: How its model is loaded.
    """
    shown = [metric for metric in record.metrics if metric.name in record.run.metrics]
    head: dict[str, Any] = {
        "tags": ["r-drop"],
        "library_name": loading.library,
        "pipeline_tag": PIPELINES.get(record.task, record.task),
        "metrics": [metric.name for metric in shown],
    }
    rows = [
        f"| {_plain(metric.label)} | {_value(record.run.metrics[metric.name], percent=metric.percent)} | "
        f"{'higher' if metric.higher_is_better else 'lower'} is better. {_plain(metric.explanation)} |"
        for metric in shown
    ]
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
            *_fenced("python", loading.code),
            "",
            "## Data",
            "",
            _plain(record.data),
            "",
            f"## Results on the {record.split} split",
            "",
            "| metric | value | |",
            "| --- | --- | --- |",
            *rows,
            "",
            "One seed: the numbers carry the chance of that seed. No difference to plain training is claimed here.",
            "",
            *(["## Notes", "", *(f"- {_plain(note)}" for note in record.notes), ""] if record.notes else []),
            "## To repeat it",
            "",
            *_fenced("bash", record.environment.command),
            "",
            f"On {_plain(record.environment.machine)}. The complete recipe is in `recipe.yaml`.",
            "",
            "## Citation",
            "",
            *_fenced("bibtex", CITATION),
            "",
        ]
    )


def _plain(text: str) -> str:
    """One line of text that a Markdown reader shows as it is."""
    line = escape(" ".join(text.split()), quote=False)
    return re.sub(r"([\\`*_~\[\]|#])", r"\\\1", line)


def _fenced(language: str, code: str) -> list[str]:
    """Code that a Markdown reader shows as it is: the fence is longer than any run of backticks in it."""
    longest = max((len(run) for run in re.findall("`+", code)), default=0)
    fence = "`" * max(3, longest + 1)
    return [f"{fence}{language}", code, fence]


def _value(value: float, *, percent: bool) -> str:
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
    task, model = restore(run)
    kind = type(model).__name__
    inputs = _inputs(model, load_file(run / MODEL_FOLDER / EXAMPLE_FILE))
    graph = _Logits(model, list(inputs)).eval()
    with _new_folder(out) as part:
        path = part / ONNX_FILE
        try:
            with _silence():
                torch.onnx.export(
                    graph,
                    tuple(inputs.values()),
                    str(path),
                    input_names=list(inputs),
                    output_names=["logits"],
                    dynamic_shapes={"columns": tuple(_dynamic(column) for column in inputs.values())},
                    dynamo=True,
                    external_data=False,
                )
        except Exception as error:  # the exporter raises its own kinds for what it does not know
            raise UserError(f"torch cannot export {kind} to ONNX: {_reason(error)}") from error
        try:
            session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
            worst = max(_difference(graph, session, batch) for batch in (inputs, _part(inputs)))
        except Exception as error:  # as does onnxruntime
            raise UserError(f"onnxruntime cannot run the exported {kind}: {_reason(error)}") from error
        if not worst <= TOLERANCE:
            raise UserError(
                f"the ONNX graph of {kind} answers differently from torch, by {worst:.2g} of the largest logit, "
                f"expected at most {TOLERANCE:g}; nothing was written"
            )
        described = {"task": record.task, "inputs": list(inputs), "output": "logits", "labels": names_of(task)}
        (part / "model.json").write_text(json.dumps(described, indent=1), encoding="utf-8")
    return (
        f"{out / ONNX_FILE}: inputs {', '.join(inputs)}; the largest difference to torch is {worst:.1e} of the largest "
        "logit"
    )


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
    return dict.fromkeys(range(2 if column.ndim == 2 else 1), torch.export.Dim.DYNAMIC)


def _part(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """The first row, and of positions the first half: a graph that is bound to the sizes of the example fails there."""
    return {
        name: column[:1, : -(-column.shape[1] // 2)] if column.ndim == 2 else column[:1]
        for name, column in inputs.items()
    }


def _difference(graph: nn.Module, session: Any, inputs: dict[str, Tensor]) -> float:
    """The largest difference of a logit, relative to the largest logit."""
    with torch.no_grad():
        expected = graph(*inputs.values()).numpy()
    taken = {given.name for given in session.get_inputs()}
    feed = {name: column.numpy() for name, column in inputs.items() if name in taken}
    (found,) = session.run(["logits"], feed)
    return float(np.abs(found - expected).max() / max(1e-6, np.abs(expected).max()))


def _reason(error: BaseException) -> str:
    """The first line of the error that an error was made from, with the next where it ends in a colon."""
    while error.__cause__ is not None:
        error = error.__cause__
    first, *others = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    told = " ".join([first, *others[:1]] if first.endswith(":") else [first])
    return re.sub(r"\x1b\[[0-9;]*m", "", told)


@contextmanager
def _new_folder(out: Path) -> Iterator[Path]:
    """A folder to write into, which gets its name once everything is in it, and leaves nothing behind otherwise."""
    if out.exists():
        raise UserError(f"{out} exists already; name a new folder with --out")
    part = out.with_name(f".{out.name}.tmp")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        yield part
        part.rename(out)
    finally:
        shutil.rmtree(part, ignore_errors=True)


@contextmanager
def _silence() -> Iterator[None]:
    """Without the exporter's running commentary."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield
