"""Long-term memory beyond the budget, at the command line: planned, spoken with, and told of."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pragnosia import kernels
from pragnosia.model.configuration import PragnosiaConfig
from pragnosia.model.modeling import PragnosiaForCausalLM
from pragnosia.units import MIB

pytestmark = pytest.mark.skipif(kernels.native_library() is None, reason="no compiled kernels here")
Run = Callable[..., Any]


@pytest.fixture(scope="module")
def recalling(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that is mostly table: 24 MiB of it."""
    folder = tmp_path_factory.mktemp("recalling") / "model"
    config = PragnosiaConfig(
        vocab_size=300,
        hidden_size=24,
        num_hidden_layers=2,
        max_position_embeddings=64,
        attention={"num_heads": 2, "num_key_value_heads": 1, "head_dim": 12},
        feed_forward={"width": 32},
        feed_forwards=["memory", "dense"],
        hippocampus={"num_rows": 1 << 18, "num_heads": 2, "num_awake": 8, "key_width": 8},
    )
    PragnosiaForCausalLM(config).save_pretrained(folder)
    for file in model.glob("*token*"):
        shutil.copy(file, folder)
    return folder


def test_a_plan_tells_of_rows_and_a_model_speaks_within_it(run: Run, recalling: Path) -> None:
    rates = ("--rates", "memory=20GB/s,disk=1GB/s")
    whole = run("plan", recalling, "--memory", "1GiB", "--json", *rates).values
    assert (whole["rows"], whole["row"], whole["recalled"]) == (1 << 18, 96, 16)
    assert (whole["row_slots"], whole["row_hit_rate"], whole["single_reads_per_second"]) == (1 << 18, 1.0, None)
    budget = f"{(whole['total'] - 14 * MIB) // MIB}MiB"
    values = run("plan", recalling, "--memory", budget, "--json", *rates).values
    assert 0 < values["row_slots"] < 1 << 18
    assert values["total"] <= values["budget"]
    assert values["single_reads_per_second"] > 0
    told = run("plan", recalling, "--memory", budget, *rates).out
    assert f"{values['row_slots']} of 262144 rows of 96 B, the others on disk" in told
    assert "of recalled rows (" in told
    assert "single reads" in told
    said = run("generate", recalling, "Once upon", "--max-new-tokens", 12, "--json").values
    within = run("generate", recalling, "Once upon", "--max-new-tokens", 12, "--json", "--memory", budget).values
    assert (within["text"], within["decoding"]) == (said["text"], "compiled")
    assert 0 <= within["row_hit_rate"] <= 1
    assert within["rows_read_per_token"] > 0
    assert within["bytes_read_per_token"] > 0
    stats = run("generate", recalling, "Once upon", "--max-new-tokens", 4, "--memory", budget, "--stats").err
    assert "% of recalled rows were here, " in stats
