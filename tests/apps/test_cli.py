"""The command line: what each verb answers, in words and in JSON, and what it refuses."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from pragnosia.model.presets import PRESETS

Run = Callable[..., Any]
"""Runs a command line; what it gives back stands in conftest.py."""


def test_help_loads_nothing_heavy() -> None:
    script = (
        "import sys, pragnosia.apps.cli as cli; cli.main(['--help']); "
        "print(any(name in sys.modules for name in ('torch', 'transformers', 'datasets', 'matplotlib')))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("False")
    verbs = [
        "train",
        "generate",
        "chat",
        "eval",
        "calibrate",
        "inspect",
        "import",
        "export",
        "tokenizer",
        "compare",
        "doctor",
    ]
    for verb in verbs:
        assert verb in done.stdout


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["generat"], "generate"),
        (["generate"], "MODEL"),
        (["generate", "m", "p", "--temprature", "1"], "--temperature"),
        (["generate", "m", "p", "--top-k", "few"], "--top-k"),
        (["tokenizer", "train", "x"], "--vocab-size"),
    ],
)
def test_a_wrong_command_line_is_one_line(run: Run, arguments: list[str], word: str) -> None:
    run(*arguments).refused(word)


def test_generate_says_text_and_cost(run: Run, model: Path) -> None:
    outcome = run("generate", model, "Once upon", "--max-new-tokens", 8, "--json")
    assert outcome.code == 0
    assert set(outcome.values) == {
        "text",
        "stopped",
        "tokens",
        "tokens_per_second",
        "seconds_to_first_token",
        "decoding",
        "energy",
        "operations_per_token",
        "bytes_per_token",
        "joules",
        "joules_source",
    }
    assert outcome.values["tokens"] == 8
    plain = run("generate", model, "Once upon", "--max-new-tokens", 8)
    assert plain.out.startswith(outcome.values["text"])
    assert "tokens/s" in plain.err


def test_less_energy_costs_less(run: Run, calibrated: Path) -> None:
    full, half = (
        run("generate", calibrated, "Once", "--max-new-tokens", 8, "--json", "--energy", energy).values
        for energy in (1, "draft")
    )
    assert half["operations_per_token"] < full["operations_per_token"]
    assert half["joules"] < full["joules"] or full["joules_source"] != "model"


def test_a_seed_says_the_same_twice(run: Run, model: Path) -> None:
    said = [run("generate", model, "A", "--temperature", 1, "--seed", 7, "--json").values["text"] for _ in range(2)]
    assert said[0] == said[1]


def test_eval(run: Run, model: Path, story: Path) -> None:
    values = run("eval", model, "--data", story, "--json").values
    assert values["bytes"] == story.stat().st_size
    assert 1 < values["bits_per_byte"] < 9
    assert values["perplexity"] > 1


@pytest.mark.parametrize("preset", PRESETS)
def test_inspect_a_preset(run: Run, preset: str) -> None:
    values = run("inspect", preset, "--json").values
    assert values["total_parameters"] > values["active_parameters"] > 0
    assert values["operations_per_token"] > values["active_parameters"]
    assert set(values["memory"]) == {"train", "tune", "run"}
    assert values["memory"]["train"] > values["memory"]["tune"]


def test_inspect_says_who_sleeps(run: Run) -> None:
    assert "12 of 256 units of width 16, 95.3% asleep" in run("inspect", "braingpt-small").out


def test_inspect_what_a_configuration_would_train(run: Run, trained: Path, tmp_path: Path) -> None:
    """As what it has trained is seen."""
    config = trained.parent / "tiny.yaml"
    would, does = (run("inspect", path, "--json").values for path in (config, trained))
    assert would | {"model": None} == does | {"model": None}
    assert does["precision"] == "float32"
    told = run("inspect", Path(__file__).parents[2] / "configs" / "braingpt-nano.yaml").out
    assert "6 of 128 units of width 16, 95.3% asleep" in told
    assert "6 layers of width 192, vocabulary 2048" in told
    brief = tmp_path / "brief.yml"
    brief.write_text("model: {preset: braingpt-small}\ntokenizer: {vocab_size: 16384}\n", "utf-8")
    assert "12 of 256 units" in run("inspect", brief).out, "how long it is trained matters to nobody here"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("steps: 3\n", ("has no section `model`",)),
        ("model: {hiden_size: 3}\nsteps: 3\n", ("hiden_size", "hidden_size")),
        ("model: {preset: nanno}\nsteps: 3\n", ("nanno", "nano")),
        ("model: 7\n", ("model is 7",)),
        ("[", ("is not YAML",)),
    ],
)
def test_inspect_a_configuration_that_is_none(run: Run, tmp_path: Path, text: str, words: tuple[str, ...]) -> None:
    config = tmp_path / "x.yaml"
    config.write_text(text, "utf-8")
    run("inspect", config).refused(*words)
    run("inspect", tmp_path / "none.yaml").refused("cannot read the configuration", "none.yaml")


def test_inspect_a_model_and_in_words(run: Run, model: Path) -> None:
    outcome = run("inspect", model)
    assert outcome.code == 0
    assert "2 of 8 units" in outcome.out
    assert "language 4, reasoning 4" in outcome.out


def test_chat_answers_each_line(run: Run, model: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    turns = tmp_path / "turns"
    turns.write_text("hello\nand you?\n", "utf-8")
    with turns.open(encoding="utf-8") as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        values = run("chat", model, "--json", "--max-new-tokens", 4, "--seed", 1).values
    assert [turn["role"] for turn in values["messages"]] == ["user", "assistant"] * 2


def test_train_compare_tokenizer(run: Run, story: Path, tmp_path: Path) -> None:
    config = tmp_path / "tiny.yaml"
    config.write_text(
        "model: {preset: nano, hidden_size: 32, num_hidden_layers: 1, max_position_embeddings: 64}\n"
        "tokenizer: {vocab_size: 280}\nbatch: {batch_size: 2, sequence_length: 32}\nsteps: 3\n"
        "logging: {every: 1, validate_every: 3, tensorboard: false}\n",
        "utf-8",
    )
    out = tmp_path / "run"
    outcome = run("train", config, "--data", story, "--out", out, "--json", "--set", "optimiser.learning_rate=1e-3")
    assert outcome.code == 0, outcome.err
    assert {"out", "steps", "tokens", "bits_per_byte", "tokens_per_second", "seconds"} <= set(outcome.values)
    assert outcome.values["steps"] == 3
    assert run("generate", out, "Once", "--max-new-tokens", 3, "--json").code == 0
    run("train", config, "--data", story, "--out", out).refused(str(out))
    run("train", config, "--data", story, "--out", tmp_path / "b", "--set", "optimiser.lerning_rate=1").refused(
        "learning_rate"
    )
    run("train", tmp_path / "no.yaml", "--data", story).refused("no.yaml")
    report = run("tokenizer", "train", story, "--vocab-size", 300, "--out", tmp_path / "tok", "--json").values
    assert report["bytes_per_token"] > 1
    run("tokenizer", "train", story, "--vocab-size", 100, "--out", tmp_path / "tok2").refused("vocab_size")
    assert not (tmp_path / "tok2").exists()


def test_doctor(run: Run) -> None:
    values = run("doctor", "--quick", "--json").values
    assert values["libraries"]["torch"]
    assert "processor" in run("doctor", "--quick").out


class TestBadInput:
    """Each is one clear line, exit code 2, and leaves nothing behind."""

    def test_missing_model(self, run: Run, tmp_path: Path) -> None:
        run("generate", tmp_path / "none", "hi").refused("none")

    def test_corrupt_config(self, run: Run, model: Path, tmp_path: Path) -> None:
        broken = _copy(model, tmp_path)
        (broken / "config.json").write_text("{not json", "utf-8")
        run("generate", broken, "hi").refused("config.json")

    def test_unknown_config_key(self, run: Run, model: Path, tmp_path: Path) -> None:
        broken = _copy(model, tmp_path)
        values = json.loads((broken / "config.json").read_text("utf-8"))
        (broken / "config.json").write_text(json.dumps(values | {"hiden_size": 3}), "utf-8")
        run("inspect", broken).refused("hiden_size", "hidden_size")

    def test_truncated_weights(self, run: Run, model: Path, tmp_path: Path) -> None:
        broken = _copy(model, tmp_path)
        weights = broken / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-100])
        run("generate", broken, "hi").refused("model.safetensors")

    def test_missing_tensor(self, run: Run, model: Path, tmp_path: Path) -> None:
        broken = _copy(model, tmp_path)
        tensors = load_file(broken / "model.safetensors")
        tensors.pop("model.norm.weight")
        save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})
        run("generate", broken, "hi").refused("model.norm.weight")

    def test_wrong_tokenizer(self, run: Run, model: Path, story: Path, tmp_path: Path) -> None:
        broken = _copy(model, tmp_path)
        run("tokenizer", "train", story, "--vocab-size", 340, "--out", tmp_path / "other", "--json")
        for file in (tmp_path / "other").iterdir():
            shutil.copy(file, broken)
        run("generate", broken, "hi").refused("tokenizer", "300")

    @pytest.mark.parametrize(
        ("options", "word"),
        [
            (["--temperature", "-1"], "temperature"),
            (["--top-p", "2"], "top_p"),
            (["--top-k", "0"], "top_k"),
            (["--max-new-tokens", "0"], "max_new_tokens"),
            (["--energy", "0"], "energy"),
            (["--energy", "1.5"], "energy"),
            (["--repetition-penalty", "0"], "repetition_penalty"),
        ],
    )
    def test_impossible_options(self, run: Run, model: Path, options: list[str], word: str) -> None:
        run("generate", model, "hi", *options).refused(word)

    def test_prompt_longer_than_the_context(self, run: Run, model: Path) -> None:
        run("generate", model, "brain " * 100).refused("context")

    def test_empty_and_binary_text(self, run: Run, model: Path, tmp_path: Path) -> None:
        empty, binary = tmp_path / "empty.txt", tmp_path / "binary.txt"
        empty.write_bytes(b"")
        binary.write_bytes(b"abc\x00\xff" * 50)
        run("eval", model, "--data", empty).refused("empty.txt")
        run("eval", model, "--data", binary).refused("binary.txt")

    def test_impossible_sizes(self, run: Run, story: Path, tmp_path: Path) -> None:
        config = tmp_path / "odd.yaml"
        for model, word in (
            ("{attention: {num_heads: 3, num_key_value_heads: 2}}", "num_heads"),
            ("{experts: {num_units: 2, thalamus: {num_awake: 4}}}", "num_awake"),
        ):
            config.write_text(f"model: {model}\nsteps: 1\n", "utf-8")
            run("train", config, "--data", story, "--out", tmp_path / "odd").refused(word)
        assert not (tmp_path / "odd").exists()

    def test_out_that_exists(self, run: Run, model: Path, tmp_path: Path) -> None:
        (tmp_path / "full").mkdir()
        (tmp_path / "full" / "note").write_text("mine", "utf-8")
        run("export", model, tmp_path / "full").refused()
        assert (tmp_path / "full" / "note").read_text("utf-8") == "mine"

    def test_foreign_model(self, run: Run, tmp_path: Path) -> None:
        foreign = tmp_path / "bert"
        foreign.mkdir()
        (foreign / "config.json").write_text('{"model_type": "bert", "architectures": ["BertModel"]}', "utf-8")
        run("generate", foreign, "hi").refused("'bert' is not supported", "qwen3_moe")
        run("import", foreign, tmp_path / "out").refused("Bert", "llama")
        assert not (tmp_path / "out").exists()


def _copy(model: Path, folder: Path) -> Path:
    return Path(shutil.copytree(model, folder / "broken"))


def test_several_values_after_one_option(run: Run, model: Path, story: Path) -> None:
    values = run("eval", model, "--data", story, story, "--json").values
    assert values["bytes"] == 2 * story.stat().st_size


def test_a_blank_line_does_not_end_a_piped_chat(
    run: Run, model: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    turns = tmp_path / "turns"
    turns.write_text("hello\n\nthere\n", "utf-8")
    with turns.open(encoding="utf-8") as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        values = run("chat", model, "--json", "--max-new-tokens", 2, "--seed", 1).values
    assert len(values["messages"]) == 4


def test_what_fresh_eyes_tripped_over(run: Run, model: Path, story: Path, tmp_path: Path) -> None:
    run("eval", model, "--data", story, "--max-bytes", "zz").refused("zz")
    config = tmp_path / "heads.yaml"
    config.write_text(
        "model: {hidden_size: 32, attention: {num_heads: 3, num_key_value_heads: 3}}\nsteps: 1\n", "utf-8"
    )
    run("train", config, "--data", story, "--out", tmp_path / "out").refused("num_heads", "hidden_size")
    config.write_text("model: {preset: nano}\nsteps: 1\n", "utf-8")
    run("compare", config, "--data", tmp_path / "none.txt", "--out", tmp_path / "pair").refused("none.txt")
    assert not (tmp_path / "pair").exists()
