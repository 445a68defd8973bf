from __future__ import annotations

import stat
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from rdrop.errors import UserError
from rdrop.toolkit.runs import RunFolder, RunRecord, write_atomically
from rdrop.toolkit.summary import Run
from rdrop.toolkit.tasks.digits import DigitsRecipe as Recipe


def record(arm: str = "plain", seed: int = 0) -> RunRecord:
    run = Run(arm=arm, seed=seed, status="finished", metrics={"accuracy": 0.1 + 0.2, "nll": 1e-17})
    return RunRecord(run=run, data="toys", warnings=[], strategy="single", step_compute=1.0, step_ms=None, seconds=2.0)


def test_a_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "new" / "folder")
    with folder.opened(Recipe(), resume=False):
        assert folder.read(("plain", 0)) is None
        folder.write(record())
        assert folder.read(("plain", 0)) == record()


def test_the_recipe_in_the_folder_is_complete(tmp_path: Path) -> None:
    with RunFolder(tmp_path).opened(Recipe(), resume=False):
        held = yaml.safe_load((tmp_path / "recipe.yaml").read_text(encoding="utf-8"))
    assert Recipe.model_validate(held) == Recipe()
    assert held["training"]["weight_decay"] == 0.01


def test_a_folder_with_runs_is_resumed_only_on_request(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    with folder.opened(Recipe(), resume=False):
        folder.write(record())
    with pytest.raises(UserError, match="already holds a comparison"), folder.opened(Recipe(), resume=False):
        pass
    with folder.opened(Recipe(), resume=True):
        assert folder.read(("plain", 0)) == record()


def test_another_recipe_is_refused_with_the_keys_that_differ(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    with folder.opened(Recipe(), resume=False):
        pass
    other = Recipe.model_validate({"rdrop": {"alpha": 2.5}, "training": {"epochs": 7}})
    with pytest.raises(UserError) as caught, folder.opened(other, resume=True):
        pass
    assert "training.epochs is 60 there and 7 here; rdrop.alpha is 1.0 there and 2.5 here" in str(caught.value)


def test_a_recipe_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("title: [", encoding="utf-8")
    folder = RunFolder(tmp_path)
    cannot = pytest.raises(UserError, match=r"recipe\.yaml cannot be read")
    with cannot, folder.opened(Recipe(), resume=True):
        pass


@pytest.mark.parametrize("text", ["", "{", '{"run": 3}', "\xff"], ids=["empty", "half", "other", "binary"])
def test_a_damaged_record_is_named(tmp_path: Path, text: str) -> None:
    folder = RunFolder(tmp_path)
    with folder.opened(Recipe(), resume=False):
        (tmp_path / "runs" / "plain-seed0.json").write_bytes(text.encode("latin-1"))
        with pytest.raises(UserError, match=r"plain-seed0\.json cannot be read"):
            folder.read(("plain", 0))


def test_a_record_under_the_wrong_name_is_refused(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    with folder.opened(Recipe(), resume=False):
        folder.write(record())
        (tmp_path / "runs" / "plain-seed0.json").rename(tmp_path / "runs" / "rdrop-seed3.json")
        with pytest.raises(UserError, match="is that of arm plain, seed 0; expected arm rdrop, seed 3"):
            folder.read(("rdrop", 3))


def test_half_a_file_of_a_killed_process_is_no_record_and_goes_away(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    with folder.opened(Recipe(), resume=False):
        folder.write(record())
    leftover = tmp_path / "runs" / ".rdrop-seed0.json.123.tmp"
    leftover.write_text("{", encoding="utf-8")
    with folder.opened(Recipe(), resume=True):
        assert folder.read(("rdrop", 0)) is None
        assert not leftover.exists()


def test_two_processes_do_not_share_a_folder(tmp_path: Path) -> None:
    program = (
        "import sys, pathlib\nfrom rdrop.toolkit.tasks.digits import DigitsRecipe as Recipe\n"
        "from rdrop.toolkit.runs import RunFolder\n"
        "with RunFolder(pathlib.Path(sys.argv[1])).opened(Recipe(), resume=True):\n"
        "    print('held', flush=True); sys.stdin.read()"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert holder.stdin is not None
    assert holder.stdout is not None
    with holder:
        assert holder.stdout.readline() == b"held\n"
        refused = pytest.raises(UserError, match="another process is working in")
        with refused, RunFolder(tmp_path).opened(Recipe(), resume=True):
            pass
        holder.kill()
    with RunFolder(tmp_path).opened(Recipe(), resume=True):
        pass


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    folder = RunFolder(tmp_path / "file")
    with pytest.raises(UserError, match="cannot make the folder"), folder.opened(Recipe(), resume=False):
        pass


def test_a_file_keeps_its_old_content_until_the_new_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "summary.json"
    write_atomically(path, "old")

    def die(handle: int) -> None:
        raise RuntimeError("power cut")

    monkeypatch.setattr("os.fsync", die)
    with pytest.raises(RuntimeError, match="power cut"):
        write_atomically(path, "new")
    assert path.read_text(encoding="utf-8") == "old"
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~current_umask(tmp_path)


def current_umask(folder: Path) -> int:
    probe = folder / "probe"
    probe.touch()
    return 0o666 & ~stat.S_IMODE(probe.stat().st_mode)
