from __future__ import annotations

import copy
import math
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from pragnosia.checkpoints.importing import import_model
from pragnosia.errors import ConfigError, DataError, UserError
from pragnosia.inference.speaker import Pragnosia
from pragnosia.measure.evaluation import evaluate
from pragnosia.measure.harness import run_tasks
from pragnosia.measure.harness_tasks import Question, sentence_pairs, write_task
from pragnosia.model.configuration import PragnosiaConfig
from pragnosia.model.modeling import PragnosiaForCausalLM

pytest.importorskip("lm_eval")
from lm_eval import evaluator
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from pragnosia.measure.harness_model import PragnosiaLM

SENTENCES = ["The cat sleeps.", "The cats sleep.", "A dog ran home.", "여우가 뛴다.", "Birds fly south in autumn."]
LONG = " ".join(SENTENCES) * 3


@pytest.fixture(scope="module")
def speaker(
    make_config: Callable[..., PragnosiaConfig], make_byte_tokenizer: Callable[..., PreTrainedTokenizerFast]
) -> Pragnosia:
    """A random model that speaks in ASCII: lm_eval shows broken characters, we do not."""
    torch.manual_seed(0)
    tokenizer = make_byte_tokenizer(eos_token="<|endoftext|>")
    shape = {"vocab_size": 257, "max_position_embeddings": 256, "initializer_range": 0.3, "eos_token_id": 256}
    model = PragnosiaForCausalLM(make_config(tie_word_embeddings=False, **shape))
    ascii_tokens = tokenizer.convert_tokens_to_ids([chr(code) for code in range(33, 127)])
    with torch.no_grad():
        model.lm_head.weight[sorted(set(range(257)) - {*ascii_tokens})] *= 0.01
    return Pragnosia(model, tokenizer)


@pytest.fixture(scope="module")
def theirs(speaker: Pragnosia) -> Any:
    """lm_eval's own way to ask a Hugging Face model."""
    return HFLM(pretrained=speaker.model, tokenizer=speaker.tokenizer, batch_size=3, device="cpu")


@pytest.fixture(scope="module")
def ours(speaker: Pragnosia) -> PragnosiaLM:
    return PragnosiaLM(speaker)


@pytest.fixture(scope="module")
def task_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tasks")
    pairs = [Question((text, text[::-1]), 0, group="odd" if n % 2 else "even") for n, text in enumerate(SENTENCES * 2)]
    asked = [Question(("yes", "no", text), n % 3, context=LONG) for n, text in enumerate(SENTENCES)]
    write_task(folder, "pairs", pairs)
    write_task(folder, "asked", asked)
    return folder


def requests(*args: tuple[Any, ...]) -> list[Any]:
    return [SimpleNamespace(args=arg, task_name="") for arg in args]


def test_a_local_task_is_run(speaker: Pragnosia, task_dir: Path) -> None:
    results = run_tasks(speaker, ["pairs", "asked"], task_dir)
    hits = [
        evaluate(speaker.model, speaker.tokenizer, [text]).nats < evaluate(speaker.model, speaker.tokenizer, [bad]).nats
        for text, bad in ((text, text[::-1]) for text in SENTENCES * 2)
    ]
    assert results["pairs"]["acc"] == pytest.approx(sum(hits) / 10)
    assert results["pairs"]["groups"] == {
        "even": pytest.approx(sum(hits[::2]) / 5),
        "odd": pytest.approx(sum(hits[1::2]) / 5),
    }
    assert results["pairs"]["samples"] == 10
    assert {"acc", "acc_norm", "acc_stderr"} <= results["asked"].keys()
    assert run_tasks(speaker, ["pairs"], task_dir, limit=3)["pairs"]["samples"] == 3


def test_lm_evals_own_model_gives_the_same_scores(theirs: Any, ours: PragnosiaLM, task_dir: Path) -> None:
    manager = TaskManager(include_path=str(task_dir), include_defaults=False)
    both = [
        evaluator.simple_evaluate(lm, tasks=["pairs", "asked"], task_manager=manager, bootstrap_iters=0)["samples"]
        for lm in (theirs, ours)
    ]
    for name in ("pairs", "asked"):
        for expected, found in zip(both[0][name], both[1][name], strict=True):
            for theirs_said, ours_said in zip(expected["filtered_resps"], found["filtered_resps"], strict=True):
                assert ours_said[0] == pytest.approx(theirs_said[0], rel=1e-5)
                assert ours_said[1] == theirs_said[1]
            assert found["acc"] == expected["acc"]


