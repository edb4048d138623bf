"""`generate` and `chat`: why an answer ended, and what is refused before anything is loaded."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from pragnosia import PragnosiaConfig, PragnosiaForCausalLM, kernels
from pragnosia.inference import stream
from pragnosia.inference.dial import Dial, Notch, model_print
from pragnosia.inference.directory import has_tokenizer
from pragnosia.inference.exits import Draft, Exit, Exits
from pragnosia.model.setting import WHOLE, Setting

Run = Callable[..., Any]


def test_a_full_context_is_told(run: Run, model: Path) -> None:
    prompt = "Once upon a time " * 3
    assert run("generate", model, prompt, "--max-new-tokens", 500, "--json").values["stopped"] == "context"
    plain = run("generate", model, prompt, "--max-new-tokens", 500)
    assert plain.code == 0
    assert plain.err.splitlines()[0] == "[ended: the model's context of 64 tokens is full]"
    short = run("generate", model, prompt, "--max-new-tokens", 2)
    assert "context" not in short.err


def test_length_and_stop_are_told_apart(run: Run, model: Path) -> None:
    said = run("generate", model, "Once", "--max-new-tokens", 8, "--json").values
    assert said["stopped"] == "length"
    stopped = run("generate", model, "Once", "--max-new-tokens", 8, "--stop", said["text"][2:4], "--json").values
    assert stopped["stopped"] == "stop"


def test_chat_tells_of_a_full_context(run: Run, model: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    turns = tmp_path / "turns"
    turns.write_text("hello\n", "utf-8")
    with turns.open(encoding="utf-8") as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        outcome = run("chat", model, "--max-new-tokens", 500, "--seed", 1)
    assert outcome.code == 0
    assert "[ended: the model's context of 64 tokens is full]" in outcome.err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("verb", ["generate", "chat", "eval"])
def test_vram_without_a_gpu_is_one_line(run: Run, model: Path, story: Path, verb: str) -> None:
    given = {"generate": ("hi",), "chat": (), "eval": ("--data", story)}[verb]
    for options, told in (
        (("--memory", "8GiB", "--vram", "1GiB"), "--vram needs a GPU; torch sees none: leave it out, or"),
        (("--vram", "1GiB"), "--vram is the GPU's share beside --memory"),
        (("--memory", "8GiB", "--vram", "much"), "--vram: "),
        (("--memory", "8GiB", "--vram", "0GiB"), "--vram is 0GiB; it must be more than nothing"),
    ):
        outcome = run(verb, model, *given, *options)
        assert outcome.code == 2
        assert outcome.err.startswith(f"pragnosia: {told}")
        assert outcome.err.count("\n") == 1


@pytest.mark.skipif(kernels.native_library() is None, reason="no compiled kernels here")
def test_two_budgets(run: Run, model: Path, story: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "accelerator", lambda: torch.device("cpu"))  # stands in for a GPU
    options = ("--memory", "8GiB", "--vram", "1GiB")
    values = run("generate", model, "Once", "--max-new-tokens", 8, *options, "--json").values
    assert values["text"] == run("generate", model, "Once", "--max-new-tokens", 8, "--json").values["text"]
    assert 0 < values["gpu_hit_rate"] < 1
    assert values["bytes_copied_per_token"] > 0
    plain = run("generate", model, "Once", "--max-new-tokens", 8, *options, "--stats")
    assert plain.err.index("  on the GPU\n") < plain.err.index("  in memory\n")
    assert "% on the GPU), " in plain.err
    alone, beside = (run("eval", model, "--data", story, *some, "--json").values for some in ((), options))
    assert beside["bits_per_byte"] == pytest.approx(alone["bits_per_byte"], rel=1e-3)


@pytest.mark.parametrize("verb", [("generate", "hi"), ("chat",)])
@pytest.mark.parametrize(
    ("option", "word"),
    [
        (("--temperature", "-1"), "temperature is -1.0; it must be 0"),
        (("--top-p", "2"), "top_p is 2.0"),
        (("--energy", "3"), "energy is 3.0"),
        (("--max-new-tokens", "0"), "max_new_tokens is 0"),
    ],
)
def test_impossible_options_are_told_at_once(
    at_once: Run, model: Path, verb: tuple[str, ...], option: tuple[str, str], word: str
) -> None:
    at_once(verb[0], model, *verb[1:], *option).refused(word)


def test_bytes_that_are_no_text_are_told_at_once(at_once: Run, model: Path) -> None:
    at_once("generate", model, "a\udcffb").refused("not UTF-8", "character 1")
    at_once("chat", model, "--system", "\udcff").refused("not UTF-8")


def test_a_directory_that_is_none_is_told_at_once(at_once: Run, model: Path, tmp_path: Path) -> None:
    at_once("generate", tmp_path / "none", "hi").refused("no model directory at")
    for text, word in (("[]", "a JSON list"), ("{", "not valid JSON"), ("{}", "model_type")):
        (tmp_path / "config.json").write_text(text)
        at_once("chat", tmp_path).refused("config.json", word)
    broken = Path(shutil.copytree(model, tmp_path / "broken"))
    (broken / "model.safetensors").write_bytes(b"short")
    at_once("generate", broken, "hi").refused("truncated or corrupt")


def test_a_missing_tokenizer_is_told_at_once(at_once: Run, model: Path, story: Path, tmp_path: Path) -> None:
    mute = Path(shutil.copytree(model, tmp_path / "mute"))
    for file in mute.glob("tokenizer*"):
        file.unlink()
    for command in (("generate", mute, "hi"), ("chat", mute), ("eval", mute, "--data", story)):
        at_once(*command).refused("holds no tokenizer.json", "put the model's own there")


def test_a_tokenizer_of_another_model_is_told_at_once(at_once: Run, run: Run, trained: Path, tmp_path: Path) -> None:
    assert run("generate", trained, "hi", "--max-new-tokens", 2, "--json").code == 0
    other = Path(shutil.copytree(trained, tmp_path / "other"))
    tokenizer = json.loads((other / "tokenizer.json").read_text("utf-8"))
    tokenizer["model"]["merges"].reverse()
    (other / "tokenizer.json").write_text(json.dumps(tokenizer), "utf-8")
    for command in (("generate", other, "hi"), ("chat", other), ("eval", other, "--data", __file__)):
        at_once(*command).refused("tokenizer", "another model")


def test_a_tokenizer_that_is_only_described_is_told_at_once(at_once: Run, model: Path, tmp_path: Path) -> None:
    mute = Path(shutil.copytree(model, tmp_path / "mute"))
    (mute / "tokenizer.json").unlink()
    assert (mute / "tokenizer_config.json").exists()
    at_once("generate", mute, "hi").refused("holds no tokenizer.json", "put the model's own there")
    assert not has_tokenizer(mute)
    (mute / "vocab.json").touch()
    assert not has_tokenizer(mute), "half a tokenizer is none"
    (mute / "merges.txt").touch()
    assert has_tokenizer(mute)


def test_an_empty_stop_text_is_told_at_once(at_once: Run, model: Path) -> None:
    at_once("generate", model, "hi", "--stop", "").refused("stop is an empty text; give text that is to end the answer")


@pytest.mark.parametrize("words", [("generate", "hi", "--temperature", "1"), ("chat",), ("generate", "hi", "--json")])
def test_a_reader_that_went_away_is_no_error(model: Path, words: tuple[str, ...]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    verb, *rest = words
    script = "import sys; from pragnosia.apps.cli import main; sys.exit(main(sys.argv[1:]))"
    done = subprocess.run(
        [sys.executable, "-c", script, verb, str(model), *rest],
        stdout=writing,
        stderr=subprocess.PIPE,
        input="hello\nand you?\n",
        text=True,
        check=False,
    )
    os.close(writing)
    assert done.returncode == 0, done.stderr
    assert "pipe" not in done.stderr.lower()


def test_one_turn_that_cannot_be_does_not_end_a_talk(
    run: Run, model: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    turns = tmp_path / "turns"
    turns.write_bytes(b"hello\n" + b"brain " * 200 + b"\na\xffb\nand you?\n")
    with turns.open(encoding="utf-8") as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        outcome = run("chat", model, "--max-new-tokens", 4, "--seed", 1, "--json")
    assert outcome.code == 1, "a script is told that turns failed"
    said = [message["content"] for message in outcome.values["messages"] if message["role"] == "user"]
    assert said == ["hello", "and you?"]
    long, broken = outcome.err.splitlines()
    assert long.startswith("pragnosia: this turn and what goes before it take")
    assert long.endswith("the model's context holds 64 with the answer; say it in fewer words")
    assert "not UTF-8 text at character 1" in broken


@pytest.mark.skipif(kernels.native_library() is None, reason="no compiled kernels here")
def test_a_damaged_unit_does_not_end_a_talk(
    run: Run, model: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    packed, turns = tmp_path / "packed", tmp_path / "turns"
    assert run("pack", model, packed, "--format", "int8").code == 0
    units = packed / "units.bin"
    units.write_bytes(bytes(byte ^ 0x55 for byte in units.read_bytes()))
    turns.write_text("hello\nand you?\n", "utf-8")
    with turns.open(encoding="utf-8") as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        outcome = run("chat", packed, "--max-new-tokens", 4, "--memory", "2GiB", "--json")
    assert outcome.code == 1
    assert outcome.values["messages"] == []
    told = outcome.err.splitlines()
    assert len(told) == 2
    assert all("its checksum is wrong" in line for line in told)


@pytest.mark.skipif(kernels.native_library() is None, reason="no compiled kernels here")
def test_a_talk_says_what_was_here_and_what_was_read(
    run: Run, model: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    turns = tmp_path / "turns"
    turns.write_text("hello\nand you?\n", "utf-8")
    command = ("chat", model, "--max-new-tokens", 4, "--memory", "2GiB")
    for options in (["--stats"], ["--json"]):
        with turns.open(encoding="utf-8") as stdin:
            monkeypatch.setattr(sys, "stdin", stdin)
            outcome = run(*command, *options)
        assert outcome.code == 0
        if "--json" in options:
            assert 0 <= outcome.values["hit_rate"] <= 1
            assert outcome.values["bytes_read_per_token"] > 0
        else:
            assert "of woken units were here" in outcome.err
            assert "tokens in" in outcome.err


@pytest.mark.parametrize("verb", ["generate", "plan"])
def test_a_context_beyond_the_models_is_refused(run: Run, model: Path, verb: str) -> None:
    prompt = ["hi"] if verb == "generate" else []
    outcome = run(verb, model, *prompt, "--memory", "2GiB", "--context", 65)
    assert outcome.code != 0
    assert "--context is 65 tokens; the model holds at most 64" in outcome.err


def test_an_energy_budget_ends_an_answer(run: Run, model: Path, calibrated: Path) -> None:
    free = run("generate", model, "Once", "--max-new-tokens", 30, "--json").values
    budget = f"{free['joules'] / 3}J"
    values = run("generate", calibrated, "Once", "--max-new-tokens", 30, "--energy-budget", budget, "--json").values
    assert values["energy"] < 1, "the dial went down"
    assert run("generate", model, "Once", "--energy-budget", budget, "--json").values["energy"] == 1
    assert values["joules"] < free["joules"] / 2
    assert values["stopped"] in ("energy", "length")
    enough = ("Once", "--energy-budget", "1J", "--max-new-tokens", 2)
    assert "are spent; the dial is at: all of it" in run("generate", calibrated, *enough).err
    assert "not calibrated, so the dial stayed" in run("generate", model, *enough).err
    assert run("generate", model, "Once", "--energy-budget", "1nJ").code != 0


def test_an_energy_budget_lasts_for_a_talk(
    run: Run, model: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    turns = tmp_path / "turns"
    turns.write_text("hi\n" * 6, "utf-8")
    spent = []
    for budget in ("1J", "20uJ"):
        with turns.open(encoding="utf-8") as stdin:
            monkeypatch.setattr(sys, "stdin", stdin)
            outcome = run("chat", model, "--max-new-tokens", 4, "--seed", 1, "--energy-budget", budget, "--json")
        spent.append((outcome.values["joules"], len(outcome.values["messages"])))
    (whole, all_said), (bounded, said) = spent
    assert bounded < 25e-6 < whole
    assert said < all_said


def test_a_turn_that_costs_more_than_is_left(
    run: Run, model: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Is told of in a line, and costs nothing."""
    turns, given = tmp_path / "turns", ("chat", model, "--max-new-tokens", 2, "--seed", 1, "--energy-budget")
    joules = []
    for text, budget in (("hi\n", "1J"), ("hi\n" + "once upon a time " * 3 + "\n", "{}uJ")):
        turns.write_text(text, "utf-8")
        with turns.open(encoding="utf-8") as stdin:
            monkeypatch.setattr(sys, "stdin", stdin)
            outcome = run(*given, budget.format(1.02e6 * joules[0] if joules else 1), "--json")
        assert outcome.code == len(joules), "the second talk has a turn that failed"
        joules.append(outcome.values["joules"])
        assert len(outcome.values["messages"]) == 2, "a turn and its answer"
    assert joules[0] == joules[1]
    assert len(outcome.err.splitlines()) == 1
    assert "is left, and reading this prompt of " in outcome.err
    assert "give a larger --energy-budget or a shorter text" in outcome.err


