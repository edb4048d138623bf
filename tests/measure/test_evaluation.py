from __future__ import annotations

import copy
import json
import lzma
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from pragnosia import data
from pragnosia.errors import CheckpointError, ConfigError, DataError, UserError
from pragnosia.measure.evaluation import evaluate
from pragnosia.measure.passages import Passages
from pragnosia.model.configuration import PragnosiaConfig
from pragnosia.model.modeling import PragnosiaForCausalLM
from pragnosia.model.setting import Setting

TEXT = "A fox, 여우, ran.\nIt was red — and then it was gone."
TEXTS = [TEXT, "The dog slept.", "쳇바퀴", TEXT + "\n" + TEXT]


@pytest.fixture(scope="session")
def tokenizer(make_byte_tokenizer: Callable[..., PreTrainedTokenizerFast]) -> PreTrainedTokenizerFast:
    return make_byte_tokenizer(eos_token="<|endoftext|>")


@pytest.fixture(scope="session")
def model(make_config: Callable[..., PragnosiaConfig]) -> PragnosiaForCausalLM:
    torch.manual_seed(0)
    config = make_config(vocab_size=300, max_position_embeddings=256, initializer_range=0.2)
    return PragnosiaForCausalLM(config).eval()


@torch.no_grad()
def by_hand(model: PragnosiaForCausalLM, ids: list[int]) -> float:
    """Nats of all tokens but the first, in double precision from the model's own logits."""
    logits = model(torch.tensor([ids[:-1]])).logits[0].double()
    chosen = logits.log_softmax(-1)[torch.arange(len(ids) - 1), torch.tensor(ids[1:])]
    return -float(chosen.sum())


