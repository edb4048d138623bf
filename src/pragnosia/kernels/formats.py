"""Row formats: how a weight matrix lies in memory in 2 to 32 bits a weight, each row by itself.

    int8         w = s (q - 128)           q in 1..255, s of 8 bits' precision
    int4 3 2     w = s (q - z)             q in 0..2^bits - 1, z in 64 steps: a zero point between the codes
    nf4          w = s table[q]            16 normal quantiles (Dettmers et al. 2023, arXiv:2305.14314), in 1/127

s and z belong to a group of 32 neighbours of a row and take 16 bits. A row is its blocks' codes, then its groups'
headers, then zeros up to a cache line:

    block     128 weights, four groups dealt out four weights at a time: byte 16 i + 4 g + j is weight 4 i + j of group
              g, so that word l of any register belongs to group l mod 4, whatever the register's width
    planes    code bits lie in planes of 16 bytes per bit: field f of byte i is code (16 bits f + i); int3 is a plane of
              2 bits, then one of 1
    header    int8, nf4: s in bfloat16; the others: 6 bits of exponent and 4 of mantissa of s, 6 of z

bf16-2:4 and int8-2:4 are laid out otherwise: see pruned.py.

`unpack` defines the values: every product is exact in single precision, so source/packed.hpp gives the same ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches
from typing import TYPE_CHECKING

import torch

from pragnosia.kernels import pruned
from pragnosia.kernels.compiled import loaded_library, native_library

if TYPE_CHECKING:
    from torch import Tensor

GROUP, BLOCK = 32, 128  # weights that share a header; weights that are packed together
LINE = 64  # bytes: where rows begin
CHUNK = 1 << 17  # weights searched or unpacked at once: they stay in the second-level cache
MANY_AT_ONCE = 1 << 22  # unpacked at once by an accelerator, to which every call is a journey
EXPONENT = 87  # the smallest exponent of s, as single precision counts: 2^-40
LARGEST = 2.0**24  # what s reaches is 2^24; nothing beyond is a weight
# times 127, so that products with 8-bit activations stay whole
NF4 = (-127, -88, -67, -50, -36, -23, -12, 0, 10, 20, 31, 43, 56, 71, 92, 127)


@dataclass(frozen=True, kw_only=True)
class Format:
    """One way to lay out a row; `code` is its number in source/packed.hpp."""

    name: str
    code: int
    bits: int
    group: int = GROUP  # 0: no groups, the numbers themselves
    shrinks: tuple[float, ...] = ()  # shares of a group's range that the search for s begins with
    refinements: int = 0
    pruned: bool = False  # two of every four neighbours are kept (pruned.py); `bits` are a kept value's

    @property
    def has_zero_point(self) -> bool:
        """Whether a group may lie beside zero."""
        return self.bits in (2, 3) or self.name == "int4"

    @property
    def plain_dtype(self) -> torch.dtype | None:
        """The numbers' type where a row is just numbers."""
        return None if self.group else {32: torch.float32, 16: torch.bfloat16}[self.bits]

    def blocks(self, depth: int) -> int:
        """Blocks of a row."""
        return -(-depth // BLOCK)

    def row_bytes(self, depth: int) -> int:
        """From one row to the next."""
        if self.pruned:
            return -(-pruned.size_of(depth, self.bits) // LINE) * LINE
        size = (
            self.blocks(depth) * (BLOCK * self.bits // 8 + BLOCK // GROUP * 2) if self.group else depth * self.bits // 8
        )
        return -(-size // LINE) * LINE

    def bank_row_bytes(self, depth: int) -> int:
        """The same within a unit of a bank, where plain numbers lie without gaps."""
        return depth * self.bits // 8 if self.plain_dtype else self.row_bytes(depth)

    def is_turned(self, unit_width: int) -> bool:
        """Whether packed rows of a unit's `down` belong to its neurons: there are fewer of them than a block holds."""
        return self.plain_dtype is None and not self.pruned and unit_width < BLOCK

    def down_shape(self, width: int, unit_width: int) -> tuple[int, int]:
        """Rows of a unit's `down` as they lie, and their depth."""
        return (unit_width, width) if self.is_turned(unit_width) else (width, unit_width)

    def bits_per_weight(self, depth: int) -> float:
        """What a weight takes, headers and padding included."""
        return 8 * self.row_bytes(depth) / depth


# Where the search begins and how often it refits: benchmarks/packed_kernels.py measures what that buys.
FORMATS: dict[str, Format] = {
    entry.name: entry
    for entry in (
        Format(name="fp32", code=0, bits=32, group=0),
        Format(name="bf16", code=1, bits=16, group=0),
        Format(name="int8", code=2, bits=8),
        Format(name="int4", code=3, bits=4, shrinks=(1.0, 0.93, 0.86), refinements=3),
        Format(name="int3", code=4, bits=3, shrinks=(0.9, 0.8, 0.7), refinements=3),
        Format(name="int2", code=5, bits=2, shrinks=(0.75, 0.6, 0.5), refinements=3),
        Format(name="nf4", code=6, bits=4, shrinks=(1.0, 0.92, 0.84), refinements=1),
        Format(name="bf16-2:4", code=7, bits=16, pruned=True),
        Format(name="int8-2:4", code=8, bits=8, pruned=True),
    )
}


def format_named(name: str) -> Format:
    """The format of this name. Raises ValueError on a name that is none."""
    if name in FORMATS:
        return FORMATS[name]
    near = get_close_matches(name, FORMATS, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"unknown format {name!r}.{hint} Available: {', '.join(FORMATS)}")


def plain_format(dtype: torch.dtype) -> Format:
    """The format of plain numbers of this type. Raises ValueError for a type that is none."""
    for entry in FORMATS.values():
        if entry.plain_dtype is dtype:
            return entry
    raise ValueError(f"weights are {dtype}, expected float32 or bfloat16")


def pack(matrix: Tensor, name: str, importance: Tensor | None = None) -> Tensor:
    """Rows (..., R, K) in a format: (..., R, row_bytes) of bytes.

    `importance` (K,) weighs the inputs' errors in the search for scales: the mean square of what each input sees.
    Raises ValueError on an unknown format, on numbers that are not finite or too large, and on shapes that do not fit.
    """
    entry = format_named(name)
    if matrix.dim() < 2 or not matrix.is_floating_point():
        raise ValueError(
            f"a matrix to pack is {matrix.dtype} {tuple(matrix.shape)}, expected floats (..., rows, depth)"
        )
    depth = matrix.shape[-1]
    if entry.pruned:
        pruned.check_width(depth)
    if importance is not None and (importance.shape != (depth,) or not bool((importance >= 0).all())):
        raise ValueError(f"importance has shape {tuple(importance.shape)}, expected ({depth},) of numbers >= 0")
    rows = matrix.detach().reshape(-1, depth)
    packed = rows.new_zeros((len(rows), entry.row_bytes(depth)), dtype=torch.uint8)
    weights = None if importance is None else importance.detach().float().contiguous()
    if entry.group and not entry.pruned and _is_compiled(rows):
        _pack_compiled(rows.contiguous(), entry, weights, packed)
        return packed.view(*matrix.shape[:-1], entry.row_bytes(depth))
    step = max(1, CHUNK // max(1, depth))
    for start in range(0, len(rows), step):
        chunk = rows[start : start + step]
        _refuse_what_is_no_weight(chunk, entry)
        if entry.plain_dtype is not None:
            numbers = chunk.to(entry.plain_dtype).contiguous().view(torch.uint8)
            packed[start : start + step, : numbers.shape[1]] = numbers
            continue
        if entry.pruned:
            pruned.write(chunk.float(), entry.bits, weights, packed[start : start + step])
            continue
        codes, headers = _searched(_grouped(chunk.float()), entry, weights)
        _write(codes, headers, entry, packed[start : start + step])
    return packed.view(*matrix.shape[:-1], entry.row_bytes(depth))


def unpack(packed: Tensor, depth: int, name: str, dtype: torch.dtype = torch.float32) -> Tensor:
    """The values of packed rows: (..., R, row_bytes) -> (..., R, K). Raises ValueError on rows of another length."""
    entry = format_named(name)
    check_rows(packed, depth, entry)
    rows = packed.reshape(-1, packed.shape[-1])
    out = torch.empty((len(rows), depth), dtype=dtype, device=packed.device)
    step = max(1, (CHUNK if packed.is_cpu else MANY_AT_ONCE) // max(1, depth))
    for start in range(0, len(rows), step):
        out[start : start + step] = _values(rows[start : start + step], depth, entry)
    return out.view(*packed.shape[:-1], depth)


def check_rows(packed: Tensor, depth: int, entry: Format) -> None:
    """Raise ValueError where these are no rows of `depth` weights in this format."""
    if packed.dtype is not torch.uint8 or packed.dim() < 1 or packed.shape[-1] != entry.row_bytes(depth):
        raise ValueError(
            f"packed rows are {packed.dtype} {tuple(packed.shape)}, expected torch.uint8"
            f" (..., {entry.row_bytes(depth)}) for {depth} weights in {entry.name}"
        )


def _is_compiled(rows: Tensor) -> bool:
    return rows.is_cpu and rows.dtype in (torch.float32, torch.bfloat16) and native_library() is not None


def _pack_compiled(rows: Tensor, entry: Format, importance: Tensor | None, packed: Tensor) -> None:
    shrinks = torch.tensor(entry.shrinks)
    code = loaded_library().pragnosia_pack(
        *(entry.code, rows.data_ptr(), rows.dtype is torch.bfloat16, *rows.shape),
        *(None if importance is None else importance.data_ptr(), shrinks.data_ptr(), len(shrinks), entry.refinements),
        *(LARGEST, torch.get_num_threads(), packed.data_ptr(), packed.shape[1]),
    )
    if code == 1:
        _refuse_what_is_no_weight(rows, entry)
    if code:
        raise MemoryError("packing found no memory for a row")


def _refuse_what_is_no_weight(chunk: Tensor, entry: Format) -> None:
    reach = float(chunk.abs().max()) if chunk.numel() else 0.0
    if reach <= LARGEST or (reach < float("inf") and entry.plain_dtype is not None):
        return
    what = f"weights reach {reach:.3g}" if reach < float("inf") else "weights hold NaN or infinity"
    raise ValueError(
        f"{what}, {entry.name} takes finite numbers up to {LARGEST:.3g}: repair the matrix or keep it in fp32"
    )


def _grouped(rows: Tensor) -> Tensor:
    """Rows (R, K) as columns of 32: (32, R * groups), zeros where a row has ended."""
    padded = torch.nn.functional.pad(rows, (0, -rows.shape[1] % BLOCK))
    return padded.reshape(-1, GROUP).t().contiguous()  # sums along the first dimension run in registers


def _searched(groups: Tensor, entry: Format, importance: Tensor | None) -> tuple[Tensor, Tensor]:
    """Codes (32, N) and headers (N,) of groups (32, N)."""
    weights = None
    if importance is not None:
        one_row = _grouped(importance[None])
        one_row += 1e-6 * one_row.amax() + 1e-30  # what nobody sees still breaks ties
        weights = one_row.repeat(1, groups.shape[1] // one_row.shape[1])
    if entry.has_zero_point:
        return _with_zero_point(groups, entry, weights)
    return _with_table(groups, entry, weights) if entry.name == "nf4" else _symmetric(groups)


def _symmetric(groups: Tensor) -> tuple[Tensor, Tensor]:
    scale = (groups.abs().amax(0) / 127).bfloat16()
    codes = (groups * _inverse(scale.float())).round_().clamp_(-127, 127) + 128
    return codes.to(torch.uint8), scale.view(torch.int16)


def _with_table(groups: Tensor, entry: Format, weights: Tensor | None) -> tuple[Tensor, Tensor]:
    table = groups.new_tensor(NF4)
    between = (table[1:] + table[:-1]) / 2
    reach = groups.abs().amax(0) / 127
    best: tuple[Tensor, Tensor, Tensor] | None = None
    for shrink in entry.shrinks:
        scale = (reach * shrink).bfloat16().float()
        for refinement in range(entry.refinements + 1):
            codes = torch.bucketize(groups * _inverse(scale), between, out_int32=True)
            values = table[codes]
            if refinement < entry.refinements:
                weighted = values if weights is None else values * weights
                scale = ((weighted * groups).sum(0) / (weighted * values).sum(0).clamp_min(1e-30)).bfloat16().float()
        best = _better(best, codes, scale, _error(groups - values * scale, weights))
    assert best is not None
    return best[0].to(torch.uint8), best[1].bfloat16().view(torch.int16)


def _with_zero_point(groups: Tensor, entry: Format, weights: Tensor | None) -> tuple[Tensor, Tensor]:
    """Least squares for s and z between roundings, from a shrunken range; the best of a few."""
    top = (1 << entry.bits) - 1
    low, high = groups.amin(0).clamp_max_(0), groups.amax(0).clamp_min_(0)
    total = GROUP if weights is None else weights.sum(0)
    mean = (groups if weights is None else groups * weights).sum(0) / total
    best: tuple[Tensor, Tensor, Tensor] | None = None
    for shrink in entry.shrinks:
        scale = (high - low).mul_(shrink / top)
        zero = low * _inverse(scale) * -shrink
        for _ in range(entry.refinements):
            codes = torch.addcmul(zero, groups, _inverse(scale)).round_().clamp_(0, top)
            middle = (codes if weights is None else codes * weights).sum(0) / total
            codes -= middle
            weighted = codes if weights is None else codes * weights
            shared = (weighted * groups).sum(0)
            spread = (codes.square_() if weights is None else weighted * codes).sum(0)
            # a group of one code keeps its z, and its mean says s
            scale = torch.where(spread > 0, shared / spread, mean * _inverse(middle - zero, signed=True))
            zero = torch.where(spread > 0, middle - mean * _inverse(scale), zero)
        header = _header(scale, zero, top)
        scale, zero = _scale_and_zero(header, entry.bits)
        codes = torch.addcmul(zero, groups, _inverse(scale)).round_().clamp_(0, top)
        best = _better(best, codes, header, _error(torch.addcmul(groups, codes - zero, scale, value=-1), weights))
    assert best is not None
    return best[0].to(torch.uint8), best[1].to(torch.int16)


def _better(
    best: tuple[Tensor, Tensor, Tensor] | None, codes: Tensor, header: Tensor, error: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    if best is None:
        return codes, header, error
    wins = error < best[2]
    return torch.where(wins, codes, best[0]), torch.where(wins, header, best[1]), torch.where(wins, error, best[2])


def _error(difference: Tensor, weights: Tensor | None) -> Tensor:
    square = difference.square_()
    return (square if weights is None else square.mul_(weights)).sum(0)


def _inverse(scale: Tensor, signed: bool = False) -> Tensor:
    return torch.where(scale != 0 if signed else scale > 0, 1 / scale, 0)


def _header(scale: Tensor, zero: Tensor, top: int) -> Tensor:
    """16 bits of s, rounded to 5 significant bits, and z."""
    rounded = ((scale.clamp_min(0).view(torch.int32) + (1 << 18)) >> 19) - (EXPONENT << 4)
    steps = (zero * (64 / (top + 1))).round().clamp_(0, 63).to(torch.int32)
    return (rounded.clamp_(0, 1023) << 6) | steps


def _scale_and_zero(header: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """`_header` backwards, from (N,) int32 of 0..65535."""
    scale = (((header >> 6) + (EXPONENT << 4)) << 19).view(torch.float32)
    return scale, (header & 63) * ((1 << bits) / 64)


def _planes(bits: int) -> tuple[int, ...]:
    return (2, 1) if bits == 3 else (bits,)


def _write(codes: Tensor, headers: Tensor, entry: Format, rows: Tensor) -> None:
    """Codes (32, N) and headers (N,) into their places."""
    blocks = codes.shape[1] // (BLOCK // GROUP)
    dealt = codes.t().reshape(blocks, BLOCK // GROUP, GROUP // 4, 4).transpose(1, 2).reshape(blocks, BLOCK)
    planes, done = [], 0
    for bits in _planes(entry.bits):
        fields = (dealt >> done & ((1 << bits) - 1)).view(blocks, 8 // bits, 16 * bits)
        plane = fields[:, 0].clone()
        for field in range(1, 8 // bits):
            plane |= fields[:, field] << (bits * field)
        planes.append(plane)
        done += bits
    code_bytes = blocks // len(rows) * 16 * entry.bits
    rows[:, :code_bytes] = (planes[0] if len(planes) == 1 else torch.cat(planes, 1)).view(len(rows), -1)
    heads = headers.contiguous().view(torch.uint8).view(len(rows), -1)
    rows[:, code_bytes : code_bytes + heads.shape[1]] = heads


def _values(rows: Tensor, depth: int, entry: Format) -> Tensor:
    """(R, row_bytes) -> (R, K) in single precision."""
    if entry.plain_dtype is not None:
        return rows[:, : depth * entry.bits // 8].contiguous().view(entry.plain_dtype).float()
    if entry.pruned:
        return pruned.read(rows, depth, entry.bits)
    blocks = entry.blocks(depth)
    code_bytes = blocks * 16 * entry.bits
    codes, done, at = torch.zeros((), dtype=torch.uint8), 0, 0
    stored = rows[:, :code_bytes].reshape(-1, 16 * entry.bits)
    for bits in _planes(entry.bits):
        shifts = torch.arange(0, 8, bits, dtype=torch.uint8, device=rows.device)[:, None]
        fields = stored[:, None, at : at + 16 * bits] >> shifts & ((1 << bits) - 1)
        codes = codes | fields.reshape(-1, BLOCK) << done
        done, at = done + bits, at + 16 * bits
    codes = codes.view(-1, GROUP // 4, BLOCK // GROUP, 4).transpose(1, 2).reshape(-1, GROUP)
    heads = rows[:, code_bytes : code_bytes + blocks * 8].contiguous().view(torch.int16).reshape(-1, 1)
    if entry.has_zero_point:
        scale, zero = _scale_and_zero(heads.to(torch.int32) & 0xFFFF, entry.bits)
        values = (codes - zero) * scale
    else:
        table = (
            torch.tensor(NF4, device=rows.device)
            if entry.name == "nf4"
            else torch.arange(-128, 128, device=rows.device)
        )
        values = table.float()[codes.int()] * heads.view(torch.bfloat16).float()
    return values.view(len(rows), -1)[:, :depth]
