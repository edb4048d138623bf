"""`calibrate`, and the options of `generate`, `chat` and `eval` that stand on it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer

from pragnosia import PragnosiaConfig, PragnosiaForCausalLM, kernels
from pragnosia.apps.calibrating import _table
from pragnosia.inference.exits import Draft, Exit, Exits
from pragnosia.model.setting import WHOLE

Run = Callable[..., Any]
SAY = ("Once upon a time", "--max-new-tokens", 30)


def test_a_foreign_text_is_told_so(run: Run, model: Path, tmp_path: Path) -> None:
    """Nothing is wrong with it, but it is not what the model will meet."""
    text = tmp_path / "foreign.txt"
    text.write_text("".join(chr(200 + (7 * n * n) % 300) for n in range(700)), "utf-8")
    loud = made(tmp_path / "loud", model, experts=EXPERTS, initializer_range=2.0)
    outcome = run("calibrate", loud, "--data", text, "--agreement", 0.6)
    assert outcome.code == 0
    assert "the model predicts this text worse than chance (" in outcome.err.splitlines()[-1]


def test_what_is_written_and_said(run: Run, calibrated: Path, story: Path) -> None:
    written = json.loads((calibrated / "exits.json").read_text())
    values = run("calibrate", calibrated, "--data", story, "--agreement", 0.6, "--layers", 1, "--json").values
    assert written == {key: value for key, value in values.items() if key not in ("model", "data", "dial")}
    kept = json.loads((calibrated / "energy.json").read_text())
    assert kept["notches"] == values["dial"]["notches"]
    assert kept["notches"][0]["setting"] == WHOLE.write() | {"leave": []}
    costs = [notch["joules_per_token"] for notch in kept["notches"]]
    assert len(costs) > 1
    assert costs[0] == max(costs)
    plain = run("calibrate", calibrated, "--data", story, "--agreement", 0.6, "--layers", 1)
    assert plain.code == 0
    assert "drafting" in plain.out
    assert "all of it" in plain.out


@pytest.mark.skipif(kernels.native_library() is None, reason="no compiled kernels here")
def test_the_same_words(run: Run, calibrated: Path) -> None:
    plain = run("generate", calibrated, *SAY, "--no-speculate", "--json").values
    ahead = run("generate", calibrated, *SAY, "--speculate", "--json").values
    assert ahead["text"] == plain["text"]
    assert ahead["decoding"] == "speculative"
    assert plain["decoding"] == "compiled"
    assert 0 <= ahead["drafts_accepted"] <= 1
    assert ahead["layers_per_token"] >= 2
    assert "layers_per_token" not in plain
    assert ahead["operations_per_token"] > 0
    told = run("generate", calibrated, *SAY, "--speculate", "--stats")
    assert "layers computed per token" in told.err
    assert "[decoding: speculative;" in told.err


@pytest.mark.skipif(kernels.native_library() is None, reason="no compiled kernels here")
@pytest.mark.parametrize("memory", ["exact", "propagated"])
def test_leaving_early(run: Run, calibrated: Path, memory: str) -> None:
    values = run("generate", calibrated, *SAY, "--exit-confidence", 0.004, "--exit-memory", memory, "--json").values
    assert values["decoding"] == "leaving early"
    assert sum(values["left_after_layer"].values()) == 29
    assert values["left_after_layer"]["1"] > 0
    if memory == "propagated":
        assert 1 <= values["layers_per_token"] < 2


def test_chat_and_eval(
    run: Run, calibrated: Path, story: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    turns = tmp_path / "turns"
    turns.write_text("hello\n", "utf-8")
    answers = []
    for option in ("--speculate", "--no-speculate"):
        with turns.open(encoding="utf-8") as stdin:
            monkeypatch.setattr("sys.stdin", stdin)
            answers.append(run("chat", calibrated, "--max-new-tokens", 20, "--seed", 1, option, "--json").values)
    assert answers[0] == answers[1]
    whole, early = (
        run("eval", calibrated, "--data", story, *options, "--json").values
        for options in ((), ("--exit-confidence", 0.004))
    )
    assert whole["layers_per_token"] == 2 > early["layers_per_token"] >= 1
    assert early["bits_per_byte"] != whole["bits_per_byte"]


def test_refused_before_anything_is_loaded(at_once: Run, model: Path) -> None:
    at_once("generate", model, "hi", "--speculate").refused("no calibrated exits", "pragnosia calibrate")


def test_refused(run: Run, calibrated: Path, model: Path, story: Path, tmp_path: Path) -> None:
    run("calibrate", model, "--data", story, "--layers", 2).refused("an exit after layer 2 is none", "2 layers")
    run("calibrate", model, "--data", story, "--agreement", 2).refused("the agreement is 2")
    run("calibrate", model, "--data", story, "--layers", "1;2").refused("whole numbers separated by commas")
    run("generate", calibrated, "hi", "--exit-memory", "propagated").refused("give an exit confidence, too")
    run("generate", calibrated, "hi", "--exit-confidence", "2").refused("it must lie in (0, 1]")
    run("eval", model, "--data", story, "--exit-confidence", "calibrated").refused("no calibrated exits")
    short = tmp_path / "short.txt"
    short.write_text("Once upon a time there was a small brain.", "utf-8")
    takes = "calibrating to an agreement of 0.99 takes 2000: give more"
    run("calibrate", model, "--data", short).refused("the text has", f"{takes} text, or a lower --agreement")
    run("calibrate", model, "--data", story, "--tokens", 100).refused(f"--tokens is 100; {takes}, or a lower")
    assert not (model / "exits.json").exists()
    assert not (model / "energy.json").exists()
    broken = tmp_path / "broken"
    shutil.copytree(model, broken)
    (broken / "exits.json").write_text("{", "utf-8")
    run("generate", broken, "hi").refused("exits.json is damaged", "calibrate again")
    assert run("calibrate", broken, "--data", story, "--agreement", 0.6, "--layers", 1).code == 0


EXPERTS = {"num_units": 8, "unit_width": 16, "thalamus": {"kind": "sigmoid", "num_awake": 2}}


def made(folder: Path, tokenizer: Path, **dress: Any) -> Path:
    """Another model, with the tokenizer that lies there."""
    torch.manual_seed(0)
    shape: dict[str, Any] = {"vocab_size": 300, "hidden_size": 32, "num_hidden_layers": 2, "initializer_range": 0.3}
    shape |= {"max_position_embeddings": 64, "attention": {"num_heads": 2, "num_key_value_heads": 1}} | dress
    PragnosiaForCausalLM(PragnosiaConfig(**shape)).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(tokenizer / name, folder / name)
    return folder


def test_one_number_says_how_much_text_it_takes(
    run: Run, model: Path, story: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As much text as is asked for is enough, and what is less is refused before the model is loaded."""
    words = story.read_text("utf-8")
    asked = ("--agreement", 0.6, "--data")
    told = run("calibrate", model, "--tokens", 1, *asked, story)
    told.refused("--tokens is 1; calibrating to an agreement of 0.6 takes 512: give more")
    enough = tmp_path / "enough.txt"
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    enough.write_text(words[: tokenizer.encode(words, add_special_tokens=False).offsets[511][1]], "utf-8")
    copy = Path(shutil.copytree(model, tmp_path / "copy"))
    values = run("calibrate", copy, *asked, enough, "--json").values
    assert values["dial"]["tokens"] == 512
    few = tmp_path / "few.txt"
    few.write_text(enough.read_text("utf-8")[:-30], "utf-8")
    monkeypatch.setattr("pragnosia.inference.speaker.Pragnosia.from_pretrained", None)
    run("calibrate", model, *asked, few).refused("the text has 4", "an agreement of 0.6 takes 512: give more text")
    one = made(tmp_path / "one", model, num_hidden_layers=1, experts=EXPERTS)
    run("calibrate", one, "--data", few).refused("the text has 4", "measuring settings takes 512: give more text")
    nothing = made(tmp_path / "nothing", model, num_hidden_layers=1, feed_forward={"width": 32})
    monkeypatch.undo()
    assert "nothing to dial" in run("calibrate", nothing, "--data", few, "--tokens", 3).out