@pytest.mark.skipif(kernels.native_library() is None, reason="no compiled kernels here")
def test_who_leaves_early_by_the_dial_does_not_speculate(run: Run, calibrated: Path, tmp_path: Path) -> None:
    """Which is told, not passed over."""
    copy = Path(shutil.copytree(calibrated, tmp_path / "copy"))
    dial = json.loads((copy / "energy.json").read_text())
    for notch in dial["notches"][1:]:
        notch["setting"] |= {"leave": [[1, 0.1]], "memory": "propagated"}
    (copy / "energy.json").write_text(json.dumps(dial))
    say = ("generate", copy, "hi", "--max-new-tokens", 2, "--energy")
    told = run(*say, "draft", "--speculate")
    told.refused("at this energy tokens leave early (", "leave 1:0.1 propagated), which excludes --speculate")
    assert run(*say, "draft").code == run(*say, 1, "--speculate").code == 0


@pytest.mark.parametrize("given", ["lots", "0J", "-1J", "50", "2."])
def test_an_energy_budget_that_is_none(run: Run, model: Path, given: str) -> None:
    outcome = run("generate", model, "Once", f"--energy-budget={given}")
    assert outcome.code != 0
    assert "--energy-budget" in outcome.err


def test_a_context_without_a_budget_is_refused(run: Run, model: Path) -> None:
    outcome = run("generate", model, "hi", "--context", 20)
    assert outcome.code != 0
    assert "--context plans the room of a budget" in outcome.err


