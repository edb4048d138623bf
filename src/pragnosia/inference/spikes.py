"""A spiking mind that reads and speaks: its state goes from token to token, and what it did is counted.

speaker = SpikingSpeaker.from_pretrained("runs/spikes")
for piece in speaker.speak("Once upon", Sampling(temperature=0.8), 40): ...
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from tokenizers.decoders import DecodeStream
from torch import Tensor

from pragnosia.data import load_tokenizer
from pragnosia.errors import CheckpointError, PromptError
from pragnosia.inference.companion import Companion
from pragnosia.inference.directory import check_vocabulary, check_weights, first_line, require_tokenizer
from pragnosia.inference.sampler import Sampler
from pragnosia.inference.sampling import Sampling

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from pragnosia.spiking.hearing import NeuroGenState
    from pragnosia.spiking.neurogen import NeuroGenForCausalLM

_PART = 512
"""Tokens read at once, so that what is noted of a long text stays small."""


class SpikingSpeaker:
    """Text in, text out; every token that passed is counted."""

    def __init__(self, model: NeuroGenForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
        self.model, self.tokenizer = model.train(False), tokenizer
        self.state: NeuroGenState = model.begin()
        self.fired: Float[Tensor, " N"] = torch.zeros(model.brain.num_neurons, dtype=torch.float64)
        """Spikes of each neuron so far."""
        self.tokens = 0
        """That passed, read or said."""
        self.ids: list[int] = []
        self.companion: Companion | None = None
        """A one-pass learner that shares in what is said."""

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> SpikingSpeaker:
        """Load a model directory. Raises CheckpointError in one line for what is broken."""
        check_spiking(Path(folder))
        from safetensors import SafetensorError
        from transformers.utils import logging

        from pragnosia.spiking.neurogen import NeuroGenForCausalLM

        shown = logging.is_progress_bar_enabled()
        logging.disable_progress_bar()
        try:
            loaded: Any = NeuroGenForCausalLM.from_pretrained(folder, output_loading_info=True)
        except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
            raise CheckpointError(f"cannot load {folder}: {first_line(error)}") from error
        finally:
            if shown:
                logging.enable_progress_bar()
        model, info = loaded
        for problem in ("missing_keys", "unexpected_keys"):
            if names := sorted(map(str, info[problem])):
                raise CheckpointError(
                    f"the weights in {folder} do not fit its config.json ({names[0]}); train it again"
                )
        return cls(model, load_tokenizer(folder))

    def encode(self, text: str) -> list[int]:
        """Token ids; an empty text is the token that documents end with. Raises PromptError where there is none."""
        ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        if not ids and self.tokenizer.eos_token_id is None:
            raise PromptError("the prompt is empty, and this tokenizer has no token to begin with; give some text")
        return ids or [int(self.tokenizer.eos_token_id)]

    @torch.no_grad()
    def read(self, ids: list[int]) -> Float[Tensor, "1 V"]:
        """Logits of what comes behind these tokens."""
        for at in range(0, len(ids), _PART):
            heard = self.model.hear(torch.tensor([ids[at : at + _PART]], device=self.model.device), self.state)
            said, self.state = self.model.say(heard, 1)
            self.fired += heard.each
        self.ids += ids
        self.tokens += len(ids)
        last: Tensor = said[-1]
        return last if self.companion is None else self.companion.mix(self.ids, last[0], last)

    def forget(self) -> None:
        """Begin anew; what was counted stays."""
        self.state, self.ids = self.model.begin(), []

    def speak(self, text: str, sampling: Sampling, count: int) -> Iterator[str]:
        """What comes behind `text`, piece by piece, until it ends or `count` tokens are said."""
        return self.answer(self.encode(text), sampling, count)

    def answer(self, ids: list[int], sampling: Sampling, count: int) -> Iterator[str]:
        """The same of ids. A stop text ends it and is not part of it; `stopped` says why it ended."""
        self.stopped = "length"
        sampler, logits = Sampler(sampling, self.model.device), self.read(ids)
        decoding = DecodeStream(ids=list(self.ids), skip_special_tokens=True)
        ends, waiting = {self.tokenizer.eos_token_id}, ""
        longest = max((len(stop) for stop in sampling.stop), default=0)
        for number in range(count):
            token = int(sampler(torch.tensor([self.ids]), logits)[0])
            if token in ends:
                self.stopped = "stop"
                break
            waiting += decoding.step(self.tokenizer.backend_tokenizer, token) or ""
            found = [at for stop in sampling.stop if (at := waiting.find(stop)) >= 0]
            if found:
                self.stopped, waiting = "stop", waiting[: min(found)]
                break
            ready = max(0, len(waiting) - longest + 1) if longest else len(waiting)
            if waiting[:ready]:
                yield waiting[:ready]
                waiting = waiting[ready:]
            if number + 1 < count:
                logits = self.read([token])
        if waiting:
            yield waiting


def check_spiking(folder: Path) -> None:
    """What can be said of a directory before its weights are read. Raises CheckpointError."""
    import json

    check_weights(folder)
    require_tokenizer(folder)
    check_vocabulary(folder, json.loads((folder / "config.json").read_text("utf-8")).get("tokenizer_digest"))