def test_it_says_how_far_it_is(run: Run, model: Path, story: Path, tmp_path: Path) -> None:
    """A line per part where nobody watches; none beside JSON."""
    copy = Path(shutil.copytree(model, tmp_path / "copy"))
    given = ("calibrate", copy, "--data", story, "--agreement", 0.6)
    lines = run(*given).err.splitlines()
    assert lines[0].startswith("reading what exits guess: 0 of ")
    settings = [line for line in lines if line.startswith("measuring settings: ")]
    assert settings[0].startswith("measuring settings: 0 of ")
    last = settings[-1].split()
    assert last[2] == last[4] != "0"
    assert run(*given, "--json").err == ""


def test_a_dense_model_has_no_units_to_count(run: Run, model: Path, story: Path, tmp_path: Path) -> None:
    """And the table does not say that they sleep."""
    dense = made(tmp_path / "dense", model, feed_forward={"width": 32})
    sparse = f"pragnosia sparsify {dense} OUT --level 0.4 --data TEXT, or train with columns"
    run("generate", dense, "hi", "--energy", 0.5).refused("is dense, without units", sparse)
    asleep, packed = tmp_path / "asleep", tmp_path / "packed"
    assert run("sparsify", dense, asleep, "--level", 0.4, "--data", story).code == 0
    assert run("sparsify", dense, packed, "--pattern", "2:4").code == 0
    for made_so in (asleep, packed):  # which `sparsify` refuses
        outcome = run("generate", made_so, "hi", "--energy", 0.5)
        outcome.refused("is dense, without units", "train with columns")
        assert "pragnosia sparsify" not in outcome.err
    run("generate", dense, "hi", "--awake", 0.5).refused("--awake is a share of units", "has none")
    table = run("calibrate", dense, "--data", story, "--agreement", 0.6, "--layers", 1).out.splitlines()
    head = next(number for number, line in enumerate(table) if line.split()[:1] == ["energy"])
    assert table[head].split()[:3] == ["energy", "bits/byte", "awake"]
    assert table[head + 1].split()[2] == "-"
    told = run("eval", dense, "--data", story, "--max-bytes", "2KiB", "--energy", "1,draft").out.splitlines()
    assert [line.split()[2] for line in told[:3]] == ["awake", "-", "-"]