def test_a_budget_above_what_there_is_is_told(run: Run, model: Path) -> None:
    outcome = run("generate", model, "hi", "--memory", "500TiB", "--max-new-tokens", 2)
    assert outcome.code == 0
    assert "--memory is 500 TiB, and this process may have" in outcome.err


@pytest.mark.parametrize("option", [("--speculate",), ("--exit-confidence", "0.9")])
def test_an_energy_budget_chooses_the_exits_itself(run: Run, model: Path, option: tuple[str, ...]) -> None:
    outcome = run("generate", model, "Once", "--energy-budget", "1J", *option)
    assert outcome.code != 0
    assert "chooses the exits itself" in outcome.err


def test_a_talk_may_turn_the_dial(run: Run, calibrated: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    turns = tmp_path / "turns"
    turns.write_text("hi\n/energy draft\nhi\n/energy 2\n/energy\n/energy 1\n", "utf-8")
    with turns.open(encoding="utf-8") as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        outcome = run("chat", calibrated, "--max-new-tokens", 4, "--seed", 1, "--json")
    assert outcome.code == 0
    assert [turn["content"] for turn in outcome.values["messages"] if turn["role"] == "user"] == ["hi", "hi"]
    low, wrong, still, back = outcome.err.strip().splitlines()
    assert low == still
    assert low.startswith("[the dial is at: ")
    assert low != back == "[the dial is at: all of it]"
    assert "energy is 2.0; it must lie in (0, 1]" in wrong


def test_the_dial_in_one_answer(run: Run, calibrated: Path, at_once: Run, model: Path) -> None:
    say = ("Once", "--max-new-tokens", 6)
    low = run("generate", calibrated, *say, "--energy", "draft", "--json").values
    assert low["energy"] < 1
    assert low["setting"]["awake"] < 1 or low["setting"]["leave"]
    told = run("generate", calibrated, *say, "--energy", 0.01)
    assert told.code == 0
    assert "pragnosia: energy 0.01 is below the cheapest setting there is" in told.err
    whole = run("generate", model, *say, "--no-speculate", "--json").values["text"]
    assert run("generate", calibrated, *say, "--no-speculate", "--energy", 1, "--json").values["text"] == whole
    assert run("generate", model, *say, "--awake", 0.5, "--json").values["setting"]["awake"] == 0.5
    at_once("generate", model, "hi", "--energy", 0.5).refused("is not calibrated", "pragnosia calibrate")
    at_once("chat", model, "--energy", "1,0.5").refused("energy is '1,0.5'")


@pytest.fixture(scope="module")
def nano(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The mechanisms of configs/braingpt-nano.yaml in narrow layers, with exits and a dial written by hand."""
    folder = tmp_path_factory.mktemp("nano")
    shape = yaml.safe_load((Path(__file__).parents[2] / "configs" / "braingpt-nano.yaml").read_text("utf-8"))["model"]
    narrow = {"num_heads": 2, "num_key_value_heads": 2, "head_dim": 16}
    shape |= {"vocab_size": 300, "hidden_size": 32, "max_position_embeddings": 64, "initializer_range": 0.2}
    shape["attention"] |= narrow
    shape["columns"] |= {"width": 320}
    torch.manual_seed(0)
    PragnosiaForCausalLM(PragnosiaConfig(**shape)).save_pretrained(folder)
    for file in model.glob("tokenizer*"):
        shutil.copy(file, folder)
    one = Exit(layer=2, confidence=1e-6, left=1.0, agreed=0.5, guesses_right=0.5)
    Exits(
        num_layers=6, vocab_size=300, agreement=0.5, tokens=1000, agreed=0.5, layers_per_token=2.0, exits=(one,),
        draft=Draft(layer=2, confidence=0.0),
    ).write(folder)  # fmt: skip
    cheap = Setting(leave=((2, 1e-6),), memory="propagated")
    notches = [
        Notch(setting=setting, bits_per_byte=bits, agreed=1.0, operations_per_token=cost, bytes_per_token=cost,
              joules_per_token=cost, layers_used=layers, units_awake=1.0)
        for setting, bits, cost, layers in ((WHOLE, 2.0, 100.0, 6.0), (cheap, 2.2, 40.0, 2.0))
    ]  # fmt: skip
    Dial(
        model=model_print(folder), num_layers=6, energy_model="circuit-7nm-ddr", data=("text",), tokens=1000,
        context=32.0, notches=tuple(notches),
    ).write(folder)  # fmt: skip
    return folder


@pytest.mark.skipif(kernels.native_library() is None, reason="no compiled kernels here")
def test_a_brain_of_all_mechanisms_drafts_and_leaves(run: Run, nano: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    say = ("Once upon a time", "--max-new-tokens", 30, "--json")
    plain = run("generate", nano, *say, "--no-speculate").values
    assert plain["decoding"] == "compiled"
    drafted = run("generate", nano, *say, "--speculate")
    assert drafted.err == ""
    assert (drafted.values["decoding"], drafted.values["text"]) == ("speculative", plain["text"])
    low = run("generate", nano, *say, "--energy", 0.5).values
    assert low["decoding"] == "leaving early"
    assert low["layers_per_token"] <= 2
    monkeypatch.setattr("pragnosia.inference.decode.writable", lambda *_: False)
    modules = run("generate", nano, *say, "--no-speculate").values
    assert (modules["decoding"], modules["text"]) == ("modules", plain["text"])
