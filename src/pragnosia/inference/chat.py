"""Conversation: a talk of many turns over one Decoder, whose State is kept, so that a turn reads only what is new."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import Protocol

from tokenizers.decoders import DecodeStream

from pragnosia.data.plain_form import PLAIN
from pragnosia.errors import CheckpointError, PromptError
from pragnosia.inference.decode import Decoder
from pragnosia.inference.dial import Wish
from pragnosia.inference.ending import Ending, Spoken
from pragnosia.inference.sampling import Sampling, check_text
from pragnosia.inference.speaker import Pragnosia
from pragnosia.model.setting import Setting
from pragnosia.model.state import State


class Purse(Protocol):
    """What a conversation may cost (measure/purse.py)."""

    def read(self, ids: list[int], new: int) -> None:
        """Let the decoder read, and set it for an answer of at most `new` tokens. Raises PromptError for too dear."""

    def turn(self, setting: Setting) -> None:
        """Where it chooses from: this, or less."""

    def ran_out(self) -> bool:
        """Count what was done; whether nothing is left."""

    @property
    def empty(self) -> bool:
        """Whether nothing was left when it was last counted."""


class Conversation:
    """Turns in the form of the tokenizer's chat template; where there is none, `User: …` and `Assistant:`.

    When a turn no longer fits in the context beside room for an answer, the oldest turns are dropped (never the system
    message) and the others are read again. Closing an answer before its end, as Ctrl-C does, keeps what was said.
    """

    def __init__(
        self,
        speaker: Pragnosia,
        *,
        sampling: Sampling | None = None,
        max_new_tokens: int = 200,
        system: str | None = None,
        energy: Wish = 1.0,
        setting: Setting | None = None,
    ) -> None:
        """`energy` and `setting` as for `Pragnosia.turned`; `turn` moves them between answers."""
        check_text(system or "")
        self.purse: Purse | None = None
        """What the conversation may cost, where that is bounded."""
        self.speaker, self.max_new_tokens = speaker, max_new_tokens
        self.sampling = sampling or Sampling()
        self.templated = bool(speaker.tokenizer.chat_template)
        self.stop = self.sampling.stop if self.templated else (*self.sampling.stop, "\nUser:")
        self.messages: list[dict[str, str]] = [{"role": "system", "content": system}] if system else []
        self._answer: Generator[str, None, None] | None = None
        self._words: Spoken | None = None
        planned = None if speaker.plan is None else speaker.plan.context
        # the state grows as far as that
        at = speaker.turned(energy, setting)
        self.decoder = Decoder(speaker.model, 1024, at, draft=speaker.draft, planned=planned)
        self.passed = 0
        """Tokens that went through the model in all turns, given or said."""
        self.text = ""  # what the decoder's tokens stand for
        # Characters of the text and the state that has read just those; the first mark is the beginning.
        self.marks: list[tuple[int, State]] = [(0, self.decoder.state)]

    def turn(self, energy: Wish) -> Setting:
        """Set the dial for the answers to come. Raises ConfigError, as `Pragnosia.turned`."""
        self.decoder.setting = setting = self.speaker.turned(energy)
        if self.purse is not None:
            self.purse.turn(setting)
        return setting

    def say(self, text: str) -> Generator[str, None, None]:
        """The answer to `text`, piece by piece.

        Raises PromptError for a text that does not fit, CheckpointError where a unit cannot be read; and forgets it.
        """
        check_text(text)
        if self._answer is not None:
            self._answer.close()
        self._answer = self._reply(text)
        return self._answer

    @property
    def stopped(self) -> Ending:
        """Why the last answer ended; `stop` where there was none, or it was closed before its end."""
        return self._words.stopped if self._words is not None else "stop"

    def _reply(self, text: str) -> Generator[str, None, None]:
        kept, said = list(self.messages), list[str]()
        self.messages.append({"role": "user", "content": text})
        try:
            self._read()
        except PromptError:
            self.messages = kept
            raise
        before = list(self.decoder.ids)
        try:
            for piece in self.speaker.pieces(self._spoken(before), self.stop, after=before):
                said.append(piece)
                yield piece
        except CheckpointError:  # a unit on disk cannot be read
            self.messages = kept
            raise
        finally:
            if self.messages is not kept:
                self.messages.append({"role": "assistant", "content": "".join(said)})

    def _read(self) -> None:
        """Bring the decoder to where the answer begins, from as far along as what it holds still applies."""
        limit = self.decoder.limit
        most = limit - min(self.max_new_tokens, limit // 2)
        oldest = int(self.messages[0]["role"] == "system")
        while True:
            text = self._rendered()
            self._rewind(text)
            ids = self._unread(text)
            if len(self.decoder.ids) + len(ids) <= most or len(self.messages) == oldest + 1:
                break
            del self.messages[oldest : oldest + 2]
        needed = len(self.decoder.ids) + len(ids)
        if needed >= limit:
            raise PromptError(
                f"this turn and what goes before it take {needed} tokens, {self.decoder.bound} {limit} with the "
                "answer; say it in fewer words"
            )
        if self.purse is None:
            self.decoder.read(ids)
        else:
            self.purse.read(ids, self.max_new_tokens)
        self.passed += len(ids)
        self.text, self.marks[1:-1] = text, []

    def _spoken(self, before: list[int]) -> Iterator[int]:
        """New tokens, with a mark at each whole character: there the next turn may have to begin."""
        decoder, backend = self.decoder, self.speaker.tokenizer.backend_tokenizer
        decoding, count, whole = DecodeStream(ids=before, skip_special_tokens=True), len(before), True
        spent = None if self.purse is None else self.purse.ran_out
        self._words = Spoken(decoder, self.max_new_tokens, self.sampling, self.speaker.stop_tokens, spent)
        for token in self._words:
            self.passed += 1
            if whole:
                self.marks.append((len(self.text), decoder.state))
            piece = decoding.step(backend, token) or ""
            self.text, count, whole = self.text + piece, count + 1, bool(piece)
            yield token
        if whole and decoder.state.length == count:  # a stop token came: what stands before it has been read
            self.marks.append((len(self.text), decoder.state))

    def _rewind(self, text: str) -> None:
        """Go back to the last mark that `text` passes: a stop text or a trimming template takes words back."""
        while not text.startswith(self.text[: self.marks[-1][0]]):
            self.marks.pop()
        length, state = self.marks[-1]
        self.decoder.rewind(state)
        self.text = self.text[:length]

    def _rendered(self) -> str:
        if not self.templated:
            return "".join(PLAIN[message["role"]].format(message["content"]) for message in self.messages)
        try:
            messages, tokenizer = self.messages, self.speaker.tokenizer
            return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
        except Exception as error:  # a template may raise whatever its author chose
            reason = str(error).partition("\n")[0]
            raise PromptError(f"the chat template refuses this conversation: {reason}") from error

    def _unread(self, text: str) -> list[int]:
        if not self.templated and not self.text:
            return self.speaker.encode(text)
        return list(self.speaker.tokenizer(text[len(self.text) :], add_special_tokens=False)["input_ids"])
