from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from transformers import HfArgumentParser, TrainingArguments

from rdrop.integrations.transformers import RDropConfig

ALONE: Any = RDropConfig
BESIDE: Any = (TrainingArguments, RDropConfig)


def test_every_field_can_be_set_on_a_command_line_beside_those_of_the_trainer(tmp_path: Path) -> None:
    words = (
        "--alpha 3 --schedule warmup --passes 3 --every 2 --fraction 0.5 --branch_at -1 --one_sided --strategy concat "
        "--kind binary --divergence js --stop_gradient rest --impl fused --linear_head false"
    )
    parser = HfArgumentParser(BESIDE)
    arguments, config = parser.parse_args_into_dataclasses(
        ["--output_dir", str(tmp_path), "--max_steps", "7", *words.split()]
    )
    assert arguments.max_steps == 7
    assert dataclasses.asdict(config) == {
        **{"alpha": 3.0, "schedule": "warmup", "passes": 3, "every": 2, "fraction": 0.5, "branch_at": "-1"},
        **{"one_sided": True, "strategy": "concat", "kind": "binary", "divergence": "js", "stop_gradient": "rest"},
        **{"impl": "fused", "linear_head": False},
    }
    assert all(getattr(config, field.name) != field.default for field in dataclasses.fields(RDropConfig))


def test_defaults_need_no_word() -> None:
    (config,) = HfArgumentParser(ALONE).parse_args_into_dataclasses([])
    assert config == RDropConfig()


def test_the_help_is_that_of_the_docstring(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        HfArgumentParser(ALONE).parse_args(["--help"])
    told = " ".join(capsys.readouterr().out.split())
    assert "Weight of the divergence beside the mean task loss, at least 0." in told
    assert "0 < fraction <= 1. Their divergence is scaled up to stand for all rows." in told
    for field in dataclasses.fields(RDropConfig):
        assert f"--{field.name}" in told
        assert field.metadata["help"].endswith(".")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": -1.0}, "alpha is -1.0"),
        ({"schedule": "falling"}, "schedule is 'falling'; expected one of 'constant', 'warmup'"),
        ({"strategy": "both"}, "strategy is 'both'; expected one of"),
        ({"kind": "soft"}, "kind is 'soft'"),
        ({"divergence": "l2"}, "divergence is 'l2'"),
        ({"passes": 0}, "passes is 0; expected at least 1"),
        ({"every": 0}, "every is 0; expected at least 1"),
        ({"fraction": 0.0}, "fraction is 0.0; expected a share"),
    ],
)
def test_a_value_out_of_range_is_refused_at_once(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RDropConfig(**options)  # type: ignore[arg-type]
