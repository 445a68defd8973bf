"""The plant project in PaddlePaddle: its backbones against those of timm, its list of photos, and its training."""

from __future__ import annotations

import os
import re
import shlex
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import paddle
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

import rdrop.toolkit.images.backbones  # noqa: F401  (adds its names to those of timm)
from pictures import STAGES, class_folders, listed
from rdrop.paddle import forward_passes, rdrop_loss

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
plants: Any = import_module("paddle_plants")
backbones: Any = import_module("paddle_backbones")
photos: Any = import_module("plant_photos")

DATA = Path(os.environ.get("RDROP_DATA", Path(__file__).parents[2] / "shared" / "data"))
SMALL = ["--size", "32", "--batch", "4", "--network", "res2net14_vd"]
TIMM = {
    "res2net50_vd": ("res2net50d", 25_718_352),
    "se_resnet50_vd": ("seresnet50d", 28_107_256),
    "se_resnext50_vd": ("seresnext50e_32x4d", 27_687_768),
}


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    return listed(folder / "labels.csv", class_folders(folder / "images", 8))


def classifier(name: str = "res2net14_vd", dropout: float = 0.5) -> Any:
    paddle.seed(0)
    return backbones.Classifier(name, len(STAGES), dropout)


@pytest.mark.parametrize("name", TIMM)
def test_a_backbone_is_that_of_timm(tmp_path: Path, name: str) -> None:
    """With the weights of timm, it gives the same answers; and timm reads what it writes."""
    theirs, parameters = TIMM[name]
    with torch.device("meta"):
        assert sum(each.numel() for each in timm.create_model(theirs).parameters()) == parameters
    torch.manual_seed(0)
    original = timm.create_model(theirs, num_classes=5, zero_init_last=False).eval()
    for module in original.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)  # type: ignore[union-attr]
            module.running_var.uniform_(1, 2)  # type: ignore[union-attr]
    save_file(original.state_dict(), tmp_path / "timm.safetensors")
    network = backbones.Classifier(name, 5)
    assert sum(int(each.size) for each in network.parameters() if not each.stop_gradient) == parameters - 995 * 2049
    page = (Path(__file__).parents[1] / "docs" / "hosts" / "paddle.md").read_text(encoding="utf-8")
    assert f"| `{name}` |" in page
    assert f"| `{theirs}` | {parameters:,} |" in page
    network.load(tmp_path / "timm.safetensors")
    network.eval()
    images = np.random.default_rng(0).normal(size=(2, 3, 72, 64)).astype("float32")
    with torch.no_grad(), paddle.no_grad():
        expected, found = original(torch.tensor(images)).numpy(), network(paddle.to_tensor(images)).numpy()
    assert np.abs(expected[0] - expected[1]).max() > 1e-3 * np.abs(expected).max()
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5 * float(np.abs(expected).max()))
    network.save(tmp_path / "ours.safetensors")
    written = load_file(tmp_path / "ours.safetensors")
    original.load_state_dict(written)
    assert all(torch.equal(each, written[key]) for key, each in original.state_dict().items() if key in written)


def test_weights_of_another_network_are_refused_and_another_classifier_is_left_out(tmp_path: Path) -> None:
    saved, network = classifier(), backbones.Classifier("res2net14_vd", 7)
    saved.save(tmp_path / "a.safetensors", classes=[*STAGES])
    before = network.head[1].weight.numpy()
    network.load(tmp_path / "a.safetensors")
    assert (network.head[1].weight.numpy() == before).all()
    assert (network.trunk.conv1[0].weight.numpy() == saved.trunk.conv1[0].weight.numpy()).all()
    assert backbones.read_facts(tmp_path / "a.safetensors") == {"network": "res2net14_vd", "classes": [*STAGES]}
    with pytest.raises(ValueError, match=r"no weights of se_resnet14_vd: layer1.0.conv1.weight \(64, 64, 1, 1\), but"):
        classifier("se_resnet14_vd").load(tmp_path / "a.safetensors")


def test_the_trunk_runs_once_and_the_passes_are_those_of_the_whole() -> None:
    network, images = classifier(), paddle.randn([4, 3, 32, 32])
    rows: list[int] = []
    network.trunk.conv1.register_forward_pre_hook(lambda _, inputs: rows.append(inputs[0].shape[0]))
    paddle.seed(1)
    whole = forward_passes(network, images)
    paddle.seed(1)
    found = plants.logits_of_passes([network], images, 2)
    assert rows == [8, 4]
    assert not (found[0] == found[1]).all()
    np.testing.assert_allclose(found.numpy(), whole.numpy(), rtol=1e-3, atol=1e-4)


