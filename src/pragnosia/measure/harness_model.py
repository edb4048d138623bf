"""A Pragnosia as a model of lm-evaluation-harness. Importing this imports lm_eval, which takes seconds.

Texts become tokens as lm_eval's own Hugging Face model makes them, so both give the same scores; but a rolling
log-likelihood never scores a begin token that the tokenizer puts in front.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from pragnosia.errors import ConfigError, DataError, unknown_name
from pragnosia.inference.sampling import Sampling
from pragnosia.inference.speaker import Pragnosia
from pragnosia.measure.continuations import BATCH_TOKENS, Continuation, likelihoods
from pragnosia.measure.passages import start_token
from pragnosia.model.setting import WHOLE, Setting

_SAMPLING = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "seed")


class PragnosiaLM(TemplateLM):  # type: ignore[misc]
    """Answers lm_eval's three questions: how likely is this after that, how likely is this text, what comes next."""

    def __init__(self, speaker: Pragnosia, *, setting: Setting = WHOLE, batch_tokens: int = BATCH_TOKENS) -> None:
        super().__init__()
        self.speaker = speaker
        self.tokenizer = speaker.tokenizer
        self.setting = setting
        self.batch_tokens = batch_tokens
        self.max_length = int(speaker.model.config.max_position_embeddings)
        self.max_gen_toks = 256
        self._device = speaker.model.device

    @property
    def eot_token_id(self) -> int | None:
        token = self.tokenizer.eos_token_id
        return token if isinstance(token, int) else None

    @property
    def prefix_token_id(self) -> int:
        start = start_token(self.tokenizer)
        if start is None:
            raise DataError("the tokenizer has no token that texts begin or end with; set its bos_token or eos_token")
        return start

    @property
    def tokenizer_name(self) -> str:
        return str(self.tokenizer.name_or_path).replace("/", "__")

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Token ids; special ones as the tokenizer likes, unless the text begins with one or the caller decides."""
        if add_special_tokens is None:
            start = start_token(self.tokenizer)
            add_special_tokens = start is None or not string.startswith(str(self.tokenizer.decode(start)))
        return list(self.tokenizer.encode(string, add_special_tokens=add_special_tokens))

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], **_: Any
    ) -> list[tuple[float, bool]]:
        continuations = [Continuation(*request[1:]) for request in requests]
        model = self.speaker.model
        found = likelihoods(model, continuations, setting=self.setting, batch_tokens=self.batch_tokens)
        answers = [(answer.log_probability, answer.greedy) for answer in found]
        for request, answer in zip(requests, answers, strict=True):
            if request[0] is not None:
                self.cache_hook.add_partial("loglikelihood", request[0], answer)
        return answers

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Log-likelihood of whole texts, in windows of the model's context, each token scored once."""
        texts = [str(request.args[0]) for request in requests]
        parts = [[Continuation(*window) for window in self._windows(text)] for text in texts]
        flat = [(None, list(part.context), list(part.tokens)) for windows in parts for part in windows]
        scores = iter(self._loglikelihood_tokens(flat))
        sums = [sum(next(scores)[0] for _ in windows) for windows in parts]
        for text, total in zip(texts, sums, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", (text,), total)
        return sums

    def _windows(self, text: str) -> list[tuple[list[int], list[int]]]:
        windows = get_rolling_token_windows(
            token_list=self.tok_encode(text, add_special_tokens=False),
            prefix_token=self.prefix_token_id,
            max_seq_len=self.max_length,
            context_len=1,
        )
        return [make_disjoint_window(window) for window in windows]

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """What the model says after each context, one after another in our own decode loop."""
        answers = []
        for context, options in (request.args for request in requests):
            answers.append(self._generate(context, options))
            self.cache_hook.add_partial("generate_until", (context, options), answers[-1])
        return answers

    def _generate(self, context: str, options: dict[str, Any]) -> str:
        """A context that leaves no room for the answer loses its beginning, but never more than half the window."""
        choices = dict(normalize_gen_kwargs(options, self.max_gen_toks))
        longest, until = choices.pop("max_gen_toks"), tuple(filter(None, choices.pop("until")))
        sampled = choices.pop("do_sample", False)
        unknown = sorted(choices.keys() - {*_SAMPLING})
        if unknown:
            raise ConfigError(unknown_name("generation option", unknown[0], [*_SAMPLING, "until", "max_gen_toks"]))
        ids = (self.tok_encode(context) or [self.prefix_token_id])[
            -max(self.max_length - longest, self.max_length // 2) :
        ]
        sampling = Sampling(stop=until, **(choices if sampled else {}))
        decoder = self.speaker.decoder(len(ids) + longest, self.setting)
        decoder.read(ids)
        spoken = decoder.speak(longest, sampling, self.speaker.stop_tokens)
        return "".join(self.speaker.pieces(spoken, until, after=ids))

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The conversation as one text, by the tokenizer's own template."""
        text = self.tokenizer.apply_chat_template(
            chat_history,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
        )
        return str(text)
