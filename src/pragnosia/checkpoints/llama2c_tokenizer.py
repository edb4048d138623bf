"""llama2.c tokenizers: a vocabulary with scores becomes a byte-pair tokenizer that merges in the same order.

    file: int32 longest piece | for each token: float32 score, int32 length, bytes

llama2.c starts from the text's characters (bytes, where the vocabulary lacks one) behind a leading space, and
keeps merging the neighbours whose joint piece scores best. A merge rule for every way to split every piece, ordered
by that score, does the same.
"""

from __future__ import annotations

import struct
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors
from transformers import PreTrainedTokenizerFast

from pragnosia.errors import CheckpointError

_SPECIAL = ("<unk>", "<s>", "</s>")
_FIRST_PIECE = len(_SPECIAL) + 256  # after the special tokens and the bytes <0x00> … <0xFF>


def find_tokenizer(checkpoint: Path, vocab_size: int) -> Path | None:
    """The tokenizer that lies beside a checkpoint under one of the usual names."""
    names = [f"{checkpoint.stem}_tok{vocab_size}.bin", f"tok{vocab_size}.bin", "tokenizer.bin"]
    return next((path for name in names if (path := checkpoint.with_name(name)).is_file()), None)


def read_tokenizer(path: Path, vocab_size: int, max_length: int) -> PreTrainedTokenizerFast:
    """The tokenizer in `path`. Raises CheckpointError unless it holds exactly `vocab_size` tokens."""
    pieces = _read_pieces(path, vocab_size)
    vocabulary = {piece: token for token, (piece, _) in enumerate(pieces)}
    if len(vocabulary) != vocab_size:
        raise CheckpointError(f"{path}: {vocab_size - len(vocabulary)} tokens occur twice, expected each once")
    unknown, start, end = _SPECIAL
    tokenizer = Tokenizer(
        models.BPE(vocabulary, _merges(pieces, vocabulary), unk_token=unknown, fuse_unk=True, byte_fallback=True)
    )
    tokenizer.normalizer = normalizers.Prepend(" ")
    tokenizer.decoder = decoders.Sequence(
        [decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(content=" ", left=1, right=0)]
    )
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in _SPECIAL])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{start} $A", pair=f"{start} $A $B", special_tokens=[(start, vocabulary[start])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token=unknown,
        bos_token=start,
        eos_token=end,
        model_max_length=max_length,
        clean_up_tokenization_spaces=False,
    )


def _read_pieces(path: Path, vocab_size: int) -> list[tuple[str, float]]:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror}") from error
    pieces: list[tuple[str, float]] = []
    offset = 4
    try:
        for _ in range(vocab_size):
            score, length = struct.unpack_from("<fi", data, offset)
            offset += 8 + length
            pieces.append((data[offset - length : offset].decode(), score))
    except (struct.error, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path}: token {len(pieces)} of {vocab_size} cannot be read ({error})") from error
    if offset != len(data):
        raise CheckpointError(
            f"{path} has {len(data)} bytes, its {vocab_size} tokens take {offset}; is it this model's?"
        )
    return [*((name, 0.0) for name in _SPECIAL), *pieces[len(_SPECIAL) :]]


def _merges(pieces: list[tuple[str, float]], vocabulary: dict[str, int]) -> list[tuple[str, str]]:
    """Every way to make a piece of two others, best score first."""
    ranked = sorted(pieces[_FIRST_PIECE:], key=lambda entry: -entry[1])
    return [
        (piece[:cut], piece[cut:])
        for piece, _ in ranked
        for cut in range(1, len(piece))
        if piece[:cut] in vocabulary and piece[cut:] in vocabulary
    ]
