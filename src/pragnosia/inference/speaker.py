"""Pragnosia: the short way in. A model and its tokenizer, text in, text out.

model = Pragnosia.from_pretrained("runs/demo")
for piece in model.stream("Once upon a time"):
    print(piece, end="")
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from tokenizers.decoders import DecodeStream
from transformers import PreTrainedTokenizerBase

from pragnosia.checkpoints.admission import check_wide_awake
from pragnosia.errors import BudgetError, CheckpointError, ConfigError, PromptError, UserError
from pragnosia.inference.budget import as_bytes
from pragnosia.inference.choices import (
    DeviceMap,
    chosen_bits,
    chosen_budgets,
    chosen_device,
    chosen_dtype,
)
from pragnosia.inference.decode import Decoder, Trace
from pragnosia.inference.dial import Dial, Wish, check_energy, not_calibrated, read_dial
from pragnosia.inference.directory import has_tokenizer
from pragnosia.inference.exits import Draft, chosen_exits, read_exits
from pragnosia.inference.few_bits import load_in_few_bits
from pragnosia.inference.ladder import climbable
from pragnosia.inference.loading import load_model, load_tokenizer
from pragnosia.inference.plan import Plan
from pragnosia.inference.program import writable
from pragnosia.inference.remembering import Recalled, Remembering, Taught, room_of
from pragnosia.inference.sampling import Sampling, check_room, check_text
from pragnosia.inference.sparsity import lay_silent
from pragnosia.inference.spread import budgets_of
from pragnosia.inference.stream import Progress, load_streamed
from pragnosia.inference.token_ids import token_ids
from pragnosia.inference.vram import check_vram
from pragnosia.model.cortex import Cortex
from pragnosia.model.setting import WHOLE, Setting
from pragnosia.model.workspace_state import WorkspaceState, workspace_state

if TYPE_CHECKING:
    from pragnosia.tuning.configuration import LoraConfig

# Options of `stream` that are not Sampling's.
_OWN = ("max_new_tokens", "energy", "setting", "trace")


class Pragnosia:
    """A language model that speaks."""

    def __init__(
        self,
        model: Cortex,
        tokenizer: PreTrainedTokenizerBase | None = None,
        plan: Plan | None = None,
    ) -> None:
        self.model: Cortex = model.eval()
        self._tokenizer = tokenizer
        self.plan = plan
        """How the memory is shared out, where a budget was given."""
        self.draft: Draft | None = None
        """The exit that drafts; None: every token passes as many layers as it needs by itself."""
        self.remembering = Remembering(model, tokenizer, None)
        """What it was taught, and where that lies."""
        self.setting = WHOLE
        """How much wakes at energy 1: the whole model, unless exits were asked for as it was loaded."""
        self.folder: Path | None = None
        """Where it lies, and its dial beside it."""

    @classmethod
    def from_pretrained(  # noqa: PLR0913  each is an option that people give by name
        cls,
        directory: str | Path,
        *,
        dtype: torch.dtype | str = "auto",
        device: str | torch.device | int | None = None,
        memory: int | str | None = None,
        context: int | None = None,
        adapter: str | Path | None = None,
        load_in_8bit: bool = False,
        load_in_4bit: bool = False,
        torch_dtype: torch.dtype | str | None = None,
        device_map: DeviceMap = None,
        progress: Progress | None = None,
        exact: bool = False,
        vram: int | str | None = None,
        max_memory: Mapping[Any, int | str] | None = None,
        quantization_config: Any = None,
        speculate: bool | None = None,
        exit_confidence: str | float | None = None,
        exit_memory: str = "exact",
        reserve: int = 0,
        store: str | Path | bool = True,
    ) -> Pragnosia:
        """Load a model directory, ours or a supported family's, or a GGUF file; a tokenizer matters only for text.

        With `memory` ("4GiB", or bytes) units stay on disk and come when they wake, so that the whole process keeps to
        that budget, with room for `context` tokens. `adapter` is a directory in PEFT's format, as `tune` writes it;
        it is added as it is, not folded in. With `vram` beside `memory` the units that woke lately are on the GPU
        (the current one unless named), within that budget. With `load_in_8bit` or `load_in_4bit` the matrices are
        packed as they are loaded, into our formats int8 or int4 (kernels/formats.py; not bitsandbytes' ones), on the
        CPU; the token table and the output head take int8 in either. `torch_dtype` is another name of `dtype`, and
        `device_map` may name one device, or "auto": the GPU if there is one; a map of modules to the CPU, the disk and
        a GPU says how much of the model is where, which becomes `memory` and `vram`. `exact` runs another family's
        directory through transformers' own eager modules, for their logits bit for bit; with `memory` its experts stay
        on disk.
        What was taught (`teach`) lies in DIRECTORY/episodes, or in `store`, and has its say in what is generated;
        `store=False` leaves it out.
        `reserve` bytes of `memory` are left to what the caller does with the model, as scoring a whole text.
        `max_memory` ({"cpu": "4GiB", 0: "4GiB"}) is accelerate's name of `memory` and `vram`, `quantization_config`
        transformers' of the two `load_in_`.
        Where exits were calibrated (`pragnosia calibrate`) and drafting pays, decoding drafts with the first layers and
        judges with the others, which says the same words; `speculate` forces or forbids it. `exit_confidence`
        ("calibrated", or a probability) lets tokens leave early instead, which may say others; `exit_memory` is what
        the layers above them then remember, "exact" or "propagated".
        Raises CheckpointError, ConfigError, BudgetError, UserError.
        """
        memory, vram = chosen_budgets(memory, vram, max_memory)
        reserve += room_of(directory, store) if memory is not None else 0
        bits = chosen_bits(load_in_8bit, load_in_4bit, quantization_config)
        memory, vram, device_map = budgets_of(directory, device_map, memory, vram, context)
        if vram is not None:
            check_vram(memory, adapter)
        plan, learned = None, _learned(adapter, directory)  # before the plan, which counts what is there already
        dtype = chosen_dtype(dtype, torch_dtype)
        place = chosen_device(device, device_map, in_budget=memory is not None or bits is not None)
        if exact:
            changed = learned is not None or vram is not None or bits is not None or exit_confidence is not None
            if changed or dtype != "auto" or place != "cpu":
                raise UserError(
                    "exact mode runs a model as it lies, on the CPU: no adapter, other type, fewer bits, device or "
                    "exits; leave those out, or exact"
                )
            from pragnosia.inference.exact_loading import load_exact  # brings transformers' model classes along

            budget = None if memory is None else as_bytes(memory)
            standing_in: Any = load_exact(directory, budget, context=context, progress=progress, reserve=reserve)
            model, plan = standing_in
        elif memory is not None:
            if dtype != "auto" or (vram is None and place != "cpu"):
                raise BudgetError(
                    "within a memory budget a model runs on the CPU, with vram on the GPU, in the type it is stored in"
                )
            if bits is not None:
                raise BudgetError(
                    f"loading in {bits} packs the whole model into memory; within a budget units stay on disk as they "
                    f"lie there: pack it first (pragnosia pack {directory} OUT --format {bits}), then load OUT"
                )
            model, plan = load_streamed(
                directory,
                as_bytes(memory),
                context=context,
                progress=progress,
                vram=0 if vram is None else as_bytes(vram),
                reserve=reserve,
                speaks=learned is None,
                device=None if place == "cpu" else torch.device(place),
            )
        elif bits is not None:
            model = _in_few_bits(directory, dtype, place, bits, progress)
        else:
            model = _whole(directory, dtype, place, progress, learns=learned is not None)
        if learned is not None:
            from pragnosia.tuning.lora import attach_tensors

            attach_tensors(model, *learned)
        config, tokenizer = model.config, None
        if has_tokenizer(directory):
            tokenizer = load_tokenizer(directory, config.vocab_size, config.tokenizer_digest)
        speaker = cls(model, tokenizer, plan)
        # drafts that are refused read units from disk, too: within a budget only who asks has them
        asked = speculate if plan is None else bool(speculate)
        speaker.draft, speaker.setting = _exits(config, directory, asked, exit_confidence, exit_memory)
        speaker.folder = Path(directory)
        speaker.remembering = Remembering.beside(model, tokenizer, directory, store, exact=exact)
        return speaker

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer. Raises CheckpointError where the model came without."""
        if self._tokenizer is None:
            raise CheckpointError("this model has no tokenizer; use generate_tokens, or put tokenizer.json beside it")
        return self._tokenizer

    def generate(self, text: str, *, max_new_tokens: int = 100, **options: Any) -> str:
        """The continuation of `text`. Options as for `stream`."""
        return "".join(self.stream(text, max_new_tokens=max_new_tokens, **options))

    def stream(
        self,
        text: str,
        *,
        max_new_tokens: int = 100,
        energy: Wish = 1.0,
        setting: Setting | None = None,
        trace: Trace | None = None,
        **sampling: Any,
    ) -> Iterator[str]:
        """The continuation of `text`, piece by piece. `sampling` as in Sampling; a `stop` text is not part of it.

        `energy` and `setting` as for `turned`.
        """
        choices = Sampling.of(sampling, besides=_OWN)
        check_room(max_new_tokens, energy)
        ids = self.encode(text)
        decoder = self.decoder(len(ids) + max_new_tokens, self.turned(energy, setting), trace)
        decoder.read(ids)
        return self.pieces(decoder.speak(max_new_tokens, choices, self.stop_tokens), choices.stop, after=ids)

    def generate_tokens(
        self,
        ids: Sequence[int] | torch.Tensor,
        *,
        max_new_tokens: int = 100,
        stop_tokens: Collection[int] = (),
        energy: Wish = 1.0,
        setting: Setting | None = None,
        trace: Trace | None = None,
        **sampling: Any,
    ) -> list[int]:
        """The ids that follow `ids`, which are not repeated; a stop token ends them and is not among them.

        `energy` and `setting` as for `turned`. Raises PromptError for whatever cannot be.
        """
        choices = Sampling.of(sampling, besides=(*_OWN, "stop_tokens"))
        check_room(max_new_tokens, energy)
        given, ends = token_ids("the prompt", ids), token_ids("stop_tokens", stop_tokens)
        decoder = self.decoder(len(given) + max_new_tokens, self.turned(energy, setting), trace)
        decoder.read(given)
        return list(decoder.speak(max_new_tokens, choices, ends))

    @cached_property
    def dial(self) -> Dial | None:
        """What the model's settings cost and give, as calibrated. Raises CheckpointError for a damaged or another's."""
        return None if self.folder is None else read_dial(self.folder)

    @cached_property
    def leaves_early(self) -> bool:
        """Whether a token can leave early here: where programs are written."""
        program = writable(self.model, self.model.fresh_state(1, 1)) and climbable(self.model)
        return program and self.remembering.mixing() is None

    def turned(self, energy: Wish = 1.0, setting: Setting | None = None) -> Setting:
        """The setting for an energy: at 1 `self.setting`, below it what the dial says (inference/dial.py).

        Or `setting` as it is, for who would move one mechanism alone. An energy below the cheapest setting that was
        measured gets that one, and a warning. Raises ConfigError for a model that was not calibrated.
        """
        check_energy(energy)
        whole = energy in (1, "think")
        if setting is not None and not whole:
            raise ConfigError("energy and setting exclude each other: energy is looked up; give one of them")
        if setting is not None or whole:
            return self.setting if setting is None else setting
        if self.setting != WHOLE:
            raise ConfigError("energy below 1 chooses the exits, too; leave the exit confidence out, or energy")
        if self.dial is None:
            raise not_calibrated(self.folder or "the model")
        notch = self.dial.at(energy, leaving=self.leaves_early)
        excess = self.dial.excess(notch, energy)
        if excess is not None:
            warnings.warn(excess, stacklevel=2)
        return notch.setting

    def decoder(
        self, room: int, setting: Setting | None = None, trace: Trace | None = None, *, cache: bool = False
    ) -> Decoder:
        """An empty text to read into and speak from; with `cache` it also recalls what stands earlier in it."""
        planned = None if self.plan is None else self.plan.context
        at = setting or self.setting
        mixing = self.remembering.mixing(cache=cache, leaving=bool(at.leave))
        return Decoder(self.model, room, at, trace, draft=self.draft, planned=planned, mixing=mixing)

    def accompany(self, learner: str | Path, *, learn: bool = False) -> None:
        """A one-pass learner shares in every next token from now on (companion.py). Raises ConfigError."""
        self.remembering.accompany(learner, learn=learn)

    def teach(self, text: str, source: str = "") -> Taught:
        """Keep what a text says, in one shot: the model reads it once, nothing in it changes. Raises StoreError."""
        return self.remembering.teach([text], source)

    def recall(self, text: str, top: int = 5) -> list[Recalled]:
        """What would come to mind behind `text`, the strongest first, and why. Raises StoreError."""
        return self.remembering.recall(text, top)

    def forget(self, what: str | int) -> list[int]:
        """Remove a lesson by its text or id, from every page of the store; the ids that are gone. Raises StoreError."""
        return self.remembering.forget(what)

    def encode(self, text: str) -> list[int]:
        """Token ids; an empty text is the token documents begin (or end) with.

        Raises PromptError if there is none, or for what is no text.
        """
        check_text(text)
        ids: list[int] = self.tokenizer(text, verbose=False)["input_ids"]  # a long text is refused by us, if at all
        if ids:
            return ids
        for start in (self.tokenizer.bos_token_id, self.tokenizer.eos_token_id):
            if start is not None:
                return [int(start)]
        raise PromptError("the prompt is empty and the tokenizer has no token to begin with; give some text")

    @property
    def stop_tokens(self) -> set[int]:
        """Ids that end an answer, from the model's generation config and the tokenizer."""
        eos = self.model.generation_config.eos_token_id
        named = eos if isinstance(eos, list) else [eos]
        return {int(token) for token in (*named, self.tokenizer.eos_token_id) if token is not None}

    def workspace_state(self, text: str) -> WorkspaceState:
        """What is in the global workspace behind `text`. Raises ConfigError for a model without one."""
        return workspace_state(self.model, self.encode(text), lambda token: str(self.tokenizer.decode([token])))

    def pieces(self, ids: Iterator[int], stop: Sequence[str] = (), after: Sequence[int] = ()) -> Iterator[str]:
        """Ids as text that grows: whole characters only, nothing at or after a stop text.

        `after` is what the ids continue: some tokenizers drop the space at the beginning of a text.
        """
        decoding = DecodeStream(ids=list(after), skip_special_tokens=True)
        backend: Any = self.tokenizer.backend_tokenizer
        held = ""
        for token in ids:
            held += decoding.step(backend, token) or ""
            found = [at for at in map(held.find, stop) if at >= 0]
            if found:
                held = held[: min(found)]
                break
            safe = len(held) - _longest_start(held, stop)
            if safe:
                yield held[:safe]
                held = held[safe:]
        if held:
            yield held


def _exits(
    config: Any, directory: str | Path, speculate: bool | None, confidence: str | float | None, memory: str
) -> tuple[Draft | None, Setting]:
    """How to speak with fewer layers; who forbids it does not even read what was calibrated. Raises UserErrors."""
    if speculate is False and confidence is None:
        return None, WHOLE
    exits = read_exits(directory, config.num_hidden_layers, config.vocab_size)
    told = None if confidence is None else str(confidence)
    return chosen_exits(exits, directory, speculate=speculate, confidence=told, memory=memory)


def _whole(
    directory: str | Path, dtype: torch.dtype | str, place: str, progress: Progress | None, *, learns: bool
) -> Cortex:
    """In memory; on the CPU what silent neurons would say need not be read."""
    model = load_model(directory, dtype, place, progress)
    if place == "cpu" and not learns:
        lay_silent(model)
    return model


def _in_few_bits(
    directory: str | Path, dtype: torch.dtype | str, place: str, bits: str, progress: Progress | None
) -> Cortex:
    """Packed as it is loaded. Raises UserError for another place than the CPU."""
    if place != "cpu":
        raise UserError(f"packed weights run on the CPU, and {place!r} was asked for; leave the device out")
    asked = dtype if isinstance(dtype, torch.dtype) else None
    return load_in_few_bits(directory, bits, asked, progress=progress)


def _learned(adapter: str | Path | None, directory: str | Path) -> tuple[dict[str, torch.Tensor], LoraConfig] | None:
    """What an adapter holds; its room is not imported where there is none."""
    if adapter is None:
        return None
    check_wide_awake(Path(directory))
    from pragnosia.tuning.peft_format import read_adapter

    return read_adapter(adapter, directory)


def _longest_start(text: str, stop: Sequence[str]) -> int:
    """Length of the longest end of `text` that may yet become a stop text."""
    return max(
        (size for word in stop for size in range(1, min(len(word), len(text) + 1)) if text.endswith(word[:size])),
        default=0,
    )