def test_whole_text_in_one_window_is_the_sum_of_its_log_probabilities(
    model: PragnosiaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    expected = sum(by_hand(model, [tokenizer.eos_token_id, *tokenizer.encode(text)]) for text in TEXTS)
    found = evaluate(model, tokenizer, TEXTS)
    num_bytes = sum(len(text.encode()) for text in TEXTS)
    assert found.nats == pytest.approx(expected, rel=1e-5)
    assert (found.tokens, found.bytes, found.documents) == (num_bytes, num_bytes, 4)
    assert found.bits_per_byte == pytest.approx(expected / math.log(2) / num_bytes, rel=1e-5)
    assert found.perplexity == pytest.approx(math.exp(expected / num_bytes), rel=1e-4)
    assert found.words == sum(len(text.split()) + text.count("\n") for text in TEXTS)
    assert found.word_perplexity == pytest.approx(math.exp(expected / found.words), rel=1e-4)


def test_windows_are_read_as_they_are_described(
    model: PragnosiaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    ids = [tokenizer.eos_token_id, *tokenizer.encode(TEXT)]
    context, stride = 16, 5
    expected = by_hand(model, ids[: context + 1])
    for start in range(stride, len(ids), stride):
        window = ids[start : start + context + 1]
        known = window[: context - stride + 1]
        if len(window) > len(known):
            expected += by_hand(model, window) - (by_hand(model, known) if len(known) > 1 else 0.0)
    found = evaluate(model, tokenizer, [TEXT], context=context, stride=stride)
    assert found.nats == pytest.approx(expected, rel=1e-5)
    assert found.tokens == len(ids) - 1


def test_stride_does_not_matter_where_everything_is_in_sight(
    model: PragnosiaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    found = [evaluate(model, tokenizer, TEXTS, context=200, stride=stride).nats for stride in (1, 7, 100, 200)]
    assert found == pytest.approx([found[0]] * 4, rel=1e-6)


def test_a_smaller_stride_reads_more_and_scores_the_same_tokens(
    model: PragnosiaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    read = [evaluate(model, tokenizer, [TEXT * 3], context=32, stride=stride) for stride in (32, 16, 4)]
    assert [x.tokens for x in read] == [len(TEXT.encode()) * 3] * 3
    assert read[0].tokens_read < read[1].tokens_read < read[2].tokens_read
    assert len({x.nats for x in read}) == 3


@pytest.mark.parametrize("batch_size", [1, 3, None])
def test_batches_change_nothing(
    model: PragnosiaForCausalLM, tokenizer: PreTrainedTokenizerFast, batch_size: int | None
) -> None:
    found = evaluate(model, tokenizer, TEXTS * 3, context=24, stride=8, batch_size=batch_size)
    alone = [evaluate(model, tokenizer, [text], context=24, stride=8).nats for text in TEXTS]
    assert found.nats == pytest.approx(3 * sum(alone), rel=1e-5)


def test_an_untrained_model_needs_the_bits_of_its_vocabulary(
    make_config: Callable[..., PragnosiaConfig], tokenizer: PreTrainedTokenizerFast
) -> None:
    untrained = PragnosiaForCausalLM(make_config(vocab_size=300, initializer_range=0.02))
    found = evaluate(untrained, tokenizer, TEXTS)
    assert found.bits_per_byte == pytest.approx(math.log2(300) * found.tokens / found.bytes, rel=0.02)


def test_a_uniform_model_needs_exactly_them(model: PragnosiaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    uniform = copy.deepcopy(model)
    torch.nn.init.zeros_(uniform.model.norm.weight)
    found = evaluate(uniform, tokenizer, TEXTS)
    assert found.nats == pytest.approx(found.tokens * math.log(300), rel=1e-6)
    assert found.perplexity == pytest.approx(300, rel=1e-5)


def test_without_a_begin_or_end_token_the_first_is_only_read(
    model: PragnosiaForCausalLM, make_byte_tokenizer: Callable[..., PreTrainedTokenizerFast]
) -> None:
    bare = make_byte_tokenizer()
    found = evaluate(model, bare, ["The dog"])
    assert (found.tokens, found.bytes) == (6, 6)
    assert found.nats == pytest.approx(by_hand(model, bare.encode("The dog")), rel=1e-5)
    with pytest.raises(DataError, match="no token to score"):
        evaluate(model, bare, ["T"])


def test_what_woke_is_what_is_told(model: PragnosiaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    awake = evaluate(model, tokenizer, TEXTS)
    drowsy = evaluate(model, tokenizer, TEXTS, setting=Setting(awake=1 / 3))
    assert awake.awake_per_token == (3.0, 0.0, 3.0)
    assert drowsy.awake_per_token == (1.0, 0.0, 1.0)
    assert drowsy.operations_per_token < awake.operations_per_token
    assert drowsy.nats != awake.nats
    assert awake.tokens_read == awake.tokens
    assert awake.joules > 0
    assert awake.joules_source in {"model", "rapl", "nvml", "rapl+nvml"}


def test_training_mode_returns_and_nothing_is_learned(
    model: PragnosiaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    pupil = copy.deepcopy(model).train()
    before = {name: tensor.clone() for name, tensor in pupil.state_dict().items()}
    assert evaluate(pupil, tokenizer, TEXTS).nats == pytest.approx(evaluate(model, tokenizer, TEXTS).nats)
    assert pupil.training
    assert all(torch.equal(before[name], tensor) for name, tensor in pupil.state_dict().items())


def test_bfloat16_weights_cost_little(model: PragnosiaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    half = copy.deepcopy(model).bfloat16()
    found, exact = evaluate(half, tokenizer, TEXTS), evaluate(model, tokenizer, TEXTS)
    assert found.nats == pytest.approx(exact.nats, rel=0.02)
    assert found.bytes_per_token < exact.bytes_per_token


@pytest.mark.gpu
def test_a_gpu_says_the_same(model: PragnosiaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    expected = evaluate(model, tokenizer, TEXTS, context=24)
    found = evaluate(copy.deepcopy(model).cuda(), tokenizer, TEXTS, context=24)
    assert found.nats == pytest.approx(expected.nats, rel=1e-3)
    assert found.awake_per_token == expected.awake_per_token


def test_files_are_read_through_the_data_room(
    model: PragnosiaForCausalLM, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    path = tmp_path / "text.txt"
    path.write_text("\n<|endoftext|>\n".join(TEXTS), "utf-8")
    expected = evaluate(model, tokenizer, TEXTS)
    for found in (data.resolve(path), data.documents(path)):
        assert evaluate(model, tokenizer, found).nats == pytest.approx(expected.nats)


def test_the_text_is_cut_at_max_bytes_and_progress_is_told(
    model: PragnosiaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    told: list[int] = []
    found = evaluate(model, tokenizer, TEXTS, max_bytes=60, context=8, stride=8, batch_size=1, progress=told.append)
    assert found.bytes == 60
    assert told == sorted(set(told))
    assert told[-1] == found.tokens


def test_the_result_is_json(model: PragnosiaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    record = json.loads(json.dumps(evaluate(model, tokenizer, TEXTS).to_dict()))
    assert {"bits_per_byte", "perplexity", "tokens", "bytes", "tokens_per_second", "joules"} <= record.keys()


def test_files_that_are_no_text_are_refused(
    model: PragnosiaForCausalLM, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    empty, binary = tmp_path / "empty.txt", tmp_path / "binary.txt"
    empty.write_bytes(b"\n \n")
    binary.write_bytes(b"abc\0\xff")
    for path, message in ((empty, "is empty"), (binary, "not text"), (tmp_path / "none.txt", "no such file")):
        with pytest.raises(DataError, match=message):
            evaluate(model, tokenizer, data.documents(path))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"context": 257}, "the model holds 256"),
        ({"context": 0}, "context is 0"),
        ({"context": 8, "stride": 9}, "stride is 9, context 8"),
        ({"stride": -1}, "stride is -1"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"max_bytes": 0}, "max_bytes is 0"),
    ],
)
def test_impossible_options_are_refused(
    model: PragnosiaForCausalLM, tokenizer: PreTrainedTokenizerFast, options: dict[str, float], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        evaluate(model, tokenizer, TEXTS, **options)


def test_a_tokenizer_of_another_model_is_refused(
    sparse: PragnosiaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    with pytest.raises(UserError, match="257 ids, the model's vocabulary has 97"):
        evaluate(sparse, tokenizer, TEXTS)


def test_a_model_that_predicts_no_numbers_is_refused(
    model: PragnosiaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    broken = copy.deepcopy(model)
    with torch.no_grad():
        broken.model.norm.weight[0] = float("nan")
    with pytest.raises(CheckpointError, match="not a number"):
        evaluate(broken, tokenizer, TEXTS)


def test_words_are_counted_as_wikitext_counts_them(tokenizer: PreTrainedTokenizerFast, shared_data: Path) -> None:
    with lzma.open(shared_data / "eval_en/wikitext2.valid.tokens.txt.xz", "rt", encoding="utf-8") as file:
        text = file.read()
    assert sum(passage.num_words for passage in Passages(tokenizer, 300).of([text])) == 217_646
