// Matrix products in bfloat16 on Intel's tile unit (AMX): single-precision sums of exact bfloat16 products.
//
// Both factors lie in blocks of 1 KiB: left blocks are 16 rows x 32 deep, right blocks 32 deep x 16 columns with the
// values of two neighbouring depths side by side (one 32-bit word a column), as the instruction wants them.
#pragma once
#include "numbers.hpp"

#if defined(__AMX_BF16__) && defined(__AVX512BF16__) && defined(__linux__)
#define PRAGNOSIA_AMX 1
#include <sys/syscall.h>
#include <unistd.h>

struct Amx {
    using Stored = bf16;
    using Left = bf16;
    using Right = bf16;
    static constexpr int ROWS = 32;
    static constexpr int COLS = 32;
    static constexpr int BLOCK = 512;  // values in a block

    // The kernel must be asked before a process may use tiles.
    static bool permitted() { return syscall(SYS_arch_prctl, 0x1023 /* ARCH_REQ_XCOMP_PERM */, 18) == 0; }
    static void enter() {
        struct {
            uint8_t palette = 1, start_row = 0, reserved[14] = {};
            uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
            uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
        } shape;
        _tile_loadconfig(&shape);
    }
    static void leave() { _tile_release(); }
    static int64_t left_size(int64_t rows, int64_t depth) { return round_up(rows, 16) * round_up(depth, 32); }
    static int64_t right_size(int64_t depth, int64_t cols) { return round_up(cols, 32) * round_up(depth, 32); }

