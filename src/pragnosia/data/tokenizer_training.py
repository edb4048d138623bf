"""Training a byte-level BPE tokenizer, and saying what it is worth in bytes per token.

Unicode is normalised (NFC), cut into words, and written in bytes, so that any text has tokens and comes back;
then the most frequent pairs are merged. Sennrich et al. 2016, arXiv:1508.07909; bytes: Radford et al. 2019 (GPT-2).

A tokenizer of characters cuts the text into those instead: no token holds more than one, the frequent ones have a token
of their own and rare ones are bytes. With 256 tokens beside the special ones either kind is one of bytes.

Pairs are counted, so whoever brings more text gets more of the vocabulary. With a temperature T each source gives

    b_i  ~  n_i^(1/T)          b_i bytes of the n_i it has (counted up to a GiB)


spread over its documents, as much as leaves no source asked for more than it has: T = 1 reads in proportion to what
there is, a large T as much of each. The rule is multilingual BERT's (Devlin et al. 2019).
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from pragnosia.data.sources import Source
from pragnosia.data.specs import Spec, resolve
from pragnosia.data.splitting import by_document
from pragnosia.data.tokenizers import count_tokens, plain_encoder, save_tokenizer
from pragnosia.errors import DataError, unknown_name
from pragnosia.units import GIB, MIB

END, USER, ASSISTANT, PAD = "<|endoftext|>", "<|user|>", "<|assistant|>", "<|pad|>"
SPECIAL_TOKENS = (END, USER, ASSISTANT, PAD)
KINDS = ("bpe", "characters")
MIN_VOCAB_SIZE = 256 + len(SPECIAL_TOKENS)
# A turn is its speaker and what is said; the assistant's ends, so that generation knows where to stop.
# A system message is what the user says first.
CHAT_TEMPLATE = """\
{%- for message in messages -%}
    {%- if message['role'] == 'assistant' -%}
        {{ '<|assistant|>' + message['content'] + '<|endoftext|>' }}
    {%- elif loop.previtem is defined and loop.previtem['role'] == 'system' -%}
        {{ message['content'] }}
    {%- else -%}
        {{ '<|user|>' + message['content'] + ('\\n\\n' if message['role'] == 'system' else '') }}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{ '<|assistant|>' }}
{%- endif -%}
"""
_HELD_OUT = 0.02
_LONG_CHARS = 64 * 1024  # of a longer document only the end is held out, for one book may be all there is
_MEASURED_BYTES = 2 * MIB  # of each source
_COUNTED_BYTES = GIB  # of a source whose size matters; there are recipes without end


@dataclass(frozen=True)
class Measurement:
    """Bytes per token on one source; `held_out` says whether the tokenizer was trained without that text."""

    name: str
    bytes: int
    tokens: int
    held_out: bool

    @property
    def bytes_per_token(self) -> float:
        return self.bytes / max(1, self.tokens)


@dataclass(frozen=True)
class TokenizerReport:
    """What training a tokenizer came to."""

    out: str
    vocab_size: int  # reached: less than asked for where the text has too few pairs that occur twice
    requested_vocab_size: int
    trained_bytes: int
    seconds: float
    measurements: tuple[Measurement, ...]

    @property
    def bytes_per_token(self) -> float:
        """Over all sources together."""
        return sum(m.bytes for m in self.measurements) / max(1, sum(m.tokens for m in self.measurements))

    def to_dict(self) -> dict[str, object]:
        """The report as JSON."""
        files = [{**asdict(m), "bytes_per_token": m.bytes_per_token} for m in self.measurements]
        return {**asdict(self), "bytes_per_token": self.bytes_per_token, "measurements": files}


@dataclass
class _Reader:
    """Reads a source once for training and keeps some of it back for measuring."""

    source: Source
    max_bytes: int
    share: float = 1.0
    """Of the documents' bytes, spread evenly over them."""
    held: list[str] = field(default_factory=list)
    seen: list[str] = field(default_factory=list)
    held_bytes: int = 0
    train_bytes: int = 0

    def training_texts(self) -> Iterator[str]:
        passed = 0
        for document in self.source.documents():
            passed += len(document.encode())
            if self.train_bytes > self.share * passed:
                continue
            train, held = by_document(document, _HELD_OUT, _LONG_CHARS)
            whole = not train and not self.train_bytes  # the first text is never held out whole: it may be the only one
            if whole or self.held_bytes >= _MEASURED_BYTES:
                train, held = document, ""
            if held:
                self.held.append(held)
                self.held_bytes += len(held.encode())
            if train:
                if self.train_bytes < _MEASURED_BYTES:
                    self.seen.append(train)
                self.train_bytes += len(train.encode())
                yield train
            if self.train_bytes >= self.max_bytes:
                return

    def measure(self, engine: Tokenizer) -> Measurement:
        num_bytes, num_tokens = count_tokens(engine, self.held or self.seen)
        return Measurement(self.source.name, num_bytes, num_tokens, held_out=bool(self.held))


