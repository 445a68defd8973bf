from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

import rdrop.cli
from rdrop.cli import MISSING_EXTRA, main
from rdrop.cli.app import app
from rdrop.toolkit.arm_names import EXAMPLES
from rdrop.toolkit.recipe_file import built_in_recipes

COMMANDS = [command.callback.__name__ for command in app.registered_commands if command.callback]
HEAVY = ["torch", "transformers", "numpy", "sklearn", "timm"]


def run(*words: str) -> int:
    """Exit code of the command in this process."""
    with pytest.raises(SystemExit) as caught:
        main(words)
    assert caught.value.code is None or isinstance(caught.value.code, int)
    return caught.value.code or 0


def heavy_imports(*commands: list[str], extra: str = "") -> list[str]:
    """Heavy packages that a fresh interpreter has loaded after running commands."""
    code = f"""
import contextlib, io, json, sys
{extra}
from rdrop.cli import main
for words in {commands!r}:
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.suppress(SystemExit):
        main(words)
    assert out.getvalue().strip(), words
print(json.dumps([name for name in {HEAVY!r} if name in sys.modules]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    found: list[str] = json.loads(done.stdout)
    return found


def test_help_loads_neither_torch_nor_anything_else_that_is_heavy() -> None:
    helps = [["--help"], *([name, "--help"] for name in COMMANDS)]
    light = [["--version"], ["compare", "--schema"], ["recipes"]]
    assert heavy_imports(*helps, *light) == []


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        (["rdrop", "ev"], ["evaluate"]),
        (["rdrop", "train", "--re"], ["--resume"]),
        (["rdrop", "train", "--arm", ""], ["plain", "twice", "rdrop", "longer", *EXAMPLES]),
        (["rdrop", "init", "dig"], ["digits"]),
        (["rdrop", "recipes", "digi"], ["digits"]),
        (["rdrop", "evaluate", "--split", "v"], ["validation"]),
        (["rdrop", "export", "--format", ""], ["huggingface", "onnx"]),
    ],
)
def test_the_shell_completes_commands_options_and_words(
    typed: list[str], offered: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = {"_RDROP_COMPLETE": "complete_bash", "COMP_WORDS": " ".join(typed), "COMP_CWORD": str(len(typed) - 1)}
    for name, value in asked.items():
        monkeypatch.setenv(name, value)
    assert run() == 0
    assert capsys.readouterr().out.split() == offered


def test_completion_is_light() -> None:
    asked = {"_RDROP_COMPLETE": "complete_bash", "COMP_WORDS": "rdrop init dig", "COMP_CWORD": "2"}
    assert heavy_imports([], extra=f"import os; os.environ.update({asked!r})") == []
    assert heavy_imports([], extra="import os; os.environ['_RDROP_COMPLETE'] = 'source_bash'") == []


def test_the_check_of_imports_can_fail() -> None:
    assert "numpy" in heavy_imports(["--help"], extra="import numpy")


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--version") == 0
    assert capsys.readouterr().out.strip() == version("rdrop")


def test_without_the_extra_the_answer_is_the_command_that_installs_it() -> None:
    code = """
import sys
sys.modules["typer"] = None  # as if it were not installed
from rdrop.cli import main
main(["--help"])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"{MISSING_EXTRA} (missing: typer)\n"


def test_a_missing_module_of_our_own_is_not_blamed_on_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rdrop.cli.app", None)
    with pytest.raises(ModuleNotFoundError, match=r"rdrop\.cli\.app"):
        main(["--help"])


def test_a_mistake_is_one_message_without_control_characters(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run("compare", "missing.yaml") == 2
    assert capsys.readouterr().err.startswith("error: got 'missing.yaml', expected the path of a recipe")
    Path("red.yaml").write_text('"\\e[31mred": 1\n')
    assert run("compare", "red.yaml") == 2
    assert capsys.readouterr().err.startswith("error: red.yaml:1:1: \N{REPLACEMENT CHARACTER}[31mred is not a key")
    assert list(tmp_path.iterdir()) == [tmp_path / "red.yaml"]


def test_an_option_that_does_not_exist_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("compare", "--sedes", "3") == 2
    assert "--seeds" in capsys.readouterr().err


def test_recipes_lists_and_prints(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("recipes") == 0
    listed = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in listed] == list(built_in_recipes())
    assert "digits" in listed[[line.split()[0] for line in listed].index("digits")]
    assert run("recipes", "digits") == 0
    assert capsys.readouterr().out == built_in_recipes()["digits"]
    assert run("recipes", "digit") == 2
    assert "did you mean digits?" in capsys.readouterr().err


def test_env_names_versions_devices_and_kernels(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("env", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["rdrop"] == version("rdrop")
    assert found["torch"] == version("torch")
    assert {"python", "cuda", "processor", "cores", "memory", "accelerators", "kernel fused"} <= found.keys()
    assert run("env") == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()][:2] == list(found)[:2]


def test_the_console_entry_is_this_function() -> None:
    from importlib.metadata import entry_points

    (entry,) = entry_points(group="console_scripts", name="rdrop")
    assert entry.load() is rdrop.cli.main
