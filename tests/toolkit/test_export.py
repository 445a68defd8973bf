from __future__ import annotations

import json
import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from markdown_it import MarkdownIt
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification

from rdrop.errors import UserError
from rdrop.toolkit import export
from rdrop.toolkit.export import Loading, export_hugging_face, export_onnx, how_to_load, model_card
from rdrop.toolkit.single_run import TrainingRecord, read_record, restore
from rdrop.toolkit.tasks.digits import DigitsCNN, DigitsTask
from rdrop.toolkit.text.vocabulary import train_vocabulary
from trained_digits import train_digits

CODE = Loading("transformers", 'model = BertModel.from_pretrained("FOLDER")')
HOSTILE = "![a](x) [b](javascript:c) `d` <script>e</script> \\[f](g) | h &amp; *i* _j_\n# k\n---\nl: m"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("trained") / "run"
    train_digits(out)
    return out


@pytest.fixture(scope="module")
def record(trained: Path) -> TrainingRecord:
    return read_record(trained)


def head_and_body(card: str) -> tuple[Any, str]:
    """The YAML and the Markdown of a model card, as the hub takes them apart."""
    match = re.match(r"---\n(.*?)\n---\n(.*)", card, re.DOTALL)
    assert match
    return yaml.safe_load(match[1]), match[2]