def test_a_pair_makes_one_pass_each_and_both_learn() -> None:
    pair = [classifier(dropout=0.0), classifier("se_resnet14_vd", dropout=0.0)]
    images = paddle.randn([4, 3, 32, 32])
    logits = plants.logits_of_passes(pair, images, 1)
    assert tuple(logits.shape) == (2, 4, len(STAGES))
    rdrop_loss(logits, None).loss.backward()
    assert all(float(network.trunk.conv1[0].weight.grad.abs().sum()) > 0 for network in pair)


def test_photos_are_read_as_listed(table: Path) -> None:
    found = photos.Photos(table, 16)
    assert found.classes == sorted(STAGES)
    assert found.pixels.shape == (32, 16, 16, 3)
    images, labels = found.batch(np.array([0, 31]))
    assert images.shape == (2, 3, 16, 16)
    assert images.dtype == np.float32
    assert [found.classes[each] for each in labels] == ["heading", "sprout"]
    np.testing.assert_allclose(images[0, 2], (found.pixels[0, :, :, 2] / 255 - 0.406) / 0.225, rtol=1e-5)
    few = photos.Photos(table, 16, limit=12, seed=1)
    assert np.bincount(few.labels).tolist() == [3, 3, 3, 3]
    assert (few.pixels == photos.Photos(table, 16, limit=12, seed=1).pixels).all()
    assert (few.pixels != photos.Photos(table, 16, limit=12, seed=2).pixels).any()
    rows = (table.parent / "labels.csv").read_text().splitlines()
    (table.parent / "uneven.csv").write_text("\n".join([*rows[:1], *rows[1:3], *rows[9:]]))
    assert np.bincount(photos.Photos(table.parent / "uneven.csv", 16, limit=8).labels).tolist() == [2, 2, 2, 2]


def test_a_tenth_of_each_class_is_held_out() -> None:
    labels = np.repeat([0, 1, 2], [40, 20, 2])
    training, held = photos.split(labels, 0, "abc")
    assert sorted([*training, *held]) == list(range(62))
    assert np.bincount(labels[held]).tolist() == [4, 2, 1]
    assert (photos.split(labels, 0, "abc")[1] == held).all()
    assert (photos.split(labels, 1, "abc")[1] != held).any()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image,stage\na.png,x\n", "bad.csv has no column 'label'; expected a first line with image,label"),
        ("image,label\n", "bad.csv lists no images"),
        ("image,label\nimages/sprout/0.png,\n", "bad.csv, line 2: label is empty"),
        ("image,label\n\n,x\n", "bad.csv, line 3: image is empty"),
        ("image,label\nimages/sprout/0.png,x\n../a.png,x\n", "line 3: image is '../a.png', which leaves the folder"),
        ("image,label\n/etc/passwd,x\n", "line 2: image is '/etc/passwd', which leaves the folder"),
        ("image,label\nimages/none.png,x\n", "line 2: there is no file .*none.png; paths start at the folder"),
        ("image,label\nbad.csv,x\n", "line 2: bad.csv cannot be read as an image"),
        ("image,label\ncut.png,x\n", "line 2: cut.png cannot be read as an image"),
        (
            "image,label\nimages/sprout/0.png,x\nimages/sprout/1.png,x\nimages/rosette/1.png,y\n",
            "class 'y' has 1 image",
        ),
    ],
)
def test_what_is_wrong_with_a_list_is_told(table: Path, capsys: Any, text: str, message: str) -> None:
    (table.parent / "cut.png").write_bytes((table.parent / "images/sprout/0.png").read_bytes()[:200])
    (table.parent / "bad.csv").write_text(text)
    with pytest.raises(SystemExit, match=message):
        plants.main([str(table.parent / "bad.csv"), *SMALL])


def test_the_commands_of_the_page_are_understood(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(plants, "run", asked.append)
    page = (Path(__file__).parents[1] / "docs" / "hosts" / "paddle.md").read_text(encoding="utf-8")
    for line in re.findall(r"^python examples/paddle_plants.py (.*)", page, re.MULTILINE):
        plants.main(shlex.split(line))
    assert len(asked) == 9
    first = asked[0]
    recipe = (first.network, first.size, first.batch, first.learning_rate, first.alpha, first.passes)
    assert recipe == ("res2net50_vd", 256, 8, 3e-4, 0.6, 2)
    assert asked[1].pair == ["se_resnet50_vd", "se_resnext50_vd"]


def test_a_link_that_leaves_the_folder_is_refused(table: Path, tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("image,label\nphoto.png,x\n")
    (tmp_path / "photo.png").symlink_to(table.parent / "images/sprout/0.png")
    with pytest.raises(ValueError, match="which leaves the folder of the list"):
        photos.Photos(tmp_path / "list.csv", 16)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--pair", "res2net14_vd", "res2net14_vd"], "--pair is res2net14_vd twice; expected two different networks"),
        (["--start", "a", "b"], "--start names 2 files; expected one for each network, 1"),
        (["--alpha", "-1"], "alpha is -1.0; expected a finite number of at least 0"),
        (["--start", "missing.safetensors"], "missing.safetensors"),
        (["--evaluate", "missing.safetensors"], "missing.safetensors"),
    ],
)
def test_what_is_wrong_with_the_options_is_told(table: Path, options: list[str], message: str) -> None:
    with pytest.raises(SystemExit, match=message):
        plants.main([str(table), *SMALL, *options])