def test_a_model_that_cannot_tell_is_wrong(speaker: Pragnosia, task_dir: Path) -> None:
    uniform = copy.deepcopy(speaker.model)
    torch.nn.init.zeros_(uniform.model.norm.weight)
    assert run_tasks(Pragnosia(uniform, speaker.tokenizer), ["pairs"], task_dir)["pairs"]["acc"] == 0.0


def test_rolling_likelihood_is_that_of_an_evaluation(speaker: Pragnosia, theirs: Any, ours: PragnosiaLM) -> None:
    texts = [*SENTENCES, LONG * 2]
    asked = requests(*((text,) for text in texts))
    found = ours.loglikelihood_rolling(asked)
    nats = [evaluate(speaker.model, speaker.tokenizer, [text]).nats for text in SENTENCES]
    assert found[:-1] == pytest.approx([-value for value in nats], rel=1e-5)
    assert found == pytest.approx(theirs.loglikelihood_rolling(asked, disable_tqdm=True), rel=1e-5)


def test_generation_is_that_of_lm_evals_own_model(theirs: Any, ours: PragnosiaLM) -> None:
    unstopped = ours.generate_until(requests((SENTENCES[0], {"until": [], "max_gen_toks": 12})))[0]
    stop = unstopped[len(unstopped) // 2]
    asked = requests(
        (SENTENCES[0], {"until": [], "max_gen_toks": 12}),
        (SENTENCES[0], {"until": [stop], "max_gen_toks": 12}),
        (LONG * 3, {"until": [], "max_gen_toks": 5}),
    )
    found = ours.generate_until(asked)
    assert found == theirs.generate_until(asked, disable_tqdm=True)
    assert found[1] == unstopped[: unstopped.index(stop)]


def test_generation_has_room_even_where_the_answer_may_be_longer_than_the_window(ours: PragnosiaLM) -> None:
    (answer,) = ours.generate_until(requests((LONG * 3, {"max_gen_toks": 1000})))
    assert answer
    (sampled,) = ours.generate_until(requests(("", {"do_sample": True, "temperature": 1.0, "seed": 1, "top_k": 5})))
    assert sampled


def test_unknown_generation_options_are_refused(ours: PragnosiaLM) -> None:
    with pytest.raises(ConfigError, match="unknown generation option 'num_beams'"):
        ours.generate_until(requests(("a", {"num_beams": 4})))


def test_an_empty_context_needs_a_token_to_begin_with(
    speaker: Pragnosia, make_byte_tokenizer: Callable[..., PreTrainedTokenizerFast]
) -> None:
    with pytest.raises(DataError, match="no token that texts begin or end with"):
        PragnosiaLM(Pragnosia(speaker.model, make_byte_tokenizer())).loglikelihood(requests(("", "a")))


def test_what_cannot_be_run_is_refused(speaker: Pragnosia, task_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match=r"unknown task 'pars'\. Did you mean 'pairs'"):
        run_tasks(speaker, ["pars"], task_dir)
    with pytest.raises(DataError, match="unknown task"):
        run_tasks(speaker, [], task_dir)
    with pytest.raises(DataError, match="no folder of tasks"):
        run_tasks(speaker, ["pairs"], task_dir / "none")
    with pytest.raises(ConfigError, match="limit is 0"):
        run_tasks(speaker, ["pairs"], task_dir, limit=0)
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(UserError, match="pip install"):
        run_tasks(speaker, ["pairs"], task_dir)


@pytest.fixture(scope="module")
def stories(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Pragnosia:
    """The real 260K-parameter story model."""
    out = tmp_path_factory.mktemp("stories") / "model"
    import_model(shared_data / "checkpoints/stories260K.bin", out)
    return Pragnosia.from_pretrained(out)


def test_a_real_model_on_blimp(stories: Pragnosia, shared_data: Path, tmp_path: Path) -> None:
    write_task(tmp_path, "blimp", sentence_pairs(shared_data / "eval_en/blimp.even.jsonl.xz"))
    results = run_tasks(stories, ["blimp"], tmp_path, limit=268)["blimp"]
    assert results["samples"] == 268
    assert len(results["groups"]) == 67
    # 260,000 parameters that read children's stories know a little grammar: 53 % of all pairs.
    assert 0.5 < results["acc"] < 0.62
    assert not math.isnan(results["acc_stderr"])