    static __m256i half(const float* from) { return (__m256i)_mm512_cvtneps_pbh(_mm512_loadu_ps(from)); }
    static __m256i half(const bf16* from) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)); }
    // 16 values from row[at..], zeros from `end` on (and everywhere, where there is no row).
    template <class T> static __m256i load(const T* row, int64_t at, int64_t end) {
        if (row && end - at >= 16) return half(row + at);
        T part[16] = {};
        if (row && end > at) std::memcpy(part, row + at, (end - at) * sizeof(T));
        return half(part);
    }
    // A block of 16 rows x 32 columns as it lies, and one of 32 rows x 16 columns interleaved; each may be transposed.
    template <class T>
    static void block_of_lines(Rows<T> rows, int64_t i, int64_t count, int64_t k, int64_t depth, bool flip, bf16* out) {
        __m512i lines[16];
        for (int r = 0; r < 16; ++r) {
            const T* row = i + r < count ? rows[i + r] : nullptr;
            lines[r] = _mm512_inserti64x4(_mm512_castsi256_si512(load(row, k, depth)), load(row, k + 16, depth), 1);
        }
        store(lines, flip, out);
    }
    template <class T>
    static void block_of_pairs(Rows<T> rows, int64_t k, int64_t depth, int64_t j, int64_t count, bool flip, bf16* out) {
        __m512i lines[16];
        for (int r = 0; r < 16; ++r, k += 2) {
            const T *even = k < depth ? rows[k] : nullptr, *odd = k + 1 < depth ? rows[k + 1] : nullptr;
            __m512i low = _mm512_cvtepu16_epi32(load(even, j, count)), high = _mm512_cvtepu16_epi32(load(odd, j, count));
            lines[r] = _mm512_or_si512(low, _mm512_slli_epi32(high, 16));
        }
        store(lines, flip, out);
    }
    __attribute__((noinline)) static void store(__m512i lines[16], bool flip, bf16* out) {
        if (flip) transpose16(lines);
        for (int r = 0; r < 16; ++r) _mm512_store_si512(out + r * 32, lines[r]);
    }
    // Ask for row i's columns [k, k + 32) ahead of time: weights come from far, and packing reads them across.
    template <class T> static void prefetch(Rows<T> rows, int64_t i, int64_t count, int64_t k) {
        if (i >= count) return;
        const char* at = reinterpret_cast<const char*>(rows[i] + k);
        for (size_t byte = 0; byte < 32 * sizeof(T); byte += 64) __builtin_prefetch(at + byte);
    }
    // A factor as strips of 16, each strip its blocks along `depth`; the rows are read top to bottom.
    template <class T>
    __attribute__((noinline)) static void pack_lines(Rows<T> rows, int64_t count, int64_t end, int64_t depth, bool flip, bf16* out) {
        for (int64_t i = 0; i < end; i += 16)
            for (int64_t k = 0; k < depth; k += 32, out += BLOCK) {
                for (int r = 16; r < 32; ++r) prefetch(rows, i + r, count, k);
                block_of_lines(rows, i, count, k, depth, flip, out);
            }
    }
    template <class T>
    __attribute__((noinline)) static void pack_pairs(Rows<T> rows, int64_t count, int64_t end, int64_t depth, bool flip, bf16* out) {
        const int64_t deep = round_up(depth, 32) / 32 * BLOCK;
        for (int64_t k = 0; k < depth; k += 32)
            for (int64_t j = 0; j < end; j += 16) {
                for (int r = 32; r < 64 && j % 32 == 0; ++r) prefetch(rows, k + r, depth, j);
                block_of_pairs(rows, k, depth, j, count, flip, out + j / 16 * deep + k / 32 * BLOCK);
            }
    }

    // The four ways in, as Fp32 has them. Right factors are padded to pairs of strips.
    static void pack_left(const Matrix& matrix, int64_t count, int64_t depth, bf16* out) {
        matrix.as_rows([=](auto rows) { pack_lines(rows, count, count, depth, false, out); });
    }
    static void pack_left_transposed(const Matrix& matrix, int64_t depth, int64_t count, bf16* out) {
        matrix.as_rows([=](auto rows) { pack_pairs(rows, count, count, depth, true, out); });
    }
    static void pack_right(const Matrix& matrix, int64_t depth, int64_t count, bf16* out) {
        matrix.as_rows([=](auto rows) { pack_pairs(rows, count, round_up(count, 32), depth, false, out); });
    }
    static void pack_right_transposed(const Matrix& matrix, int64_t count, int64_t depth, bf16* out) {
        matrix.as_rows([=](auto rows) { pack_lines(rows, count, round_up(count, 32), depth, true, out); });
    }

    // out (+)= left * right in whole blocks: out has room for rows and columns up to the next ROWS and COLS.
    static void multiply(const bf16* left, const bf16* right, int64_t rows, int64_t cols, int64_t depth, float* out,
                         int64_t stride, bool add = false) {
        const int64_t deep = round_up(depth, 32) / 32 * BLOCK;  // values in a row (column) of blocks
        for (int64_t j = 0; j < cols; j += COLS)
            for (int64_t i = 0; i < rows; i += ROWS) {
                const bf16 *a = left + i / 16 * deep, *b = right + j / 16 * deep;
                if (rows - i > 16) multiply_block<true>(a, b, deep, out + i * stride + j, stride, add);
                else multiply_block<false>(a, b, deep, out + i * stride + j, stride, add);
            }
    }
    template <bool both>
    static void multiply_block(const bf16* left, const bf16* right, int64_t deep, float* out, int64_t stride, bool add) {
        float* below = out + 16 * stride;
        const int64_t bytes = stride * 4;
        if (add) {
            _tile_loadd(0, out, bytes);
            _tile_loadd(1, out + 16, bytes);
            if constexpr (both) {
                _tile_loadd(2, below, bytes);
                _tile_loadd(3, below + 16, bytes);
            }
        } else {
            _tile_zero(0);
            _tile_zero(1);
            _tile_zero(2);
            _tile_zero(3);
        }
        for (int64_t k = 0; k < deep; k += BLOCK) {
            _tile_loadd(4, left + k, 64);
            _tile_loadd(6, right + k, 64);
            _tile_dpbf16ps(0, 4, 6);
            _tile_loadd(7, right + deep + k, 64);
            _tile_dpbf16ps(1, 4, 7);
            if constexpr (both) {
                _tile_loadd(5, left + deep + k, 64);
                _tile_dpbf16ps(2, 5, 6);
                _tile_dpbf16ps(3, 5, 7);
            }
        }
        _tile_stored(0, out, bytes);
        _tile_stored(1, out + 16, bytes);
        if constexpr (both) {
            _tile_stored(2, below, bytes);
            _tile_stored(3, below + 16, bytes);
        }
    }
};
#else
#define PRAGNOSIA_AMX 0
#endif