class Elements(HTMLParser):
    """The elements and the text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.text: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append(tag)

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def rendered(body: str) -> Elements:
    return Elements(MarkdownIt("commonmark", {"html": True}).enable("table").render(body))


def test_the_folder_holds_weights_recipe_and_card(trained: Path, tmp_path: Path) -> None:
    told = export_hugging_face(trained, tmp_path / "out")
    assert told == f"{tmp_path / 'out'}: README.md, model.safetensors, recipe.yaml"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]
    weights, original = (load_file(folder / "model.safetensors") for folder in (tmp_path / "out", trained / "model"))
    assert all(torch.equal(weights[name], original[name]) for name in original)
    assert yaml.safe_load((tmp_path / "out" / "recipe.yaml").read_text()) == read_record(trained).recipe


def test_the_card_says_what_was_trained_on_what_and_how_well(record: TrainingRecord) -> None:
    head, body = head_and_body(model_card(record, CODE))
    assert head["library_name"] == "transformers"
    assert head["pipeline_tag"] == "image-classification"
    assert head["tags"] == ["r-drop"]
    assert head["metrics"][:2] == ["accuracy", "nll"]
    for text in (record.data, "alpha 1, seed 3, 18 optimizer steps", "rdrop train digits", "liang2021rdrop", CODE.code):
        assert text in body
    assert f"| Accuracy | {100 * record.run.metrics['accuracy']:.2f} % | higher is better." in body
    assert f"| NLL | {record.run.metrics['nll']:.4g} | lower is better." in body


def test_the_hub_reads_the_card(record: TrainingRecord) -> None:
    from huggingface_hub import ModelCard

    data: Any = ModelCard(model_card(record, CODE)).data
    assert (data.library_name, data.pipeline_tag) == ("transformers", "image-classification")


def test_what_stands_in_the_record_is_shown_as_it_is(record: TrainingRecord) -> None:
    hostile = record.model_copy(
        update={
            "title": HOSTILE,
            "data": HOSTILE,
            "notes": [HOSTILE],
            "metrics": [metric.model_copy(update={"explanation": HOSTILE}) for metric in record.metrics],
            "environment": record.environment.model_copy(update={"command": f"rdrop '````\n{HOSTILE}\n```'"}),
        }
    )
    head, body = head_and_body(model_card(hostile, CODE))
    assert head["library_name"] == "transformers"
    harmless = rendered(head_and_body(model_card(record, CODE))[1])
    page = rendered(body)
    assert set(page.tags) <= {*harmless.tags, "ul", "li"}
    assert not {"a", "img", "script", "em"} & set(page.tags)
    assert page.tags.count("h1") == 1
    shown = " ".join("".join(page.text).split())
    assert shown.count(" ".join(HOSTILE.split())) == 4 + len(record.metrics)


def test_without_notes_there_is_no_such_heading(record: TrainingRecord) -> None:
    assert "## Notes" not in model_card(record, CODE)
    assert "## Notes\n\n- Two rows.\n" in model_card(record.model_copy(update={"notes": ["Two rows."]}), CODE)


def test_a_model_of_transformers_is_loaded_by_the_lines_of_the_card(tmp_path: Path) -> None:
    config = BertConfig(vocab_size=16, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    BertForSequenceClassification(config).save_pretrained(tmp_path)
    train_vocabulary(["to be or not to be"], "bpe", 300).save_pretrained(tmp_path)
    loading = how_to_load(tmp_path)
    assert loading.library == "transformers"
    found: dict[str, Any] = {}
    exec(loading.code.replace("FOLDER", str(tmp_path)), found)
    assert type(found["model"]) is BertForSequenceClassification
    assert found["tokenizer"].decode(found["tokenizer"]("not to be")["input_ids"]) == "not to be"


def test_a_pair_of_models_of_timm_is_loaded_by_the_lines_of_the_card(tmp_path: Path) -> None:
    import timm
    from timm.models import save_for_hf

    for name in ("first", "second"):
        model = timm.create_model("resnet10t", num_classes=3)
        save_for_hf(model, str(tmp_path / name), safe_serialization=True)
    loading = how_to_load(tmp_path)
    assert loading.library == "timm"
    assert loading.code.count("import timm") == 1
    found: dict[str, Any] = {}
    exec(loading.code.replace("FOLDER", str(tmp_path)), found)
    image = found["second_input"](Image.new("RGB", (64, 80)))
    assert found["first"](image[None]).shape == found["second"](image[None]).shape == (1, 3)


def test_a_folder_that_exists_is_not_touched(trained: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    for write in (export_hugging_face, export_onnx):
        with pytest.raises(UserError, match="exists already; name a new folder with --out"):
            write(trained, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_a_run_that_is_not_finished_cannot_be_exported(tmp_path: Path) -> None:
    for write in (export_hugging_face, export_onnx):
        with pytest.raises(UserError, match="holds no finished run"):
            write(tmp_path, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_the_onnx_file_gives_the_logits_of_torch_for_any_batch(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import onnxruntime

    monkeypatch.setattr(DigitsTask, "names", ["none", "one"], raising=False)
    told = export_onnx(trained, tmp_path / "out")
    assert re.search(r"model\.onnx: inputs pixel_values; the largest difference to torch is .*e-0[6-9] of", told)
    session = onnxruntime.InferenceSession(str(tmp_path / "out" / "model.onnx"), providers=["CPUExecutionProvider"])
    _, model = restore(trained)
    for rows in (1, 7):
        images = torch.rand(rows, 1, 8, 8)
        with torch.no_grad():
            expected = model(pixel_values=images)["logits"].numpy()
        (found,) = session.run(["logits"], {"pixel_values": images.numpy()})
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["model.json", "model.onnx"]
    described = json.loads((tmp_path / "out" / "model.json").read_text())
    assert described == {
        "task": "image-classification",
        "inputs": ["pixel_values"],
        "output": "logits",
        "labels": ["none", "one"],
    }


@pytest.mark.parametrize("package", ["onnxruntime", "onnxscript"])
def test_a_package_that_is_missing_is_told(
    trained: Path, tmp_path: Path, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(
        UserError, match=rf'{package} is not installed; export to ONNX needs pip install "rdrop\[onnx\]"'
    ):
        export_onnx(trained, tmp_path / "out")
    assert not list(tmp_path.iterdir())


class Branching(DigitsCNN):
    """What it does depends on what it sees."""

    def forward(self, pixel_values: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        return super().forward(pixel_values * (2 if pixel_values.sum() > 0 else 1), labels)


class Fixed(DigitsCNN):
    """It is bound to four rows."""

    def forward(self, pixel_values: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        given = pixel_values.shape[0]
        logits = super().forward(pixel_values)["logits"]
        return {"logits": logits * (2.0 if given == 4 else 1.0)}


def with_network(monkeypatch: pytest.MonkeyPatch, network: type[nn.Module]) -> None:
    monkeypatch.setattr(DigitsTask, "build_model", lambda self: network(0.3, 10))


def test_a_model_that_cannot_be_exported_is_one_message_and_leaves_nothing(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    with_network(monkeypatch, Branching)
    with pytest.raises(UserError, match=r"torch cannot export Branching to ONNX: .*data-dependent") as caught:
        export_onnx(trained, tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert "\x1b" not in str(caught.value)
    assert capfd.readouterr().out == ""
    assert not list(tmp_path.iterdir())


def test_a_graph_that_is_bound_to_the_example_is_refused(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_network(monkeypatch, Fixed)
    with pytest.raises(UserError, match=r"torch cannot export Fixed to ONNX: .*inferred ranges.*: - Received"):
        export_onnx(trained, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_graph_that_onnxruntime_does_not_take_is_refused(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import onnxruntime

    def refuse(*_: Any, **__: Any) -> None:
        raise RuntimeError("[ONNXRuntimeError] : 9 : NOT_IMPLEMENTED\nand more")

    monkeypatch.setattr(onnxruntime, "InferenceSession", refuse)
    with pytest.raises(UserError, match=r"onnxruntime cannot run the exported DigitsCNN: .*NOT_IMPLEMENTED$"):
        export_onnx(trained, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_graph_that_answers_differently_is_refused(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "TOLERANCE", 0.0)
    with pytest.raises(
        UserError, match=r"answers differently from torch, by .* expected at most 0; nothing was written"
    ):
        export_onnx(trained, tmp_path / "out")
    assert not list(tmp_path.iterdir())