def test_one_network_learns_is_saved_and_evaluated(table: Path, tmp_path: Path, capsys: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(plants, "PAUSE", 0.0)  # as if every step took long
    best = plants.main([str(table), *SMALL, "--epochs", "3", "--out", str(tmp_path)])
    said = capsys.readouterr().out
    assert "res2net14_vd, 7,766,004 parameters, dropout 0.3, on cpu\n32x32 pixels, alpha 0.6, passes 2, seed 0" in said
    assert "28 images of 4 classes to train on, 4 held out" in said
    assert "epoch 1, step 3/7: task loss" in said
    assert "4 of 4 images are evaluated" in said
    divergences = [float(each) for each in re.findall(r"divergence ([\d.]+)", said)]
    assert len(divergences) == 21
    assert min(divergences) > 0
    assert best >= 0.75
    assert f"best: accuracy {best:.1%} in validation; its weights are in {tmp_path}" in said
    weights = tmp_path / "res2net14_vd.safetensors"
    assert plants.main([str(table), "--evaluate", str(weights)]) >= 0.75
    assert "32 images: accuracy" in capsys.readouterr().out
    assert plants.main([str(table), *SMALL, "--start", str(weights), "--epochs", "1", "--out", str(tmp_path)]) >= 0.5
    (table.parent / "other.csv").write_text("image,label\nimages/sprout/0.png,weed\n")
    with pytest.raises(SystemExit, match="label 'weed' is none of the classes heading, rosette, seedling, sprout"):
        plants.main([str(table.parent / "other.csv"), "--evaluate", str(weights)])


def test_plain_training_and_the_same_seed_twice(table: Path, tmp_path: Path, capsys: Any) -> None:
    said = []
    for seed in ("3", "3", "4"):
        plants.main([str(table), *SMALL, "--passes", "1", "--epochs", "1", "--seed", seed, "--out", str(tmp_path)])
        said.append(capsys.readouterr().out.replace("seed 4", "seed 3"))
    assert "divergence 0.0000" in said[0]
    assert said[0] == said[1]
    assert said[0] != said[2]


def test_a_pair_learns_and_is_evaluated_together(table: Path, tmp_path: Path, capsys: Any) -> None:
    options = ["--size", "32", "--batch", "4", "--epochs", "2", "--out", str(tmp_path)]
    best = plants.main([str(table), "--pair", "res2net14_vd", "se_resnet14_vd", *options])
    said = capsys.readouterr().out
    assert "dropout 0.0" in said
    assert re.search(r"validation: accuracy res2net14_vd [\d.]+%, se_resnet14_vd [\d.]+%, their mean [\d.]+%", said)
    assert best >= 0.75
    files = sorted(tmp_path.glob("*.safetensors"))
    assert [each.name for each in files] == ["res2net14_vd.safetensors", "se_resnet14_vd.safetensors"]
    found = plants.main([str(table), "--evaluate", *map(str, files)])
    singles = [plants.main([str(table), "--evaluate", str(each)]) for each in files]
    capsys.readouterr()
    assert min(found, *singles) >= 0.5


def test_evaluation_is_one_pass_without_dropout_that_moves_nothing(table: Path) -> None:
    network, found = classifier(), photos.Photos(table, 32)
    before = [each.numpy().copy() for each in network.state_dict().values()]
    first = plants.evaluate([network], found, np.arange(32), 5)
    assert plants.evaluate([network], found, np.arange(32), 8)[1] == pytest.approx(first[1], rel=1e-5)
    assert all((each.numpy() == old).all() for each, old in zip(network.state_dict().values(), before, strict=True))


def test_on_plant_seedlings_the_loss_falls(tmp_path: Path, capsys: Any) -> None:
    folder = DATA / "plant_seedlings"
    if not folder.is_dir():
        pytest.skip(f"there is no {folder}; set RDROP_DATA to the folder of the data sets")
    options = ["--limit", "60", "--epochs", "4", "--size", "32", "--batch", "8", "--network", "res2net14_vd"]
    plants.main([str(folder / "val" / "labels.csv"), *options, "--out", str(tmp_path)])
    said = capsys.readouterr().out
    losses = [float(each) for each in re.findall(r"step 6/6: task loss ([\d.]+)", said)]
    assert len(losses) == 4
    assert losses[-1] < 0.8 * losses[0]