def test_intents_are_told(run: Run, calibrated: Path, story: Path) -> None:
    """Where the dial would be for each, and how often the words are the whole model's."""
    outcome = run("calibrate", calibrated, "--data", story, "--agreement", 0.6, "--layers", 1)
    assert "same words" in outcome.out
    told = outcome.out.splitlines()[-1]
    assert told.startswith("by intent: draft ")
    assert "; answer " in told
    assert told.endswith("think 1.000 (all of it)")
    for notch in json.loads((calibrated / "energy.json").read_text())["notches"]:
        assert 0 <= notch["agreed"] <= 1


@pytest.mark.skipif(kernels.native_library() is None, reason="no compiled kernels here")
@pytest.mark.parametrize(
    "command",
    [("pack", "--no-quality"), ("sparsify", "--level", 0.3, "--tokens", 300), ("sparsify", "--pattern", "2:4")],
    ids=["pack", "level", "pattern"],
)
def test_what_is_made_of_a_model_is_calibrated_anew(
    run: Run, calibrated: Path, story: Path, tmp_path: Path, command: tuple[Any, ...]
) -> None:
    verb, *options = command
    text = ("--data", story) if "--level" in options else ()
    out = tmp_path / "out"
    told = run(verb, calibrated, out, *options, *text).out
    assert f"exits.json and energy.json of {calibrated} are its alone; run: pragnosia calibrate {out} --data" in told
    assert not (out / "energy.json").exists()
    assert not (out / "exits.json").exists()
    run("generate", out, "Once", "--energy", "0.5").refused("is not calibrated", f"pragnosia calibrate {out} --data")
    assert run("calibrate", out, "--data", story, "--agreement", 0.6).code == 0
    assert run("generate", out, "Once", "--energy", "draft", "--max-new-tokens", 3, "--json").values["energy"] < 1


def test_who_cannot_leave_early_is_told_so(run: Run, calibrated: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pragnosia.inference.speaker.Pragnosia.leaves_early", property(lambda speaker: False))
    assert "all layers speak" in run("generate", calibrated, *SAY, "--exit-confidence", "0.5").err


def test_what_is_lower_than_asked_and_what_does_not_pay_is_told() -> None:
    one = Exit(layer=2, confidence=0.5, left=0.1, agreed=0.97, guesses_right=0.6)

    def told(agreed: float, gain: float) -> str:
        found = Exits(
            num_layers=4, vocab_size=300, agreement=0.99, tokens=2000, agreed=1.0, layers_per_token=3.9,
            exits=(replace(one, agreed=agreed),), draft=Draft(layer=1, confidence=0.3, accepted=0.8, gain=gain),
        )  # fmt: skip
        return "\n".join(_table(found, drafts=True))

    assert "99.0% asked for, and on the half of the text that checks 97.0% behind layer 2: too little" in told(
        0.97, 0.8
    )
    assert "1.25 times as many bytes per token: it does not pay" in told(0.97, 0.8)
    assert "by 1 layer while" in told(0.97, 0.8)
    assert "asked for" not in told(0.995, 1.5)
    assert told(0.995, 1.5).endswith("1.50 times fewer bytes per token")
    assert "too few to pay" in told(0.995, 1.05)
