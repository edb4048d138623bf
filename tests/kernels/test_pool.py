"""A bank on disk gives what the bank in memory gives, bit for bit, however few slots it has."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from pragnosia import kernels
from pragnosia.kernels.activations import ACTIVATIONS
from pragnosia.kernels.blocks import Extent
from pragnosia.kernels.formats import plain_format
from pragnosia.kernels.pool import PooledBank, UnitPool
from pragnosia.quantisation.index import checksums

pytestmark = pytest.mark.skipif(kernels.native_library() is None, reason="no compiled kernels here")
UNITS, WIDTH, INNER, AWAKE = 12, 48, 20, 3


class Disk:
    """Units of one layer, each cut into three extents that lie anywhere in two files, and the same in memory."""

    def __init__(self, folder: Path, dtype: torch.dtype, slots: int) -> None:
        torch.manual_seed(0)
        self.up = (torch.randn(UNITS, 2 * INNER, WIDTH) * 0.2).to(dtype)
        self.down = (torch.randn(UNITS, WIDTH, INNER) * 0.2).to(dtype)
        record = (self.up[0].numel() + self.down[0].numel()) * dtype.itemsize
        self.pool = UnitPool(1, UNITS, record, slots)
        self.files = [folder / "first.bin", folder / "second.bin"]
        contents = [bytearray(b"head" * 3), bytearray(b"another head.")]
        places = []
        for unit in range(UNITS):
            extents = []
            for piece in (*self.up[unit].chunk(2), self.down[unit]):
                number = (unit + len(extents)) % 2
                data = piece.contiguous().view(torch.uint8).numpy().tobytes()
                extents.append(Extent(self.files[number], len(contents[number]), len(data)))
                contents[number] += data
            places.append(extents)
        for file, content in zip(self.files, contents, strict=True):
            file.write_bytes(content)
        for unit, extents in enumerate(places):
            self.pool.place(0, unit, extents)
        self.bank = PooledBank(self.pool, 0, UNITS, WIDTH, INNER, plain_format(dtype), ACTIVATIONS["swiglu"])

    def call(self, tokens: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(tokens, WIDTH, generator=generator).to(self.up.dtype)
        units = torch.rand(tokens, UNITS, generator=generator).topk(AWAKE).indices
        units[torch.rand(tokens, AWAKE, generator=generator) < 0.1] = -1
        return x, units, torch.rand(tokens, AWAKE, generator=generator)

    def both(self, x: Tensor, units: Tensor, strengths: Tensor) -> tuple[Tensor, Tensor]:
        here = kernels.bank(x, units, strengths, self.up, self.down, activation="swiglu", backend="native")
        return here, self.bank(x, units, strengths, None, None)


@pytest.mark.parametrize("slots", [4, 7, UNITS])
@pytest.mark.parametrize("tokens", [1, 4, 15, 200])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_same_bits(dtype: torch.dtype, tokens: int, slots: int, tmp_path: Path) -> None:
    disk = Disk(tmp_path, dtype, slots)
    for seed in range(4):
        here, there = disk.both(*disk.call(tokens, seed))
        assert torch.equal(here, there)
    stats = disk.pool.stats()
    assert stats.misses >= min(UNITS, slots) or tokens == 1
    assert stats.resident <= slots
    assert stats.bytes_read == stats.misses * disk.pool.record_bytes


def test_what_stays_is_not_read_again(tmp_path: Path) -> None:
    disk = Disk(tmp_path, torch.float32, UNITS)
    for _ in range(3):
        disk.both(*disk.call(200))
    stats = disk.pool.stats()
    assert (stats.misses, stats.resident) == (UNITS, UNITS)
    assert stats.hit_rate > 0.6


@pytest.mark.parametrize("tokens", [4, 200])
def test_slopes_are_those_of_the_bank_in_memory(tokens: int, tmp_path: Path) -> None:
    disk = Disk(tmp_path, torch.float32, 5)
    x, units, strengths = disk.call(tokens)
    slopes = []
    for stored in (False, True):
        x, strengths = x.detach().requires_grad_(), strengths.detach().requires_grad_()
        if stored:
            out = disk.bank(x, units, strengths, None, None)
        else:
            up, down = disk.up.requires_grad_(), disk.down.requires_grad_()
            out = kernels.bank(x, units, strengths, up, down, activation="swiglu", backend="native")
        slopes.append(torch.autograd.grad(out.square().sum(), (x, strengths)))
    for here, there in zip(*slopes, strict=True):
        assert torch.equal(here, there)


@pytest.mark.parametrize("tokens", [1, 6, 200])
def test_a_file_cut_short_is_named_and_the_pool_lives_on(tokens: int, tmp_path: Path) -> None:
    disk = Disk(tmp_path, torch.float32, 5)
    content = disk.files[1].read_bytes()
    call = disk.call(tokens)
    disk.files[1].write_bytes(content[:40])
    with pytest.raises(
        OSError, match=r"cannot read unit \d+ of sparse layer 0 from .*second.bin: the file ends too soon"
    ):
        disk.bank(*call, None, None)
    disk.files[1].write_bytes(content)
    here, there = disk.both(*call)
    assert torch.equal(here, there)


def test_a_missing_file_and_a_wrong_size(tmp_path: Path) -> None:
    pool = UnitPool(1, 2, 100, 2)
    with pytest.raises(FileNotFoundError):
        pool.place(0, 0, [Extent(tmp_path / "nowhere", 0, 100)])
    with pytest.raises(ValueError, match="is 101 bytes, a record 100"):
        pool.place(0, 0, [Extent(tmp_path, 0, 101)])
    pool.close()
    pool.close()


@pytest.mark.parametrize("slots", [4, UNITS])
def test_units_in_turn(slots: int, tmp_path: Path) -> None:
    disk = Disk(tmp_path, torch.float32, slots)
    disk.pool.ask(0, [7, 8])
    seen = []
    for _ in range(2):
        for unit, record in disk.pool.turns(0, range(UNITS)):
            up, down = disk.bank.matrices(record)
            assert torch.equal(up, disk.up[unit])
            assert torch.equal(down, disk.down[unit])
            seen.append(unit)
    assert seen == [*range(UNITS)] * 2
    held = disk.pool.hold(0, 3)
    for _ in disk.pool.turns(0, range(UNITS)):
        pass
    assert torch.equal(disk.bank.matrices(held)[0], disk.up[3])
    disk.pool.release(0, 3)


def test_units_in_turn_say_what_cannot_be_read_and_let_go_of_all(tmp_path: Path) -> None:
    disk = Disk(tmp_path, torch.float32, 4)
    whole = disk.files[0].read_bytes()
    disk.files[0].write_bytes(whole[: len(whole) // 2])
    with pytest.raises(OSError, match="ends too soon"):
        list(disk.pool.turns(0, range(UNITS)))
    disk.files[0].write_bytes(whole)
    assert len(list(disk.pool.turns(0, range(UNITS)))) == UNITS
    for unit in range(4):
        disk.pool.hold(0, unit)
    with pytest.raises(MemoryError, match="every slot"):
        disk.pool.hold(0, 4)
    with pytest.raises(MemoryError, match="every slot"):
        next(disk.pool.turns(0, [5]))


def test_a_unit_that_moved_is_read_from_its_new_place(tmp_path: Path) -> None:
    disk = Disk(tmp_path, torch.float32, 4)
    pool, held = disk.pool, disk.pool.hold(0, 3)
    old, new = held.clone(), torch.randint(0, 256, held.shape, dtype=torch.uint8)
    elsewhere = tmp_path / "elsewhere.bin"
    elsewhere.write_bytes(b"before" + new.numpy().tobytes())
    with pytest.raises(ValueError, match="unit 3 of layer 0 is held"):
        pool.move(0, 3, [Extent(elsewhere, 6, new.numel())])
    assert torch.equal(pool.hold(0, 3), old)
    pool.release(0, 3)
    pool.release(0, 3)
    pool.ask(0, [3, 4])  # on its way, or here
    pool.move(0, 3, [Extent(elsewhere, 6, new.numel())])
    assert torch.equal(pool.hold(0, 3), new)
    pool.release(0, 3)
    for number in range(50):  # files that are left take no descriptors
        newest = tmp_path / f"{number}.bin"
        newest.write_bytes(new.numpy().tobytes())
        pool.move(0, 3, [Extent(newest, 0, new.numel())])
        pool.leave(elsewhere)
        elsewhere = newest
    assert torch.equal(pool.hold(0, 3), new)
    links = [str(link.readlink()) for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]
    assert not any("/48.bin" in link for link in links)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("rows", "depth"), [(70, 45_001), (300_007, 3), (1, 9), (33, 64)])
def test_a_matrix_is_turned_on_its_way(rows: int, depth: int, dtype: torch.dtype, tmp_path: Path) -> None:
    """In pieces that end within rows, from anywhere in a file; its pieces sum up to what lies there."""
    matrix = torch.randn(rows, depth, generator=torch.Generator().manual_seed(5)).to(dtype)
    data = matrix.view(torch.uint8).numpy().tobytes()
    (tmp_path / "matrix").write_bytes(b"?" * 37 + data + b"some more")
    each = dtype.itemsize
    extent = Extent(tmp_path / "matrix", 37, len(data), row_bytes=depth * each, turned=each)
    pool = UnitPool(1, 2, len(data) + 16, 2)
    pool.place(0, 0, [extent, Extent(tmp_path / "matrix", 37 + len(data), 9)], checksums(data))
    record = pool.hold(0, 0)
    assert torch.equal(record[: len(data)].view(dtype).view(depth, rows), matrix.t())
    assert bytes(record[len(data) : len(data) + 9].tolist()) == b"some more"
    pool.place(0, 1, [extent], [*checksums(data)[:-1], 0])
    with pytest.raises(OSError, match="checksum is wrong"):
        pool.hold(0, 1)