def train_tokenizer(
    sources: Spec | Sequence[Spec],
    vocab_size: int,
    out_dir: Path | str,
    *,
    kind: str = "bpe",
    min_frequency: int = 2,
    max_bytes: int = GIB,
    temperature: float | None = None,
) -> TokenizerReport:
    """Train on `sources` and save into `out_dir`, whole or not at all.

    At most `max_bytes` are read: shared out equally, or by `temperature`, which reads the sources once more to see
    how much they hold.

    Raises:
        DataError: an impossible kind, size or temperature, sources that cannot be read, a place that cannot be
            written.
    """
    check_vocab_size(vocab_size)
    if kind not in KINDS:
        raise DataError(unknown_name("kind of tokenizer", kind, KINDS))
    specs: Sequence[Spec] = [sources] if isinstance(sources, (str, Path, Source)) else sources
    if not specs:
        raise DataError("no files to train a tokenizer on; give at least one")
    started = time.monotonic()
    readers = _readers([resolve(spec) for spec in specs], max_bytes, temperature)
    engine = _train(readers, vocab_size, min_frequency, by_character=kind == "characters")
    tokenizer = _wrap(engine)
    save_tokenizer(tokenizer, out_dir)
    return TokenizerReport(
        out=str(out_dir),
        vocab_size=engine.get_vocab_size(),
        requested_vocab_size=vocab_size,
        trained_bytes=sum(reader.train_bytes for reader in readers),
        seconds=time.monotonic() - started,
        measurements=tuple(reader.measure(plain_encoder(tokenizer)) for reader in readers),
    )


def _readers(sources: Sequence[Source], max_bytes: int, temperature: float | None) -> list[_Reader]:
    """Who reads how much of each source."""
    if temperature is None:
        return [_Reader(source, max(1, max_bytes // len(sources))) for source in sources]
    sizes = [_size(source) for source in sources]
    wanted = balanced(sizes, temperature, max_bytes)
    return [_Reader(source, part, part / size) for source, part, size in zip(sources, wanted, sizes, strict=True)]


def _size(source: Source) -> int:
    """Bytes of a source, as far as they are counted."""
    size = 0
    for document in source.documents():
        size += len(document.encode())
        if size >= _COUNTED_BYTES:
            break
    return max(1, size)


def balanced(sizes: Sequence[int], temperature: float, max_bytes: int) -> list[int]:
    """Bytes to read of sources of these sizes: as size^(1/T), at most `max_bytes` in all, of none more than it has.

    Raises DataError for a temperature below 1, which would give the large ones even more.
    """
    if not temperature >= 1:
        raise DataError(f"the temperature is {temperature}, expected 1 (by the sources' sizes) or more (more alike)")
    weights = [size ** (1 / temperature) for size in sizes]
    scale = min(max_bytes / sum(weights), *(size / weight for size, weight in zip(sizes, weights, strict=True)))
    return [max(1, int(scale * weight)) for weight in weights]


def check_vocab_size(vocab_size: int) -> None:
    """Raise DataError for fewer entries than there must be."""
    if vocab_size < MIN_VOCAB_SIZE:
        raise DataError(
            f"vocab_size is {vocab_size}, expected at least {MIN_VOCAB_SIZE}: 256 bytes and "
            f"{len(SPECIAL_TOKENS)} special tokens"
        )


def _train(readers: Sequence[_Reader], vocab_size: int, min_frequency: int, *, by_character: bool) -> Tokenizer:
    engine = Tokenizer(models.BPE())
    engine.normalizer = normalizers.NFC()
    if by_character:
        apart: list[Any] = [pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")]
        apart.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False))
        engine.pre_tokenizer = pre_tokenizers.Sequence(apart)
    else:
        engine.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    engine.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=min_frequency,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    engine.train_from_iterator((text for reader in readers for text in reader.training_texts()), trainer)
    return engine


def _wrap(engine: Tokenizer) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=engine,
        bos_token=END,
        eos_token=END,
        pad_token=PAD,
        additional_special_tokens=[USER, ASSISTANT],
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
    )
