// Matrix products in single precision: registers hold a ROWS x COLS block, the right factor lies in panels of COLS.
#pragma once
#include "numbers.hpp"

struct Fp32 {
    using Stored = float;  // what is kept between passes
    using Left = float;
    using Right = float;
    static constexpr int VECTORS = 2;
    static constexpr int ROWS = LANES == 8 ? 6 : 8;
    static constexpr int COLS = VECTORS * LANES;

    static void enter() {}
    static void leave() {}
    static int64_t left_size(int64_t rows, int64_t depth) { return round_up(rows, ROWS) * depth; }
    static int64_t right_size(int64_t depth, int64_t cols) { return round_up(cols, COLS) * depth; }

    // Left factor from rows of it: plain row-major; rows beyond the last are zeros.
    static void pack_left(const Matrix& matrix, int64_t count, int64_t depth, float* out) {
        matrix.as_rows([=](auto rows) {
            for (int64_t i = 0; i < count; ++i)
                for (int64_t k = 0; k < depth; ++k) out[i * depth + k] = widen(rows[i][k]);
        });
        std::memset(out + count * depth, 0, (round_up(count, ROWS) - count) * depth * sizeof(float));
    }
    // Left factor from the rows of its transpose.
    static void pack_left_transposed(const Matrix& matrix, int64_t depth, int64_t count, float* out) {
        matrix.as_rows([=](auto rows) { transpose(rows, depth, count, out, depth); });
        std::memset(out + count * depth, 0, (round_up(count, ROWS) - count) * depth * sizeof(float));
    }
    // Right factor from rows of it: panel after panel, each (depth, COLS).
    static void pack_right(const Matrix& matrix, int64_t depth, int64_t count, float* out) {
        matrix.as_rows([=](auto rows) {
            for (int64_t k = 0; k < depth; ++k) {
                const auto* row = rows[k];
                for (int64_t j = 0; j < count; j += COLS) {
                    float* to = out + j * depth + k * COLS;
                    for (int l = 0; l < COLS; ++l) to[l] = j + l < count ? widen(row[j + l]) : 0.f;
                }
            }
        });
    }
    // Right factor from the rows of its transpose, as weights (out, in) lie.
    static void pack_right_transposed(const Matrix& matrix, int64_t count, int64_t depth, float* out) {
        for (int64_t j = 0; j < count; j += COLS) {
            const int64_t cols = count - j < COLS ? count - j : COLS;
            if (cols < COLS) std::memset(out + j * depth, 0, COLS * depth * sizeof(float));
            matrix.shifted(j, 0).as_rows([=](auto rows) { transpose(rows, cols, depth, out + j * depth, COLS); });
        }
    }
    // out[k, i] = rows[i][k] for i < count, k < depth.
    template <class T>
    __attribute__((noinline)) static void transpose(Rows<T> rows, int64_t count, int64_t depth, float* out, int64_t stride) {
        int64_t whole_i = 0, whole_k = 0;
#if defined(__AVX512F__)
        whole_i = count / 16 * 16, whole_k = depth / 16 * 16;
        for (int64_t i = 0; i < whole_i; i += 16)
            for (int64_t k = 0; k < whole_k; k += 16) {
                __m512i lines[16];
                for (int r = 0; r < 16; ++r) lines[r] = _mm512_castps_si512(load16(rows[i + r] + k));
                transpose16(lines);
                for (int r = 0; r < 16; ++r) _mm512_storeu_si512(out + (k + r) * stride + i, lines[r]);
            }
#endif
        for (int64_t i = 0; i < count; ++i)
            for (int64_t k = i < whole_i ? whole_k : 0; k < depth; ++k) out[k * stride + i] = widen(rows[i][k]);
    }

    // out (+)= left * right in whole blocks: out has room for rows and columns up to the next ROWS and COLS.
    static void multiply(const float* left, const float* right, int64_t rows, int64_t cols, int64_t depth, float* out,
                         int64_t stride, bool add = false) {
        for (int64_t j = 0; j < cols; j += COLS)
            for (int64_t i = 0; i < rows; i += ROWS)
                multiply_block(left + i * depth, right + j * depth, depth, out + i * stride + j, stride, add);
    }
    static void multiply_block(const float* left, const float* panel, int64_t depth, float* out, int64_t stride, bool add) {
        vec total[ROWS][VECTORS] = {};
        for (int64_t k = 0; k < depth; ++k) {
            const vec* line = reinterpret_cast<const vec*>(panel + k * COLS);
#pragma GCC unroll 8
            for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 8
                for (int v = 0; v < VECTORS; ++v) total[r][v] += left[r * depth + k] * line[v];
        }
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 8
            for (int v = 0; v < VECTORS; ++v) {
                vec* to = reinterpret_cast<vec*>(out + r * stride) + v;
                *to = add ? *to + total[r][v] : total[r][v];
            }
    }
};
