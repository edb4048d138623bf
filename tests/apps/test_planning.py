"""`plan` of presets and directories: every number in JSON, room on disk, rates measured, given or assumed."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import MixtralConfig, MixtralForCausalLM

from pragnosia import kernels
from pragnosia.errors import BudgetError
from pragnosia.inference.budget import as_bytes
from pragnosia.inference.sizes import described_preset
from pragnosia.kernels.formats import FORMATS
from pragnosia.tuning.configuration import LoraConfig
from pragnosia.tuning.peft_format import write_adapter
from pragnosia.units import MIB

Run = Callable[..., Any]
RATES = ("--rates", "memory=20GB/s,disk=1GB/s,vram=300GB/s,link=12GB/s")


def test_a_preset_is_planned_in_the_default_format(run: Run) -> None:
    done = run("plan", "450b", "--memory", "16GiB", *RATES)
    assert done.code == 0, done.err
    assert re.search(r"on disk +\d+ GiB  packed as int4 \(the default\)", done.out)
    assert re.search(
        r"expected once warm: \d+% of woken units here \(\d+% to \d+%\), [\d.]+ tokens/s \([\d.]+ to [\d.]+\)", done.out
    )
    assert "given: memory 18.6 GiB/s, disk 954 MiB/s\n" in done.out
    values = run("plan", "450b", "--memory", "16GiB", "--format", "int8", "--json", *RATES).values
    assert values["format"] == "int8"
    assert values["on_disk"] == described_preset("450b", "int8").on_disk
    assert values["hit_rate_low"] < values["hit_rate"] < values["hit_rate_high"]
    assert values["tokens_per_second_low"] < values["tokens_per_second"] < values["tokens_per_second_high"]
    assert (values["vram"], values["vram_slots"], values["vram_bytes_per_second"]) == (0, 0, None)


@pytest.mark.skipif(kernels.native_library() is None, reason="no compiled kernels here")
def test_what_packing_would_buy(run: Run, model: Path, tmp_path: Path) -> None:
    as_it_lies = run("plan", model, "--memory", "2GiB", "--json", *RATES).values
    foretold = run("plan", model, "--memory", "2GiB", "--format", "int8", "--json", *RATES).values
    packed = run("pack", model, tmp_path / "out", "--format", "int8", "--json").values
    assert as_it_lies["format"] == "fp32"
    assert as_it_lies["on_disk"] == packed["source_bytes"]
    assert foretold["on_disk"] == packed["num_bytes"]
    found = run("plan", tmp_path / "out", "--memory", "2GiB", "--json", *RATES).values
    for name in ("resident", "record", "slots", "num_units", "awake_bytes", "scratch", "cache"):
        assert found[name] == foretold[name], name
    assert "as it lies, fp32" in run("plan", model, "--memory", "2GiB", *RATES).out


def test_room_on_disk(run: Run, at_once: Run, tmp_path: Path) -> None:
    small = ("plan", "450b", "--memory", "16GiB", *RATES, "--disk")
    run(*small, "150GB").refused("450b as int4 takes", "--disk 150GB", "--format int2 takes")
    run(*small, "1GB").refused("int2, the smallest format, takes")
    assert "; --disk has room for 466 GiB" in run(*small, "500GB").out
    room = run("plan", "nano", "--memory", "2GiB", "--disk", tmp_path, "--json", *RATES).values["disk_room"]
    assert room > MIB
    at_once(*small, "tmpp").refused("--disk", "'tmpp'", "or name a folder that is there")


def test_a_gpu_in_the_plan(run: Run) -> None:
    done = run("plan", "7b", "--memory", "2GiB", "--vram", "2GiB", *RATES)
    assert done.code == 0, done.err
    for words in ("on the GPU", "in memory", "% on the GPU", "vram 279 GiB/s, link 11.2 GiB/s"):
        assert words in done.out
    values = run("plan", "7b", "--memory", "2GiB", "--vram", "2GiB", "--json", *RATES).values
    assert values["vram"] == 2048 * MIB
    assert 0 < values["vram_slots"] < values["num_units"]
    assert values["vram_total"] <= values["vram"]
    assert 0 < values["vram_hit_rate"] < values["hit_rate"]
    assert (values["vram_bytes_per_second"], values["link_bytes_per_second"]) == (300e9, 12e9)
    assert values["rates_assumed"] == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU to measure")
def test_what_cannot_be_measured_is_assumed_and_said(run: Run) -> None:
    shown = ("plan", "7b", "--memory", "2GiB", "--vram", "2GiB", "--rates", "disk=1GB/s,memory=20GB/s")
    assert "; assumed: vram 279 GiB/s, link 11.2 GiB/s" in run(*shown).out
    assert run(*shown, "--json").values["rates_assumed"] == ["vram", "link"]


def test_a_directory_is_measured(run: Run, model: Path) -> None:
    done = run("plan", model, "--memory", "2GiB", "--rates", "memory=20GB/s")
    assert re.search(r"measured: disk .*; given: memory 18.6 GiB/s", done.out), done.out + done.err


def test_wrong_words_are_told_before_anything_is_loaded(at_once: Run) -> None:
    at_once("plan", "7b", "--memory", "lots").refused("--memory", "'lots'")
    at_once("plan", "7b", "--memory", "2GiB", "--vram", "0").refused("--vram is 0")
    at_once("plan", "7b", "--memory", "2GiB", "--rates", "lnk=1GB/s").refused("unknown rate 'lnk'", "link")
    at_once("plan", "7b", "--memory", "2GiB", "--rates", "fast").refused("'fast' is no rate")
    at_once("plan", "7b", "--memory", "2GiB", "--rates", "disk=quick").refused("disk", "'quick'")


def test_neither_a_preset_nor_a_directory(run: Run, tmp_path: Path) -> None:
    run("plan", "45b", "--memory", "2GiB").refused("unknown preset '45b'", "450b", "no directory of that name")
    (tmp_path / "weights.bin").touch()
    for command in (("plan", "--memory", "2GiB"), ("inspect",)):
        run(*command, tmp_path / "nope").refused(f"no model directory at {tmp_path / 'nope'}; name one", "450b")
        run(*command, tmp_path / "weights.bin").refused("weights.bin is a file, and no GGUF file")


def test_help_names_every_format_there_is(run: Run) -> None:
    run("plan", "nano", "--memory", "2GiB", "--format", "int5", *RATES).refused(
        "unknown format 'int5'", "Available: bf16,"
    )
    assert "fp32" not in run("plan", "nano", "--memory", "2GiB", "--format", "int5", *RATES).err
    for verb in ("plan", "pack"):
        words = re.sub(r"[\s│]+", " ", re.sub(r"\x1b\[[0-9;]*m", "", run(verb, "--help").out))
        for name in FORMATS.keys() - {"fp32"}:
            assert re.search(rf"[ :]{name}[,.; ]", words), (verb, name)
            assert run("plan", "nano", "--memory", "2GiB", "--format", name, *RATES).code == 0


@pytest.mark.skipif(kernels.native_library() is None, reason="no compiled kernels here")
def test_what_runs_beside_a_model_is_counted(run: Run, model: Path, tmp_path: Path) -> None:
    adapter, mixture = tmp_path / "adapter", tmp_path / "mixture"
    write_adapter(
        adapter,
        {
            f"model.layers.0.mixer.q_proj.lora_{part}": torch.ones(shape)
            for part, shape in (("a", (2, 32)), ("b", (32, 2)))
        },
        LoraConfig(rank=2, alpha=4.0),
        model,
    )
    MixtralForCausalLM(
        MixtralConfig(
            vocab_size=64,
            hidden_size=32,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=2,
            num_local_experts=4,
            max_position_embeddings=256,
        )
    ).save_pretrained(mixture)
    command = ("plan", "--memory", "4GiB", "--json", *RATES)
    plain, laden = (run(*command, model, *more).values for more in ((), ("--adapter", adapter)))
    assert laden["slots"] <= plain["slots"]
    lighter, exact = (run(*command, mixture, *more).values for more in ((), ("--exact",)))
    assert exact["scratch"] > lighter["scratch"]
    assert exact["total"] <= 4096 * MIB
    run("plan", mixture, "--memory", "4GiB", "--exact", "--format", "int4").refused("leave --format out, or --exact")
    run("plan", "nano", "--memory", "4GiB", "--exact").refused("for a model that is there, and nano is not")
    run("plan", model, "--memory", "4GiB", "--vram", "1GiB", "--adapter", adapter).refused("do not run within --vram")
    run("plan", model, "--memory", "4GiB", "--adapter", mixture).refused("adapter")


def test_rates_need_a_unit(run: Run, model: Path) -> None:
    outcome = run("plan", model, "--memory", "2GiB", "--rates", "memory=40")
    assert outcome.code != 0
    assert "memory is 40 of what? Write a unit, as in memory=40GB/s" in outcome.err


def test_the_longest_context_is_told(run: Run, model: Path) -> None:
    values = run("plan", model, "--memory", "2GiB", "--json", "--rates", "memory=20GB/s,disk=1GB/s").values
    assert values["longest_context"] == 64
    assert (
        "longest context that fits" in run("plan", model, "--memory", "2GiB", "--rates", "memory=20GB/s,disk=1GB/s").out
    )


def test_a_gpu_too_small_may_be_left_out(run: Run) -> None:
    shared = run("plan", "450b", "--memory", "16GiB", "--vram", "4GiB", *RATES)
    assert "on the GPU: the head, and all but the last" in shared.out
    assert "tokens/s" in shared.out
    outcome = run("plan", "450b", "--memory", "16GiB", "--vram", "2GiB")
    assert outcome.code != 0
    assert outcome.err.strip().endswith("or leave --vram out")


def test_a_bare_number_is_asked_about(run: Run, model: Path) -> None:
    run("plan", "7b", "--memory", "4", *RATES).refused("--memory is 4, which is 4 bytes; did you mean 4GiB?")
    run("plan", "7b", "--memory", "4GiB", "--vram", "2", *RATES).refused("--vram is 2", "did you mean 2GiB?")
    run("generate", model, "hi", "--memory", "0.5").refused("did you mean 0.5GiB?")
    with pytest.raises(BudgetError, match="did you mean 4GiB"):
        as_bytes(4)


def test_a_busy_machine_is_told_where_something_is_measured(
    run: Run, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = ("plan", model, "--memory", "2GiB", "--rates", "memory=20GB/s")
    for load, told in ((1000.0, True), (0.0, False)):
        monkeypatch.setattr("os.getloadavg", lambda load=load: (load, load, load))
        done = run(*given)
        assert done.code == 0
        assert ("pragnosia: this machine is busy (1000.0 processes wanted its" in done.err) == told
    monkeypatch.setattr("os.getloadavg", lambda: (1000.0, 0.0, 0.0))
    assert "busy" not in run("plan", model, "--memory", "2GiB", *RATES).err, "nothing is measured"
