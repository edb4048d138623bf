"""`export --format nir` and `import FILE.nir`: a brain goes out and comes back; what cannot be is one line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

pytest.importorskip("h5py", reason="NIR files need the extra nir")

Run = Callable[..., Any]


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "brain.yaml"
    values = {
        "drive": {"constant": {"mean_mv": 17, "spread_mv": 3}},
        "populations": {"ear": {"size": 40}, "mouth": {"size": 30, "neuron": {"kind": "lif"}}},
        "projections": [{"source": "ear", "target": "mouth", "fan_in": 6, "weight": 0.5, "delay_ms": 3}],
    }
    path.write_text(yaml.safe_dump(values), "utf-8")
    return path


def test_out_and_back(run: Run, config: Path, tmp_path: Path) -> None:
    graph, back = tmp_path / "b.nir", tmp_path / "back"
    told = run("export", config, graph, "--format", "nir", "--json").values
    assert (told["neurons"], told["synapses"]) == (70, 180)
    assert told["num_bytes"] == graph.stat().st_size
    read = run("import", graph, back, "--json").values
    assert read["populations"] == {"ear": 40, "mouth": 30}
    assert (read["synapses"], read["notes"], read["dt_ms"]) == (180, [], 1)
    first, again = (run("simulate", one, "--steps", "150", "--json").values for one in (config, back))
    assert first["mean_rate_hz"] == again["mean_rate_hz"]
    # a folder can be written as well, and people are told what to do next
    assert "nodes" in run("export", back, tmp_path / "c.nir", "--format", "nir").out
    assert f"pragnosia simulate {tmp_path / 'd'}" in run("import", tmp_path / "c.nir", tmp_path / "d").out
    run("import", graph, tmp_path / "e", "--dt-ms", "2").refused("was written for steps of 1 ms", "leave --dt-ms out")
    run("export", config, tmp_path / "n.nir", "--format", "nir", "--drive", "noise")
    assert "--drive noise" in run("import", tmp_path / "n.nir", tmp_path / "n").out
    run("export", config, graph, "--format", "nir").refused("already exists")
    run("import", graph, back).refused("already exists")


def test_what_cannot_be_is_one_line(run: Run, config: Path, tmp_path: Path) -> None:
    out = tmp_path / "x.nir"
    run("export", config, out).refused("add --format nir")
    run("export", config, out, "--format", "nri").refused("unknown format 'nri'", "nir")
    run("export", tmp_path / "model", out, "--format", "nir").refused("nor a brain wired in YAML")
    run("export", config, tmp_path / "no" / "x.nir", "--format", "nir").refused("there is no folder")
    run("export", config, out, "--format", "nir", "--drive", "noice").refused("unknown drive 'noice'")
    run("export", config, out, "--format", "nir", "--family", "llama").refused("--family llama is for models of words")
    run("import", out, tmp_path / "y").refused("there is no file")
    run("import", config, tmp_path / "y", "--dt-ms", "1").refused("--dt-ms is for NIR graphs")
    run("import", out, tmp_path / "y", "--dt-ms", "0").refused("--dt-ms is 0.0")
    out.write_bytes(b"\x89HDF but no more")
    run("import", out, tmp_path / "y").refused("cannot read", "HDF5")
    assert not (tmp_path / "y").exists()
